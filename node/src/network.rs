//! The swarm's network: members only, one control connection per pair of nodes, and a bulk
//! connection where chunks flow.
//!
//! Goals: nothing is spoken before both sides have shown a valid ticket; probes never queue behind
//! bulk; every queue is bounded, and a slow driver slows the sockets instead of losing messages;
//! a peer costs memory only for what was asked of it.
//!
//! Not here: who is alive (membership says so), what to send (the core decides), and whether the
//! bytes of a chunk are right (the store checks).
//!
//! libp2p carries the connections; libp2p-stream was not used because it drops inbound streams
//! when its queue is full, and request-response because it holds whole messages in memory. A
//! connection is one stream, and lives as long as it.

use std::{
    collections::{BTreeSet, HashSet},
    io,
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::StreamExt as _;
use libp2p::{
    Multiaddr, Swarm,
    multiaddr::Protocol,
    swarm::{self, SwarmEvent},
};
use shoal_protocol::{
    digest::Digest,
    directory::{Directory, Peer},
    limits::CONTROL_FRAME_BYTES_MAX,
    message::{ChunkHeader, Message},
    wire,
};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::error;

use self::{
    behaviour::Streams,
    engine::Engine,
    limits::{DIALS_WAITING_MAX, EVENTS_MAX},
    outbox::{ChunkJob, Mailboxes, Pushed, lock},
};
use crate::{
    clock::Clock,
    cluster::{Admission, Identity},
};

mod behaviour;
pub mod bootstrap;
mod engine;
mod faults;
mod limits;
mod muxer;
mod outbox;
mod security;
mod streams;

/// How long the listeners may take to report where they listen.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(5);

/// What the network is started with.
pub struct NetworkConfig {
    /// This node's key.
    pub identity: Identity,
    /// What it gets in with, and lets others in by.
    pub admission: Admission,
    /// Where to listen; port 0 takes a free one.
    pub listen: Vec<SocketAddr>,
    /// The numbers of the peers, and their addresses.
    pub directory: Directory,
    /// The daemon's clock.
    pub clock: Clock,
}

/// Why the network cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The address cannot be listened on.
    #[error(
        "cannot listen on {address} for the swarm: {source}; is another daemon running there? choose another address with --listen"
    )]
    Listen {
        /// Which address.
        address: SocketAddr,
        /// The cause.
        source: io::Error,
    },
    /// TLS cannot be set up.
    #[error("cannot set up TLS: {0}")]
    Security(String),
}

/// Why a chunk was not sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// No connection could be made.
    #[error("the node cannot be reached")]
    Unreachable,
    /// The connection closed before the chunk was out.
    #[error("the connection closed before the chunk was sent")]
    Disconnected,
    /// Too many chunks wait for this peer already.
    #[error("too many chunks wait for this node already")]
    QueueFull,
    /// All bulk connections are in use.
    #[error("all bulk connections are in use")]
    TooManyConnections,
    /// The network is shut down.
    #[error("the network is shut down")]
    Shutdown,
}

/// Why an address could not be connected to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// It is our own.
    #[error("it is this node's own address")]
    OurOwn,
    /// No connection came about.
    #[error("{0}")]
    Failed(String),
    /// Too many dials wait already.
    #[error("too many dials wait already")]
    TooMany,
    /// The network is shut down.
    #[error("the network is shut down")]
    Shutdown,
}

/// What the network has to tell.
#[derive(Clone, Debug)]
pub enum NetworkEvent {
    /// Messages can be exchanged with this peer.
    Connected(Peer),
    /// A connection that messages were sent on is gone, and some of them may be lost. If another
    /// remains, [`Connected`](Self::Connected) follows at once.
    Disconnected(Peer),
    /// The messages that waited for this peer are dropped: it cannot be reached, or too many
    /// waited.
    Unreachable(Peer),
    /// A dial that [`Network::dial`] asked for failed, for this reason.
    DialFailed(SocketAddr, String),
    /// A message came.
    Message {
        /// From whom.
        from: Peer,
        /// What it says.
        message: Message,
    },
    /// An expected chunk came as a whole. It is not checked yet, and no longer expected.
    Chunk {
        /// From whom.
        from: Peer,
        /// What it is.
        header: ChunkHeader,
        /// As many bytes as the header announced.
        bytes: Bytes,
    },
    /// Bytes of an expected chunk came: at most one event every 100 ms or 1 MiB, none where the
    /// driver is behind.
    ChunkProgress {
        /// From whom.
        from: Peer,
        /// The blob.
        blob: Digest,
        /// The chunk.
        index: u32,
        /// How many bytes there are, as they are on the wire.
        received: u32,
        /// How many there will be.
        total: u32,
    },
}

