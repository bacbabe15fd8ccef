//! What can go wrong in the store, one variant per thing a caller can do something about.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use shoal_protocol::{digest::Digest, limits::BLOB_BYTES_MAX};

/// Why the store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another daemon has the directory open.
    #[error(
        "the data directory {0} is in use by another shoal daemon; stop that one, or give this \
         one its own with --data-dir"
    )]
    InUse(PathBuf),
    /// Written by a newer version. Nothing was touched.
    #[error(
        "the data directory {dir} was written by a newer shoal (format {found}, this build reads \
         up to {supported}); run that version, or give another --data-dir"
    )]
    Newer {
        /// The data directory.
        dir: PathBuf,
        /// The format it says it has.
        found: u64,
        /// The newest format that this build reads.
        supported: u64,
    },
    /// The `VERSION` file is not one. Nothing was touched.
    #[error(
        "{0} does not hold a format number; if this is a shoal data directory, remove that file \
         and start again, otherwise give another --data-dir"
    )]
    NotAVersion(PathBuf),
    /// There is no room, and what could be evicted is in use or not enough.
    #[error(
        "no room for {needed} bytes in the store: {used} bytes are held{}, {free} bytes are free \
         on the disk of which {min_free} stay free; raise the quota or free disk space",
        quota.map(|quota| format!(" of a quota of {quota}")).unwrap_or_default()
    )]
    Full {
        /// Bytes that were to be reserved.
        needed: u64,
        /// Bytes that the store's blobs hold, written or reserved.
        used: u64,
        /// The quota in bytes, where there is one.
        quota: Option<u64>,
        /// Bytes free on the disk.
        free: u64,
        /// Bytes that the store leaves free.
        min_free: u64,
    },
    /// A write found the disk full.
    #[error("the disk is full: cannot {action} {what}; free some space")]
    DiskFull {
        /// What was tried.
        action: &'static str,
        /// On what.
        what: String,
    },
    /// The file system failed.
    #[error("cannot {action} {what}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what: a path, or a chunk of a blob.
        what: String,
        /// The system's reason.
        source: io::Error,
    },
    /// The index could neither be opened nor made anew.
    #[error(
        "cannot open the index {path}, nor make a new one: {reason}; remove it and start again"
    )]
    Index {
        /// Its directory.
        path: PathBuf,
        /// What sled said last.
        reason: String,
    },
    /// The blob is known with another size; [`remove`](super::Store::remove) it to start over.
    #[error("blob {digest} is stored with {known} bytes, not {asked}")]
    Size {
        /// The blob.
        digest: Digest,
        /// The size that the store has.
        known: u64,
        /// The size that was asked for.
        asked: u64,
    },
    /// Larger than any blob may be.
    #[error("blob {digest} of {size} bytes is larger than the {BLOB_BYTES_MAX} bytes allowed")]
    TooLarge {
        /// The blob.
        digest: Digest,
        /// Its size in bytes.
        size: u64,
    },
    /// Fewer or more bytes than the blob has were to be stored as a whole. Nothing was.
    #[error("{digest} has {size} bytes, and {came} came: the file is cut short or damaged")]
    Length {
        /// The blob.
        digest: Digest,
        /// Its size in bytes.
        size: u64,
        /// How many bytes came, at least.
        came: u64,
    },
    /// Bytes that were to be stored as a whole are not those that the digest names. Nothing was stored.
    #[error(
        "the bytes given for {digest} are not those that it names: the file is damaged, or was tampered with"
    )]
    Differs {
        /// The blob.
        digest: Digest,
    },
    /// The bytes are not those that the attestation names, or not as many. Nothing was stored.
    #[error("the bytes of chunk {index} of {digest} are not those that were attested")]
    Mismatch {
        /// The blob.
        digest: Digest,
        /// The chunk.
        index: u32,
    },
    /// The blob has no such chunk, or the chunk no such bytes.
    #[error("bytes at {offset} of chunk {index} of {digest} are out of place")]
    OutOfPlace {
        /// The blob.
        digest: Digest,
        /// The chunk.
        index: u32,
        /// Where in the chunk.
        offset: u32,
    },
    /// The chunk is not here.
    #[error("chunk {index} of {digest} is not in the store")]
    Missing {
        /// The blob.
        digest: Digest,
        /// The chunk.
        index: u32,
    },
}

impl StoreError {
    /// A file-system error, told apart by whether the disk is full.
    pub(super) fn io(action: &'static str, what: &dyn fmt::Display, source: io::Error) -> Self {
        let what = what.to_string();
        if matches!(
            source.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        ) {
            Self::DiskFull { action, what }
        } else {
            Self::Io {
                action,
                what,
                source,
            }
        }
    }

    /// Whether a file was not there.
    pub(super) fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// For `map_err` on an operation on a path.
    pub(super) fn at<'a>(
        action: &'static str,
        path: &'a Path,
    ) -> impl FnOnce(io::Error) -> Self + use<'a> {
        move |source| Self::io(action, &path.display(), source)
    }
}
