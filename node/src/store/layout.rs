//! Where things are in the data directory, and who may open it.
//!
//! ```text
//! VERSION                        format number of the directory
//! LOCK                           held by the daemon that has it open
//! partial/<alg>-<hex>            bytes of a blob that is not complete
//! partial/<alg>-<hex>.chunks     its sidecar
//! blobs/<alg>/<2 hex>/<hex>      bytes of a complete blob
//! blobs/<alg>/<2 hex>/<hex>.chunks
//! staged/<number>                bytes that are being imported, and a sidecar; gone at the next start
//! refs/<2 hex>/<hash>            a tag last seen
//! imports/<2 hex>/<hash>         a tag under which an operator has imported an image
//! index/                         access times (sled); may be deleted
//! ```

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use shoal_protocol::digest::{Algorithm, Digest};

use super::error::StoreError;

/// The format of the data directory that this build writes.
pub(super) const FORMAT: u64 = 1;

/// Which of its two homes a blob's files are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Home {
    /// `partial/`.
    Partial,
    /// `blobs/`.
    Blobs,
}

/// A data directory, locked for this process.
#[derive(Debug)]
pub(super) struct Layout {
    dir: PathBuf,
    /// Closing it gives up the lock.
    _lock: File,
}

/// A blob's two files.
#[derive(Clone, Debug)]
pub(super) struct Files {
    /// The bytes.
    pub(super) data: PathBuf,
    /// The sidecar.
    pub(super) sidecar: PathBuf,
}

impl Layout {
    /// Locks a data directory, making it where it is not there.
    pub(super) fn open(dir: &Path) -> Result<Self, StoreError> {
        // Before anything is created: a directory of a newer version stays as it is.
        let version = dir.join("VERSION");
        let known = match fs::read_to_string(&version) {
            Ok(text) => {
                let found = text
                    .trim()
                    .parse()
                    .map_err(|_| StoreError::NotAVersion(version.clone()))?;
                if found > FORMAT {
                    let dir = dir.to_owned();
                    let supported = FORMAT;
                    return Err(StoreError::Newer {
                        dir,
                        found,
                        supported,
                    });
                }
                true
            }
            Err(error) if error.kind() == ErrorKind::NotFound => false,
            Err(error) => return Err(StoreError::at("read", &version)(error)),
        };
        make_dir(dir)?;
        let path = dir.join("LOCK");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(StoreError::at("open", &path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StoreError::InUse(dir.to_owned())),
            Err(TryLockError::Error(error)) => return Err(StoreError::at("lock", &path)(error)),
        }
        if !known {
            replace(&version, format!("{FORMAT}\n").as_bytes())?;
        }
        let staged = dir.join("staged");
        for name in names(&staged)? {
            delete(&staged.join(name))?;
        }
        for name in ["partial", "blobs", "staged", "refs", "imports"] {
            make_dir(&dir.join(name))?;
        }
        let dir = dir.to_owned();
        Ok(Self { dir, _lock: lock })
    }

    pub(super) fn partial(&self) -> PathBuf {
        self.dir.join("partial")
    }

    pub(super) fn refs(&self) -> PathBuf {
        self.dir.join("refs")
    }

    pub(super) fn imports(&self) -> PathBuf {
        self.dir.join("imports")
    }

    /// Files for bytes that are not in the store yet.
    pub(super) fn staged(&self, number: u64) -> Files {
        let data = self.dir.join("staged").join(number.to_string());
        let sidecar = data.with_added_extension("chunks");
        Files { data, sidecar }
    }

    pub(super) fn index(&self) -> PathBuf {
        self.dir.join("index")
    }

    /// Bytes that the file system still has for us.
    pub(super) fn free_bytes(&self) -> Result<u64, StoreError> {
        free_bytes(&self.dir).map_err(StoreError::at("ask for the free space of", &self.dir))
    }

    /// A blob's files in one of their homes.
    pub(super) fn files(&self, digest: &Digest, home: Home) -> Files {
        let hex = digest.hex();
        let algorithm = digest.algorithm().name();
        let data = match home {
            Home::Partial => self.partial().join(format!("{algorithm}-{hex}")),
            Home::Blobs => self
                .dir
                .join("blobs")
                .join(algorithm)
                .join(&hex[..2])
                .join(hex),
        };
        let sidecar = data.with_added_extension("chunks");
        Files { data, sidecar }
    }

