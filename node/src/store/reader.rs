//! Reading a blob while it grows.

use std::{
    io,
    ops::Range,
    sync::{Arc, atomic::Ordering},
};

use bytes::Bytes;
use futures::{Stream, stream};
use shoal_protocol::digest::Digest;
use tokio::{
    sync::watch,
    task::{JoinHandle, spawn_blocking},
};

use super::{
    blob::{Blob, BlobState},
    demand::{Demand, Line},
    view::{Seen, Sight},
};
use crate::{
    content::PullError,
    piece::{self, FileRange, Piece},
};

/// Bytes of a piece at most. One is read ahead, so that a reader may cost twice this; one that is
/// sent from its file costs nothing.
const PIECE_BYTES_MAX: u64 = piece::FILE_BYTES_MAX as u64;

/// And at least, however many readers there are: less costs more calls than copying.
const PIECE_BYTES_MIN: u64 = 16 << 10;

/// Bytes of the pieces of all readers together, while there are not thousands: were it not for
/// this, a thousand clients that read nothing would take 2 GB.
const PIECES_BYTES_MAX: u64 = 32 << 20;

/// Bytes at the end of a range that are never left in the file. They are given once all before them
/// were sent and none of these has changed meanwhile: a client that was sent something else cannot
/// complete its answer. What its socket still holds then are the file's own pages, which change only
/// where a chunk of a complete blob was found rotten and comes anew.
const LAST_BYTES: u64 = 64 << 10;

struct Reader {
    blob: Arc<Blob>,
    _counted: Counted,
    range: Range<u64>,
    at: u64,
    seen: Seen,
    progress: watch::Receiver<u64>,
    line: Line,
    /// The next piece, being read.
    pending: Option<Reading>,
    ended: bool,
}

/// One of the readers of all blobs.
struct Counted(Arc<Blob>);

impl Counted {
    fn new(blob: &Arc<Blob>) -> Self {
        blob.shared().readers.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(blob))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.shared().readers.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Bytes of a piece at most where there are so many readers: a power of two, as buffers are.
fn piece_bytes(readers: u64) -> u64 {
    let share = PIECES_BYTES_MAX / readers.max(1);
    1 << share.clamp(PIECE_BYTES_MIN, PIECE_BYTES_MAX).ilog2()
}

struct Reading {
    end: u64,
    bytes: JoinHandle<io::Result<Bytes>>,
}

enum Next {
    File(FileRange, u64),
    Read(Reading),
}

impl Blob {
    /// The bytes of a range, as they come in: the contiguous checked prefix, and what this node
    /// itself reads from the origin. The last byte of the blob comes once its digest has matched,
    /// and an empty stream of an empty blob ends then. A range past the end is cut.
    ///
    /// Ends with an error after [`fail`](Self::fail), or when bytes that it has given have
    /// changed; all that it gave must then be thrown away. Dropping it stops it.
    pub fn stream(
        self: &Arc<Self>,
        range: Range<u64>,
        demand: Demand,
    ) -> impl Stream<Item = Result<Bytes, PullError>> + Send + use<> {
        let digest = self.digest();
        let unreadable = move |error| unreadable(digest, &error);
        piece::in_memory(self.pieces(range, demand), unreadable)
    }

    /// The same for those who can send from a file: of a complete blob, what the page cache holds is
    /// left there, but for the end of the range. Whoever is given such a piece has to send or read
    /// all of it before asking for the next.
    pub fn pieces(
        self: &Arc<Self>,
        range: Range<u64>,
        demand: Demand,
    ) -> impl Stream<Item = Result<Piece, PullError>> + Send + use<> {
        let end = range.end.min(self.size());
        let range = range.start.min(end)..end;
        let end_chunk = self.geometry().index_of(range.end.saturating_sub(1)) + 1;
        let reader = Reader {
            at: range.start,
            seen: self.seen(),
            progress: self.watch(),
            line: Line::new(demand, self.digest(), end_chunk),
            pending: None,
            ended: false,
            _counted: Counted::new(self),
            blob: Arc::clone(self),
            range,
        };
        stream::unfold(reader, |mut reader| async move {
            let piece = reader.next().await?;
            Some((piece, reader))
        })
    }
}

impl Reader {
    async fn next(&mut self) -> Option<Result<Piece, PullError>> {
        if self.ended {
            return None;
        }
        let piece = self.piece().await.transpose();
        self.ended = !matches!(piece, Some(Ok(_)));
        piece
    }

