//! A few nodes in one thread and virtual time: messages take a millisecond, chunks and reads from
//! the origin what the test says. After every event each machine's invariants are checked.

use std::collections::{BTreeMap, BTreeSet};

use ed25519_dalek::SigningKey;

use crate::{
    attest::Attestation,
    chunk::{Bitfield, ChunkHash, Geometry},
    config::Config,
    core::Core,
    digest::Digest,
    directory::{Directory, NodeId, NodeRecord, Peer, Place},
    event::{Action, Event},
    message::{
        BlobKind, Hint, Lease, LeaseId, Message, OriginFailure, TagFailure, TagKey, TagRecord,
    },
    time::{Duration, Time},
};

pub(super) const MS: Duration = Duration::from_millis(1);
pub(super) const SECOND: Duration = Duration::from_secs(1);

/// The chunk size of every blob in these tests.
pub(super) const CHUNK: u64 = 256 << 10;

/// What a node meets when it reads from the origin.
#[derive(Clone, Debug)]
pub(super) enum Origin {
    Gives,
    /// It gives at a tenth of the rate.
    GivesSlowly,
    /// It gives wrong bytes, and the node signs them.
    Lies,
    /// Only whole blobs.
    NoRanges,
    Fails(OriginFailure),
}

/// A stored chunk.
#[derive(Clone, Copy)]
struct Chunk {
    signer: usize,
    wrong: bool,
}

#[derive(Clone)]
struct Stored {
    kind: BlobKind,
    size: Option<u64>,
    chunks: BTreeMap<u32, Chunk>,
    /// Signers of chunks that an audit proved wrong.
    evidence: Vec<(u32, usize)>,
}

impl Stored {
    fn count(&self) -> Option<u32> {
        Some(Geometry::new(self.kind, self.size?).chunks())
    }

    fn bitfield(&self) -> Bitfield {
        let mut have = Bitfield::new(self.count().unwrap_or(1));
        for index in self.chunks.keys() {
            have.insert(*index);
        }
        have
    }
}

pub(super) struct Node {
    pub(super) core: Core,
    pub(super) peer: Peer,
    pub(super) origin: Origin,
    pub(super) tag: Result<Digest, TagFailure>,
    pub(super) tag_known: Option<TagRecord>,
    pub(super) tag_imported: Option<TagRecord>,
    pub(super) tag_spared: Option<String>,
    /// Takes part in nothing any more.
    pub(super) dead: bool,
    key: SigningKey,
    blobs: BTreeMap<Digest, Stored>,
    expected: BTreeSet<(Peer, Digest, u32)>,
    streams: BTreeSet<(Digest, LeaseId)>,
}

#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "a few hundred of them live at once"
)]
enum Happening {
    Event(Event),
    Chunk {
        from: usize,
        blob: Digest,
        index: u32,
    },
    Read {
        blob: Digest,
        lease: Lease,
        index: u32,
    },
}

/// When a message arrives, counted from when it was sent; `None` if never.
type Rule = Box<dyn FnMut(usize, usize, &Message) -> Option<Duration>>;

pub(super) struct World {
    pub(super) now: Time,
    pub(super) nodes: Vec<Node>,
    pub(super) rule: Rule,
    /// What a chunk takes between two nodes.
    pub(super) chunk_time: Duration,
    /// What a chunk takes from the origin.
    pub(super) origin_time: Duration,
    /// The sizes that the origin tells.
    pub(super) sizes: BTreeMap<Digest, u64>,
    /// How often the origin gave each chunk.
    pub(super) reads: BTreeMap<(Digest, u32), u32>,
    /// All that the machines wanted done.
    pub(super) log: Vec<(Time, usize, Action)>,
    queue: BTreeMap<(Time, u64), (usize, Happening)>,
    sequence: u64,
}

pub(super) fn blob(number: u8) -> Digest {
    Digest::sha256([number; 32])
}

pub(super) fn hint() -> Hint {
    Hint {
        upstream: "registry.example".parse().unwrap(),
        repository: "team/app".parse().unwrap(),
    }
}

impl World {
    /// `count` nodes that are connected to each other and know each other as members.
    pub(super) fn new(count: usize) -> Self {
        Self::with(count, Config::default())
    }

