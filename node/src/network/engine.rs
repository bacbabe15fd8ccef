//! The task that owns the swarm: which connections there are, and what each is for.
//!
//! Bytes do not pass through here. The engine opens connections when an outbox needs one, gives
//! every stream to a task of its own (see `streams`), and closes connections that
//! are idle, broken, no longer admitted, or not wanted.

use std::{collections::HashMap, error::Error as _, net::SocketAddr, sync::Arc, time::Duration};

use futures::StreamExt as _;
use libp2p::{
    Multiaddr, PeerId, Swarm,
    core::ConnectedPoint,
    multiaddr::Protocol,
    swarm::{
        ConnectionId, DialError, SwarmEvent,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use shoal_protocol::directory::Peer;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{
    ConnectError, NetworkEvent, SendError, Shared, Todo,
    behaviour::{Lane, StreamEvent, Streams},
    faults::Damage,
    outbox::lock,
    streams::Activity,
};
use crate::cluster;

mod connections;

use connections::{Connection, Ended, Outlet};

/// How often idleness and admission are looked at.
const TICK: Duration = Duration::from_secs(1);

/// One connection that is not established yet.
enum Dial {
    /// Towards a known peer, because an outbox needs it.
    Peer(Peer, Lane),
    /// Towards a plain address.
    Address(SocketAddr, super::ConnectReply),
}

pub(super) struct Engine {
    swarm: Swarm<Streams>,
    shared: Arc<Shared>,
    events: mpsc::Sender<NetworkEvent>,
    connections: HashMap<ConnectionId, Connection>,
    dials: HashMap<ConnectionId, Dial>,
    tasks: JoinSet<Ended>,
    damage: Damage,
}

/// The driver is gone, so nothing is left to do.
pub(super) struct DriverGone;

impl Engine {
    pub(super) fn new(
        swarm: Swarm<Streams>,
        shared: Arc<Shared>,
        events: mpsc::Sender<NetworkEvent>,
    ) -> Self {
        Self {
            swarm,
            shared,
            events,
            connections: HashMap::new(),
            dials: HashMap::new(),
            tasks: JoinSet::new(),
            damage: Damage::from_env(),
        }
    }

    pub(super) fn swarm(&mut self) -> &mut Swarm<Streams> {
        &mut self.swarm
    }

    /// Works until the driver or the last handle is gone.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let done = tokio::select! {
                () = stop.cancelled() => Err(DriverGone),
                event = self.swarm.select_next_some() => self.handle_swarm(event).await,
                () = self.shared.wake.notified() => self.handle_todo().await,
                Some(ended) = self.tasks.join_next() => {
                    // A task that was aborted belongs to a connection that is closed already.
                    if let Ok(ended) = ended {
                        self.handle_ended(&ended);
                    }
                    Ok(())
                }
                _ = tick.tick() => {
                    self.close_unwanted();
                    Ok(())
                }
            };
            if done.is_err() {
                break;
            }
        }
        // Whoever waits for a dial learns that there will be none.
        lock(&self.shared.todo).dials.clear();
    }

    async fn emit(&mut self, event: NetworkEvent) -> Result<(), DriverGone> {
        self.events.send(event).await.map_err(|_| DriverGone)
    }

    async fn handle_todo(&mut self) -> Result<(), DriverGone> {
        let Todo {
            messages,
            chunks,
            overflowed,
            disconnect,
            dials,
        } = std::mem::take(&mut *lock(&self.shared.todo));
        for peer in overflowed {
            warn!(node = ?self.shared.directory.id(peer), "too many messages wait for this node; they are dropped and the connection is closed");
            self.close_all(peer);
            self.fail(peer, Lane::Control).await?;
        }
        for peer in disconnect {
            self.close_all(peer);
            self.shared.mailboxes.of(peer).messages.clear();
            self.fail_chunks(peer, &SendError::Disconnected);
        }
        for (address, reply) in dials {
            let options = DialOpts::unknown_peer_id()
                .address(multiaddr(address))
                .allocate_new_port()
                .build();
            let connection = options.connection_id();
            match self.swarm.dial(options) {
                Ok(()) => {
                    self.dials.insert(connection, Dial::Address(address, reply));
                }
                Err(error) => self.dial_failed(address, reply, &error).await?,
            }
        }
        for peer in messages {
            self.want(peer, Lane::Control).await?;
        }
        for peer in chunks {
            self.want(peer, Lane::Bulk).await?;
        }
        Ok(())
    }

    /// Sees to it that what waits for a peer has a connection to go out on.
    async fn want(&mut self, peer: Peer, lane: Lane) -> Result<(), DriverGone> {
        let mailbox = self.shared.mailboxes.of(peer);
        let waiting = match lane {
            Lane::Control => !mailbox.messages.is_empty(),
            Lane::Bulk => !mailbox.chunks.is_empty(),
        };
        let mut open = None;
        for (id, connection) in &self.connections {
            if connection.peer == peer && connection.lane == Some(lane) && !connection.closing {
                if matches!(connection.outlet, Outlet::Opening | Outlet::Draining) {
                    return Ok(());
                }
                open = Some(*id);
            }
        }
        if !waiting {
            return Ok(());
        }
        if let Some(id) = open {
            self.start_sending(id);
            return Ok(());
        }
        let dialing = self
            .dials
            .values()
            .any(|dial| matches!(dial, Dial::Peer(to, on) if *to == peer && *on == lane));
        if dialing {
            return Ok(());
        }
        if lane == Lane::Bulk && !self.make_room() {
            self.fail_chunks(peer, &SendError::TooManyConnections);
            return Ok(());
        }
        if let Err(reason) = self.dial(peer, lane) {
            debug!(node = ?self.shared.directory.id(peer), "cannot be dialled: {reason}");
            self.fail(peer, lane).await?;
        }
        Ok(())
    }

    fn dial(&mut self, peer: Peer, lane: Lane) -> Result<(), String> {
        let record = self.shared.directory.record(peer);
        if self.shared.admission.is_banned(&record.id) {
            return Err("it is banned".into());
        }
        if record.addresses.is_empty() {
            return Err("no address of it is known".into());
        }
        let peer_id = cluster::peer_id_of(&record.id).ok_or("its key is not valid")?;
        let options = DialOpts::peer_id(peer_id)
            .condition(PeerCondition::Always)
            .addresses(record.addresses.iter().copied().map(multiaddr).collect())
            .allocate_new_port()
            .build();
        let connection = options.connection_id();
        self.swarm.dial(options).map_err(|error| describe(&error))?;
        self.dials.insert(connection, Dial::Peer(peer, lane));
        Ok(())
    }

    /// What waits for a peer cannot be sent.
    async fn fail(&mut self, peer: Peer, lane: Lane) -> Result<(), DriverGone> {
        match lane {
            Lane::Control => {
                self.shared.mailboxes.of(peer).messages.clear();
                self.emit(NetworkEvent::Unreachable(peer)).await
            }
            Lane::Bulk => {
                self.fail_chunks(peer, &SendError::Unreachable);
                Ok(())
            }
        }
    }

    fn fail_chunks(&self, peer: Peer, error: &SendError) {
        for job in self.shared.mailboxes.of(peer).chunks.clear() {
            let _ = job.done.send(Err(error.clone()));
        }
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "libp2p's, and it grows; what else it tells is of no use here"
    )]
    pub(super) async fn handle_swarm(
        &mut self,
        event: SwarmEvent<(ConnectionId, StreamEvent)>,
    ) -> Result<(), DriverGone> {
        match event {
            SwarmEvent::Behaviour((connection, event)) => {
                self.handle_stream(connection, event).await
            }
            SwarmEvent::ConnectionEstablished {
                peer_id,
                connection_id,
                endpoint,
                ..
            } => {
                self.handle_established(peer_id, connection_id, &endpoint)
                    .await
            }
            SwarmEvent::ConnectionClosed {
                connection_id,
                cause,
                ..
            } => {
                if let Some(cause) = cause {
                    debug!("connection closed: {cause}");
                }
                self.handle_closed(connection_id).await
            }
            SwarmEvent::OutgoingConnectionError {
                connection_id,
                error,
                ..
            } => match self.dials.remove(&connection_id) {
                Some(Dial::Peer(peer, lane)) => {
                    let node = self.shared.directory.id(peer);
                    debug!(?node, "cannot be reached: {}", describe(&error));
                    self.fail(peer, lane).await
                }
                Some(Dial::Address(address, reply)) => {
                    self.dial_failed(address, reply, &error).await
                }
                None => Ok(()),
            },
            SwarmEvent::IncomingConnectionError {
                send_back_addr,
                error,
                ..
            } => {
                let cause = error.source().map(ToString::to_string).unwrap_or_default();
                debug!(address = %send_back_addr, "inbound connection refused: {error} {cause}");
                Ok(())
            }
            SwarmEvent::ListenerClosed { reason, .. } => {
                warn!("a listener closed, nodes can no longer connect to it: {reason:?}");
                Ok(())
            }
            SwarmEvent::ListenerError { error, .. } => {
                warn!("a listener failed to accept a connection: {error}");
                Ok(())
            }
            _ => Ok(()),
        }
    }

    async fn dial_failed(
        &mut self,
        address: SocketAddr,
        reply: super::ConnectReply,
        error: &DialError,
    ) -> Result<(), DriverGone> {
        // libp2p strikes the addresses that it listens on from those to be dialled.
        let own = matches!(
            error,
            DialError::LocalPeerId { .. } | DialError::NoAddresses
        );
        let failure = if own {
            ConnectError::OurOwn
        } else {
            ConnectError::Failed(describe(error))
        };
        if let Some(reply) = reply {
            // A waiter that is gone does not need to know.
            let _ = reply.send(Err(failure));
            return Ok(());
        }
        let event = NetworkEvent::DialFailed(address, failure.to_string());
        self.emit(event).await
    }

    async fn handle_established(
        &mut self,
        peer_id: PeerId,
        id: ConnectionId,
        endpoint: &ConnectedPoint,
    ) -> Result<(), DriverGone> {
        let dial = self.dials.remove(&id);
        let Some(node) = cluster::node_id_of(&peer_id) else {
            self.swarm.close_connection(id);
            return Ok(());
        };
        let peer = self.shared.directory.intern_id(node);
        let lane = match &dial {
            Some(Dial::Peer(_, lane)) => Some(*lane),
            Some(Dial::Address(..)) => Some(Lane::Control),
            None => None,
        };
        let connection = Connection {
            peer,
            address: endpoint.get_remote_address().clone(),
            lane,
            activity: Activity::new(self.shared.clock),
            outlet: Outlet::Opening,
            closing: false,
            tasks: Vec::new(),
        };
        self.connections.insert(id, connection);
        self.count();
        if !self.shared.admission.is_admitted(&node) {
            // Banned or expired between the handshake and now.
            self.close(id);
            return Ok(());
        }
        if let Some(lane) = lane {
            // The stream tells the other side what the connection is for.
            self.swarm.behaviour_mut().open(peer_id, id, lane);
            if lane == Lane::Control {
                self.connected(peer, id).await?;
            }
        }
        if let Some(Dial::Address(_, Some(reply))) = dial {
            let _ = reply.send(Ok(peer));
        }
        Ok(())
    }
}

/// A socket address as libp2p spells it.
pub(super) fn multiaddr(address: SocketAddr) -> Multiaddr {
    Multiaddr::from(address.ip()).with(Protocol::Tcp(address.port()))
}

/// One line of why a dial failed: the deepest cause for each address.
fn describe(error: &DialError) -> String {
    let DialError::Transport(failures) = error else {
        return error.to_string();
    };
    let each = failures.iter().map(|(address, failure)| {
        let mut cause: &dyn std::error::Error = failure;
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        format!("{address}: {cause}")
    });
    each.collect::<Vec<_>>().join("; ")
}
