//! What this node holds: blobs, complete or on their way, and tags last seen.
//!
//! Goals: a chunk counts only while its bytes hash to what was attested; a blob is complete only
//! after the digest of the whole has matched; a crash at any moment loses no more than the chunks
//! that were being written; a reader follows a blob while it grows.
//!
//! The files are the truth. Each blob has one preallocated file, its chunks at their offsets, and
//! beside it an append-only sidecar that says which chunks were written and who vouches for them.
//! Nothing is synced while a blob is fetched: after a restart every chunk of a partial blob is
//! hashed again before it counts. A complete blob is synced and moved once the disk has nothing
//! better to do, and trusted from then on until a check finds rot. The index holds access times and may be deleted.
//!
//! Everything here blocks, for as long as a disk takes, unless it is `async`: call it from a
//! blocking thread. Locks are fine-grained: what is done to one blob never waits for another, and
//! no reader waits for a writer of the same blob.

mod ahead;
mod blob;
mod demand;
mod error;
mod index;
mod layout;
mod reader;
mod room;
mod settle;
mod sidecar;
mod staged;
mod tags;
#[cfg(test)]
mod tests;
mod verify;
mod view;

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, UNIX_EPOCH},
};

use shoal_protocol::{
    chunk::Geometry,
    digest::Digest,
    limits::BLOB_BYTES_MAX,
    message::{BlobKind, TagKey, TagRecord},
};

pub use self::{
    ahead::Ahead,
    blob::{Blob, BlobState, WRITE_BYTES},
    demand::{Demand, DemandEvent},
    error::StoreError,
    layout::free_bytes,
    room::Usage,
    staged::{Admitted, Staged},
    verify::{Hasher, Verdict},
};
use self::{
    index::Index,
    layout::{Home, Layout},
    room::Room,
    settle::Unsettled,
    sidecar::{Header, Sidecar},
    tags::Tags,
};
use crate::clock;

/// How often the use of one blob is written to the index, in seconds: sled takes several times
/// the space of what is written often.
const TOUCH_EVERY_SECONDS: u64 = 60;

/// How a store is set up.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// The data directory; made where it is not there.
    pub dir: PathBuf,
    /// How many bytes of blobs to hold at most; `None` for as many as the disk takes.
    pub quota_bytes: Option<u64>,
    /// How many bytes of the disk to leave free.
    pub min_free_bytes: u64,
    /// A complete blob is synced once nothing was written for so long; at most ten times as long
    /// after it was complete.
    pub settle_after: Duration,
}

/// The store of this node. Cloning it clones a handle.
#[derive(Clone)]
pub struct Store(Arc<Shared>);

struct Shared {
    layout: Layout,
    index: Index,
    tags: Tags,
    imports: Tags,
    room: Room,
    unsettled: Unsettled,
    entries: Mutex<HashMap<Digest, Arc<Entry>>>,
    /// Complete blobs that are no more, until the driver asks.
    evictions: Mutex<Vec<Digest>>,
    /// Counts uses, so that blobs used in the same second are told apart.
    uses: AtomicU64,
    /// Readers of all blobs.
    readers: AtomicU64,
}

/// What is known of a blob whether or not it is open.
struct Entry {
    digest: Digest,
    kind: BlobKind,
    size: u64,
    complete: AtomicBool,
    /// The store's count of uses at the last one.
    used: AtomicU64,
    /// When its use was last written to the index, in seconds since 1970.
    touched: AtomicU64,
    /// Taken to open, create and delete the blob, so that there is one [`Blob`] per digest.
    slot: Mutex<Slot>,
    /// Where the files are; `None` once they are deleted. Taken to move them.
    home: Mutex<Option<Home>>,
}

