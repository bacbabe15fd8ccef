//! What registries have let this node do, and for how long.
//!
//! Kept for each registry, upstream and repository, which is what a token's realm, service and scope
//! follow from. One login at a time for each: whoever needs the same waits for it, and shares its
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
use shoal_protocol::{
    message::{Token, TokenKey},
    time::Time,
};

use super::{
    challenge::Challenge,
    error::OriginError,
    limits::{GRANTS_MAX, TOKEN_RENEWAL_MARGIN},
    sharing,
};
use crate::clock::Clock;

/// What a login gave, or another member.
#[derive(Clone)]
pub(super) struct Granted {
    /// The `Authorization` header to send.
    pub(super) header: HeaderValue,
    /// How long it is used; without end where it is not known to end.
    pub(super) lifetime: Option<Duration>,
    /// What the registry had asked for, where that is known.
    pub(super) challenge: Option<Challenge>,
    /// Whether it was got without credentials.
    pub(super) anonymous: bool,
    /// Whether another member got it.
    pub(super) of_member: bool,
    /// Whether it was asked for together with others, which not every realm knows.
    pub(super) batched: bool,
}

/// What is remembered of it.
#[derive(Clone)]
pub(super) struct Grant {
    pub(super) header: HeaderValue,
    pub(super) anonymous: bool,
    pub(super) of_member: bool,
    pub(super) batched: bool,
    challenge: Option<Challenge>,
    since: Time,
    renew_at: Time,
    ends_at: Time,
}

/// Remembers what was granted.
pub(super) struct Grants {
    clock: Clock,
    slots: Mutex<HashMap<TokenKey, Slot>>,
}

type Login = Shared<BoxFuture<'static, Result<Grant, OriginError>>>;

enum Slot {
    Granted(Grant),
    /// A login is under way, in a task of its own: it goes on when those who wait for it give up.
    Asking(Login),
}

impl Grants {
    pub(super) fn new(clock: Clock) -> Arc<Self> {
        Arc::new(Self {
            clock,
            slots: Mutex::default(),
        })
    }

    /// What to send with requests under `key`; none where nothing is known to be needed.
    ///
    /// `challenge` is that of an answer 401, and `rejected` the header which that answer was
    /// given to: it is not returned again, but replaced by `login`.
    pub(super) async fn authorization<F>(
        self: &Arc<Self>,
        key: &TokenKey,
        challenge: Option<Challenge>,
        rejected: Option<&HeaderValue>,
        login: F,
    ) -> Result<Option<Grant>, OriginError>
    where
        F: FnOnce(Challenge) -> BoxFuture<'static, Result<Granted, OriginError>>,
    {
        let usable = |grant: &Grant| Some(&grant.header) != rejected;
        let login = |known: Option<Challenge>| challenge.or(known).map(login);
        self.obtain(key, usable, login).await.transpose()
    }

    /// What is held under `key` if it is still good and `usable`, else what `login` gives. That is told
    /// what the registry is known to ask for, and may know that there is nothing to be had.
    pub(super) async fn obtain<F>(
        self: &Arc<Self>,
        key: &TokenKey,
        usable: impl FnOnce(&Grant) -> bool,
        login: F,
    ) -> Option<Result<Grant, OriginError>>
    where
        F: FnOnce(Option<Challenge>) -> Option<BoxFuture<'static, Result<Granted, OriginError>>>,
    {
        let asking = {
            let mut slots = self.lock();
            let known = match slots.get(key) {
                Some(Slot::Asking(asking)) if asking.peek().is_none() => Err(asking.clone()),
                Some(Slot::Granted(grant))
                    if self.clock.now() < grant.renew_at && usable(grant) =>
                {
                    return Some(Ok(grant.clone()));
                }
                Some(Slot::Granted(grant)) => Ok(grant.challenge.clone()),
                Some(Slot::Asking(_)) | None => Ok(None),
            };
            match known {
                Err(asking) => asking,
                Ok(known) => {
                    let asking = self.ask(key.clone(), login(known)?);
                    self.make_room(&mut slots);
                    slots.insert(key.clone(), Slot::Asking(asking.clone()));
                    asking
                }
            }
        };
        Some(asking.await)
    }

