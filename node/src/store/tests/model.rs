//! Anything that can happen to a blob, in any order, against a model of it.

use std::{collections::BTreeMap, fs, sync::Arc};

use proptest::prelude::*;
use shoal_protocol::{limits::CHUNK_BYTES_MIN, message::BlobKind};
use tempfile::TempDir;

use super::support::*;
use crate::store::{Ahead, Blob, BlobState, Store, Verdict};

const CHUNKS: u32 = 3;

#[derive(Clone, Debug)]
enum Step {
    /// A chunk comes from a peer: the true bytes, or others well attested.
    Write {
        index: u32,
        truth: bool,
    },
    /// A chunk whose bytes are not the attested ones.
    Damaged {
        index: u32,
    },
    /// A chunk is read from the origin, up to this share of its bytes in sixteenths, and
    /// committed if that is all of them. Others may be reading it.
    Ahead {
        index: u32,
        sixteenths: u32,
        truth: bool,
    },
    /// The first of those who read this chunk reads what is left of it, and commits it.
    Resume {
        index: u32,
    },
    Abandon {
        index: u32,
    },
    Drop {
        index: u32,
    },
    Check {
        index: u32,
    },
    Verify,
    /// What is complete is synced and moved to its place.
    Settle,
    /// The process dies and comes back; so many bytes are torn off the sidecar.
    Crash {
        torn: u8,
    },
    /// The process dies, and a bit of a chunk rots.
    Rot {
        index: u32,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let index = 0..CHUNKS;
    let step = prop_oneof![
        6 => (index.clone(), prop::bool::weighted(0.8))
            .prop_map(|(index, truth)| Step::Write { index, truth }),
        1 => index.clone().prop_map(|index| Step::Damaged { index }),
        4 => (index.clone(), prop_oneof![0..17u32, Just(16)], prop::bool::weighted(0.8))
            .prop_map(|(index, sixteenths, truth)| Step::Ahead { index, sixteenths, truth }),
        2 => index.clone().prop_map(|index| Step::Resume { index }),
        1 => index.clone().prop_map(|index| Step::Abandon { index }),
        2 => index.clone().prop_map(|index| Step::Drop { index }),
        1 => index.clone().prop_map(|index| Step::Check { index }),
        3 => Just(Step::Verify),
        2 => Just(Step::Settle),
        2 => prop_oneof![Just(0u8), any::<u8>()].prop_map(|torn| Step::Crash { torn }),
        1 => index.prop_map(|index| Step::Rot { index }),
    ];
    prop::collection::vec(step, 1..20)
}

/// A store with one blob, and what it should be.
struct World {
    dir: TempDir,
    runtime: tokio::runtime::Runtime,
    truth: Sample,
    lie: Sample,
    open: Option<(Store, Arc<Blob>)>,
    /// The chunks that should count, and whether with the true bytes.
    have: BTreeMap<u32, bool>,
    /// Those who read chunks from the origin, and who of them may write each chunk.
    reads: Vec<Reading>,
    turns: BTreeMap<u32, usize>,
    begun: usize,
    complete: bool,
    /// Complete, and in its place.
    settled: bool,
}

/// A chunk that is being read from the origin.
struct Reading {
    index: u32,
    number: usize,
    truth: bool,
    ahead: Ahead,
}

impl World {
    fn new() -> Self {
        let size = 2 * CHUNK_BYTES_MIN + 321;
        let truth = Sample::new(1, size);
        let lie = Sample {
            digest: truth.digest,
            ..Sample::new(2, size)
        };
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let mut world = Self {
            dir,
            runtime,
            truth,
            lie,
            open: None,
            have: BTreeMap::new(),
            reads: Vec::new(),
            turns: BTreeMap::new(),
            begun: 0,
            complete: false,
            settled: false,
        };
        world.start();
        world
    }

    fn start(&mut self) {
        let store = open(&self.dir);
        let blob = store
            .begin(self.truth.digest, BlobKind::Blob, self.truth.size())
            .unwrap();
        self.open = Some((store, blob));
    }

    fn stop(&mut self) {
        self.reads.clear();
        self.turns.clear();
        let (store, blob) = self.open.take().unwrap();
        drop(store);
        // What runs in the background holds the lock; the crashes in between it has its own test.
        let weak = Arc::downgrade(&blob);
        drop(blob);
        self.runtime.block_on(until(|| weak.strong_count() == 0));
    }

    fn blob(&self) -> Arc<Blob> {
        Arc::clone(&self.open.as_ref().unwrap().1)
    }

