//! `shoal import`: images from an OCI image layout into the swarm.

use std::{collections::BTreeSet, fmt, path::PathBuf, str::FromStr};

use anyhow::{Context as _, bail};
use futures::TryStreamExt as _;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use shoal_node::{admin::TagImported, stats::NodeStats};
use shoal_protocol::{
    digest::Digest,
    reference::{Reference, Selector},
};
use tokio::io::AsyncReadExt as _;
use tokio_util::io::ReaderStream;

use super::admin::{AdminClient, OwnerArgs, Upload, nothing};
use crate::{
    layout::{Descriptor, Document, IMAGE_NAME, REF_NAME, read::Reader},
    output::{self, bytes},
    progress::Progress,
};

/// Bytes read from the file at once.
const READ_BYTES: usize = 256 << 10;

/// An index may name an index; no image seen goes deeper.
const INDEX_DEPTH_MAX: usize = 3;

/// Put images from a tar archive or a directory into the swarm
///
/// Takes OCI image layouts, as `shoal export`, skopeo, podman, BuildKit and docker (25 or newer) write
/// them. Every node of the swarm can pull the images by their tags from then on, while no origin can be
/// asked about them. Where one can, its word counts.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ImportArgs {
    /// An OCI image layout: a directory, or a tar archive of one
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// What to call the image, where the file does not say; without a tag, those in the file are taken
    #[arg(long, value_name = "UPSTREAM/REPOSITORY[:TAG]")]
    name: Option<Name>,
    #[command(flatten)]
    daemon: OwnerArgs,
    /// Print nothing but errors
    #[arg(long, short)]
    quiet: bool,
}

const EXAMPLES: &str = "\
Examples:
  shoal import redis.tar
  shoal import app.tar --name registry.test/team/app:1.2
  skopeo copy docker://redis:7 oci-archive:redis.tar:docker.io/library/redis:7 && shoal import redis.tar";

/// A name, and whether a tag is said.
#[derive(Clone, Debug)]
struct Name {
    reference: Reference,
    tagged: bool,
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let reference: Reference = text
            .parse()
            .map_err(|error: shoal_protocol::reference::ReferenceError| error.to_string())?;
        if matches!(reference.selector, Selector::Digest(_)) {
            return Err("an image is imported under a tag; write UPSTREAM/REPOSITORY:TAG".into());
        }
        let last = text.rsplit('/').next().unwrap_or_default();
        Ok(Self {
            reference,
            tagged: last.contains(':'),
        })
    }
}

/// Runs the command.
///
/// # Errors
/// Where no daemon answers, the file is not what it should be, or the node cannot take it.
pub(crate) async fn run(args: ImportArgs) -> anyhow::Result<()> {
    let shown = args.path.display();
    let client = AdminClient::of_owner(&args.daemon)?;
    let layout = Reader::open(&args.path).with_context(|| format!("cannot import {shown}"))?;
    let images =
        images(&layout, args.name.as_ref()).with_context(|| format!("cannot import {shown}"))?;
    import(&client, &layout, &images, &args)
        .await
        .with_context(|| format!("cannot import {shown}"))
}

