//! What readers of a blob may see at a moment, and how far each knows of changes.

use std::{collections::BTreeMap, ops::RangeInclusive};

use shoal_protocol::chunk::Bitfield;

use super::blob::BlobState;
use crate::content::PullError;

/// What readers may see. Never locked while the disk works.
pub(super) struct View {
    pub(super) state: BlobState,
    pub(super) have: Bitfield,
    /// Chunks that this node itself reads from the origin.
    pub(super) ahead: BTreeMap<u32, Progress>,
    /// Counts those that were begun.
    turns: u64,
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

/// Who writes a chunk that is read from the origin: the one that began it last.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Turn(u64);

/// How much of a chunk is here that is read from the origin.
pub(super) struct Progress {
    turn: Turn,
    /// Bytes from its start.
    end: u32,
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
            turns: 0,
            exposed: BTreeMap::new(),
            changes: BTreeMap::new(),
            epoch: 0,
            failures: 0,
            failure: None,
        }
    }

    /// How many bytes of a chunk are here, where it is being read from the origin.
    pub(super) fn ahead(&self, index: u32) -> u32 {
        self.ahead.get(&index).map_or(0, |progress| progress.end)
    }

    /// Whoever began the chunk before writes no more of it; nobody does where it is here.
    pub(super) fn begin_ahead(&mut self, index: u32) -> Turn {
        self.turns += 1;
        let turn = Turn(self.turns);
        if !self.have.contains(index) {
            self.ahead.insert(index, Progress { turn, end: 0 });
        }
        turn
    }

    pub(super) fn is_turn(&self, index: u32, turn: Turn) -> bool {
        let progress = self.ahead.get(&index);
        progress.is_some_and(|progress| progress.turn == turn)
    }

    /// Shows bytes up to `end`, unless the chunk was begun anew or is here.
    pub(super) fn extend_ahead(&mut self, index: u32, turn: Turn, end: u32) {
        let progress = self.ahead.get_mut(&index);
        if let Some(progress) = progress.filter(|progress| progress.turn == turn) {
            progress.end = end;
            let exposed = self.exposed.entry(index).or_default();
            *exposed = end.max(*exposed);
        }
    }

    /// Shows nothing of the chunk until more is written.
    pub(super) fn hide_ahead(&mut self, index: u32) {
        if let Some(progress) = self.ahead.get_mut(&index) {
            progress.end = 0;
        }
    }

    /// Takes back what was written; `false` if there is nothing, or the chunk was begun anew.
    pub(super) fn end_ahead(&mut self, index: u32, turn: Turn) -> bool {
        self.is_turn(index, turn) && self.ahead.remove(&index).is_some()
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
