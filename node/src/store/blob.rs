//! One open blob: its chunks on disk, and what readers may see of it.

use std::{
    collections::BTreeSet,
    fmt,
    fs::{File, OpenOptions},
    io,
    ops::Range,
    os::unix::fs::FileExt,
    sync::{Arc, Mutex, MutexGuard, atomic::Ordering},
};

use bytes::Bytes;
use shoal_protocol::{
    attest::Attestation,
    chunk::{Bitfield, Geometry},
    digest::Digest,
    directory::NodeId,
    message::BlobKind,
};
use tokio::sync::watch;

use super::{
    Entry, Shared,
    ahead::Ahead,
    error::StoreError,
    layout::{Home, allocate},
    lock,
    sidecar::Sidecar,
    view::{Seen, Sight, View},
};
use crate::{content::PullError, piece};

/// How many chunks of one blob can be written at once.
const STRIPES: usize = 16;

/// Bytes written at once. The page cache takes as large a piece of memory for each write as it
/// finds, and the largest are those that a virtual machine's host has yet to back: 2 GiB cost
/// 0.16 CPU-s/GB in writes of 64 KiB, 0.43 in writes of 256 KiB, 1.40 in writes of 1 MiB. Where
/// all memory is backed they cost the same.
pub const WRITE_BYTES: usize = 64 << 10;

/// Whether a blob's digest has matched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlobState {
    /// Chunks are missing, or the digest of the whole has not matched yet.
    Partial,
    /// Every chunk is here and the digest of the whole has matched.
    Complete,
}

/// An open blob. While anyone holds it, it is not evicted.
pub struct Blob {
    shared: Arc<Shared>,
    entry: Arc<Entry>,
    pub(super) data: Arc<File>,
    sidecar: Mutex<Sidecar>,
    /// Whoever changes the bytes of a chunk holds the stripe of its index.
    stripes: [Mutex<()>; STRIPES],
    view: Mutex<View>,
    /// Counts changes of the view, for those who wait.
    progress: watch::Sender<u64>,
    /// One verification at a time.
    pub(super) verifying: tokio::sync::Mutex<()>,
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let view = self.view();
        write!(
            f,
            "{:?} {:?} {:?}",
            self.entry.digest, view.state, view.have
        )
    }
}

impl Blob {
    /// Makes the files of a new blob, for which room was made.
    pub(super) fn create(
        shared: &Arc<Shared>,
        entry: &Arc<Entry>,
    ) -> Result<Arc<Self>, StoreError> {
        let files = shared.layout.files(&entry.digest, Home::Partial);
        let chunks = entry.geometry().chunks();
        let made = (|| {
            let sidecar = Sidecar::create(&files.sidecar, &entry.header(), chunks)
                .map_err(StoreError::at("create", &files.sidecar))?;
            let data = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .open(&files.data)
                .map_err(StoreError::at("create", &files.data))?;
            allocate(&data, entry.size).map_err(StoreError::at("allocate", &files.data))?;
            Ok((data, sidecar))
        })();
        match made {
            Ok((data, sidecar)) => {
                let view = View::new(Bitfield::new(chunks), BlobState::Partial);
                Ok(Self::assemble(shared, entry, data, sidecar, view))
            }
            Err(error) => {
                files.delete()?;
                Err(error)
            }
        }
    }

