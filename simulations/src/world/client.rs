//! The client of a host: it pulls a manifest, then its layers, some at a time; and the store that
//! follows.

use std::collections::{BTreeSet, VecDeque};

use shoal_protocol::{
    event::Event,
    message::{BlobKind, OriginFailure},
};

use super::{Happening, World};
use crate::{
    host::{BlobIndex, Pull, store::Stored},
    net::{MILLISECOND, NodeIndex},
};

/// A client that was refused tries again after so long.
const RETRY: u64 = 1000 * MILLISECOND;

/// The one reader of each blob.
const READER: u64 = 1;

impl World {
    /// The client begins, or begins again with what is missing after a restart.
    pub(super) fn start_pull(&mut self, id: NodeIndex) {
        let now = self.net.now();
        let images = self.wanted[id].clone();
        let host = &mut self.hosts[id];
        host.started_at.get_or_insert(now);
        if !host.lives() {
            // It was killed before it began; its restart begins the pull.
            return;
        }
        host.pulls.clear();
        for image in images {
            let image = &self.content.images[image];
            let missing = image.layers.iter().copied().chain([image.manifest]);
            let missing: BTreeSet<BlobIndex> = missing.collect();
            let manifest = image.manifest;
            self.hosts[id].pulls.push(Pull {
                manifest,
                next: VecDeque::new(),
                pulling: BTreeSet::new(),
                missing,
            });
            self.pull(id, manifest);
        }
    }

    /// Asks the machine for a blob.
    pub(super) fn pull(&mut self, id: NodeIndex, index: BlobIndex) {
        let blob = self.content.blob(index);
        let (digest, kind) = (blob.digest, blob.kind);
        let size = (kind == BlobKind::Blob).then_some(blob.size);
        let host = &mut self.hosts[id];
        if !host.lives() {
            return;
        }
        if let Some(pull) = host
            .pulls
            .iter_mut()
            .find(|pull| pull.missing.contains(&index))
        {
            pull.pulling.insert(index);
        }
        let stored =
            host.blobs[usize::from(index)].get_or_insert_with(|| Box::new(Stored::new(kind, size)));
        stored.wanted = true;
        if stored.verified {
            self.blob_done(id, index);
            return;
        }
        if host.full {
            self.abandon(id, index);
            return;
        }
        let (size, have) = (stored.size, stored.have.clone());
        let hint = self.hint.clone();
        self.feed(
            id,
            Event::Pull {
                blob: digest,
                kind,
                size,
                have: Some(have),
                hint,
            },
        );
        self.goes_on(id, index);
    }

    /// The blob's size became known.
    pub(super) fn sized(&mut self, id: NodeIndex, index: BlobIndex, size: u64) {
        if let Some(stored) = self.hosts[id].blob_mut(index) {
            stored.sized(size);
        }
    }

    /// More of a blob is here: the hasher goes on, the reader waits for another chunk.
    pub(super) fn goes_on(&mut self, id: NodeIndex, index: BlobIndex) {
        let now = self.net.now();
        let bytes_per_nano = self.scenario.machine.sha / 1e9;
        let blob = self.content.blob(index).digest;
        let Some(stored) = self.hosts[id].blob_mut(index) else {
            return;
        };
        let hashed = stored.hash(now, bytes_per_nano);
        let end = stored.have.len();
        let reading = stored.reader_moved();
        if let Some(at) = hashed {
            let epoch = self.hosts[id].epoch;
            let hashed = Happening::Hashed {
                host: id as u32,
                epoch,
                blob: index,
            };
            self.net.at(at, hashed);
        }
        if let Some(first) = reading {
            self.fact(
                0,
                id,
                Event::Reading {
                    blob,
                    reader: READER,
                    first,
                    end,
                },
            );
        }
    }

    /// The whole of a blob is hashed.
    pub(super) fn hashed(&mut self, id: NodeIndex, epoch: u32, index: BlobIndex) {
        let host = &mut self.hosts[id];
        if host.epoch != epoch {
            return;
        }
        let Some(stored) = host.blob_mut(index) else {
            return;
        };
        if !stored.have.is_full() || stored.verified {
            // An audit has dropped some of it meanwhile.
            return;
        }
        let blob = self.content.blob(index).digest;
        if !stored.wrong.is_empty() {
            let signers = stored.signers();
            let signers = signers
                .into_iter()
                .map(|signer| self.hosts[signer].record.id)
                .collect();
            self.checkers.mismatched += 1;
            self.feed(id, Event::Mismatched { blob, signers });
            return;
        }
        stored.verified = true;
        let evidence = std::mem::take(&mut stored.evidence);
        self.checkers.verified += 1;
        self.feed(id, Event::Verified { blob });
        self.feed(
            id,
            Event::ReaderGone {
                blob,
                reader: READER,
            },
        );
        self.judge(id, index, &evidence);
        self.blob_done(id, index);
    }

    fn blob_done(&mut self, id: NodeIndex, index: BlobIndex) {
        let parallel = self.scenario.parallel;
        let image = self.content.blob(index).image;
        let layers = &self.content.images[image].layers;
        let host = &mut self.hosts[id];
        let mut begun = Vec::new();
        for pull in &mut host.pulls {
            // An auditor may have a layer before its client asks for it.
            let missed = pull.missing.remove(&index);
            if !pull.pulling.remove(&index) && !missed {
                continue;
            }
            if pull.manifest == index {
                pull.next = layers.iter().copied().collect();
            }
            while pull.pulling.len() < parallel {
                let Some(layer) = pull.next.pop_front() else {
                    break;
                };
                pull.pulling.insert(layer);
                begun.push(layer);
            }
        }
        if host.started_at.is_some() && host.pulls.iter().all(|pull| pull.missing.is_empty()) {
            let now = self.net.now();
            host.done_at.get_or_insert(now);
        }
        for layer in begun {
            self.pull(id, layer);
        }
    }

    /// The machine gave a blob up. The client is told, and tries again.
    pub(super) fn gave_up(&mut self, id: NodeIndex, index: BlobIndex, failure: &OriginFailure) {
        let seconds = self.seconds();
        let short = self.content.blob(index).digest.short();
        let what = format!("{seconds:.3} s: node {id} gave up {short}: {failure:?}");
        self.checkers.gave_up(what);
        self.stop_reads(id, Some(index));
        self.try_again(id, index);
    }

    /// A blob cannot be stored, as the daemon does it: the pull is over, the client is told.
    pub(super) fn abandon(&mut self, id: NodeIndex, index: BlobIndex) {
        self.checkers.abandoned += 1;
        self.stop_reads(id, Some(index));
        let blob = self.content.blob(index).digest;
        self.feed(id, Event::Abandoned { blob });
        self.try_again(id, index);
    }

    fn try_again(&mut self, id: NodeIndex, index: BlobIndex) {
        let Some(stored) = self.hosts[id].blob_mut(index) else {
            return;
        };
        // Whoever asks again opens the file again, which is hashed anew.
        stored.reopened();
        if std::mem::take(&mut stored.wanted) {
            let at = self.net.now() + RETRY;
            self.net.at(at, Happening::Retry(id as u32, index));
        }
    }
}
