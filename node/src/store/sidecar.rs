//! The sidecar of a blob: which of its chunks were written, and who vouches for them.
//!
//! Frames of one size, appended and never changed: a header, then a record for each chunk that
//! was stored or dropped; the last word on a chunk counts. A torn tail and a damaged frame are
//! passed over, because a chunk without a record is only a chunk to be fetched again.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufReader, Read},
    os::unix::fs::FileExt,
    path::Path,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use shoal_protocol::{attest::Attestation, digest::Digest, message::BlobKind, wire};

/// Bytes of a frame: an encoded record is at most 140, and 9 are its length and checksum.
const FRAME_BYTES: usize = 160;
const CHECKSUM_BYTES: usize = 8;
const PAYLOAD_BYTES_MAX: usize = FRAME_BYTES - CHECKSUM_BYTES - 1;

/// What a sidecar belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Header {
    /// The blob.
    pub(super) digest: Digest,
    /// Manifest or not.
    pub(super) kind: BlobKind,
    /// Its size in bytes.
    pub(super) size: u64,
}

/// Chunk `index` was stored with this attestation, or dropped.
#[derive(Serialize, Deserialize)]
struct Record {
    index: u32,
    attestation: Option<Attestation>,
}

/// An open sidecar.
///
/// Attestations stay in the file: in memory a chunk costs 4 bytes, not 132.
#[derive(Debug)]
pub(super) struct Sidecar {
    file: File,
    /// Whole frames in the file, the header among them.
    frames: u32,
    /// For each chunk the frame of its record; 0, the header's, for none.
    frame_of: Vec<u32>,
}

impl Sidecar {
    /// Makes a sidecar without records, in place of any that is there.
    pub(super) fn create(path: &Path, header: &Header, chunks: u32) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)?;
        file.write_all_at(&frame(header), 0)?;
        Ok(Self {
            file,
            frames: 1,
            frame_of: vec![0; chunks as usize],
        })
    }

    /// Opens a sidecar and reads its records.
    pub(super) fn open(path: &Path, chunks: u32) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let frames = u32::try_from(file.metadata()?.len() / FRAME_BYTES as u64)
            .map_err(|_| io::Error::other("larger than any sidecar"))?;
        let mut frame_of = vec![0; chunks as usize];
        let mut input = BufReader::with_capacity(256 << 10, &file);
        let mut bytes = [0; FRAME_BYTES];
        for number in 0..frames {
            input.read_exact(&mut bytes)?;
            // The header is not a record, but its frame is not one of this shape either.
            if number == 0 {
                continue;
            }
            if let Some(record) = payload::<Record>(&bytes)
                && let Some(slot) = frame_of.get_mut(record.index as usize)
            {
                *slot = if record.attestation.is_some() {
                    number
                } else {
                    0
                };
            }
        }
        Ok(Self {
            file,
            frames: frames.max(1),
            frame_of,
        })
    }

    /// The header of the sidecar at `path`; `None` if it is damaged or not there.
    pub(super) fn header(path: &Path) -> Option<Header> {
        let mut bytes = [0; FRAME_BYTES];
        File::open(path).ok()?.read_exact(&mut bytes).ok()?;
        payload(&bytes)
    }

    /// Notes that a chunk was stored, or with `None` that it was dropped.
    pub(super) fn append(
        &mut self,
        index: u32,
        attestation: Option<&Attestation>,
    ) -> io::Result<()> {
        let record = Record {
            index,
            attestation: attestation.copied(),
        };
        // A frame torn by a crash or a full disk is overwritten by the next.
        let offset = u64::from(self.frames) * FRAME_BYTES as u64;
        self.file.write_all_at(&frame(&record), offset)?;
        if let Some(slot) = self.frame_of.get_mut(index as usize) {
            *slot = if attestation.is_some() {
                self.frames
            } else {
                0
            };
        }
        self.frames += 1;
        Ok(())
    }

    /// Makes what was appended last.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    /// The attestation of a chunk, if it has one that can be read.
    pub(super) fn get(&self, index: u32) -> Option<Attestation> {
        let number = *self.frame_of.get(index as usize)?;
        if number == 0 {
            return None;
        }
        let mut bytes = [0; FRAME_BYTES];
        self.file
            .read_exact_at(&mut bytes, u64::from(number) * FRAME_BYTES as u64)
            .ok()?;
        let record: Record = payload(&bytes)?;
        record.attestation.filter(|_| record.index == index)
    }

    /// Whether every chunk has a record.
    pub(super) fn is_full(&self) -> bool {
        self.frame_of.iter().all(|frame| *frame != 0)
    }
}

