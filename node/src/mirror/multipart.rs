//! Several ranges of a blob in one answer: `multipart/byteranges` (RFC 9110, section 14.6).
//!
//! Lazy snapshotters and clients of zstd:chunked layers ask so for the files that they lack. Given
//! the whole blob instead, they would wait for all that lies between.

use std::{ops::Range, sync::Arc};

use futures::{FutureExt as _, Stream, StreamExt as _, TryStreamExt as _, stream};
use hyper::{
    StatusCode,
    header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue},
};
use shoal_protocol::{digest::Digest, message::Hint};
use tokio_util::task::AbortOnDropHandle;

use super::body::{self, Broken};
use crate::{
    content::{BlobBody, Content, PullError, Span},
    http::{self, Reply},
    metrics::Metrics,
    piece::Piece,
};

/// Ranges of one answer that are fetched at once. Each has at most 2 MiB read ahead.
const PARTS_AHEAD: usize = 8;

/// Characters of a boundary; RFC 2046 allows 70.
const BOUNDARY_LEN: usize = 64;

/// How the parts of an answer are written.
struct Layout {
    size: u64,
    boundary: String,
}

impl Layout {
    /// No part can contain the boundary: it is the blob's own hash, or the first half of it.
    fn new(digest: &Digest, size: u64) -> Self {
        let text = digest.to_string();
        let hex = text.split_once(':').map_or(&*text, |(_, hex)| hex);
        Self {
            size,
            boundary: hex[..hex.len().min(BOUNDARY_LEN)].to_owned(),
        }
    }

    fn head(&self, part: &Range<u64>) -> String {
        let Self { size, boundary } = self;
        let (first, last) = (part.start, part.end - 1);
        format!(
            "\r\n--{boundary}\r\nContent-Type: {}\r\nContent-Range: bytes {first}-{last}/{size}\r\n\r\n",
            http::OCTETS
        )
    }

    fn tail(&self) -> String {
        format!("\r\n--{}--\r\n", self.boundary)
    }

    /// Bytes of the whole body.
    fn length(&self, parts: &[Range<u64>]) -> u64 {
        let part = |part: &Range<u64>| self.head(part).len() as u64 + (part.end - part.start);
        parts.iter().map(part).sum::<u64>() + self.tail().len() as u64
    }
}

/// Answers with these ranges, in their order, those that the blob does not have left out. `None`
/// where some overlap, which nobody needs and which would make an answer larger than the blob: the
/// header is then to be ignored.
///
/// # Errors
/// [`PullError::OutOfRange`] where the blob has none of them; whatever else the content says.
pub(super) async fn reply<C: Content>(
    content: &Arc<C>,
    digest: Digest,
    hint: &Hint,
    spans: &[Span],
    metrics: &Arc<Metrics>,
) -> Result<Option<Reply>, PullError> {
    let size = size(&**content, digest, hint, spans).await?;
    let parts: Vec<Range<u64>> = spans
        .iter()
        .filter_map(|span| span.resolve(size).ok())
        .collect();
    if parts.is_empty() {
        return Err(PullError::OutOfRange { size });
    }
    if overlap(&parts) {
        return Ok(None);
    }
    let layout = Layout::new(&digest, size);
    let (length, boundary) = (layout.length(&parts), layout.boundary.clone());
    let mut bodies = Box::pin(bodies(content, digest, hint, parts));
    let first = bodies.next().await.transpose()?;
    let bodies = stream::iter(first.map(Ok)).chain(bodies);
    let stream = body(layout, bodies, Arc::clone(metrics));

    let mut reply = http::streamed(StatusCode::PARTIAL_CONTENT, http::OCTETS, stream);
    let headers = reply.headers_mut();
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    let content_type = format!("multipart/byteranges; boundary={boundary}");
    if let Ok(value) = HeaderValue::try_from(content_type) {
        headers.insert(CONTENT_TYPE, value);
    }
    Ok(Some(reply))
}

/// The blob's size, from the answer for its first range, which is wanted anyway.
async fn size<C: Content>(
    content: &C,
    digest: Digest,
    hint: &Hint,
    spans: &[Span],
) -> Result<u64, PullError> {
    let first = spans.first().copied().unwrap_or(Span::Whole);
    match content.blob(digest, hint.clone(), first).await {
        Ok(BlobBody { size, .. }) | Err(PullError::OutOfRange { size }) => Ok(size),
        Err(error) => Err(error),
    }
}

fn overlap(parts: &[Range<u64>]) -> bool {
    let mut sorted: Vec<_> = parts.iter().collect();
    sorted.sort_unstable_by_key(|part| part.start);
    sorted.windows(2).any(|two| two[0].end > two[1].start)
}

/// The parts' bodies in order, some asked for ahead of the one that is being sent: each may have to
/// come from elsewhere.
fn bodies<C: Content>(
    content: &Arc<C>,
    digest: Digest,
    hint: &Hint,
    parts: Vec<Range<u64>>,
) -> impl Stream<Item = Result<BlobBody, PullError>> + Send + use<C> {
    let (content, hint) = (Arc::clone(content), hint.clone());
    let asked = stream::iter(parts).map(move |part| {
        let (content, hint) = (Arc::clone(&content), hint.clone());
        let span = Span::From(part.start, Some(part.end - 1));
        let body = tokio::spawn(async move { content.blob(digest, hint, span).await });
        AbortOnDropHandle::new(body).map(|ended| {
            ended.unwrap_or_else(|_| Err(PullError::Unavailable("this node is stopping".into())))
        })
    });
    asked.buffered(PARTS_AHEAD)
}

fn body(
    layout: Layout,
    bodies: impl Stream<Item = Result<BlobBody, PullError>> + Send + 'static,
    metrics: Arc<Metrics>,
) -> impl Stream<Item = Result<Piece, Broken>> + Send + 'static {
    let tail = Piece::Bytes(layout.tail().into());
    let parts = bodies.map(move |opened| {
        let opened = opened.map_err(|error| body::broken(error.into(), &metrics))?;
        let head = Piece::Bytes(layout.head(&opened.range).into());
        let pieces = body::counted(opened, Arc::clone(&metrics));
        Ok::<_, Broken>(stream::iter([Ok(head)]).chain(pieces))
    });
    parts.try_flatten().chain(stream::iter([Ok(tail)]))
}
