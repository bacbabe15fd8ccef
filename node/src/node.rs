//! A running daemon, put together from its parts.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use rand::{TryRng as _, rngs::SysRng};
use shoal_protocol::{
    core::Core,
    directory::{Directory, NodeRecord, Place},
    reference::Upstream,
};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_util::sync::CancellationToken;

use crate::{
    admin,
    clock::{Clock, unix_seconds},
    cluster::{Admission, ClusterError, ClusterKey, Identity, Ticket},
    config::Config,
    driver::{Driver, FACTS_MAX, Keepers, Logins, Parts, Tallies},
    handle::Handle,
    http,
    metrics::Metrics,
    mirror::{self, MirrorOptions},
    network::{
        self, NetworkConfig, NetworkError,
        bootstrap::{self, JoinAddress, JoinAddressError},
        local_address_towards,
    },
    origin::{Gate, OriginConfigError, Origins, OriginsConfig},
    packing::Packer,
    store::{Store, StoreConfig, StoreError},
    tls::{Certificates, TlsError},
};

/// Readers' demands that wait for the loop.
const DEMANDS_MAX: usize = 1024;

/// A node with someone to join is called ready after so long even if nobody answers: it can serve
/// from its origins all the same.
const JOIN_PATIENCE: Duration = Duration::from_secs(5);

/// How often a starting node looks whether it has found members.
const READY_POLL: Duration = Duration::from_millis(50);

