//! The task that owns the swarm: which connections there are, and what each is for.
//!
//! Bytes do not pass through here. The engine opens connections when an outbox needs one, gives
//! every stream to a task of its own (see [`streams`](super::streams)), and closes connections that
//! are idle, broken, no longer admitted, or not wanted.

use std::{
    collections::HashMap,
    error::Error as _,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures::StreamExt as _;
use libp2p::{
    Multiaddr, PeerId, Stream, Swarm,
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
    task::{AbortHandle, JoinSet},
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    ConnectError, NetworkEvent, SendError, Shared, Todo,
    behaviour::{Lane, StreamEvent, Streams},
    faults::Damage,
    limits::{BULK_CONNECTIONS_MAX, BULK_IDLE, BULK_IN_USE, CONTROL_IDLE, FIRST_STREAM_TIMEOUT},
    outbox::lock,
    streams::{self, Activity, Inlet, StreamError},
};
use crate::cluster;

/// How often idleness and admission are looked at.
const TICK: Duration = Duration::from_secs(1);

/// One established connection.
struct Connection {
    peer: Peer,
    peer_id: PeerId,
    address: Multiaddr,
    /// Unknown on the listener's side until the first stream is opened.
    lane: Option<Lane>,
    activity: Activity,
    /// Whether we send on it, or have asked for the stream to do so.
    sends: bool,
    receives: bool,
    /// Whether it is as good as gone, though the swarm has not said so yet.
    closing: bool,
    tasks: Vec<AbortHandle>,
}

/// One connection that is not established yet.
enum Dial {
    /// Towards a known peer, because an outbox needs it.
    Peer(Peer, Lane),
    /// Towards a plain address.
    Address(SocketAddr, super::ConnectReply),
}

/// How a stream's task ended.
struct Ended {
    connection: ConnectionId,
    result: Result<(), StreamError>,
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
                if connection.sends {
                    return Ok(());
                }
                open = Some(*id);
            }
        }
        if !waiting {
            return Ok(());
        }
        if let Some(connection) = open {
            self.start_sending(connection);
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

    /// Closes the longest idle bulk connection if there are too many; false if all are in use.
    fn make_room(&mut self) -> bool {
        let dialing = self
            .dials
            .values()
            .filter(|dial| matches!(dial, Dial::Peer(_, Lane::Bulk)));
        let open = self.of_lane(Lane::Bulk);
        if open.len() + dialing.count() < BULK_CONNECTIONS_MAX {
            return true;
        }
        let idlest = open
            .into_iter()
            .max_by_key(|id| self.connections[id].activity.idle());
        match idlest {
            Some(id) if self.connections[&id].activity.idle() > BULK_IN_USE => {
                self.close(id);
                true
            }
            _ => false,
        }
    }

    fn of_lane(&self, lane: Lane) -> Vec<ConnectionId> {
        let of_lane = self
            .connections
            .iter()
            .filter(|(_, connection)| connection.lane == Some(lane) && !connection.closing);
        of_lane.map(|(id, _)| *id).collect()
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
                    info!(?node, "cannot be reached: {}", describe(&error));
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
        let failure = if let DialError::LocalPeerId { .. } = error {
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
            peer_id,
            address: endpoint.get_remote_address().clone(),
            lane,
            activity: Activity::new(self.shared.clock),
            sends: false,
            receives: false,
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
            self.start_sending(id);
            if lane == Lane::Control {
                self.connected(peer, id).await?;
            }
        }
        if let Some(Dial::Address(_, Some(reply))) = dial {
            let _ = reply.send(Ok(peer));
        }
        Ok(())
    }

    /// A control connection came about. Only the first is news.
    async fn connected(&mut self, peer: Peer, id: ConnectionId) -> Result<(), DriverGone> {
        if self.has_other_control(peer, id) {
            return Ok(());
        }
        self.emit(NetworkEvent::Connected(peer)).await
    }

    fn has_other_control(&self, peer: Peer, than: ConnectionId) -> bool {
        self.connections.iter().any(|(id, connection)| {
            *id != than
                && connection.peer == peer
                && connection.lane == Some(Lane::Control)
                && !connection.closing
        })
    }

    /// Asks for the stream that we send on, if the connection has none yet.
    fn start_sending(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connections.get_mut(&id)
            && let Some(lane) = connection.lane
            && !connection.sends
        {
            connection.sends = true;
            let peer_id = connection.peer_id;
            self.swarm.behaviour_mut().open(peer_id, id, lane);
        }
    }

    async fn handle_stream(
        &mut self,
        id: ConnectionId,
        event: StreamEvent,
    ) -> Result<(), DriverGone> {
        match event {
            StreamEvent::Inbound(lane, stream) => self.handle_inbound(id, lane, stream).await,
            StreamEvent::Outbound(lane, stream) => {
                self.spawn_writer(id, lane, stream);
                Ok(())
            }
            StreamEvent::Failed(reason) => {
                debug!("stream refused: {reason}");
                self.close(id);
                Ok(())
            }
        }
    }

    async fn handle_inbound(
        &mut self,
        id: ConnectionId,
        lane: Lane,
        stream: Stream,
    ) -> Result<(), DriverGone> {
        let Some(connection) = self.connections.get_mut(&id) else {
            return Ok(());
        };
        let peer = connection.peer;
        if connection.receives || connection.lane.is_some_and(|known| known != lane) {
            warn!(node = ?self.shared.directory.id(peer), address = %connection.address, "opened a stream that the connection is not for; closing it");
            self.close(id);
            return Ok(());
        }
        connection.receives = true;
        let is_new = connection.lane.is_none();
        if is_new && lane == Lane::Bulk && !self.make_room() {
            debug!(node = ?self.shared.directory.id(peer), "refused: {BULK_CONNECTIONS_MAX} bulk connections are in use");
            self.close(id);
            return Ok(());
        }
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.lane = Some(lane);
        }
        self.count();
        if is_new && lane == Lane::Control {
            self.connected(peer, id).await?;
        }
        self.spawn_reader(id, lane, stream);
        self.want(peer, lane).await
    }

    fn spawn_reader(&mut self, id: ConnectionId, lane: Lane, stream: Stream) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let inlet = Inlet {
            from: connection.peer,
            directory: self.shared.directory.clone(),
            mailbox: self.shared.mailboxes.of(connection.peer),
            events: self.events.clone(),
            activity: connection.activity.clone(),
        };
        let task = self.tasks.spawn(async move {
            let result = match lane {
                Lane::Control => inlet.read_messages(stream).await,
                Lane::Bulk => inlet.read_chunks(stream).await,
            };
            Ended {
                connection: id,
                result,
            }
        });
        connection.tasks.push(task);
    }

    fn spawn_writer(&mut self, id: ConnectionId, lane: Lane, stream: Stream) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let mailbox = self.shared.mailboxes.of(connection.peer);
        match lane {
            Lane::Control => mailbox.messages.set_served(true),
            Lane::Bulk => mailbox.chunks.set_served(true),
        }
        let activity = connection.activity.clone();
        let damage = self.damage.clone();
        let task = self.tasks.spawn(async move {
            let result = match lane {
                Lane::Control => streams::write_messages(stream, &mailbox.messages, activity).await,
                Lane::Bulk => {
                    streams::write_chunks(stream, &mailbox.chunks, activity, damage).await
                }
            };
            Ended {
                connection: id,
                result,
            }
        });
        connection.tasks.push(task);
    }

    fn handle_ended(&mut self, ended: &Ended) {
        if let Err(error) = &ended.result
            && let Some(connection) = self.connections.get(&ended.connection)
        {
            let node = self.shared.directory.id(connection.peer);
            let address = &connection.address;
            if error.is_violation() {
                warn!(?node, %address, "closing the connection: {error}");
            } else {
                debug!(?node, %address, "stream ended: {error}");
            }
        }
        self.close(ended.connection);
    }

    /// Closes a connection. What follows from it happens when the swarm says that it is closed.
    fn close(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.closing = true;
            for task in connection.tasks.drain(..) {
                task.abort();
            }
        }
        self.swarm.close_connection(id);
    }

    fn close_all(&mut self, peer: Peer) {
        let of_peer = self
            .connections
            .iter()
            .filter(|(_, connection)| connection.peer == peer);
        for id in of_peer.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.close(id);
        }
    }

    async fn handle_closed(&mut self, id: ConnectionId) -> Result<(), DriverGone> {
        let Some(connection) = self.connections.remove(&id) else {
            return Ok(());
        };
        for task in &connection.tasks {
            task.abort();
        }
        self.count();
        let peer = connection.peer;
        let mailbox = self.shared.mailboxes.of(peer);
        match connection.lane {
            Some(Lane::Control) => {
                let others = self.has_other_control(peer, id);
                if connection.sends {
                    mailbox.messages.set_served(false);
                }
                // What was on its way may be lost even where another connection goes on.
                if connection.sends || !others {
                    self.emit(NetworkEvent::Disconnected(peer)).await?;
                    if others {
                        self.emit(NetworkEvent::Connected(peer)).await?;
                    }
                }
                self.want(peer, Lane::Control).await
            }
            Some(Lane::Bulk) => {
                if connection.sends {
                    mailbox.chunks.set_served(false);
                    self.fail_chunks(peer, &SendError::Disconnected);
                }
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn close_unwanted(&mut self) {
        let mut unwanted = Vec::new();
        for (id, connection) in &self.connections {
            let node = self.shared.directory.id(connection.peer);
            let idle_max = match connection.lane {
                Some(Lane::Control) => CONTROL_IDLE,
                Some(Lane::Bulk) => BULK_IDLE,
                None => FIRST_STREAM_TIMEOUT,
            };
            if !self.shared.admission.is_admitted(&node) {
                warn!(
                    ?node,
                    "closing the connection: its ticket has expired, or it is banned"
                );
                unwanted.push(*id);
            } else if connection.activity.idle() > idle_max {
                debug!(?node, lane = ?connection.lane, "closing an idle connection");
                unwanted.push(*id);
            }
        }
        for id in unwanted {
            self.close(id);
        }
    }

    fn count(&self) {
        let control = self.of_lane(Lane::Control).len();
        let bulk = self.of_lane(Lane::Bulk).len();
        self.shared.control.store(control, Ordering::Relaxed);
        self.shared.bulk.store(bulk, Ordering::Relaxed);
        let mut connected = lock(&self.shared.connected);
        connected.clear();
        let control = self.connections.values();
        connected.extend(
            control
                .filter(|connection| connection.lane == Some(Lane::Control) && !connection.closing)
                .map(|connection| connection.peer),
        );
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