    fn sample(&self, truth: bool) -> &Sample {
        if truth { &self.truth } else { &self.lie }
    }

    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Write { index, truth } => {
                let sample = self.sample(truth);
                let new = self
                    .blob()
                    .write_chunk(index, sample.chunk(index), &sample.attestation(index))
                    .unwrap();
                assert_eq!(new, !self.have.contains_key(&index));
                self.arrived(index, truth);
            }
            Step::Damaged { index } => {
                let (bytes, attestation) = (self.lie.chunk(index), self.truth.attestation(index));
                let written = self.blob().write_chunk(index, bytes, &attestation);
                assert!(!written.unwrap_or(false));
            }
            Step::Ahead {
                index,
                sixteenths,
                truth,
            } => {
                let (blob, sample) = (self.blob(), self.sample(truth));
                let chunk = sample.chunk(index);
                let upto = chunk.len() * sixteenths as usize / 16;
                let mut ahead = blob.begin_ahead(index).unwrap();
                ahead.write(&chunk[..upto / 2]).unwrap();
                ahead.write(&chunk[upto / 2..upto]).unwrap();
                self.begun += 1;
                let number = self.begun;
                if !self.have.contains_key(&index) {
                    self.turns.insert(index, number);
                }
                let reading = Reading {
                    index,
                    number,
                    truth,
                    ahead,
                };
                if sixteenths == 16 {
                    self.finish(reading);
                } else {
                    self.reads.push(reading);
                }
            }
            Step::Resume { index } => {
                if let Some(reading) = self.first_read(index) {
                    self.finish(reading);
                }
            }
            Step::Abandon { index } => {
                if let Some(reading) = self.first_read(index)
                    && self.turns.get(&index) == Some(&reading.number)
                {
                    self.turns.remove(&index);
                }
            }
            Step::Drop { index } => {
                let dropped = self.blob().drop_chunk(index).unwrap();
                assert_eq!(dropped, self.have.remove(&index).is_some());
                self.complete &= !dropped;
                self.settled &= !dropped;
            }
            Step::Check { index } => {
                let whole = self.blob().check_chunk(index).unwrap();
                assert_eq!(whole, self.have.contains_key(&index));
            }
            Step::Verify => {
                if self.have.len() == CHUNKS as usize {
                    let blob = self.blob();
                    let verdict = self.runtime.block_on(blob.verify());
                    self.complete = self.have.values().all(|truth| *truth);
                    assert_eq!(verdict == Verdict::Matches, self.complete);
                }
            }
            Step::Settle => {
                self.open.as_ref().unwrap().0.settle();
                self.settled = self.complete;
                let home = blob_file(&self.dir, &self.truth.digest).with_added_extension("chunks");
                assert_eq!(home.exists(), self.complete);
            }
            Step::Crash { torn } => {
                self.stop();
                self.complete = self.settled;
                // What was synced tears no more.
                if !self.settled {
                    let sidecar =
                        partial_file(&self.dir, &self.truth.digest).with_added_extension("chunks");
                    let file = fs::OpenOptions::new().write(true).open(sidecar).unwrap();
                    let len = file.metadata().unwrap().len();
                    file.set_len(len.saturating_sub(u64::from(torn)).max(160))
                        .unwrap();
                }
                self.start();
                let have = self.blob().have();
                if torn == 0 {
                    assert_eq!(have.count() as usize, self.have.len(), "nothing is lost");
                }
                self.forget(torn);
            }
            Step::Rot { index } => {
                self.stop();
                self.complete = self.settled;
                let home = if self.settled {
                    blob_file
                } else {
                    partial_file
                };
                let path = home(&self.dir, &self.truth.digest);
                flip(&path, u64::from(index) * CHUNK_BYTES_MIN + 5);
                self.start();
                if self.complete {
                    assert!(!self.blob().check_chunk(index).unwrap());
                    self.complete = false;
                    self.settled = false;
                }
                self.have.remove(&index);
            }
        }
    }

    fn arrived(&mut self, index: u32, truth: bool) {
        self.have.entry(index).or_insert(truth);
        self.turns.remove(&index);
    }

    fn first_read(&mut self, index: u32) -> Option<Reading> {
        let at = self.reads.iter().position(|read| read.index == index)?;
        Some(self.reads.remove(at))
    }

    fn finish(&mut self, reading: Reading) {
        let Reading {
            index,
            number,
            truth,
            mut ahead,
        } = reading;
        let sample = self.sample(truth);
        ahead
            .write(&sample.chunk(index)[ahead.given() as usize..])
            .unwrap();
        let committed = ahead.commit(&sample.attestation(index)).unwrap();
        let is_its_turn = self.turns.get(&index) == Some(&number);
        assert_eq!(committed, self.have.contains_key(&index) || is_its_turn);
        if is_its_turn {
            self.arrived(index, truth);
        }
    }

    /// A torn tail loses the last words: a chunk that was stored may be gone, and one that was
    /// dropped may be back, where its bytes still hash to what was attested.
    fn forget(&mut self, torn: u8) {
        if torn == 0 || self.complete {
            return;
        }
        let blob = self.blob();
        self.have = blob
            .have()
            .iter()
            .map(|index| {
                let truth = blob.read_chunk(index).unwrap().0 == self.truth.chunk(index);
                (index, truth)
            })
            .collect();
    }

    /// What holds at every moment.
    fn check(&self) {
        let (store, blob) = self.open.as_ref().unwrap();
        let counted: Vec<_> = blob.have().iter().collect();
        assert_eq!(counted, self.have.keys().copied().collect::<Vec<_>>());
        for (index, truth) in &self.have {
            let (bytes, attestation) = blob.read_chunk(*index).unwrap();
            assert!(
                attestation.covers(&bytes),
                "chunk {index} counts and does not hash"
            );
            assert!(attestation.is_signed_for(&self.truth.digest, *index));
            assert!(bytes == self.sample(*truth).chunk(*index));
        }
        assert_eq!(blob.state() == BlobState::Complete, self.complete);
        assert_eq!(!store.complete().is_empty(), self.complete);
        assert_eq!(store.usage().unwrap().bytes_used, self.truth.size());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, max_shrink_iters: 40, ..ProptestConfig::default() })]

    #[test]
    fn a_blob_is_what_was_done_to_it(steps in steps()) {
        let mut world = World::new();
        world.check();
        for step in &steps {
            world.apply(step);
            world.check();
        }
    }
}
