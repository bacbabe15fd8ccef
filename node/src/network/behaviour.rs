//! The part that lives inside libp2p's swarm: it opens and accepts streams, and nothing else.
//!
//! A connection carries one lane, [`Lane::Control`] or [`Lane::Bulk`], and is one stream, which the
//! dialer opens. Streams go out of here as soon as they are negotiated; what is spoken on them, and
//! when a connection is opened or closed, is the engine's business.

use std::{
    array,
    collections::{HashMap, VecDeque},
    convert::Infallible,
    net::IpAddr,
    task::{Context, Poll},
};

use futures::future::{Ready, ready};
use libp2p::{
    Multiaddr, PeerId, Stream, StreamProtocol,
    core::{
        Endpoint,
        transport::PortUse,
        upgrade::{InboundUpgrade, OutboundUpgrade, UpgradeInfo},
    },
    multiaddr::Protocol,
    swarm::{
        ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm,
        NetworkBehaviour, NotifyHandler, SubstreamProtocol, THandler, THandlerInEvent,
        THandlerOutEvent, ToSwarm,
        handler::{ConnectionEvent, FullyNegotiatedInbound, FullyNegotiatedOutbound},
    },
};

use super::limits::{HANDSHAKES_MAX, HANDSHAKES_PER_ADDRESS_MAX};

/// What a connection is for. Probes must not queue behind bulk, so each has its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// Messages.
    Control,
    /// Chunks.
    Bulk,
}

impl Lane {
    const ALL: [Self; 2] = [Self::Control, Self::Bulk];

    fn protocol(self) -> StreamProtocol {
        match self {
            Self::Control => StreamProtocol::new("/shoal/control/1"),
            Self::Bulk => StreamProtocol::new("/shoal/chunks/1"),
        }
    }
}

/// What happened to the stream of a connection.
#[derive(Debug)]
pub(super) enum StreamEvent {
    /// It is open, by us or by the peer.
    Open(Lane, Stream),
    /// It cannot be opened.
    Failed(String),
}

/// Too many connections are shaking hands.
#[derive(Debug, thiserror::Error)]
#[error("{count} handshakes from {address} are under way already, {total} in all")]
struct TooManyHandshakes {
    address: IpAddr,
    count: usize,
    total: usize,
}

/// The behaviour.
#[derive(Default)]
pub(super) struct Streams {
    handshakes: HashMap<ConnectionId, IpAddr>,
    /// What the swarm has not fetched yet; each connection adds a handful in its life.
    pending: VecDeque<ToSwarm<(ConnectionId, StreamEvent), Lane>>,
}

impl Streams {
    /// Asks for the stream of a connection that we dialled.
    pub(super) fn open(&mut self, peer_id: PeerId, connection: ConnectionId, lane: Lane) {
        self.pending.push_back(ToSwarm::NotifyHandler {
            peer_id,
            handler: NotifyHandler::One(connection),
            event: lane,
        });
    }
}

fn ip_of(address: &Multiaddr) -> Option<IpAddr> {
    let first = address.iter().next()?;
    if let Protocol::Ip4(ip) = first {
        Some(ip.into())
    } else if let Protocol::Ip6(ip) = first {
        Some(ip.to_canonical())
    } else {
        None
    }
}

impl NetworkBehaviour for Streams {
    type ConnectionHandler = Handler;
    type ToSwarm = (ConnectionId, StreamEvent);

    fn handle_pending_inbound_connection(
        &mut self,
        connection: ConnectionId,
        _local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        let Some(address) = ip_of(remote) else {
            return Ok(());
        };
        let total = self.handshakes.len();
        let same = self.handshakes.values().filter(|ip| **ip == address);
        let count = same.count();
        if total >= HANDSHAKES_MAX || count >= HANDSHAKES_PER_ADDRESS_MAX {
            return Err(ConnectionDenied::new(TooManyHandshakes {
                address,
                count,
                total,
            }));
        }
        self.handshakes.insert(connection, address);
        Ok(())
    }

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler::default())
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler::default())
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        if let FromSwarm::ConnectionEstablished(established) = event {
            self.handshakes.remove(&established.connection_id);
        } else if let FromSwarm::ListenFailure(failure) = event {
            self.handshakes.remove(&failure.connection_id);
        }
    }

    fn on_connection_handler_event(
        &mut self,
        _: PeerId,
        connection: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        self.pending
            .push_back(ToSwarm::GenerateEvent((connection, event)));
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        // Whatever adds to the queue is called by the swarm, which polls again afterwards.
        self.pending.pop_front().map_or(Poll::Pending, Poll::Ready)
    }
}

/// One connection's end inside the swarm. It has one stream.
#[derive(Default)]
pub(super) struct Handler {
    wanted: Option<Lane>,
    event: Option<StreamEvent>,
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Lane;
    type ToBehaviour = StreamEvent;
    type InboundProtocol = Accept;
    type OutboundProtocol = Open;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = ();

    fn listen_protocol(&self) -> SubstreamProtocol<Accept> {
        SubstreamProtocol::new(Accept, ())
    }

    fn connection_keep_alive(&self) -> bool {
        // The engine closes what is idle: it alone sees the traffic.
        true
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ConnectionHandlerEvent<Open, (), StreamEvent>> {
        if let Some(event) = self.event.take() {
            return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(event));
        }
        match self.wanted.take() {
            Some(lane) => Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest {
                protocol: SubstreamProtocol::new(Open(lane), ()),
            }),
            None => Poll::Pending,
        }
    }

    fn on_behaviour_event(&mut self, lane: Lane) {
        self.wanted = Some(lane);
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<'_, Accept, Open>) {
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "libp2p's, and it grows; what else it tells is of no use here"
        )]
        let event = match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol: (lane, stream),
                ..
            })
            | ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol: (lane, stream),
                ..
            }) => StreamEvent::Open(lane, stream),
            ConnectionEvent::DialUpgradeError(error) => {
                StreamEvent::Failed(error.error.to_string())
            }
            _ => return,
        };
        self.event = Some(event);
    }
}

/// Accepts a stream of either lane.
pub(super) struct Accept;

impl UpgradeInfo for Accept {
    type Info = StreamProtocol;
    type InfoIter = array::IntoIter<StreamProtocol, 2>;

    fn protocol_info(&self) -> Self::InfoIter {
        Lane::ALL.map(Lane::protocol).into_iter()
    }
}

impl InboundUpgrade<Stream> for Accept {
    type Output = (Lane, Stream);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_inbound(self, stream: Stream, protocol: StreamProtocol) -> Self::Future {
        let lane = if protocol == Lane::Control.protocol() {
            Lane::Control
        } else {
            Lane::Bulk
        };
        ready(Ok((lane, stream)))
    }
}

/// Opens a stream of one lane.
pub(super) struct Open(Lane);

impl UpgradeInfo for Open {
    type Info = StreamProtocol;
    type InfoIter = array::IntoIter<StreamProtocol, 1>;

    fn protocol_info(&self) -> Self::InfoIter {
        [self.0.protocol()].into_iter()
    }
}

impl OutboundUpgrade<Stream> for Open {
    type Output = (Lane, Stream);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_outbound(self, stream: Stream, _: StreamProtocol) -> Self::Future {
        ready(Ok((self.0, stream)))
    }
}
