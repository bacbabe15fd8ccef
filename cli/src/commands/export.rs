//! `shoal export`: images out of the swarm, as an OCI image layout.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use bytes::{Bytes, BytesMut};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::json;
use shoal_node::{admin::Platform, mirror::media_type_of, store::Hasher};
use shoal_protocol::{
    digest::{Algorithm, Digest},
    limits::MANIFEST_BYTES_MAX,
    reference::{Reference, Selector},
};

use super::admin::{AdminClient, OwnerArgs};
use crate::{
    layout::{Descriptor, Document, blob_path, write::Writer},
    output::{self, bytes},
    progress::Progress,
};

/// Blobs that the daemon fetches ahead of the one that is being written.
const AHEAD: usize = 6;

/// An index may name an index; no image seen goes deeper.
const INDEX_DEPTH_MAX: usize = 3;

/// Write images to a tar archive or a directory, as an OCI image layout
///
/// They come through this host's node: from its store, from its peers, else from the origin. skopeo,
/// podman, containerd and docker read the result, and so does `shoal import`.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ExportArgs {
    /// The images, as in `docker pull`: redis:7, registry.test/team/image@sha256:…
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<Reference>,
    /// A file that ends in .tar, a directory (a layout there is added to), or - for a tar on standard
    /// output
    #[arg(long, short, value_name = "PATH")]
    output: PathBuf,
    /// Only the image for this platform, of those that the index names [default: all]
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<Platform>,
    #[command(flatten)]
    daemon: OwnerArgs,
    /// Print nothing but errors
    #[arg(long, short)]
    quiet: bool,
}

const EXAMPLES: &str = "\
Examples:
  shoal export redis:7 --output redis.tar
  shoal export redis:7 postgres:17 --platform linux/amd64 --output images.tar
  shoal export redis:7 --output - | ssh HOST docker load
  skopeo copy oci-archive:redis.tar:7 docker://registry.test/redis:7";

/// Runs the command.
///
/// # Errors
/// Where no daemon answers, an image cannot be had, or the output cannot be written.
pub(crate) async fn run(args: ExportArgs) -> anyhow::Result<()> {
    let client = AdminClient::of_owner(&args.daemon)?;
    let mut images = Vec::new();
    for reference in &args.images {
        let image = Image::find(&client, reference, args.platform.as_ref()).await;
        images.push(image.with_context(|| format!("cannot export {reference}"))?);
    }
    let written = write(&client, &images, &args).await;
    let total = written.with_context(|| format!("cannot export to {}", args.output.display()))?;
    // Standard output may be the archive.
    if !args.quiet && args.output != Path::new("-") {
        for image in &images {
            output::print(&format!("{} {}", image.reference, image.top.digest))?;
        }
        let size = bytes(total);
        output::print(&format!("{size} in {}", args.output.display()))?;
    }
    Ok(())
}

/// Writes the layout; how many bytes of blobs it has.
async fn write(client: &AdminClient, images: &[Image], args: &ExportArgs) -> anyhow::Result<u64> {
    let mut seen = BTreeSet::new();
    let mut blobs = Vec::new();
    for (image, blob) in images
        .iter()
        .flat_map(|image| image.blobs.iter().map(move |blob| (image, blob)))
    {
        let digest = blob.digest()?;
        if seen.insert(digest) {
            blobs.push((image.named(digest), digest, blob.size));
        }
    }
    let total = blobs.iter().map(|(_, _, size)| size).sum();
    let what = args.output.display().to_string();
    let mut progress = Progress::begin(&what, blobs.len(), total, args.quiet);
    let mut writer = Writer::create(&args.output).await?;
    // The daemon goes on fetching what was once asked for.
    let mut ready = stream::iter(blobs)
        .map(|(named, digest, size)| async move {
            drop(blob(client, &named).await?);
            Ok::<_, anyhow::Error>((named, digest, size))
        })
        .buffered(AHEAD);
    while let Some((named, digest, size)) = ready.try_next().await? {
        progress.blob(&digest.to_string(), size);
        if writer.has(&digest).await {
            progress.advance(size);
            continue;
        }
        let pieces = blob(client, &named).await?;
        writer
            .blob(&digest, size, pieces, |bytes| progress.advance(bytes))
            .await?;
    }
    for (digest, bytes) in images.iter().flat_map(|image| &image.manifests) {
        if !writer.has(digest).await {
            let pieces = stream::iter([Ok(bytes.clone())]);
            writer
                .blob(digest, bytes.len() as u64, pieces, |_| {})
                .await?;
        }
    }
    if writer.is_archive() {
        let entries: Vec<_> = images.iter().filter_map(Image::for_old_docker).collect();
        if !entries.is_empty() {
            let manifest = serde_json::to_vec(&entries)?;
            writer.file("manifest.json", &manifest).await?;
        }
    }
    for image in images {
        let tag = match &image.reference.selector {
            Selector::Tag(tag) => Some(tag.as_str()),
            Selector::Digest(_) => None,
        };
        writer.name(image.top.clone(), &image.reference.to_string(), tag);
    }
    writer.finish().await?;
    Ok(total)
}

