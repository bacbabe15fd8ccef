//! Images made by code: the same bytes on every machine, any byte of them computed from its offset,
//! so that a 4 GB image needs neither memory nor disk. They do not shrink, as layers that are
//! compressed do not; where it is asked for, half of the bytes do.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{MIB, REPOSITORY, TAG};

/// What the image that can be run is made of: Debian's package busybox-static.
const BUSYBOX: &str = "/bin/busybox";

/// The file in a generated layer.
const FILE: &str = "weights.bin";

/// Where bytes are to shrink, random and repetitive ones alternate in pages of this size.
const PAGE: u64 = 64 * 1024;

/// Bytes produced at once.
const BLOCK: usize = MIB as usize;

/// A tar header, and the smallest unit of a tar archive.
const TAR_BLOCK: u64 = 512;

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";

/// The bytes of a blob, as a function of the offset or held in memory.
#[derive(Clone, Debug)]
pub(crate) enum Content {
    /// Generated from a seed; with `tar`, a tar archive of one file.
    Generated {
        /// What sets these bytes apart from those of every other blob.
        seed: u64,
        /// Bytes.
        size: u64,
        /// Whether the bytes are a tar archive; the size is then a multiple of 512.
        tar: bool,
        /// Whether half of the bytes are repetitive.
        compressible: bool,
    },
    /// Small documents.
    Literal(Vec<u8>),
}

impl Content {
    /// Bytes.
    pub(crate) fn size(&self) -> u64 {
        match self {
            Self::Generated { size, .. } => *size,
            Self::Literal(bytes) => bytes.len() as u64,
        }
    }

    /// At most `limit` bytes from `offset` on; fewer at the end.
    pub(crate) fn read(&self, offset: u64, limit: usize) -> Vec<u8> {
        let end = self.size().min(offset + limit as u64);
        match self {
            Self::Literal(bytes) => bytes[offset as usize..end as usize].to_vec(),
            Self::Generated {
                seed,
                size,
                tar,
                compressible,
            } => {
                let mut bytes = generate(*seed, *compressible, offset, end);
                if *tar {
                    dress_as_tar(&mut bytes, offset, *size);
                }
                bytes
            }
        }
    }

    /// The digest, `sha256:…`.
    pub(crate) fn digest(&self) -> String {
        let mut hash = Sha256::new();
        self.each_block(|block| hash.update(block));
        digest_of(hash)
    }

    fn each_block(&self, mut visit: impl FnMut(&[u8])) {
        let mut offset = 0;
        while offset < self.size() {
            let block = self.read(offset, BLOCK);
            visit(&block);
            offset += block.len() as u64;
        }
    }
}

/// The textual digest of a finished hash.
pub(crate) fn digest_of(hash: Sha256) -> String {
    format!("sha256:{}", hex::encode(hash.finalize()))
}

/// Words of a counter-based generator (SplitMix64), so that any offset can be asked for. Where the
/// bytes are to shrink, the word depends on little but the page in every second page.
fn generate(seed: u64, compressible: bool, from: u64, to: u64) -> Vec<u8> {
    let first = from / 8;
    let words = to.div_ceil(8) - first;
    let mut bytes = Vec::with_capacity(words as usize * 8);
    for index in first..first + words {
        let page = index * 8 / PAGE;
        let input = if compressible && page % 2 == 1 {
            page * PAGE + index % 16
        } else {
            index
        };
        bytes.extend_from_slice(&mix(seed, input).to_le_bytes());
    }
    bytes.drain(..(from % 8) as usize);
    bytes.truncate((to - from) as usize);
    bytes
}

