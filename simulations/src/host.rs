//! One host: the real exchange, a store that remembers which chunks are here, and a client that
//! pulls images through it.

pub(crate) mod store;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use shoal_protocol::{
    directory::NodeRecord,
    event::Event,
    message::{LeaseId, Message},
};

use self::store::Stored;
use crate::net::NodeIndex;

/// A blob's place in the list of all of a world.
pub(crate) type BlobIndex = u16;

/// Whether the process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Up,
    Frozen,
    Down,
}

/// How a host misbehaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lies {
    /// It vouches for wrong bytes of what it reads from the origin.
    pub(crate) as_holder: bool,
    /// It sends other bytes than were vouched for.
    pub(crate) as_server: bool,
}

/// The pull of one image by the client of one host.
#[derive(Debug)]
pub(crate) struct Pull {
    pub(crate) manifest: BlobIndex,
    /// Layers that the client has not asked for yet.
    pub(crate) next: VecDeque<BlobIndex>,
    pub(crate) pulling: BTreeSet<BlobIndex>,
    /// Blobs that the client still lacks, the manifest included.
    pub(crate) missing: BTreeSet<BlobIndex>,
}

pub(crate) struct Host {
    pub(crate) record: NodeRecord,
    pub(crate) state: State,
    /// Rises with every start, so that what was meant for the process before does not reach the
    /// next one.
    pub(crate) epoch: u32,
    /// What came in while the process was frozen.
    pub(crate) backlog: Vec<Event>,
    pub(crate) wake_at: u64,
    pub(crate) connected: Peers,
    pub(crate) dialing: BTreeMap<NodeIndex, Vec<Message>>,
    /// Bulk connections, and when each was last used.
    pub(crate) bulk: BTreeMap<NodeIndex, u64>,
    pub(crate) blobs: Vec<Option<Box<Stored>>>,
    pub(crate) expected: BTreeSet<(NodeIndex, BlobIndex, u32)>,
    /// Origin reads, by their number in the world.
    pub(crate) reads: BTreeMap<(BlobIndex, LeaseId), u32>,
    pub(crate) banned: BTreeSet<NodeIndex>,
    pub(crate) pulls: Vec<Pull>,
    pub(crate) started_at: Option<u64>,
    pub(crate) done_at: Option<u64>,
    /// When the disk has written, and read, all that it was given.
    pub(crate) written_at: u64,
    pub(crate) read_at: u64,
    /// Struck by a fault: its own time does not count.
    pub(crate) victim: bool,
    /// Slower than the others from the start.
    pub(crate) slow: bool,
    /// Nothing can be stored.
    pub(crate) full: bool,
    pub(crate) lies: Lies,
    /// What its clock is ahead of the world's, in nanoseconds.
    pub(crate) clock_ahead: u64,
    /// When a chunk was last stored.
    pub(crate) progress_at: u64,
    /// Bytes that it read from the origin.
    pub(crate) from_origin: u64,
    /// Chunks that it is sending.
    pub(crate) sending: usize,
    /// Chunks that it no longer waits for, and whose senders were not told.
    pub(crate) withdrawn: BTreeSet<(NodeIndex, BlobIndex, u32)>,
    /// Calls of its machine whose answers are to come.
    pub(crate) calls: u32,
    /// When its machine wants to be called at the latest, by the world's clock.
    pub(crate) deadline: u64,
    /// Calls in a row after which the machine wanted to be called again at once.
    pub(crate) spins: u32,
}

impl Host {
    pub(crate) fn new(record: NodeRecord, nodes: usize, blobs: usize) -> Self {
        Self {
            record,
            state: State::Up,
            epoch: 0,
            backlog: Vec::new(),
            wake_at: u64::MAX,
            connected: Peers::new(nodes),
            dialing: BTreeMap::new(),
            bulk: BTreeMap::new(),
            blobs: (0..blobs).map(|_| None).collect(),
            expected: BTreeSet::new(),
            reads: BTreeMap::new(),
            banned: BTreeSet::new(),
            pulls: Vec::new(),
            started_at: None,
            done_at: None,
            written_at: 0,
            read_at: 0,
            victim: false,
            slow: false,
            full: false,
            lies: Lies::default(),
            clock_ahead: 0,
            progress_at: 0,
            from_origin: 0,
            sending: 0,
            withdrawn: BTreeSet::new(),
            calls: 0,
            deadline: u64::MAX,
            spins: 0,
        }
    }

    pub(crate) fn blob(&self, blob: BlobIndex) -> Option<&Stored> {
        self.blobs[usize::from(blob)].as_deref()
    }

    pub(crate) fn blob_mut(&mut self, blob: BlobIndex) -> Option<&mut Stored> {
        self.blobs[usize::from(blob)].as_deref_mut()
    }

    /// Whether nobody waits for this host to end: it has ended, is gone, or is cast out.
    pub(crate) fn is_over(&self) -> bool {
        self.done_at.is_some() || self.state == State::Down || self.lies.as_holder
    }

    /// Whether it has a process that may stand still.
    pub(crate) fn lives(&self) -> bool {
        self.epoch > 0 && self.state != State::Down
    }

    /// The process starts.
    pub(crate) fn boot(&mut self) {
        self.epoch += 1;
        self.record.generation = u64::from(self.epoch);
        self.state = State::Up;
    }

    /// The process is gone, and with it all but the store.
    pub(crate) fn kill(&mut self) {
        self.state = State::Down;
        self.epoch += 1;
        self.backlog.clear();
        self.wake_at = u64::MAX;
        self.connected.clear();
        self.dialing.clear();
        self.bulk.clear();
        self.expected.clear();
        self.reads.clear();
        self.banned.clear();
        self.withdrawn.clear();
        self.sending = 0;
        self.spins = 0;
        self.calls = 0;
        self.deadline = u64::MAX;
        for stored in self.blobs.iter_mut().flatten() {
            stored.reopened();
        }
    }
}

/// A set of nodes of a known number.
#[derive(Debug)]
pub(crate) struct Peers(Vec<u64>);

impl Peers {
    fn new(nodes: usize) -> Self {
        Self(vec![0; nodes.div_ceil(64)])
    }

    pub(crate) fn contains(&self, node: NodeIndex) -> bool {
        self.0[node / 64] >> (node % 64) & 1 == 1
    }

    /// `true` if it was not there.
    pub(crate) fn insert(&mut self, node: NodeIndex) -> bool {
        let new = !self.contains(node);
        self.0[node / 64] |= 1 << (node % 64);
        new
    }

    /// `true` if it was there.
    pub(crate) fn remove(&mut self, node: NodeIndex) -> bool {
        let there = self.contains(node);
        self.0[node / 64] &= !(1 << (node % 64));
        there
    }

    pub(crate) fn count(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    pub(crate) fn clear(&mut self) {
        self.0.fill(0);
    }
}