/// With nothing written for so long the pull is over, and those of others most likely too.
const SETTLE_AFTER: Duration = Duration::from_secs(3);

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The data directory cannot be made.
    #[error("cannot make the data directory {}; choose another with --data-dir", path.display())]
    DataDir {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The token of the admin endpoint cannot be written.
    #[error("cannot write {path}, which lets its readers export and import images: {source}")]
    Token {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A key, a ticket or the node's identity is missing or not what it should be.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// An endpoint's address cannot be listened on.
    #[error(
        "cannot listen on {address} for the {what}; is another daemon running there? choose \
         another address with --{what}"
    )]
    Listen {
        /// `mirror` or `admin`.
        what: &'static str,
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// A join address is not one.
    #[error(transparent)]
    Join(#[from] JoinAddressError),
    /// The swarm's network does not start.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The origins are not usable as configured.
    #[error(transparent)]
    Origin(#[from] OriginConfigError),
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The mirror cannot speak TLS as configured.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The system gives no randomness.
    #[error("the system gives no random numbers: {0}")]
    Random(String),
}

/// Runs a node until `shutdown`.
///
/// # Errors
/// When it cannot start; once it runs, what fails is reported to whoever asked for it.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), NodeError> {
    let clock = Clock::start();
    std::fs::create_dir_all(&config.data_dir).map_err(|source| NodeError::DataDir {
        path: config.data_dir.clone(),
        source,
    })?;
    let join: Vec<JoinAddress> = config
        .join
        .iter()
        .map(|text| text.parse())
        .collect::<Result<_, _>>()?;
    // Whatever may be wrong with the configuration is found before anything is listened on.
    let named = config.origins.keys().chain(config.access.keys());
    let aliases = named.cloned().collect();
    let origins = Origins::new(OriginsConfig {
        upstreams: config.origins,
        docker_config: config.docker_config,
        reserve: config.origin_reserve,
    })?;
    let gate = Gate::new(&config.access, origins.clone())?.map(Arc::new);
    let certificates = match &config.mirror_tls {
        Some(tls) => Some(Certificates::open(tls, &config.data_dir, config.mirror)?),
        None => None,
    };
    let tls = certificates
        .as_ref()
        .map(Certificates::acceptor)
        .transpose()?;
    let store = open_store(StoreConfig {
        dir: config.data_dir.clone(),
        quota_bytes: config.quota.map(|size| size.0),
        min_free_bytes: config.min_free.0,
        settle_after: SETTLE_AFTER,
    })
    .await?;
    let token = admin::Token::create(&config.data_dir).map_err(|source| NodeError::Token {
        path: admin::token_file(&config.data_dir),
        source,
    })?;
    let identity = Identity::load_or_create(&config.data_dir)?;
    let admission = match (&config.cluster_key, &config.ticket) {
        (Some(path), _) => Admission::with_key(ClusterKey::load(path)?, &identity),
        (None, Some(path)) => Admission::with_ticket(Ticket::load(path)?, &identity)?,
        (None, None) => Admission::alone(&identity),
    };
    let mirror_listener = listen("mirror", config.mirror)?;
    let admin_listener = listen("admin", config.admin)?;
    let directory = Directory::new();
    let (network, events, bound) = network::start(NetworkConfig {
        identity: identity.clone(),
        admission,
        listen: config.listen,
        directory: directory.clone(),
        clock,
    })
    .await?;

    let me = NodeRecord {
        id: identity.node_id(),
        // Seconds leave room for the generations that a false death costs.
        generation: unix_seconds() << 16,
        addresses: advertised(&config.advertise, &bound, &join).await,
        place: Place::labelled(config.zone.as_deref(), config.rack.as_deref()),
    };
    tracing::info!(
        "node {:?}: mirror on {}://{}, admin on {}, swarm on {bound:?} known as {:?}",
        me.id,
        if tls.is_some() { "https" } else { "http" },
        mirror_listener.local_addr().unwrap_or(config.mirror),
        admin_listener.local_addr().unwrap_or(config.admin),
        me.addresses,
    );
    let exchange = shoal_protocol::config::Config {
        wait_for_members: !join.is_empty(),
        tag_ttl: config.tag_ttl,
        ..Default::default()
    };
    let seed = SysRng
        .try_next_u64()
        .map_err(|error| NodeError::Random(error.to_string()))?;
    let core = Core::new(exchange, me, directory.clone(), seed, clock.now());

    let metrics = Arc::new(Metrics::default());
    let (facts, facts_in) = mpsc::channel(FACTS_MAX);
    let (demands, demands_in) = mpsc::channel(DEMANDS_MAX);
    let logins = Logins::new(facts.clone(), network.clone());
    origins.join(Arc::new(Keepers(Arc::clone(&logins))));
    let parts = Arc::new(Parts {
        clock,
        directory,
        network: network.clone(),
        store: store.clone(),
        origins,
        logins,
        key: identity.signing_key(),
        packer: Packer::new(Arc::clone(&metrics)),
        metrics: Arc::clone(&metrics),
        tallies: Tallies::default(),
        facts,
        tag_stale: config.tag_stale,
    });
    let handle = Handle::new(Arc::clone(&parts), demands);
    let driver = Driver::new(parts, core);
    let options = MirrorOptions {
        default_upstream: Upstream::default(),
        aliases,
        metrics,
        gate,
    };

    let bootstrapping = async {
        tokio::join!(
            bootstrap::run(network, join.clone()),
            become_ready(&handle, !join.is_empty()),
            async {
                if let Some(certificates) = certificates {
                    certificates.keep().await;
                }
            }
        );
        std::future::pending::<()>().await;
    };
    let serving = async {
        tokio::join!(
            driver.run(facts_in, events, demands_in, shutdown.clone()),
            mirror::serve(
                mirror_listener,
                tls,
                Arc::new(handle.clone()),
                options,
                shutdown.clone()
            ),
            admin::serve(
                admin_listener,
                Arc::new(handle.clone()),
                token,
                shutdown.clone()
            ),
        )
    };
    tokio::select! {
        _ = serving => {}
        () = bootstrapping => {}
    }
    // Nobody else waits for the disk any more.
    let _ = tokio::task::spawn_blocking(move || store.settle()).await;
    tracing::info!("stopped");
    Ok(())
}

async fn open_store(config: StoreConfig) -> Result<Store, StoreError> {
    match tokio::task::spawn_blocking(move || Store::open(&config)).await {
        Ok(opened) => opened,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

fn listen(what: &'static str, address: SocketAddr) -> Result<TcpListener, NodeError> {
    http::listen(address).map_err(|source| NodeError::Listen {
        what,
        address,
        source,
    })
}

/// Ready is who knows its fellow members, or has nobody to know.
async fn become_ready(handle: &Handle, joins: bool) {
    let found = async {
        while joins && handle.members().await < 2 {
            tokio::time::sleep(READY_POLL).await;
        }
    };
    if tokio::time::timeout(JOIN_PATIENCE, found).await.is_err() {
        tracing::warn!("none of the nodes to join has answered yet; going on alone");
    }
    handle.set_ready();
}

/// Where other nodes are told to connect: as configured, or the addresses listened on; where that
/// is all of them, the one that reaches the first node to join, or the way out.
async fn advertised(
    configured: &[SocketAddr],
    bound: &[SocketAddr],
    join: &[JoinAddress],
) -> Vec<SocketAddr> {
    let port = bound.first().map_or(0, SocketAddr::port);
    let with_port = |address: &SocketAddr| match address.port() {
        0 => SocketAddr::new(address.ip(), port),
        _ => *address,
    };
    if !configured.is_empty() {
        return configured.iter().map(with_port).collect();
    }
    let mut addresses: Vec<SocketAddr> = bound
        .iter()
        .copied()
        .filter(|address| !address.ip().is_unspecified())
        .collect();
    if addresses.is_empty() {
        let mut towards = Vec::new();
        for name in join {
            towards.extend(name.resolve().await.unwrap_or_default());
        }
        // An address of the documentation range: nothing is sent, the system only says which of
        // ours it would use.
        towards.push(SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 9));
        let reached = towards.into_iter().find_map(local_address_towards);
        addresses.extend(reached.map(|ip| SocketAddr::new(ip, port)));
    }
    addresses
}
