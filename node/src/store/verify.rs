//! The digest of a whole blob, computed while it grows.

use std::sync::Arc;

use sha2::{Digest as _, Sha256, Sha512};
use shoal_protocol::digest::{Algorithm, Digest};
use tokio::task::spawn_blocking;

use super::blob::{Blob, BlobState};

/// Chunks hashed in one go on a blocking thread: 64 MiB, some 50 ms. A verification that is
/// dropped runs on for no longer than that.
const BATCH_CHUNKS: u32 = 16;

/// What became of a verification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// The bytes are those that the digest names. The blob is complete.
    Matches,
    /// They are not: some chunk, whoever vouches for it, is wrong.
    Differs,
}

/// Computes a digest of either algorithm.
pub struct Hasher(Algorithms);

enum Algorithms {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    /// Of no bytes yet.
    pub fn new(algorithm: Algorithm) -> Self {
        Self(match algorithm {
            Algorithm::Sha256 => Algorithms::Sha256(Sha256::new()),
            Algorithm::Sha512 => Algorithms::Sha512(Sha512::new()),
        })
    }

    /// Takes in the bytes that follow.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            Algorithms::Sha256(hasher) => hasher.update(bytes),
            Algorithms::Sha512(hasher) => hasher.update(bytes),
        }
    }

    /// The digest of all bytes.
    pub fn finish(self) -> Digest {
        match self.0 {
            Algorithms::Sha256(hasher) => Digest::sha256(hasher.finalize().into()),
            Algorithms::Sha512(hasher) => Digest::sha512(hasher.finalize().into()),
        }
    }
}

/// A pass over the blob: chunks before `next` are hashed, as they were at `epoch`.
struct Pass {
    hasher: Hasher,
    next: u32,
    epoch: u64,
}

/// What a pass does next.
enum Step {
    /// The blob is complete; someone else has seen to it, or it was from the start.
    Done,
    /// Hash on up to this chunk.
    Hash(u32),
    /// A chunk that is hashed already has changed.
    Restart,
    /// The next chunk is not here.
    Wait,
    /// Every chunk is hashed.
    Conclude,
}

impl Blob {
    /// Waits for every chunk and checks the digest of the whole, hashing the contiguous checked
    /// prefix as it grows. On [`Verdict::Matches`] the blob is complete, at once to all readers;
    /// syncing and moving it follow in the background.
    ///
    /// After [`Verdict::Differs`] it is to be called again once chunks were replaced, and begins
    /// from the start. May be dropped at any time. A second caller waits for the first.
    pub async fn verify(self: &Arc<Self>) -> Verdict {
        let _turn = self.verifying.lock().await;
        let mut progress = self.watch();
        let mut pass = self.new_pass();
        loop {
            progress.borrow_and_update();
            match self.step(&mut pass) {
                Step::Done => return Verdict::Matches,
                Step::Hash(end) => {
                    let blob = Arc::clone(self);
                    pass = match spawn_blocking(move || blob.hash(pass, end)).await {
                        Ok(pass) => pass,
                        Err(error) => match error.try_into_panic() {
                            Ok(panic) => std::panic::resume_unwind(panic),
                            // The runtime is going down, and this task with it.
                            Err(_) => std::future::pending().await,
                        },
                    };
                }
                Step::Restart => pass = self.new_pass(),
                Step::Wait => {
                    // The sender lives in the blob that this borrows.
                    let _ = progress.changed().await;
                }
                Step::Conclude => {
                    let epoch = pass.epoch;
                    if pass.hasher.finish() != self.digest() {
                        return Verdict::Differs;
                    }
                    if self.conclude(epoch) {
                        return Verdict::Matches;
                    }
                    pass = self.new_pass();
                }
            }
        }
    }

    fn new_pass(&self) -> Pass {
        Pass {
            hasher: Hasher::new(self.digest().algorithm()),
            next: 0,
            epoch: self.view().epoch,
        }
    }

    fn step(&self, pass: &mut Pass) -> Step {
        let chunks = self.geometry().chunks();
        let view = self.view();
        if view.state == BlobState::Complete {
            return Step::Done;
        }
        if pass.next > 0 && view.changed_since(pass.epoch, 0..=pass.next - 1) {
            return Step::Restart;
        }
        pass.epoch = view.epoch;
        if pass.next == chunks {
            return Step::Conclude;
        }
        let here = view.have.next_clear(pass.next).unwrap_or(chunks);
        if here > pass.next {
            Step::Hash(here.min(pass.next + BATCH_CHUNKS))
        } else {
            Step::Wait
        }
    }

    /// Hashes on up to chunk `end`; stops before a chunk that the disk does not give.
    fn hash(&self, mut pass: Pass, end: u32) -> Pass {
        while pass.next < end {
            let index = pass.next;
            let read = self.read(self.geometry().range(index));
            let Ok(bytes) = read.inspect_err(|error| {
                tracing::warn!("cannot read chunk {index} of {}: {error}", self.digest());
            }) else {
                // What cannot be read is as good as rotten: it is to be fetched again.
                if let Err(error) = self.drop_chunk(index) {
                    tracing::warn!("{error}");
                }
                break;
            };
            pass.hasher.update(&bytes);
            pass.next += 1;
        }
        pass
    }

    /// Calls the blob complete, if nothing has changed since its digest matched.
    fn conclude(&self, epoch: u64) -> bool {
        {
            let mut view = self.view();
            if view.epoch != epoch || !view.have.is_full() {
                return false;
            }
            self.completed(&mut view);
        }
        self.publish();
        self.settle_later();
        true
    }
}