    pub(super) fn with(count: usize, config: Config) -> Self {
        let mut world = Self::started(count, config);
        // Longer than the time after a change of membership in which stewards wait for joins.
        world.run(SECOND * 4);
        for node in &world.nodes {
            assert_eq!(node.core.members().len(), count);
        }
        world.log.clear();
        world
    }

    /// Nodes that have just begun to hear of each other.
    pub(super) fn started(count: usize, config: Config) -> Self {
        let directory = Directory::new();
        let nodes = (1..=count).map(|number| {
            let key = SigningKey::from_bytes(&[number as u8; 32]);
            let me = NodeRecord {
                id: NodeId(key.verifying_key().to_bytes()),
                generation: 1,
                addresses: Vec::new(),
                place: Place::default(),
            };
            let peer = directory.intern(&me);
            let (config, directory) = (config.clone(), directory.clone());
            Node {
                core: Core::new(config, me, directory, number as u64, Time::ZERO),
                peer,
                origin: Origin::Gives,
                tag: Ok(blob(200)),
                tag_known: None,
                tag_imported: None,
                tag_spared: None,
                dead: false,
                key,
                blobs: BTreeMap::new(),
                expected: BTreeSet::new(),
                streams: BTreeSet::new(),
            }
        });
        let mut world = Self {
            now: Time::ZERO,
            nodes: nodes.collect(),
            rule: Box::new(|_, _, _| Some(MS)),
            chunk_time: MS * 5,
            origin_time: MS * 20,
            sizes: BTreeMap::new(),
            reads: BTreeMap::new(),
            log: Vec::new(),
            queue: BTreeMap::new(),
            sequence: 0,
        };
        for one in 0..count {
            for other in (0..count).filter(|other| *other != one) {
                let peer = world.nodes[other].peer;
                world.event(one, Event::Connected(peer));
            }
        }
        world
    }

    /// The process ends and starts again before anyone misses it; it knows only what it is told.
    pub(super) fn restart(&mut self, node: usize) {
        let old = &self.nodes[node].core.ctx;
        let (directory, peer) = (old.directory.clone(), self.nodes[node].peer);
        let mut me = (*directory.record(peer)).clone();
        me.generation += 1;
        let config = Config {
            wait_for_members: true,
            ..old.config.clone()
        };
        self.nodes[node].core = Core::new(config, me, directory, 1000, self.now);
        for other in (0..self.nodes.len()).filter(|other| *other != node) {
            let others_peer = self.nodes[other].peer;
            self.event(other, Event::Disconnected(peer));
            self.event(other, Event::Connected(peer));
            self.event(node, Event::Connected(others_peer));
        }
    }

    /// The nodes from the blob's best-ranked steward down.
    pub(super) fn ranks(&self, blob: Digest) -> Vec<usize> {
        let ranks = self.nodes[0].core.ctx.stewards(&blob);
        ranks.iter().map(|peer| self.number(*peer)).collect()
    }

    pub(super) fn number(&self, peer: Peer) -> usize {
        self.nodes
            .iter()
            .position(|node| node.peer == peer)
            .unwrap()
    }

    fn at(&mut self, after: Duration, node: usize, what: Happening) {
        self.sequence += 1;
        self.queue
            .insert((self.now + after, self.sequence), (node, what));
    }

    /// Lets a machine know a fact, now.
    pub(super) fn event(&mut self, node: usize, event: Event) {
        self.at(Duration::ZERO, node, Happening::Event(event));
    }

    /// A node begins to pull a blob of so many chunks, whose size its manifest gave.
    pub(super) fn pull(&mut self, node: usize, blob: Digest, chunks: u32) {
        let size = u64::from(chunks) * CHUNK;
        self.sizes.insert(blob, size);
        self.pull_as(node, blob, BlobKind::Blob, Some(size));
    }

    pub(super) fn pull_as(&mut self, node: usize, blob: Digest, kind: BlobKind, size: Option<u64>) {
        self.nodes[node].blobs.insert(
            blob,
            Stored {
                kind,
                size,
                chunks: BTreeMap::new(),
                evidence: Vec::new(),
            },
        );
        let (have, hint) = (None, hint());
        self.event(
            node,
            Event::Pull {
                blob,
                kind,
                size,
                have,
                hint,
            },
        );
    }

    pub(super) fn has_all(&self, node: usize, blob: Digest) -> bool {
        self.nodes[node].core.holdings.contains_key(&blob)
    }

