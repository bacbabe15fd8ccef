//! Several origins for one upstream, asked in the operator's order.
//!
//! The list is the operator's word that what any of them gives under a name is the upstream's. So
//! whatever the first of them does not give is asked of the next, whether it is away, limits its
//! clients, refuses, has no such thing, or answers with nonsense; and a tag is what the first that
//! has it says, though one before it may be away. That there is no such thing is believed only of all
//! together.
//!
//! An origin that was found to be away is passed over, until one request tries it again. Whoever made
//! that request waits for it only so long as an origin that is back would take; it goes on by itself.

use std::sync::Arc;

use futures::future::BoxFuture;
use shoal_protocol::message::Hint;

use super::{
    Origins, breaker::Turn, error::OriginError, health::Pending, limits::PROBE_PATIENCE,
    place::Place,
};

/// A question under way.
type Asked<T> = BoxFuture<'static, Result<T, OriginError>>;

impl Origins {
    /// What the first origin gives that gives anything.
    pub(super) async fn first<T: Send + 'static, A: Clone>(
        &self,
        hint: &Hint,
        about: A,
        ask: fn(Arc<Place>, Hint, A) -> Asked<T>,
    ) -> Result<T, OriginError> {
        let mut refusals = Vec::new();
        let mut limited = Vec::new();
        for place in self.places(&hint.upstream)? {
            let asked = ask(Arc::clone(&place), hint.clone(), about.clone());
            let turn = place.health().turn();
            if turn == Turn::Last {
                limited.push((place, asked));
                continue;
            }
            match in_turn(turn, place, asked).await {
                Ok(answer) => return Ok(answer),
                Err(refusal) => refusals.push(refusal),
            }
        }
        for (place, asked) in limited {
            match in_turn(Turn::Last, place, asked).await {
                Ok(answer) => return Ok(answer),
                Err(refusal) => refusals.push(refusal),
            }
        }
        Err(sum(refusals))
    }
}

/// What one origin answers, if it is worth asking.
pub(super) async fn in_turn<T: Send + 'static>(
    turn: Turn,
    place: Arc<Place>,
    asked: Asked<T>,
) -> Result<T, OriginError> {
    match turn {
        Turn::Now | Turn::Last => settled(place, asked, false).await,
        Turn::Probe => probe(place, asked).await,
        Turn::No => Err(place.health().away()),
    }
}

/// The outcome of a request, which the origin's breaker is told of.
async fn settled<T>(place: Arc<Place>, asked: Asked<T>, probe: bool) -> Result<T, OriginError> {
    let pending = Pending::begin(place, probe);
    let outcome = asked.await;
    pending.end(outcome.as_ref().err());
    outcome
}

/// As [`settled`], in a task of its own: the breaker is told also when nobody waits any more.
async fn probe<T: Send + 'static>(place: Arc<Place>, asked: Asked<T>) -> Result<T, OriginError> {
    let task = tokio::spawn(settled(Arc::clone(&place), asked, true));
    match tokio::time::timeout(PROBE_PATIENCE, task).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(_)) | Err(_) => Err(place.health().away()),
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
        OriginError::NotFound(_)
        | OriginError::Denied(_)
        | OriginError::Unreachable(_)
        | OriginError::Truncated { .. }
        | OriginError::Invalid(_) => None,
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
