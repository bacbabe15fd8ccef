//! The world: hosts, links and an origin in virtual time, one queue of events, one seed.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    fmt::Write as _,
};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use shoal_protocol::{
    chunk::Geometry,
    digest::Digest,
    directory::{Directory, NodeId, NodeRecord, Peer},
    event::{Action, Event},
    message::{BlobKind, Hint, Message, OriginFailure},
    time::Time,
    wire,
};

use crate::{
    checkers::Checkers,
    host::{Host, State, Stored},
    network::{Cargo, Frame, Packet, Stream, StreamId, next_missing, window},
    report::Report,
    scenario::{Fault, Scenario, Victim},
};

/// A host's place in the world; the origin is the last. Equals the number of its [`Peer`].
pub(crate) type HostId = usize;

/// What happens.
#[derive(Debug)]
enum Happening {
    /// A host's machine asked to be called now.
    Wake(HostId),
    /// The uplink can take the next frame.
    UplinkFree(HostId),
    /// Something reached a host's downlink, sent in that epoch of the host.
    Arrived(HostId, u32, Packet),
    /// It is through, and in the host's hands.
    Delivered(HostId, u32, Packet),
    /// A frame was read: the stream's window opens.
    Read(StreamId, u64),
    /// A host learns a fact.
    Fact(HostId, u32, Box<Event>),
    /// A connection is being made.
    Dialed {
        from: HostId,
        to: HostId,
        epoch: u32,
        tries: u32,
    },
    /// The origin begins to answer.
    OriginAnswers(StreamId),
    Pull(HostId),
    Fault(usize),
    Thaw(HostId),
    Restart(HostId),
}

struct Entry(u64, u64, Happening);

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

/// A blob of the image.
struct Blob {
    kind: BlobKind,
    size: u64,
}

pub(crate) struct World {
    scenario: Scenario,
    directory: Directory,
    now: u64,
    queue: BinaryHeap<Reverse<Entry>>,
    numbers: u64,
    rng: StdRng,
    hosts: Vec<Host>,
    origin: HostId,
    streams: Vec<Stream>,
    blobs: BTreeMap<Digest, Blob>,
    manifest: Digest,
    layers: Vec<Digest>,
    hint: Hint,
    origin_open: usize,
    began: u64,
    trace: blake3::Hasher,
    pub(crate) checkers: Checkers,
    actions: Vec<Action>,
    line: String,
}

const MS: u64 = 1_000_000;
const SECOND: u64 = 1000 * MS;

/// A broken connection, or a refused one, is noticed after so long.
const RESET: u64 = MS;

/// TCP and TLS take so many times the latency; a ticket is exchanged in them.
const HANDSHAKE_LATENCIES: u64 = 6;

/// A dial to a host that accepts and does not answer is given up after so many tries.
const DIAL_TRIES: u32 = 50;
const DIAL_PAUSE: u64 = 100 * MS;

/// How often a receiver tells its machine of progress within a chunk, in bytes.
const PROGRESS_BYTES: u64 = 512 << 10;

/// Calls in a row that each want another one at once.
const SPINS_MAX: u32 = 20;

const MANIFEST_BYTES: u64 = 2500;

impl World {
    pub(crate) fn new(scenario: Scenario) -> Self {
        let directory = Directory::new();
        let mut rng = StdRng::seed_from_u64(scenario.seed);
        let mut hosts = Vec::new();
        for number in 0..=scenario.nodes {
            let record = NodeRecord {
                id: NodeId(rng.random()),
                generation: 1,
                addresses: vec![([10, 0, (number / 250) as u8, (number % 250) as u8], 5004).into()],
            };
            let peer = directory.intern(&record);
            debug_assert_eq!(peer, Peer(number as u32));
            let rate = if number == scenario.nodes {
                scenario.origin_rate
            } else {
                scenario.rate
            };
            hosts.push(Host::new(record, rate));
        }
        let manifest = Digest::sha256(rng.random());
        let mut blobs = BTreeMap::new();
        blobs.insert(
            manifest,
            Blob {
                kind: BlobKind::Manifest,
                size: MANIFEST_BYTES,
            },
        );
        let mut layers = Vec::new();
        for size in scenario.layer_sizes() {
            let digest = Digest::sha256(rng.random());
            let kind = BlobKind::Blob;
            blobs.insert(digest, Blob { kind, size });
            layers.push(digest);
        }
        let hint = Hint {
            upstream: "registry.test".parse().expect("a name"),
            repository: "team/image".parse().expect("a name"),
        };
        Self {
            origin: scenario.nodes,
            scenario,
            directory,
            now: SECOND,
            queue: BinaryHeap::new(),
            numbers: 0,
            rng,
            hosts,
            streams: Vec::new(),
            blobs,
            manifest,
            layers,
            hint,
            origin_open: 0,
            began: 0,
            trace: blake3::Hasher::new(),
            checkers: Checkers::default(),
            actions: Vec::new(),
            line: String::new(),
        }
    }

