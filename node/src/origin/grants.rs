//! What registries have let this node do, and for how long.
//!
//! Kept for each upstream and repository, which is what a token's realm, service and scope follow
//! from. One login at a time for each: whoever needs the same waits for it, and shares its
//! failure too, so that a thousand reads of an image are one login.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use reqwest::header::HeaderValue;
use shoal_protocol::{message::Hint, time::Time};

use super::{
    challenge::Challenge,
    error::OriginError,
    limits::{GRANTS_MAX, TOKEN_RENEWAL_MARGIN},
};
use crate::clock::Clock;

/// What a login gave.
pub(super) struct Granted {
    /// The `Authorization` header to send.
    pub(super) header: HeaderValue,
    /// How long it is used; without end where it is not known to end.
    pub(super) lifetime: Option<Duration>,
}

/// Remembers what was granted.
pub(super) struct Grants {
    clock: Clock,
    slots: Mutex<HashMap<Hint, Slot>>,
}

#[derive(Clone)]
struct Grant {
    header: HeaderValue,
    challenge: Challenge,
    renew_at: Time,
}

enum Slot {
    Granted(Grant),
    /// A login is under way, in a task of its own: it goes on when those who wait for it give up.
    Asking(Shared<BoxFuture<'static, Result<Grant, OriginError>>>),
}

impl Grants {
    pub(super) fn new(clock: Clock) -> Arc<Self> {
        Arc::new(Self {
            clock,
            slots: Mutex::default(),
        })
    }

    /// The header to send with requests under `key`; none where nothing is known to be needed.
    ///
    /// `challenge` is that of an answer 401, and `rejected` the header which that answer was
    /// given to: it is not returned again, but replaced by `login`.
    pub(super) async fn authorization<F>(
        self: &Arc<Self>,
        key: &Hint,
        challenge: Option<Challenge>,
        rejected: Option<&HeaderValue>,
        login: F,
    ) -> Result<Option<HeaderValue>, OriginError>
    where
        F: FnOnce(Challenge) -> BoxFuture<'static, Result<Granted, OriginError>>,
    {
        let asking = {
            let mut slots = self.lock();
            let challenge = match slots.get(key) {
                Some(Slot::Asking(asking)) if asking.peek().is_none() => Err(asking.clone()),
                Some(Slot::Granted(grant))
                    if self.clock.now() < grant.renew_at && Some(&grant.header) != rejected =>
                {
                    return Ok(Some(grant.header.clone()));
                }
                Some(Slot::Granted(grant)) => Ok(challenge.unwrap_or(grant.challenge.clone())),
                Some(Slot::Asking(_)) | None => match challenge {
                    Some(challenge) => Ok(challenge),
                    None => return Ok(None),
                },
            };
            match challenge {
                Err(asking) => asking,
                Ok(challenge) => {
                    let login = login(challenge.clone());
                    let asking = self.ask(key.clone(), challenge, login);
                    self.make_room(&mut slots);
                    slots.insert(key.clone(), Slot::Asking(asking.clone()));
                    asking
                }
            }
        };
        asking.await.map(|grant| Some(grant.header))
    }

    fn ask(
        self: &Arc<Self>,
        key: Hint,
        challenge: Challenge,
        login: BoxFuture<'static, Result<Granted, OriginError>>,
    ) -> Shared<BoxFuture<'static, Result<Grant, OriginError>>> {
        let grants = Arc::clone(self);
        let task = tokio::spawn(async move {
            let outcome = login.await.map(|granted| Grant {
                header: granted.header,
                challenge,
                renew_at: granted.lifetime.map_or(Time::NEVER, |lifetime| {
                    let margin = TOKEN_RENEWAL_MARGIN.min(lifetime / 5);
                    grants.clock.now() + lifetime.saturating_sub(margin)
                }),
            });
            let mut slots = grants.lock();
            match &outcome {
                Ok(grant) => slots.insert(key, Slot::Granted(grant.clone())),
                Err(_) => slots.remove(&key),
            };
            outcome
        });
        async {
            task.await.unwrap_or_else(|_| {
                Err(OriginError::Unreachable("the login was broken off".into()))
            })
        }
        .boxed()
        .shared()
    }