fn mix(seed: u64, index: u64) -> u64 {
    let mut z = seed
        .wrapping_mul(0xD6E8_FEB8_6659_FD93)
        .wrapping_add(index.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Overwrites what lies in the archive's header and in its two closing blocks.
fn dress_as_tar(bytes: &mut [u8], offset: u64, size: u64) {
    let header = tar_header(FILE, "0000644", size - 3 * TAR_BLOCK);
    let trailer = size - 2 * TAR_BLOCK;
    if offset >= TAR_BLOCK && offset + (bytes.len() as u64) <= trailer {
        return;
    }
    for (position, byte) in (offset..).zip(bytes) {
        if position < TAR_BLOCK {
            *byte = header[position as usize];
        } else if position >= trailer {
            *byte = 0;
        }
    }
}

/// An archive of one file that may be executed.
fn archive(name: &str, file: &[u8]) -> Vec<u8> {
    let mut archive = tar_header(name, "0000755", file.len() as u64).to_vec();
    archive.extend_from_slice(file);
    archive.resize(archive.len().next_multiple_of(TAR_BLOCK as usize), 0);
    archive.resize(archive.len() + 2 * TAR_BLOCK as usize, 0);
    archive
}

fn tar_header(name: &str, mode: &str, file_bytes: u64) -> [u8; TAR_BLOCK as usize] {
    let mut header = [0; TAR_BLOCK as usize];
    let mut put =
        |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, mode);
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{file_bytes:011o}\0"));
    put(136, "00000000000\0");
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

/// A blob and where its bytes come from.
#[derive(Clone, Debug)]
pub(crate) struct Blob {
    /// `sha256:…`
    pub(crate) digest: String,
    /// The bytes.
    pub(crate) content: Content,
}

impl Blob {
    /// Names `content` by its digest.
    pub(crate) fn new(content: Content) -> Self {
        Self {
            digest: content.digest(),
            content,
        }
    }

    /// A generated blob of exactly `size` bytes, no tar.
    pub(crate) fn generated(seed: u64, size: u64) -> Self {
        Self::new(Content::Generated {
            seed,
            size,
            tar: false,
            compressible: false,
        })
    }

    /// Bytes.
    pub(crate) fn size(&self) -> u64 {
        self.content.size()
    }

    /// The SHA-256 of the file in a generated layer, in hex.
    pub(crate) fn file_sha256(&self) -> String {
        let bytes = self.size() - 3 * TAR_BLOCK;
        hex::encode(Sha256::digest(self.content.read(TAR_BLOCK, bytes as usize)))
    }
}

/// An image: one manifest, its config and its layers.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    /// The manifest, by its digest.
    pub(crate) manifest: Blob,
    /// Config first, then the layers.
    pub(crate) blobs: Vec<Blob>,
}

impl Image {
    /// An image whose layers have these sizes; `seed` sets its bytes apart from other images'.
    pub(crate) fn generate(seed: u64, layer_bytes: &[u64]) -> Self {
        Self::generated(seed, layer_bytes, false)
    }

    /// The same with half of the bytes repetitive, as in layers that nobody compressed.
    pub(crate) fn compressible(seed: u64, layer_bytes: &[u64]) -> Self {
        Self::generated(seed, layer_bytes, true)
    }

    fn generated(seed: u64, layer_bytes: &[u64], compressible: bool) -> Self {
        let layer = |(index, size): (usize, &u64)| {
            let size = (*size).next_multiple_of(TAR_BLOCK).max(4 * TAR_BLOCK);
            Blob::new(Content::Generated {
                seed: seed * 1000 + index as u64,
                size,
                tar: true,
                compressible,
            })
        };
        Self::of(
            &layer_bytes
                .iter()
                .enumerate()
                .map(layer)
                .collect::<Vec<_>>(),
        )
    }

    /// An image of busybox and one generated layer, the last blob. Run, it prints the SHA-256 of the
    /// file in that layer.
    pub(crate) fn runnable(seed: u64, layer_bytes: u64) -> Self {
        let busybox = fs::read(BUSYBOX).unwrap_or_default();
        let is_static = !busybox.windows(10).any(|bytes| bytes == b"/ld-linux-");
        assert!(
            is_static && !busybox.is_empty(),
            "{BUSYBOX} is to be that of Debian's package busybox-static"
        );
        let busybox = Blob::new(Content::Literal(archive("bin/busybox", &busybox)));
        let file = Self::generate(seed, &[layer_bytes]).blobs.remove(1);
        let runs = json!({ "Cmd": ["/bin/busybox", "sha256sum", format!("/{FILE}")] });
        Self::assemble(&[busybox, file], &runs, 0)
    }

    /// An image of these layers.
    pub(crate) fn of(layers: &[Blob]) -> Self {
        Self::padded(layers, 0)
    }

    /// An image whose manifest is padded by an annotation to `manifest_bytes`, if that is more
    /// than it needs.
    pub(crate) fn padded(layers: &[Blob], manifest_bytes: usize) -> Self {
        Self::assemble(layers, &json!({}), manifest_bytes)
    }

    fn assemble(layers: &[Blob], runs: &Value, manifest_bytes: usize) -> Self {
        let digests: Vec<_> = layers.iter().map(|layer| layer.digest.clone()).collect();
        let config = document(&json!({
            "architecture": "amd64", "os": "linux", "config": runs,
            "rootfs": { "type": "layers", "diff_ids": digests },
        }));
        let describe = |media_type: &str, blob: &Blob| json!({ "mediaType": media_type, "digest": blob.digest, "size": blob.size() });
        let manifest = |padding: usize| {
            document(&json!({
                "schemaVersion": 2,
                "mediaType": MANIFEST_TYPE,
                "config": describe(CONFIG_TYPE, &config),
                "layers": layers.iter().map(|layer| describe(LAYER_TYPE, layer)).collect::<Vec<_>>(),
                "annotations": { "test.shoal.padding": "x".repeat(padding) },
            }))
        };
        let bare = manifest(0).size() as usize;
        let manifest = manifest(manifest_bytes.saturating_sub(bare));
        let blobs = std::iter::once(config.clone())
            .chain(layers.iter().cloned())
            .collect();
        Self { manifest, blobs }
    }

    /// Bytes of config and layers: what one copy of the image costs the origin.
    pub(crate) fn bytes(&self) -> u64 {
        self.blobs.iter().map(Blob::size).sum()
    }

    /// The media type of the manifest.
    pub(crate) fn media_type() -> &'static str {
        MANIFEST_TYPE
    }

    /// The image in the storage layout of `docker-registry`'s file system driver, under
    /// [`REPOSITORY`] and [`TAG`]. Written once and kept in the build directory, so that neither
    /// the next test nor the next run writes it again.
    pub(crate) fn registry_storage(&self) -> PathBuf {
        let hex = self.manifest.digest.trim_start_matches("sha256:");
        let root = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join("registries")
            .join(&hex[..16]);
        if root.exists() {
            return root;
        }
        let unfinished = root.with_extension(std::process::id().to_string());
        let base = unfinished.join("docker/registry/v2");
        let repository = base.join("repositories").join(REPOSITORY);
        for blob in self.blobs.iter().chain([&self.manifest]) {
            let hex = blob.digest.trim_start_matches("sha256:");
            let path = base
                .join("blobs/sha256")
                .join(&hex[..2])
                .join(hex)
                .join("data");
            fs::create_dir_all(path.parent().expect("it has one")).expect("storage is writable");
            let mut file = BufWriter::new(File::create(path).expect("storage is writable"));
            blob.content
                .each_block(|block| file.write_all(block).expect("the disk has room"));
            file.flush().expect("the disk has room");
        }
        let link = |directory: PathBuf, blob: &Blob| {
            fs::create_dir_all(&directory).expect("storage is writable");
            fs::write(directory.join("link"), &blob.digest).expect("storage is writable");
        };
        let under = |parent: PathBuf, blob: &Blob| {
            link(parent.join(blob.digest.replacen(':', "/", 1)), blob);
        };
        self.blobs
            .iter()
            .for_each(|blob| under(repository.join("_layers"), blob));
        under(repository.join("_manifests/revisions"), &self.manifest);
        let tag = repository.join("_manifests/tags").join(TAG);
        under(tag.join("index"), &self.manifest);
        link(tag.join("current"), &self.manifest);
        fs::rename(&unfinished, &root).expect("storage is writable");
        root
    }
}

