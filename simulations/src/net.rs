//! The network in virtual time: a clock, links, streams and messages. It knows nothing of the
//! exchange; whatever is simulated on it meets the same links.
//!
//! # What it does
//!
//! Its owner says what is sent ([`Net::send`], [`Net::start`]) and asks for what happens
//! ([`Net::next`]): one [`Fact`] after the other, each at [`Net::now`]. `M` is a message of the
//! owner, `T` names a stream to it, `E` is whatever it wants to be reminded of ([`Net::at`]).
//!
//! # What it models
//!
//! - **Bulk** leaves in frames of a millisecond or a quarter of the stream's bytes, whichever is
//!   more, one stream after the other in turn, as equal TCP connections share a link. A stream has
//!   two frames and the path's bytes under way until the receiver has read them, so that a slow or
//!   stopped receiver holds up its own streams and nothing else.
//! - **Pipes** (a node's two directions; both directions of a rack and of a zone where they have a
//!   rate) pass frames first come, first served. Frames are cut through: the next pipe begins when
//!   the first byte is there, and ends no sooner than the slowest before it.
//! - **Messages** have their own connection, so they do not queue behind a stream; they wait for
//!   what is in the buffers of the sender's card and of the switches, take their bytes' time from
//!   the bulk, and arrive in order.
//! - **Latency** goes by place; **loss** slows streams down and delays messages; a node's latency
//!   may rise for a while, its process may stop and go on, its sides may be cut apart, and it may
//!   lose all that is on its way. See [`Topology`] and the functions of [`Net`].
//! - **Connections** take two round trips and a millisecond of CPU at each end, on one of the
//!   node's cores.
//!
//! # What it does not
//!
//! Slow start, and anything smaller than a frame. Congestion is queueing: nothing is dropped.

mod link;
mod queue;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};

use rand::{RngExt as _, SeedableRng as _, rngs::Xoshiro256PlusPlus};

pub(crate) use self::link::{NodeLinks, Place, Topology};
use self::{
    link::{Link, MSS, Pipe, Unread},
    queue::Queue,
};

/// A node's place in the world.
pub(crate) type NodeIndex = usize;

/// Nanoseconds in the units that people think in.
pub(crate) const MICROSECOND: u64 = 1000;
pub(crate) const MILLISECOND: u64 = 1000 * MICROSECOND;
pub(crate) const SECOND: u64 = 1000 * MILLISECOND;

/// Names a stream until it ends; afterwards the name means nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct StreamId {
    slot: u32,
    generation: u32,
}

/// What happens.
#[derive(Debug)]
pub(crate) enum Fact<M, T, E> {
    /// What the owner asked to be reminded of.
    Due(E),
    /// A message is in its receiver's hands.
    Message {
        from: NodeIndex,
        to: NodeIndex,
        message: M,
    },
    /// Bytes of a stream were read since the last such fact; told about every 100 ms of a stream
    /// that takes longer.
    Progress { tag: T, bytes: u64 },
    /// The last byte that a stream was given has left its sender. More may be given
    /// ([`Net::extend`]); the stream is over when the last byte is read.
    Left { id: StreamId, tag: T },
    /// The last byte that a stream was given was read. `bytes` since the last progress.
    Read { tag: T, bytes: u64 },
}

/// What is told of a stream that was cut off.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cut<T> {
    pub(crate) tag: T,
    pub(crate) from: NodeIndex,
    /// Whether the sender still had bytes of it.
    pub(crate) unsent: bool,
}

/// What the network reminds itself of.
#[derive(Debug)]
enum Step<E> {
    Due(E),
    /// A node's uplink is free; the slot whose last byte has left.
    Free {
        node: u32,
        left: Option<u32>,
    },
    /// The first byte of a frame is at the first pipe behind its sender's uplink.
    Frame {
        slot: u32,
        bytes: u32,
        last: bool,
        /// How many of the shared pipes it has passed.
        hop: u8,
    },
    /// A frame is through.
    Through {
        slot: u32,
        bytes: u32,
        last: bool,
    },
    /// A message is at the first pipe behind its sender's uplink.
    Message(u32),
    /// It is through.
    Arrived(u32),
    /// A stream that may not send faster may send again.
    Paced(u32),
}

