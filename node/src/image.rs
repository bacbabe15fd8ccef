//! Fetching a whole image into this node, with progress: what `shoal pull` does.

use std::{sync::Arc, time::Duration};

use futures::stream::{BoxStream, StreamExt as _};
use serde::Deserialize;
use shoal_protocol::{
    digest::Digest,
    message::{BlobKind, Hint},
    reference::{Reference, Selector},
};
use tokio::sync::mpsc;

use crate::{
    admin::{Platform, PullEvent, PullLayer, PullOptions},
    clock,
    content::{Content as _, Manifest, PullError},
    handle::Handle,
    store::{Blob, BlobState},
};

/// Blobs of an image that are fetched at once; what containerd and podman do as well.
const BLOBS_AT_ONCE: usize = 6;

/// How often progress is reported.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

/// Progress that is not read is dropped beyond so many events.
const EVENTS_MAX: usize = 256;

/// An index may name an index; no image seen goes deeper.
const INDEX_DEPTH_MAX: usize = 3;

/// What a manifest names.
#[derive(Deserialize)]
pub(crate) struct Document {
    #[serde(default)]
    pub(crate) manifests: Vec<Entry>,
    #[serde(default)]
    pub(crate) config: Option<Entry>,
    #[serde(default)]
    pub(crate) layers: Vec<Entry>,
}

/// A manifest or blob as another names it.
#[derive(Deserialize)]
pub(crate) struct Entry {
    pub(crate) digest: String,
    size: u64,
    #[serde(rename = "mediaType", default)]
    media_type: String,
    #[serde(default)]
    platform: Option<Named>,
}

#[derive(Deserialize)]
struct Named {
    os: String,
    architecture: String,
    #[serde(default)]
    variant: Option<String>,
}

/// Fetches an image; the stream tells how it goes and ends with `Done` or `Failed`. The fetch goes
/// on when the stream is dropped.
pub(crate) fn pull(
    handle: Handle,
    reference: Reference,
    options: PullOptions,
) -> BoxStream<'static, PullEvent> {
    let (events, mut receiver) = mpsc::channel(EVENTS_MAX);
    tokio::spawn(async move {
        let started = clock::instant();
        let last = match run(&handle, reference, &options, &events).await {
            Ok(bytes) => PullEvent::Done {
                bytes,
                seconds: started.elapsed().as_secs_f64(),
            },
            Err(error) => PullEvent::Failed {
                error: error.to_string(),
            },
        };
        // Nobody may be listening any more.
        let _ = events.send(last).await;
    });
    futures::stream::poll_fn(move |cx| receiver.poll_recv(cx)).boxed()
}

async fn run(
    handle: &Handle,
    reference: Reference,
    options: &PullOptions,
    events: &mpsc::Sender<PullEvent>,
) -> Result<u64, PullError> {
    let hint = Hint {
        upstream: reference.upstream.clone(),
        repository: reference.repository.clone(),
    };
    let (manifest, document) = image_manifest(handle, reference, options).await?;
    let blobs: Vec<Entry> = document.layers.into_iter().chain(document.config).collect();
    let layers = blobs
        .iter()
        .map(|entry| PullLayer {
            digest: entry.digest.clone(),
            size: entry.size,
            media_type: entry.media_type.clone(),
        })
        .collect();
    let _ = events.try_send(PullEvent::Manifest {
        digest: manifest.digest.to_string(),
        layers,
    });
    let mut fetched = futures::stream::iter(blobs)
        .map(|entry| {
            let hint = hint.clone();
            async move {
                let digest: Digest = entry.digest.parse().map_err(|error| {
                    PullError::NotFound(format!("the manifest names `{}`: {error}", entry.digest))
                })?;
                let before = handle.parts().tallies.get(&digest);
                let blob = handle.want(digest, BlobKind::Blob, hint).await?;
                follow(handle, &blob, before, events).await?;
                Ok::<u64, PullError>(blob.size())
            }
        })
        .buffer_unordered(BLOBS_AT_ONCE);
    let mut bytes = manifest.bytes.len() as u64;
    while let Some(size) = fetched.next().await {
        bytes += size?;
    }
    Ok(bytes)
}

/// Reports on a blob until it is complete.
async fn follow(
    handle: &Handle,
    blob: &Arc<Blob>,
    before: crate::driver::Tally,
    events: &mpsc::Sender<PullEvent>,
) -> Result<(), PullError> {
    let digest = blob.digest();
    let geometry = blob.geometry();
    let mut end = Box::pin(handle.completed(blob));
    loop {
        let done = tokio::select! {
            result = &mut end => Some(result),
            () = tokio::time::sleep(PROGRESS_EVERY) => None,
        };
        let have_bytes = if blob.state() == BlobState::Complete {
            blob.size()
        } else {
            blob.have()
                .iter()
                .map(|index| u64::from(geometry.len(index)))
                .sum()
        };
        let now = handle.parts().tallies.get(&digest);
        let _ = events.try_send(PullEvent::Progress {
            digest: digest.to_string(),
            have_bytes,
            from_origin: now.from_origin.saturating_sub(before.from_origin),
            from_peers: now.from_peers.saturating_sub(before.from_peers),
        });
        if let Some(result) = done {
            return result;
        }
    }
}

/// The image's own manifest: by way of an index, the one for the platform.
async fn image_manifest(
    handle: &Handle,
    mut reference: Reference,
    options: &PullOptions,
) -> Result<(Manifest, Document), PullError> {
    let platform = options.platform.clone().unwrap_or_else(Platform::host);
    for _ in 0..INDEX_DEPTH_MAX {
        let manifest = handle.manifest(reference.clone()).await?;
        let document: Document = serde_json::from_slice(&manifest.bytes).map_err(|error| {
            PullError::Unavailable(format!("cannot read manifest {}: {error}", manifest.digest))
        })?;
        if document.manifests.is_empty() {
            return Ok((manifest, document));
        }
        let chosen = document.manifests.iter().find(|entry| {
            entry.platform.as_ref().is_some_and(|named| {
                platform.matches(&named.os, &named.architecture, named.variant.as_deref())
            })
        });
        let Some(chosen) = chosen else {
            return Err(PullError::NotFound(format!(
                "{reference} has no image for {platform}; choose one with --platform"
            )));
        };
        let digest = chosen.digest.parse().map_err(|error| {
            PullError::NotFound(format!("the index names `{}`: {error}", chosen.digest))
        })?;
        reference.selector = Selector::Digest(digest);
    }
    Err(PullError::NotFound(format!(
        "{reference} is an index of indexes of indexes"
    )))
}
