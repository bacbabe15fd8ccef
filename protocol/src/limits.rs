//! Every bound of the exchange, in one place, each with the reason for its value.
//!
//! What an operator may change is in `Config`; these are fixed because
//! two nodes have to agree on them, or because they guard against a peer that misbehaves.

/// The largest chunk, and the only chunk of a manifest.
///
/// Simulated p99 over the lower bound at 300 nodes with 10 Gbit/s and a 10 GB blob: 2 MiB 1.043,
/// 4 MiB 1.049, 8 MiB 1.061.
pub const CHUNK_BYTES: u64 = 4 << 20;

/// The smallest chunk, of small blobs: what a pull takes over its lower bound is a number of chunk
/// times, and a chunk of 4 MiB takes a third of a second at 100 Mbit/s. 16 nodes on such links end
/// after 1.39 times the bound with 1 MiB for 160 MiB in 5 layers, after 1.22 with 256 KiB.
pub const CHUNK_BYTES_MIN: u64 = 256 << 10;

/// A blob is cut into at least so many chunks, as long as they are not below the smallest. 16 nodes
/// with 1 GiB in 5 layers on links of 50 Mbit/s and 20 ms end after 1.105 times the bound with 512,
/// 1.067 with 1024 \[sim\].
pub const CHUNKS_MIN: u64 = 1024;

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

/// The longest token that members share: a request's head with a longer one is refused by most
/// servers (nginx takes 8 KiB in a line, Apache as much, Go's 1 MiB in all).
pub const TOKEN_BYTES_MAX: usize = 16 << 10;

/// The longest URL of a registry in a message.
pub const REGISTRY_URL_BYTES_MAX: usize = 2048;