/// How many connections there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connections {
    /// For messages.
    pub control: usize,
    /// For chunks.
    pub bulk: usize,
}

/// Who waits for a dial; `None` has the outcome told as an event.
type ConnectReply = Option<oneshot::Sender<Result<Peer, ConnectError>>>;

/// What handles and the engine share.
struct Shared {
    admission: Admission,
    directory: Directory,
    clock: Clock,
    mailboxes: Mailboxes,
    todo: Mutex<Todo>,
    wake: Notify,
    control: AtomicUsize,
    bulk: AtomicUsize,
    connected: Mutex<HashSet<Peer>>,
}

/// What the engine was asked to do. Bounded by the number of peers and [`DIALS_WAITING_MAX`].
#[derive(Default)]
struct Todo {
    messages: BTreeSet<Peer>,
    chunks: BTreeSet<Peer>,
    overflowed: BTreeSet<Peer>,
    disconnect: BTreeSet<Peer>,
    dials: Vec<(SocketAddr, ConnectReply)>,
}

/// A handle to the network. The network stops when the last one is dropped.
#[derive(Clone)]
pub struct Network {
    shared: Arc<Shared>,
    stop: CancellationToken,
    _stop_on_drop: Arc<DropGuard>,
}

/// Starts the network: a handle, its events, and the addresses that it listens on.
///
/// The events must be read: while nobody does, sockets are not read either, and nothing is dialled.
/// So whoever reads them must not wait for [`Network::send_chunk`] or [`Network::connect`] meanwhile.
/// Chunks are bounded only by what was [`expect`](Network::expect)ed, 4 MiB each.
///
/// # Errors
/// When an address cannot be listened on, or no certificate can be made.
pub async fn start(
    config: NetworkConfig,
) -> Result<(Network, mpsc::Receiver<NetworkEvent>, Vec<SocketAddr>), NetworkError> {
    let transport = security::transport(&config.identity, config.admission.clone())
        .map_err(|error| NetworkError::Security(error.to_string()))?;
    let swarm = Swarm::new(
        transport,
        Streams::default(),
        config.identity.peer_id(),
        swarm::Config::with_tokio_executor(),
    );
    let shared = Arc::new(Shared {
        admission: config.admission,
        directory: config.directory,
        clock: config.clock,
        mailboxes: Mailboxes::default(),
        todo: Mutex::default(),
        wake: Notify::new(),
        control: AtomicUsize::new(0),
        bulk: AtomicUsize::new(0),
        connected: Mutex::default(),
    });
    let (sender, events) = mpsc::channel(EVENTS_MAX);
    let mut engine = Engine::new(swarm, Arc::clone(&shared), sender);
    let mut bound = Vec::with_capacity(config.listen.len());
    for address in config.listen {
        bound.push(listen(&mut engine, address).await?);
    }
    let stop = CancellationToken::new();
    tokio::spawn(engine.run(stop.clone()));
    let network = Network {
        shared,
        _stop_on_drop: Arc::new(stop.clone().drop_guard()),
        stop,
    };
    Ok((network, events, bound))
}

async fn listen(engine: &mut Engine, address: SocketAddr) -> Result<SocketAddr, NetworkError> {
    let failed = |source| NetworkError::Listen { address, source };
    // libp2p listens with SO_REUSEPORT, by which two daemons would share the port in silence.
    drop(TcpListener::bind(address).map_err(failed)?);
    let listener = engine
        .swarm()
        .listen_on(engine::multiaddr(address))
        .map_err(|error| failed(io::Error::other(error)))?;
    let report = async {
        loop {
            let event = engine.swarm().select_next_some().await;
            if let SwarmEvent::NewListenAddr {
                listener_id,
                address: at,
            } = &event
                && *listener_id == listener
            {
                return port_of(at);
            }
            // A peer may be here before all listeners are up.
            let _ = engine.handle_swarm(event).await;
        }
    };
    match tokio::time::timeout(LISTEN_TIMEOUT, report).await {
        Ok(Some(port)) => Ok(SocketAddr::new(address.ip(), port)),
        Ok(None) | Err(_) => Err(failed(io::ErrorKind::TimedOut.into())),
    }
}

fn port_of(address: &Multiaddr) -> Option<u16> {
    address.iter().find_map(|part| {
        if let Protocol::Tcp(port) = part {
            Some(port)
        } else {
            None
        }
    })
}

/// The address that this host would use to reach `to`: the default to advertise. Sends nothing.
pub fn local_address_towards(to: SocketAddr) -> Option<IpAddr> {
    let any: SocketAddr = if to.is_ipv4() {
        ([0; 4], 0).into()
    } else {
        ([0u16; 8], 0).into()
    };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(to).ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_unspecified()).then_some(ip)
}

