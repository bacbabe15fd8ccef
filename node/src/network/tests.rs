#![expect(clippy::wildcard_enum_match_arm, reason = "a test looks for one event")]

use std::net::Ipv4Addr;

use ed25519_dalek::SigningKey;
use shoal_protocol::{
    attest::Attestation,
    chunk::ChunkHash,
    directory::{NodeRecord, Place},
    limits::CHUNK_BYTES,
};
use tokio::time::timeout;

use super::*;
use crate::{
    clock,
    cluster::{ClusterKey, Roles},
};

mod admission;
mod exchange;

/// Longer than anything here takes, even on a busy machine.
const PATIENCE: Duration = Duration::from_mins(1);

struct Node {
    identity: Identity,
    directory: Directory,
    network: Network,
    events: mpsc::Receiver<NetworkEvent>,
    address: SocketAddr,
}

async fn start_with(identity: Identity, admission: Admission) -> Node {
    let directory = Directory::new();
    let (network, events, bound) = start(NetworkConfig {
        identity: identity.clone(),
        admission,
        listen: vec![(Ipv4Addr::LOCALHOST, 0).into()],
        directory: directory.clone(),
        clock: Clock::start(),
    })
    .await
    .unwrap();
    Node {
        identity,
        directory,
        network,
        events,
        address: bound[0],
    }
}

async fn member(key: &ClusterKey) -> Node {
    let identity = Identity::generate();
    let admission = Admission::with_key(key.clone(), &identity);
    start_with(identity, admission).await
}

async fn pair() -> (Node, Node) {
    let key = ClusterKey::generate();
    (member(&key).await, member(&key).await)
}

impl Node {
    /// Tells this node where another is; its number here.
    fn knows(&self, other: &Node) -> Peer {
        self.directory.intern(&NodeRecord {
            id: other.identity.node_id(),
            generation: 1,
            addresses: vec![other.address],
            place: Place::default(),
        })
    }

    async fn next(&mut self) -> NetworkEvent {
        let event = timeout(PATIENCE, self.events.recv()).await;
        event.expect("no event came").expect("the network stopped")
    }

    async fn next_that<T>(&mut self, pick: impl Fn(NetworkEvent) -> Option<T>) -> T {
        loop {
            if let Some(picked) = pick(self.next().await) {
                return picked;
            }
        }
    }

    async fn next_message(&mut self) -> (Peer, Message) {
        self.next_that(|event| match event {
            NetworkEvent::Message { from, message } => Some((from, message)),
            _ => None,
        })
        .await
    }

    async fn next_chunk(&mut self) -> (Peer, ChunkHeader, Bytes) {
        self.next_that(|event| match event {
            NetworkEvent::Chunk {
                from,
                header,
                bytes,
            } => Some((from, header, bytes)),
            _ => None,
        })
        .await
    }

    async fn disconnected(&mut self) -> Peer {
        self.next_that(|event| match event {
            NetworkEvent::Disconnected(peer) => Some(peer),
            _ => None,
        })
        .await
    }

    /// Asserts that nothing happens for a while.
    async fn stays_silent(&mut self) {
        let event = timeout(Duration::from_millis(500), self.events.recv()).await;
        assert!(event.is_err(), "{event:?}");
    }
}

fn blob() -> Digest {
    Digest::sha256([9; 32])
}

/// A chunk that is unlike every other.
fn chunk(index: u32, len: u64) -> (ChunkHeader, Bytes) {
    let mut bytes = vec![index as u8; len as usize];
    bytes[..4].copy_from_slice(&index.to_be_bytes());
    let key = SigningKey::from_bytes(&[7; 32]);
    let attestation = Attestation::sign(&key, &blob(), index, ChunkHash::of(&bytes), len as u32);
    let header = ChunkHeader {
        blob: blob(),
        index,
        size: 1 << 30,
        attestation,
        packed: None,
    };
    (header, bytes.into())
}