fn document(value: &Value) -> Blob {
    Blob::new(Content::Literal(value.to_string().into_bytes()))
}

#[test]
fn any_part_of_generated_content_equals_the_same_part_of_the_whole() {
    let size = 5 * PAGE + TAR_BLOCK;
    let content = Content::Generated {
        seed: 7,
        size,
        tar: true,
        compressible: true,
    };
    let whole = content.read(0, size as usize);
    assert_eq!(whole.len() as u64, size);
    for (from, length) in [
        (0, 1),
        (3, 700),
        (511, 2),
        (PAGE - 1, 70_000),
        (size - 1025, 5000),
    ] {
        let part = content.read(from, length);
        let end = whole.len().min(from as usize + length);
        assert_eq!(
            part,
            whole[from as usize..end],
            "{length} bytes from {from}"
        );
    }
}

#[test]
fn a_layer_is_a_tar_archive_of_one_file() {
    let content = Content::Generated {
        seed: 1,
        size: 100 * TAR_BLOCK,
        tar: true,
        compressible: true,
    };
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), content.read(0, 1 << 20)).unwrap();
    let list = std::process::Command::new("tar")
        .arg("tvf")
        .arg(file.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&list.stdout);
    assert!(
        text.contains(" 49664 ") && text.contains("weights.bin"),
        "{text}{list:?}"
    );
}

#[test]
fn a_manifest_can_be_padded_to_any_size() {
    let image = Image::padded(&[Blob::generated(1, 10)], 4 * MIB as usize);
    assert_eq!(image.manifest.size(), 4 * MIB);
}
