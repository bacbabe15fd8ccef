//! Origins, from their client's side: where upstreams really live, how this node logs in to
//! registries, and how bytes come from them. An origin is a registry, a directory or a bucket, and
//! an upstream has one or several, in an order: see `failover`.
//!
//! A call here asks each origin once at most (and once more where a login or an idle connection has
//! ended): whoever calls knows whether a peer could serve instead, how long to wait, and whom else
//! to ask. Nothing is cached but authorizations and connections; presigned URLs in particular are
//! asked for anew each time, since they expire.
//!
//! Anyone who can reach the mirror endpoint can name an upstream, so that what an origin may lead
//! this node to is limited; `Site` has the rules. `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY` are
//! honoured; the names in a request that goes through a proxy are for the proxy to resolve and
//! to judge.

mod access;
mod address;
mod allowance;
mod asking;
mod batches;
mod body;
mod breaker;
mod challenge;
mod check;
mod config;
mod credentials;
mod error;
mod failover;
#[cfg(test)]
mod fake;
mod grants;
mod health;
mod limits;
mod loans;
mod login;
mod manifest;
mod page;
mod permission;
mod place;
mod refusal;
mod registry;
mod retry_after;
mod sharing;
mod site;
mod storage;
#[cfg(test)]
mod tests;
mod transport;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use bytes::Bytes;
use futures::{FutureExt as _, stream::BoxStream};
use reqwest::header::HeaderValue;
use shoal_protocol::{
    digest::Digest,
    message::{BlobKind, Hint},
    reference::{Tag, Upstream},
};

pub use self::{
    access::Access,
    allowance::Reserve,
    check::{Check, Checked, OriginCheck},
    config::{Credentials, OriginConfigError, OriginSpec, OriginsConfig, Secret},
    error::OriginError,
};
pub(crate) use self::{
    access::{Gate, NoPass, Pass},
    permission::{Object, Refusal, Told},
    sharing::Cluster,
};
use self::{
    allowance::Allowances,
    batches::Batches,
    grants::Grants,
    limits::{PUBLIC_MAX, TAG_TIMEOUT},
    loans::{Loan, Loans},
    place::{Place, Source},
    transport::Transport,
};
use crate::{
    clock::Clock,
    stats::{AllowanceStats, OriginStats},
};

/// All origins of this node. Cheap to clone; clones share connections and logins.
#[derive(Clone)]
pub struct Origins {
    shared: Arc<Shared>,
}

struct Shared {
    configured: BTreeMap<Upstream, Vec<Arc<Place>>>,
    /// Of upstreams that nobody configured, as they are asked for.
    public: Mutex<BTreeMap<Upstream, Arc<Place>>>,
    docker_config: Option<PathBuf>,
    /// For upstreams without authorities of their own.
    transport: Arc<Transport>,
    clock: Clock,
    common: Arc<Common>,
}

/// What all registries share.
struct Common {
    grants: Arc<Grants>,
    loans: Arc<Loans>,
    batches: Arc<Batches>,
    /// The other members, where there can be any.
    cluster: OnceLock<Arc<dyn Cluster>>,
    allowances: Allowances,
}

/// A blob's bytes on their way from an origin.
pub struct OriginBody {
    /// Where in the blob `stream` begins: 0 if the origin ignored the range that it was asked
    /// for, and then `stream` goes on to the blob's end.
    pub start: u64,
    /// Whether the origin gives all of the blob, whatever it was asked for.
    pub whole: bool,
    /// The size of the whole blob in bytes, where the origin said it.
    pub size: Option<u64>,
    /// The bytes. Ends without an error only when all that the origin announced have come; the
    /// digest remains to be checked.
    pub stream: BoxStream<'static, Result<Bytes, OriginError>>,
}

