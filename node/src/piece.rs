//! Bytes of a blob on their way to whoever asked for them: in memory, or still in their file.

use std::{
    fs::File,
    io::{self, IoSliceMut},
    ops::Range,
    os::{fd::AsFd, unix::fs::FileExt},
    sync::Arc,
    task::{Poll, ready},
};

use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use rustix::io::{ReadWriteFlags, retry_on_intr};
use tokio::task::spawn_blocking;

use crate::buffers::Buffer;

/// Bytes of a piece in a file at most.
pub(crate) const FILE_BYTES_MAX: usize = 1 << 20;

/// The next bytes of a body.
pub enum Piece {
    /// In memory.
    Bytes(Bytes),
    /// In a file. It is to be sent or read to its end before the next piece is asked for: that next
    /// one says that these bytes were right.
    File(FileRange),
}

impl Piece {
    /// How many bytes.
    pub fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::File(range) => range.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its bytes, read on a thread that may wait for the disk.
    async fn into_bytes(self) -> io::Result<Bytes> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            Self::File(range) => spawn_blocking(move || read(&range.file, range.range)).await?,
        }
    }
}

impl From<Bytes> for Piece {
    fn from(bytes: Bytes) -> Self {
        Self::Bytes(bytes)
    }
}

/// A range of a file.
#[derive(Debug)]
pub struct FileRange {
    file: Arc<File>,
    range: Range<u64>,
}

impl FileRange {
    /// Bytes that the file has.
    pub(crate) fn new(file: Arc<File>, range: Range<u64>) -> Self {
        Self { file, range }
    }

    /// Whether the page cache holds both ends. Memory is taken back in about the order in which it
    /// was last used, so that it then holds what is between as well; where it does not, whoever sends
    /// it waits for the disk. `false` too where the file system cannot say.
    pub(crate) fn is_cached(&self) -> bool {
        let holds = |at| {
            let (mut byte, flags) = ([0], ReadWriteFlags::NOWAIT);
            let slices = &mut [IoSliceMut::new(&mut byte)];
            rustix::io::preadv2(&self.file, slices, at, flags) == Ok(1)
        };
        let Range { start, end } = self.range;
        start < end && holds(start) && holds(end - 1)
    }

    /// How many bytes.
    pub(crate) fn len(&self) -> usize {
        (self.range.end - self.range.start) as usize
    }

    /// Sends what a socket takes in now, and keeps the rest. The kernel passes on the file's own
    /// pages: no byte is copied.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] where it takes in nothing; [`io::ErrorKind::UnexpectedEof`]
    /// where the file has become shorter; what the socket says.
    pub(crate) fn send(&mut self, socket: impl AsFd) -> io::Result<usize> {
        let left = self.len();
        let at = &mut self.range.start;
        let sent = retry_on_intr(|| rustix::fs::sendfile(&socket, &self.file, Some(at), left))?;
        if sent == 0 && left > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(sent)
    }

    /// Copies the first of its bytes into `into`, up to its length, and says how many.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] where the file has become shorter; what the disk says.
    pub(crate) fn peek(&self, into: &mut [u8]) -> io::Result<usize> {
        let part = self.len().min(into.len());
        self.file
            .read_exact_at(&mut into[..part], self.range.start)?;
        Ok(part)
    }

    /// Leaves out the first `sent` bytes.
    pub(crate) fn advance(&mut self, sent: usize) {
        self.range.start += sent as u64;
    }
}

/// Bytes of a file.
pub(crate) fn read(file: &File, range: Range<u64>) -> io::Result<Bytes> {
    let mut bytes = Buffer::of((range.end - range.start) as usize);
    file.read_exact_at(&mut bytes, range.start)?;
    Ok(bytes.freeze())
}

/// A body for those who need its bytes in memory. What follows a piece that was in a file is read
/// ahead: whoever makes a body does the same with what is not.
pub(crate) fn in_memory<S, E>(
    pieces: S,
    unreadable: impl Fn(io::Error) -> E + Clone + Send + 'static,
) -> impl Stream<Item = Result<Bytes, E>> + Send
where
    S: Stream<Item = Result<Piece, E>> + Send,
    E: Send,
{
    let mut all = Box::pin(pieces.then(move |piece| {
        let unreadable = unreadable.clone();
        async move {
            let piece = piece?;
            let in_file = matches!(piece, Piece::File(_));
            let bytes = piece.into_bytes().await.map_err(unreadable)?;
            Ok((bytes, in_file))
        }
    }));
    let mut ahead = None;
    stream::poll_fn(move |cx| {
        let next = match ahead.take() {
            Some(next) => next,
            None => ready!(all.poll_next_unpin(cx)),
        };
        if let Some(Ok((_, true))) = next
            && let Poll::Ready(after) = all.poll_next_unpin(cx)
        {
            ahead = Some(after);
        }
        Poll::Ready(next.map(|next| next.map(|(bytes, _)| bytes)))
    })
}
