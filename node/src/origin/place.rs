//! One origin of an upstream.

use std::{path::PathBuf, sync::Arc};

use reqwest::Certificate;
use shoal_protocol::{message::Hint, reference::Upstream};

use super::{
    Common, Shared,
    config::{OriginConfigError, OriginSpec},
    error::OriginError,
    health::Health,
    registry::Registry,
    site::Site,
    storage::Storage,
    transport::Transport,
};

/// One origin of an upstream.
pub(super) struct Place {
    kind: Kind,
    health: Health,
    common: Arc<Common>,
    /// What it is asked over, unless it is a directory.
    transport: Arc<Transport>,
}

enum Kind {
    Registry(Arc<Site>),
    Storage(Box<Storage>),
}

/// What a repository's content is asked of.
pub(super) enum Source<'a> {
    Registry(Registry<'a>),
    Storage(&'a Storage),
}

impl Place {
    fn new(kind: Kind, health: Health, transport: Arc<Transport>, shared: &Shared) -> Self {
        Self {
            kind,
            health,
            common: Arc::clone(&shared.common),
            transport,
        }
    }

    /// The origins that the operator configured for `upstream`, in their order.
    pub(super) fn configured(
        upstream: &Upstream,
        specs: Vec<OriginSpec>,
        shared: &Shared,
    ) -> Result<Vec<Arc<Self>>, OriginConfigError> {
        let several = specs.len() > 1;
        let each = specs.into_iter().map(|spec| {
            spec.check(upstream)?;
            let health = Health::new(upstream, &spec.url, several, shared.clock);
            let transport = transport(upstream, &spec, &shared.transport)?;
            let kind = if let Some(directory) = spec.directory() {
                Kind::Storage(Box::new(Storage::directory(directory)))
            } else if let Some(bucket) = spec.bucket(upstream)? {
                let storage = Storage::bucket(bucket, Arc::clone(&transport))
                    .map_err(|problem| spec.unusable(upstream, problem))?;
                Kind::Storage(Box::new(storage))
            } else {
                let docker_config = shared.docker_config.clone();
                let site = Site::configured(spec, docker_config, Arc::clone(&transport));
                Kind::Registry(Arc::new(site))
            };
            Ok(Arc::new(Self::new(kind, health, transport, shared)))
        });
        each.collect()
    }

    /// The origin of an upstream that nobody configured.
    pub(super) fn public(upstream: &Upstream, shared: &Shared) -> Result<Self, OriginError> {
        let transport = Arc::clone(&shared.transport);
        let docker_config = shared.docker_config.clone();
        let site = Site::public(upstream, docker_config, Arc::clone(&transport))?;
        let health = Health::new(upstream, &site.base, false, shared.clock);
        let kind = Kind::Registry(Arc::new(site));
        Ok(Self::new(kind, health, transport, shared))
    }

    /// How it does.
    pub(super) fn health(&self) -> &Health {
        &self.health
    }

    /// The registry, if it is one.
    pub(super) fn site(&self) -> Option<&Arc<Site>> {
        match &self.kind {
            Kind::Registry(site) => Some(site),
            Kind::Storage(_) => None,
        }
    }

    /// The directory or bucket, if it is one.
    pub(super) fn storage(&self) -> Option<&Storage> {
        match &self.kind {
            Kind::Storage(storage) => Some(storage),
            Kind::Registry(_) => None,
        }
    }

    /// How many requests were sent over its transport, which others may share.
    pub(super) fn sent(&self) -> u64 {
        self.transport.sent()
    }

    /// What to ask for the content of a repository.
    pub(super) fn source<'a>(&'a self, hint: &'a Hint) -> Source<'a> {
        match &self.kind {
            Kind::Registry(site) => Source::Registry(Registry {
                site: Arc::clone(site),
                hint,
                common: &self.common,
            }),
            Kind::Storage(storage) => Source::Storage(storage),
        }
    }
}

fn transport(
    upstream: &Upstream,
    spec: &OriginSpec,
    common: &Arc<Transport>,
) -> Result<Arc<Transport>, OriginConfigError> {
    let Some(path) = &spec.ca_file else {
        return Ok(Arc::clone(common));
    };
    let authorities = read_authorities(upstream, path)?;
    let transport = Transport::new(&authorities).map_err(|_| OriginConfigError::CaContent {
        upstream: upstream.clone(),
        path: path.clone(),
    })?;
    Ok(Arc::new(transport))
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
