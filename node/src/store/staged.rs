//! Bytes of a blob from outside the exchange: what an operator imports.
//!
//! They are written beside the store, and are in it only once the digest of the whole has matched:
//! until then nobody can ask for them, so that nothing wrong is ever vouched for, and a file that is
//! damaged or cut short leaves nothing behind.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::FileExt as _,
    sync::{Arc, Weak, atomic::Ordering},
};

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use shoal_protocol::{
    attest::Attestation,
    chunk::{ChunkHash, Geometry},
    digest::Digest,
    limits::BLOB_BYTES_MAX,
    message::BlobKind,
};

use super::{
    Entry, Shared, Slot, Store,
    blob::{Blob, BlobState, WRITE_BYTES},
    error::StoreError,
    layout::{Files, Home, allocate, make_dir, sync_parent},
    lock,
    sidecar::{Header, Sidecar},
    verify::Hasher,
};

/// A blob that is written from its start to its end. Dropped before it is admitted, it leaves nothing.
pub struct Staged {
    shared: Arc<Shared>,
    header: Header,
    geometry: Geometry,
    files: Files,
    data: File,
    sidecar: Sidecar,
    key: SigningKey,
    whole: Hasher,
    chunk: blake3::Hasher,
    /// Bytes written.
    at: u64,
    /// Whether the room that was made for it is the store's now.
    admitted: bool,
}

/// What became of a blob whose digest has matched.
pub enum Admitted {
    /// It is complete.
    Complete,
    /// A pull of it is under way, which has been given these chunks, and completes by itself: index and
    /// length of each.
    Given(Arc<Blob>, Vec<(u32, u32)>),
}

impl Store {
    /// A blob of `size` bytes that is about to be written, for which room is made by evicting what
    /// was used least recently. Its chunks are signed with `key`, this node's own.
    ///
    /// # Errors
    /// As for [`begin`](Self::begin).
    pub fn stage(
        &self,
        digest: Digest,
        kind: BlobKind,
        size: u64,
        key: SigningKey,
    ) -> Result<Staged, StoreError> {
        if size > BLOB_BYTES_MAX {
            return Err(StoreError::TooLarge { digest, size });
        }
        let shared = Arc::clone(&self.0);
        let header = Header { digest, kind, size };
        let geometry = Geometry::new(kind, size);
        let number = shared.uses.fetch_add(1, Ordering::Relaxed);
        let files = shared.layout.staged(number);
        shared.make_room(size)?;
        let made = (|| {
            let sidecar = Sidecar::create(&files.sidecar, &header, geometry.chunks())
                .map_err(StoreError::at("create", &files.sidecar))?;
            let data = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .open(&files.data)
                .map_err(StoreError::at("create", &files.data))?;
            allocate(&data, size).map_err(StoreError::at("allocate", &files.data))?;
            Ok((data, sidecar))
        })();
        match made {
            Ok((data, sidecar)) => Ok(Staged {
                whole: Hasher::new(digest.algorithm()),
                chunk: blake3::Hasher::new(),
                at: 0,
                admitted: false,
                shared,
                header,
                geometry,
                files,
                data,
                sidecar,
                key,
            }),
            Err(error) => {
                shared.room.release(size);
                files.delete()?;
                Err(error)
            }
        }
    }
}

