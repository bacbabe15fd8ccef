//! What a request asks for, parsed once: everything behind this is typed.

use std::borrow::Cow;

use hyper::{Method, Uri};
use percent_encoding::percent_decode_str;
use shoal_protocol::{
    digest::Digest,
    message::Hint,
    reference::{Reference, Repository, Selector, Tag, Upstream},
};

use super::{MirrorOptions, error::ApiError};

/// Bytes of a path with its query: the longest name, tag and `ns` take 1 KiB.
pub(super) const URI_BYTES_MAX: usize = 8 << 10;

/// A request of the read API.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// `/v2/`: is this a registry? Of which upstream, if that is said.
    Base(Option<Upstream>),
    /// A manifest.
    Manifest(Reference),
    /// A blob.
    Blob(Digest, Hint),
    /// A page of a repository's tags.
    Tags(TagPage),
    /// The manifests that refer to another.
    Referrers {
        /// Where.
        hint: Hint,
        /// To which.
        subject: Digest,
        /// Only those of this artifact type.
        artifact_type: Option<String>,
    },
}

/// Which tags are asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TagPage {
    /// The repository.
    pub(super) hint: Hint,
    /// Its name as the path has it, for the answer and the link to the next page.
    pub(super) name: String,
    /// The value of `ns`, for the link.
    pub(super) ns: Option<Upstream>,
    /// At most so many.
    pub(super) count: Option<usize>,
    /// Only those after this one.
    pub(super) last: Option<String>,
}

/// Reads a request.
pub(super) fn parse(
    method: &Method,
    uri: &Uri,
    options: &MirrorOptions,
) -> Result<Route, ApiError> {
    let length = uri.path_and_query().map_or(0, |whole| whole.as_str().len());
    if length > URI_BYTES_MAX {
        return Err(ApiError::uri_too_long(URI_BYTES_MAX));
    }
    let path = uri.path();
    let Some(rest) = path
        .strip_prefix("/v2")
        .filter(|rest| rest.is_empty() || rest.starts_with('/'))
    else {
        return Err(ApiError::no_such_endpoint());
    };
    if method != Method::GET && method != Method::HEAD {
        return Err(ApiError::read_only());
    }
    let rest = rest.strip_prefix("/").unwrap_or(rest);
    if rest.is_empty() {
        return Ok(Route::Base(namespace(uri)));
    }
    let segments = rest
        .split('/')
        .map(decode_segment)
        .collect::<Result<Vec<_>, _>>()?;
    let segments: Vec<&str> = segments.iter().map(AsRef::as_ref).collect();
    let query = Query::parse(uri.query().unwrap_or_default())?;

    match segments.as_slice() {
        [name @ .., "manifests", selector] if !name.is_empty() => {
            let hint = locate(name, query.ns, options)?;
            Ok(Route::Manifest(Reference {
                upstream: hint.upstream,
                repository: hint.repository,
                selector: parse_selector(selector)?,
            }))
        }
        [name @ .., "blobs", digest] if !name.is_empty() => {
            let hint = locate(name, query.ns, options)?;
            Ok(Route::Blob(parse_digest(digest)?, hint))
        }
        [name @ .., "tags", "list"] if !name.is_empty() => Ok(Route::Tags(TagPage {
            hint: locate(name, query.ns.clone(), options)?,
            name: name.join("/"),
            ns: query.ns,
            count: query.n,
            last: query.last,
        })),
        [name @ .., "referrers", digest] if !name.is_empty() => Ok(Route::Referrers {
            hint: locate(name, query.ns, options)?,
            subject: parse_digest(digest)?,
            artifact_type: query.artifact_type,
        }),
        _ => Err(ApiError::no_such_endpoint()),
    }
}

/// Decodes after splitting, so that an encoded slash cannot become a separator.
fn decode_segment(raw: &str) -> Result<Cow<'_, str>, ApiError> {
    let invalid = || ApiError::name_invalid("the path has a component that no name can have");
    let segment = percent_decode_str(raw)
        .decode_utf8()
        .map_err(|_| invalid())?;
    let harmful = segment.is_empty()
        || segment == "."
        || segment == ".."
        || segment
            .chars()
            .any(|c| c == '/' || c == '\\' || c.is_control());
    if harmful { Err(invalid()) } else { Ok(segment) }
}

/// Which repository of which upstream a name means.
fn locate(name: &[&str], ns: Option<Upstream>, options: &MirrorOptions) -> Result<Hint, ApiError> {
    let (upstream, path) = match (ns, name) {
        (Some(ns), path) => (ns, path),
        (None, [first, path @ ..]) if !path.is_empty() => match named_upstream(first, options)? {
            Some(upstream) => (upstream, path),
            None => (options.default_upstream.clone(), name),
        },
        (None, path) => (options.default_upstream.clone(), path),
    };
    let repository: Repository = path
        .join("/")
        .parse()
        .map_err(|error| ApiError::name_invalid(format!("{error}")))?;
    Ok(Hint {
        upstream,
        repository,
    })
}

fn named_upstream(component: &str, options: &MirrorOptions) -> Result<Option<Upstream>, ApiError> {
    let upstream = component.parse::<Upstream>();
    if Upstream::looks_like_one(component) {
        let upstream = upstream.map_err(|error| ApiError::name_invalid(error.to_string()))?;
        return Ok(Some(upstream));
    }
    Ok(upstream
        .ok()
        .filter(|upstream| options.aliases.contains(upstream)))
}

fn parse_digest(text: &str) -> Result<Digest, ApiError> {
    text.parse()
        .map_err(|error| ApiError::digest_invalid(format!("{error}")))
}

fn parse_selector(text: &str) -> Result<Selector, ApiError> {
    if text.contains(':') {
        return parse_digest(text).map(Selector::Digest);
    }
    text.parse::<Tag>()
        .map(Selector::Tag)
        .map_err(|error| ApiError::tag_unknown(error.to_string()))
}

/// The parameters that mean something; others are ignored, as the specification asks.
#[derive(Default)]
struct Query {
    ns: Option<Upstream>,
    n: Option<usize>,
    last: Option<String>,
    artifact_type: Option<String>,
}

impl Query {
    fn parse(query: &str) -> Result<Self, ApiError> {
        let mut parsed = Self::default();
        for (key, value) in url::form_urlencoded::parse(query.as_bytes()) {
            match key.as_ref() {
                "ns" => {
                    let ns = value
                        .parse()
                        .map_err(|error| ApiError::name_invalid(format!("ns: {error}")))?;
                    parsed.ns = Some(ns);
                }
                "n" => {
                    let n = value.parse().map_err(|_| {
                        ApiError::page_invalid("n is not a number of tags; write 0 or more")
                    })?;
                    parsed.n = Some(n);
                }
                "last" => parsed.last = Some(value.into_owned()),
                "artifactType" => parsed.artifact_type = Some(value.into_owned()),
                _ => {}
            }
        }
        Ok(parsed)
    }
}

/// The `ns` of a request where it has a valid one, to be echoed.
pub(super) fn namespace(uri: &Uri) -> Option<Upstream> {
    Query::parse(uri.query()?).ok()?.ns
}
