//! What a node does with every byte of a blob: `cargo bench --workspace --bench hot`.
//!
//! The store's figures are those of the page cache: nothing is synced while a blob is fetched.
//! Allocations are counted too, but not what goes through the pool of mapped buffers.

use divan::AllocProfiler;

#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

fn main() {
    divan::main();
}

/// `bytes` that do not compress, and do not repeat within a chunk.
fn sample(bytes: u64) -> Vec<u8> {
    let mut sample = vec![0; bytes as usize];
    blake3::Hasher::new().finalize_xof().fill(&mut sample);
    sample
}

mod hash {
    use divan::{Bencher, black_box, counter::BytesCount};
    use sha2::{Digest as _, Sha256};
    use shoal_protocol::{chunk::ChunkHash, limits::CHUNK_BYTES};

    use super::sample;

    /// Of every chunk, where it is read from the origin and wherever it comes in from a peer.
    #[divan::bench]
    fn blake3_of_4_mib(bencher: Bencher) {
        let chunk = sample(CHUNK_BYTES);
        bencher
            .counter(BytesCount::of_slice(&chunk))
            .bench(|| ChunkHash::of(black_box(&chunk)));
    }

    /// The hash of the whole, of one chunk more: what `store::verify` cannot be faster than.
    #[divan::bench]
    fn sha256_of_4_mib(bencher: Bencher) {
        let chunk = sample(CHUNK_BYTES);
        let mut hasher = Sha256::new();
        bencher
            .counter(BytesCount::of_slice(&chunk))
            .bench_local(|| hasher.update(black_box(&chunk)));
    }
}

mod store {
    use std::{sync::Arc, time::Duration};

    use divan::{Bencher, black_box, counter::BytesCount};
    use ed25519_dalek::SigningKey;
    use sha2::{Digest as _, Sha256};
    use shoal_node::store::{Blob, Store, StoreConfig, Verdict, WRITE_BYTES};
    use shoal_protocol::{
        attest::Attestation, chunk::ChunkHash, digest::Digest, limits::CHUNK_BYTES,
        message::BlobKind,
    };
    use tempfile::TempDir;

    use super::sample;

    /// The smallest blob whose chunks are of 4 MiB has 129 of them.
    const CHUNKS: u32 = 129;

    /// A store in a temporary directory, and a blob in it whose chunks are all alike.
    struct Disk {
        blob: Arc<Blob>,
        chunk: Vec<u8>,
        /// Of any chunk: the store leaves it to its caller to check who signed for which.
        attestation: Attestation,
        _store: Store,
        _dir: TempDir,
    }

    impl Disk {
        /// With no chunk yet.
        fn empty() -> Self {
            let dir = tempfile::tempdir().expect("a temporary directory");
            let store = Store::open(&StoreConfig {
                dir: dir.path().to_owned(),
                quota_bytes: None,
                min_free_bytes: 0,
                // Nothing is synced while something is measured.
                settle_after: Duration::from_secs(3600),
            })
            .expect("a store");
            let chunk = sample(CHUNK_BYTES);
            let mut hasher = Sha256::new();
            for _ in 0..CHUNKS {
                hasher.update(&chunk);
            }
            let digest = Digest::sha256(hasher.finalize().into());
            let size = u64::from(CHUNKS) * CHUNK_BYTES;
            let blob = store
                .begin(digest, BlobKind::Blob, size)
                .expect("room for the blob");
            assert_eq!(blob.geometry().chunks(), CHUNKS);
            let key = SigningKey::from_bytes(&[7; 32]);
            let hash = ChunkHash::of(&chunk);
            Self {
                attestation: Attestation::sign(&key, &digest, 0, hash, chunk.len() as u32),
                blob,
                chunk,
                _store: store,
                _dir: dir,
            }
        }

        /// With every chunk.
        fn full() -> Self {
            let disk = Self::empty();
            for index in 0..CHUNKS {
                disk.write(index);
            }
            disk
        }

        /// As a chunk from a peer is written.
        fn write(&self, index: u32) {
            let is_new = self
                .blob
                .write_chunk(index, &self.chunk, &self.attestation)
                .expect("a chunk to be written");
            assert!(is_new, "chunk {index} was here");
        }

        /// As a chunk from the origin is written: a piece at a time, and read back in the end.
        fn write_ahead(&self, index: u32) {
            let mut ahead = self.blob.begin_ahead(index).expect("the blob has it");
            for piece in self.chunk.chunks(WRITE_BYTES) {
                ahead.write(piece).expect("a piece to be written");
            }
            let committed = ahead.commit(&self.attestation);
            assert!(committed.expect("a chunk to be committed"));
        }
    }

    /// Each time another chunk, whose pages nobody has written before: a new blob after the last.
    fn each_chunk(bencher: Bencher, write: fn(&Disk, u32)) {
        let mut disk = Arc::new(Disk::empty());
        let mut next = 0;
        let input = || {
            if next == CHUNKS {
                disk = Arc::new(Disk::empty());
                next = 0;
            }
            next += 1;
            (Arc::clone(&disk), next - 1)
        };
        bencher
            .counter(BytesCount::new(CHUNK_BYTES))
            .with_inputs(input)
            .bench_local_values(|(disk, index)| write(&disk, index));
    }

    /// Checked on the way.
    #[divan::bench(sample_size = 1)]
    fn write_chunk(bencher: Bencher) {
        each_chunk(bencher, Disk::write);
    }

    #[divan::bench(sample_size = 1)]
    fn write_ahead_and_commit(bencher: Bencher) {
        each_chunk(bencher, Disk::write_ahead);
    }

    /// To be sent. Dropped at once, as after the last byte of it has gone: so its buffer is used
    /// again by the next.
    #[divan::bench]
    fn read_chunk(bencher: Bencher) {
        let disk = Disk::full();
        let mut indices = (0..CHUNKS).cycle();
        bencher
            .counter(BytesCount::new(CHUNK_BYTES))
            .with_inputs(|| indices.next().expect("endless"))
            .bench_local_values(|index| {
                let (bytes, _) = disk.blob.read_chunk(index).expect("a chunk");
                black_box(bytes.len())
            });
    }

    /// The hash of a whole blob, all of whose chunks are here: read again and hashed in order.
    #[divan::bench(sample_count = 10, sample_size = 1)]
    fn verify(bencher: Bencher) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime");
        let disk = Disk::full();
        bencher
            .counter(BytesCount::new(disk.blob.size()))
            .with_inputs(|| {
                // A complete blob is not verified again; one that lost a chunk is, from the start.
                disk.blob.drop_chunk(CHUNKS - 1).expect("a dropped chunk");
                disk.write(CHUNKS - 1);
            })
            .bench_local_values(|()| {
                let verdict = runtime.block_on(disk.blob.verify());
                assert_eq!(verdict, Verdict::Matches);
            });
    }
}
