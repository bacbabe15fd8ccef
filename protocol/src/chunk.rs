//! Chunks: how a blob is cut, what a chunk is called, and which chunks of a blob are at hand.

use std::{fmt, ops::Range};

use serde::{Deserialize, Serialize};

use crate::{
    limits::{CHUNK_BYTES, CHUNK_BYTES_MIN, CHUNKS_MIN},
    message::BlobKind,
};

/// The BLAKE3 hash that names a chunk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ChunkHash(pub [u8; 32]);

impl ChunkHash {
    /// The name of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

impl fmt::Debug for ChunkHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "blake3:{}", hex::encode(&self.0[..6]))
    }
}

/// How a raw blob of a known size is cut: chunks of one size, the last one shorter.
///
/// The size of the chunks follows from the blob's, so that all nodes cut alike: 256 KiB up to
/// 256 MiB, 512 KiB up to 512 MiB, 1 MiB up to 1 GiB, 2 MiB up to 2 GiB, then 4 MiB; a manifest is
/// one chunk. An empty blob has one chunk of no bytes, so that "every chunk is here" means the same
/// for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// The blob's size in bytes.
    pub size: u64,
    /// The size of every chunk but the last, in bytes.
    pub chunk_bytes: u64,
}

impl Geometry {
    /// The cut of a blob of `size` bytes.
    pub fn new(kind: BlobKind, size: u64) -> Self {
        let chunk_bytes = match kind {
            BlobKind::Manifest => CHUNK_BYTES,
            BlobKind::Blob => (size / CHUNKS_MIN)
                .next_power_of_two()
                .clamp(CHUNK_BYTES_MIN, CHUNK_BYTES),
        };
        Self { size, chunk_bytes }
    }

    /// How many chunks there are; at least one.
    pub fn chunks(&self) -> u32 {
        u32::try_from(self.size.div_ceil(self.chunk_bytes))
            .unwrap_or(u32::MAX)
            .max(1)
    }

    /// The bytes of the blob that chunk `index` covers; empty past the end.
    pub fn range(&self, index: u32) -> Range<u64> {
        let start = (u64::from(index) * self.chunk_bytes).min(self.size);
        start..(start + self.chunk_bytes).min(self.size)
    }

    /// The length of chunk `index` in bytes.
    pub fn len(&self, index: u32) -> u32 {
        let range = self.range(index);
        (range.end - range.start) as u32
    }

    /// The chunk that holds the byte at `offset`.
    pub fn index_of(&self, offset: u64) -> u32 {
        u32::try_from(offset / self.chunk_bytes).unwrap_or(u32::MAX)
    }
}

/// A set of chunk indices of one blob.
///
/// 30 GB in 4 MiB chunks take 0.9 KB, so it travels and is stored as it is.
#[derive(PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Bitfield {
    len: u32,
    words: Vec<u64>,
}

impl Clone for Bitfield {
    fn clone(&self) -> Self {
        Self {
            len: self.len,
            words: self.words.clone(),
        }
    }

    /// Keeps the memory that it has, as the derived one would not.
    fn clone_from(&mut self, other: &Self) {
        self.len = other.len;
        self.words.clone_from(&other.words);
    }
}

impl Bitfield {
    /// The empty set over `len` chunks.
    pub fn new(len: u32) -> Self {
        Self {
            len,
            words: vec![0; len.div_ceil(64) as usize],
        }
    }

    /// The set of all `len` chunks.
    pub fn full(len: u32) -> Self {
        let mut bits = Self {
            len,
            words: vec![u64::MAX; len.div_ceil(64) as usize],
        };
        bits.trim();
        bits
    }

    /// Becomes the empty set over `len` chunks, in the memory that it has.
    pub(crate) fn reset(&mut self, len: u32) {
        self.len = len;
        self.words.clear();
        self.words.resize(len.div_ceil(64) as usize, 0);
    }

    /// How many chunks the blob has (not how many are in the set).
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether the blob has no chunks at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Grows the blob to `len` chunks; the new ones are not in the set. Never shrinks.
    pub fn grow(&mut self, len: u32) {
        if len > self.len {
            self.len = len;
            self.words.resize(len.div_ceil(64) as usize, 0);
        }
    }

    /// Whether `index` is in the set.
    pub fn contains(&self, index: u32) -> bool {
        index < self.len && self.words[(index / 64) as usize] >> (index % 64) & 1 == 1
    }

    /// Adds `index`; `true` if it was not there. An index past the end is ignored.
    pub fn insert(&mut self, index: u32) -> bool {
        if index >= self.len || self.contains(index) {
            return false;
        }
        self.words[(index / 64) as usize] |= 1 << (index % 64);
        true
    }

    /// Removes `index`; `true` if it was there.
    pub fn remove(&mut self, index: u32) -> bool {
        if !self.contains(index) {
            return false;
        }
        self.words[(index / 64) as usize] &= !(1 << (index % 64));
        true
    }

    /// How many chunks are in the set.
    pub fn count(&self) -> u32 {
        self.words.iter().map(|word| word.count_ones()).sum()
    }