    async fn piece(&mut self) -> Result<Option<Piece>, PullError> {
        let next = if let Some(reading) = self.pending.take() {
            Next::Read(reading)
        } else {
            let end = self.wait().await?;
            if end == self.at {
                return Ok(None);
            }
            self.start(end)
        };
        let (end, piece) = match next {
            Next::File(range, end) => (end, Piece::File(range)),
            Next::Read(Reading { end, bytes }) => match bytes.await {
                Ok(Ok(bytes)) => (end, Piece::Bytes(bytes)),
                Ok(Err(error)) => return Err(unreadable(self.blob.digest(), &error)),
                Err(error) => return Err(unreadable(self.blob.digest(), &error)),
            },
        };
        // After the read: what changed before or while the disk worked is seen here, and what
        // changed in the file while earlier pieces were sent from it.
        self.blob.vouch(&mut self.seen, self.range.start..end)?;
        self.at = end;
        if let Piece::Bytes(_) = piece
            && self.at < self.range.end
            && let Sight::Ready(end) = self.blob.sight(self.at, self.range.end)
            && let Next::Read(reading) = self.start(end)
        {
            self.pending = Some(reading);
        }
        Ok(Some(piece))
    }

    /// Waits for bytes, and says how far they reach; no further than here at the end.
    async fn wait(&mut self) -> Result<u64, PullError> {
        loop {
            self.progress.borrow_and_update();
            self.blob.vouch(&mut self.seen, self.range.start..self.at)?;
            if let Sight::Ready(end) = self.blob.sight(self.at, self.range.end) {
                return Ok(end);
            }
            let chunk = self.blob.geometry().index_of(self.at);
            tokio::select! {
                // The sender lives in the blob that this holds.
                _ = self.progress.changed() => {}
                () = async {
                    self.line.waits_for(chunk).await;
                    std::future::pending::<()>().await;
                } => {}
            }
        }
    }

    /// Finds the next piece in the page cache, or begins to read it; there are bytes up to
    /// `visible`.
    fn start(&mut self, visible: u64) -> Next {
        let readers = self.blob.shared().readers.load(Ordering::Relaxed);
        let end = visible.min(self.at + piece_bytes(readers));
        if self.blob.state() == BlobState::Partial {
            self.line.moves_into(self.blob.geometry().index_of(self.at));
        } else {
            let end = end.min(self.range.end.saturating_sub(LAST_BYTES));
            let range = FileRange::new(Arc::clone(&self.blob.data), self.at..end);
            if range.is_cached() {
                return Next::File(range, end);
            }
        }
        let (blob, range) = (Arc::clone(&self.blob), self.at..end);
        let bytes = spawn_blocking(move || blob.read(range));
        Next::Read(Reading { end, bytes })
    }
}

fn unreadable(blob: Digest, error: &dyn std::error::Error) -> PullError {
    PullError::Unavailable(format!("cannot read {blob} from the store: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_large_for_some_readers_and_small_for_thousands() {
        for (readers, bytes) in [
            (0, 1 << 20),
            (32, 1 << 20),
            (33, 512 << 10),
            (1000, 32 << 10),
        ] {
            assert_eq!(piece_bytes(readers), bytes, "{readers} readers");
        }
        assert_eq!(piece_bytes(u64::MAX), PIECE_BYTES_MIN);
    }
}
