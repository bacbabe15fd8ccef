//! Pages that something in between gives in an origin's place: captive portals, filters, gateways.
//!
//! Registries answer with JSON, manifests and blobs. What answers with an HTML page is most likely not
//! the registry, whatever the status says, and must not be taken for content, for a refusal, or for the
//! word that there is no such thing: the registry could not be asked. Two things are a registry's
//! nevertheless: what has one of its headers, and a 401 with a challenge. Of a 404 alone it is found out,
//! since some registries leave theirs to the web server in front of them: see
//! [`Site::follow`](super::site::Site::follow).

use reqwest::{
    Response, StatusCode,
    header::{CONTENT_TYPE, WWW_AUTHENTICATE},
};

use super::error::OriginError;

/// Whether the answer is a page, and by nothing a registry's.
pub(super) fn is_page(response: &Response) -> bool {
    let headers = response.headers();
    let html = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.to_ascii_lowercase().starts_with("text/html"));
    let challenges =
        response.status() == StatusCode::UNAUTHORIZED && headers.contains_key(WWW_AUTHENTICATE);
    let registrys = challenges
        || headers.contains_key("docker-distribution-api-version")
        || headers.contains_key("docker-content-digest");
    html && !registrys
}

/// The error for one.
pub(super) fn in_between(response: &Response, subject: &str) -> OriginError {
    OriginError::Unreachable(format!(
        "{subject}: {} answered {} with an HTML page; is this the URL of a registry, and nothing in \
         between?",
        response.url().host_str().unwrap_or_default(),
        response.status(),
    ))
}
