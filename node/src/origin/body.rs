//! The bodies of answers.

use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt, stream, stream::BoxStream};
use reqwest::{
    Response,
    header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderMap},
};

use super::{
    error::OriginError,
    limits::{BODY_IDLE_TIMEOUT, COLLECT_TIMEOUT, ERROR_BODY_BYTES_MAX, REFUSAL_TIMEOUT},
};

/// The declared length of a body in bytes. Read from the header, because to a HEAD request there
/// is no body to measure.
pub(super) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// What `Content-Range` says (RFC 9110, section 14.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ContentRange {
    /// The first byte and one past the last; none in an answer that no byte fits (416).
    pub(super) range: Option<(u64, u64)>,
    /// The size of the whole, where it is said.
    pub(super) size: Option<u64>,
}

impl ContentRange {
    /// Of an answer.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        Self::parse(headers.get(CONTENT_RANGE)?.to_str().ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        let (range, size) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
        let size = match size {
            "*" => None,
            size => Some(size.parse().ok()?),
        };
        let range = match range {
            "*" => None,
            range => {
                let (first, last) = range.split_once('-')?;
                let first: u64 = first.parse().ok()?;
                let end = last.parse::<u64>().ok()?.checked_add(1)?;
                if first >= end || size.is_some_and(|size| end > size) {
                    return None;
                }
                Some((first, end))
            }
        };
        Some(Self { range, size })
    }
}

/// Bytes as they come; why they break off does not matter.
pub(super) type Pieces = BoxStream<'static, Result<Bytes, ()>>;

/// The bytes of an answer, as [`counted`] has them.
pub(super) fn stream(
    response: Response,
    expected: Option<u64>,
    max: u64,
    subject: String,
) -> BoxStream<'static, Result<Bytes, OriginError>> {
    let pieces = response.bytes_stream().map_err(drop).boxed();
    counted(pieces, expected, max, subject)
}

/// The bytes of a body of `expected` bytes where that is known, and of no more than `max`. Ends
/// without an error only when all of them have come.
pub(super) fn counted(
    pieces: Pieces,
    expected: Option<u64>,
    max: u64,
    subject: String,
) -> BoxStream<'static, Result<Bytes, OriginError>> {
    let body = Body {
        pieces,
        expected,
        max,
        got: 0,
        subject,
    };
    stream::unfold(Some(body), async |state| {
        let mut body = state?;
        match body.next().await {
            Ok(Some(bytes)) => Some((Ok(bytes), Some(body))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    })
    .boxed()
}

/// A whole body of at most `max` bytes.
pub(super) async fn collect(
    response: Response,
    max: u64,
    subject: &str,
) -> Result<Bytes, OriginError> {
    let expected = content_length(response.headers());
    if expected.is_some_and(|expected| expected > max) {
        return Err(too_large(subject, max));
    }
    gather(stream(response, expected, max, subject.to_owned()), subject).await
}

/// All of a bounded stream, in good time.
pub(super) async fn gather(
    stream: BoxStream<'static, Result<Bytes, OriginError>>,
    subject: &str,
) -> Result<Bytes, OriginError> {
    let whole = stream.try_fold(BytesMut::new(), async |mut whole, bytes| {
        whole.extend_from_slice(&bytes);
        Ok(whole)
    });
    match tokio::time::timeout(COLLECT_TIMEOUT, whole).await {
        Ok(whole) => whole.map(BytesMut::freeze),
        Err(_) => Err(OriginError::Unreachable(format!(
            "{subject}: the answer did not end in {} s",
            COLLECT_TIMEOUT.as_secs()
        ))),
    }
}

/// The body of an answer that is no success, for its words; none where it is long or slow. Once
/// it is read, the connection can be used again.
pub(super) async fn collect_refusal(response: Response) -> Option<Bytes> {
    let body = collect(response, ERROR_BODY_BYTES_MAX, "");
    tokio::time::timeout(REFUSAL_TIMEOUT, body).await.ok()?.ok()
}

/// The error for what is larger than it may be.
pub(super) fn too_large(subject: &str, max: u64) -> OriginError {
    OriginError::Invalid(format!(
        "{subject}: the origin's answer is larger than the {max} bytes that are accepted"
    ))
}

struct Body {
    pieces: Pieces,
    expected: Option<u64>,
    max: u64,
    got: u64,
    subject: String,
}

impl Body {
    async fn next(&mut self) -> Result<Option<Bytes>, OriginError> {
        let truncated = |body: &Self| OriginError::Truncated {
            subject: body.subject.clone(),
            expected: body.expected,
            got: body.got,
        };
        match tokio::time::timeout(BODY_IDLE_TIMEOUT, self.pieces.next()).await {
            Ok(Some(Ok(bytes))) => {
                self.got += bytes.len() as u64;
                if self.got > self.expected.unwrap_or(self.max) {
                    return Err(too_large(&self.subject, self.expected.unwrap_or(self.max)));
                }
                Ok(Some(bytes))
            }
            Ok(None) if self.expected.is_some_and(|expected| self.got < expected) => {
                Err(truncated(self))
            }
            Ok(None) => Ok(None),
            Ok(Some(Err(()))) => Err(truncated(self)),
            Err(_) => Err(OriginError::Unreachable(format!(
                "{}: no bytes came for {} s after the first {}",
                self.subject,
                BODY_IDLE_TIMEOUT.as_secs(),
                self.got
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_are_read_strictly() {
        for (text, range, size) in [
            ("bytes 0-0/10", Some((0, 1)), Some(10)),
            ("bytes 5-9/10", Some((5, 10)), Some(10)),
            ("bytes 5-9/*", Some((5, 10)), None),
            ("bytes */0", None, Some(0)),
        ] {
            let expected = ContentRange { range, size };
            assert_eq!(ContentRange::parse(text), Some(expected), "{text}");
        }
        for text in [
            "",
            "bytes 5-4/10",
            "bytes 5-10/10",
            "items 0-0/10",
            "bytes 0-18446744073709551615/*",
            "bytes -5/10",
        ] {
            assert_eq!(ContentRange::parse(text), None, "{text}");
        }
    }
}