#[derive(Debug)]
struct Stream<T> {
    from: u32,
    to: u32,
    /// What the receiver reads, and what it will read after that.
    tag: T,
    then: VecDeque<T>,
    generation: u32,
    /// Bytes that have not left.
    left: u64,
    frame: u32,
    /// Bytes that left and were not read.
    under_way: u64,
    window: u64,
    frames_out: u32,
    /// Bytes read since the owner was last told, and when that was.
    untold: u64,
    told: u64,
    /// The least time between bytes, and when the next frame may leave.
    nanos_per_byte: f64,
    not_before: u64,
    queued: bool,
    paced: bool,
    /// Whether its last frame so far is leaving, and when that has left.
    leaving: bool,
    left_at: u64,
    /// Nothing more is to come of it.
    over: bool,
    /// It was cut off.
    cut: bool,
}

#[derive(Debug)]
struct Envelope<M> {
    from: u32,
    to: u32,
    bytes: u32,
    epoch: u32,
    message: M,
}

/// A control message waits for no more bytes of bulk than this where it leaves: what a card and
/// its queue discipline have taken in.
const CARD_BUFFER_BYTES: u64 = 128 << 10;

/// Nor longer than this, on a slow one.
const CARD_BUFFER_NANOS: u64 = 20 * MILLISECOND;

/// The smallest frame: what TCP sends at once.
const FRAME_BYTES_MIN: u64 = 16 << 10;

/// A quarter of a stream's bytes is a frame up to here, a quarter of the largest chunk.
const FRAME_SHARE_MAX: u64 = 1 << 20;

/// Progress of a stream is told so often, as the daemon does.
const PROGRESS: u64 = 100 * MILLISECOND;

/// CPU time of a handshake at each end: TLS 1.3 with ed25519 certificates, and the ticket.
const HANDSHAKE_CPU: u64 = MILLISECOND;

/// The side of a node that is on both.
const NEUTRAL: u8 = u8::MAX;

fn meet(a: u8, b: u8) -> bool {
    a == b || a == NEUTRAL || b == NEUTRAL
}

/// The network of one world.
#[derive(Debug)]
pub(crate) struct Net<M, T, E> {
    now: u64,
    queue: Queue<Step<E>>,
    links: Vec<Link>,
    topology: Topology,
    racks: Vec<[Pipe; 2]>,
    zones: Vec<[Pipe; 2]>,
    streams: Vec<Stream<T>>,
    free_streams: Vec<u32>,
    messages: Vec<Option<Envelope<M>>>,
    free_messages: Vec<u32>,
    /// What happened and was not asked for yet.
    happened: VecDeque<Fact<M, T, E>>,
    rng: Xoshiro256PlusPlus,
    /// For each node, when its cores have done the handshakes they were given.
    cpu_free: Vec<u64>,
    cores: u64,
    /// When control messages delayed by a loss arrive, by sender and receiver.
    delayed: BTreeMap<(u32, u32), u64>,
    steps: u64,
    meter: Meter,
}

/// Bulk bytes sent in each tenth of a second, from outside and by all others.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    /// When the first tenth began.
    pub(crate) since: u64,
    /// `[from outside, from all others]`
    pub(crate) tenths: Vec<[u64; 2]>,
}

impl Meter {
    /// The length of a slot of [`tenths`](Self::tenths), in nanoseconds.
    pub(crate) const SLOT: u64 = SECOND / 10;

    fn sent(&mut self, at: u64, outside: bool, bytes: u64) {
        let slot = (at.saturating_sub(self.since) / Self::SLOT) as usize;
        if self.tenths.len() <= slot {
            self.tenths.resize(slot + 1, [0; 2]);
        }
        self.tenths[slot][usize::from(!outside)] += bytes;
    }
}

