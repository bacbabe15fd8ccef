//! Why an origin did not give what it was asked for.

use std::time::Duration;

use shoal_protocol::message::{OriginFailure, TagFailure};

use crate::content::PullError;

/// Why an origin did not give what it was asked for. Each text says what was asked of whom.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OriginError {
    /// The origin said that it does not exist (404).
    #[error("{0}")]
    NotFound(String),
    /// The origin, or the token realm that it named, refused our credentials or asked for some
    /// where none are configured (401, 403).
    #[error("{0}")]
    Denied(String),
    /// The origin limits its clients (429, 503).
    #[error("{reason}")]
    Throttled {
        /// What was asked and what was said.
        reason: String,
        /// How long to wait, if it said; at most an hour.
        retry_after: Option<Duration>,
    },
    /// No answer of use: the name does not resolve, nobody listens, TLS fails, the time is up, a
    /// gateway or the server failed (5xx), or this node may not go to that address.
    #[error("{0}")]
    Unreachable(String),
    /// The body ended before all of it had come. What came of it is good as far as it goes.
    #[error("{subject}: the body broke off after {got} bytes{}", of_expected(*.expected))]
    Truncated {
        /// What was asked of whom.
        subject: String,
        /// How many bytes had been promised, where that is known.
        expected: Option<u64>,
        /// How many came.
        got: u64,
    },
    /// An answer that cannot be what was asked for; asking again gives the same.
    #[error("{0}")]
    Invalid(String),
}

impl OriginError {
    /// Whether the origin could not be asked, rather than said something.
    pub(crate) fn is_away(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Throttled { .. } | Self::Truncated { .. } => true,
            Self::NotFound(_) | Self::Denied(_) | Self::Invalid(_) => false,
        }
    }

    /// The same, with what was asked of whom before it.
    pub(super) fn about(self, subject: &str) -> Self {
        let about = |text: String| format!("{subject}: {text}");
        match self {
            Self::NotFound(text) => Self::NotFound(about(text)),
            Self::Denied(text) => Self::Denied(about(text)),
            Self::Throttled {
                reason,
                retry_after,
            } => Self::Throttled {
                reason: about(reason),
                retry_after,
            },
            Self::Unreachable(text) => Self::Unreachable(about(text)),
            Self::Truncated {
                subject,
                expected,
                got,
            } => Self::Truncated {
                subject: about(subject),
                expected,
                got,
            },
            Self::Invalid(text) => Self::Invalid(about(text)),
        }
    }
}

fn of_expected(expected: Option<u64>) -> String {
    expected.map_or_else(String::new, |expected| format!(" of {expected}"))
}

impl From<&OriginError> for OriginFailure {
    fn from(error: &OriginError) -> Self {
        match error {
            OriginError::NotFound(_) => Self::NotFound,
            OriginError::Denied(_) => Self::Denied,
            OriginError::Throttled { retry_after, .. } => Self::Throttled {
                retry_ms: retry_after
                    .map(|wait| u32::try_from(wait.as_millis()).unwrap_or(u32::MAX)),
            },
            OriginError::Unreachable(_)
            | OriginError::Truncated { .. }
            | OriginError::Invalid(_) => Self::Failed(error.to_string()),
        }
    }
}

impl From<&OriginError> for TagFailure {
    fn from(error: &OriginError) -> Self {
        match error {
            OriginError::NotFound(text) => Self::NotFound(text.clone()),
            OriginError::Denied(text) => Self::Denied(text.clone()),
            // Rounded up: to come back early is to be refused again.
            OriginError::Throttled { retry_after, .. } => Self::Throttled(
                retry_after
                    .map(|wait| u32::try_from(wait.as_millis().div_ceil(1000)).unwrap_or(u32::MAX)),
            ),
            OriginError::Unreachable(_)
            | OriginError::Truncated { .. }
            | OriginError::Invalid(_) => Self::Unreachable(error.to_string()),
        }
    }
}

impl From<&OriginError> for PullError {
    fn from(error: &OriginError) -> Self {
        match error {
            OriginError::NotFound(text) => Self::NotFound(text.clone()),
            OriginError::Denied(text) => Self::Denied(text.clone()),
            OriginError::Throttled {
                reason,
                retry_after,
            } => Self::Throttled {
                reason: reason.clone(),
                retry_after: *retry_after,
            },
            OriginError::Unreachable(_)
            | OriginError::Truncated { .. }
            | OriginError::Invalid(_) => Self::Unavailable(error.to_string()),
        }
    }
}
