//! What the mirror endpoint asks of the node behind it.
//!
//! The mirror speaks HTTP and knows nothing of swarms; the node finds content and knows nothing of
//! HTTP. This trait is all they share, so that the mirror can be tested against content in memory.

use std::{future::Future, ops::Range, time::Duration};

use bytes::Bytes;
use futures::stream::BoxStream;
use shoal_protocol::{
    digest::Digest,
    message::Hint,
    reference::{Reference, Tag},
};

use crate::piece::Piece;

/// A manifest, verified against its digest.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// The digest of `bytes`.
    pub digest: Digest,
    /// The media type, without parameters.
    pub media_type: String,
    /// The manifest as the origin has it.
    pub bytes: Bytes,
    /// Set when the tag could not be revalidated and the last known answer is given: why, and how
    /// many seconds ago the origin was last asked.
    pub stale: Option<Stale>,
}

/// Why and how old an answer is that could not be revalidated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stale {
    /// Why the origin could not be asked.
    pub reason: String,
    /// Seconds since it was last asked.
    pub age_seconds: u64,
}

/// A blob, or a range of one, on its way to a client.
pub struct BlobBody {
    /// The size of the whole blob in bytes.
    pub size: u64,
    /// The bytes that `stream` yields.
    pub range: Range<u64>,
    /// The bytes. An error ends it; what came before must then not be taken for complete.
    pub stream: BoxStream<'static, Result<Piece, PullError>>,
}

/// Which bytes of a blob are asked for, before its size is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// All of it.
    Whole,
    /// From the first number to the second, both included; to the end without the second.
    From(u64, Option<u64>),
    /// The last so many bytes.
    Last(u64),
}

/// Why something cannot be served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PullError {
    /// The origin said that it does not exist.
    #[error("{0}")]
    NotFound(String),
    /// The origin refused the credentials.
    #[error("{0}")]
    Denied(String),
    /// The origin limits its clients and nobody else has it.
    #[error("{reason}")]
    Throttled {
        /// What was said.
        reason: String,
        /// How long to wait.
        retry_after: Option<Duration>,
    },
    /// Neither a peer nor an origin can give it now.
    #[error("{0}")]
    Unavailable(String),
    /// No bytes came in time.
    #[error("{0}")]
    TimedOut(String),
    /// The span lies outside a blob of this many bytes.
    #[error("the requested range lies outside the blob's {size} bytes")]
    OutOfRange {
        /// The blob's size.
        size: u64,
    },
    /// The bytes turned out to be wrong; whatever was sent of them must be thrown away.
    #[error("{0}")]
    Corrupt(String),
}

impl Span {
    /// The bytes that this span names in a blob of `size` bytes.
    ///
    /// # Errors
    /// [`PullError::OutOfRange`] where it names none (RFC 9110, section 14.1.2). The whole of an
    /// empty blob is empty, and no error.
    pub fn resolve(self, size: u64) -> Result<Range<u64>, PullError> {
        let range = match self {
            Self::Whole => return Ok(0..size),
            Self::From(first, last) => {
                first..last.map_or(size, |last| last.saturating_add(1)).min(size)
            }
            Self::Last(count) => size.saturating_sub(count)..size,
        };
        if range.start < range.end {
            Ok(range)
        } else {
            Err(PullError::OutOfRange { size })
        }
    }
}

/// Whatever can find content: the node, or a test's stand-in.
pub trait Content: Send + Sync + 'static {
    /// The manifest that a reference names.
    fn manifest(
        &self,
        reference: Reference,
    ) -> impl Future<Output = Result<Manifest, PullError>> + Send;

    /// A blob's bytes. Resolves when the first of them are at hand.
    fn blob(
        &self,
        digest: Digest,
        hint: Hint,
        span: Span,
    ) -> impl Future<Output = Result<BlobBody, PullError>> + Send;

    /// A blob's size in bytes, without fetching it.
    fn blob_size(
        &self,
        digest: Digest,
        hint: Hint,
    ) -> impl Future<Output = Result<u64, PullError>> + Send;

    /// The tags of a repository, as the origin lists them, sorted.
    fn tags(&self, hint: Hint) -> impl Future<Output = Result<Vec<Tag>, PullError>> + Send;

    /// The descriptors of the manifests that refer to another, as the origin lists them;
    /// [`PullError::NotFound`] where it keeps no such list.
    fn referrers(
        &self,
        hint: Hint,
        subject: Digest,
    ) -> impl Future<Output = Result<Vec<serde_json::Value>, PullError>> + Send;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_resolve_as_http_ranges_do() {
        let size = 2048;
        for (span, range) in [
            (Span::From(500, Some(1499)), 500..1500),
            (Span::From(500, None), 500..2048),
            (Span::Last(500), 1548..2048),
            (Span::Last(5000), 0..2048),
            (Span::From(2000, Some(5000)), 2000..2048),
        ] {
            assert_eq!(span.resolve(size), Ok(range), "{span:?}");
        }
        for span in [
            Span::From(5000, Some(10000)),
            Span::From(2048, None),
            Span::Last(0),
        ] {
            assert_eq!(
                span.resolve(size),
                Err(PullError::OutOfRange { size }),
                "{span:?}"
            );
        }
        assert_eq!(Span::Whole.resolve(0), Ok(0..0));
    }
}