    /// Runs the scenario to its end.
    pub(crate) fn run(mut self) -> Report {
        for host in 0..self.origin {
            let seed = self.rng.random();
            self.hosts[host].boot(&self.scenario.config, &self.directory, seed, self.now);
            self.after_feed(host);
            if host > 0 {
                self.dial(host, 0);
            }
        }
        let booted = self.now;
        let settled = self.until(booted + 30 * SECOND, |world| {
            world.hosts[..world.origin].iter().all(|host| {
                host.core
                    .as_ref()
                    .is_some_and(|core| core.members().len() == world.origin)
            })
        });
        self.checkers.ensure(settled, || {
            "the members never all saw each other".to_owned()
        });
        let settle_seconds = seconds(self.now - booted);
        // The daemons of a cluster have been up for a while when an image is pulled.
        self.until(self.now + 3 * SECOND, |_| false);
        for host in 0..self.scenario.warm {
            self.hold_all(host);
        }
        self.until(self.now + SECOND, |_| false);
        self.begin();
        let limit = self.began + (self.scenario.lower_bound() * 20.0 * 1e9) as u64 + 120 * SECOND;
        let ended = self.until(limit, Self::is_over);
        if !ended {
            self.name_the_stuck();
        }
        self.report(settle_seconds)
    }

    fn begin(&mut self) {
        self.began = self.now;
        for host in &mut self.hosts {
            host.links.sent_bulk = 0;
            host.links.sent_control = 0;
        }
        let bound = self.scenario.lower_bound() * 1e9;
        for host in self.scenario.warm..self.origin {
            let late = host >= self.origin - self.scenario.late;
            let jitter = self.rng.random_range(0..5 * MS);
            let at = self.now + jitter + if late { (bound / 2.0) as u64 } else { 0 };
            self.at(at, Happening::Pull(host));
        }
        for (number, planned) in self.scenario.faults.iter().enumerate() {
            let at = self.now + (bound * planned.at_share) as u64;
            self.numbers += 1;
            self.queue
                .push(Reverse(Entry(at, self.numbers, Happening::Fault(number))));
        }
    }

    fn hold_all(&mut self, host: HostId) {
        let held: Vec<(Digest, BlobKind, u64)> = self
            .blobs
            .iter()
            .map(|(digest, blob)| (*digest, blob.kind, blob.size))
            .collect();
        for (blob, kind, size) in held {
            self.hosts[host].blobs.insert(blob, Stored::complete(size));
            self.feed(host, Event::Held { blob, kind, size });
        }
        self.hosts[host].done_at = Some(self.now);
    }

    fn is_over(world: &Self) -> bool {
        let hosts = &world.hosts[..world.origin];
        hosts
            .iter()
            .all(|host| host.state == State::Down || host.done_at.is_some())
            && !world
                .queue
                .iter()
                .any(|Reverse(Entry(.., happening))| matches!(happening, Happening::Restart(_)))
    }

    /// Runs until the condition holds, asked after everything that happens; `false` when the time
    /// was up first.
    fn until(&mut self, limit: u64, done: impl Fn(&Self) -> bool) -> bool {
        let mut check_at = 0;
        loop {
            if self.now >= check_at {
                if done(self) {
                    return true;
                }
                check_at = self.now + 5 * MS;
            }
            match self.queue.peek() {
                Some(Reverse(Entry(at, ..))) if *at <= limit => {}
                _ => {
                    self.now = limit;
                    return false;
                }
            }
            if let Some(Reverse(Entry(at, _, happening))) = self.queue.pop() {
                self.now = at;
                self.happen(happening);
            }
        }
    }

    fn at(&mut self, at: u64, happening: Happening) {
        self.numbers += 1;
        self.queue.push(Reverse(Entry(at, self.numbers, happening)));
    }

    fn fact(&mut self, after: u64, host: HostId, event: Event) {
        let epoch = self.hosts[host].epoch;
        self.at(
            self.now + after,
            Happening::Fact(host, epoch, Box::new(event)),
        );
    }

