//! Errors as the OCI distribution specification wants them: a status code and a JSON body.

use std::time::Duration;

use hyper::{
    StatusCode,
    header::{ALLOW, CONTENT_RANGE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE},
};

use crate::{
    content::PullError,
    http::{self, Reply},
    origin::{NoPass, Refusal, Told},
};

/// What a client is told when it cannot have what it asked for.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
    headers: Vec<(HeaderName, HeaderValue)>,
}

/// What was asked for: a failure to give it has a code of its own.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wanted {
    /// A manifest.
    Manifest,
    /// A blob.
    Blob,
    /// A repository's tags.
    Tags,
}

impl Wanted {
    fn unknown(self) -> &'static str {
        match self {
            Self::Manifest => "MANIFEST_UNKNOWN",
            Self::Blob => "BLOB_UNKNOWN",
            Self::Tags => "NAME_UNKNOWN",
        }
    }
}

impl ApiError {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
            headers: Vec::new(),
        }
    }

    fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// The name of a repository or upstream is outside the grammar.
    pub(super) fn name_invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "NAME_INVALID", message)
    }

    /// Not a digest.
    pub(super) fn digest_invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "DIGEST_INVALID", message)
    }

    /// Not a number of tags.
    pub(super) fn page_invalid(message: impl Into<String>) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "PAGINATION_NUMBER_INVALID",
            message,
        )
    }

    /// A tag outside the grammar. Nothing can have that name, so it is unknown rather than
    /// invalid, as the conformance tests of the specification expect.
    pub(super) fn tag_unknown(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", message)
    }

    /// Anything but reading.
    pub(super) fn read_only() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "UNSUPPORTED",
            "this is a read-only mirror; push to the registry itself",
        )
        .with(ALLOW, HeaderValue::from_static("GET, HEAD"))
    }

    /// A path that is none of the API's.
    pub(super) fn no_such_endpoint() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "UNSUPPORTED",
            "this mirror serves /v2/<name>/manifests, blobs, tags/list and referrers",
        )
    }

    /// The request's address is longer than `max` bytes.
    pub(super) fn uri_too_long(max: usize) -> Self {
        Self::new(
            StatusCode::URI_TOO_LONG,
            "NAME_INVALID",
            format!("the request's path and query are longer than {max} bytes"),
        )
    }

    /// A client that has no leave to read.
    pub(super) fn no_pass(reason: NoPass, wanted: Wanted) -> Self {
        match reason {
            NoPass::Unnamed(upstream) => Self::new(
                StatusCode::FORBIDDEN,
                "DENIED",
                format!(
                    "this mirror serves only the upstreams that its configuration names, because some \
                     of them are not for everybody; to have {upstream} among them, start the node with \
                     --access {upstream}=open, or origin"
                ),
            ),
            NoPass::Refused(Refusal::Told(Told { status, challenges })) => {
                let code = match status {
                    StatusCode::UNAUTHORIZED => "UNAUTHORIZED",
                    _ => "DENIED",
                };
                let told =
                    "the origin refuses this to you; log in to this mirror as you would there";
                challenges
                    .into_iter()
                    .fold(Self::new(status, code, told), |error, challenge| {
                        error.with(WWW_AUTHENTICATE, challenge)
                    })
            }
            NoPass::Refused(Refusal::Origin(error)) => {
                let mut error = Self::pull(&PullError::from(&error), wanted);
                if error.status == StatusCode::SERVICE_UNAVAILABLE {
                    error.message =
                        format!("cannot ask whether you may read this: {}", error.message);
                }
                error
            }
        }
    }

    /// What the node could not give.
    pub(super) fn pull(error: &PullError, wanted: Wanted) -> Self {
        let message = error.to_string();
        match error {
            PullError::NotFound(_) => Self::new(StatusCode::NOT_FOUND, wanted.unknown(), message),
            PullError::Denied(_) => Self::new(StatusCode::FORBIDDEN, "DENIED", message),
            PullError::Throttled { retry_after, .. } => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", message)
                    .with(RETRY_AFTER, seconds(retry_after.unwrap_or(RETRY_DEFAULT)))
            }
            PullError::Unavailable(_) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", message)
            }
            PullError::TimedOut(_) => {
                Self::new(StatusCode::GATEWAY_TIMEOUT, "UNAVAILABLE", message)
            }
            PullError::OutOfRange { size } => {
                let error = Self::new(StatusCode::RANGE_NOT_SATISFIABLE, "RANGE_INVALID", message);
                match HeaderValue::try_from(format!("bytes */{size}")) {
                    Ok(value) => error.with(CONTENT_RANGE, value),
                    Err(_) => error,
                }
            }
            PullError::Corrupt(_) => Self::new(StatusCode::BAD_GATEWAY, "UNAVAILABLE", message),
        }
    }

    /// The response.
    pub(super) fn reply(self) -> Reply {
        let body = serde_json::json!({
            "errors": [{ "code": self.code, "message": self.message, "detail": null }]
        });
        let mut reply = http::full(self.status, "application/json", body.to_string());
        reply.headers_mut().extend(self.headers);
        reply
    }
}

/// What a client is told to wait where the origin did not say.
const RETRY_DEFAULT: Duration = Duration::from_secs(5);

/// Whole seconds, rounded up, at least one.
fn seconds(wait: Duration) -> HeaderValue {
    let whole = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    HeaderValue::from(whole.max(1))
}
