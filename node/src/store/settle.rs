//! When complete blobs are made to last: not while chunks come in.
//!
//! A sync keeps the disk and the journal of its file system busy, and whatever else is written
//! waits meanwhile: where eight nodes shared a disk, the first one to complete its image held up
//! the others for a second of seven. So blobs are synced once nothing has been written for a while.
//! Until then they are served as they are, and a restart after a crash hashes them again.

use std::{
    fs::File,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    task::spawn_blocking,
    time::{sleep, timeout},
};

use super::{Entry, Shared, error::StoreError, layout::Home, lock};

/// Blobs that are complete and not yet synced.
pub(super) struct Unsettled {
    after: Duration,
    entries: Mutex<Vec<Arc<Entry>>>,
    writes: AtomicU64,
}

impl Unsettled {
    pub(super) fn new(after: Duration) -> Self {
        Self {
            after,
            entries: Mutex::default(),
            writes: AtomicU64::new(0),
        }
    }

    /// Notes that bytes of some blob were written.
    pub(super) fn wrote(&self) {
        self.writes.fetch_add(1, Ordering::Relaxed);
    }

    fn writes(&self) -> u64 {
        self.writes.load(Ordering::Relaxed)
    }
}

impl Shared {
    /// Syncs this complete blob when the time has come.
    pub(super) fn settle_later(self: &Arc<Self>, entry: &Arc<Entry>) {
        let mut entries = lock(&self.unsettled.entries);
        entries.push(Arc::clone(entry));
        if entries.len() > 1 {
            // The first one's task sees to this one too.
            return;
        }
        drop(entries);
        // Weak, so that waiting does not keep a store open that is no longer used.
        let shared = Arc::downgrade(self);
        let after = self.unsettled.after;
        tokio::spawn(async move {
            let _ = timeout(after * 10, until_quiet(&shared, after)).await;
            if let Some(shared) = shared.upgrade() {
                spawn_blocking(move || shared.settle());
            }
        });
    }

    /// Makes all complete blobs last: synced, then moved to their place. Until then they are
    /// partial blobs to a restart, which hashes them again.
    pub(super) fn settle(&self) {
        let entries = std::mem::take(&mut *lock(&self.unsettled.entries));
        for entry in entries {
            if let Err(error) = self.settle_one(&entry) {
                tracing::warn!(
                    "{} is complete but not in its place, and will be hashed again after a \
                     restart: {error}",
                    entry.digest
                );
            }
        }
    }

    fn settle_one(&self, entry: &Entry) -> Result<(), StoreError> {
        let mut home = lock(&entry.home);
        // It may have been deleted since, or found to be rotten.
        if *home != Some(Home::Partial) || !entry.is_complete() {
            return Ok(());
        }
        let files = self.layout.files(&entry.digest, Home::Partial);
        for path in [&files.data, &files.sidecar] {
            File::open(path)
                .and_then(|file| file.sync_data())
                .map_err(StoreError::at("sync", path))?;
        }
        self.layout.rename(&entry.digest, Home::Blobs)?;
        *home = Some(Home::Blobs);
        Ok(())
    }
}

async fn until_quiet(shared: &Weak<Shared>, after: Duration) {
    let writes = || shared.upgrade().map(|shared| shared.unsettled.writes());
    let mut before = writes();
    loop {
        sleep(after).await;
        let now = writes();
        if now == before {
            return;
        }
        before = now;
    }
}