impl<M, T: Copy, E> Net<M, T, E> {
    /// A network of these nodes at time zero. `cores` of each node share its handshakes.
    pub(crate) fn new(nodes: &[NodeLinks], topology: Topology, cores: u32, seed: u64) -> Self {
        let (mut racks, mut zones) = (0, 0);
        for node in nodes {
            if let Place::Rack { zone, rack } = node.place {
                racks = racks.max(usize::from(rack) + 1);
                zones = zones.max(usize::from(zone) + 1);
            }
        }
        let pipes = |count: usize, rate: Option<f64>| -> Vec<[Pipe; 2]> {
            rate.map(|rate| vec![[Pipe::new(rate), Pipe::new(rate)]; count])
                .unwrap_or_default()
        };
        Self {
            now: 0,
            queue: Queue::new(),
            links: nodes.iter().map(Link::new).collect(),
            racks: pipes(racks, topology.rack_rate),
            zones: pipes(zones, topology.zone_rate),
            topology,
            streams: Vec::new(),
            free_streams: Vec::new(),
            messages: Vec::new(),
            free_messages: Vec::new(),
            happened: VecDeque::new(),
            rng: Xoshiro256PlusPlus::seed_from_u64(seed),
            cpu_free: vec![0; nodes.len()],
            cores: u64::from(cores.max(1)),
            delayed: BTreeMap::new(),
            steps: 0,
            meter: Meter::default(),
        }
    }

    // --- time ---

    /// The time, in nanoseconds.
    pub(crate) fn now(&self) -> u64 {
        self.now
    }

    /// Reminds the owner at a time; of the past at once.
    pub(crate) fn at(&mut self, at: u64, what: E) {
        self.queue.push(at, Step::Due(what));
    }

    /// What happens next, no later than `limit`; `None` when nothing does, and then it is `limit`.
    pub(crate) fn next(&mut self, limit: u64) -> Option<Fact<M, T, E>> {
        loop {
            if let Some(fact) = self.happened.pop_front() {
                return Some(fact);
            }
            let Some((at, step)) = self.queue.pop(limit) else {
                self.now = self.now.max(limit);
                return None;
            };
            self.now = at;
            self.steps += 1;
            if let Some(fact) = self.step(step) {
                return Some(fact);
            }
        }
    }

    /// How many steps the network has taken, as a measure of work.
    pub(crate) fn steps(&self) -> u64 {
        self.steps
    }

    fn step(&mut self, step: Step<E>) -> Option<Fact<M, T, E>> {
        match step {
            Step::Due(what) => return Some(Fact::Due(what)),
            Step::Free { node, left } => {
                self.links[node as usize].busy = false;
                self.serve(node as usize);
                let slot = left?;
                let stream = &mut self.streams[slot as usize];
                stream.leaving = false;
                self.reuse(slot);
                let stream = &self.streams[slot as usize];
                if !stream.cut {
                    return Some(Fact::Left {
                        id: Self::id(slot, stream),
                        tag: stream.then.back().copied().unwrap_or(stream.tag),
                    });
                }
            }
            Step::Frame {
                slot,
                bytes,
                last,
                hop,
            } => self.pass_frame(slot, bytes, last, hop),
            Step::Through { slot, bytes, last } => {
                let to = self.streams[slot as usize].to as usize;
                let link = &mut self.links[to];
                if link.running {
                    return self.read(slot, bytes, last);
                }
                link.unread.push_back(Unread::Frame { slot, bytes, last });
            }
            Step::Message(slot) => return self.pass_message(slot),
            Step::Arrived(slot) => return self.arrived(slot),
            Step::Paced(slot) => {
                self.streams[slot as usize].paced = false;
                self.offer(slot);
                self.reuse(slot);
            }
        }
        None
    }

    // --- paths ---

    /// One way, in nanoseconds, without what a fault adds.
    fn base_latency(&self, from: NodeIndex, to: NodeIndex) -> u64 {
        match (self.links[from].place, self.links[to].place) {
            (Place::Rack { rack: a, .. }, Place::Rack { rack: b, .. }) if a == b => {
                self.topology.latency_rack
            }
            (Place::Rack { zone: a, .. }, Place::Rack { zone: b, .. }) if a == b => {
                self.topology.latency_zone
            }
            (Place::Rack { .. }, Place::Rack { .. }) => self.topology.latency_far,
            _ => self.topology.latency_outside,
        }
    }