/// An image, or an index and its images.
struct Image {
    reference: Reference,
    /// What its name stands for.
    top: Descriptor,
    /// All its manifests, those that name others last.
    manifests: Vec<(Digest, Bytes)>,
    /// Layers and configs.
    blobs: Vec<Descriptor>,
    /// The image of this host's own platform, or the only one.
    docker: Option<(Descriptor, Vec<Descriptor>)>,
}

impl Image {
    /// Reads an image's manifests.
    async fn find(
        client: &AdminClient,
        reference: &Reference,
        platform: Option<&Platform>,
    ) -> anyhow::Result<Self> {
        let mut image = Self {
            reference: reference.clone(),
            top: manifest(client, reference).await?.0,
            manifests: Vec::new(),
            blobs: Vec::new(),
            docker: None,
        };
        let mut level = vec![image.top.clone()];
        for _ in 0..INDEX_DEPTH_MAX {
            let mut below = Vec::new();
            for named in level {
                let digest = named.digest()?;
                let (found, bytes) = manifest(client, &image.named(digest)).await?;
                let document = Document::parse(&digest, &bytes)?;
                image.blobs.extend(document.blobs().cloned());
                if let (Some(config), true) = (&document.config, image.suits_docker(&named)) {
                    image.docker = Some((config.clone(), document.layers.clone()));
                }
                match platform {
                    Some(platform) if !document.manifests.is_empty() => {
                        let chosen = choose(platform, &document.manifests)?;
                        image.top = Descriptor {
                            annotations: std::collections::BTreeMap::new(),
                            ..chosen.clone()
                        };
                        below.push(chosen.clone());
                    }
                    _ => {
                        image.manifests.insert(0, (digest, bytes));
                        below.extend(document.manifests);
                    }
                }
                if image.top.digest == found.digest {
                    image.top.media_type = found.media_type;
                }
            }
            if below.is_empty() {
                return Ok(image);
            }
            level = below;
        }
        bail!("it is an index of indexes of indexes");
    }

    /// The reference of a manifest or blob in the same repository.
    fn named(&self, digest: Digest) -> Reference {
        Reference {
            selector: Selector::Digest(digest),
            ..self.reference.clone()
        }
    }

    /// Whether docker before version 25 is to find this one.
    fn suits_docker(&self, named: &Descriptor) -> bool {
        let host = Platform::host();
        named.digest == self.top.digest
            || named.platform.as_ref().is_some_and(|named| {
                host.matches(&named.os, &named.architecture, named.variant.as_deref())
            })
    }

    /// An entry of `manifest.json`, which docker before version 25 reads instead of `index.json`.
    fn for_old_docker(&self) -> Option<serde_json::Value> {
        let (config, layers) = self.docker.as_ref()?;
        let path = |blob: &Descriptor| blob.digest().ok().map(|digest| blob_path(&digest));
        let tags = match &self.reference.selector {
            Selector::Tag(_) => vec![self.reference.to_string()],
            Selector::Digest(_) => Vec::new(),
        };
        Some(json!({
            "Config": path(config)?,
            "RepoTags": tags,
            "Layers": layers.iter().map(path).collect::<Option<Vec<_>>>()?,
        }))
    }
}

fn choose<'a>(platform: &Platform, images: &'a [Descriptor]) -> anyhow::Result<&'a Descriptor> {
    let fits = |image: &&Descriptor| {
        image.platform.as_ref().is_some_and(|named| {
            platform.matches(&named.os, &named.architecture, named.variant.as_deref())
        })
    };
    images
        .iter()
        .find(fits)
        .with_context(|| format!("it has no image for {platform}; choose one with --platform"))
}

async fn manifest(
    client: &AdminClient,
    reference: &Reference,
) -> anyhow::Result<(Descriptor, Bytes)> {
    let query = [("ref", reference.to_string())];
    let mut pieces = client.download("/v1/export/manifest", &query).await?;
    let mut bytes = BytesMut::new();
    while let Some(piece) = pieces.try_next().await? {
        bytes.extend_from_slice(&piece);
        if bytes.len() as u64 > MANIFEST_BYTES_MAX {
            bail!("the daemon gave more than any manifest may have");
        }
    }
    let algorithm = match &reference.selector {
        Selector::Digest(digest) => digest.algorithm(),
        Selector::Tag(_) => Algorithm::Sha256,
    };
    let mut hasher = Hasher::new(algorithm);
    hasher.update(&bytes);
    let digest = hasher.finish();
    if let Selector::Digest(asked) = &reference.selector
        && *asked != digest
    {
        bail!("the daemon gave {digest} for {asked}; export again");
    }
    let found = Descriptor {
        media_type: media_type_of(&bytes).unwrap_or_default(),
        digest: digest.to_string(),
        size: bytes.len() as u64,
        platform: None,
        annotations: std::collections::BTreeMap::new(),
    };
    Ok((found, bytes.freeze()))
}

async fn blob(
    client: &AdminClient,
    named: &Reference,
) -> anyhow::Result<impl futures::Stream<Item = anyhow::Result<Bytes>> + Unpin + use<>> {
    let query = [("ref", named.to_string())];
    client.download("/v1/export/blob", &query).await
}