    fn latency(&self) -> u64 {
        self.scenario.latency.as_nanos() as u64
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Wake(host) => {
                if self.hosts[host].wake_at == self.now {
                    self.hosts[host].wake_at = u64::MAX;
                    self.feed(host, Event::Tick);
                }
            }
            Happening::UplinkFree(host) => {
                self.hosts[host].links.busy = false;
                self.serve(host);
            }
            Happening::Arrived(host, epoch, packet) => {
                let links = &mut self.hosts[host].links;
                let bytes = match &packet {
                    Packet::Frame(frame) => frame.bytes,
                    Packet::Control { bytes, .. } => *bytes,
                };
                links.down_free = links.down_free.max(self.now) + links.nanos(bytes);
                let at = links.down_free;
                self.at(at, Happening::Delivered(host, epoch, packet));
            }
            Happening::Delivered(host, epoch, packet) => {
                if self.hosts[host].epoch == epoch {
                    self.delivered(host, packet);
                }
            }
            Happening::Read(stream, bytes) => {
                self.streams[stream].under_way -= bytes;
                self.offer(stream);
            }
            Happening::Fact(host, epoch, event) => {
                if self.hosts[host].epoch == epoch {
                    self.feed(host, *event);
                }
            }
            Happening::Dialed {
                from,
                to,
                epoch,
                tries,
            } => self.dialed(from, to, epoch, tries),
            Happening::OriginAnswers(stream) => self.origin_answers(stream),
            Happening::Pull(host) => self.start_pull(host),
            Happening::Fault(number) => self.strike(number),
            Happening::Thaw(host) => self.thaw(host),
            Happening::Restart(host) => self.restart(host),
        }
    }

    // --- machines ---

    /// Tells a host's machine a fact and carries out what it wants.
    fn feed(&mut self, id: HostId, event: Event) {
        let host = &mut self.hosts[id];
        match host.state {
            State::Up => {}
            State::Frozen => {
                if !matches!(event, Event::Tick) {
                    host.backlog.push(event);
                }
                return;
            }
            State::Down => return,
        }
        self.note_fact(id, &event);
        let host = &mut self.hosts[id];
        let Some(core) = &mut host.core else { return };
        let mut actions = std::mem::take(&mut self.actions);
        core.handle(Time::from_nanos(self.now), event, &mut actions);
        host.events += 1;
        if host.events.is_multiple_of(64) {
            self.checkers.invariants(self.now, id, core);
        }
        for action in actions.drain(..) {
            self.line.clear();
            let _ = write!(self.line, "{} {id} {action:?}", self.now);
            self.trace.update(self.line.as_bytes());
            self.act(id, action);
        }
        self.actions = actions;
        self.after_feed(id);
    }

    fn after_feed(&mut self, id: HostId) {
        let Some(core) = &self.hosts[id].core else {
            return;
        };
        let at = core.deadline().as_nanos();
        // What was just set off may be due at once, but not again and again: a daemon would spin.
        let spins = if at <= self.now {
            self.hosts[id].spins + 1
        } else {
            0
        };
        self.hosts[id].spins = spins;
        if spins == SPINS_MAX {
            let now = seconds(self.now);
            self.checkers
                .violation(format!("{now:.3} s: node {id} spins"));
        }
        let at = at.max(self.now + if spins < SPINS_MAX { 1 } else { MS });
        if at < self.hosts[id].wake_at {
            self.hosts[id].wake_at = at;
            self.at(at, Happening::Wake(id));
        }
    }

    /// What the store and the client do about a fact that the machine is about to learn.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "most facts concern the machine alone"
    )]
    fn note_fact(&mut self, id: HostId, event: &Event) {
        match event {
            Event::ChunkStored { blob, index, .. } => {
                if let Some(stored) = self.hosts[id].blobs.get_mut(blob) {
                    stored.have.insert(*index);
                }
                self.stored(id, *blob);
            }
            Event::Verified { blob } => {
                if let Some(stored) = self.hosts[id].blobs.get_mut(blob) {
                    stored.verified = true;
                }
                let reader_gone = Event::ReaderGone {
                    blob: *blob,
                    reader: 1,
                };
                self.fact(0, id, reader_gone);
                self.blob_done(id, *blob);
            }
            Event::Sized { blob, size } => {
                if let Some(stored) = self.hosts[id].blobs.get_mut(blob) {
                    stored.sized(*size);
                }
            }
            _ => {}
        }
    }

    /// More of a blob is here: the hasher goes on, the reader waits for another chunk.
    fn stored(&mut self, id: HostId, blob: Digest) {
        let now = self.now;
        let Some(stored) = self.hosts[id].blobs.get_mut(&blob) else {
            return;
        };
        if let Some(at) = stored.hash(now) {
            self.fact(at - now, id, Event::Verified { blob });
        }
        let Some(stored) = self.hosts[id].blobs.get_mut(&blob) else {
            return;
        };
        let end = stored.have.len();
        if let Some(first) = stored.reader_moved() {
            let reading = Event::Reading {
                blob,
                reader: 1,
                first,
                end,
            };
            self.fact(0, id, reading);
        }
    }

    fn act(&mut self, id: HostId, action: Action) {
        match action {
            Action::Send { to, message } => self.send(id, to.0 as usize, message),
            Action::SendChunk { to, blob, index } => {
                self.send_chunk(id, to.0 as usize, blob, index);
            }
            Action::Expect { from, blob, index } => {
                self.hosts[id].expected.insert((from, blob, index));
            }
            Action::Unexpect { from, blob, index } => {
                self.hosts[id].expected.remove(&(from, blob, index));
            }
            Action::ReadOrigin { blob, lease, .. } => {
                let index = lease.first;
                let cargo = Cargo::Origin {
                    blob,
                    lease: lease.id,
                    index,
                    end: lease.end,
                };
                let stream = self.open(self.origin, id, cargo);
                self.hosts[id].reads.insert((blob, lease.id), stream);
                let first_byte = self.scenario.first_byte.as_nanos() as u64;
                self.at(self.now + first_byte, Happening::OriginAnswers(stream));
            }
            Action::StopOrigin { blob, lease } => {
                if let Some(stream) = self.hosts[id].reads.remove(&(blob, lease)) {
                    self.close_origin(stream);
                }
            }
            Action::Sized { blob, size, .. } => {
                if let Some(stored) = self.hosts[id].blobs.get_mut(&blob) {
                    stored.sized(size);
                }
            }
            Action::Failed { blob, failure } => {
                let now = seconds(self.now - self.began);
                self.checkers.violation(format!(
                    "{now:.3} s: node {id} gave up {}: {failure:?}",
                    blob.short()
                ));
            }
            Action::Note(note) => {
                self.checkers
                    .note(self.now.saturating_sub(self.began), id, &note);
            }
            Action::MemberDown(peer) if !self.hosts[peer.0 as usize].victim => {
                let what = format!("calls {peer:?} dead, which is not");
                self.checkers
                    .note(self.now.saturating_sub(self.began), id, &what);
            }
            Action::MemberUp(_) | Action::MemberDown(_) => {}
            Action::Discard { .. }
            | Action::DropForeign { .. }
            | Action::DropDiffering { .. }
            | Action::SendHashes { .. }
            | Action::CheckChunk { .. }
            | Action::CheckProof { .. }
            | Action::AskOrigin { .. }
            | Action::TagResolved { .. }
            | Action::Ban { .. } => {
                self.checkers.violation(format!(
                    "node {id} wants {action:?} in a world without liars"
                ));
            }
        }
    }

    // --- the client ---

    fn start_pull(&mut self, id: HostId) {
        self.hosts[id].started_at.get_or_insert(self.now);
        self.hosts[id].to_pull.clear();
        self.hosts[id].pulling.clear();
        self.pull(id, self.manifest);
    }

    fn pull(&mut self, id: HostId, digest: Digest) {
        let blob = &self.blobs[&digest];
        let kind = blob.kind;
        let size = (kind == BlobKind::Blob).then_some(blob.size);
        let stored = self.hosts[id]
            .blobs
            .entry(digest)
            .or_insert_with(|| Stored::new(size));
        if stored.verified {
            self.blob_done(id, digest);
            return;
        }
        let (size, have) = (stored.size, stored.have.clone());
        self.hosts[id].pulling.insert(digest, kind);
        let hint = self.hint.clone();
        self.feed(
            id,
            Event::Pull {
                blob: digest,
                kind,
                size,
                have: Some(have),
                hint,
            },
        );
        self.stored(id, digest);
    }

    fn blob_done(&mut self, id: HostId, digest: Digest) {
        let host = &mut self.hosts[id];
        host.pulling.remove(&digest);
        if digest == self.manifest {
            host.to_pull = self.layers.iter().copied().collect();
        }
        while self.hosts[id].pulling.len() < self.scenario.parallel {
            let Some(next) = self.hosts[id].to_pull.pop_front() else {
                break;
            };
            self.pull(id, next);
        }
        let host = &mut self.hosts[id];
        let all = self
            .layers
            .iter()
            .all(|layer| host.blobs.get(layer).is_some_and(|blob| blob.verified));
        if all && host.started_at.is_some() {
            host.done_at.get_or_insert(self.now);
        }
    }

    // --- control ---

    fn send(&mut self, from: HostId, to: HostId, message: Message) {
        if self.hosts[from].connected.contains(&to) {
            self.post(from, to, message);
            return;
        }
        let waiting = self.hosts[from].dialing.entry(to).or_default();
        waiting.push(message);
        if waiting.len() == 1 {
            self.dial(from, to);
        }
    }

    fn dial(&mut self, from: HostId, to: HostId) {
        self.hosts[from].dialing.entry(to).or_default();
        let epoch = self.hosts[from].epoch;
        let at = self.now + HANDSHAKE_LATENCIES * self.latency();
        self.at(
            at,
            Happening::Dialed {
                from,
                to,
                epoch,
                tries: 0,
            },
        );
    }

    fn dialed(&mut self, from: HostId, to: HostId, epoch: u32, tries: u32) {
        if self.hosts[from].epoch != epoch {
            return;
        }
        if self.hosts[to].state == State::Frozen && tries < DIAL_TRIES {
            let tries = tries + 1;
            self.at(
                self.now + DIAL_PAUSE,
                Happening::Dialed {
                    from,
                    to,
                    epoch,
                    tries,
                },
            );
            return;
        }
        let waiting = self.hosts[from].dialing.remove(&to).unwrap_or_default();
        if self.hosts[to].state != State::Up {
            self.fact(RESET, from, Event::Unreachable(Peer(to as u32)));
            return;
        }
        self.hosts[from].connected.insert(to);
        if self.hosts[to].connected.insert(from) {
            self.fact(0, from, Event::Connected(Peer(to as u32)));
            self.fact(0, to, Event::Connected(Peer(from as u32)));
        }
        for message in waiting {
            self.post(from, to, message);
        }
    }

    fn post(&mut self, from: HostId, to: HostId, message: Message) {
        let bytes = wire::encode_message(message.clone(), &self.directory).len() as u64 + 4;
        let message = Box::new(message);
        let packet = Packet::Control {
            from,
            bytes,
            message,
        };
        self.hosts[from].links.sent_control += bytes;
        self.hosts[from].links.control.push_back((to, packet));
        self.serve(from);
    }

    // --- bulk ---

    fn open(&mut self, from: HostId, to: HostId, cargo: Cargo) -> StreamId {
        self.streams.push(Stream {
            from,
            to,
            cargo,
            left: 0,
            answered: false,
            untold: 0,
            under_way: 0,
            queued: false,
            over: false,
        });
        self.streams.len() - 1
    }

    fn send_chunk(&mut self, from: HostId, to: HostId, blob: Digest, index: u32) {
        let has = self.hosts[from]
            .blobs
            .get(&blob)
            .is_some_and(|stored| stored.have.contains(index));
        self.checkers.ensure(has, || {
            format!("node {from} sends chunk {index}, which it does not have")
        });
        if self.hosts[to].state == State::Down {
            self.fact(
                RESET,
                from,
                Event::ChunkSent {
                    to: Peer(to as u32),
                    blob,
                    index,
                },
            );
            return;
        }
        let stream = self.open(from, to, Cargo::Chunk { blob, index });
        self.streams[stream].left =
            u64::from(Geometry::new(BlobKind::Blob, self.blobs[&blob].size).len(index)).max(1);
        self.offer(stream);
    }

    /// Puts a stream in its uplink's queue if it may send.
    fn offer(&mut self, id: StreamId) {
        let stream = &self.streams[id];
        let links = &self.hosts[stream.from].links;
        let open = stream.under_way < window(links, self.latency());
        if stream.queued || stream.over || stream.left == 0 || !open {
            return;
        }
        let from = stream.from;
        self.streams[id].queued = true;
        self.hosts[from].links.streams.push_back(id);
        self.serve(from);
    }

    /// Sends the next thing that waits, if the uplink is free.
    fn serve(&mut self, from: HostId) {
        let latency = self.latency();
        let host = &mut self.hosts[from];
        if host.links.busy || host.state != State::Up {
            return;
        }
        let (to, packet, bytes, sent_all) =
            if let Some((to, packet)) = host.links.control.pop_front() {
                let Packet::Control { bytes, .. } = packet else {
                    return;
                };
                (to, packet, bytes, None)
            } else {
                let next = loop {
                    let Some(id) = host.links.streams.pop_front() else {
                        return;
                    };
                    self.streams[id].queued = false;
                    if !self.streams[id].over {
                        break id;
                    }
                };
                let stream = &mut self.streams[next];
                let bytes = stream.left.min(host.links.frame());
                stream.left -= bytes;
                stream.under_way += bytes;
                let (Cargo::Chunk { index, .. } | Cargo::Origin { index, .. }) = stream.cargo;
                let last = stream.left == 0;
                host.links.sent_bulk += bytes;
                host.links.sent_until = self.now;
                let second = (self.now.saturating_sub(self.began) / SECOND) as usize;
                self.checkers.moved(second, from == self.origin, bytes);
                let frame = Frame {
                    stream: next,
                    index,
                    bytes,
                    last,
                };
                (stream.to, Packet::Frame(frame), bytes, last.then_some(next))
            };
        let host = &mut self.hosts[from];
        host.links.busy = true;
        let free = self.now + host.links.nanos(bytes);
        let epoch = self.hosts[to].epoch;
        let stream = if let Packet::Frame(frame) = &packet {
            Some(frame.stream)
        } else {
            None
        };
        self.at(free + latency, Happening::Arrived(to, epoch, packet));
        self.at(free, Happening::UplinkFree(from));
        if let Some(id) = sent_all {
            self.sent_all(id, free - self.now);
        }
        if let Some(id) = stream {
            self.offer(id);
        }
    }

    /// The last byte of a stream's chunk is leaving.
    fn sent_all(&mut self, id: StreamId, leaves_after: u64) {
        let Stream {
            from,
            to,
            ref cargo,
            ..
        } = self.streams[id];
        match *cargo {
            Cargo::Chunk { blob, index } => {
                let sent = Event::ChunkSent {
                    to: Peer(to as u32),
                    blob,
                    index,
                };
                self.fact(leaves_after, from, sent);
            }
            Cargo::Origin {
                blob,
                lease,
                index,
                end,
            } => {
                let have = &self.hosts[to].blobs[&blob].have;
                if let Some(next) = next_missing(have, index + 1, end.min(have.len())) {
                    self.streams[id].cargo = Cargo::Origin {
                        blob,
                        lease,
                        index: next,
                        end,
                    };
                    self.streams[id].left =
                        u64::from(Geometry::new(BlobKind::Blob, self.blobs[&blob].size).len(next));
                }
            }
        }
    }

    fn delivered(&mut self, id: HostId, packet: Packet) {
        match packet {
            Packet::Control { from, message, .. } => {
                if self.hosts[id].connected.contains(&from) {
                    let from = Peer(from as u32);
                    self.feed(
                        id,
                        Event::Message {
                            from,
                            message: *message,
                        },
                    );
                }
            }
            Packet::Frame(frame) if self.hosts[id].state == State::Frozen => {
                self.hosts[id].unread.push(frame);
            }
            Packet::Frame(frame) => self.read(id, frame),
        }
    }

    /// The host reads a frame.
    fn read(&mut self, id: HostId, frame: Frame) {
        self.at(
            self.now + self.latency(),
            Happening::Read(frame.stream, frame.bytes),
        );
        let stream = &mut self.streams[frame.stream];
        if stream.over {
            return;
        }
        stream.untold += frame.bytes;
        let tell = frame.last || stream.untold >= PROGRESS_BYTES;
        let untold = if tell {
            std::mem::take(&mut stream.untold)
        } else {
            0
        };
        let (from, cargo, index) = (Peer(stream.from as u32), stream.cargo.clone(), frame.index);
        match cargo {
            Cargo::Chunk { blob, .. } => {
                let len = Geometry::new(BlobKind::Blob, self.blobs[&blob].size).len(index);
                let expected = self.hosts[id].expected.contains(&(from, blob, index));
                if frame.last {
                    self.streams[frame.stream].over = true;
                    self.checkers.chunk(u64::from(len), expected);
                    if expected {
                        self.feed(
                            id,
                            Event::ChunkStored {
                                from: Some(from),
                                blob,
                                index,
                                len,
                            },
                        );
                    }
                } else if tell && expected {
                    self.feed(id, Event::ChunkProgress { from, blob, index });
                }
            }
            Cargo::Origin {
                blob,
                lease,
                index: sending,
                end,
            } => {
                if tell {
                    self.feed(
                        id,
                        Event::OriginProgress {
                            blob,
                            lease,
                            bytes: untold,
                        },
                    );
                }
                if !frame.last {
                    return;
                }
                let len = Geometry::new(BlobKind::Blob, self.blobs[&blob].size).len(index);
                self.feed(
                    id,
                    Event::ChunkStored {
                        from: None,
                        blob,
                        index,
                        len,
                    },
                );
                let stream = &self.streams[frame.stream];
                let have = &self.hosts[id].blobs[&blob].have;
                let rest = next_missing(have, index + 1, end.min(have.len()));
                // Over when the last chunk is in, or all that was left came from elsewhere.
                if sending == index && stream.left == 0 && rest.is_none() || stream.over {
                    self.hosts[id].reads.remove(&(blob, lease));
                    self.close_origin(frame.stream);
                    self.feed(
                        id,
                        Event::OriginEnded {
                            blob,
                            lease,
                            failure: None,
                        },
                    );
                }
            }
        }
    }

    // --- the origin ---

    #[expect(clippy::single_match_else, reason = "both ways are of equal weight")]
    fn origin_answers(&mut self, id: StreamId) {
        let Stream {
            to,
            over,
            ref cargo,
            ..
        } = self.streams[id];
        let Cargo::Origin {
            blob,
            lease,
            index,
            end,
        } = *cargo
        else {
            return;
        };
        if over {
            return;
        }
        let refusal = if self.scenario.origin_away {
            Some(OriginFailure::Failed("connection refused".to_owned()))
        } else if self
            .scenario
            .origin_streams
            .is_some_and(|most| self.origin_open >= most)
        {
            Some(OriginFailure::Throttled {
                retry_ms: Some(1000),
            })
        } else {
            None
        };
        if let Some(failure) = refusal {
            self.checkers.refused += 1;
            self.streams[id].over = true;
            self.hosts[to].reads.remove(&(blob, lease));
            self.feed(
                to,
                Event::OriginEnded {
                    blob,
                    lease,
                    failure: Some(failure),
                },
            );
            return;
        }
        self.origin_open += 1;
        self.streams[id].answered = true;
        self.checkers.origin_request(
            self.origin_open,
            self.blobs[&blob].kind == BlobKind::Manifest,
        );
        let size = self.blobs[&blob].size;
        if self.hosts[to].blobs[&blob].size.is_none() {
            self.feed(to, Event::Sized { blob, size });
        }
        let have = &self.hosts[to].blobs[&blob].have;
        match next_missing(have, index, end.min(have.len())) {
            Some(first) => {
                self.streams[id].cargo = Cargo::Origin {
                    blob,
                    lease,
                    index: first,
                    end,
                };
                self.streams[id].left =
                    u64::from(Geometry::new(BlobKind::Blob, size).len(first)).max(1);
                self.offer(id);
            }
            None => {
                self.hosts[to].reads.remove(&(blob, lease));
                self.close_origin(id);
                self.fact(
                    0,
                    to,
                    Event::OriginEnded {
                        blob,
                        lease,
                        failure: None,
                    },
                );
            }
        }
    }

    fn close_origin(&mut self, id: StreamId) {
        let stream = &mut self.streams[id];
        if !stream.over && stream.answered {
            self.origin_open -= 1;
        }
        stream.over = true;
    }

    // --- faults ---

    fn strike(&mut self, number: usize) {
        let planned = self.scenario.faults[number].clone();
        let Some(victim) = self.choose(planned.victim) else {
            // Nobody fits at this moment.
            if !Self::is_over(self) {
                self.at(self.now + 10 * MS, Happening::Fault(number));
            }
            return;
        };
        self.hosts[victim].victim = true;
        let leases = self.hosts[victim]
            .core
            .as_ref()
            .map_or(0, |core| core.leases().len());
        let what = format!("{:?}, with {leases} leases", planned.fault);
        self.checkers.fault(self.now - self.began, victim, &what);
        match planned.fault {
            Fault::Kill { restart_after } => {
                self.kill(victim);
                if let Some(after) = restart_after {
                    self.at(
                        self.now + after.as_nanos() as u64,
                        Happening::Restart(victim),
                    );
                }
            }
            Fault::Freeze { thaw_after } => {
                self.hosts[victim].state = State::Frozen;
                self.at(
                    self.now + thaw_after.as_nanos() as u64,
                    Happening::Thaw(victim),
                );
            }
        }
    }

    fn choose(&mut self, victim: Victim) -> Option<HostId> {
        let fits = |host: &Host| {
            let Some(core) = &host.core else { return false };
            let transferring = host.started_at.is_some() && host.done_at.is_none();
            host.state == State::Up
                && match victim {
                    Victim::Holder => transferring && !core.leases().is_empty(),
                    Victim::Steward => core.stewarding().contains(&self.layers[0]),
                    Victim::Any => transferring,
                }
        };
        let fitting: Vec<HostId> = (0..self.origin)
            .filter(|host| fits(&self.hosts[*host]))
            .collect();
        if fitting.is_empty() {
            return None;
        }
        Some(fitting[self.rng.random_range(0..fitting.len())])
    }

    fn kill(&mut self, victim: HostId) {
        let gone = Peer(victim as u32);
        let reads: Vec<StreamId> = self.hosts[victim].reads.values().copied().collect();
        for stream in reads {
            self.close_origin(stream);
        }
        for id in 0..self.streams.len() {
            let stream = &mut self.streams[id];
            if stream.over || (stream.from != victim && stream.to != victim) {
                continue;
            }
            stream.over = true;
            if let (Cargo::Chunk { blob, index }, true) = (
                stream.cargo.clone(),
                stream.from != victim && stream.left > 0,
            ) {
                let from = stream.from;
                self.fact(
                    RESET,
                    from,
                    Event::ChunkSent {
                        to: gone,
                        blob,
                        index,
                    },
                );
            }
        }
        self.hosts[victim].kill();
        for other in 0..self.origin {
            if self.hosts[other].connected.remove(&victim) {
                self.fact(RESET, other, Event::Disconnected(gone));
            }
        }
    }

    fn thaw(&mut self, victim: HostId) {
        if self.hosts[victim].state != State::Frozen {
            return;
        }
        self.hosts[victim].state = State::Up;
        for event in std::mem::take(&mut self.hosts[victim].backlog) {
            self.feed(victim, event);
        }
        for frame in std::mem::take(&mut self.hosts[victim].unread) {
            self.read(victim, frame);
        }
        self.feed(victim, Event::Tick);
        self.serve(victim);
    }

    fn restart(&mut self, victim: HostId) {
        let seed = self.rng.random();
        let mut config = self.scenario.config.clone();
        config.wait_for_members = true;
        self.hosts[victim].boot(&config, &self.directory, seed, self.now);
        self.after_feed(victim);
        let up =
            (0..self.origin).find(|host| *host != victim && self.hosts[*host].state == State::Up);
        if let Some(up) = up {
            self.dial(victim, up);
        }
        let verified: Vec<Digest> = self.hosts[victim]
            .blobs
            .iter()
            .filter(|(_, stored)| stored.verified)
            .map(|(digest, _)| *digest)
            .collect();
        for blob in verified {
            let Blob { kind, size } = self.blobs[&blob];
            self.feed(victim, Event::Held { blob, kind, size });
        }
        if self.hosts[victim].started_at.is_some() {
            self.start_pull(victim);
        }
    }

    // --- the end ---

    fn name_the_stuck(&mut self) {
        for id in 0..self.origin {
            let host = &self.hosts[id];
            if host.state == State::Down || host.done_at.is_some() {
                continue;
            }
            let missing: Vec<String> = host
                .blobs
                .iter()
                .filter(|(_, stored)| !stored.verified)
                .map(|(digest, stored)| format!("{} {:?}", digest.short(), stored.have))
                .collect();
            let leases = host.core.as_ref().map_or(0, |core| core.leases().len());
            let text = format!(
                "node {id} never finished: {missing:?}, {leases} leases, {:?}",
                host.state
            );
            self.checkers.violation(text);
        }
    }

    fn report(self, settle_seconds: f64) -> Report {
        let times = |victims: bool| -> Vec<f64> {
            let counted = self.hosts[self.scenario.warm..self.origin]
                .iter()
                .filter(|host| host.victim == victims);
            let mut times: Vec<f64> = counted
                .filter_map(|host| Some(seconds(host.done_at? - host.started_at?)))
                .collect();
            times.sort_by(f64::total_cmp);
            times
        };
        let origin_bytes = self.hosts[self.origin].links.sent_bulk;
        let control = self.hosts.iter().map(|host| host.links.sent_control).sum();
        let origin_ended = seconds(
            self.hosts[self.origin]
                .links
                .sent_until
                .saturating_sub(self.began),
        );
        Report::new(
            &self.scenario,
            &times(false),
            times(true),
            settle_seconds,
            origin_bytes,
            origin_ended,
            control,
            &self.trace.finalize(),
            self.checkers,
        )
    }
}

fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}