    /// One way, in nanoseconds.
    pub(crate) fn latency(&self, from: NodeIndex, to: NodeIndex) -> u64 {
        self.base_latency(from, to) + self.links[from].extra_latency + self.links[to].extra_latency
    }

    /// Whether anything that one sends reaches the other.
    pub(crate) fn reaches(&self, from: NodeIndex, to: NodeIndex) -> bool {
        meet(self.links[from].side, self.links[to].side)
    }

    /// The shared pipes between two nodes, in order, as (zone's?, which, direction).
    fn pipes(&self, from: NodeIndex, to: NodeIndex) -> ([(bool, usize, usize); 4], usize) {
        let mut path = [(false, 0, 0); 4];
        let mut count = 0;
        let mut add = |zone: bool, which: u16, direction: usize| {
            path[count] = (zone, usize::from(which), direction);
            count += 1;
        };
        let (a, b) = (self.links[from].place, self.links[to].place);
        let place = |place| match place {
            Place::Rack { zone, rack } => (Some(zone), Some(rack)),
            Place::Outside => (None, None),
        };
        let ((zone_a, rack_a), (zone_b, rack_b)) = (place(a), place(b));
        if rack_a != rack_b {
            if let (Some(rack), false) = (rack_a, self.racks.is_empty()) {
                add(false, rack, 0);
            }
            if zone_a != zone_b && !self.zones.is_empty() {
                if let Some(zone) = zone_a {
                    add(true, zone, 0);
                }
                if let Some(zone) = zone_b {
                    add(true, zone, 1);
                }
            }
            if let (Some(rack), false) = (rack_b, self.racks.is_empty()) {
                add(false, rack, 1);
            }
        }
        (path, count)
    }

    fn pipe(&mut self, (zone, which, direction): (bool, usize, usize)) -> &mut Pipe {
        if zone {
            &mut self.zones[which][direction]
        } else {
            &mut self.racks[which][direction]
        }
    }

    // --- messages ---

    /// Sends a message of so many bytes. It arrives unless the receiver is reset meanwhile or
    /// cannot be reached.
    pub(crate) fn send(&mut self, from: NodeIndex, to: NodeIndex, bytes: u64, message: M) {
        let latency = self.base_latency(from, to);
        let delay = self.retransmission(from, to, bytes);
        let epoch = self.links[to].epoch;
        let link = &mut self.links[from];
        link.sent_control += bytes;
        let own = link.up.nanos(bytes);
        let wait = if link.busy {
            link.debt += own;
            let card = link.up.nanos(CARD_BUFFER_BYTES).min(CARD_BUFFER_NANOS);
            link.busy_until.saturating_sub(self.now).min(card)
        } else {
            // Bulk that begins now waits for it.
            link.up.free = link.up.free.max(self.now) + own;
            0
        };
        let left = (self.now + wait + link.extra_latency).max(link.control_left) + own;
        link.control_left = left;
        let envelope = Envelope {
            from: from as u32,
            to: to as u32,
            bytes: bytes as u32,
            epoch,
            message,
        };
        let slot = if let Some(slot) = self.free_messages.pop() {
            self.messages[slot as usize] = Some(envelope);
            slot
        } else {
            self.messages.push(Some(envelope));
            self.messages.len() as u32 - 1
        };
        let mut at = left + latency;
        if self.topology.loss > 0.0 {
            // What was sent after a lost packet waits for it.
            let order = self.delayed.entry((from as u32, to as u32)).or_default();
            at = (at + delay).max(*order);
            *order = at;
        }
        self.queue.push(at, Step::Message(slot));
    }

    /// What a loss costs a message: nothing, mostly.
    fn retransmission(&mut self, from: NodeIndex, to: NodeIndex, bytes: u64) -> u64 {
        if self.topology.loss <= 0.0 {
            return 0;
        }
        let packets = (bytes as f64 / MSS).ceil();
        let lost = 1.0 - (1.0 - self.topology.loss).powf(packets);
        if self.rng.random::<f64>() < lost {
            (4 * self.latency(from, to)).max(10 * MILLISECOND)
        } else {
            0
        }
    }

