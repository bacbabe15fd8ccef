//! What readers of a blob may see at a moment, and how far each knows of changes.

use std::{collections::BTreeMap, ops::RangeInclusive};

use shoal_protocol::chunk::Bitfield;

use super::blob::BlobState;
use crate::content::PullError;

/// What readers may see. Never locked while the disk works.
pub(super) struct View {
    pub(super) state: BlobState,
    pub(super) have: Bitfield,
    /// Bytes from the start of a chunk that this node itself has read from the origin so far.
    pub(super) ahead: BTreeMap<u32, u32>,
    /// Bytes from the start of a chunk that were in `ahead` at some time, and may have been read.
    pub(super) exposed: BTreeMap<u32, u32>,
    /// The last change of bytes that may have been read, by chunk.
    pub(super) changes: BTreeMap<u32, u64>,
    /// Counts those changes.
    pub(super) epoch: u64,
    /// How often readers were broken off, and why the last time.
    pub(super) failures: u64,
    pub(super) failure: Option<PullError>,
}

/// How far a reader knows of changes and failures.
pub(super) struct Seen {
    pub(super) epoch: u64,
    pub(super) failures: u64,
}

/// What a reader finds at a position.
pub(super) enum Sight {
    /// Bytes up to here.
    Ready(u64),
    /// Nothing yet.
    Wait,
}

impl View {
    pub(super) fn new(have: Bitfield, state: BlobState) -> Self {
        Self {
            state,
            have,
            ahead: BTreeMap::new(),
            exposed: BTreeMap::new(),
            changes: BTreeMap::new(),
            epoch: 0,
            failures: 0,
            failure: None,
        }
    }

    /// Notes that bytes of a chunk that may have been read are no longer what they were.
    pub(super) fn changed(&mut self, index: u32) {
        self.epoch += 1;
        self.changes.insert(index, self.epoch);
    }

    /// Whether bytes of these chunks changed after `epoch`.
    pub(super) fn changed_since(&self, epoch: u64, chunks: RangeInclusive<u32>) -> bool {
        epoch < self.epoch && self.changes.range(chunks).any(|(_, at)| *at > epoch)
    }
}
