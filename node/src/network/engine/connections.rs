//! Established connections: their streams, the tasks that serve them, and their end.

use std::sync::atomic::Ordering;

use futures::{
    AsyncReadExt as _,
    io::{ReadHalf, WriteHalf},
};
use libp2p::{Multiaddr, Stream, swarm::ConnectionId};
use shoal_protocol::directory::Peer;
use tokio::task::AbortHandle;
use tracing::{debug, warn};

use super::{Dial, DriverGone, Engine};
use crate::network::{
    NetworkEvent, SendError,
    behaviour::{Lane, StreamEvent},
    limits::{BULK_CONNECTIONS_MAX, BULK_IDLE, BULK_IN_USE, CONTROL_IDLE, STREAM_TIMEOUT},
    outbox::lock,
    streams::{self, Activity, Inlet, StreamError},
};

/// One established connection.
pub(super) struct Connection {
    pub(super) peer: Peer,
    pub(super) address: Multiaddr,
    /// Unknown on the listener's side until the stream is open.
    pub(super) lane: Option<Lane>,
    pub(super) activity: Activity,
    pub(super) outlet: Outlet,
    /// Whether it is as good as gone, though the swarm has not said so yet.
    pub(super) closing: bool,
    pub(super) tasks: Vec<AbortHandle>,
}

/// What we have of a connection to send on. Where both sides dialled at once there are two
/// connections, but only one drains the outbox, or messages would overtake each other.
pub(super) enum Outlet {
    /// Nothing: the stream is not open yet.
    Opening,
    /// The stream is open, and another connection drains the outbox.
    Standby(WriteHalf<Stream>),
    /// A task drains the outbox into the stream.
    Draining,
}

/// How a stream's task ended.
pub(super) struct Ended {
    pub(super) connection: ConnectionId,
    pub(super) result: Result<(), StreamError>,
}

impl Engine {
    /// Closes the longest idle bulk connection if there are too many; false if all are in use.
    pub(super) fn make_room(&mut self) -> bool {
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

    /// A control connection came about. Only the first is news.
    pub(super) async fn connected(
        &mut self,
        peer: Peer,
        id: ConnectionId,
    ) -> Result<(), DriverGone> {
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

    /// Sends on this connection, if its stream stands by.
    pub(super) fn start_sending(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        match (
            connection.lane,
            std::mem::replace(&mut connection.outlet, Outlet::Draining),
        ) {
            (Some(lane), Outlet::Standby(stream)) => self.spawn_writer(id, lane, stream),
            (_, other) => connection.outlet = other,
        }
    }

    pub(super) async fn handle_stream(
        &mut self,
        id: ConnectionId,
        event: StreamEvent,
    ) -> Result<(), DriverGone> {
        match event {
            StreamEvent::Open(lane, stream) => self.handle_open(id, lane, stream).await,
            StreamEvent::Failed(reason) => {
                debug!("stream refused: {reason}");
                self.close(id);
                Ok(())
            }
        }
    }

    async fn handle_open(
        &mut self,
        id: ConnectionId,
        lane: Lane,
        stream: Stream,
    ) -> Result<(), DriverGone> {
        let Some(connection) = self.connections.get(&id) else {
            return Ok(());
        };
        let peer = connection.peer;
        let is_new = connection.lane.is_none();
        if is_new && lane == Lane::Bulk && !self.make_room() {
            debug!(node = ?self.shared.directory.id(peer), "refused: {BULK_CONNECTIONS_MAX} bulk connections are in use");
            self.close(id);
            return Ok(());
        }
        let drained = self.connections.values().any(|other| {
            other.peer == peer
                && other.lane == Some(lane)
                && matches!(other.outlet, Outlet::Draining)
        });
        let (read, write) = stream.split();
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.lane = Some(lane);
            connection.outlet = Outlet::Standby(write);
        }
        self.count();
        if is_new && lane == Lane::Control {
            self.connected(peer, id).await?;
        }
        self.spawn_reader(id, lane, read);
        if !drained {
            self.start_sending(id);
        }
        Ok(())
    }

    fn spawn_reader(&mut self, id: ConnectionId, lane: Lane, stream: ReadHalf<Stream>) {
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

    fn spawn_writer(&mut self, id: ConnectionId, lane: Lane, stream: WriteHalf<Stream>) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        connection.outlet = Outlet::Draining;
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

    pub(super) fn handle_ended(&mut self, ended: &Ended) {
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
    pub(super) fn close(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.closing = true;
            for task in connection.tasks.drain(..) {
                task.abort();
            }
        }
        self.swarm.close_connection(id);
    }

    pub(super) fn close_all(&mut self, peer: Peer) {
        let of_peer = self
            .connections
            .iter()
            .filter(|(_, connection)| connection.peer == peer);
        for id in of_peer.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.close(id);
        }
    }

    pub(super) async fn handle_closed(&mut self, id: ConnectionId) -> Result<(), DriverGone> {
        let Some(connection) = self.connections.remove(&id) else {
            return Ok(());
        };
        for task in &connection.tasks {
            task.abort();
        }
        self.count();
        let peer = connection.peer;
        let mailbox = self.shared.mailboxes.of(peer);
        let drained = matches!(connection.outlet, Outlet::Draining);
        match connection.lane {
            Some(Lane::Control) => {
                let others = self.has_other_control(peer, id);
                if drained {
                    mailbox.messages.set_served(false);
                }
                // What was on its way may be lost even where another connection goes on.
                if drained || !others {
                    self.emit(NetworkEvent::Disconnected(peer)).await?;
                    if others {
                        self.emit(NetworkEvent::Connected(peer)).await?;
                    }
                }
                self.want(peer, Lane::Control).await
            }
            Some(Lane::Bulk) => {
                if drained {
                    mailbox.chunks.set_served(false);
                    self.fail_chunks(peer, &SendError::Disconnected);
                }
                self.want(peer, Lane::Bulk).await
            }
            None => Ok(()),
        }
    }

    pub(super) fn close_unwanted(&mut self) {
        let mut unwanted = Vec::new();
        for (id, connection) in &self.connections {
            if connection.closing {
                continue;
            }
            let node = self.shared.directory.id(connection.peer);
            let idle_max = match connection.lane {
                Some(Lane::Control) => CONTROL_IDLE,
                Some(Lane::Bulk) => BULK_IDLE,
                None => STREAM_TIMEOUT,
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

    pub(super) fn count(&self) {
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
