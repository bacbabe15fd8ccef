//! What there is to pull.

use rand::{RngExt as _, rngs::StdRng};
use shoal_protocol::{chunk::Geometry, digest::Digest, message::BlobKind};

use crate::host::BlobIndex;

/// A blob of an image.
#[derive(Debug)]
pub(crate) struct Blob {
    pub(crate) digest: Digest,
    pub(crate) kind: BlobKind,
    pub(crate) size: u64,
    /// Which image it belongs to.
    pub(crate) image: usize,
}

impl Blob {
    pub(crate) fn geometry(&self) -> Geometry {
        Geometry::new(self.kind, self.size)
    }
}

/// A manifest and its layers.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) manifest: BlobIndex,
    pub(crate) layers: Vec<BlobIndex>,
}

/// All blobs, by number and by digest.
#[derive(Debug, Default)]
pub(crate) struct Content {
    pub(crate) blobs: Vec<Blob>,
    pub(crate) images: Vec<Image>,
    /// By the first bytes of their digests, sorted.
    by_prefix: Vec<(u64, BlobIndex)>,
}

const MANIFEST_BYTES: u64 = 2500;

impl Content {
    pub(crate) fn new(layers: &[Vec<u64>], rng: &mut StdRng) -> Self {
        let mut content = Self::default();
        for (image, sizes) in layers.iter().enumerate() {
            let manifest = content.add(image, BlobKind::Manifest, MANIFEST_BYTES, rng);
            let layers = sizes
                .iter()
                .map(|size| content.add(image, BlobKind::Blob, *size, rng))
                .collect();
            content.images.push(Image { manifest, layers });
        }
        content.by_prefix.sort_unstable();
        content
    }

    fn add(&mut self, image: usize, kind: BlobKind, size: u64, rng: &mut StdRng) -> BlobIndex {
        let digest = Digest::sha256(rng.random());
        let index = self.blobs.len() as BlobIndex;
        self.blobs.push(Blob {
            digest,
            kind,
            size,
            image,
        });
        self.by_prefix.push((digest.prefix(), index));
        index
    }

    /// The blob of this digest; every digest that the machines know is of this world.
    pub(crate) fn index(&self, digest: &Digest) -> BlobIndex {
        let at = self
            .by_prefix
            .partition_point(|(prefix, _)| *prefix < digest.prefix());
        self.by_prefix[at].1
    }

    pub(crate) fn blob(&self, index: BlobIndex) -> &Blob {
        &self.blobs[usize::from(index)]
    }

    /// How many chunks there are in all.
    pub(crate) fn chunks(&self) -> u64 {
        let chunks = |blob: &Blob| u64::from(blob.geometry().chunks());
        self.blobs.iter().map(chunks).sum()
    }

    /// The length of a chunk in bytes.
    pub(crate) fn chunk_len(&self, blob: BlobIndex, index: u32) -> u32 {
        self.blob(blob).geometry().len(index)
    }
}
