//! A generated image that looks like those of GPU workloads: a few layers of very unequal size,
//! half of the bytes incompressible.
//!
//! It is a valid image: each layer is a tar of one file. No byte of a layer is kept: any part is
//! computed from its offset, so that an image of 16 GiB takes no memory.

use std::{sync::Arc, thread};

use bytes::Bytes;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use shoal_node::config::ByteSize;
use shoal_protocol::digest::Digest;

/// Each layer's share of the image in percent. Heavy-tailed, as images with CUDA and model
/// weights are: one layer holds about half.
const SHARES: [u64; 6] = [45, 25, 14, 9, 5, 2];

/// Random and repetitive blocks take turns at this length.
const BLOCK_BYTES: u64 = 64 << 10;

const TAR_HEADER_BYTES: u64 = 512;
/// Two empty records end a tar.
const TAR_END_BYTES: u64 = 1024;

/// Below this the smallest layer would have no room for its tar.
pub(crate) const IMAGE_BYTES_MIN: ByteSize = ByteSize(1 << 20);
/// Above this the largest file would not fit the size field of a plain tar header, 8 GiB.
pub(crate) const IMAGE_BYTES_MAX: ByteSize = ByteSize(16 << 30);

/// A generated image.
#[derive(Debug)]
pub(crate) struct Image {
    /// The manifest as served.
    pub(crate) manifest: Bytes,
    pub(crate) manifest_digest: Digest,
    blobs: Vec<(Digest, Blob)>,
}

/// The media type of [`Image::manifest`].
pub(crate) const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

/// What a digest of the image stands for.
#[derive(Clone, Debug)]
pub(crate) enum Blob {
    /// The config.
    Bytes(Bytes),
    /// A layer, computed as it is read.
    Layer(Arc<Layer>),
}

/// A tar of one generated file.
#[derive(Debug)]
pub(crate) struct Layer {
    seed: u64,
    header: [u8; TAR_HEADER_BYTES as usize],
    /// A multiple of 512, so that the tar needs no padding.
    file_bytes: u64,
}

impl Image {
    /// Generates the image of about `size` bytes that belongs to a seed. Hashes all of it, on all
    /// cores: about a second per GiB.
    pub(crate) fn generate(size: ByteSize, seed: u64) -> Self {
        let size = size.0.clamp(IMAGE_BYTES_MIN.0, IMAGE_BYTES_MAX.0);
        let layers: Vec<Layer> = (0u64..)
            .zip(SHARES)
            .map(|(number, share)| Layer::new(mix(seed ^ number), number, size / 100 * share))
            .collect();
        let digests: Vec<Digest> = thread::scope(|scope| {
            let hashing: Vec<_> = layers
                .iter()
                .map(|layer| scope.spawn(|| layer.digest()))
                .collect();
            hashing
                .into_iter()
                .map(|thread| thread.join().expect("hashing does not panic"))
                .collect()
        });
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": {},
            "rootfs": { "type": "layers", "diff_ids": digests.iter().map(Digest::to_string).collect::<Vec<_>>() },
        });
        let config = Bytes::from(config.to_string());
        let config_digest = digest_of(&config);
        let descriptors: Vec<_> = digests
            .iter()
            .zip(&layers)
            .map(|(digest, layer)| {
                json!({
                    "mediaType": "application/vnd.oci.image.layer.v1.tar",
                    "digest": digest.to_string(),
                    "size": layer.size(),
                })
            })
            .collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": config_digest.to_string(),
                "size": config.len(),
            },
            "layers": descriptors,
        });
        let manifest = Bytes::from(manifest.to_string());
        let layers = layers.into_iter().map(|layer| Blob::Layer(Arc::new(layer)));
        let mut blobs = vec![(config_digest, Blob::Bytes(config))];
        blobs.extend(digests.into_iter().zip(layers));
        Self {
            manifest_digest: digest_of(&manifest),
            manifest,
            blobs,
        }
    }

    /// What one client downloads: all blobs and the manifest.
    pub(crate) fn size(&self) -> u64 {
        let blobs: u64 = self.blobs.iter().map(|(_, blob)| blob.size()).sum();
        blobs + self.manifest.len() as u64
    }

    /// How many layers there are.
    pub(crate) fn layers(&self) -> usize {
        self.blobs.len() - 1
    }

    pub(crate) fn blob(&self, digest: &Digest) -> Option<&Blob> {
        let (_, blob) = self.blobs.iter().find(|(known, _)| known == digest)?;
        Some(blob)
    }
}

impl Blob {
    pub(crate) fn size(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Layer(layer) => layer.size(),
        }
    }

    /// `length` bytes from `offset`; they must lie within the blob.
    pub(crate) fn read(&self, offset: u64, length: usize) -> Bytes {
        match self {
            Self::Bytes(bytes) => bytes.slice(offset as usize..offset as usize + length),
            Self::Layer(layer) => {
                let mut buffer = vec![0; length];
                layer.fill(offset, &mut buffer);
                buffer.into()
            }
        }
    }
}

impl Layer {
    /// A layer of `size` bytes, or up to 511 fewer.
    fn new(seed: u64, number: u64, size: u64) -> Self {
        let file_bytes = (size - TAR_HEADER_BYTES - TAR_END_BYTES) / 512 * 512;
        Self {
            seed,
            header: tar_header(&format!("model/weights-{number}.bin"), file_bytes),
            file_bytes,
        }
    }

    fn size(&self) -> u64 {
        TAR_HEADER_BYTES + self.file_bytes + TAR_END_BYTES
    }