    fn envelope(&self, slot: u32) -> (NodeIndex, NodeIndex, u64) {
        self.messages[slot as usize]
            .as_ref()
            .map_or((0, 0, 0), |envelope| {
                (
                    envelope.from as usize,
                    envelope.to as usize,
                    u64::from(envelope.bytes),
                )
            })
    }

    fn pass_message(&mut self, slot: u32) -> Option<Fact<M, T, E>> {
        let (from, to, bytes) = self.envelope(slot);
        let (path, count) = self.pipes(from, to);
        let now = self.now;
        let mut at = now;
        for place in &path[..count] {
            at = self.pipe(*place).pass_control(now, at, bytes);
        }
        let link = &mut self.links[to];
        let through = link.down.pass_control(now, at, bytes) + link.extra_latency;
        // Order is kept to the microsecond that a message itself takes; messages that come to an
        // idle link are not worth another step.
        let through = through.max(link.control_delivered);
        link.control_delivered = through;
        if through <= now + MICROSECOND {
            return self.arrived(slot);
        }
        self.queue.push(through, Step::Arrived(slot));
        None
    }

    fn arrived(&mut self, slot: u32) -> Option<Fact<M, T, E>> {
        let envelope = self.messages[slot as usize].as_ref()?;
        let (from, to) = (envelope.from as usize, envelope.to as usize);
        if envelope.epoch == self.links[to].epoch
            && self.reaches(from, to)
            && !self.links[to].running
        {
            self.links[to].unread.push_back(Unread::Message(slot));
            return None;
        }
        let Envelope { epoch, message, .. } = self.messages[slot as usize].take()?;
        self.free_messages.push(slot);
        (epoch == self.links[to].epoch && self.reaches(from, to)).then_some(Fact::Message {
            from,
            to,
            message,
        })
    }

    /// When a connection that is begun now stands: two round trips, and CPU time at both ends.
    pub(crate) fn connected_at(&mut self, from: NodeIndex, to: NodeIndex) -> u64 {
        let at = self.now + 2 * self.latency(from, to);
        let share = HANDSHAKE_CPU / self.cores;
        let mut ends = at;
        for end in [to, from] {
            // Whoever waits for the other end has its cores free for others meanwhile.
            let free = &mut self.cpu_free[end];
            let begins = ends.max(*free);
            *free = (*free).max(at) + share;
            // The last core to take one needs the whole time for it.
            ends = begins + HANDSHAKE_CPU;
        }
        ends + 2 * self.latency(to, from)
    }

    // --- streams ---

    /// Starts a stream of so many bytes.
    pub(crate) fn start(&mut self, from: NodeIndex, to: NodeIndex, bytes: u64, tag: T) -> StreamId {
        self.start_paced(from, to, bytes, tag, f64::INFINITY)
    }

    /// Starts a stream of so many bytes that gets no more than `rate` bytes per second.
    pub(crate) fn start_paced(
        &mut self,
        from: NodeIndex,
        to: NodeIndex,
        bytes: u64,
        tag: T,
        rate: f64,
    ) -> StreamId {
        let latency = self.latency(from, to);
        let rate = rate.min(self.topology.stream_rate(latency));
        let latency = latency as f64 / 1e9;
        let up = self.links[from].up.rate();
        // With a slower receiver a frame is still no more than its quarter of the bytes.
        let bottom = up.min(self.links[to].down.rate());
        let frame = ((bottom / 1000.0) as u64)
            .max((bytes / 4).min(FRAME_SHARE_MAX))
            .clamp(FRAME_BYTES_MIN, 16 << 20);
        let stream = Stream {
            from: from as u32,
            to: to as u32,
            tag,
            then: VecDeque::new(),
            generation: 0,
            left: bytes.max(1),
            frame: frame as u32,
            under_way: 0,
            window: 2 * frame + (2.0 * up * latency) as u64,
            frames_out: 0,
            untold: 0,
            told: self.now,
            nanos_per_byte: 1e9 / rate,
            not_before: 0,
            queued: false,
            paced: false,
            leaving: false,
            left_at: 0,
            over: false,
            cut: false,
        };
        let slot = if let Some(slot) = self.free_streams.pop() {
            let generation = self.streams[slot as usize].generation + 1;
            self.streams[slot as usize] = Stream {
                generation,
                ..stream
            };
            slot
        } else {
            self.streams.push(stream);
            self.streams.len() as u32 - 1
        };
        let id = Self::id(slot, &self.streams[slot as usize]);
        self.offer(slot);
        id
    }

