//! Reading a blob while it grows.

use std::{io, ops::Range, sync::Arc};

use bytes::Bytes;
use futures::{Stream, stream};
use tokio::{
    sync::watch,
    task::{JoinHandle, spawn_blocking},
};

use super::{
    blob::{Blob, BlobState},
    demand::{Demand, Line},
    view::{Seen, Sight},
};
use crate::content::PullError;

/// Bytes of a piece at most. One is read ahead, so that a reader costs twice this.
const PIECE_BYTES_MAX: u64 = 1 << 20;

struct Reader {
    blob: Arc<Blob>,
    range: Range<u64>,
    at: u64,
    seen: Seen,
    progress: watch::Receiver<u64>,
    line: Line,
    /// The next piece, being read.
    pending: Option<Piece>,
    ended: bool,
}

struct Piece {
    end: u64,
    bytes: JoinHandle<io::Result<Bytes>>,
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
    async fn next(&mut self) -> Option<Result<Bytes, PullError>> {
        if self.ended {
            return None;
        }
        let piece = self.piece().await.transpose();
        self.ended = !matches!(piece, Some(Ok(_)));
        piece
    }

    async fn piece(&mut self) -> Result<Option<Bytes>, PullError> {
        let piece = if let Some(piece) = self.pending.take() {
            piece
        } else {
            let end = self.wait().await?;
            if end == self.at {
                return Ok(None);
            }
            self.start(end)
        };
        let bytes = match piece.bytes.await {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(error)) => return Err(self.unreadable(&error)),
            Err(error) => return Err(self.unreadable(&error)),
        };
        // After the read: what changed before or while the disk worked is seen here.
        self.blob
            .vouch(&mut self.seen, self.range.start..piece.end)?;
        self.at = piece.end;
        if self.at < self.range.end
            && let Sight::Ready(end) = self.blob.sight(self.at, self.range.end)
        {
            self.pending = Some(self.start(end));
        }
        Ok(Some(bytes))
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

    /// Begins to read the next piece; there are bytes up to `visible`.
    fn start(&mut self, visible: u64) -> Piece {
        if self.blob.state() == BlobState::Partial {
            self.line.moves_into(self.blob.geometry().index_of(self.at));
        }
        let range = self.at..visible.min(self.at + PIECE_BYTES_MAX);
        let end = range.end;
        let blob = Arc::clone(&self.blob);
        let bytes = spawn_blocking(move || blob.read(range));
        Piece { end, bytes }
    }

    fn unreadable(&self, error: &dyn std::error::Error) -> PullError {
        let (blob, at) = (self.blob.digest(), self.at);
        PullError::Unavailable(format!(
            "cannot read {blob} from the store at byte {at}: {error}"
        ))
    }
}