/// A frame: payload (a version byte first), zeros, the payload's length, a checksum over all that.
fn frame<T: Serialize>(value: &T) -> [u8; FRAME_BYTES] {
    let payload = wire::encode(value);
    debug_assert!(
        payload.len() <= PAYLOAD_BYTES_MAX,
        "{} bytes",
        payload.len()
    );
    let mut bytes = [0; FRAME_BYTES];
    bytes[..payload.len()].copy_from_slice(&payload);
    bytes[PAYLOAD_BYTES_MAX] = payload.len() as u8;
    let checksum = checksum(&bytes);
    bytes[FRAME_BYTES - CHECKSUM_BYTES..].copy_from_slice(&checksum);
    bytes
}

fn payload<T: DeserializeOwned>(bytes: &[u8; FRAME_BYTES]) -> Option<T> {
    if bytes[FRAME_BYTES - CHECKSUM_BYTES..] != checksum(bytes) {
        return None;
    }
    let len = usize::from(bytes[PAYLOAD_BYTES_MAX]);
    wire::decode(bytes[..PAYLOAD_BYTES_MAX].get(..len)?).ok()
}

fn checksum(bytes: &[u8; FRAME_BYTES]) -> [u8; CHECKSUM_BYTES] {
    let hash = blake3::hash(&bytes[..FRAME_BYTES - CHECKSUM_BYTES]);
    let mut checksum = [0; CHECKSUM_BYTES];
    checksum.copy_from_slice(&hash.as_bytes()[..CHECKSUM_BYTES]);
    checksum
}

#[cfg(test)]
mod tests {
    use shoal_protocol::{chunk::ChunkHash, directory::NodeId};

    use super::*;
    use crate::store::tests::support::attest;

    #[test]
    fn the_longest_record_and_header_fit_a_frame() {
        let digest = Digest::sha512([0xff; 64]);
        let mut attestation = attest(&digest, u32::MAX, b"");
        attestation.len = u32::MAX;
        attestation.hash = ChunkHash([0xff; 32]);
        attestation.signer = NodeId([0xff; 32]);
        let record = Record {
            index: u32::MAX,
            attestation: Some(attestation),
        };
        assert!(wire::encode(&record).len() <= PAYLOAD_BYTES_MAX);
        let header = Header {
            digest,
            kind: BlobKind::Blob,
            size: u64::MAX,
        };
        assert!(wire::encode(&header).len() <= PAYLOAD_BYTES_MAX);
        assert_eq!(payload::<Header>(&frame(&header)), Some(header));
    }

    #[test]
    fn the_last_word_counts_and_damage_loses_only_its_own_frame() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.chunks");
        let digest = Digest::sha256([1; 32]);
        let header = Header {
            digest,
            kind: BlobKind::Blob,
            size: 5,
        };
        let word = |index: u32| attest(&digest, index, &index.to_be_bytes());
        let mut sidecar = Sidecar::create(&path, &header, 4).unwrap();
        for index in 0..4 {
            sidecar.append(index, Some(&word(index))).unwrap();
        }
        sidecar.append(2, None).unwrap();
        assert_eq!(sidecar.get(2), None);
        drop(sidecar);

        // The record of chunk 1 is damaged, and a torn frame follows the last.
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[2 * FRAME_BYTES + 40] ^= 1;
        bytes.extend_from_slice(&[7; FRAME_BYTES / 2]);
        std::fs::write(&path, bytes).unwrap();

        assert_eq!(Sidecar::header(&path), Some(header));
        let mut sidecar = Sidecar::open(&path, 4).unwrap();
        let read: Vec<_> = (0..4).map(|index| sidecar.get(index)).collect();
        assert_eq!(read, [Some(word(0)), None, None, Some(word(3))]);
        sidecar.append(1, Some(&word(1))).unwrap();
        assert_eq!(Sidecar::open(&path, 4).unwrap().get(1), Some(word(1)));
        assert!(word(1).is_signed_for(&digest, 1));
    }
}