    /// Gives a stream more bytes, under another name; for a stream whose last byte has left or is
    /// about to leave. Does nothing to a stream that is over.
    pub(crate) fn extend(&mut self, id: StreamId, bytes: u64, tag: T) {
        if let Some(stream) = self.stream_mut(id) {
            stream.left += bytes.max(1);
            stream.then.push_back(tag);
            self.offer(id.slot);
        }
    }

    /// Cuts a stream off: what has not left is not sent, and nothing is told of the rest.
    pub(crate) fn cancel(&mut self, id: StreamId) {
        if let Some(stream) = self.stream_mut(id) {
            stream.over = true;
            stream.cut = true;
            self.reuse(id.slot);
        }
    }

    fn id(slot: u32, stream: &Stream<T>) -> StreamId {
        StreamId {
            slot,
            generation: stream.generation,
        }
    }

    fn stream_mut(&mut self, id: StreamId) -> Option<&mut Stream<T>> {
        self.streams
            .get_mut(id.slot as usize)
            .filter(|stream| stream.generation == id.generation && !stream.over)
    }

    /// A slot whose stream is over and has left the network serves the next one.
    fn reuse(&mut self, slot: u32) {
        let stream = &mut self.streams[slot as usize];
        let idle = !stream.queued && !stream.paced && !stream.leaving;
        if stream.over && stream.frames_out == 0 && idle {
            // So that it is freed once.
            stream.frames_out = u32::MAX;
            self.free_streams.push(slot);
        }
    }

    /// Puts a stream in its uplink's queue if it may send.
    fn offer(&mut self, slot: u32) {
        let now = self.now;
        let stream = &mut self.streams[slot as usize];
        let closed = stream.under_way >= stream.window;
        if stream.queued || stream.paced || stream.over || stream.left == 0 || closed {
            return;
        }
        if stream.not_before > now {
            stream.paced = true;
            let at = stream.not_before;
            self.queue.push(at, Step::Paced(slot));
            return;
        }
        stream.queued = true;
        let from = stream.from as usize;
        self.links[from].ready.push_back(slot);
        self.serve(from);
    }

    /// Sends the next frame, if the uplink is free.
    fn serve(&mut self, from: NodeIndex) {
        let slot = loop {
            let link = &mut self.links[from];
            if link.busy || !link.running {
                return;
            }
            let Some(slot) = link.ready.pop_front() else {
                return;
            };
            let stream = &mut self.streams[slot as usize];
            stream.queued = false;
            if !stream.over {
                break slot;
            }
            self.reuse(slot);
        };
        let stream = &mut self.streams[slot as usize];
        let bytes = stream.left.min(u64::from(stream.frame));
        stream.left -= bytes;
        stream.under_way += bytes;
        stream.frames_out += 1;
        let last = stream.left == 0;
        stream.leaving = last;
        let to = stream.to as usize;
        let link = &mut self.links[from];
        let begins = link.up.free.max(self.now);
        let took = link.up.nanos(bytes);
        let free = begins + took + std::mem::take(&mut link.debt);
        let stream = &mut self.streams[slot as usize];
        stream.left_at = free;
        if stream.nanos_per_byte > 0.0 {
            let pause = (bytes as f64 * stream.nanos_per_byte) as u64;
            stream.not_before = stream.not_before.max(begins) + pause;
        }
        link.busy = true;
        link.busy_until = free;
        link.up.free = free;
        link.sent_bulk += bytes;
        link.sent_until = free;
        let outside = link.place == Place::Outside;
        link.bulk_left = link.bulk_left.max(begins + link.extra_latency);
        let first_byte = link.bulk_left;
        self.meter.sent(begins, outside, bytes);
        let first_byte = first_byte + self.base_latency(from, to);
        let bytes = bytes as u32;
        if self.racks.is_empty() && self.zones.is_empty() {
            // Whoever sends first is there first, to a latency's difference: not worth a step.
            self.receive(first_byte, slot, bytes, last);
        } else {
            let frame = Step::Frame {
                slot,
                bytes,
                last,
                hop: 0,
            };
            self.queue.push(first_byte, frame);
        }
        self.queue.push(
            free,
            Step::Free {
                node: from as u32,
                left: last.then_some(slot),
            },
        );
        self.offer(slot);
    }

