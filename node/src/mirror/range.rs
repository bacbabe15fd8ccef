//! The `Range` header.

use hyper::{HeaderMap, header::RANGE};

use crate::content::Span;

/// Ranges of one request at most, which is what clients of zstd:chunked layers ask for at most.
const RANGES_MAX: usize = 1024;

/// What part of a blob a request asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// All of it.
    Whole,
    /// A range.
    One(Span),
    /// Two ranges or more, up to [`RANGES_MAX`], in the order in which they are wanted.
    Several(Vec<Span>),
}

/// What the headers ask for.
///
/// A header that is malformed, in another unit, or names more ranges than are served means the
/// whole: RFC 9110 lets a server ignore it, and clients of zstd:chunked layers take a full 200 for
/// many ranges but no part of them. A range that ends before it begins is kept; it names no byte.
pub(super) fn asked(headers: &HeaderMap) -> Asked {
    let mut lines = headers.get_all(RANGE).iter();
    let (Some(line), None) = (lines.next(), lines.next()) else {
        return Asked::Whole;
    };
    let spans = line.to_str().ok().and_then(spans).unwrap_or_default();
    match spans.as_slice() {
        [] => Asked::Whole,
        [span] => Asked::One(*span),
        _ => Asked::Several(spans),
    }
}

fn spans(line: &str) -> Option<Vec<Span>> {
    let (unit, ranges) = line.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let ranges = ranges.split(',').map(str::trim);
    let mut spans = Vec::new();
    // A list may have empty elements (RFC 9110, section 5.6.1.2).
    for range in ranges.filter(|range| !range.is_empty()) {
        if spans.len() == RANGES_MAX {
            return None;
        }
        spans.push(span(range)?);
    }
    Some(spans)
}

fn span(range: &str) -> Option<Span> {
    let (first, last) = range.split_once('-')?;
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

    fn read(lines: &[&str]) -> Asked {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(RANGE, HeaderValue::from_str(line).unwrap());
        }
        asked(&headers)
    }

    #[test]
    fn single_ranges_are_read() {
        let beyond = format!("bytes={}0-", u64::MAX);
        for (line, span) in [
            ("bytes=500-1499", Span::From(500, Some(1499))),
            ("Bytes = 500-", Span::From(500, None)),
            ("bytes=-500", Span::Last(500)),
            ("bytes=500-0", Span::From(500, Some(0))),
            ("bytes=,7-8,", Span::From(7, Some(8))),
            (&beyond, Span::From(u64::MAX, None)),
        ] {
            assert_eq!(read(&[line]), Asked::One(span), "{line}");
        }
    }

    #[test]
    fn several_ranges_keep_their_order() {
        let spans = vec![
            Span::From(4, Some(5)),
            Span::From(0, Some(1)),
            Span::Last(3),
        ];
        assert_eq!(read(&["bytes=4-5, 0-1 ,-3"]), Asked::Several(spans));
        let most = vec!["1-1"; RANGES_MAX].join(",");
        assert!(matches!(
            read(&[&format!("bytes={most}")]),
            Asked::Several(_)
        ));
        assert_eq!(read(&[&format!("bytes={most},1-1")]), Asked::Whole);
    }

    #[test]
    fn everything_else_means_the_whole() {
        assert_eq!(read(&[]), Asked::Whole);
        assert_eq!(read(&["bytes=0-1", "bytes=4-5"]), Asked::Whole);
        for line in [
            "bytes=0-1,x",
            "bytes=",
            "bytes=,",
            "bytes=-",
            "bytes=a-b",
            "bytes=+1-2",
            "bytes=1--2",
            "chunks=0-1",
            "0-1",
            "",
        ] {
            assert_eq!(read(&[line]), Asked::Whole, "{line}");
        }
    }
}