impl Staged {
    /// Writes the bytes that follow.
    ///
    /// # Errors
    /// [`StoreError::Length`] for more than the blob has; file-system errors,
    /// [`StoreError::DiskFull`] among them.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        if self.at + bytes.len() as u64 > self.header.size {
            return Err(self.length(self.at + bytes.len() as u64));
        }
        self.whole.update(bytes);
        for piece in bytes.chunks(WRITE_BYTES) {
            self.data
                .write_all_at(piece, self.at)
                .map_err(StoreError::at("write", &self.files.data))?;
            self.hash_chunks(piece)?;
        }
        Ok(())
    }

    /// Signs for every chunk that ends in these bytes.
    fn hash_chunks(&mut self, mut bytes: &[u8]) -> Result<(), StoreError> {
        while !bytes.is_empty() {
            let index = self.geometry.index_of(self.at);
            let end = self.geometry.range(index).end;
            let (now, rest) = bytes.split_at(bytes.len().min((end - self.at) as usize));
            self.chunk.update(now);
            self.at += now.len() as u64;
            bytes = rest;
            if self.at == end {
                self.sign(index)?;
            }
        }
        Ok(())
    }

    fn sign(&mut self, index: u32) -> Result<(), StoreError> {
        let hash = ChunkHash(*std::mem::take(&mut self.chunk).finalize().as_bytes());
        let len = self.geometry.len(index);
        let signed = Attestation::sign(&self.key, &self.header.digest, index, hash, len);
        self.sidecar
            .append(index, Some(&signed))
            .map_err(StoreError::at("write", &self.files.sidecar))
    }

    /// Takes the blob into the store, synced and complete, if all of it is here and is what its digest
    /// names.
    ///
    /// # Errors
    /// [`StoreError::Length`] or [`StoreError::Differs`] where it is not; [`StoreError::Size`] where
    /// the blob is here with another size; file-system errors. Nothing is left of it then.
    pub fn admit(mut self) -> Result<Admitted, StoreError> {
        let digest = self.header.digest;
        if self.at != self.header.size {
            return Err(self.length(self.at));
        }
        if self.header.size == 0 {
            self.sign(0)?;
        }
        let whole = std::mem::replace(&mut self.whole, Hasher::new(digest.algorithm()));
        if whole.finish() != digest {
            return Err(StoreError::Differs { digest });
        }
        self.data
            .sync_all()
            .map_err(StoreError::at("sync", &self.files.data))?;
        self.sidecar
            .sync()
            .map_err(StoreError::at("sync", &self.files.sidecar))?;
        let shared = Arc::clone(&self.shared);
        loop {
            let entry = Arc::clone(lock(&shared.entries).entry(digest).or_insert_with(|| {
                Arc::new(Entry::new(&self.header, Slot::New, Home::Blobs, false))
            }));
            let mut slot = lock(&entry.slot);
            let open = match &*slot {
                Slot::Gone => continue,
                _ if entry.size != self.header.size => {
                    return Err(StoreError::Size {
                        digest,
                        known: entry.size,
                        asked: self.header.size,
                    });
                }
                Slot::New => {
                    if let Err(error) = self.move_in() {
                        shared.forget(&entry, &mut slot);
                        return Err(error);
                    }
                    *lock(&entry.home) = Some(Home::Blobs);
                    entry.complete.store(true, Ordering::Release);
                    *slot = Slot::Stored(Weak::new());
                    shared.used(&entry);
                    self.admitted = true;
                    return Ok(Admitted::Complete);
                }
                Slot::Stored(blob) => blob.upgrade(),
            };
            match open {
                Some(blob) if blob.state() == BlobState::Partial => {
                    drop(slot);
                    let given = self.give(&blob)?;
                    return Ok(Admitted::Given(blob, given));
                }
                None if !entry.is_complete() => shared.delete(&entry, &mut slot)?,
                Some(_) | None => {
                    shared.used(&entry);
                    return Ok(Admitted::Complete);
                }
            }
        }
    }

    /// Moves both files to where complete blobs are: the sidecar first, as bytes without one would be
    /// taken for a move that was broken off.
    fn move_in(&self) -> Result<(), StoreError> {
        let target = self.shared.layout.files(&self.header.digest, Home::Blobs);
        if let Some(parent) = target.data.parent() {
            make_dir(parent)?;
        }
        for (from, to) in [
            (&self.files.sidecar, &target.sidecar),
            (&self.files.data, &target.data),
        ] {
            fs::rename(from, to).map_err(StoreError::at("rename", from))?;
        }
        sync_parent(&target.data)
    }

    /// Writes what a pull that is under way does not have yet.
    fn give(&self, blob: &Blob) -> Result<Vec<(u32, u32)>, StoreError> {
        let mut given = Vec::new();
        for index in 0..self.geometry.chunks() {
            let Some(attestation) = self.sidecar.get(index) else {
                continue;
            };
            let range = self.geometry.range(index);
            let mut bytes = vec![0; (range.end - range.start) as usize];
            self.data
                .read_exact_at(&mut bytes, range.start)
                .map_err(StoreError::at("read", &self.files.data))?;
            if blob.write_chunk(index, &Bytes::from(bytes), &attestation)? {
                given.push((index, attestation.len));
            }
        }
        Ok(given)
    }

    fn length(&self, came: u64) -> StoreError {
        StoreError::Length {
            digest: self.header.digest,
            size: self.header.size,
            came,
        }
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if self.admitted {
            return;
        }
        self.shared.room.release(self.header.size);
        if let Err(error) = self.files.delete() {
            tracing::warn!("{error}");
        }
    }
}
