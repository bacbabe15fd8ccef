//! Objects by their keys, in a directory or a bucket.

use std::{
    error::Error as _,
    fs,
    io::{self, Seek, SeekFrom},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::{
    Error, GetOptions, GetRange, GetResult, GetResultPayload, ObjectStore, local::LocalFileSystem,
    path::Path as Key,
};
use tokio::{io::AsyncReadExt, time::timeout};
use tokio_util::io::ReaderStream;

use crate::origin::{
    OriginBody,
    body::{self, Pieces},
    error::OriginError,
    limits::{COLLECT_TIMEOUT, FILE_READ_BYTES, HEADERS_TIMEOUT},
    transport::chain,
};

/// A place with objects in it. Cheap to clone.
#[derive(Clone)]
pub(super) struct Bucket {
    store: Arc<dyn ObjectStore>,
    /// What all keys begin with.
    prefix: Key,
    /// The directory's own path, which no symbolic link may leave.
    local: Option<PathBuf>,
}

impl Bucket {
    /// A directory of this host.
    pub(super) async fn directory(path: &Path, subject: &str) -> Result<Self, OriginError> {
        let path = path.to_owned();
        let open = move || -> io::Result<_> {
            let root = fs::canonicalize(path)?;
            // Without this a file would be taken for an empty directory.
            fs::read_dir(&root)?;
            let store = LocalFileSystem::new_with_prefix(&root).map_err(io::Error::other)?;
            Ok((store, root))
        };
        let (store, root) = elsewhere(open, subject).await?;
        Ok(Self {
            store: Arc::new(store),
            prefix: Key::default(),
            local: Some(root),
        })
    }

    /// What is below `prefix` in a store elsewhere.
    pub(super) fn remote(store: Arc<dyn ObjectStore>, prefix: Key) -> Self {
        Self {
            store,
            prefix,
            local: None,
        }
    }

    /// A small object.
    pub(super) async fn whole(
        &self,
        key: &str,
        max: u64,
        subject: &str,
    ) -> Result<Bytes, OriginError> {
        let answer = self.get(key, GetOptions::default(), subject).await?;
        if answer.meta.size > max {
            return Err(body::too_large(subject, max));
        }
        let stream = pieces(answer, subject)?;
        body::gather(stream, subject).await
    }

    /// The size of an object in bytes.
    pub(super) async fn size(&self, key: &str, subject: &str) -> Result<u64, OriginError> {
        let options = GetOptions {
            head: true,
            ..GetOptions::default()
        };
        Ok(self.get(key, options, subject).await?.meta.size)
    }

    /// The bytes of an object of at most `max` bytes, from `start` up to `end`; see
    /// [`Origins::read`](crate::origin::Origins::read).
    pub(super) async fn read(
        &self,
        key: &str,
        start: u64,
        end: Option<u64>,
        max: u64,
        subject: &str,
    ) -> Result<OriginBody, OriginError> {
        let range = match end {
            Some(end) if end <= start => {
                return Err(OriginError::Invalid(format!(
                    "{subject}: a range from byte {start} that ends before it"
                )));
            }
            Some(end) => Some(GetRange::Bounded(start..end)),
            None if start == 0 => None,
            None => Some(GetRange::Offset(start)),
        };
        let whole = range.is_none();
        let options = GetOptions {
            range,
            ..GetOptions::default()
        };
        let answer = match self.get(key, options, subject).await {
            // Every range lies outside an object that has ended, and outside an empty one.
            Err(error @ (OriginError::Unreachable(_) | OriginError::Invalid(_))) if !whole => {
                return match self.size(key, subject).await? {
                    0 if start == 0 => Ok(OriginBody {
                        start: 0,
                        whole: true,
                        size: Some(0),
                        stream: stream::empty().boxed(),
                    }),
                    size if size <= start => Err(OriginError::Invalid(format!(
                        "{subject}: asked for bytes from {start} on, there are {size}"
                    ))),
                    _ => Err(error),
                };
            }
            answer => answer?,
        };
        let size = answer.meta.size;
        if size > max {
            return Err(body::too_large(subject, max));
        }
        let expected = start..end.map_or(size, |end| end.min(size));
        if answer.range != expected {
            return Err(OriginError::Invalid(format!(
                "{subject}: asked for bytes {expected:?}, the answer is {:?}",
                answer.range
            )));
        }
        Ok(OriginBody {
            start,
            whole,
            size: Some(size),
            stream: pieces(answer, subject)?,
        })
    }

    /// The names of what is directly below a key and has something below itself; none where there is
    /// nothing.
    pub(super) async fn names(&self, key: &str, subject: &str) -> Result<Vec<String>, OriginError> {
        if let Some(root) = &self.local {
            let path = root.join(key);
            let real = elsewhere(move || present(fs::canonicalize(path)), subject).await?;
            let Some(real) = real else {
                return Ok(Vec::new());
            };
            check_inside(root, &real, subject)?;
        }
        let key = self.key(key, subject)?;
        let list = timeout(COLLECT_TIMEOUT, self.store.list_with_delimiter(Some(&key)))
            .await
            .map_err(|_| no_answer(subject, COLLECT_TIMEOUT.as_secs()))?
            .map_err(|error| failure(&error, subject))
            .map_err(missing)?;
        let names = list.common_prefixes.iter().filter_map(Key::filename);
        Ok(names.map(ToOwned::to_owned).collect())
    }

    fn key(&self, key: &str, subject: &str) -> Result<Key, OriginError> {
        Key::parse(format!("{}/{key}", self.prefix))
            .map_err(|problem| OriginError::Invalid(format!("{subject}: {problem}")))
    }

    async fn get(
        &self,
        key: &str,
        options: GetOptions,
        subject: &str,
    ) -> Result<GetResult, OriginError> {
        let key = self.key(key, subject)?;
        let answer = timeout(HEADERS_TIMEOUT, self.store.get_opts(&key, options))
            .await
            .map_err(|_| no_answer(subject, HEADERS_TIMEOUT.as_secs()))?
            .map_err(|error| failure(&error, subject))?;
        if let (Some(root), GetResultPayload::File(file, _)) = (&self.local, &answer.payload) {
            // Where the file that was opened is, whatever its path leads to by now.
            let real = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))
                .map_err(|error| of_io(&error, subject))?;
            check_inside(root, &real, subject)?;
        }
        Ok(answer)
    }
}