/// The life of an entry.
enum Slot {
    /// Nothing is on disk yet.
    New,
    /// On disk, and open if the reference is alive.
    Stored(Weak<Blob>),
    /// Deleted; whoever finds this looks the digest up again.
    Gone,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No lock is held over a step that leaves things half done; go on after a panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Entry {
    fn geometry(&self) -> Geometry {
        Geometry::new(self.kind, self.size)
    }

    fn new(header: &Header, slot: Slot, home: Home, complete: bool) -> Self {
        Self {
            digest: header.digest,
            kind: header.kind,
            size: header.size,
            complete: AtomicBool::new(complete),
            used: AtomicU64::new(0),
            touched: AtomicU64::new(0),
            slot: Mutex::new(slot),
            home: Mutex::new(Some(home)),
        }
    }

    fn header(&self) -> Header {
        Header {
            digest: self.digest,
            kind: self.kind,
            size: self.size,
        }
    }

    fn is_complete(&self) -> bool {
        self.complete.load(Ordering::Acquire)
    }
}

impl Store {
    /// Opens a data directory and finds out what is in it.
    ///
    /// # Errors
    /// [`StoreError::InUse`] while another daemon has it; [`StoreError::Newer`] or
    /// [`StoreError::NotAVersion`], with nothing touched, where it is not for this build to read;
    /// file-system errors.
    pub fn open(config: &StoreConfig) -> Result<Self, StoreError> {
        let layout = Layout::open(&config.dir)?;
        let index = Index::open(&layout.index())?;
        let mut found = scan(&layout, &index)?;
        found.sort_by_key(|entry| entry.touched.load(Ordering::Relaxed));
        let uses = found.len() as u64;
        for (order, entry) in found.iter().enumerate() {
            entry.used.store(order as u64, Ordering::Relaxed);
        }
        let used = found.iter().map(|entry| entry.size).sum();
        let store = Self(Arc::new(Shared {
            tags: Tags::new(layout.refs()),
            imports: Tags::new(layout.imports()),
            room: Room::new(config.quota_bytes, config.min_free_bytes, used),
            unsettled: Unsettled::new(config.settle_after),
            entries: Mutex::new(
                found
                    .into_iter()
                    .map(|entry| (entry.digest, entry))
                    .collect(),
            ),
            evictions: Mutex::default(),
            uses: AtomicU64::new(uses),
            readers: AtomicU64::new(0),
            layout,
            index,
        }));
        match store.0.make_room(0) {
            // A quota that was lowered below what can be evicted is no reason not to start.
            Ok(()) | Err(StoreError::Full { .. }) => Ok(store),
            Err(error) => Err(error),
        }
    }

    /// The complete blobs with their kinds and sizes in bytes, to be announced at the start.
    pub fn complete(&self) -> Vec<(Digest, BlobKind, u64)> {
        let mut complete: Vec<_> = lock(&self.0.entries)
            .values()
            .filter(|entry| entry.is_complete())
            .map(|entry| (entry.digest, entry.kind, entry.size))
            .collect();
        complete.sort_unstable();
        complete
    }

    /// A blob that is here, complete or partial. Counts as a use.
    ///
    /// A partial blob of an earlier run is hashed on the way, at 1 to 4 GB/s.
    pub fn get(&self, digest: &Digest) -> Option<Arc<Blob>> {
        loop {
            let entry = lock(&self.0.entries).get(digest).map(Arc::clone)?;
            let mut slot = lock(&entry.slot);
            match &*slot {
                Slot::Gone => {}
                Slot::New => return None,
                Slot::Stored(_) => {
                    return self
                        .opened(&entry, &mut slot)
                        .inspect_err(|error| tracing::warn!("cannot open {digest}: {error}"))
                        .ok();
                }
            }
        }
    }

