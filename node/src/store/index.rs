//! The index: when each blob was last used. Deleting it loses nothing but that.
//!
//! sled 0.34 is opened with care: a damaged database can panic, or with a stray snapshot refuse
//! to open. What cannot be opened is wiped, because the files know all that matters.

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use shoal_protocol::{digest::Digest, wire};

use super::{
    error::StoreError,
    layout::{delete, names},
};

/// sled's own default is 1 GiB; the index of 100,000 blobs takes about 10 MiB.
const CACHE_BYTES: u64 = 16 << 20;

/// How often sled writes to disk, in milliseconds. A crash loses that much of access times.
const FLUSH_EVERY_MS: u64 = 10_000;

/// Access times by blob.
#[derive(Debug)]
pub(super) struct Index(sled::Db);

impl Index {
    /// Opens the index, or what can be saved of it, or a new one.
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let reason = match try_open(path) {
            Ok(index) => return Ok(index),
            Err(reason) => reason,
        };
        tracing::warn!(
            "the index {} does not open ({reason}); trying without its snapshots",
            path.display()
        );
        for name in names(path)? {
            if name.starts_with("snap.") {
                delete(&path.join(name))?;
            }
        }
        let reason = match try_open(path) {
            Ok(index) => return Ok(index),
            Err(reason) => reason,
        };
        tracing::warn!(
            "the index {} does not open ({reason}); making a new one, access times are lost",
            path.display()
        );
        if path.is_dir() {
            fs::remove_dir_all(path).map_err(StoreError::at("delete", path))?;
        } else {
            delete(path)?;
        }
        try_open(path).map_err(|reason| {
            let path = path.to_owned();
            StoreError::Index { path, reason }
        })
    }

    /// When a blob was last used, in seconds since 1970.
    pub(super) fn last_use(&self, digest: &Digest) -> Option<u64> {
        let value = self.0.get(key(digest)).ok()??;
        wire::decode(&value).ok()
    }

    /// Notes when a blob was last used. A failure costs an access time, and is only logged.
    pub(super) fn touch(&self, digest: &Digest, unix_seconds: u64) {
        if let Err(error) = self.0.insert(key(digest), wire::encode(&unix_seconds)) {
            tracing::debug!("cannot note the use of {digest} in the index: {error}");
        }
    }

    /// Forgets a blob.
    pub(super) fn forget(&self, digest: &Digest) {
        if let Err(error) = self.0.remove(key(digest)) {
            tracing::debug!("cannot remove {digest} from the index: {error}");
        }
    }
}

fn key(digest: &Digest) -> Vec<u8> {
    wire::encode(digest)
}

fn try_open(path: &Path) -> Result<Index, String> {
    let opened = catch_unwind(AssertUnwindSafe(|| {
        let db = sled::Config::new()
            .path(path)
            .cache_capacity(CACHE_BYTES)
            .flush_every_ms(Some(FLUSH_EVERY_MS))
            .open()?;
        // Damage in a page shows when it is read; better here than in the middle of a pull.
        for item in db.iter() {
            item?;
        }
        Ok::<_, sled::Error>(db)
    }));
    match opened {
        Ok(Ok(db)) => Ok(Index(db)),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("sled panicked".to_owned()),
    }
}