    /// The first byte of a frame is at the next pipe on its way, the receiver's downlink being the
    /// last.
    fn pass_frame(&mut self, slot: u32, bytes: u32, last: bool, hop: u8) {
        let (from, to) = {
            let stream = &self.streams[slot as usize];
            (stream.from as usize, stream.to as usize)
        };
        let (path, count) = self.pipes(from, to);
        if usize::from(hop) < count {
            let now = self.now;
            let pipe = self.pipe(path[usize::from(hop)]);
            let begins = pipe.free.max(now);
            pipe.pass(now, u64::from(bytes));
            let frame = Step::Frame {
                slot,
                bytes,
                last,
                hop: hop + 1,
            };
            self.queue.push(begins, frame);
            return;
        }
        self.receive(self.now, slot, bytes, last);
    }

    /// The first byte of a frame is at the receiver's downlink at that time.
    fn receive(&mut self, at: u64, slot: u32, bytes: u32, last: bool) {
        let stream = &self.streams[slot as usize];
        let (from, to, left_at) = (stream.from as usize, stream.to as usize, stream.left_at);
        let size = u64::from(bytes);
        let (path, count) = self.pipes(from, to);
        // The last byte is no earlier here than the slowest pipe before lets it.
        let mut slowest = self.links[from].up.nanos(size);
        for place in &path[..count] {
            slowest = slowest.max(self.pipe(*place).nanos(size));
        }
        let link = &mut self.links[to];
        // Nor earlier than it can be here at all, with what was sent in between.
        let earliest = (at + slowest).max(left_at + 1);
        let through = link.down.pass(at, size).max(earliest);
        let through = (through + link.extra_latency).max(link.bulk_delivered);
        link.bulk_delivered = through;
        self.queue
            .push(through, Step::Through { slot, bytes, last });
    }

    /// The receiver reads a frame.
    fn read(&mut self, slot: u32, bytes: u32, last: bool) -> Option<Fact<M, T, E>> {
        let now = self.now;
        let stream = &mut self.streams[slot as usize];
        stream.under_way -= u64::from(bytes);
        stream.frames_out -= 1;
        if stream.over {
            self.reuse(slot);
            return None;
        }
        stream.untold += u64::from(bytes);
        let tag = stream.tag;
        if last {
            let stream = &mut self.streams[slot as usize];
            let bytes = std::mem::take(&mut stream.untold);
            stream.told = now;
            // More may have been given since; then it goes on.
            match stream.then.pop_front() {
                Some(next) => stream.tag = next,
                None => stream.over = true,
            }
            self.offer(slot);
            self.reuse(slot);
            return Some(Fact::Read { tag, bytes });
        }
        self.offer(slot);
        let stream = &mut self.streams[slot as usize];
        if now - stream.told < PROGRESS {
            return None;
        }
        stream.told = now;
        let bytes = std::mem::take(&mut stream.untold);
        Some(Fact::Progress { tag, bytes })
    }

    // --- what goes wrong ---

    /// Stops a node's process: it neither reads nor sends, and its connections stay.
    pub(crate) fn stop(&mut self, node: NodeIndex) {
        self.links[node].running = false;
    }

