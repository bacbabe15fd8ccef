//! Images out of the swarm and into it, for whoever shows the daemon's token.

use std::str::FromStr;

use futures::StreamExt as _;
use hyper::{
    Request, StatusCode,
    header::{AUTHORIZATION, CONTENT_LENGTH, HeaderValue},
};
use serde::{Deserialize, Serialize};
use shoal_protocol::{
    digest::Digest,
    message::{BlobKind, Hint, TagKey},
    reference::{Reference, Selector},
};

use super::{
    Admin, ImportError, PullError, Token,
    routes::{Refusal, json, text},
};
use crate::{
    http::{self, OCTETS, Reply, RequestBody},
    store::StoreError,
};

/// GET: the manifest of `ref`.
pub(super) const EXPORT_MANIFEST: &str = "/v1/export/manifest";
/// GET: the blob that `ref` names by its digest.
pub(super) const EXPORT_BLOB: &str = "/v1/export/blob";
/// PUT: the blob `digest` of `size` bytes, a `kind` of blob.
pub(super) const IMPORT_BLOB: &str = "/v1/import/blob";
/// PUT: the tag `ref` is to name the manifest `digest`.
pub(super) const IMPORT_TAG: &str = "/v1/import/tag";

/// The answer to an imported tag.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagImported {
    /// How many other members were told.
    pub told: u64,
}

/// Answers a request for one of the paths above.
pub(super) async fn respond<A: Admin>(
    request: Request<RequestBody>,
    admin: &A,
    token: &Token,
) -> Reply {
    if !token.is_shown_by(request.headers().get(AUTHORIZATION)) {
        return text(
            StatusCode::UNAUTHORIZED,
            "images are exported and imported for whoever shows the token in admin.token of the \
             daemon's data directory; it is new at each start"
                .into(),
        );
    }
    let reply = match request.uri().path() {
        EXPORT_MANIFEST => export_manifest(&request, admin).await,
        EXPORT_BLOB => export_blob(&request, admin).await,
        IMPORT_BLOB => import_blob(request, admin).await,
        _ => import_tag(&request, admin).await,
    };
    reply.unwrap_or_else(|(status, message)| text(status, message))
}

async fn export_manifest<A: Admin>(
    request: &Request<RequestBody>,
    admin: &A,
) -> Result<Reply, Refusal> {
    let reference: Reference = parameter(request, "ref")?;
    let manifest = admin.export_manifest(reference).await.map_err(unanswered)?;
    Ok(http::full(
        StatusCode::OK,
        &manifest.media_type,
        manifest.bytes,
    ))
}

async fn export_blob<A: Admin>(
    request: &Request<RequestBody>,
    admin: &A,
) -> Result<Reply, Refusal> {
    let Reference {
        upstream,
        repository,
        selector: Selector::Digest(digest),
    } = parameter(request, "ref")?
    else {
        return Err(bad("ref: name the blob by its digest".into()));
    };
    let hint = Hint {
        upstream,
        repository,
    };
    let body = admin.export_blob(digest, hint).await.map_err(unanswered)?;
    let mut reply = http::streamed(StatusCode::OK, OCTETS, body.stream);
    reply
        .headers_mut()
        .insert(CONTENT_LENGTH, HeaderValue::from(body.size));
    Ok(reply)
}

async fn import_blob<A: Admin>(request: Request<RequestBody>, admin: &A) -> Result<Reply, Refusal> {
    let digest: Digest = parameter(&request, "digest")?;
    let size: u64 = parameter(&request, "size")?;
    let kind = match parameter::<String>(&request, "kind")?.as_str() {
        "manifest" => BlobKind::Manifest,
        "blob" => BlobKind::Blob,
        other => return Err(bad(format!("kind: `{other}` is neither manifest nor blob"))),
    };
    let body = request.into_body().into_stream().boxed();
    let imported = admin.import_blob(digest, kind, size, body).await;
    imported.map_err(not_taken)?;
    Ok(text(StatusCode::OK, format!("{digest} is here")))
}

async fn import_tag<A: Admin>(request: &Request<RequestBody>, admin: &A) -> Result<Reply, Refusal> {
    let digest: Digest = parameter(request, "digest")?;
    let Reference {
        upstream,
        repository,
        selector: Selector::Tag(tag),
    } = parameter(request, "ref")?
    else {
        return Err(bad("ref: name a tag".into()));
    };
    let key = TagKey {
        upstream,
        repository,
        tag,
    };
    let told = admin.import_tag(key, digest).await.map_err(not_taken)?;
    Ok(json(&TagImported { told }))
}

/// A parameter of the query, parsed.
fn parameter<T: FromStr<Err: std::fmt::Display>>(
    request: &Request<RequestBody>,
    name: &str,
) -> Result<T, Refusal> {
    let query = request.uri().query().unwrap_or_default();
    let (_, value) = url::form_urlencoded::parse(query.as_bytes())
        .find(|(key, _)| key == name)
        .ok_or_else(|| bad(format!("the parameter `{name}` is missing")))?;
    value
        .parse()
        .map_err(|error| bad(format!("{name}: {error}")))
}

fn bad(message: String) -> Refusal {
    (StatusCode::BAD_REQUEST, message)
}

fn unanswered(error: PullError) -> Refusal {
    let status = match error {
        PullError::NotFound(_) => StatusCode::NOT_FOUND,
        PullError::Denied(_) => StatusCode::FORBIDDEN,
        PullError::Throttled { .. } => StatusCode::TOO_MANY_REQUESTS,
        PullError::TimedOut(_) => StatusCode::GATEWAY_TIMEOUT,
        PullError::OutOfRange { .. } | PullError::Unavailable(_) | PullError::Corrupt(_) => {
            StatusCode::SERVICE_UNAVAILABLE
        }
    };
    (status, error.to_string())
}

fn not_taken(error: ImportError) -> Refusal {
    let status = match error {
        ImportError::Store(StoreError::Full { .. } | StoreError::DiskFull { .. }) => {
            StatusCode::INSUFFICIENT_STORAGE
        }
        ImportError::Store(
            StoreError::Length { .. }
            | StoreError::Differs { .. }
            | StoreError::Size { .. }
            | StoreError::TooLarge { .. },
        )
        | ImportError::Body(_)
        | ImportError::ManifestSize(_) => StatusCode::BAD_REQUEST,
        ImportError::Incomplete(_) => StatusCode::CONFLICT,
        ImportError::Stopping => StatusCode::SERVICE_UNAVAILABLE,
        ImportError::Store(_) => StatusCode::INTERNAL_SERVER_ERROR,
    };
    (status, error.to_string())
}
