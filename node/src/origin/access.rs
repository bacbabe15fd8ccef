//! Who may read what through the mirror.
//!
//! With every upstream [`Access::Open`] whoever reaches the mirror reads what the node can, and
//! nothing here is used. As soon as one is [`Access::Origin`], what is cached for it must not be had
//! by its digest in another way, so that a [`Gate`] stands before all content:
//!
//! - Of an `origin` upstream a client reads what the origin gives to the client's own credentials.
//!   What the origin said holds for the repository, for a while ([`Lifetimes`]).
//! - A blob or manifest by digest is read only from a repository that the origin has said to hold it,
//!   whichever the upstream. A manifest that names a blob proves nothing: anybody can write one.
//! - Upstreams that the configuration does not name are refused: anybody's registry can claim to hold
//!   any digest.

use std::{
    collections::{BTreeMap, HashMap},
    str::FromStr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rand::{TryRng as _, rngs::SysRng};
use reqwest::header::HeaderValue;
use shoal_protocol::{
    digest::Digest,
    message::Hint,
    reference::{Selector, Upstream},
    time::Time,
};

use super::{
    Origins,
    config::OriginConfigError,
    limits::{HELD_MAX, VERDICTS_MAX},
    loans::Loan,
    permission::{Object, Reader, Refusal, Told},
};
use crate::clock::Clock;

/// Who may read an upstream's content through the mirror.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Access {
    /// Whoever reaches the mirror; it is read with the node's own credentials.
    #[default]
    Open,
    /// Whom the origin lets, by the credentials that the client sends.
    Origin,
}

impl FromStr for Access {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "open" => Ok(Self::Open),
            "origin" => Ok(Self::Origin),
            _ => Err(format!(
                "`{text}` is not a rule; write open (whoever reaches the mirror may read) or origin \
                 (whom the origin lets)"
            )),
        }
    }
}

/// How long what an origin said is taken for true.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lifetimes {
    /// That somebody may read a repository.
    pub(super) yes: Duration,
    /// That somebody may not; short, because rights are given for a pull that waits.
    pub(super) no: Duration,
    /// Either, while the origin cannot be asked.
    pub(super) kept: Duration,
    /// That a repository holds a digest.
    pub(super) held: Duration,
}

/// Those of a node.
const LIFETIMES: Lifetimes = Lifetimes {
    yes: Duration::from_mins(1),
    no: Duration::from_secs(5),
    kept: Duration::from_hours(1),
    held: Duration::from_hours(24),
};

/// Stands before the content.
pub(crate) struct Gate {
    origins: Origins,
    rules: BTreeMap<Upstream, Access>,
    lifetimes: Lifetimes,
    clock: Clock,
    /// Credentials are remembered by their hash under this key alone.
    key: [u8; 32],
    memory: Mutex<Memory>,
}

#[derive(Default)]
struct Memory {
    verdicts: HashMap<(Hint, Credential), Verdict>,
    /// Which repository holds what, and when its origin said so.
    held: HashMap<(Hint, Digest), Time>,
    /// What each origin said last to those who came to `/v2/` without credentials.
    greetings: BTreeMap<Upstream, Told>,
}

/// The hash of a client's `Authorization`; that of nothing where there is none.
type Credential = [u8; 32];

#[derive(Clone)]
struct Verdict {
    told: Result<(), Told>,
    at: Time,
}

/// Leave to read; to be kept until the answer has been given.
#[derive(Default)]
pub(crate) struct Pass(#[expect(dead_code, reason = "ends with the pass")] Option<Loan>);

/// Why there is none.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NoPass {
    /// The configuration does not name the upstream.
    Unnamed(Upstream),
    /// See [`Refusal`].
    Refused(Refusal),
}

