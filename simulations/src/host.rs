//! One host: the real exchange, a store that remembers which chunks are here, and a client that
//! pulls the image through it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use shoal_protocol::{
    chunk::{Bitfield, Geometry},
    config::Config,
    core::Core,
    digest::Digest,
    directory::{Directory, NodeRecord, Peer},
    event::Event,
    message::{BlobKind, LeaseId, Message},
    time::Time,
};

use crate::{
    network::{Frame, Links, StreamId},
    world::HostId,
};

/// SHA-256 with the instructions for it, in bytes per nanosecond.
const SHA256_BYTES_PER_NANO: f64 = 1.8;

/// Whether the process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Up,
    Frozen,
    Down,
}

/// What a host has of a blob.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) size: Option<u64>,
    pub(crate) have: Bitfield,
    pub(crate) verified: bool,
    /// Chunks from the start that went into the SHA-256.
    hashed: u32,
    hash_free: u64,
    reader_at: Option<u32>,
}

impl Stored {
    pub(crate) fn new(size: Option<u64>) -> Self {
        let chunks = size.map_or(1, |size| Geometry::new(BlobKind::Blob, size).chunks());
        Self {
            size,
            have: Bitfield::new(chunks),
            verified: false,
            hashed: 0,
            hash_free: 0,
            reader_at: None,
        }
    }

    pub(crate) fn complete(size: u64) -> Self {
        let chunks = Geometry::new(BlobKind::Blob, size).chunks();
        Self {
            have: Bitfield::full(chunks),
            verified: true,
            ..Self::new(Some(size))
        }
    }

    pub(crate) fn sized(&mut self, size: u64) {
        self.size = Some(size);
        self.have.grow(Geometry::new(BlobKind::Blob, size).chunks());
    }

    /// Hashes what is contiguous; says when the whole will have been hashed, once.
    pub(crate) fn hash(&mut self, now: u64) -> Option<u64> {
        let size = self.size?;
        let chunks = self.have.len();
        if self.hashed == chunks {
            return None;
        }
        while self.hashed < chunks && self.have.contains(self.hashed) {
            let len = f64::from(Geometry::new(BlobKind::Blob, size).len(self.hashed));
            self.hash_free = self.hash_free.max(now) + (len / SHA256_BYTES_PER_NANO) as u64;
            self.hashed += 1;
        }
        (self.hashed == chunks).then_some(self.hash_free)
    }

    /// The chunk that a client waits for, when it is another one than before.
    pub(crate) fn reader_moved(&mut self) -> Option<u32> {
        let head = self.have.next_clear(0)?;
        (self.reader_at.replace(head) != Some(head)).then_some(head)
    }

    /// The process has started again: everything is hashed anew, nobody reads yet.
    pub(crate) fn reopened(&mut self) {
        self.hashed = 0;
        self.hash_free = 0;
        self.reader_at = None;
    }
}

pub(crate) struct Host {
    pub(crate) record: NodeRecord,
    /// `None` for the origin, and while the process is down.
    pub(crate) core: Option<Core>,
    pub(crate) state: State,
    /// Rises with every start, so that what was meant for the process before does not reach the
    /// next one.
    pub(crate) epoch: u32,
    /// What came in while the process was frozen.
    pub(crate) backlog: Vec<Event>,
    pub(crate) unread: Vec<Frame>,
    pub(crate) wake_at: u64,
    pub(crate) links: Links,
    pub(crate) connected: BTreeSet<HostId>,
    pub(crate) dialing: BTreeMap<HostId, Vec<Message>>,
    pub(crate) blobs: BTreeMap<Digest, Stored>,
    pub(crate) expected: BTreeSet<(Peer, Digest, u32)>,
    pub(crate) reads: BTreeMap<(Digest, LeaseId), StreamId>,
    /// Layers that the client has not asked for yet.
    pub(crate) to_pull: VecDeque<Digest>,
    pub(crate) pulling: BTreeMap<Digest, BlobKind>,
    pub(crate) started_at: Option<u64>,
    pub(crate) done_at: Option<u64>,
    /// Struck by a fault: its own time does not count.
    pub(crate) victim: bool,
    pub(crate) events: u64,
    /// Calls in a row after which the machine wanted to be called again at once.
    pub(crate) spins: u32,
}

impl Host {
    pub(crate) fn new(record: NodeRecord, rate: f64) -> Self {
        Self {
            record,
            core: None,
            state: State::Up,
            epoch: 0,
            backlog: Vec::new(),
            unread: Vec::new(),
            wake_at: u64::MAX,
            links: Links::new(rate),
            connected: BTreeSet::new(),
            dialing: BTreeMap::new(),
            blobs: BTreeMap::new(),
            expected: BTreeSet::new(),
            reads: BTreeMap::new(),
            to_pull: VecDeque::new(),
            pulling: BTreeMap::new(),
            started_at: None,
            done_at: None,
            victim: false,
            events: 0,
            spins: 0,
        }
    }

    /// Starts the process.
    pub(crate) fn boot(&mut self, config: &Config, directory: &Directory, seed: u64, now: u64) {
        self.epoch += 1;
        self.record.generation = u64::from(self.epoch);
        self.state = State::Up;
        self.core = Some(Core::new(
            config.clone(),
            self.record.clone(),
            directory.clone(),
            seed.wrapping_add(u64::from(self.epoch) << 32),
            Time::from_nanos(now),
        ));
    }

    /// The process is gone, and with it all but the store.
    pub(crate) fn kill(&mut self) {
        self.core = None;
        self.state = State::Down;
        self.epoch += 1;
        self.backlog.clear();
        self.unread.clear();
        self.wake_at = u64::MAX;
        self.links.control.clear();
        self.links.streams.clear();
        self.connected.clear();
        self.dialing.clear();
        self.expected.clear();
        self.reads.clear();
        for stored in self.blobs.values_mut() {
            stored.reopened();
        }
    }
}