async fn import(
    client: &AdminClient,
    layout: &Reader,
    images: &[Image],
    args: &ImportArgs,
) -> anyhow::Result<()> {
    let mut seen = BTreeSet::new();
    let parts = images.iter().flat_map(|image| &image.parts);
    let parts: Vec<&Part> = parts.filter(|part| seen.insert(part.digest)).collect();
    let total = parts.iter().map(|part| part.size).sum();
    let node: NodeStats = client.get("/v1/node").await?;
    if let Some(quota) = node.store.quota_bytes.filter(|quota| *quota < total) {
        bail!(
            "it has {}, and the node's quota is {}; raise --quota of `shoal node`",
            bytes(total),
            bytes(quota)
        );
    }
    let what = args.path.display().to_string();
    let mut progress = Progress::begin(&what, parts.len(), total, args.quiet);
    for part in parts {
        progress.blob(&part.digest.to_string(), part.size);
        let query = [
            ("digest", part.digest.to_string()),
            ("size", part.size.to_string()),
            ("kind", part.kind.to_string()),
        ];
        let upload = upload(layout, part, progress.counter())?;
        client.put("/v1/import/blob", &query, upload).await?;
    }
    drop(progress);
    for image in images {
        let query = [
            ("ref", image.name.to_string()),
            ("digest", image.digest.to_string()),
        ];
        let answer = client.put("/v1/import/tag", &query, nothing()).await?;
        let answer: TagImported =
            serde_json::from_slice(&answer).context("cannot read what the daemon says")?;
        if args.quiet {
            continue;
        }
        output::print(&format!(
            "{} {}: here, and told to {} other nodes",
            image.name, image.digest, answer.told
        ))?;
        for absent in &image.absent {
            output::print(&format!("  without {absent}, which the file does not have"))?;
        }
    }
    Ok(())
}

fn upload(
    layout: &Reader,
    part: &Part,
    advance: impl Fn(u64) + Send + 'static,
) -> anyhow::Result<Upload> {
    let file = tokio::fs::File::from_std(layout.blob(&part.digest)?);
    let pieces = ReaderStream::with_capacity(file.take(part.size), READ_BYTES)
        .inspect_ok(move |piece| advance(piece.len() as u64));
    Ok(StreamBody::new(pieces.map_ok(Frame::data)).boxed_unsync())
}

/// An image of the layout, by the name that it is to have.
struct Image {
    name: Reference,
    digest: Digest,
    /// In the order in which they are sent: a manifest after what it names.
    parts: Vec<Part>,
    /// Platforms of the index that are not in the layout.
    absent: Vec<String>,
}

/// A blob or manifest.
struct Part {
    digest: Digest,
    size: u64,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Manifest,
    Blob,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Manifest => "manifest",
            Self::Blob => "blob",
        })
    }
}

/// What the layout has, and that all of it is there.
fn images(layout: &Reader, name: Option<&Name>) -> anyhow::Result<Vec<Image>> {
    let entries = &layout.index.manifests;
    if entries.is_empty() {
        bail!("its index.json names no image");
    }
    if let (Some(name), true) = (name, entries.len() > 1)
        && name.tagged
    {
        bail!(
            "it has {} images, which cannot all be {}; leave out the tag, and those in the file are \
             taken",
            entries.len(),
            name.reference
        );
    }
    let mut images = Vec::new();
    for entry in entries {
        let digest = entry.digest()?;
        let mut image = Image {
            name: name_of(entry, name)?,
            digest,
            parts: Vec::new(),
            absent: Vec::new(),
        };
        image.add(layout, entry, INDEX_DEPTH_MAX)?;
        images.push(image);
    }
    Ok(images)
}

impl Image {
    /// Adds a manifest after all that it names.
    fn add(&mut self, layout: &Reader, entry: &Descriptor, depth: usize) -> anyhow::Result<()> {
        let digest = entry.digest()?;
        let Some(manifest) = layout.manifest(&digest)? else {
            bail!("it does not have {digest}, which its index names: it is not whole");
        };
        let document = Document::parse(&digest, &manifest)?;
        for blob in document.blobs() {
            let named = blob.digest()?;
            match layout.size(&named)? {
                Some(size) if size == blob.size => self.push(named, size, Kind::Blob),
                Some(size) => bail!(
                    "{named} has {size} bytes in it, and {} by manifest {digest}: it is not whole, \
                     or was tampered with",
                    blob.size
                ),
                None => {
                    bail!(
                        "it does not have {named}, which manifest {digest} names: it is not whole"
                    )
                }
            }
        }
        let mut found = document.manifests.is_empty();
        for below in &document.manifests {
            if depth == 0 {
                bail!("{digest} is an index of indexes of indexes");
            }
            if layout.size(&below.digest()?)?.is_some() {
                self.add(layout, below, depth - 1)?;
                found = true;
            } else {
                self.absent.push(platform_of(below));
            }
        }
        if !found {
            bail!("it has no image of those that index {digest} names: it is not whole");
        }
        self.push(digest, manifest.len() as u64, Kind::Manifest);
        Ok(())
    }

