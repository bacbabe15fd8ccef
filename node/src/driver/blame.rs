//! Audits, evidence and bans.

use std::sync::Arc;

use shoal_protocol::{
    attest::Attestation,
    chunk::ChunkHash,
    digest::Digest,
    directory::{NodeId, Peer},
    event::Event,
    message::Message,
};
use tokio::task::spawn_blocking;

use super::{Driver, Fact, Parts};
use crate::{
    stats::BanStats,
    store::{Blob, BlobState},
};

impl Driver {
    /// This node audits a blob: only what it read itself counts.
    pub(super) fn drop_foreign(&self, blob: Digest) {
        let me = NodeId(self.parts.key.verifying_key().to_bytes());
        self.drop_chunks(blob, move |_, attestation| attestation.signer != me);
    }

    /// An auditor has told the hashes of the blob whose digest did match.
    pub(super) fn drop_differing(&self, blob: Digest, hashes: Vec<ChunkHash>) {
        self.drop_chunks(blob, move |index, attestation| {
            hashes.get(index as usize) != Some(&attestation.hash)
        });
    }

    fn drop_chunks(
        &self,
        blob: Digest,
        unwanted: impl Fn(u32, &Attestation) -> bool + Send + 'static,
    ) {
        let parts = Arc::clone(&self.parts);
        let Some(stored) = self
            .fetches
            .get(&blob)
            .and_then(|fetch| fetch.blob.borrow().clone())
        else {
            // Nothing is stored yet, so nothing has to go.
            let Some(stored) = self.parts.store.get(&blob) else {
                return;
            };
            let fact = Fact::Dropped {
                blob,
                have: stored.have(),
                evidence: Vec::new(),
            };
            tokio::spawn(async move { parts.facts.send(fact).await });
            return;
        };
        spawn_blocking(move || {
            let mut evidence = Vec::new();
            for index in stored.have().iter() {
                let Some(attestation) = stored.attestation(index) else {
                    continue;
                };
                if unwanted(index, &attestation) {
                    if let Err(error) = stored.drop_chunk(index) {
                        tracing::warn!("{error}");
                    }
                    evidence.push((index, attestation));
                }
            }
            let fact = Fact::Dropped {
                blob,
                have: stored.have(),
                evidence,
            };
            let _ = parts.facts.blocking_send(fact);
        });
    }

    /// The blob is verified: whoever vouched for other bytes has lied.
    pub(super) fn judge(&mut self, blob: &Blob, evidence: &[(u32, Attestation)]) {
        for (index, attestation) in evidence {
            if contradicts(blob, *index, attestation) {
                self.event(Event::Lied {
                    signer: attestation.signer,
                    blob: blob.digest(),
                    index: *index,
                    attestation: *attestation,
                });
            }
        }
    }

    pub(super) fn check_proof(&self, blob: Digest, index: u32, attestation: Attestation) {
        let parts = Arc::clone(&self.parts);
        spawn_blocking(move || {
            let Some(stored) = parts.store.get(&blob) else {
                return;
            };
            if attestation.is_signed_for(&blob, index) && contradicts(&stored, index, &attestation)
            {
                let signer = attestation.signer;
                let event = Event::Lied {
                    signer,
                    blob,
                    index,
                    attestation,
                };
                let _ = parts.facts.blocking_send(Fact::Event(event));
            }
        });
    }

    /// Tells a node which bytes of a verified blob are right.
    pub(super) fn send_hashes(&self, to: Peer, blob: Digest) {
        let parts: Arc<Parts> = Arc::clone(&self.parts);
        spawn_blocking(move || {
            let Some(stored) = parts.store.get(&blob) else {
                return;
            };
            let hashes: Option<Vec<ChunkHash>> = (0..stored.geometry().chunks())
                .map(|index| {
                    stored
                        .attestation(index)
                        .map(|attestation| attestation.hash)
                })
                .collect();
            if let Some(hashes) = hashes {
                parts.network.send(to, Message::Audited { blob, hashes });
            }
        });
    }

    pub(super) fn ban(&mut self, peer: Peer, blob: Digest) {
        let id = self.parts.directory.id(peer);
        tracing::error!("node {id:?} is banned: it vouched for wrong bytes of {blob}");
        self.parts.metrics.bans.increment();
        self.bans.push(BanStats {
            id: hex::encode(id.0),
            blob: blob.to_string(),
            reason: "vouched for bytes that contradict the blob's digest".to_owned(),
        });
        self.parts.network.ban(peer);
    }
}

fn contradicts(blob: &Blob, index: u32, attestation: &Attestation) -> bool {
    blob.state() == BlobState::Complete
        && blob
            .attestation(index)
            .is_some_and(|right| right.hash != attestation.hash || right.len != attestation.len)
}
