//! One node's two directions, and where it stands.

use std::collections::VecDeque;

/// Where a node stands: what its traffic has in common with that of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In a rack of a zone.
    Rack {
        /// Which zone.
        zone: u16,
        /// Which rack, numbered over all zones.
        rack: u16,
    },
    /// Elsewhere, behind everybody's zone: the origin.
    Outside,
}

/// A node's links before it runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NodeLinks {
    /// Bytes per second that it can send.
    pub(crate) up: f64,
    /// Bytes per second that it can receive.
    pub(crate) down: f64,
    /// Where it stands.
    pub(crate) place: Place,
}

/// What lies between the nodes. Latencies are one way, in nanoseconds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Topology {
    /// Within a rack.
    pub(crate) latency_rack: u64,
    /// Between racks of a zone.
    pub(crate) latency_zone: u64,
    /// Between zones.
    pub(crate) latency_far: u64,
    /// To and from outside.
    pub(crate) latency_outside: u64,
    /// Bytes per second between a rack and the rest of its zone, each way.
    pub(crate) rack_rate: Option<f64>,
    /// Bytes per second between a zone and the rest of the world, each way.
    pub(crate) zone_rate: Option<f64>,
    /// The share of packets that is lost on every path.
    ///
    /// TCP repairs it, and that costs: a stream gets no more than `MSS / RTT * 1.22 / sqrt(loss)`
    /// (Mathis, Semke, Mahdavi, Ott: The macroscopic behavior of the TCP congestion avoidance
    /// algorithm, 1997), and a control message waits for a retransmission, two round trips or
    /// 10 ms, as often as one of its packets is lost.
    pub(crate) loss: f64,
}

pub(super) const MSS: f64 = 1448.0;

impl Topology {
    /// Bytes per second that loss lets a stream have, with so many nanoseconds one way.
    pub(crate) fn stream_rate(&self, latency: u64) -> f64 {
        let round_trip = 2.0 * (latency as f64 / 1e9).max(1e-5);
        // Without loss there is no limit.
        MSS / round_trip * 1.22 / self.loss.sqrt()
    }
}

/// A link or pipe in one direction: first come, first served.
#[derive(Clone, Debug)]
pub(crate) struct Pipe {
    nanos_per_byte: f64,
    /// When it has passed on all bulk that it has been given.
    pub(crate) free: u64,
}

/// A switch port buffers about so much: a control message does not wait behind more. Whatever else
/// is on its way to a busy port waits in its senders' sockets, each in its own connection.
const PORT_BUFFER_BYTES: u64 = 1 << 20;

/// Slow ports have smaller buffers, or a discipline that keeps them short.
const PORT_BUFFER_NANOS: u64 = 50_000_000;

impl Pipe {
    pub(crate) fn new(rate: f64) -> Self {
        Self {
            nanos_per_byte: 1e9 / rate,
            free: 0,
        }
    }

    pub(crate) fn set_rate(&mut self, rate: f64) {
        self.nanos_per_byte = 1e9 / rate;
    }

    pub(crate) fn rate(&self) -> f64 {
        1e9 / self.nanos_per_byte
    }

    /// Nanoseconds that this many bytes take.
    pub(crate) fn nanos(&self, bytes: u64) -> u64 {
        (bytes as f64 * self.nanos_per_byte) as u64
    }

    /// Bulk whose first byte comes at `at`; when its last byte is through.
    pub(crate) fn pass(&mut self, at: u64, bytes: u64) -> u64 {
        self.free = self.free.max(at) + self.nanos(bytes);
        self.free
    }

    /// A control message that is on its way at `now` and comes at `at`; when it is through. It takes
    /// its bytes' time from the bulk that waits, and waits behind no more of it than a port's
    /// buffer holds.
    pub(crate) fn pass_control(&mut self, now: u64, at: u64, bytes: u64) -> u64 {
        let own = self.nanos(bytes);
        let buffered = self.nanos(PORT_BUFFER_BYTES).min(PORT_BUFFER_NANOS);
        let wait = self.free.saturating_sub(at).min(buffered);
        self.free = self.free.max(now) + own;
        at + wait + own
    }
}

/// One node's links while they run.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) place: Place,
    pub(crate) up: Pipe,
    pub(crate) down: Pipe,
    /// Streams that have something to send and room in their window, in turn.
    pub(crate) ready: VecDeque<u32>,
    /// Whether a frame is leaving.
    pub(crate) busy: bool,
    /// When the frame that is leaving has left.
    pub(crate) busy_until: u64,
    /// Time that control messages took from the frame that is leaving.
    pub(crate) debt: u64,
    /// When the control messages given so far have left, and have been delivered: they stay in
    /// order.
    pub(crate) control_left: u64,
    pub(crate) control_delivered: u64,
    /// When the first byte of the last frame left, and its last byte came: frames stay in order.
    pub(crate) bulk_left: u64,
    pub(crate) bulk_delivered: u64,
    /// Added to the latency of all that comes and goes.
    pub(crate) extra_latency: u64,
    /// Whether the process runs; one that does not neither reads nor sends.
    pub(crate) running: bool,
    /// What came in meanwhile.
    pub(crate) unread: VecDeque<Unread>,
    /// Rises when all that is on its way to the node is lost.
    pub(crate) epoch: u32,
    /// Only nodes of the same side reach each other.
    pub(crate) side: u8,
    /// Bytes that left.
    pub(crate) sent_bulk: u64,
    pub(crate) sent_control: u64,
    /// When the last bulk byte left.
    pub(crate) sent_until: u64,
}

/// What a process that does not run has not read.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Unread {
    Message(u32),
    Frame { slot: u32, bytes: u32, last: bool },
}

impl Link {
    pub(crate) fn new(links: &NodeLinks) -> Self {
        Self {
            place: links.place,
            up: Pipe::new(links.up),
            down: Pipe::new(links.down),
            ready: VecDeque::new(),
            busy: false,
            busy_until: 0,
            debt: 0,
            control_left: 0,
            control_delivered: 0,
            bulk_left: 0,
            bulk_delivered: 0,
            extra_latency: 0,
            running: true,
            unread: VecDeque::new(),
            epoch: 0,
            side: 0,
            sent_bulk: 0,
            sent_control: 0,
            sent_until: 0,
        }
    }
}
