//! How one origin does: its breaker with a clock, what it has been asked, and what is said of it.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream::BoxStream};
use rand::{TryRng as _, rngs::SysRng};
use shoal_protocol::{reference::Upstream, time::Time};
use url::Url;

use super::{
    OriginBody,
    breaker::{Breaker, Condition, Outcome, Turn},
    error::OriginError,
    place::Place,
};
use crate::{clock::Clock, stats::OriginStats};

/// How one origin does.
pub(super) struct Health {
    upstream: Upstream,
    /// Where it is, without what may be a secret.
    url: String,
    clock: Clock,
    memory: Mutex<Memory>,
}

struct Memory {
    breaker: Breaker,
    requests: u64,
    failures: u64,
    /// Why it failed last.
    reason: Option<String>,
}

impl Health {
    pub(super) fn new(upstream: &Upstream, url: &Url, alternatives: bool, clock: Clock) -> Self {
        let mut shown = url.clone();
        shown.set_query(None);
        shown.set_fragment(None);
        // These fail only for URLs that cannot hold either.
        let _ = shown.set_username("");
        let _ = shown.set_password(None);
        Self {
            upstream: upstream.clone(),
            url: shown.into(),
            clock,
            memory: Mutex::new(Memory {
                breaker: Breaker::new(alternatives, clock.now()),
                requests: 0,
                failures: 0,
                reason: None,
            }),
        }
    }

    /// Where the origin is, without what may be a secret.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    pub(super) fn now(&self) -> Time {
        self.clock.now()
    }

    /// Whether to ask it now.
    pub(super) fn turn(&self) -> Turn {
        let now = self.now();
        self.lock().breaker.turn(now)
    }

    /// The error of a request that it is not asked.
    pub(super) fn away(&self) -> OriginError {
        let reason = self.lock().reason.clone();
        OriginError::Unreachable(format!(
            "{} at {} is away and will be tried again in a moment: {}",
            self.upstream,
            self.url,
            reason.as_deref().unwrap_or("it did not answer")
        ))
    }

    /// A request that began at `began` has ended.
    pub(super) fn ended(&self, error: Option<&OriginError>, probe: bool, began: Time) {
        self.lock().requests += 1;
        let took = self.now().since(began);
        let outcome = match error {
            None | Some(OriginError::NotFound(_) | OriginError::Denied(_)) => Outcome::Answered,
            Some(OriginError::Throttled { retry_after, .. }) => Outcome::Limited(*retry_after),
            Some(OriginError::Unreachable(_) | OriginError::Truncated { .. }) => {
                Outcome::Failed(took)
            }
            Some(OriginError::Invalid(_)) => Outcome::Nonsense,
        };
        self.note(outcome, error, probe);
    }

    /// Somebody has given up a request, or a body, that gave nothing for so long.
    fn given_up(&self, silent: Duration) {
        if !self.lock().breaker.is_long(silent) {
            return;
        }
        let error = OriginError::Unreachable(format!(
            "{} at {} gave nothing for {:.1} s",
            self.upstream,
            self.url,
            silent.as_secs_f64()
        ));
        self.note(Outcome::Failed(silent), Some(&error), false);
    }

    fn note(&self, outcome: Outcome, error: Option<&OriginError>, probe: bool) {
        let now = self.now();
        let jitter = SysRng.try_next_u32().map_or(0.5, f64::from) / f64::from(u32::MAX);
        let mut memory = self.lock();
        if outcome != Outcome::Answered {
            memory.failures += 1;
            memory.reason = error.map(ToString::to_string);
        }
        let (before, since) = memory.breaker.condition();
        memory.breaker.ended(outcome, probe, now, jitter);
        let (after, _) = memory.breaker.condition();
        if after == before {
            return;
        }
        let (upstream, origin) = (&self.upstream, &self.url);
        let reason = memory.reason.clone().unwrap_or_default();
        drop(memory);
        match after {
            Condition::Up => {
                let seconds = now.since(since).as_secs();
                tracing::info!(%upstream, origin, seconds, "the origin answers again");
            }
            Condition::Limited => {
                tracing::warn!(%upstream, origin, reason, "the origin limits its clients");
            }
            Condition::Away => {
                tracing::warn!(%upstream, origin, reason, "the origin is away");
            }
        }
    }

    pub(super) fn stats(&self) -> OriginStats {
        let now = self.now();
        let memory = self.lock();
        let (condition, since) = memory.breaker.condition();
        OriginStats {
            upstream: self.upstream.to_string(),
            url: self.url.clone(),
            state: match condition {
                _ if memory.breaker.is_untried(now) => "untried",
                Condition::Up => "up",
                Condition::Limited => "limited",
                Condition::Away => "away",
            }
            .to_owned(),
            since_seconds: now.since(since).as_secs(),
            requests: memory.requests,
            failures: memory.failures,
            reason: memory.reason.clone().filter(|_| condition != Condition::Up),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Memory> {
        // Nothing that is done under it can panic halfway.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request under way. One that is given up before it has an answer counts by how long it had none:
/// whoever stops waiting for an origin that is silent would otherwise hide it from all others.
pub(super) struct Pending {
    place: Arc<Place>,
    probe: bool,
    began: Time,
    ended: bool,
}

impl Pending {
    pub(super) fn begin(place: Arc<Place>, probe: bool) -> Self {
        let began = place.health().now();
        Self {
            place,
            probe,
            began,
            ended: false,
        }
    }

    pub(super) fn end(mut self, error: Option<&OriginError>) {
        self.ended = true;
        self.place.health().ended(error, self.probe, self.began);
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.ended {
            let health = self.place.health();
            health.given_up(health.now().since(self.began));
        }
    }
}

/// A body whose breaking off, or falling silent, counts against the origin that it comes from.
pub(super) fn watched(place: Arc<Place>, body: OriginBody) -> OriginBody {
    let watched = Watched {
        place,
        stream: body.stream,
        silent_since: None,
    };
    OriginBody {
        stream: watched.boxed(),
        ..body
    }
}

struct Watched {
    place: Arc<Place>,
    stream: BoxStream<'static, Result<Bytes, OriginError>>,
    /// Since when somebody waits for the next piece.
    silent_since: Option<Time>,
}

impl Stream for Watched {
    type Item = Result<Bytes, OriginError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let polled = self.stream.poll_next_unpin(context);
        if polled.is_pending() {
            if self.silent_since.is_none() {
                self.silent_since = Some(self.place.health().now());
            }
            return polled;
        }
        let silent_since = self.silent_since.take();
        if let Poll::Ready(Some(Err(error))) = &polled {
            let health = self.place.health();
            let now = health.now();
            let silent = now.since(silent_since.unwrap_or(now));
            health.note(Outcome::Failed(silent), Some(error), false);
        }
        polled
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(since) = self.silent_since {
            let health = self.place.health();
            health.given_up(health.now().since(since));
        }
    }
}
