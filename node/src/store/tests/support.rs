//! A store in a temporary directory, and blobs with known bytes.

use std::{path::PathBuf, sync::Arc, time::Duration};

use ed25519_dalek::SigningKey;
use futures::{Stream, StreamExt as _};
use sha2::{Digest as _, Sha256, Sha512};
use shoal_protocol::{
    attest::Attestation,
    chunk::{ChunkHash, Geometry},
    digest::Digest,
    message::BlobKind,
};
use tempfile::TempDir;
use tokio::sync::mpsc;

use crate::{
    content::PullError,
    store::{Blob, Demand, DemandEvent, Store, StoreConfig, Verdict},
};

/// Signs for bytes, as the one node that attests in these tests.
pub(in crate::store) fn attest(digest: &Digest, index: u32, bytes: &[u8]) -> Attestation {
    attest_as(7, digest, index, bytes)
}

/// Signs for bytes as node number `signer`.
pub(in crate::store) fn attest_as(
    signer: u8,
    digest: &Digest,
    index: u32,
    bytes: &[u8],
) -> Attestation {
    let key = SigningKey::from_bytes(&[signer; 32]);
    Attestation::sign(
        &key,
        digest,
        index,
        ChunkHash::of(bytes),
        bytes.len() as u32,
    )
}

/// A blob's bytes, and its digest.
#[derive(Clone)]
pub(super) struct Sample {
    pub(super) digest: Digest,
    pub(super) bytes: Vec<u8>,
}

impl Sample {
    /// `size` bytes that no other seed gives.
    pub(super) fn new(seed: u8, size: u64) -> Self {
        let mut bytes = vec![0; size as usize];
        let mut output = blake3::Hasher::new().update(&[seed]).finalize_xof();
        output.fill(&mut bytes);
        let digest = Digest::sha256(Sha256::digest(&bytes).into());
        Self { digest, bytes }
    }

    pub(super) fn sha512(seed: u8, size: u64) -> Self {
        let bytes = Self::new(seed, size).bytes;
        let digest = Digest::sha512(Sha512::digest(&bytes).into());
        Self { digest, bytes }
    }

    pub(super) fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    pub(super) fn chunks(&self) -> u32 {
        Geometry::new(BlobKind::Blob, self.size()).chunks()
    }

    pub(super) fn chunk(&self, index: u32) -> &[u8] {
        let range = Geometry::new(BlobKind::Blob, self.size()).range(index);
        &self.bytes[range.start as usize..range.end as usize]
    }

    pub(super) fn attestation(&self, index: u32) -> Attestation {
        attest(&self.digest, index, self.chunk(index))
    }

    /// Writes one chunk as it should be.
    pub(super) fn write(&self, blob: &Blob, index: u32) {
        blob.write_chunk(index, self.chunk(index), &self.attestation(index))
            .unwrap();
    }

    /// Begins the blob and writes every chunk.
    pub(super) fn fill(&self, store: &Store) -> Arc<Blob> {
        let blob = store
            .begin(self.digest, BlobKind::Blob, self.size())
            .unwrap();
        for index in 0..self.chunks() {
            self.write(&blob, index);
        }
        blob
    }

    /// Puts the whole blob into the store and into its place there.
    pub(super) async fn complete(&self, store: &Store) {
        let blob = self.fill(store);
        assert_eq!(blob.verify().await, Verdict::Matches);
        store.settle();
    }
}

/// Waits for something that another thread does.
pub(super) async fn until(mut condition: impl FnMut() -> bool) {
    let waited = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waited)
        .await
        .expect("the condition never held");
}

pub(super) fn config(dir: &TempDir) -> StoreConfig {
    StoreConfig {
        dir: dir.path().to_owned(),
        quota_bytes: None,
        min_free_bytes: 0,
        // When the test says so.
        settle_after: Duration::from_secs(3600),
    }
}

pub(super) fn open(dir: &TempDir) -> Store {
    Store::open(&config(dir)).unwrap()
}

pub(super) fn with_quota(dir: &TempDir, quota_bytes: u64) -> Store {
    let quota_bytes = Some(quota_bytes);
    Store::open(&StoreConfig {
        quota_bytes,
        ..config(dir)
    })
    .unwrap()
}

/// The file of a blob that is not complete.
pub(super) fn partial_file(dir: &TempDir, digest: &Digest) -> PathBuf {
    let name = format!("{}-{}", digest.algorithm().name(), digest.hex());
    dir.path().join("partial").join(name)
}

/// The file of a complete blob.
pub(super) fn blob_file(dir: &TempDir, digest: &Digest) -> PathBuf {
    let hex = digest.hex();
    let root = dir.path().join("blobs").join(digest.algorithm().name());
    root.join(&hex[..2]).join(hex)
}

/// Flips a bit of a file.
pub(super) fn flip(path: &PathBuf, offset: u64) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[offset as usize] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

/// A line for one reader, and the driver's end of it.
pub(super) fn demand(reader: u64, capacity: usize) -> (Demand, mpsc::Receiver<DemandEvent>) {
    let (events, received) = mpsc::channel(capacity);
    (Demand::new(events, reader), received)
}

/// A reader of the whole blob whose wishes nobody hears.
pub(super) fn read_all(
    blob: &Arc<Blob>,
) -> impl Stream<Item = Result<bytes::Bytes, PullError>> + Send + Unpin + use<> {
    Box::pin(blob.stream(0..blob.size(), demand(0, 1).0))
}

/// What a stream yields before it would wait, and whether it has ended.
pub(super) async fn drain(
    stream: &mut (impl Stream<Item = Result<bytes::Bytes, PullError>> + Unpin),
    upto: usize,
) -> Vec<u8> {
    let mut out = Vec::new();
    while out.len() < upto {
        let piece = tokio::time::timeout(Duration::from_secs(20), stream.next()).await;
        out.extend_from_slice(&piece.expect("no bytes came").expect("ended").unwrap());
    }
    out
}

/// Asserts that a stream has nothing to give now.
pub(super) async fn assert_waits(
    stream: &mut (impl Stream<Item = Result<bytes::Bytes, PullError>> + Unpin),
) {
    let next = tokio::time::timeout(Duration::from_millis(60), stream.next()).await;
    assert!(next.is_err(), "{next:?}");
}
