//! Two ends of the daemon's own network, from one node's memory to another's: what the swarm does
//! with a chunk, without the hashes and the disk.

use std::net::Ipv4Addr;

use bytes::Bytes;
use futures::StreamExt as _;
use shoal_node::clock::Clock;
use shoal_node::cluster::{Admission, ClusterKey, Identity};
use shoal_node::network::{self, Network, NetworkConfig, NetworkEvent};
use shoal_protocol::attest::Attestation;
use shoal_protocol::chunk::ChunkHash;
use shoal_protocol::digest::Digest;
use shoal_protocol::directory::{Directory, NodeRecord, Peer, Place};
use shoal_protocol::message::ChunkHeader;
use tokio::sync::mpsc;

use super::{BLOCK, runtime};

/// Chunks that are handed to the network at once, as many as a daemon sends at once.
const SENT_AT_ONCE: usize = 6;

/// One end.
struct End {
    network: Network,
    events: mpsc::Receiver<NetworkEvent>,
    directory: Directory,
    record: NodeRecord,
    identity: Identity,
}

impl End {
    async fn start(key: &ClusterKey) -> Result<Self, String> {
        let identity = Identity::generate();
        let directory = Directory::new();
        let (network, events, listening) = network::start(NetworkConfig {
            admission: Admission::with_key(key.clone(), &identity),
            identity: identity.clone(),
            listen: vec![(Ipv4Addr::LOCALHOST, 0).into()],
            directory: directory.clone(),
            clock: Clock::start(),
        })
        .await
        .map_err(|error| error.to_string())?;
        let record = NodeRecord {
            id: identity.node_id(),
            generation: 1,
            addresses: listening,
            place: Place::default(),
        };
        Ok(Self {
            network,
            events,
            directory,
            record,
            identity,
        })
    }

    fn knows(&self, other: &Self) -> Peer {
        self.directory.intern(&other.record)
    }
}

pub(crate) fn run(blocks: usize) -> Result<(), String> {
    let (here, there) = (runtime()?, runtime()?);
    let key = ClusterKey::generate();
    let sender = there.block_on(End::start(&key))?;
    let mut receiver = here.block_on(End::start(&key))?;
    let (to, from) = (sender.knows(&receiver), receiver.knows(&sender));
    let blob = Digest::sha256([1; 32]);
    for index in 0..blocks as u32 {
        receiver.network.expect(from, blob, index);
    }
    let sending = there.spawn(async move {
        send(&sender, to, blob, blocks).await?;
        // The network ends with its last handle, and with it what is still on its way.
        Ok::<_, String>(sender)
    });
    here.block_on(async {
        let mut came = 0;
        while came < blocks {
            match receiver.events.recv().await {
                Some(NetworkEvent::Chunk { .. }) => came += 1,
                Some(_) => {}
                None => return Err("the network stopped".into()),
            }
        }
        sending.await.map_err(|error| error.to_string())??;
        Ok(())
    })
}

async fn send(sender: &End, to: Peer, blob: Digest, blocks: usize) -> Result<(), String> {
    let bytes = Bytes::from(vec![1; BLOCK]);
    let hash = ChunkHash::of(&bytes);
    let header = ChunkHeader {
        blob,
        index: 0,
        size: (blocks * BLOCK) as u64,
        attestation: Attestation::sign(
            &sender.identity.signing_key(),
            &blob,
            0,
            hash,
            BLOCK as u32,
        ),
        packed: None,
    };
    let sends = (0..blocks as u32).map(|index| {
        let header = ChunkHeader {
            index,
            ..header.clone()
        };
        sender.network.send_chunk(to, header, bytes.clone())
    });
    let mut sends = futures::stream::iter(sends).buffered(SENT_AT_ONCE);
    while let Some(sent) = sends.next().await {
        sent.map_err(|error| error.to_string())?;
    }
    Ok(())
}