    fn ask(
        self: &Arc<Self>,
        key: TokenKey,
        login: BoxFuture<'static, Result<Granted, OriginError>>,
    ) -> Login {
        let grants = Arc::clone(self);
        let task = tokio::spawn(async move {
            let outcome = login.await.map(|granted| grants.grant(granted));
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

    fn grant(&self, granted: Granted) -> Grant {
        let now = self.clock.now();
        let (renew_at, ends_at) = granted.lifetime.map_or((Time::NEVER, Time::NEVER), |life| {
            let margin = TOKEN_RENEWAL_MARGIN.min(life / 5);
            (now + life.saturating_sub(margin), now + life)
        });
        Grant {
            header: granted.header,
            anonymous: granted.anonymous,
            of_member: granted.of_member,
            batched: granted.batched,
            challenge: granted.challenge,
            since: now,
            renew_at,
            ends_at,
        }
    }

    /// What is held under `key`, good or not.
    pub(super) fn held(&self, key: &TokenKey) -> Option<Grant> {
        match self.lock().get(key)? {
            Slot::Granted(grant) => Some(grant.clone()),
            Slot::Asking(_) => None,
        }
    }

    /// For how long something has been held.
    pub(super) fn age(&self, grant: &Grant) -> Duration {
        self.clock.now().since(grant.since)
    }

    /// Remembers what nobody here has asked for, where there is nothing that is still good, or that
    /// only `yields` to it.
    pub(super) fn insert(
        &self,
        key: TokenKey,
        granted: Granted,
        yields: impl FnOnce(&Grant) -> bool,
    ) {
        let grant = self.grant(granted);
        let mut slots = self.lock();
        let taken = match slots.get(&key) {
            Some(Slot::Granted(held)) => self.clock.now() < held.renew_at && !yields(held),
            Some(Slot::Asking(asking)) => asking.peek().is_none(),
            None => false,
        };
        if !taken {
            self.make_room(&mut slots);
            slots.insert(key, Slot::Granted(grant));
        }
    }

    /// A grant as other members are told of it, if they may be.
    pub(super) fn to_share(&self, grant: &Grant) -> Option<Token> {
        let left = grant.ends_at.since(self.clock.now());
        sharing::to_share(&grant.header, left, grant.anonymous)
    }

    /// Forgets what has ended, or all that is not under way, rather than grow without bound.
    fn make_room(&self, slots: &mut HashMap<TokenKey, Slot>) {
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

    fn lock(&self) -> MutexGuard<'_, HashMap<TokenKey, Slot>> {
        // Each change is one insertion or removal: a panic leaves nothing half done.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use shoal_protocol::message::Hint;

    use super::*;

    fn key(number: usize) -> TokenKey {
        TokenKey {
            hint: Hint {
                upstream: "registry.test".parse().unwrap(),
                repository: format!("app{number}").parse().unwrap(),
            },
            registry: "https://registry.test/".to_owned(),
        }
    }

    /// What to send, as [`Grants::authorization`] says.
    async fn header<F>(
        grants: &Arc<Grants>,
        challenge: Option<Challenge>,
        rejected: Option<&HeaderValue>,
        login: F,
    ) -> Result<Option<HeaderValue>, OriginError>
    where
        F: FnOnce(Challenge) -> BoxFuture<'static, Result<Granted, OriginError>>,
    {
        let key = key(0);
        let grant = grants.authorization(&key, challenge, rejected, login);
        Ok(grant.await?.map(|grant| grant.header))
    }

    fn granting(
        token: &'static str,
        lifetime: Option<Duration>,
    ) -> impl FnOnce(Challenge) -> BoxFuture<'static, Result<Granted, OriginError>> {
        move |challenge| {
            async move {
                Ok(Granted {
                    header: HeaderValue::from_static(token),
                    lifetime,
                    challenge: Some(challenge),
                    anonymous: false,
                    of_member: false,
                    batched: false,
                })
            }
            .boxed()
        }
    }

    #[tokio::test]
    async fn a_token_near_its_end_is_renewed_without_another_refusal() {
        let grants = Grants::new(Clock::start());
        let lifetime = Some(Duration::from_millis(50));
        let first = header(
            &grants,
            Some(Challenge::Basic),
            None,
            granting("1", lifetime),
        )
        .await;
        assert_eq!(first, Ok(Some(HeaderValue::from_static("1"))));
        tokio::time::sleep(Duration::from_millis(60)).await;
        let second = header(&grants, None, None, granting("2", None)).await;
        assert_eq!(second, Ok(Some(HeaderValue::from_static("2"))));
        let third = header(&grants, None, None, granting("3", None)).await;
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
                header(
                    grants,
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
        let failed = header(&grants, Some(Challenge::Basic), None, |_| {
            async { Err(OriginError::Denied("no".to_owned())) }.boxed()
        })
        .await;
        assert_eq!(failed, Err(failure));
        let next = header(&grants, None, None, granting("1", None)).await;
        assert_eq!(next, Ok(None));
    }

    #[tokio::test]
    async fn all_who_wait_for_a_login_share_its_failure() {
        let grants = Grants::new(Clock::start());
        let logins = AtomicUsize::new(0);
        let waiting = (0..20).map(|_| {
            header(&grants, Some(Challenge::Basic), None, |_| {
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
