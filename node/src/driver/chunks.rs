//! Chunks from peers and to peers.

use std::sync::Arc;

use bytes::Bytes;
use shoal_protocol::{
    attest::Attestation, digest::Digest, directory::Peer, event::Event, message::ChunkHeader,
};
use tokio::task::spawn_blocking;

use super::{Driver, Fact, Parts};
use crate::{
    buffers::Buffer,
    store::{Blob, BlobState, StoreError},
};

impl Driver {
    /// Checks a chunk that came in and stores it, on a blocking thread.
    pub(super) fn receive(&self, from: Peer, header: ChunkHeader, bytes: Bytes) {
        let ChunkHeader {
            blob,
            index,
            attestation,
            packed,
            ..
        } = header;
        let stored = self
            .fetches
            .get(&blob)
            .and_then(|fetch| fetch.blob.borrow().clone());
        let parts = Arc::clone(&self.parts);
        let signer = parts.directory.lookup(&attestation.signer);
        let accepted =
            signer.is_none_or(|signer| self.core.accepts(&blob, index, signer, &attestation.hash));
        let unpacker = Arc::clone(&parts);
        tokio::spawn(async move {
            let Some(stored) = stored.filter(|_| accepted) else {
                // The pull has ended meanwhile, or what is vouched for is known to be wrong.
                let event = Event::ChunkRejected {
                    from,
                    blob,
                    index,
                    corrupt: false,
                };
                let _ = parts.facts.send(Fact::Event(event)).await;
                return;
            };
            let outcome = spawn_blocking(move || {
                if signer.is_none() || !is_vouched_for(&stored, index, &attestation) {
                    return Ok(false);
                }
                let bytes = match packed {
                    Some(_) => match unpacker.packer.unpack(&bytes, attestation.len) {
                        Ok(chunk) => chunk.freeze(),
                        Err(_) => return Ok(false),
                    },
                    None => bytes,
                };
                match stored.write_chunk(index, &bytes, &attestation) {
                    Ok(_) => Ok(true),
                    Err(StoreError::Mismatch { .. }) => Ok(false),
                    Err(error) => Err(error),
                }
            });
            let fact = match outcome.await {
                Ok(Ok(true)) => Fact::Event(Event::ChunkStored {
                    from: Some(from),
                    blob,
                    index,
                    len: attestation.len,
                }),
                Ok(Ok(false)) => {
                    tracing::warn!(
                        "chunk {index} of {blob} from node {:?} is not what its signer vouches for",
                        parts.directory.id(from)
                    );
                    Fact::Event(Event::ChunkRejected {
                        from,
                        blob,
                        index,
                        corrupt: true,
                    })
                }
                Ok(Err(error)) => Fact::StoreFailed { blob, error },
                // The runtime is going down.
                Err(_) => return,
            };
            let _ = parts.facts.send(fact).await;
        });
    }

    /// Reads a chunk from the store and sends it.
    pub(super) fn send_chunk(&self, to: Peer, blob: Digest, index: u32) {
        let parts = Arc::clone(&self.parts);
        tokio::spawn(async move {
            let event = match send(&parts, to, blob, index).await {
                Ok(()) => Event::ChunkSent { to, blob, index },
                Err(reason) => {
                    let id = parts.directory.id(to);
                    tracing::debug!(
                        "chunk {index} of {blob} was not sent to node {id:?}: {reason}"
                    );
                    Event::ChunkUnsent { to, blob, index }
                }
            };
            let _ = parts.facts.send(Fact::Event(event)).await;
        });
    }

    /// A receiver says that this chunk came wrong: is it wrong here?
    pub(super) fn check_chunk(&self, blob: Digest, index: u32) {
        let parts = Arc::clone(&self.parts);
        spawn_blocking(move || {
            let Some(stored) = parts.store.get(&blob) else {
                return;
            };
            if matches!(stored.check_chunk(index), Ok(false)) {
                let _ = parts
                    .facts
                    .blocking_send(Fact::Event(Event::ChunkLost { blob, index }));
            }
        });
    }
}

/// Whether the attestation is its signer's own, for this chunk. That the bytes are the ones that it
/// vouches for is checked where they are written.
fn is_vouched_for(blob: &Blob, index: u32, attestation: &Attestation) -> bool {
    attestation.len == blob.geometry().len(index)
        && attestation.is_signed_for(&blob.digest(), index)
}

async fn send(parts: &Arc<Parts>, to: Peer, blob: Digest, index: u32) -> Result<(), String> {
    let reader = Arc::clone(parts);
    let read = spawn_blocking(move || -> Result<_, StoreError> {
        let Some(stored) = reader.store.get(&blob) else {
            return Ok(None);
        };
        let (bytes, attestation) = stored.read_chunk(index)?;
        // A verified blob is the node's own word, whoever read it from the origin.
        let attestation = if stored.state() == BlobState::Complete {
            Attestation::sign(&reader.key, &blob, index, attestation.hash, attestation.len)
        } else {
            attestation
        };
        let packed = reader.packer.pack(&bytes).map(Buffer::freeze);
        let header = ChunkHeader {
            blob,
            index,
            size: stored.size(),
            attestation,
            packed: packed.as_ref().map(|packed| packed.len() as u32),
        };
        Ok(Some((header, packed.unwrap_or(bytes))))
    });
    let (header, bytes) = match read.await {
        Ok(Ok(Some(chunk))) => chunk,
        Ok(Ok(None)) => return Err("the blob is gone".to_owned()),
        Ok(Err(error)) => return Err(error.to_string()),
        Err(error) => return Err(error.to_string()),
    };
    let len = header.attestation.len;
    let wire_len = header.wire_len();
    let sending = parts.packer.sending();
    parts
        .network
        .send_chunk(to, header, bytes)
        .await
        .map_err(|error| error.to_string())?;
    sending.sent(u64::from(wire_len));
    parts.metrics.bytes_uploaded.add(u64::from(len));
    parts.metrics.bytes_saved.add(u64::from(len - wire_len));
    Ok(())
}
