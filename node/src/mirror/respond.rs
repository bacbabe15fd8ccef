//! From a request to its response.

use std::sync::Arc;

use hyper::{
    HeaderMap, Method, Request, StatusCode,
    header::{
        ACCEPT_RANGES, AGE, AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderName,
        HeaderValue, LINK, WARNING,
    },
};
use shoal_protocol::{
    digest::Digest,
    message::Hint,
    reference::{Reference, Selector, Tag},
};
use tracing::debug;

use super::{
    MirrorOptions, body,
    conditions::{client_has, range_applies},
    error::{ApiError, Wanted},
    multipart,
    range::{self, Asked},
    routes::{self, Route, TagPage},
};
use crate::{
    content::{BlobBody, Content, Manifest, PullError, Span, Stale},
    http::{self, Reply},
    origin::{Object, Pass},
};

const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const DOCKER_API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
const OCI_NAMESPACE: HeaderName = HeaderName::from_static("oci-namespace");
const OCI_FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");
const JSON: &str = "application/json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Answers `request` from `content`. Generic over the request's body, which is never read.
pub(super) async fn respond<B, C: Content>(
    request: &Request<B>,
    content: &Arc<C>,
    options: &MirrorOptions,
) -> Reply {
    let (method, uri) = (request.method(), request.uri());
    let mut reply = match routes::parse(method, uri, options) {
        Ok(route) => answer(route, method, request.headers(), content, options)
            .await
            .unwrap_or_else(ApiError::reply),
        Err(error) => error.reply(),
    };
    let headers = reply.headers_mut();
    headers.insert(DOCKER_API_VERSION, HeaderValue::from_static("registry/2.0"));
    if let Some(ns) = routes::namespace(uri) {
        insert(headers, OCI_NAMESPACE, ns.as_str());
    }
    options.metrics.mirror_request(reply.status().as_u16());
    debug!(%method, %uri, status = reply.status().as_u16(), "answered a client");
    reply
}

async fn answer<C: Content>(
    route: Route,
    method: &Method,
    headers: &HeaderMap,
    content: &Arc<C>,
    options: &MirrorOptions,
) -> Result<Reply, ApiError> {
    let pass = admit(&route, headers, options).await?;
    match route {
        Route::Base(_) => Ok(http::full(StatusCode::OK, JSON, "{}")),
        Route::Manifest(reference) => {
            manifest(reference, method, headers, &**content, options).await
        }
        Route::Blob(digest, hint) if method == Method::HEAD => {
            blob_head(digest, hint, headers, &**content).await
        }
        Route::Blob(digest, hint) => blob(digest, hint, headers, content, options, pass).await,
        Route::Tags(page) => tags(page, &**content).await,
        Route::Referrers {
            hint,
            subject,
            artifact_type,
        } => referrers(hint, subject, artifact_type, &**content).await,
    }
}

/// Leave to read what is asked for, to be kept until it has been given.
async fn admit(
    route: &Route,
    headers: &HeaderMap,
    options: &MirrorOptions,
) -> Result<Pass, ApiError> {
    let Some(gate) = &options.gate else {
        return Ok(Pass::default());
    };
    let authorization = headers.get(AUTHORIZATION).cloned().map(|mut value| {
        value.set_sensitive(true);
        value
    });
    let authorization = authorization.as_ref();
    let (hint, object, wanted) = match route {
        Route::Base(ns) => {
            let default = &options.default_upstream;
            let greeted = gate.greet(ns.as_ref(), default, authorization).await;
            greeted.map_err(|reason| ApiError::no_pass(reason, Wanted::Tags))?;
            return Ok(Pass::default());
        }
        Route::Manifest(reference) => (
            &hint_of(reference),
            Object::Manifest(reference.selector.clone()),
            Wanted::Manifest,
        ),
        Route::Blob(digest, hint) => (hint, Object::Blob(*digest), Wanted::Blob),
        Route::Tags(page) => (&page.hint, Object::Lists, Wanted::Tags),
        Route::Referrers { hint, .. } => (hint, Object::Lists, Wanted::Tags),
    };
    let admitted = gate.admit(hint, &object, authorization).await;
    admitted.map_err(|reason| ApiError::no_pass(reason, wanted))
}

fn hint_of(reference: &Reference) -> Hint {
    Hint {
        upstream: reference.upstream.clone(),
        repository: reference.repository.clone(),
    }
}