    fn digest(&self) -> Digest {
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 256 << 10];
        let mut offset = 0;
        while offset < self.size() {
            let length = buffer.len().min((self.size() - offset) as usize);
            self.fill(offset, &mut buffer[..length]);
            hasher.update(&buffer[..length]);
            offset += length as u64;
        }
        Digest::sha256(hasher.finalize().into())
    }

    /// Writes the layer's bytes from `offset` on.
    fn fill(&self, mut offset: u64, mut out: &mut [u8]) {
        let file_end = TAR_HEADER_BYTES + self.file_bytes;
        while !out.is_empty() {
            let here = |end: u64| out.len().min((end - offset) as usize);
            let length = if offset < TAR_HEADER_BYTES {
                let length = here(TAR_HEADER_BYTES);
                let start = offset as usize;
                out[..length].copy_from_slice(&self.header[start..start + length]);
                length
            } else if offset < file_end {
                let length = here(file_end);
                fill_file(self.seed, offset - TAR_HEADER_BYTES, &mut out[..length]);
                length
            } else {
                out.fill(0);
                out.len()
            };
            offset += length as u64;
            out = &mut out[length..];
        }
    }
}

/// Writes a file's bytes from `offset` on: the stream of splitmix64 in even blocks, one line of
/// 64 bytes again and again in odd ones.
fn fill_file(seed: u64, mut offset: u64, mut out: &mut [u8]) {
    while !out.is_empty() {
        let block = offset / BLOCK_BYTES;
        let in_block = out.len().min((BLOCK_BYTES - offset % BLOCK_BYTES) as usize);
        let word_at = |offset: u64| {
            let index = if block.is_multiple_of(2) {
                offset / 8
            } else {
                block * BLOCK_BYTES / 8 + offset / 8 % 8
            };
            mix(seed.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15))).to_le_bytes()
        };
        let aligned = if offset.is_multiple_of(8) {
            in_block / 8 * 8
        } else {
            0
        };
        let length = if aligned > 0 {
            for (word, at) in out[..aligned]
                .chunks_exact_mut(8)
                .zip((offset..).step_by(8))
            {
                word.copy_from_slice(&word_at(at));
            }
            aligned
        } else {
            let start = (offset % 8) as usize;
            let length = in_block.min(8 - start);
            out[..length].copy_from_slice(&word_at(offset)[start..start + length]);
            length
        };
        offset += length as u64;
        out = &mut out[length..];
    }
}

/// The finalizer of splitmix64 (Steele, Lea and Flood, 2014). Any word of its stream can be
/// computed alone.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A POSIX ustar header of a regular file.
fn tar_header(name: &str, size: u64) -> [u8; TAR_HEADER_BYTES as usize] {
    let mut header = [0; TAR_HEADER_BYTES as usize];
    let mut put =
        |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000644\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{size:011o}\0"));
    put(136, "00000000000\0");
    // The checksum is taken with its own field blank.
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

fn digest_of(bytes: &[u8]) -> Digest {
    Digest::sha256(Sha256::digest(bytes).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_seed_always_gives_the_same_image() {
        let image = Image::generate(ByteSize(2 * MIB), 7);
        let again = Image::generate(ByteSize(2 * MIB), 7);
        let other = Image::generate(ByteSize(2 * MIB), 8);
        assert_eq!(image.manifest_digest, again.manifest_digest);
        assert_ne!(image.manifest_digest, other.manifest_digest);
        assert!(image.size().abs_diff(2 * MIB) < 8 << 10, "{}", image.size());
    }

    #[test]
    fn any_range_of_a_layer_is_a_piece_of_the_whole() {
        let layer = Layer::new(3, 0, MIB);
        let mut whole = vec![0; layer.size() as usize];
        layer.fill(0, &mut whole);
        for (start, length) in [
            (0, 1),
            (3, 700),
            (511, 2),
            (512 + 65_530, 13),
            (512 + 65_536 + 1, 64),
            (layer.size() - 1025, 1025),
        ] {
            let mut part = vec![0xaa; length];
            layer.fill(start, &mut part);
            let start = start as usize;
            assert_eq!(part, whole[start..start + length], "{start}+{length}");
        }
    }

    #[test]
    fn half_of_the_bytes_are_incompressible() {
        let layer = Layer::new(3, 0, 8 * MIB);
        let mut whole = vec![0; layer.size() as usize];
        layer.fill(0, &mut whole);
        let packed = zstd::bulk::compress(&whole, 1).unwrap().len() as f64 / whole.len() as f64;
        assert!((0.48..0.53).contains(&packed), "{packed}");
    }

    #[test]
    fn a_layer_unpacks_with_tar() {
        let layer = Layer::new(3, 5, MIB);
        let mut whole = vec![0; layer.size() as usize];
        layer.fill(0, &mut whole);
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("layer.tar"), &whole).unwrap();
        let tar = std::process::Command::new("tar")
            .args(["-xf", "layer.tar"])
            .current_dir(dir.path())
            .output()
            .unwrap();
        assert!(tar.status.success() && tar.stderr.is_empty(), "{tar:?}");
        let file = std::fs::read(dir.path().join("model/weights-5.bin")).unwrap();
        assert_eq!(file, whole[512..512 + layer.file_bytes as usize]);
    }

    #[test]
    fn the_digests_are_those_of_the_bytes() {
        let image = Image::generate(ByteSize(MIB), 1);
        assert_eq!(image.layers(), SHARES.len());
        for (digest, blob) in &image.blobs {
            let bytes = blob.read(0, blob.size() as usize);
            assert_eq!(digest_of(&bytes), *digest);
        }
    }
}
