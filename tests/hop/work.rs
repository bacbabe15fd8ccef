//! What a daemon does with each byte that it gets, besides moving it.

use std::hint::black_box;
use std::os::unix::fs::FileExt as _;

use sha2::{Digest as _, Sha256};
use shoal_protocol::chunk::ChunkHash;

use super::BLOCK;

/// The hash of each chunk.
pub(crate) fn blake3(blocks: usize) {
    let block = vec![1; BLOCK];
    for _ in 0..blocks {
        black_box(ChunkHash::of(black_box(&block)));
    }
}

/// The digest of the whole blob.
pub(crate) fn sha256(blocks: usize) {
    let block = vec![1; BLOCK];
    let mut hash = Sha256::new();
    for _ in 0..blocks {
        hash.update(black_box(&block));
    }
    black_box(hash.finalize());
}

/// Each chunk to its place in a file, into the page cache, as the store does it.
pub(crate) fn write(blocks: usize) -> Result<(), String> {
    let block = vec![1; BLOCK];
    let file = tempfile::tempfile().map_err(|error| error.to_string())?;
    for at in 0..blocks {
        file.write_all_at(&block, (at * BLOCK) as u64)
            .map_err(|error| error.to_string())?;
    }
    Ok(())
}