impl Origins {
    /// Reads certificate files and sets up clients. Nothing is connected to yet.
    pub fn new(config: OriginsConfig) -> Result<Self, OriginConfigError> {
        let clock = Clock::start();
        let mut shared = Shared {
            configured: BTreeMap::new(),
            public: Mutex::default(),
            docker_config: config.docker_config,
            transport: Arc::new(Transport::new(&[]).map_err(OriginConfigError::Client)?),
            clock,
            common: Arc::new(Common {
                grants: Grants::new(clock),
                loans: Arc::default(),
                batches: Arc::default(),
                cluster: OnceLock::new(),
                allowances: Allowances::new(clock, config.reserve),
            }),
        };
        for (upstream, specs) in config.upstreams {
            let places = Place::configured(&upstream, specs, &shared)?;
            shared.configured.insert(upstream, places);
        }
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// What a tag names now: asked by HEAD, which costs nothing at registries that count pulls;
    /// by GET, and the manifest hashed, where HEAD is not answered with a digest.
    ///
    /// # Errors
    /// [`OriginError::Throttled`] where the tag is `known` here, and a GET would cost one of the pulls
    /// that are kept in [`Reserve`].
    pub async fn resolve_tag(
        &self,
        hint: &Hint,
        tag: &Tag,
        known: bool,
    ) -> Result<Digest, OriginError> {
        self.first(hint, (tag.clone(), known), |place, hint, (tag, known)| {
            async move {
                let asked = async {
                    match place.source(&hint) {
                        Source::Registry(registry) => registry.resolve_tag(&tag, known).await,
                        Source::Storage(storage) => storage.resolve_tag(&hint, &tag).await,
                    }
                };
                let silent = || {
                    let (upstream, seconds) = (&hint.upstream, TAG_TIMEOUT.as_secs());
                    let text = format!("no origin of {upstream} said in {seconds} s what {tag} is");
                    Err(OriginError::Unreachable(text))
                };
                let answer = tokio::time::timeout(TAG_TIMEOUT, asked).await;
                answer.unwrap_or_else(|_| silent())
            }
            .boxed()
        })
        .await
    }

    /// The bytes of a blob or manifest from `start` up to `end`, which is not included, or to the
    /// end of it.
    ///
    /// The answer may begin elsewhere than asked: see [`OriginBody::start`]. An `end` beyond the
    /// blob's own is no error. A manifest is always read whole, and checked to be JSON of at most
    /// [`MANIFEST_BYTES_MAX`](shoal_protocol::limits::MANIFEST_BYTES_MAX) bytes, before this returns.
    ///
    /// # Errors
    /// Those of the request here, those of the body in the stream. A range that is empty, or
    /// begins at or beyond the blob's end, is [`OriginError::Invalid`]; a blob of 0 bytes can
    /// be read from 0.
    pub async fn read(
        &self,
        digest: &Digest,
        kind: BlobKind,
        hint: &Hint,
        start: u64,
        end: Option<u64>,
    ) -> Result<OriginBody, OriginError> {
        let about = (*digest, kind, start, end);
        self.first(hint, about, |place, hint, (digest, kind, start, end)| {
            async move {
                let body = match place.source(&hint) {
                    Source::Registry(registry) => registry.read(&digest, kind, start, end).await,
                    Source::Storage(storage) => {
                        storage.read(&hint, &digest, kind, start, end).await
                    }
                };
                body.map(|body| health::watched(place, body))
            }
            .boxed()
        })
        .await
    }

    /// The size of a blob in bytes: asked by HEAD, or by GET of the first byte where the registry,
    /// or the store that it redirects to, does not answer HEAD (GHCR's does not).
    pub async fn blob_size(&self, digest: &Digest, hint: &Hint) -> Result<u64, OriginError> {
        self.first(hint, *digest, |place, hint, digest| {
            async move {
                match place.source(&hint) {
                    Source::Registry(registry) => registry.blob_size(&digest).await,
                    Source::Storage(storage) => storage.blob_size(&hint, &digest).await,
                }
            }
            .boxed()
        })
        .await
    }

    /// The tags of a repository, sorted, each once. Names that are not tags are left out.
    ///
    /// # Errors
    /// [`OriginError::Invalid`] for a list of over 100,000 tags or 1,000 pages.
    pub async fn tags(&self, hint: &Hint) -> Result<Vec<Tag>, OriginError> {
        self.first(hint, (), |place, hint, ()| {
            async move {
                match place.source(&hint) {
                    Source::Registry(registry) => registry.tags().await,
                    Source::Storage(storage) => storage.tags(&hint).await,
                }
            }
            .boxed()
        })
        .await
    }

    /// The descriptors of the manifests that refer to `subject`.
    ///
    /// # Errors
    /// [`OriginError::NotFound`] where the registry does not have the referrers API; as for
    /// [`tags`](Self::tags) otherwise.
    pub async fn referrers(
        &self,
        hint: &Hint,
        subject: &Digest,
    ) -> Result<Vec<serde_json::Value>, OriginError> {
        self.first(hint, *subject, |place, hint, subject| {
            async move {
                match place.source(&hint) {
                    Source::Registry(registry) => registry.referrers(&subject).await,
                    Source::Storage(storage) => Err(storage.no_referrers(&hint)),
                }
            }
            .boxed()
        })
        .await
    }

    /// The origins of an upstream, in the order in which they are asked; at least one.
    fn places(&self, upstream: &Upstream) -> Result<Vec<Arc<Place>>, OriginError> {
        let shared = &*self.shared;
        if let Some(places) = shared.configured.get(upstream) {
            return Ok(places.clone());
        }
        let mut public = self.public();
        if let Some(place) = public.get(upstream) {
            return Ok(vec![Arc::clone(place)]);
        }
        let place = Arc::new(Place::public(upstream, shared)?);
        if public.len() >= PUBLIC_MAX {
            public.clear();
        }
        public.insert(upstream.clone(), Arc::clone(&place));
        Ok(vec![place])
    }

    fn public(&self) -> MutexGuard<'_, BTreeMap<Upstream, Arc<Place>>> {
        // Each change is one insertion or removal: a panic leaves nothing half done.
        let public = self.shared.public.lock();
        public.unwrap_or_else(PoisonError::into_inner)
    }

    /// Why an upstream's content is read only where nothing else can serve, if it is so now.
    pub(crate) fn spared(&self, upstream: &Upstream) -> Option<String> {
        self.shared.common.allowances.spared(upstream)
    }

    /// How many pulls registries have said that they still give.
    pub(crate) fn allowances(&self) -> Vec<AllowanceStats> {
        self.shared.common.allowances.stats()
    }

    /// Whether the upstream has more than one origin, so that what one does not give another may.
    pub(crate) fn has_several(&self, upstream: &Upstream) -> bool {
        let places = self.shared.configured.get(upstream);
        places.is_some_and(|places| places.len() > 1)
    }

    /// How the origins do that the operator configured or that were asked lately.
    pub(crate) fn stats(&self) -> Vec<OriginStats> {
        let public: Vec<_> = self.public().values().cloned().collect();
        let configured = self.shared.configured.values().flatten();
        let all = configured.chain(&public);
        all.map(|place| place.health().stats()).collect()
    }

    /// The upstreams that the operator configured.
    fn configured(&self) -> impl Iterator<Item = &Upstream> {
        self.shared.configured.keys()
    }

    /// Lets this node read a repository with a client's `Authorization` where its own login is not
    /// enough, until the loan is dropped.
    fn lend(&self, hint: Hint, header: HeaderValue) -> Loan {
        self.shared.common.loans.lend(hint, header)
    }
}