    /// Forgets what has ended, or all that is not under way, rather than grow without bound.
    fn make_room(&self, slots: &mut HashMap<Hint, Slot>) {
        let now = self.clock.now();
        for keep_fresh in [true, false] {
            if slots.len() < GRANTS_MAX {
                return;
            }
            slots.retain(|_, slot| match slot {
                Slot::Granted(grant) => keep_fresh && now < grant.renew_at,
                Slot::Asking(asking) => asking.peek().is_none(),
            });
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Hint, Slot>> {
        // Each change is one insertion or removal: a panic leaves nothing half done.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn key(number: usize) -> Hint {
        Hint {
            upstream: "registry.test".parse().unwrap(),
            repository: format!("app{number}").parse().unwrap(),
        }
    }

    fn granting(
        token: &'static str,
        lifetime: Option<Duration>,
    ) -> impl FnOnce(Challenge) -> BoxFuture<'static, Result<Granted, OriginError>> {
        move |_| {
            async move {
                Ok(Granted {
                    header: HeaderValue::from_static(token),
                    lifetime,
                })
            }
            .boxed()
        }
    }

    #[tokio::test]
    async fn a_token_near_its_end_is_renewed_without_another_refusal() {
        let grants = Grants::new(Clock::start());
        let lifetime = Some(Duration::from_millis(50));
        let first = grants
            .authorization(
                &key(0),
                Some(Challenge::Basic),
                None,
                granting("1", lifetime),
            )
            .await;
        assert_eq!(first, Ok(Some(HeaderValue::from_static("1"))));
        tokio::time::sleep(Duration::from_millis(60)).await;
        let second = grants
            .authorization(&key(0), None, None, granting("2", None))
            .await;
        assert_eq!(second, Ok(Some(HeaderValue::from_static("2"))));
        let third = grants
            .authorization(&key(0), None, None, granting("3", None))
            .await;
        assert_eq!(third, Ok(Some(HeaderValue::from_static("2"))));
    }

    #[tokio::test]
    async fn a_rejected_header_is_replaced_once_for_all_who_were_rejected() {
        let grants = Grants::new(Clock::start());
        let challenge = || Some(Challenge::Basic);
        let ask = |rejected: Option<&'static str>, token| {
            let grants = &grants;
            async move {
                let rejected = rejected.map(HeaderValue::from_static);
                grants
                    .authorization(
                        &key(0),
                        challenge(),
                        rejected.as_ref(),
                        granting(token, None),
                    )
                    .await
                    .unwrap()
                    .unwrap()
            }
        };
        assert_eq!(ask(None, "old").await, "old");
        assert_eq!(ask(Some("old"), "new").await, "new");
        assert_eq!(ask(Some("old"), "newer").await, "new");
    }

    #[tokio::test]
    async fn a_failed_login_is_forgotten() {
        let grants = Grants::new(Clock::start());
        let failure = OriginError::Denied("no".to_owned());
        let failed = grants
            .authorization(&key(0), Some(Challenge::Basic), None, |_| {
                async { Err(OriginError::Denied("no".to_owned())) }.boxed()
            })
            .await;
        assert_eq!(failed, Err(failure));
        let next = grants
            .authorization(&key(0), None, None, granting("1", None))
            .await;
        assert_eq!(next, Ok(None));
    }

    #[tokio::test]
    async fn all_who_wait_for_a_login_share_its_failure() {
        let grants = Grants::new(Clock::start());
        let logins = AtomicUsize::new(0);
        let key = key(0);
        let waiting = (0..20).map(|_| {
            grants.authorization(&key, Some(Challenge::Basic), None, |_| {
                logins.fetch_add(1, Ordering::SeqCst);
                async {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    Err(OriginError::Denied("no".to_owned()))
                }
                .boxed()
            })
        });
        for outcome in futures::future::join_all(waiting).await {
            assert_eq!(outcome, Err(OriginError::Denied("no".to_owned())));
        }
        assert_eq!(logins.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn no_more_than_the_bound_are_remembered() {
        let grants = Grants::new(Clock::start());
        for number in 0..GRANTS_MAX + 2 {
            grants
                .authorization(
                    &key(number),
                    Some(Challenge::Basic),
                    None,
                    granting("1", None),
                )
                .await
                .unwrap();
            assert!(grants.lock().len() <= GRANTS_MAX);
        }
    }
}
