//! Manifests as registries send them.

use bytes::Bytes;
use reqwest::{
    Response,
    header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue},
};
use serde::de::IgnoredAny;
use sha2::{Digest as _, Sha256};
use shoal_protocol::{digest::Digest, limits::MANIFEST_BYTES_MAX};

use super::{body, error::OriginError};

/// Every type of manifest that clients know. A registry that is not told of a type converts the
/// manifest to another, which then has another digest, or says that there is none.
const TYPES: [&str; 7] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
    "application/vnd.docker.distribution.manifest.v1+json",
    "*/*",
];

/// The header that asks for a manifest of any type.
pub(super) fn accept() -> Option<(HeaderName, HeaderValue)> {
    Some((ACCEPT, HeaderValue::from_str(&TYPES.join(", ")).ok()?))
}

/// The digest that the registry gives.
pub(super) fn digest_header(headers: &HeaderMap) -> Option<Digest> {
    let header = headers.get("docker-content-digest")?;
    header.to_str().ok()?.parse().ok()
}

/// The digest of a manifest's bytes.
pub(super) fn digest_of(manifest: &[u8]) -> Digest {
    Digest::sha256(Sha256::digest(manifest).into())
}

/// A manifest, if that is what the answer is: the login page of a captive portal is not.
pub(super) async fn read(response: Response, subject: &str) -> Result<Bytes, OriginError> {
    let media_type = response
        .headers()
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
        .to_ascii_lowercase();
    if media_type.starts_with("text/html") {
        return Err(not_one("an HTML page", subject));
    }
    let manifest = body::collect(response, MANIFEST_BYTES_MAX, subject).await?;
    checked(manifest, &media_type, subject)
}

/// A manifest, if these bytes can be one.
pub(super) fn checked(
    manifest: Bytes,
    media_type: &str,
    subject: &str,
) -> Result<Bytes, OriginError> {
    match serde_json::from_slice::<IgnoredAny>(&manifest) {
        Ok(_) if manifest.trim_ascii_start().starts_with(b"{") => Ok(manifest),
        Ok(_) => Err(not_one("JSON that is no object", subject)),
        Err(problem) => {
            let what = format!("{media_type} that is no JSON ({problem})");
            Err(not_one(&what, subject))
        }
    }
}

fn not_one(what: &str, subject: &str) -> OriginError {
    OriginError::Invalid(format!(
        "{subject}: the answer is no manifest but {what}; is this the URL of a registry, and \
         nothing in between?"
    ))
}
