//! A chunk on its way from the origin to this node.

use std::sync::Arc;

use shoal_protocol::attest::Attestation;

use super::{blob::Blob, error::StoreError, view::Turn};

/// Writes a chunk that this node itself reads from the origin, in order from its start. Local readers
/// see the bytes at once; the chunk does not count before it is [committed](Self::commit).
///
/// Two reads can be at one chunk: what a lease no longer covers is granted anew before the first read
/// knows. Whoever began last writes; the other does nothing.
///
/// Bytes of a chunk that is dropped before it is committed are taken back. A reader that has had them
/// waits for the chunk, and is broken off if it turns out to hold other bytes.
pub struct Ahead {
    blob: Arc<Blob>,
    index: u32,
    turn: Turn,
    given: u32,
}

impl Ahead {
    /// # Errors
    /// [`StoreError::OutOfPlace`] if the blob has no such chunk.
    pub(super) fn begin(blob: Arc<Blob>, index: u32) -> Result<Self, StoreError> {
        blob.check_index(index)?;
        let turn = blob.view().begin_ahead(index);
        blob.publish();
        Ok(Self {
            blob,
            index,
            turn,
            given: 0,
        })
    }

    /// How many bytes were given.
    pub fn given(&self) -> u32 {
        self.given
    }

    /// Writes the bytes that follow on the last. Does nothing where the chunk is here already, or was
    /// begun anew.
    ///
    /// # Errors
    /// [`StoreError::OutOfPlace`] if they do not fit the chunk; file-system errors.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let Self {
            ref blob,
            index,
            turn,
            given,
        } = *self;
        let _writing = blob.stripe(index);
        let room = blob.geometry().len(index) - given;
        if bytes.len() > room as usize {
            return Err(StoreError::OutOfPlace {
                digest: blob.digest(),
                index,
                offset: given,
            });
        }
        self.given += bytes.len() as u32;
        if !blob.view().is_turn(index, turn) {
            return Ok(());
        }
        blob.put(index, given, bytes)?;
        blob.view().extend_ahead(index, turn, self.given);
        blob.publish();
        Ok(())
    }

    /// Counts the chunk; `false` if it was begun anew, and whoever did so is to commit it.
    ///
    /// # Errors
    /// [`StoreError::Missing`] if bytes are wanting; [`StoreError::Mismatch`] if the attestation
    /// names others; file-system errors. The bytes are taken back then.
    pub fn commit(self, attestation: &Attestation) -> Result<bool, StoreError> {
        let Self {
            ref blob,
            index,
            turn,
            given,
        } = self;
        let _writing = blob.stripe(index);
        if blob.has(index) {
            return Ok(true);
        }
        if !blob.view().is_turn(index, turn) {
            return Ok(false);
        }
        if given != blob.geometry().len(index) {
            return Err(StoreError::Missing {
                digest: blob.digest(),
                index,
            });
        }
        // Read back, and not hashed on the way in: what counts is what the disk gives.
        if !blob.holds(index, attestation) {
            return Err(StoreError::Mismatch {
                digest: blob.digest(),
                index,
            });
        }
        blob.admit(index, attestation)?;
        Ok(true)
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        if self.blob.view().end_ahead(self.index, self.turn) {
            self.blob.publish();
        }
    }
}
