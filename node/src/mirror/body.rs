//! A blob's bytes on their way to a client.

use std::sync::Arc;

use futures::{Stream, StreamExt};

use crate::{
    content::{BlobBody, PullError},
    metrics::Metrics,
    piece::Piece,
};

/// Why a body was broken off.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    /// The content failed.
    #[error(transparent)]
    Pull(#[from] PullError),
    /// Fewer or more bytes came than the headers said.
    #[error("the content has other than the {expected} bytes that were announced")]
    Length {
        /// What `Content-Length` said.
        expected: u64,
    },
}

/// The stream of `body`, counted. It ends well only if it had exactly the bytes of its range;
/// anything else is an error, which breaks the connection off.
pub(super) fn counted(
    body: BlobBody,
    metrics: Arc<Metrics>,
) -> impl Stream<Item = Result<Piece, Broken>> + Send + 'static {
    let expected = body.range.end - body.range.start;
    let state = (body.stream, expected, metrics);
    futures::stream::try_unfold(state, move |(mut stream, left, metrics)| async move {
        let next = match stream.next().await {
            None if left == 0 => return Ok(None),
            None => Err(Broken::Length { expected }),
            Some(Err(error)) => Err(error.into()),
            Some(Ok(piece)) => match left.checked_sub(piece.len() as u64) {
                Some(left) => Ok((piece, left)),
                None => Err(Broken::Length { expected }),
            },
        };
        match next {
            Ok((piece, left)) => {
                metrics.mirror_bytes.add(piece.len() as u64);
                Ok(Some((piece, (stream, left, metrics))))
            }
            Err(error) => Err(broken(error, &metrics)),
        }
    })
}

/// Notes that an answer is broken off.
pub(super) fn broken(error: Broken, metrics: &Metrics) -> Broken {
    metrics.mirror_aborts.increment();
    tracing::warn!(%error, "broke off an answer to a client");
    error
}