async fn manifest<C: Content>(
    reference: Reference,
    method: &Method,
    headers: &HeaderMap,
    content: &C,
    options: &MirrorOptions,
) -> Result<Reply, ApiError> {
    let hint = hint_of(&reference);
    let found = content
        .manifest(reference)
        .await
        .map_err(|error| ApiError::pull(&error, Wanted::Manifest))?;
    if let Some(gate) = &options.gate {
        gate.remember(&hint, found.digest);
    }
    let Manifest {
        digest,
        media_type,
        bytes,
        stale,
    } = found;

    let etag = etag(&digest);
    let mut reply = if client_has(headers, &etag) {
        not_modified()
    } else {
        if method == Method::GET {
            options.metrics.mirror_bytes.add(bytes.len() as u64);
        }
        let essence = media_type.split(';').next().unwrap_or_default().trim();
        http::full(StatusCode::OK, essence, bytes)
    };
    identify(reply.headers_mut(), &digest, &etag);
    if let Some(stale) = stale {
        options.metrics.stale_tags.increment();
        warn_of(&stale, reply.headers_mut());
    }
    Ok(reply)
}

async fn blob_head<C: Content>(
    digest: Digest,
    hint: Hint,
    headers: &HeaderMap,
    content: &C,
) -> Result<Reply, ApiError> {
    let size = content
        .blob_size(digest, hint)
        .await
        .map_err(|error| ApiError::pull(&error, Wanted::Blob))?;
    let etag = etag(&digest);
    let mut reply = if client_has(headers, &etag) {
        not_modified()
    } else {
        let mut reply = http::full(StatusCode::OK, http::OCTETS, "");
        let headers = reply.headers_mut();
        headers.insert(CONTENT_LENGTH, HeaderValue::from(size));
        headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        reply
    };
    identify(reply.headers_mut(), &digest, &etag);
    Ok(reply)
}

async fn blob<C: Content>(
    digest: Digest,
    hint: Hint,
    headers: &HeaderMap,
    content: &Arc<C>,
    options: &MirrorOptions,
    pass: Pass,
) -> Result<Reply, ApiError> {
    let etag = etag(&digest);
    if client_has(headers, &etag) {
        // Only what exists is unchanged; asking for the size fetches nothing.
        return blob_head(digest, hint, headers, &**content).await;
    }
    let asked = if range_applies(headers, &etag) {
        range::asked(headers)
    } else {
        Asked::Whole
    };
    let refused = |error: PullError| ApiError::pull(&error, Wanted::Blob);
    let metrics = &options.metrics;
    let parts = match &asked {
        Asked::Several(spans) => multipart::reply(content, digest, &hint, spans, metrics).await,
        Asked::Whole | Asked::One(_) => Ok(None),
    };
    let reply = match (parts.map_err(refused)?, asked) {
        (Some(reply), _) => reply,
        (None, Asked::One(span)) => {
            let found = content.blob(digest, hint, span).await.map_err(refused)?;
            let (BlobBody { range, size, .. }, status) = (&found, StatusCode::PARTIAL_CONTENT);
            let place = format!("bytes {}-{}/{size}", range.start, range.end - 1);
            let mut reply = bytes_of(found, status, options);
            insert(reply.headers_mut(), CONTENT_RANGE, &place);
            reply
        }
        (None, Asked::Whole | Asked::Several(_)) => {
            let found = content.blob(digest, hint, Span::Whole).await;
            bytes_of(found.map_err(refused)?, StatusCode::OK, options)
        }
    };
    // The client's credentials may be used until the answer ends.
    let mut reply = reply.map(|body| body.holding(pass));
    let headers = reply.headers_mut();
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    identify(headers, &digest, &etag);
    Ok(reply)
}

fn bytes_of(found: BlobBody, status: StatusCode, options: &MirrorOptions) -> Reply {
    let length = found.range.end - found.range.start;
    let stream = body::counted(found, Arc::clone(&options.metrics));
    let mut reply = http::streamed(status, http::OCTETS, stream);
    let headers = reply.headers_mut();
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    reply
}

