//! The `Range` header.

use hyper::{HeaderMap, header::RANGE};

use crate::content::Span;

/// What part of a blob a request asks for.
///
/// A header that is malformed, in another unit, or names several ranges means the whole: RFC 9110
/// lets a server ignore it, and clients of zstd:chunked layers take a full 200 for many ranges but
/// no part of them. A range that ends before it begins is kept, and answered with 416.
pub(super) fn requested_span(headers: &HeaderMap) -> Span {
    let mut lines = headers.get_all(RANGE).iter();
    let (Some(line), None) = (lines.next(), lines.next()) else {
        return Span::Whole;
    };
    line.to_str().ok().and_then(parse).unwrap_or(Span::Whole)
}

fn parse(line: &str) -> Option<Span> {
    let (unit, ranges) = line.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (first, last) = ranges.trim().split_once('-')?;
    match (first.trim(), last.trim()) {
        ("", last) => Some(Span::Last(number(last)?)),
        (first, "") => Some(Span::From(number(first)?, None)),
        (first, last) => Some(Span::From(number(first)?, Some(number(last)?))),
    }
}

/// Digits only. A number that no blob can reach means the same however large it is.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    fn span(lines: &[&str]) -> Span {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(RANGE, HeaderValue::from_str(line).unwrap());
        }
        requested_span(&headers)
    }

    #[test]
    fn single_ranges_are_read() {
        assert_eq!(span(&["bytes=500-1499"]), Span::From(500, Some(1499)));
        assert_eq!(span(&["Bytes = 500-"]), Span::From(500, None));
        assert_eq!(span(&["bytes=-500"]), Span::Last(500));
        assert_eq!(span(&["bytes=500-0"]), Span::From(500, Some(0)));
        let beyond = format!("bytes={}0-", u64::MAX);
        assert_eq!(span(&[&beyond]), Span::From(u64::MAX, None));
    }

    #[test]
    fn everything_else_means_the_whole() {
        assert_eq!(span(&[]), Span::Whole);
        assert_eq!(span(&["bytes=0-1", "bytes=4-5"]), Span::Whole);
        for line in [
            "bytes=0-1,4-5",
            "bytes=",
            "bytes=-",
            "bytes=a-b",
            "bytes=+1-2",
            "bytes=1--2",
            "chunks=0-1",
            "0-1",
            "",
        ] {
            assert_eq!(span(&[line]), Span::Whole, "{line}");
        }
    }
}
