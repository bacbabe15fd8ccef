//! Links in virtual time: what leaves a host waits for its uplink, crosses in the latency of the
//! wire, and queues first come, first served, at the receiver's downlink.
//!
//! Bulk travels in frames of about a millisecond, one stream after the other in turn, as equal TCP
//! connections share a link; control messages go before the next frame. A stream has a window of
//! frames under way, opened again when the receiver has read them, so that a slow or stopped
//! receiver holds up its own streams and nothing else. There is no loss and no slow start.

use std::collections::VecDeque;

use shoal_protocol::{chunk::Bitfield, digest::Digest, message::LeaseId};

use crate::world::HostId;

/// Names a stream of bulk bytes for as long as the world lasts.
pub(crate) type StreamId = usize;

/// What a stream carries.
#[derive(Clone, Debug)]
pub(crate) enum Cargo {
    /// One chunk between two nodes.
    Chunk {
        /// Of which blob.
        blob: Digest,
        /// Which.
        index: u32,
    },
    /// Chunks from the origin, one after the other.
    Origin {
        /// Of which blob.
        blob: Digest,
        /// Under which lease.
        lease: LeaseId,
        /// The chunk that is being sent.
        index: u32,
        /// One past the last.
        end: u32,
    },
}

/// A stream of bulk bytes from one host to another.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) from: HostId,
    pub(crate) to: HostId,
    pub(crate) cargo: Cargo,
    /// Bytes of the current chunk that have not left.
    pub(crate) left: u64,
    /// Whether the origin counts it as open.
    pub(crate) answered: bool,
    /// Bytes that came in since the receiver was last told of progress.
    pub(crate) untold: u64,
    /// Bytes that left and were not read yet.
    pub(crate) under_way: u64,
    /// Whether it stands in its uplink's queue.
    pub(crate) queued: bool,
    /// Broken off, or finished.
    pub(crate) over: bool,
}

/// A frame of a stream on its way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame {
    pub(crate) stream: StreamId,
    pub(crate) index: u32,
    pub(crate) bytes: u64,
    /// The last of its chunk.
    pub(crate) last: bool,
}

/// What crosses the network.
#[derive(Debug)]
pub(crate) enum Packet {
    /// Part of a stream.
    Frame(Frame),
    /// A control message; its sender and its encoded length.
    Control {
        from: HostId,
        bytes: u64,
        message: Box<shoal_protocol::message::Message>,
    },
}

/// One host's two directions.
#[derive(Debug, Default)]
pub(crate) struct Links {
    /// Bytes per second, each way.
    pub(crate) rate: f64,
    /// Control messages that wait, with their receivers.
    pub(crate) control: VecDeque<(HostId, Packet)>,
    /// Streams that have something to send and room in their window, in turn.
    pub(crate) streams: VecDeque<StreamId>,
    /// Whether a frame is leaving.
    pub(crate) busy: bool,
    /// When the downlink has delivered all that it has been given, in nanoseconds.
    pub(crate) down_free: u64,
    pub(crate) sent_control: u64,
    pub(crate) sent_bulk: u64,
    /// When the last bulk byte left, in nanoseconds.
    pub(crate) sent_until: u64,
}

impl Links {
    pub(crate) fn new(rate: f64) -> Self {
        Self {
            rate,
            ..Self::default()
        }
    }

    /// Nanoseconds that this many bytes take.
    pub(crate) fn nanos(&self, bytes: u64) -> u64 {
        (bytes as f64 / self.rate * 1e9) as u64
    }

    /// A millisecond's worth, within what a daemon reads and writes at once.
    pub(crate) fn frame(&self) -> u64 {
        ((self.rate / 1000.0) as u64).clamp(16 << 10, 256 << 10)
    }
}

/// Bytes of a stream that may be under way: four frames of the sender, and enough for the path.
pub(crate) fn window(links: &Links, latency_nanos: u64) -> u64 {
    let path = links.rate * latency_nanos as f64 / 1e9;
    (4 * links.frame()).max(4 * path as u64)
}

/// The next chunk of a lease that the reader does not have.
pub(crate) fn next_missing(have: &Bitfield, from: u32, end: u32) -> Option<u32> {
    have.next_clear(from).filter(|index| *index < end)
}