    /// The blob to fetch into: the one that is here, resumed after every chunk was hashed again,
    /// or a new one of `size` bytes, for which room is made by evicting what was used least
    /// recently and is not in use.
    ///
    /// # Errors
    /// [`StoreError::Full`] where there is no room; [`StoreError::Size`] where the blob is here
    /// with another size; [`StoreError::TooLarge`]; file-system errors.
    pub fn begin(
        &self,
        digest: Digest,
        kind: BlobKind,
        size: u64,
    ) -> Result<Arc<Blob>, StoreError> {
        if size > BLOB_BYTES_MAX {
            return Err(StoreError::TooLarge { digest, size });
        }
        let header = Header { digest, kind, size };
        loop {
            let entry =
                Arc::clone(lock(&self.0.entries).entry(digest).or_insert_with(|| {
                    Arc::new(Entry::new(&header, Slot::New, Home::Partial, false))
                }));
            let mut slot = lock(&entry.slot);
            match &*slot {
                Slot::Gone => {}
                _ if entry.size != size => {
                    return Err(StoreError::Size {
                        digest,
                        known: entry.size,
                        asked: size,
                    });
                }
                Slot::Stored(_) => match self.opened(&entry, &mut slot) {
                    // Someone has deleted the files under us: begin anew.
                    Err(error) if error.is_not_found() => self.0.delete(&entry, &mut slot)?,
                    other => return other,
                },
                Slot::New => {
                    let created = self.0.make_room(size).and_then(|()| {
                        Blob::create(&self.0, &entry).inspect_err(|_| self.0.room.release(size))
                    });
                    match created {
                        Ok(blob) => {
                            *slot = Slot::Stored(Arc::downgrade(&blob));
                            self.0.used(&entry);
                            return Ok(blob);
                        }
                        Err(error) => {
                            self.0.forget(&entry, &mut slot);
                            return Err(error);
                        }
                    }
                }
            }
        }
    }

    /// Deletes a blob; `false` if it is not here. Whoever has it open can go on reading it, but
    /// what is written to it is lost.
    ///
    /// # Errors
    /// File-system errors.
    pub fn remove(&self, digest: &Digest) -> Result<bool, StoreError> {
        loop {
            let Some(entry) = lock(&self.0.entries).get(digest).map(Arc::clone) else {
                return Ok(false);
            };
            let mut slot = lock(&entry.slot);
            match &*slot {
                Slot::Gone => {}
                Slot::New => return Ok(false),
                Slot::Stored(_) => {
                    self.0.delete(&entry, &mut slot)?;
                    return Ok(true);
                }
            }
        }
    }

    /// Blobs that were complete here and are no more, evicted or rotten, since this was last
    /// called: their stewards want to know. Bounded by the number of blobs that were complete.
    pub fn evictions(&self) -> Vec<Digest> {
        std::mem::take(&mut lock(&self.0.evictions))
    }

    /// Syncs what is complete and was not synced yet: the next start need not hash it again. What
    /// cannot be synced is logged.
    pub fn settle(&self) {
        self.0.settle();
    }

    /// How full the store is.
    ///
    /// # Errors
    /// When the file system does not say how much is free.
    pub fn usage(&self) -> Result<Usage, StoreError> {
        let free = self.0.layout.free_bytes()?;
        let entries = lock(&self.0.entries);
        let blobs = entries.values().filter(|entry| entry.is_complete()).count();
        Ok(Usage {
            bytes_used: self.0.room.used(),
            quota: self.0.room.quota(),
            free,
            blobs,
            partials: entries.len() - blobs,
        })
    }

    /// Remembers what a tag named. On disk when this returns.
    ///
    /// # Errors
    /// File-system errors; the record before then stays.
    pub fn put_tag(&self, key: &TagKey, record: &TagRecord) -> Result<(), StoreError> {
        self.0.tags.put(key, record)
    }

    /// What a tag named when it was last seen.
    pub fn tag(&self, key: &TagKey) -> Option<TagRecord> {
        self.0.tags.get(key)
    }

    /// Remembers under which tag an operator has imported an image, in place of what was imported
    /// before. On disk when this returns.
    ///
    /// # Errors
    /// File-system errors; the record before then stays.
    pub fn put_import(&self, key: &TagKey, record: &TagRecord) -> Result<(), StoreError> {
        self.0.imports.put(key, record)
    }

    /// What was last imported under a tag.
    pub fn import(&self, key: &TagKey) -> Option<TagRecord> {
        self.0.imports.get(key)
    }

    /// How many tags images were imported under.
    ///
    /// # Errors
    /// File-system errors.
    pub fn imports(&self) -> Result<usize, StoreError> {
        self.0.imports.count()
    }

