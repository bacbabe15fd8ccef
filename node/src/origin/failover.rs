//! Several origins for one upstream, asked in the operator's order.
//!
//! The list is the operator's word that what any of them gives under a name is the upstream's. So
//! whatever the first of them does not give is asked of the next, whether it is away, limits its
//! clients, refuses, has no such thing, or answers with nonsense; and a tag is what the first that
//! has it says, though one before it may be away. That there is no such thing is believed only of all
//! together.

use std::sync::Arc;

use futures::future::BoxFuture;
use shoal_protocol::message::Hint;

use super::{Origins, error::OriginError, place::Place};

impl Origins {
    /// What the first origin gives that gives anything.
    pub(super) async fn first<T, A: Clone>(
        &self,
        hint: &Hint,
        about: A,
        ask: fn(Arc<Place>, Hint, A) -> BoxFuture<'static, Result<T, OriginError>>,
    ) -> Result<T, OriginError> {
        let mut refusals = Vec::new();
        for place in self.places(&hint.upstream)? {
            match ask(place, hint.clone(), about.clone()).await {
                Ok(answer) => return Ok(answer),
                Err(refusal) => refusals.push(refusal),
            }
        }
        Err(sum(refusals))
    }
}

/// What the refusals of all origins come to.
fn sum(mut refusals: Vec<OriginError>) -> OriginError {
    if refusals.len() == 1 {
        return refusals.remove(0);
    }
    let texts: Vec<String> = refusals.iter().map(ToString::to_string).collect();
    let text = texts.join("; ");
    let unknown = |refusal: &OriginError| match refusal {
        OriginError::Unreachable(_) | OriginError::Truncated { .. } | OriginError::Invalid(_) => {
            true
        }
        OriginError::NotFound(_) | OriginError::Denied(_) | OriginError::Throttled { .. } => false,
    };
    let limits = |refusal: &OriginError| match refusal {
        OriginError::Throttled { retry_after, .. } => Some(*retry_after),
        _ => None,
    };
    if refusals.is_empty() || refusals.iter().any(unknown) {
        OriginError::Unreachable(text)
    } else if refusals.iter().any(|refusal| limits(refusal).is_some()) {
        OriginError::Throttled {
            reason: text,
            retry_after: refusals.iter().filter_map(limits).flatten().min(),
        }
    } else if refusals
        .iter()
        .any(|refusal| matches!(refusal, OriginError::Denied(_)))
    {
        OriginError::Denied(text)
    } else {
        OriginError::NotFound(text)
    }
}