impl Gate {
    /// None where every upstream is open.
    ///
    /// # Errors
    /// Two upstreams that are the same registry have different rules; one that is no registry is to
    /// decide itself; or the system gives no randomness.
    pub(crate) fn new(
        rules: &BTreeMap<Upstream, Access>,
        origins: Origins,
    ) -> Result<Option<Self>, OriginConfigError> {
        if !rules.values().any(|access| *access == Access::Origin) {
            return Ok(None);
        }
        let mut all: BTreeMap<Upstream, Access> = origins
            .configured()
            .map(|upstream| (upstream.clone(), Access::Open))
            .collect();
        all.extend(rules.clone());
        let mut registries: Vec<(url::Origin, &Upstream, Access)> = Vec::new();
        for (upstream, access) in &all {
            let Ok(places) = origins.places(upstream) else {
                continue;
            };
            if *access == Access::Origin && places.len() > 1 {
                return Err(OriginConfigError::AccessToSeveral(upstream.clone()));
            }
            for place in places {
                let Some(site) = place.site() else {
                    if *access == Access::Origin {
                        return Err(OriginConfigError::AccessToStorage(upstream.clone()));
                    }
                    continue;
                };
                let registry = site.base.origin();
                let other = registries
                    .iter()
                    .find(|(have, _, rule)| *have == registry && rule != access);
                if let Some((_, other, _)) = other {
                    return Err(OriginConfigError::Access {
                        one: (*other).clone(),
                        other: upstream.clone(),
                    });
                }
                registries.push((registry, upstream, *access));
            }
        }
        let mut key = [0; 32];
        SysRng
            .try_fill_bytes(&mut key)
            .map_err(|error| OriginConfigError::Random(error.to_string()))?;
        Ok(Some(Self {
            origins,
            rules: all,
            lifetimes: LIFETIMES,
            clock: Clock::start(),
            key,
            memory: Mutex::default(),
        }))
    }

    /// Whether a client with this `Authorization` may read.
    pub(crate) async fn admit(
        &self,
        hint: &Hint,
        object: &Object,
        authorization: Option<&HeaderValue>,
    ) -> Result<Pass, NoPass> {
        match self.rules.get(&hint.upstream) {
            None => Err(NoPass::Unnamed(hint.upstream.clone())),
            Some(Access::Open) => self.admit_all(hint, object).await,
            Some(Access::Origin) => self.admit_some(hint, object, authorization).await,
        }
        .inspect_err(|_| {
            let Hint {
                upstream,
                repository,
            } = hint;
            tracing::debug!(%upstream, %repository, "refused a client");
        })
    }

    /// The digest that a tag of the repository names, as its origin said.
    pub(crate) fn remember(&self, hint: &Hint, digest: Digest) {
        let now = self.clock.now();
        let mut memory = self.lock();
        if memory.held.len() >= HELD_MAX {
            let lifetime = self.lifetimes.held;
            memory.held.retain(|_, at| now.since(*at) < lifetime);
            if memory.held.len() >= HELD_MAX {
                memory.held.clear();
            }
        }
        memory.held.insert((hint.clone(), digest), now);
    }

    /// What a client is told at `/v2/`, where it may name an upstream by `ns`. Without that it means
    /// `default`, if the configuration names that; else the only one.
    pub(crate) async fn greet(
        &self,
        ns: Option<&Upstream>,
        default: &Upstream,
        authorization: Option<&HeaderValue>,
    ) -> Result<(), NoPass> {
        let only = self.rules.keys().next().filter(|_| self.rules.len() == 1);
        let upstream = match ns {
            Some(upstream) => Some(upstream),
            None if self.rules.contains_key(default) => Some(default),
            None => only,
        };
        let Some(upstream) = upstream.filter(|upstream| {
            let rule = self.rules.get(upstream);
            rule == Some(&Access::Origin)
        }) else {
            return Ok(());
        };
        let greeted = self.origins.greets(upstream, authorization).await;
        let refusal = match greeted {
            Ok(()) => return Ok(()),
            Err(refusal) => refusal,
        };
        let mut memory = self.lock();
        let refusal = match refusal {
            Refusal::Told(told) => {
                if authorization.is_none() {
                    memory.greetings.insert(upstream.clone(), told.clone());
                }
                Refusal::Told(told)
            }
            Refusal::Origin(error) => match memory.greetings.get(upstream) {
                // So that a client whose rights are remembered learns how to show them.
                Some(told) if authorization.is_none() && error.is_away() => {
                    Refusal::Told(told.clone())
                }
                _ => Refusal::Origin(error),
            },
        };
        Err(NoPass::Refused(refusal))
    }

    async fn admit_all(&self, hint: &Hint, object: &Object) -> Result<Pass, NoPass> {
        if let Some(digest) = digest_of(object)
            && !self.is_held(hint, digest)
        {
            let permitted = self.origins.permits(hint, object, Reader::Node).await;
            permitted.map_err(NoPass::Refused)?;
            self.remember(hint, digest);
        }
        Ok(Pass::default())
    }

