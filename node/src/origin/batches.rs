//! One login for several repositories.
//!
//! A token may be asked for with several scopes (distribution's token specification; BuildKit does so
//! to copy between repositories). Repositories that come to need one while a login at the same registry
//! is under way share the next. Where a realm refuses them together, each is asked for alone.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use shoal_protocol::message::TokenKey;
use tokio::sync::oneshot;

use super::{
    challenge::Challenge,
    credentials::Login,
    error::OriginError,
    grants::Granted,
    limits::{GRANTS_MAX, SCOPES_MAX},
    login,
    site::Site,
};

/// Logins by where they are made.
#[derive(Default)]
pub(super) struct Batches(Mutex<HashMap<Place, Arc<Queue>>>);

/// What logins that can be one have in common.
#[derive(PartialEq, Eq, Hash)]
struct Place {
    upstream: String,
    registry: String,
    realm: String,
    service: Option<String>,
}

#[derive(Default)]
struct Queue {
    /// Held by whoever logs in.
    turn: tokio::sync::Mutex<()>,
    /// Scopes, and who waits for them.
    waiting: Mutex<Vec<(String, Reply)>>,
}

type Reply = oneshot::Sender<Result<Granted, OriginError>>;

impl Batches {
    /// Logs in as [`login::login`] does, for all who wait meanwhile.
    pub(super) async fn log_in(
        &self,
        site: &Site,
        key: &TokenKey,
        challenge: Challenge,
        credentials: Result<Option<Login>, String>,
    ) -> Result<Granted, OriginError> {
        let scope = challenge.pull_scope(&key.hint.repository);
        let own = std::slice::from_ref(&scope);
        let Some(queue) = self.queue(key, &challenge) else {
            return login::login(site, &key.hint, challenge, own, credentials).await;
        };
        let (reply, mut answer) = oneshot::channel();
        lock(&queue.waiting).push((scope.clone(), reply));
        loop {
            let turn = tokio::select! {
                biased;
                answer = &mut answer => return match answer {
                    Ok(answer) => answer,
                    // Not together, or whoever logged in gave up.
                    Err(_) => login::login(site, &key.hint, challenge, own, credentials).await,
                },
                turn = queue.turn.lock() => turn,
            };
            let batch: Vec<_> = {
                let mut waiting = lock(&queue.waiting);
                let count = waiting.len().min(SCOPES_MAX);
                waiting.drain(..count).collect()
            };
            let scopes: Vec<String> = batch.iter().map(|(scope, _)| scope.clone()).collect();
            let (challenge, credentials) = (challenge.clone(), credentials.clone());
            let mut outcome = login::login(site, &key.hint, challenge, &scopes, credentials).await;
            if let Ok(granted) = &mut outcome {
                granted.batched = batch.len() > 1;
            }
            let refused = matches!(
                &outcome,
                Err(OriginError::Denied(_) | OriginError::Invalid(_))
            );
            if !refused || batch.len() == 1 {
                for (_, reply) in batch {
                    // Whoever waited may be gone.
                    let _ = reply.send(outcome.clone());
                }
            }
            drop(turn);
        }
    }

    /// The queue for what a challenge asks for; none where that is no token.
    fn queue(&self, key: &TokenKey, challenge: &Challenge) -> Option<Arc<Queue>> {
        let Challenge::Bearer { realm, service, .. } = challenge else {
            return None;
        };
        let place = Place {
            upstream: key.hint.upstream.to_string(),
            registry: key.registry.clone(),
            realm: realm.clone(),
            service: service.clone(),
        };
        let mut queues = lock(&self.0);
        if queues.len() >= GRANTS_MAX {
            queues.retain(|_, queue| Arc::strong_count(queue) > 1);
        }
        Some(Arc::clone(queues.entry(place).or_default()))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change is one insertion or removal: a panic leaves nothing half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