    /// Opens a blob that is on disk. One that is not known to be complete is hashed chunk by
    /// chunk: what does not match its attestation does not count.
    pub(super) fn open(shared: &Arc<Shared>, entry: &Arc<Entry>) -> Result<Arc<Self>, StoreError> {
        let chunks = entry.geometry().chunks();
        // Held until both files are open: a complete blob is moved when the store settles.
        let home = lock(&entry.home);
        let files = shared
            .layout
            .files(&entry.digest, home.unwrap_or(Home::Partial));
        let data = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&files.data)
            .map_err(StoreError::at("open", &files.data))?;
        let sidecar = Sidecar::open(&files.sidecar, chunks)
            .map_err(StoreError::at("read", &files.sidecar))?;
        drop(home);
        let whole = entry.is_complete() && sidecar.is_full();
        if whole {
            let view = View::new(Bitfield::full(chunks), BlobState::Complete);
            return Ok(Self::assemble(shared, entry, data, sidecar, view));
        }
        allocate(&data, entry.size).map_err(StoreError::at("allocate", &files.data))?;
        let view = View::new(Bitfield::new(chunks), BlobState::Partial);
        let blob = Self::assemble(shared, entry, data, sidecar, view);
        blob.demote()?;
        for index in 0..chunks {
            let Some(attestation) = blob.recorded(index) else {
                continue;
            };
            if blob.holds(index, &attestation) {
                lock(&blob.view).have.insert(index);
            } else {
                blob.append(index, None)?;
            }
        }
        Ok(blob)
    }

    fn assemble(
        shared: &Arc<Shared>,
        entry: &Arc<Entry>,
        data: File,
        sidecar: Sidecar,
        view: View,
    ) -> Arc<Self> {
        Arc::new(Self {
            shared: Arc::clone(shared),
            entry: Arc::clone(entry),
            data: Arc::new(data),
            sidecar: Mutex::new(sidecar),
            stripes: std::array::from_fn(|_| Mutex::new(())),
            view: Mutex::new(view),
            progress: watch::Sender::new(0),
            verifying: tokio::sync::Mutex::new(()),
        })
    }

    /// Its name.
    pub fn digest(&self) -> Digest {
        self.entry.digest
    }

    /// Manifest or not.
    pub fn kind(&self) -> BlobKind {
        self.entry.kind
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.entry.size
    }

    /// How it is cut into chunks.
    pub fn geometry(&self) -> Geometry {
        self.entry.geometry()
    }

    /// The chunks that are here and were checked.
    pub fn have(&self) -> Bitfield {
        self.view().have.clone()
    }

    /// Whether its digest has matched.
    pub fn state(&self) -> BlobState {
        self.view().state
    }

    /// Stores a chunk; `false` if it was here. The caller has checked the attestation's signature;
    /// that the bytes are the attested ones is checked here.
    ///
    /// # Errors
    /// [`StoreError::Mismatch`] if they are not; [`StoreError::OutOfPlace`] if there is no such
    /// chunk; file-system errors, [`StoreError::DiskFull`] among them. Nothing is stored then.
    pub fn write_chunk(
        &self,
        index: u32,
        bytes: &[u8],
        attestation: &Attestation,
    ) -> Result<bool, StoreError> {
        self.check_index(index)?;
        if self.has(index) {
            return Ok(false);
        }
        if bytes.len() != self.geometry().len(index) as usize || !attestation.covers(bytes) {
            return Err(StoreError::Mismatch {
                digest: self.digest(),
                index,
            });
        }
        let _writing = self.stripe(index);
        if self.has(index) {
            return Ok(false);
        }
        self.put(index, 0, bytes)?;
        self.admit(index, attestation)?;
        Ok(true)
    }

    /// Begins to write a chunk that this node itself reads from the origin.
    ///
    /// # Errors
    /// [`StoreError::OutOfPlace`] if there is no such chunk.
    pub fn begin_ahead(self: &Arc<Self>, index: u32) -> Result<Ahead, StoreError> {
        Ahead::begin(Arc::clone(self), index)
    }

    /// A chunk and who vouches for it, to be sent to a peer. Not hashed again: the receiver does.
    ///
    /// # Errors
    /// [`StoreError::Missing`] if it is not here; file-system errors.
    pub fn read_chunk(&self, index: u32) -> Result<(Bytes, Attestation), StoreError> {
        let attestation = self.attestation(index).ok_or(StoreError::Missing {
            digest: self.digest(),
            index,
        })?;
        let bytes = self
            .read(self.geometry().range(index))
            .map_err(|error| self.io("read", index, error))?;
        Ok((bytes, attestation))
    }

    /// Who vouches for a chunk that is here.
    pub fn attestation(&self, index: u32) -> Option<Attestation> {
        self.has(index).then(|| self.recorded(index))?
    }

    /// Everyone who vouches for a chunk that is here.
    pub fn signers(&self) -> Vec<NodeId> {
        let signers: BTreeSet<_> = self
            .have()
            .iter()
            .filter_map(|index| Some(self.attestation(index)?.signer))
            .collect();
        signers.into_iter().collect()
    }

    /// Hashes a chunk again. One that is rotten is dropped, and a complete blob becomes partial.
    /// `false` if the chunk is rotten or not here.
    ///
    /// # Errors
    /// File-system errors on the way of dropping it.
    pub fn check_chunk(&self, index: u32) -> Result<bool, StoreError> {
        {
            let _writing = self.stripe(index);
            if !self.has(index) {
                return Ok(false);
            }
            if self
                .recorded(index)
                .is_some_and(|attestation| self.holds(index, &attestation))
            {
                return Ok(true);
            }
        }
        tracing::warn!(
            "chunk {index} of {} is rotten on disk; dropping it",
            self.digest()
        );
        self.drop_chunk(index)?;
        Ok(false)
    }

    /// Drops a chunk, to be fetched again; `false` if it was not here. A complete blob becomes
    /// partial. Readers that have had bytes of the chunk are broken off.
    ///
    /// # Errors
    /// File-system errors; the chunk does not count even so.
    pub fn drop_chunk(&self, index: u32) -> Result<bool, StoreError> {
        let was_complete = {
            let _writing = self.stripe(index);
            let was_complete = {
                let mut view = self.view();
                if !view.have.remove(index) {
                    return Ok(false);
                }
                view.changed(index);
                std::mem::replace(&mut view.state, BlobState::Partial) == BlobState::Complete
            };
            self.publish();
            self.append(index, None)?;
            was_complete
        };
        if was_complete {
            self.demote()?;
        }
        Ok(true)
    }

    /// Breaks off all who read it now with this error. Who comes later reads again.
    pub fn fail(&self, error: PullError) {
        {
            let mut view = self.view();
            view.failures += 1;
            view.failure = Some(error);
        }
        self.publish();
    }

    /// Bytes of the file, checked or not.
    pub(super) fn read(&self, range: Range<u64>) -> io::Result<Bytes> {
        piece::read(&self.data, range)
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    pub(super) fn view(&self) -> MutexGuard<'_, View> {
        lock(&self.view)
    }

    pub(super) fn watch(&self) -> watch::Receiver<u64> {
        self.progress.subscribe()
    }

    /// Tells those who wait that the view has changed.
    pub(super) fn publish(&self) {
        self.progress.send_modify(|count| *count += 1);
    }

    /// What a new reader knows.
    pub(super) fn seen(&self) -> Seen {
        let view = self.view();
        Seen {
            epoch: view.epoch,
            failures: view.failures,
        }
    }

    /// How far a reader can read from `at`, on the way to `end`. The last byte of a blob is held
    /// back until its digest has matched.
    pub(super) fn sight(&self, at: u64, end: u64) -> Sight {
        let view = self.view();
        let visible = match (
            view.state,
            view.have.next_clear(self.geometry().index_of(at)),
        ) {
            (BlobState::Complete, _) => self.size(),
            (BlobState::Partial, None) => self.size().saturating_sub(1),
            (BlobState::Partial, Some(index)) => {
                let visible = self.geometry().range(index).start + u64::from(view.ahead(index));
                visible.min(self.size().saturating_sub(1))
            }
        };
        let empty_and_whole = self.size() == 0 && view.state == BlobState::Complete;
        if visible.min(end) > at || empty_and_whole || (at == end && self.size() > 0) {
            Sight::Ready(visible.min(end).max(at))
        } else {
            Sight::Wait
        }
    }

    /// Whether a reader that has read these bytes may go on.
    pub(super) fn vouch(&self, seen: &mut Seen, read: Range<u64>) -> Result<(), PullError> {
        let view = self.view();
        if seen.failures < view.failures
            && let Some(error) = &view.failure
        {
            return Err(error.clone());
        }
        let chunks =
            self.geometry().index_of(read.start)..=self.geometry().index_of(read.end.max(1) - 1);
        if !read.is_empty() && view.changed_since(seen.epoch, chunks) {
            return Err(PullError::Corrupt(format!(
                "bytes of {} that were already sent turned out to be wrong; pull again",
                self.digest()
            )));
        }
        seen.epoch = view.epoch;
        Ok(())
    }

    /// Has a complete blob synced and moved to its place in the background.
    pub(super) fn settle_later(&self) {
        self.shared.settle_later(&self.entry);
    }

    /// Says that the digest has matched. The caller has the view.
    pub(super) fn completed(&self, view: &mut View) {
        view.state = BlobState::Complete;
        self.entry.complete.store(true, Ordering::Release);
    }

    /// A blob that is not complete, or no more, is kept with the partial ones.
    fn demote(&self) -> Result<(), StoreError> {
        {
            let view = self.view();
            if view.state == BlobState::Partial && self.entry.complete.swap(false, Ordering::AcqRel)
            {
                self.shared.lost(self.digest());
            }
        }
        let mut home = lock(&self.entry.home);
        // It may have been completed again by another thread meanwhile.
        if *home == Some(Home::Blobs) && self.state() == BlobState::Partial {
            self.shared.layout.rename(&self.digest(), Home::Partial)?;
            *home = Some(Home::Partial);
        }
        Ok(())
    }

    /// Writes bytes of a chunk. Where readers may have had others in their place, those readers
    /// are told. The caller holds the stripe.
    pub(super) fn put(&self, index: u32, offset: u32, bytes: &[u8]) -> Result<(), StoreError> {
        let start = self.geometry().range(index).start + u64::from(offset);
        let exposed = self.view().exposed.get(&index).copied().unwrap_or(0);
        let overlap = exposed.saturating_sub(offset).min(bytes.len() as u32);
        let differs = overlap > 0
            && self
                .read(start..start + u64::from(overlap))
                .map_err(|error| self.io("read", index, error))?
                != bytes[..overlap as usize];
        if differs {
            // Nobody may begin to read the old bytes any more.
            self.view().hide_ahead(index);
        }
        let written = self.write(start, bytes);
        if differs {
            self.view().changed(index);
        }
        written.map_err(|error| self.io("write", index, error))
    }

    fn write(&self, start: u64, bytes: &[u8]) -> io::Result<()> {
        self.shared.unsettled.wrote();
        let starts = (start..).step_by(WRITE_BYTES);
        starts
            .zip(bytes.chunks(WRITE_BYTES))
            .try_for_each(|(at, piece)| self.data.write_all_at(piece, at))
    }

    /// Counts a chunk whose bytes are written and checked. The caller holds the stripe.
    pub(super) fn admit(&self, index: u32, attestation: &Attestation) -> Result<(), StoreError> {
        self.append(index, Some(attestation))?;
        {
            let mut view = self.view();
            view.have.insert(index);
            view.ahead.remove(&index);
            view.exposed.remove(&index);
        }
        self.publish();
        Ok(())
    }

    fn append(&self, index: u32, attestation: Option<&Attestation>) -> Result<(), StoreError> {
        lock(&self.sidecar)
            .append(index, attestation)
            .map_err(|error| self.io("record", index, error))
    }

    fn recorded(&self, index: u32) -> Option<Attestation> {
        lock(&self.sidecar).get(index)
    }

    /// Whether the disk holds what is attested.
    pub(super) fn holds(&self, index: u32, attestation: &Attestation) -> bool {
        attestation.len == self.geometry().len(index)
            && self
                .read(self.geometry().range(index))
                .is_ok_and(|bytes| attestation.covers(&bytes))
    }

    pub(super) fn has(&self, index: u32) -> bool {
        self.view().have.contains(index)
    }

    pub(super) fn stripe(&self, index: u32) -> MutexGuard<'_, ()> {
        lock(&self.stripes[index as usize % STRIPES])
    }

    pub(super) fn check_index(&self, index: u32) -> Result<(), StoreError> {
        if index < self.geometry().chunks() {
            Ok(())
        } else {
            Err(StoreError::OutOfPlace {
                digest: self.digest(),
                index,
                offset: 0,
            })
        }
    }

    fn io(&self, action: &'static str, index: u32, error: io::Error) -> StoreError {
        StoreError::io(
            action,
            &format_args!("chunk {index} of {}", self.digest()),
            error,
        )
    }
}
