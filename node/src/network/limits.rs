//! Every bound of the network, in one place, each with the reason for its value.

use std::time::Duration;

/// How long TCP connect, TLS and the exchange of tickets may take together. Three retransmissions
/// of a lost SYN (1, 3 and 7 s) fit into it.
pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a peer may take to show its ticket once TLS stands.
pub(super) const TICKET_TIMEOUT: Duration = Duration::from_secs(5);

/// The largest ticket that is read, in bytes; ours take about 150.
pub(super) const TICKET_BYTES_MAX: usize = 1024;

/// Inbound connections that may be shaking hands at once: a mass boot of 500 nodes that all dial
/// the same one. Each costs a socket and about 100 KB until it is admitted.
pub(super) const HANDSHAKES_MAX: usize = 512;

/// Of those, from one address: all nodes of a large host or behind one NAT, but not the whole
/// budget for one stranger.
pub(super) const HANDSHAKES_PER_ADDRESS_MAX: usize = 64;

/// Bulk connections at once (DESIGN §7): mesh degree 20 for several blobs. Each may hold a window
/// of read-ahead and a chunk on its way in.
pub(super) const BULK_CONNECTIONS_MAX: usize = 64;

/// A bulk connection that moved bytes more recently than this is not given up for another.
pub(super) const BULK_IN_USE: Duration = Duration::from_secs(1);

/// A control connection without traffic for so long is closed. SWIM probes every member of a
/// cluster of 60 within it.
pub(super) const CONTROL_IDLE: Duration = Duration::from_mins(1);

/// A bulk connection without traffic for so long is closed.
pub(super) const BULK_IDLE: Duration = Duration::from_secs(30);

/// How long a peer may take to open the stream, which tells what its connection is for.
pub(super) const STREAM_TIMEOUT: Duration = Duration::from_secs(10);

/// Messages that may wait for one peer. A puller with 40 layers sends some 100 a second.
pub(super) const OUTBOX_MESSAGES_MAX: usize = 4096;

/// Bytes that may wait for one peer. Full member lists of 10,000 nodes take about 1 MiB.
pub(super) const OUTBOX_BYTES_MAX: usize = 8 << 20;

/// Chunks that may wait for one peer; the core has at most 12 sent at once.
pub(super) const OUTBOX_CHUNKS_MAX: usize = 16;

/// How many bytes of waiting messages are written in one go.
pub(super) const WRITE_BATCH_BYTES: usize = 256 << 10;

/// Dials of plain addresses that may wait to be started.
pub(super) const DIALS_WAITING_MAX: usize = 256;

/// Chunks nobody asked for, in a row, after which a peer is cut off. More than the twelve that may
/// be on their way when requests are cancelled.
pub(super) const UNEXPECTED_CHUNKS_MAX: u32 = 64;

/// The buffer that unexpected bytes are read into and forgotten.
pub(super) const SKIP_BUFFER_BYTES: usize = 64 << 10;

/// At most so often, in time, is the progress of a chunk reported,
pub(super) const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// or so often in bytes.
pub(super) const PROGRESS_BYTES: u32 = 1 << 20;

/// Bytes that the kernel takes in before it can send them (TCP_NOTSENT_LOWAT), for each connection.
/// Without a bound its buffers grow to megabytes for each peer: a slow link is full, and whoever
/// decides what is sent next does not see it. One holder of 128 MiB and three pullers on links of
/// 50 Mbit/s took 27.4 s without, since the holder sent every fifth chunk again that others had by
/// then; 24.6 s with 64 KiB, 24.4 s with 16 KiB, which costs 5 % more CPU on a fast link.
pub(super) const UNSENT_BYTES_MAX: u32 = 32 << 10;

/// Events that may wait for the driver: some milliseconds of a busy swarm. Most are small; a message
/// is at most 1 MiB, and chunks are bounded by what was expected.
pub(super) const EVENTS_MAX: usize = 256;
