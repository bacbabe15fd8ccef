//! Conditional requests. A resource's entity tag is its digest in quotes, a strong one.

use hyper::{
    HeaderMap,
    header::{IF_NONE_MATCH, IF_RANGE},
};

/// Whether the client already has what `etag` names (RFC 9110, section 13.1.2: weak comparison).
pub(super) fn client_has(headers: &HeaderMap, etag: &str) -> bool {
    headers
        .get_all(IF_NONE_MATCH)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .map(str::trim)
        .any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}

/// Whether a `Range` is to be honoured: always, unless `If-Range` names something else (RFC 9110,
/// section 13.1.5: strong comparison; dates never match, as we send none).
pub(super) fn range_applies(headers: &HeaderMap, etag: &str) -> bool {
    headers
        .get(IF_RANGE)
        .is_none_or(|line| line.as_bytes() == etag.as_bytes())
}
