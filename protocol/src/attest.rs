//! Attestations: who vouches for the bytes of a chunk.
//!
//! An OCI digest covers a whole blob, so a chunk cannot be judged by it before the end. Instead
//! every chunk travels with the signature of the node that read it from the origin (or that has
//! verified the whole blob). A receiver checks the bytes against the signed hash before it stores
//! or forwards them, so damage in transit never spreads, and every wrong hash has a signer. A
//! signed hash that contradicts a blob whose digest has matched is a proof that anyone who holds
//! the blob can check.

use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};

use crate::{chunk::ChunkHash, digest::Digest, directory::NodeId};

/// A node's signed word that chunk `index` of a blob has this hash and length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attestation {
    /// Who vouches.
    pub signer: NodeId,
    /// The BLAKE3 hash of the chunk's bytes.
    pub hash: ChunkHash,
    /// The length of the chunk in bytes.
    pub len: u32,
    /// ed25519 over all of the above, the blob's digest and the index. In halves, because serde
    /// derives arrays up to 32.
    signature: [[u8; 32]; 2],
}

impl Attestation {
    /// Signs for a chunk.
    pub fn sign(key: &SigningKey, blob: &Digest, index: u32, hash: ChunkHash, len: u32) -> Self {
        let signer = NodeId(key.verifying_key().to_bytes());
        let signature = key
            .sign(&statement(&signer, blob, index, &hash, len))
            .to_bytes();
        let mut halves = [[0; 32]; 2];
        halves.as_flattened_mut().copy_from_slice(&signature);
        Self {
            signer,
            hash,
            len,
            signature: halves,
        }
    }

    /// Whether the signature is the signer's own, for this chunk of this blob.
    pub fn is_signed_for(&self, blob: &Digest, index: u32) -> bool {
        let Ok(key) = VerifyingKey::from_bytes(&self.signer.0) else {
            return false;
        };
        let Ok(signature) = Signature::from_slice(self.signature.as_flattened()) else {
            return false;
        };
        let statement = statement(&self.signer, blob, index, &self.hash, self.len);
        key.verify_strict(&statement, &signature).is_ok()
    }

    /// Whether these bytes are the ones that are vouched for.
    pub fn covers(&self, bytes: &[u8]) -> bool {
        bytes.len() == self.len as usize && ChunkHash::of(bytes) == self.hash
    }
}

fn statement(signer: &NodeId, blob: &Digest, index: u32, hash: &ChunkHash, len: u32) -> Vec<u8> {
    let mut out = Vec::with_capacity(192);
    out.extend_from_slice(b"shoal chunk attestation v1\0");
    out.extend_from_slice(&signer.0);
    out.extend_from_slice(blob.algorithm().name().as_bytes());
    out.extend_from_slice(blob.as_bytes());
    out.extend_from_slice(&index.to_be_bytes());
    out.extend_from_slice(&hash.0);
    out.extend_from_slice(&len.to_be_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attestation_holds_for_its_chunk_only() {
        let key = SigningKey::from_bytes(&[7; 32]);
        let blob = Digest::sha256([1; 32]);
        let bytes = b"some bytes";
        let signed = Attestation::sign(&key, &blob, 3, ChunkHash::of(bytes), bytes.len() as u32);
        assert!(signed.is_signed_for(&blob, 3) && signed.covers(bytes));
        assert!(!signed.is_signed_for(&blob, 4));
        assert!(!signed.is_signed_for(&Digest::sha256([2; 32]), 3));
        assert!(!signed.covers(b"some bytez") && !signed.covers(b"some byte"));
        let other = NodeId(SigningKey::from_bytes(&[8; 32]).verifying_key().to_bytes());
        assert!(
            !Attestation {
                signer: other,
                ..signed
            }
            .is_signed_for(&blob, 3)
        );
    }
}