    /// The blobs that have a file of either sort in `home`.
    pub(super) fn digests(&self, home: Home) -> Result<Vec<Digest>, StoreError> {
        let mut found = Vec::new();
        match home {
            Home::Partial => {
                for name in names(&self.partial())? {
                    let name = name.strip_suffix(".chunks").unwrap_or(&name);
                    found.extend(name.replacen('-', ":", 1).parse::<Digest>().ok());
                }
            }
            Home::Blobs => {
                for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
                    let root = self.dir.join("blobs").join(algorithm.name());
                    for prefix in names(&root)? {
                        for name in names(&root.join(prefix))? {
                            let hex = name.strip_suffix(".chunks").unwrap_or(&name);
                            found.extend(format!("{}:{hex}", algorithm.name()).parse::<Digest>());
                        }
                    }
                }
            }
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// Moves a blob from one home to the other.
    ///
    /// The bytes and the sidecar cannot move in one step. Bytes under `blobs/` with no sidecar
    /// beside them are what a crash in between leaves, whichever way the move went.
    pub(super) fn rename(&self, digest: &Digest, to: Home) -> Result<(), StoreError> {
        let partial = self.files(digest, Home::Partial);
        let blobs = self.files(digest, Home::Blobs);
        let steps = match to {
            Home::Blobs => [
                (&partial.data, &blobs.data),
                (&partial.sidecar, &blobs.sidecar),
            ],
            Home::Partial => [
                (&blobs.sidecar, &partial.sidecar),
                (&blobs.data, &partial.data),
            ],
        };
        if let Some(parent) = blobs.data.parent() {
            make_dir(parent)?;
        }
        for (from, to) in steps {
            fs::rename(from, to).map_err(StoreError::at("rename", from))?;
        }
        for path in [&partial.data, &blobs.data] {
            sync_parent(path)?;
        }
        Ok(())
    }
}

impl Files {
    /// Deletes both, if they are there.
    pub(super) fn delete(&self) -> Result<(), StoreError> {
        // The bytes first: what is left of a crash in between is a sidecar, and small.
        delete(&self.data)?;
        delete(&self.sidecar)
    }
}

/// Deletes a file if it is there.
pub(super) fn delete(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(StoreError::at("delete", path)(error))
        }
        _ => Ok(()),
    }
}

/// Makes a directory and those above it.
pub(super) fn make_dir(path: &Path) -> Result<(), StoreError> {
    fs::create_dir_all(path).map_err(StoreError::at("create the directory", path))
}

/// The names in a directory that are text; none if it is not there.
pub(super) fn names(dir: &Path) -> Result<Vec<String>, StoreError> {
    let entries = match fs::read_dir(dir) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        other => other.map_err(StoreError::at("list", dir))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(StoreError::at("list", dir))?;
        names.extend(entry.file_name().into_string().ok());
    }
    Ok(names)
}

/// Puts `bytes` in place of a file, so that a crash leaves the old or the new. The caller sees to
/// it that no two threads replace one file at once.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let new = path.with_added_extension("new");
    let written = (|| {
        let mut file = File::create(&new)?;
        io::Write::write_all(&mut file, bytes)?;
        file.sync_all()?;
        fs::rename(&new, path)
    })();
    written.map_err(StoreError::at("write", path))?;
    sync_parent(path)
}

/// Makes a rename in a file's directory last.
pub(super) fn sync_parent(path: &Path) -> Result<(), StoreError> {
    let Some(parent) = path.parent() else {
        return Ok(());
    };
    File::open(parent)
        .and_then(|dir| dir.sync_all())
        .map_err(StoreError::at("sync", parent))
}

/// Gives a file its size and, where the system can, its place on the disk, so that a full disk
/// shows before the first byte is fetched.
pub(super) fn allocate(file: &File, size: u64) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    if size > 0 {
        use rustix::{fs::FallocateFlags, io::Errno};
        match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, size) {
            Ok(()) => return Ok(()),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
            Err(error) => return Err(error.into()),
        }
    }
    file.set_len(size)
}

/// Bytes that the file system of `dir` still has for whoever is not root.
///
/// # Errors
///
/// What the system says where the directory is not there or may not be looked at.
pub fn free_bytes(dir: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(dir)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}
