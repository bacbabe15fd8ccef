//! Origins, from their client's side: where upstreams really live, how this node logs in to
//! registries, and how bytes come from them. An origin is a registry or a directory.
//!
//! A call here asks the origin once (and once more where a login or an idle connection has
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
mod challenge;
mod config;
mod credentials;
mod error;
#[cfg(test)]
mod fake;
mod grants;
mod limits;
mod loans;
mod login;
mod manifest;
mod permission;
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
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use futures::stream::BoxStream;
use reqwest::{Certificate, header::HeaderValue};
use shoal_protocol::{
    digest::Digest,
    message::{BlobKind, Hint},
    reference::{Tag, Upstream},
};

pub use self::{
    access::Access,
    allowance::Reserve,
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
    loans::{Loan, Loans},
    registry::Registry,
    site::Site,
    storage::Storage,
    transport::Transport,
};
use crate::{clock::Clock, stats::AllowanceStats};

/// All origins of this node. Cheap to clone; clones share connections and logins.
#[derive(Clone)]
pub struct Origins {
    shared: Arc<Shared>,
}

struct Shared {
    configured: BTreeMap<Upstream, Arc<Site>>,
    storages: BTreeMap<Upstream, Storage>,
    docker_config: Option<PathBuf>,
    /// For upstreams without authorities of their own.
    transport: Arc<Transport>,
    grants: Arc<Grants>,
    loans: Arc<Loans>,
    batches: Arc<Batches>,
    /// The other members, where there can be any.
    cluster: OnceLock<Arc<dyn Cluster>>,
    allowances: Allowances,
}

/// Where one repository's content comes from.
enum Source<'a> {
    Registry(Registry<'a>),
    Storage(&'a Storage),
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
        let transport = Arc::new(Transport::new(&[]).map_err(OriginConfigError::Client)?);
        let mut configured = BTreeMap::new();
        let mut storages = BTreeMap::new();
        for (upstream, spec) in config.upstreams {
            spec.check(&upstream)?;
            if let Some(directory) = spec.directory() {
                storages.insert(upstream, Storage::directory(directory));
                continue;
            }
            let transport = match &spec.ca_file {
                None => Arc::clone(&transport),
                Some(path) => {
                    let authorities = read_authorities(&upstream, path)?;
                    Arc::new(Transport::new(&authorities).map_err(|_| {
                        OriginConfigError::CaContent {
                            upstream: upstream.clone(),
                            path: path.clone(),
                        }
                    })?)
                }
            };
            let site = Site::configured(spec, config.docker_config.clone(), transport);
            configured.insert(upstream, Arc::new(site));
        }
        Ok(Self {
            shared: Arc::new(Shared {
                configured,
                storages,
                docker_config: config.docker_config,
                transport,
                grants: Grants::new(clock),
                loans: Arc::default(),
                batches: Arc::default(),
                cluster: OnceLock::new(),
                allowances: Allowances::new(clock, config.reserve),
            }),
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
        match self.source(hint)? {
            Source::Registry(registry) => registry.resolve_tag(tag, known).await,
            Source::Storage(storage) => storage.resolve_tag(hint, tag).await,
        }
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
        match self.source(hint)? {
            Source::Registry(registry) => registry.read(digest, kind, start, end).await,
            Source::Storage(storage) => storage.read(hint, digest, kind, start, end).await,
        }
    }

    /// The size of a blob in bytes: asked by HEAD, or by GET of the first byte where the registry,
    /// or the store that it redirects to, does not answer HEAD (GHCR's does not).
    pub async fn blob_size(&self, digest: &Digest, hint: &Hint) -> Result<u64, OriginError> {
        match self.source(hint)? {
            Source::Registry(registry) => registry.blob_size(digest).await,
            Source::Storage(storage) => storage.blob_size(hint, digest).await,
        }
    }

    /// The tags of a repository, sorted, each once. Names that are not tags are left out.
    ///
    /// # Errors
    /// [`OriginError::Invalid`] for a list of over 100,000 tags or 1,000 pages.
    pub async fn tags(&self, hint: &Hint) -> Result<Vec<Tag>, OriginError> {
        match self.source(hint)? {
            Source::Registry(registry) => registry.tags().await,
            Source::Storage(storage) => storage.tags(hint).await,
        }
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
        match self.source(hint)? {
            Source::Registry(registry) => registry.referrers(subject).await,
            Source::Storage(storage) => Err(storage.no_referrers(hint)),
        }
    }

    /// Why an upstream's content is read only where nothing else can serve, if it is so now.
    pub(crate) fn spared(&self, upstream: &Upstream) -> Option<String> {
        self.shared.allowances.spared(upstream)
    }

    /// How many pulls registries have said that they still give.
    pub(crate) fn allowances(&self) -> Vec<AllowanceStats> {
        self.shared.allowances.stats()
    }

    /// Where the repository's content comes from.
    fn source<'a>(&'a self, hint: &'a Hint) -> Result<Source<'a>, OriginError> {
        if let Some(storage) = self.storage(&hint.upstream) {
            return Ok(Source::Storage(storage));
        }
        Ok(Source::Registry(Registry {
            site: self.site(&hint.upstream)?,
            hint,
            shared: &self.shared,
        }))
    }

    /// The directory that the operator configured for an upstream, if it is none of a registry.
    fn storage(&self, upstream: &Upstream) -> Option<&Storage> {
        self.shared.storages.get(upstream)
    }

    /// The registry of an upstream whose content is in no directory.
    fn site(&self, upstream: &Upstream) -> Result<Arc<Site>, OriginError> {
        let shared = &*self.shared;
        Ok(match shared.configured.get(upstream) {
            Some(site) => Arc::clone(site),
            None => Arc::new(Site::public(
                upstream,
                shared.docker_config.clone(),
                Arc::clone(&shared.transport),
            )?),
        })
    }

    /// The upstreams that the operator configured.
    fn configured(&self) -> impl Iterator<Item = &Upstream> {
        let shared = &self.shared;
        shared.configured.keys().chain(shared.storages.keys())
    }

    /// Lets this node read a repository with a client's `Authorization` where its own login is not
    /// enough, until the loan is dropped.
    fn lend(&self, hint: Hint, header: HeaderValue) -> Loan {
        self.shared.loans.lend(hint, header)
    }
}

fn read_authorities(
    upstream: &Upstream,
    path: &PathBuf,
) -> Result<Vec<Certificate>, OriginConfigError> {
    let pem = std::fs::read(path).map_err(|source| OriginConfigError::CaFile {
        upstream: upstream.clone(),
        path: path.clone(),
        source,
    })?;
    Certificate::from_pem_bundle(&pem)
        .ok()
        .filter(|authorities| !authorities.is_empty())
        .ok_or_else(|| OriginConfigError::CaContent {
            upstream: upstream.clone(),
            path: path.clone(),
        })
}