async fn tags<C: Content>(page: TagPage, content: &C) -> Result<Reply, ApiError> {
    let mut tags = content
        .tags(page.hint)
        .await
        .map_err(|error| ApiError::pull(&error, Wanted::Tags))?;
    // Pages need one order that every node agrees on, whatever the origin's is.
    tags.sort_unstable();
    let first = page
        .last
        .as_deref()
        .map_or(0, |last| tags.partition_point(|tag| tag.as_str() <= last));
    let rest = &tags[first..];
    let shown = &rest[..page.count.unwrap_or(rest.len()).min(rest.len())];

    let body = serde_json::json!({ "name": page.name, "tags": shown });
    let mut reply = http::full(StatusCode::OK, JSON, body.to_string());
    if let (Some(count), Some(last)) = (page.count, shown.last())
        && shown.len() < rest.len()
    {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        query
            .append_pair("n", &count.to_string())
            .append_pair("last", last.as_str());
        if let Some(ns) = &page.ns {
            query.append_pair("ns", ns.as_str());
        }
        let link = format!(
            "</v2/{}/tags/list?{}>; rel=\"next\"",
            page.name,
            query.finish()
        );
        insert(reply.headers_mut(), LINK, &link);
    }
    Ok(reply)
}

/// Answers as the origin does. Where that has no such list, from the referrers tag, `sha256-<hex>`,
/// that registries without the API keep; it may be at hand also while the origin is away.
async fn referrers<C: Content>(
    hint: Hint,
    subject: Digest,
    artifact_type: Option<String>,
    content: &C,
) -> Result<Reply, ApiError> {
    let mut referrers = match content.referrers(hint.clone(), subject).await {
        Ok(listed) => listed,
        Err(refusal) => {
            let reference = Reference {
                upstream: hint.upstream,
                repository: hint.repository,
                selector: Selector::Tag(referrers_tag(&subject)?),
            };
            match (content.manifest(reference).await, refusal) {
                (Ok(found), _) => listed_manifests(&found.bytes),
                (Err(PullError::NotFound(_)), PullError::NotFound(_)) => Vec::new(),
                (Err(PullError::NotFound(_)), error) | (Err(error), _) => {
                    return Err(ApiError::pull(&error, Wanted::Manifest));
                }
            }
        }
    };
    if let Some(wanted) = &artifact_type {
        referrers.retain(|entry| entry["artifactType"].as_str() == Some(wanted));
    }
    let index = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": referrers,
    });
    let mut reply = http::full(StatusCode::OK, OCI_INDEX, index.to_string());
    if artifact_type.is_some() {
        insert(reply.headers_mut(), OCI_FILTERS_APPLIED, "artifactType");
    }
    Ok(reply)
}

/// The tag of the OCI distribution specification's referrers tag schema, which keeps 64
/// characters of the hash.
fn referrers_tag(subject: &Digest) -> Result<Tag, ApiError> {
    let hex = subject.hex();
    format!("{}-{}", subject.algorithm().name(), &hex[..64])
        .parse()
        .map_err(|error| ApiError::digest_invalid(format!("{error}")))
}

fn listed_manifests(index: &[u8]) -> Vec<serde_json::Value> {
    let index: serde_json::Value = serde_json::from_slice(index).unwrap_or_default();
    index["manifests"].as_array().cloned().unwrap_or_default()
}

fn not_modified() -> Reply {
    let mut reply = Reply::default();
    *reply.status_mut() = StatusCode::NOT_MODIFIED;
    reply
}

fn etag(digest: &Digest) -> String {
    format!("\"{digest}\"")
}

fn identify(headers: &mut HeaderMap, digest: &Digest, etag: &str) {
    insert(headers, DOCKER_CONTENT_DIGEST, &digest.to_string());
    insert(headers, ETAG, etag);
}

/// Says that an answer is stale, why, and for how long (RFC 7234, section 5.5).
fn warn_of(stale: &Stale, headers: &mut HeaderMap) {
    let reason: String = stale
        .reason
        .chars()
        .map(|c| match c {
            '"' | '\\' => '\'',
            ' '..='~' => c,
            _ => '?',
        })
        .collect();
    headers.insert(
        WARNING,
        HeaderValue::from_static("110 - \"Response is Stale\""),
    );
    if let Ok(value) = HeaderValue::try_from(format!("299 - \"{reason}\"")) {
        headers.append(WARNING, value);
    }
    headers.insert(AGE, HeaderValue::from(stale.age_seconds));
}

/// Sets a header to a text that is visible ASCII by the grammar of what it is made of.
fn insert(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}