impl Network {
    /// Sends a message, in order with the others to the same peer. Never waits: where there is no
    /// connection one is made, and what cannot be sent ends in [`NetworkEvent::Unreachable`].
    pub fn send(&self, to: Peer, message: Message) {
        let frame = wire::encode_message(message, &self.shared.directory);
        if frame.len() > CONTROL_FRAME_BYTES_MAX {
            // The receiver would cut us off for it.
            let node = self.shared.directory.id(to);
            error!(
                ?node,
                bytes = frame.len(),
                "a message is larger than any node accepts; it is dropped"
            );
            return;
        }
        let (pushed, _) = self.shared.mailboxes.of(to).messages.push(frame);
        match pushed {
            Pushed::Queued => {}
            Pushed::NeedsConnection => self.ask(|todo| {
                todo.messages.insert(to);
            }),
            Pushed::Full => self.ask(|todo| {
                todo.overflowed.insert(to);
            }),
        }
    }

    /// Connects to an address of which it is not known who is there. Success is told by
    /// [`NetworkEvent::Connected`], failure by [`NetworkEvent::DialFailed`] (but for a flood of
    /// more dials than are kept, which are dropped).
    pub fn dial(&self, address: SocketAddr) {
        self.ask(|todo| {
            if todo.dials.len() < DIALS_WAITING_MAX {
                todo.dials.push((address, None));
            }
        });
    }

    /// Connects to an address, and says who is there.
    pub async fn connect(&self, address: SocketAddr) -> Result<Peer, ConnectError> {
        let (reply, outcome) = oneshot::channel();
        let mut reply = Some(reply);
        self.ask(|todo| {
            if todo.dials.len() < DIALS_WAITING_MAX {
                todo.dials.push((address, reply.take()));
            }
        });
        if reply.is_some() {
            return Err(ConnectError::TooMany);
        }
        tokio::select! {
            outcome = outcome => outcome.unwrap_or(Err(ConnectError::Shutdown)),
            () = self.stop.cancelled() => Err(ConnectError::Shutdown),
        }
    }

    /// Sends a chunk, after those that wait for the same peer. Resolves when its bytes are written
    /// to the stream. Dropping the future takes back a chunk whose turn has not come.
    pub async fn send_chunk(
        &self,
        to: Peer,
        header: ChunkHeader,
        bytes: Bytes,
    ) -> Result<(), SendError> {
        let (done, outcome) = oneshot::channel();
        let job = ChunkJob {
            header,
            bytes,
            done,
        };
        match self.shared.mailboxes.of(to).chunks.push(job).0 {
            Pushed::Queued => {}
            Pushed::NeedsConnection => self.ask(|todo| {
                todo.chunks.insert(to);
            }),
            Pushed::Full => return Err(SendError::QueueFull),
        }
        tokio::select! {
            // Dropped unanswered only by the writer of a connection that closes.
            outcome = outcome => outcome.unwrap_or(Err(SendError::Disconnected)),
            () = self.stop.cancelled() => Err(SendError::Shutdown),
        }
    }

    /// Lets this chunk in, once: until it has come, or [`unexpect`](Self::unexpect) is called,
    /// whatever becomes of connections. What was not expected is read and forgotten.
    pub fn expect(&self, from: Peer, blob: Digest, index: u32) {
        self.shared.mailboxes.of(from).expect(blob, index);
    }

    /// Takes [`expect`](Self::expect) back. A chunk that has begun to arrive is delivered still.
    pub fn unexpect(&self, from: Peer, blob: Digest, index: u32) {
        self.shared.mailboxes.of(from).unexpect(blob, index);
    }

    /// Closes all connections with this peer, and drops what waits for it.
    pub fn disconnect(&self, peer: Peer) {
        self.ask(|todo| {
            todo.disconnect.insert(peer);
        });
    }

    /// Closes all connections with this peer, and lets it in no more.
    pub fn ban(&self, peer: Peer) {
        let node = self.shared.directory.id(peer);
        self.shared.admission.ban(node);
        self.disconnect(peer);
    }

    /// Whether there is a control connection with this peer.
    pub fn is_connected(&self, peer: Peer) -> bool {
        lock(&self.shared.connected).contains(&peer)
    }

    /// How many connections there are.
    pub fn connections(&self) -> Connections {
        Connections {
            control: self.shared.control.load(Ordering::Relaxed),
            bulk: self.shared.bulk.load(Ordering::Relaxed),
        }
    }

    fn ask(&self, what: impl FnOnce(&mut Todo)) {
        what(&mut lock(&self.shared.todo));
        self.shared.wake.notify_one();
    }
}

#[cfg(test)]
mod tests;