    /// Whether every chunk is in the set.
    pub fn is_full(&self) -> bool {
        // From the end, since what is missing is mostly there.
        let trimmed = self.len % 64;
        let mut words = self.words.iter().rev();
        let last = if trimmed == 0 {
            true
        } else {
            words
                .next()
                .is_none_or(|last| *last == u64::MAX >> (64 - trimmed))
        };
        last && words.all(|word| *word == u64::MAX)
    }

    /// Adds every chunk of `other` (indices past our end are ignored).
    pub fn union_with(&mut self, other: &Self) {
        for (word, other) in self.words.iter_mut().zip(&other.words) {
            *word |= other;
        }
        self.trim();
    }

    /// Removes every chunk that `other` does not have.
    pub fn intersect_with(&mut self, other: &Self) {
        let others = other.words.iter().copied().chain(std::iter::repeat(0));
        for (word, other) in self.words.iter_mut().zip(others) {
            *word &= other;
        }
    }

    /// Removes every chunk of `other`.
    pub fn subtract(&mut self, other: &Self) {
        for (word, other) in self.words.iter_mut().zip(&other.words) {
            *word &= !other;
        }
    }

    /// Whether `other` has every chunk of this set.
    pub fn is_subset(&self, other: &Self) -> bool {
        let others = other.words.iter().copied().chain(std::iter::repeat(0));
        self.words.iter().zip(others).all(|(a, b)| a & !b == 0)
    }

    /// Whether some chunk is in both sets.
    pub fn intersects(&self, other: &Self) -> bool {
        let mut words = self.words.iter().zip(&other.words);
        // What is empty here need not be looked up there.
        words.any(|(a, b)| *a != 0 && a & b != 0)
    }

    /// The first index at or after `from` that is in the set.
    pub fn next_set(&self, from: u32) -> Option<u32> {
        self.scan(from, |word| word)
    }

    /// The first index at or after `from` that is not in the set.
    pub fn next_clear(&self, from: u32) -> Option<u32> {
        self.scan(from, |word| !word)
    }

    fn scan(&self, from: u32, view: impl Fn(u64) -> u64) -> Option<u32> {
        if from >= self.len {
            return None;
        }
        let mut at = (from / 64) as usize;
        let mut word = view(self.words[at]) & (u64::MAX << (from % 64));
        loop {
            if word != 0 {
                let index = at as u32 * 64 + word.trailing_zeros();
                return (index < self.len).then_some(index);
            }
            at += 1;
            word = view(*self.words.get(at)?);
        }
    }

    /// The indices in the set, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        let mut from = 0;
        std::iter::from_fn(move || {
            let index = self.next_set(from)?;
            from = index + 1;
            Some(index)
        })
    }

    /// Whether the words fit the length: what a peer sent is checked with this.
    pub fn is_well_formed(&self) -> bool {
        let mut trimmed = self.clone();
        trimmed.trim();
        self.words.len() == self.len.div_ceil(64) as usize && trimmed.words == self.words
    }

    fn trim(&mut self) {
        if !self.len.is_multiple_of(64)
            && let Some(last) = self.words.last_mut()
        {
            *last &= u64::MAX >> (64 - self.len % 64);
        }
    }
}

impl fmt::Debug for Bitfield {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.count(), self.len)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn chunks_at_the_borders() {
        let small = CHUNK_BYTES_MIN;
        for (size, chunks, last) in [
            (0, 1, 0),
            (1, 1, 1),
            (small, 1, small),
            (small + 1, 2, 1),
            (3 * small - 1, 3, small - 1),
            (1024 * small, 1024, small),
            (1024 * small + 1024, 513, 1024),
            (1000 * CHUNK_BYTES + 1, 1001, 1),
        ] {
            let geometry = Geometry::new(BlobKind::Blob, size);
            assert_eq!(geometry.chunks(), chunks, "{size}");
            assert_eq!(u64::from(geometry.len(chunks - 1)), last, "{size}");
        }
        assert_eq!(Geometry::new(BlobKind::Manifest, CHUNK_BYTES).chunks(), 1);
    }

    proptest! {
        #[test]
        fn a_bitfield_is_a_set(len in 1u32..300, ops in prop::collection::vec((any::<bool>(), 0u32..320), 0..200)) {
            let mut bits = Bitfield::new(len);
            let mut model = BTreeSet::new();
            for (add, index) in ops {
                if add && index < len {
                    prop_assert_eq!(bits.insert(index), model.insert(index));
                } else if add {
                    prop_assert!(!bits.insert(index));
                } else {
                    prop_assert_eq!(bits.remove(index), model.remove(&index));
                }
            }
            prop_assert!(bits.is_well_formed());
            prop_assert_eq!(bits.count() as usize, model.len());
            prop_assert_eq!(bits.iter().collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
            let clear = (0..len).find(|index| !model.contains(index));
            prop_assert_eq!(bits.next_clear(0), clear);
            prop_assert_eq!(bits.is_full(), clear.is_none());
            let mut less = bits.clone();
            prop_assert!(less.is_subset(&bits) && bits.is_subset(&less));
            if let Some(first) = bits.next_set(0) {
                less.remove(first);
                prop_assert!(less.is_subset(&bits) && !bits.is_subset(&less));
            }
        }
    }
}