    /// The open blob of an entry that is on disk. The slot is the entry's own.
    fn opened(&self, entry: &Arc<Entry>, slot: &mut Slot) -> Result<Arc<Blob>, StoreError> {
        let open = match slot {
            Slot::Stored(blob) => blob.upgrade(),
            Slot::New | Slot::Gone => None,
        };
        let blob = match open {
            Some(blob) => blob,
            None => Blob::open(&self.0, entry)?,
        };
        *slot = Slot::Stored(Arc::downgrade(&blob));
        self.0.used(entry);
        Ok(blob)
    }
}

impl Shared {
    /// Notes that a blob was used now.
    fn used(&self, entry: &Entry) {
        let order = self.uses.fetch_add(1, Ordering::Relaxed);
        entry.used.store(order, Ordering::Relaxed);
        let now = clock::unix_seconds();
        let touched = entry.touched.load(Ordering::Relaxed);
        if now.abs_diff(touched) >= TOUCH_EVERY_SECONDS {
            entry.touched.store(now, Ordering::Relaxed);
            self.index.touch(&entry.digest, now);
        }
    }

    /// Deletes a blob's files and forgets it. The slot is the entry's own.
    fn delete(&self, entry: &Arc<Entry>, slot: &mut Slot) -> Result<(), StoreError> {
        let mut home = lock(&entry.home);
        if let Some(at) = *home {
            self.layout.files(&entry.digest, at).delete()?;
            *home = None;
        }
        drop(home);
        self.room.release(entry.size);
        self.index.forget(&entry.digest);
        if entry.complete.swap(false, Ordering::AcqRel) {
            self.lost(entry.digest);
        }
        self.forget(entry, slot);
        Ok(())
    }

    /// Takes an entry of which nothing is on disk out of the table.
    fn forget(&self, entry: &Arc<Entry>, slot: &mut Slot) {
        *slot = Slot::Gone;
        lock(&self.entries).remove(&entry.digest);
    }

    /// Notes that a blob that was complete is no more.
    fn lost(&self, digest: Digest) {
        let mut evictions = lock(&self.evictions);
        if !evictions.contains(&digest) {
            evictions.push(digest);
        }
    }
}

/// What is in the directory, last used first to last by `touched`. Finishes or undoes what a crash
/// left in between.
fn scan(layout: &Layout, index: &Index) -> Result<Vec<Arc<Entry>>, StoreError> {
    for digest in layout.digests(Home::Blobs)? {
        let files = layout.files(&digest, Home::Blobs);
        if files.sidecar.exists() {
            if !files.data.exists() {
                files.delete()?;
            }
        } else {
            // A move was broken off. As a partial blob it is hashed again before it counts.
            let partial = layout.files(&digest, Home::Partial);
            fs::rename(&files.data, &partial.data)
                .map_err(StoreError::at("rename", &files.data))?;
        }
    }
    let mut found = Vec::new();
    let mut in_place = HashSet::new();
    for home in [Home::Blobs, Home::Partial] {
        for digest in layout.digests(home)? {
            let files = layout.files(&digest, home);
            let known = home == Home::Partial && in_place.contains(&digest);
            let header = Sidecar::header(&files.sidecar).filter(|header| header.digest == digest);
            let (Some(header), Ok(data), false) = (header, fs::metadata(&files.data), known) else {
                tracing::warn!(
                    "{} cannot be used without its sidecar, or is held twice; deleting it",
                    files.data.display()
                );
                files.delete()?;
                continue;
            };
            let complete = home == Home::Blobs && data.len() == header.size;
            let entry = Entry::new(&header, Slot::Stored(Weak::new()), home, complete);
            let last_use = index.last_use(&digest).unwrap_or_else(|| {
                let since = data.modified().ok().map(|at| at.duration_since(UNIX_EPOCH));
                since
                    .and_then(Result::ok)
                    .map_or(0, |since| since.as_secs())
            });
            entry.touched.store(last_use, Ordering::Relaxed);
            in_place.insert(digest);
            found.push(Arc::new(entry));
        }
    }
    Ok(found)
}