    async fn admit_some(
        &self,
        hint: &Hint,
        object: &Object,
        authorization: Option<&HeaderValue>,
    ) -> Result<Pass, NoPass> {
        let key = (hint.clone(), self.credential(authorization));
        let known = self.lock().verdicts.get(&key).cloned();
        let held = digest_of(object).is_none_or(|digest| self.is_held(hint, digest));
        let pass = || {
            let lent = authorization.cloned();
            Pass(lent.map(|header| self.origins.lend(hint.clone(), header)))
        };
        let now = self.clock.now();
        let within = |verdict: &Verdict, lifetime| now.since(verdict.at) < lifetime;
        match &known {
            Some(verdict)
                if verdict.told.is_ok() && held && within(verdict, self.lifetimes.yes) =>
            {
                return Ok(pass());
            }
            Some(verdict) if within(verdict, self.lifetimes.no) => {
                if let Err(told) = &verdict.told {
                    return Err(NoPass::Refused(Refusal::Told(told.clone())));
                }
            }
            Some(_) | None => {}
        }
        let reader = Reader::Client(authorization);
        match self.origins.permits(hint, object, reader).await {
            Ok(()) => {
                self.judge(key, Ok(()));
                if let Some(digest) = digest_of(object) {
                    self.remember(hint, digest);
                }
                Ok(pass())
            }
            Err(Refusal::Told(told)) => {
                self.judge(key, Err(told.clone()));
                Err(NoPass::Refused(Refusal::Told(told)))
            }
            Err(Refusal::Origin(error)) if error.is_away() => match known {
                Some(verdict) if within(&verdict, self.lifetimes.kept) => match verdict.told {
                    Ok(()) if held => Ok(pass()),
                    Ok(()) => Err(NoPass::Refused(Refusal::Origin(error))),
                    Err(told) => Err(NoPass::Refused(Refusal::Told(told))),
                },
                Some(_) | None => Err(NoPass::Refused(Refusal::Origin(error))),
            },
            Err(refusal) => {
                // Some registries say of what they refuse that it does not exist.
                if known.is_some_and(|verdict| !within(&verdict, self.lifetimes.yes)) {
                    self.lock().verdicts.remove(&key);
                }
                Err(NoPass::Refused(refusal))
            }
        }
    }

    fn judge(&self, key: (Hint, Credential), told: Result<(), Told>) {
        let now = self.clock.now();
        let mut memory = self.lock();
        let lifetimes = self.lifetimes;
        let old = |verdict: &Verdict| now.since(verdict.at) >= lifetimes.kept;
        // Anybody can have refusals remembered: they go before what honest clients need.
        for keep_refusals in [true, false] {
            if memory.verdicts.len() >= VERDICTS_MAX {
                let kept = |verdict: &mut Verdict| {
                    !old(verdict) && (keep_refusals || verdict.told.is_ok())
                };
                memory.verdicts.retain(|_, verdict| kept(verdict));
            }
        }
        if memory.verdicts.len() >= VERDICTS_MAX {
            memory.verdicts.clear();
        }
        memory.verdicts.insert(key, Verdict { told, at: now });
    }

    fn is_held(&self, hint: &Hint, digest: Digest) -> bool {
        let now = self.clock.now();
        let memory = self.lock();
        let at = memory.held.get(&(hint.clone(), digest));
        at.is_some_and(|at| now.since(*at) < self.lifetimes.held)
    }

    fn credential(&self, authorization: Option<&HeaderValue>) -> Credential {
        let bytes = authorization.map_or(&[][..], HeaderValue::as_bytes);
        *blake3::keyed_hash(&self.key, bytes).as_bytes()
    }

    fn lock(&self) -> MutexGuard<'_, Memory> {
        // Each change is one insertion or removal: a panic leaves nothing half done.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(super) fn with_lifetimes(mut self, lifetimes: Lifetimes) -> Self {
        self.lifetimes = lifetimes;
        self
    }

    /// Remembers that the origin refused somebody.
    #[cfg(test)]
    pub(super) fn learn_refusal(&self, hint: &Hint, somebody: usize) {
        let header = HeaderValue::from(somebody);
        let told = Told {
            status: reqwest::StatusCode::UNAUTHORIZED,
            challenges: Vec::new(),
        };
        self.judge((hint.clone(), self.credential(Some(&header))), Err(told));
    }

    /// How many verdicts are remembered.
    #[cfg(test)]
    pub(super) fn verdicts(&self) -> usize {
        self.lock().verdicts.len()
    }
}

fn digest_of(object: &Object) -> Option<Digest> {
    match object {
        Object::Manifest(Selector::Digest(digest)) | Object::Blob(digest) => Some(*digest),
        Object::Manifest(Selector::Tag(_)) | Object::Lists => None,
    }
}
