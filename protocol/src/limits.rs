//! Every bound of the exchange, in one place, each with the reason for its value.
//!
//! What an operator may change is in `Config`; these are fixed because
//! two nodes have to agree on them, or because they guard against a peer that misbehaves.

/// Bytes in a chunk of a raw blob, but for the last.
///
/// Simulated p99 over the lower bound at 300 nodes: 2 MiB 1.043, 4 MiB 1.049, 8 MiB 1.061.
pub const CHUNK_BYTES: u64 = 4 << 20;

/// The largest manifest that is accepted. The OCI distribution specification asks registries to
/// accept at least this; it is one chunk, so that a manifest is a blob like any other.
pub const MANIFEST_BYTES_MAX: u64 = CHUNK_BYTES;

/// The largest blob: 4 TiB, over a hundred times the largest image seen. Bounds every bitfield.
pub const BLOB_BYTES_MAX: u64 = 1 << 42;

/// The largest control message on the wire. Membership travels in pages well below it.
pub const CONTROL_FRAME_BYTES_MAX: usize = 1 << 20;

/// How many member records one control message carries at most.
pub const MEMBER_PAGE_MAX: usize = 512;

/// How many addresses a member may publish.
pub const ADDRESSES_MAX: usize = 8;

/// Nodes that a steward remembers as holders of a complete blob.
pub const PROVIDERS_MAX: usize = 64;