/// The bytes of an answer; an error at the end of too few.
fn pieces(
    answer: GetResult,
    subject: &str,
) -> Result<stream::BoxStream<'static, Result<Bytes, OriginError>>, OriginError> {
    let expected = answer.range.end - answer.range.start;
    let pieces: Pieces = match answer.payload {
        GetResultPayload::File(mut file, _) => {
            file.seek(SeekFrom::Start(answer.range.start))
                .map_err(|error| of_io(&error, subject))?;
            let file = tokio::fs::File::from_std(file).take(expected);
            ReaderStream::with_capacity(file, FILE_READ_BYTES)
                .map_err(drop)
                .boxed()
        }
        GetResultPayload::Stream(stream) => stream.map_err(drop).boxed(),
    };
    let subject = subject.to_owned();
    Ok(body::counted(pieces, Some(expected), expected, subject))
}

fn check_inside(root: &Path, real: &Path, subject: &str) -> Result<(), OriginError> {
    if real.starts_with(root) {
        return Ok(());
    }
    Err(OriginError::Invalid(format!(
        "{subject}: a symbolic link leads out of {} to {}, and is not followed",
        root.display(),
        real.display()
    )))
}

/// A list of nothing is empty: where there is none, the whole place is missing.
fn missing(error: OriginError) -> OriginError {
    if let OriginError::NotFound(text) = error {
        return OriginError::Unreachable(text);
    }
    error
}

fn no_answer(subject: &str, seconds: u64) -> OriginError {
    OriginError::Unreachable(format!("{subject}: no answer in {seconds} s"))
}

/// Does what may block, on a network file system that has gone for ever, elsewhere.
async fn elsewhere<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
    subject: &str,
) -> Result<T, OriginError> {
    let done = timeout(HEADERS_TIMEOUT, tokio::task::spawn_blocking(work))
        .await
        .map_err(|_| no_answer(subject, HEADERS_TIMEOUT.as_secs()))?;
    done.unwrap_or_else(|ended| Err(io::Error::other(ended)))
        .map_err(|error| of_io(&error, subject))
}

/// The path, if something is there.
fn present(path: io::Result<PathBuf>) -> io::Result<Option<PathBuf>> {
    match path {
        Ok(path) => Ok(Some(path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn of_io(error: &io::Error, subject: &str) -> OriginError {
    let text = format!("{subject}: {error}");
    if error.kind() == io::ErrorKind::PermissionDenied {
        OriginError::Denied(text)
    } else {
        OriginError::Unreachable(text)
    }
}

/// What a store's error means. That something is not there is only what the store says of an object.
pub(super) fn failure(error: &Error, subject: &str) -> OriginError {
    let mut causes = std::iter::successors(error.source(), |&cause| cause.source());
    // What the server of a bucket said.
    if let Some(told) = causes.find_map(|cause| cause.downcast_ref::<OriginError>()) {
        return told.clone().about(subject);
    }
    let text = format!("{subject}: {}", chain(error));
    if matches!(error, Error::NotFound { .. }) {
        return OriginError::NotFound(text);
    }
    let causes = std::iter::successors(error.source(), |&cause| cause.source());
    let denied = causes
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::PermissionDenied);
    if denied {
        OriginError::Denied(text)
    } else {
        OriginError::Unreachable(text)
    }
}