    pub(super) fn all_have(&self, blob: Digest) -> bool {
        (0..self.nodes.len()).all(|node| self.has_all(node, blob))
    }

    pub(super) fn stored(&self, node: usize, blob: Digest) -> usize {
        self.nodes[node].blobs[&blob].chunks.len()
    }

    /// Chunks that the origin gave of a blob, with repetitions.
    pub(super) fn read(&self, blob: Digest) -> u32 {
        let of_it = self.reads.iter().filter(|((of, _), _)| *of == blob);
        of_it.map(|(_, times)| times).sum()
    }

    /// What the nodes wanted done of a kind that `pick` tells: when, who, and what `pick` says.
    pub(super) fn logged<T>(&self, pick: impl Fn(&Action) -> Option<T>) -> Vec<(Time, usize, T)> {
        let picked = |(at, node, action): &(Time, usize, Action)| Some((*at, *node, pick(action)?));
        self.log.iter().filter_map(picked).collect()
    }

    /// Lets so much time pass.
    pub(super) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.step(end) {}
        self.now = end;
    }

    /// Runs until `done`; the time that it took, or `None` after `most`.
    pub(super) fn run_until(
        &mut self,
        most: Duration,
        done: impl Fn(&Self) -> bool,
    ) -> Option<Duration> {
        let (start, end) = (self.now, self.now + most);
        while !done(self) {
            if !self.step(end) {
                return None;
            }
        }
        Some(self.now.since(start))
    }

    /// The next thing that happens before `end`.
    fn step(&mut self, end: Time) -> bool {
        let tick = (0..self.nodes.len())
            .filter(|node| !self.nodes[*node].dead)
            .map(|node| (self.nodes[node].core.deadline().max(self.now + MS), node))
            .min();
        let next = self.queue.first_key_value().map(|((at, _), _)| *at);
        if let Some((at, node)) = tick
            && next.is_none_or(|next| at < next)
        {
            if at > end {
                return false;
            }
            self.now = at;
            self.handle(node, Event::Tick);
            return true;
        }
        if next.is_none_or(|next| next > end) {
            return false;
        }
        let Some(((at, _), (node, what))) = self.queue.pop_first() else {
            return false;
        };
        self.now = self.now.max(at);
        if !self.nodes[node].dead {
            match what {
                Happening::Event(event) => self.handle(node, event),
                Happening::Chunk { from, blob, index } => self.arrives(from, node, blob, index),
                Happening::Read { blob, lease, index } => self.read_one(node, blob, lease, index),
            }
        }
        true
    }

    /// Hands a fact to a machine and causes what it asks for.
    pub(super) fn handle(&mut self, node: usize, event: Event) {
        let mut actions = Vec::new();
        let core = &mut self.nodes[node].core;
        core.handle(self.now, event.clone(), &mut actions);
        if let Err(broken) = core.check() {
            panic!("node {node} at {:?} after {event:?}: {broken}", self.now);
        }
        for action in actions {
            self.log.push((self.now, node, action.clone()));
            self.act(node, action);
        }
    }

    fn act(&mut self, node: usize, action: Action) {
        let me = self.nodes[node].peer;
        match action {
            Action::Send { to, message } => {
                let to = self.number(to);
                if let Some(after) = (self.rule)(node, to, &message) {
                    let from = me;
                    self.at(
                        after,
                        to,
                        Happening::Event(Event::Message { from, message }),
                    );
                }
            }
            Action::SendChunk { to, blob, index } => {
                let after = self.chunk_time;
                let sent = Event::ChunkSent { to, blob, index };
                self.at(after, node, Happening::Event(sent));
                let chunk = Happening::Chunk {
                    from: node,
                    blob,
                    index,
                };
                self.at(after, self.number(to), chunk);
            }
            Action::Expect { from, blob, index } => {
                self.nodes[node].expected.insert((from, blob, index));
            }
            Action::Unexpect { from, blob, index } => {
                self.nodes[node].expected.remove(&(from, blob, index));
            }
            Action::ReadOrigin { blob, lease, .. } => self.open(node, blob, lease),
            Action::StopOrigin { blob, lease } => {
                self.nodes[node].streams.remove(&(blob, lease));
            }
            Action::Sized { blob, kind, size } => {
                let stored = self.nodes[node].blobs.entry(blob).or_insert(Stored {
                    kind,
                    size: None,
                    chunks: BTreeMap::new(),
                    evidence: Vec::new(),
                });
                stored.size = Some(size);
            }
            Action::Discard { blob } => {
                self.nodes[node].blobs.remove(&blob);
            }
            Action::DropForeign { blob } => {
                self.keep(node, blob, |_, chunk| chunk.signer == node);
            }
            Action::DropDiffering { blob, hashes } => {
                self.keep(node, blob, |index, chunk| {
                    hash(blob, index, chunk.wrong) == hashes[index as usize]
                });
            }
            Action::SendHashes { to, blob } => {
                let count = self.nodes[node].blobs[&blob].count().unwrap();
                let hashes = (0..count).map(|index| hash(blob, index, false)).collect();
                let message = Message::Audited { blob, hashes };
                self.act(node, Action::Send { to, message });
            }
            Action::CheckProof {
                blob,
                index,
                attestation,
            } => {
                if attestation.hash != hash(blob, index, false) {
                    let signer = attestation.signer;
                    self.event(
                        node,
                        Event::Lied {
                            signer,
                            blob,
                            index,
                            attestation,
                        },
                    );
                }
            }
            Action::AskOrigin { key } => self.ask_origin(node, key),
            Action::Failed { .. }
            | Action::CheckChunk { .. }
            | Action::TagResolved { .. }
            | Action::Ban { .. }
            | Action::MemberUp(_)
            | Action::MemberDown(_)
            | Action::Note(_) => {}
        }
    }

    // --- chunks ---

    fn arrives(&mut self, from: usize, node: usize, blob: Digest, index: u32) {
        let sender = self.nodes[from].peer;
        let held = &self.nodes[from].blobs.get(&blob);
        let Some(chunk) = held.and_then(|held| held.chunks.get(&index)).copied() else {
            return;
        };
        if !self.nodes[node].expected.contains(&(sender, blob, index)) {
            return;
        }
        let signer = self.nodes[chunk.signer].peer;
        let hash = hash(blob, index, chunk.wrong);
        if self.nodes[node].core.accepts(&blob, index, signer, &hash) {
            self.store(node, Some(sender), blob, index, chunk);
        } else {
            let (from, corrupt) = (sender, false);
            self.handle(
                node,
                Event::ChunkRejected {
                    from,
                    blob,
                    index,
                    corrupt,
                },
            );
        }
    }

    fn store(&mut self, node: usize, from: Option<Peer>, blob: Digest, index: u32, chunk: Chunk) {
        let Some(stored) = self.nodes[node].blobs.get_mut(&blob) else {
            return;
        };
        stored.chunks.insert(index, chunk);
        let len = Geometry::new(stored.kind, stored.size.unwrap()).len(index);
        self.handle(
            node,
            Event::ChunkStored {
                from,
                blob,
                index,
                len,
            },
        );
        self.verify(node, blob);
    }

    /// Checks the whole once every chunk is there.
    fn verify(&mut self, node: usize, blob: Digest) {
        let Some(stored) = self.nodes[node].blobs.get(&blob).cloned() else {
            return;
        };
        if !stored.bitfield().is_full() || self.has_all(node, blob) {
            return;
        }
        if stored.chunks.values().any(|chunk| chunk.wrong) {
            let signers: BTreeSet<usize> =
                stored.chunks.values().map(|chunk| chunk.signer).collect();
            let signers = signers.into_iter().map(|signer| self.id(signer)).collect();
            self.handle(node, Event::Mismatched { blob, signers });
            return;
        }
        self.handle(node, Event::Verified { blob });
        for (index, signer) in stored.evidence {
            let (attestation, signer) = (self.lie(signer, blob, index), self.id(signer));
            self.handle(
                node,
                Event::Lied {
                    signer,
                    blob,
                    index,
                    attestation,
                },
            );
        }
    }

    fn keep(&mut self, node: usize, blob: Digest, keep: impl Fn(u32, &Chunk) -> bool) {
        let Some(stored) = self.nodes[node].blobs.get_mut(&blob) else {
            return;
        };
        let chunks = std::mem::take(&mut stored.chunks);
        for (index, chunk) in chunks {
            if keep(index, &chunk) {
                stored.chunks.insert(index, chunk);
            } else if chunk.wrong {
                stored.evidence.push((index, chunk.signer));
            }
        }
        let have = stored.bitfield();
        self.event(node, Event::Dropped { blob, have });
    }

    /// A stored chunk is found rotten.
    pub(super) fn lose(&mut self, node: usize, blob: Digest, index: u32) {
        let stored = self.nodes[node].blobs.get_mut(&blob).unwrap();
        stored.chunks.remove(&index).unwrap();
        self.handle(node, Event::ChunkLost { blob, index });
    }

    pub(super) fn id(&self, node: usize) -> NodeId {
        NodeId(self.nodes[node].key.verifying_key().to_bytes())
    }

    /// A node's signature under a hash that the blob does not have.
    pub(super) fn lie(&self, node: usize, blob: Digest, index: u32) -> Attestation {
        let key = &self.nodes[node].key;
        Attestation::sign(key, &blob, index, hash(blob, index, true), CHUNK as u32)
    }

    // --- the origin ---

    fn open(&mut self, node: usize, blob: Digest, lease: Lease) {
        let size = self.sizes[&blob];
        let kind = self.nodes[node].blobs[&blob].kind;
        let chunks = Geometry::new(kind, size).chunks();
        let failure = match &self.nodes[node].origin {
            Origin::Fails(failure) => Some(failure.clone()),
            Origin::NoRanges if lease.first > 0 || lease.end < chunks => {
                Some(OriginFailure::NoRanges)
            }
            Origin::NoRanges | Origin::Gives | Origin::GivesSlowly | Origin::Lies => None,
        };
        if failure.is_some() {
            let lease = lease.id;
            self.at(
                self.origin_time,
                node,
                Happening::Event(Event::OriginEnded {
                    blob,
                    lease,
                    failure,
                }),
            );
            return;
        }
        self.nodes[node].streams.insert((blob, lease.id));
        if self.nodes[node].blobs[&blob].size.is_none() {
            self.nodes[node].blobs.get_mut(&blob).unwrap().size = Some(size);
            self.event(node, Event::Sized { blob, size });
        }
        let index = lease.first;
        self.at(
            self.read_time(node),
            node,
            Happening::Read { blob, lease, index },
        );
    }

    fn read_time(&self, node: usize) -> Duration {
        match self.nodes[node].origin {
            Origin::GivesSlowly => self.origin_time * 10,
            _ => self.origin_time,
        }
    }

    fn read_one(&mut self, node: usize, blob: Digest, lease: Lease, index: u32) {
        if !self.nodes[node].streams.contains(&(blob, lease.id)) {
            return;
        }
        let Some(stored) = self.nodes[node].blobs.get(&blob) else {
            return;
        };
        let geometry = Geometry::new(stored.kind, self.sizes[&blob]);
        let mut after = Duration::ZERO;
        if index < lease.end.min(geometry.chunks()) && !stored.chunks.contains_key(&index) {
            *self.reads.entry((blob, index)).or_default() += 1;
            after = self.read_time(node);
            let bytes = u64::from(geometry.len(index));
            let wrong = matches!(self.nodes[node].origin, Origin::Lies);
            let signer = node;
            let id = lease.id;
            self.handle(
                node,
                Event::OriginProgress {
                    blob,
                    lease: id,
                    bytes,
                },
            );
            self.store(node, None, blob, index, Chunk { signer, wrong });
        }
        if index + 1 < lease.end.min(geometry.chunks()) {
            let index = index + 1;
            self.at(after, node, Happening::Read { blob, lease, index });
        } else if self.nodes[node].streams.remove(&(blob, lease.id)) {
            let (lease, failure) = (lease.id, None);
            self.handle(
                node,
                Event::OriginEnded {
                    blob,
                    lease,
                    failure,
                },
            );
        }
    }

    fn ask_origin(&mut self, node: usize, key: TagKey) {
        let asked_by = self.id(node);
        let result = self.nodes[node].tag.clone().map(|digest| TagRecord {
            digest,
            asked_at: 0,
            asked_by,
        });
        let known = self.nodes[node].tag_known.clone();
        let imported = self.nodes[node].tag_imported.clone().map(Box::new);
        let spared = self.nodes[node].tag_spared.clone();
        let said = Event::TagAsked {
            key,
            result,
            known,
            imported,
            spared,
        };
        self.at(self.origin_time, node, Happening::Event(said));
    }
}

pub(super) fn hash(blob: Digest, index: u32, wrong: bool) -> ChunkHash {
    ChunkHash::of(format!("{blob} {index} {wrong}").as_bytes())
}
