//! Answers that are not what was asked for.

use std::time::Duration;

use reqwest::{Response, StatusCode, header::RETRY_AFTER};
use serde::Deserialize;

use super::{body, error::OriginError, page, retry_after};
use crate::clock;

/// The error that an answer without success means, with the registry's own words.
pub(super) async fn error(response: Response, subject: &str) -> OriginError {
    let status = response.status();
    let forbids = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
    if forbids && page::is_page(&response) {
        return page::in_between(&response, subject);
    }
    let host = response.url().host_str().unwrap_or_default().to_owned();
    let retry_after = retry_after(&response);
    let words = words(response).await;
    let reason = format!("{subject}: {host} answered {status}{words}");
    meaning(status, reason, retry_after)
}

/// How long the answer asks to wait, if it does.
pub(super) fn retry_after(response: &Response) -> Option<Duration> {
    let value = response.headers().get(RETRY_AFTER)?.to_str().ok()?;
    retry_after::parse(value, clock::unix_seconds())
}

/// The error that a status without success means.
pub(super) fn meaning(
    status: StatusCode,
    reason: String,
    retry_after: Option<Duration>,
) -> OriginError {
    match status {
        StatusCode::NOT_FOUND => OriginError::NotFound(reason),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => OriginError::Denied(reason),
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => OriginError::Throttled {
            reason,
            retry_after,
        },
        status if status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT => {
            OriginError::Unreachable(reason)
        }
        _ => OriginError::Invalid(reason),
    }
}

/// The first error of the body that the distribution specification prescribes.
async fn words(response: Response) -> String {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<First>,
    }
    #[derive(Deserialize)]
    struct First {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let first = body::collect_refusal(response)
        .await
        .and_then(|body| serde_json::from_slice::<Errors>(&body).ok())
        .and_then(|errors| errors.errors.into_iter().next());
    first.map_or_else(String::new, |first| {
        let words: String = format!(" ({}: {})", first.code, first.message)
            .chars()
            .filter(|character| !character.is_control())
            .take(300)
            .collect();
        words
    })
}
