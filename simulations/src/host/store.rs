//! What a host has of a blob: which chunks, which of them are wrong, and how far the hash of the
//! whole has come.

use std::collections::BTreeSet;

use shoal_protocol::{
    chunk::{Bitfield, Geometry},
    message::BlobKind,
};

use crate::net::NodeIndex;

/// What a host has of a blob.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) kind: BlobKind,
    pub(crate) size: Option<u64>,
    pub(crate) have: Bitfield,
    /// Who signed each chunk; empty in a world without liars, where nobody asks.
    signers: Vec<u32>,
    /// Chunks whose bytes are wrong although their attestation fits.
    pub(crate) wrong: BTreeSet<u32>,
    /// Signed lies that an audit made this host drop, to be judged when the blob is right.
    pub(crate) evidence: Vec<(u32, NodeIndex)>,
    pub(crate) verified: bool,
    /// Somebody on this host wants it, and has not been told that it cannot be had.
    pub(crate) wanted: bool,
    /// Chunks from the start that went into the SHA-256.
    hashed: u32,
    hash_free: u64,
    /// Whether the end of the hash was told.
    told: bool,
    reader_at: Option<u32>,
}

impl Stored {
    pub(crate) fn new(kind: BlobKind, size: Option<u64>) -> Self {
        let chunks = size.map_or(1, |size| Geometry::new(kind, size).chunks());
        Self {
            kind,
            size,
            have: Bitfield::new(chunks),
            signers: Vec::new(),
            wrong: BTreeSet::new(),
            evidence: Vec::new(),
            verified: false,
            wanted: true,
            hashed: 0,
            hash_free: 0,
            told: false,
            reader_at: None,
        }
    }

    pub(crate) fn complete(kind: BlobKind, size: u64) -> Self {
        let chunks = Geometry::new(kind, size).chunks();
        Self {
            have: Bitfield::full(chunks),
            verified: true,
            ..Self::new(kind, Some(size))
        }
    }

    pub(crate) fn sized(&mut self, size: u64) {
        if self.size.is_none() {
            self.size = Some(size);
            let chunks = Geometry::new(self.kind, size).chunks();
            self.have.grow(chunks);
        }
    }

    /// A chunk is written; `signer` where that is kept.
    pub(crate) fn insert(&mut self, index: u32, signer: Option<NodeIndex>, wrong: bool) {
        if !self.have.insert(index) {
            return;
        }
        if let Some(signer) = signer {
            self.signers.resize(self.have.len() as usize, u32::MAX);
            self.signers[index as usize] = signer as u32;
        }
        if wrong {
            self.wrong.insert(index);
        }
    }

    /// Who signed a chunk, where that is kept.
    pub(crate) fn signer(&self, index: u32) -> Option<NodeIndex> {
        let signer = *self.signers.get(index as usize)?;
        (signer != u32::MAX).then_some(signer as NodeIndex)
    }

    /// All that signed a chunk.
    pub(crate) fn signers(&self) -> BTreeSet<NodeIndex> {
        self.have
            .iter()
            .filter_map(|index| self.signer(index))
            .collect()
    }

    /// Drops some chunks; what was wrong of them is evidence.
    pub(crate) fn drop_chunks(&mut self, unwanted: impl Fn(&Self, u32) -> bool) {
        let dropped: Vec<u32> = self
            .have
            .iter()
            .filter(|index| unwanted(self, *index))
            .collect();
        for index in dropped {
            self.have.remove(index);
            if self.wrong.remove(&index)
                && let Some(signer) = self.signer(index)
            {
                self.evidence.push((index, signer));
            }
        }
        self.hashed = 0;
        self.told = false;
    }

    /// Hashes what is contiguous at so many bytes per nanosecond; says when the whole will have
    /// been hashed, once.
    pub(crate) fn hash(&mut self, now: u64, bytes_per_nano: f64) -> Option<u64> {
        let geometry = Geometry::new(self.kind, self.size?);
        let chunks = self.have.len();
        while self.hashed < chunks && self.have.contains(self.hashed) {
            let len = f64::from(geometry.len(self.hashed));
            self.hash_free = self.hash_free.max(now) + (len / bytes_per_nano) as u64;
            self.hashed += 1;
        }
        let whole = self.hashed == chunks && !self.told && !self.verified;
        self.told |= whole;
        whole.then_some(self.hash_free)
    }

    /// The chunk that a client waits for, when it is another one than before.
    pub(crate) fn reader_moved(&mut self) -> Option<u32> {
        let head = self.have.next_clear(0)?;
        (self.reader_at.replace(head) != Some(head)).then_some(head)
    }

    /// The process has started again: everything is hashed anew, nobody reads yet.
    pub(crate) fn reopened(&mut self) {
        self.hashed = 0;
        self.hash_free = 0;
        self.told = false;
        self.reader_at = None;
    }

    /// All that is stored is gone.
    pub(crate) fn discard(&mut self) {
        let size = self.size;
        let evidence = std::mem::take(&mut self.evidence);
        let wanted = self.wanted;
        *self = Self::new(self.kind, size);
        self.evidence = evidence;
        self.wanted = wanted;
    }
}