    /// Lets it go on with what came in meanwhile.
    pub(crate) fn go_on(&mut self, node: NodeIndex) {
        self.links[node].running = true;
        for unread in std::mem::take(&mut self.links[node].unread) {
            let fact = match unread {
                Unread::Message(slot) => self.arrived(slot),
                Unread::Frame { slot, bytes, last } => self.read(slot, bytes, last),
            };
            self.happened.extend(fact);
        }
        self.serve(node);
    }

    /// Breaks all that a node sends and receives, and says which streams were cut.
    pub(crate) fn reset(&mut self, node: NodeIndex) -> Vec<Cut<T>> {
        let link = &mut self.links[node];
        link.epoch += 1;
        link.running = true;
        let unread = std::mem::take(&mut link.unread);
        let cut = self.cut(|from, to| from == node || to == node);
        for unread in unread {
            match unread {
                Unread::Message(slot) => {
                    self.messages[slot as usize] = None;
                    self.free_messages.push(slot);
                }
                Unread::Frame { slot, bytes, last } => {
                    self.read(slot, bytes, last);
                }
            }
        }
        cut
    }

    /// Puts each node on a side; what crosses is lost. Whoever is `neutral` is on both. Says which
    /// streams were cut.
    pub(crate) fn divide(
        &mut self,
        side: impl Fn(NodeIndex) -> u8,
        neutral: Option<NodeIndex>,
    ) -> Vec<Cut<T>> {
        for (node, link) in self.links.iter_mut().enumerate() {
            link.side = if neutral == Some(node) {
                NEUTRAL
            } else {
                side(node)
            };
        }
        let sides: Vec<u8> = self.links.iter().map(|link| link.side).collect();
        self.cut(|from, to| !meet(sides[from], sides[to]))
    }

    fn cut(&mut self, broken: impl Fn(NodeIndex, NodeIndex) -> bool) -> Vec<Cut<T>> {
        let mut cuts = Vec::new();
        for slot in 0..self.streams.len() {
            let stream = &mut self.streams[slot];
            let (from, to) = (stream.from as usize, stream.to as usize);
            if !stream.over && broken(from, to) {
                stream.over = true;
                stream.cut = true;
                cuts.push(Cut {
                    tag: stream.tag,
                    from,
                    unsent: stream.left > 0 || stream.leaving,
                });
                self.reuse(slot as u32);
            }
        }
        cuts
    }

    /// Changes a node's rates, in bytes per second.
    pub(crate) fn set_rates(&mut self, node: NodeIndex, up: f64, down: f64) {
        self.links[node].up.set_rate(up);
        self.links[node].down.set_rate(down);
    }

    /// Adds to the latency of all that a node sends and receives, in nanoseconds; zero ends it.
    pub(crate) fn set_extra_latency(&mut self, node: NodeIndex, extra: u64) {
        self.links[node].extra_latency = extra;
    }

    // --- what is counted at the links ---

    /// Bulk bytes that have left a node.
    pub(crate) fn sent_bulk(&self, node: NodeIndex) -> u64 {
        self.links[node].sent_bulk
    }

    /// Bytes of messages that have left a node.
    pub(crate) fn sent_control(&self, node: NodeIndex) -> u64 {
        self.links[node].sent_control
    }

    /// When a node's last bulk byte left.
    pub(crate) fn sent_until(&self, node: NodeIndex) -> u64 {
        self.links[node].sent_until
    }

    /// A node's rates, up and down, in bytes per second.
    pub(crate) fn rates(&self, node: NodeIndex) -> [f64; 2] {
        [self.links[node].up.rate(), self.links[node].down.rate()]
    }

    /// The use of the uplinks over time.
    pub(crate) fn meter(&self) -> &Meter {
        &self.meter
    }

    /// Forgets what was counted so far.
    pub(crate) fn count_anew(&mut self) {
        for link in &mut self.links {
            link.sent_bulk = 0;
            link.sent_control = 0;
            link.sent_until = self.now;
        }
        self.meter = Meter {
            since: self.now,
            tenths: Vec::new(),
        };
    }
}