    fn push(&mut self, digest: Digest, size: u64, kind: Kind) {
        if !self.parts.iter().any(|part| part.digest == digest) {
            self.parts.push(Part { digest, size, kind });
        }
    }
}

fn platform_of(entry: &Descriptor) -> String {
    match &entry.platform {
        Some(named) => format!("{}/{}", named.os, named.architecture),
        None => entry.digest.clone(),
    }
}

/// What an image is to be called: as the operator says, else by its full name as containerd and docker
/// write it, else by a tag that is a full name, as skopeo and podman do.
fn name_of(entry: &Descriptor, name: Option<&Name>) -> anyhow::Result<Reference> {
    let annotation = |key: &str| entry.annotations.get(key).map(String::as_str);
    let tag = annotation(REF_NAME);
    if let Some(Name { reference, tagged }) = name {
        let mut reference = reference.clone();
        let tag = tag.and_then(|tag| tag.rsplit(':').next());
        if let (false, Some(Ok(tag))) = (tagged, tag.map(str::parse)) {
            reference.selector = Selector::Tag(tag);
        }
        return Ok(reference);
    }
    let full = annotation(IMAGE_NAME)
        .or_else(|| tag.filter(|tag| tag.contains('/')))
        .with_context(|| {
            format!(
                "it does not say which image {} is{}; name it with --name UPSTREAM/REPOSITORY:TAG",
                entry.digest,
                tag.map(|tag| format!(", but for the tag {tag}"))
                    .unwrap_or_default()
            )
        })?;
    let reference: Reference = full
        .parse()
        .with_context(|| format!("it calls an image `{full}`; name it with --name"))?;
    match reference.selector {
        Selector::Tag(_) => Ok(reference),
        Selector::Digest(_) => {
            bail!("it has {full} under no tag; name it with --name UPSTREAM/REPOSITORY:TAG")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn entry(annotations: &[(&str, &str)]) -> Descriptor {
        let annotations: BTreeMap<String, String> = annotations
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        let text = format!(r#"{{"digest":"sha256:{}","size":1}}"#, "0a".repeat(32));
        let entry: Descriptor = serde_json::from_str(&text).unwrap();
        Descriptor {
            annotations,
            ..entry
        }
    }

    #[test]
    fn an_image_is_called_what_the_operator_says_else_what_the_file_says() {
        let both = [(IMAGE_NAME, "docker.io/library/redis:7"), (REF_NAME, "7")];
        for (annotations, said, name) in [
            (&both[..], None, "docker.io/library/redis:7"),
            (&both, Some("r.test/a:1"), "r.test/a:1"),
            (&both, Some("r.test/a"), "r.test/a:7"),
            (&[(REF_NAME, "quay.io/b/c:2")], None, "quay.io/b/c:2"),
            (&[(REF_NAME, "2")], Some("r.test/a"), "r.test/a:2"),
            (
                &[(REF_NAME, "quay.io/b/c:2")],
                Some("r.test/a"),
                "r.test/a:2",
            ),
            (&[], Some("r.test/a"), "r.test/a:latest"),
        ] {
            let said: Option<Name> = said.map(|said| said.parse().unwrap());
            let found = name_of(&entry(annotations), said.as_ref()).unwrap();
            assert_eq!(found.to_string(), name, "{annotations:?}");
        }
    }

    #[test]
    fn an_image_without_a_name_is_not_guessed_at() {
        let digest = format!("r.test/a@sha256:{}", "0a".repeat(32));
        for annotations in [
            &[][..],
            &[(REF_NAME, "latest")],
            &[(IMAGE_NAME, digest.as_str())],
        ] {
            let error = name_of(&entry(annotations), None).unwrap_err();
            assert!(format!("{error:#}").contains("--name"), "{error:#}");
        }
        assert!(digest.parse::<Name>().is_err());
    }
}
