//! Taking an image in from an operator's file: what `shoal import` does.
//!
//! Blobs come first, each checked against its digest before the store has it, then the tag, which is
//! taken only where all that it names is here. So a file that is damaged or cut short leaves no tag
//! behind, and whole blobs at most, which any later import or pull uses.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::{StreamExt as _, TryStreamExt as _, stream::BoxStream};
use shoal_protocol::{
    digest::Digest,
    directory::NodeId,
    event::Event,
    limits::MANIFEST_BYTES_MAX,
    message::{BlobKind, TagKey, TagRecord},
};
use tokio::{
    sync::oneshot,
    task::{JoinError, spawn_blocking},
};

use crate::{
    clock::unix_seconds,
    driver::Fact,
    handle::Handle,
    image::{Document, Entry},
    store::{Admitted, Blob, BlobState, Hasher, Staged, StoreError},
};

/// Bytes that are gathered before they are written.
const GATHER_BYTES: usize = 256 << 10;

/// Indexes within indexes that are followed; no image seen goes deeper than two.
const INDEX_DEPTH_MAX: usize = 3;

/// The bytes of a request, as they come.
pub type ImportBody = BoxStream<'static, std::io::Result<Bytes>>;

/// Why something cannot be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The store does not take it: damaged, no room, no such disk.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It did not come whole.
    #[error("the bytes stopped coming: {0}")]
    Body(std::io::Error),
    /// A manifest is larger than any may be.
    #[error("manifest {0} is larger than the {MANIFEST_BYTES_MAX} bytes allowed")]
    ManifestSize(Digest),
    /// The tag would name an image that is not all here.
    #[error("{0}")]
    Incomplete(String),
    /// The daemon ends.
    #[error("this node is stopping")]
    Stopping,
}

impl From<JoinError> for ImportError {
    fn from(_: JoinError) -> Self {
        Self::Stopping
    }
}

/// Takes in one blob. Bytes of one that is here are checked and thrown away.
pub(crate) async fn blob(
    handle: &Handle,
    digest: Digest,
    kind: BlobKind,
    size: u64,
    mut body: ImportBody,
) -> Result<(), ImportError> {
    let taken = take(handle, digest, kind, size, &mut body).await;
    if taken.is_err() {
        // Clients read an answer once they have sent all.
        while let Some(Ok(_)) = body.next().await {}
    }
    taken
}

async fn take(
    handle: &Handle,
    digest: Digest,
    kind: BlobKind,
    size: u64,
    body: &mut ImportBody,
) -> Result<(), ImportError> {
    if kind == BlobKind::Manifest && size > MANIFEST_BYTES_MAX {
        return Err(ImportError::ManifestSize(digest));
    }
    let parts = handle.parts();
    let (store, key) = (parts.store.clone(), parts.key.clone());
    let staged = spawn_blocking(move || {
        let held = store.get(&digest);
        if held.is_some_and(|blob| blob.state() == BlobState::Complete && blob.size() == size) {
            return Ok(None);
        }
        store.stage(digest, kind, size, key).map(Some)
    });
    let Some(staged) = staged.await?? else {
        return check(digest, size, body).await;
    };
    let staged = write(staged, body).await?;
    match spawn_blocking(move || staged.admit()).await?? {
        Admitted::Complete => {
            tell(
                handle,
                Event::Held {
                    blob: digest,
                    kind,
                    size,
                },
            )
            .await
        }
        Admitted::Given(blob, chunks) => {
            for (index, len) in chunks {
                let stored = Event::ChunkStored {
                    from: None,
                    blob: digest,
                    index,
                    len,
                };
                tell(handle, stored).await?;
            }
            handle
                .completed(&blob)
                .await
                .map_err(|error| ImportError::Incomplete(error.to_string()))
        }
    }
}

/// Writes all that comes.
async fn write(mut staged: Staged, body: &mut ImportBody) -> Result<Staged, ImportError> {
    let mut gathered = BytesMut::new();
    loop {
        let piece = body.next().await.transpose().map_err(ImportError::Body)?;
        let ended = piece.is_none();
        gathered.extend_from_slice(&piece.unwrap_or_default());
        if gathered.len() >= GATHER_BYTES || ended {
            let bytes = gathered.split();
            staged = spawn_blocking(move || staged.write(&bytes).map(|()| staged)).await??;
        }
        if ended {
            return Ok(staged);
        }
    }
}

/// Checks a blob that is here already, so that a damaged file is one whoever has what is in it.
async fn check(digest: Digest, size: u64, body: &mut ImportBody) -> Result<(), ImportError> {
    let (mut hasher, mut came) = (Hasher::new(digest.algorithm()), 0);
    while let Some(piece) = body.next().await {
        let piece = piece.map_err(ImportError::Body)?;
        came += piece.len() as u64;
        hasher = spawn_blocking(move || {
            hasher.update(&piece);
            hasher
        })
        .await?;
    }
    if came != size {
        return Err(StoreError::Length { digest, size, came }.into());
    }
    if hasher.finish() != digest {
        return Err(StoreError::Differs { digest }.into());
    }
    Ok(())
}

/// Has this node, and every member that it reaches, answer with this manifest where no origin can be
/// asked about the tag. Returns how many members were told.
pub(crate) async fn tag(handle: &Handle, key: TagKey, digest: Digest) -> Result<u64, ImportError> {
    whole(handle, digest).await?;
    let parts = handle.parts();
    let record = TagRecord {
        digest,
        asked_at: unix_seconds(),
        asked_by: NodeId(parts.key.verifying_key().to_bytes()),
    };
    let (store, name, kept) = (parts.store.clone(), key.clone(), record.clone());
    spawn_blocking(move || store.put_import(&name, &kept)).await??;
    let (reply, told) = oneshot::channel();
    let fact = Fact::TagImported { key, record, reply };
    let sent = parts.facts.send(fact).await;
    sent.map_err(|_| ImportError::Stopping)?;
    told.await.map_err(|_| ImportError::Stopping)
}

/// Checks that an image is all here. Of an index, one image at least, and all of each whose manifest
/// is: files often have one platform of many.
async fn whole(handle: &Handle, digest: Digest) -> Result<(), ImportError> {
    let mut level = vec![digest];
    for _ in 0..INDEX_DEPTH_MAX {
        let mut below = Vec::new();
        for manifest in level {
            let document = document(handle, manifest).await?;
            for blob in named(document.config.iter().chain(&document.layers))? {
                if !is_here(handle, blob).await? {
                    return Err(missing(blob, manifest));
                }
            }
            let mut images = named(&document.manifests)?;
            let first = images.first().copied();
            for at in (0..images.len()).rev() {
                if !is_here(handle, images[at]).await? {
                    images.swap_remove(at);
                }
            }
            if let (Some(first), true) = (first, images.is_empty()) {
                return Err(missing(first, manifest));
            }
            below.extend(images);
        }
        if below.is_empty() {
            return Ok(());
        }
        level = below;
    }
    Err(ImportError::Incomplete(format!(
        "{digest} is an index of indexes of indexes"
    )))
}

fn named<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Result<Vec<Digest>, ImportError> {
    let digest = |entry: &Entry| {
        entry.digest.parse().map_err(|error| {
            ImportError::Incomplete(format!("a manifest names `{}`: {error}", entry.digest))
        })
    };
    entries.into_iter().map(digest).collect()
}

fn missing(blob: Digest, manifest: Digest) -> ImportError {
    ImportError::Incomplete(format!(
        "{blob}, which manifest {manifest} names, is not here; where it was imported, the quota is too \
         small for the image: raise --quota"
    ))
}

async fn is_here(handle: &Handle, digest: Digest) -> Result<bool, ImportError> {
    let store = handle.parts().store.clone();
    let held = spawn_blocking(move || store.get(&digest)).await?;
    Ok(held.is_some_and(|blob| blob.state() == BlobState::Complete))
}

async fn document(handle: &Handle, digest: Digest) -> Result<Document, ImportError> {
    let store = handle.parts().store.clone();
    let held = spawn_blocking(move || store.get(&digest)).await?;
    let complete =
        |blob: &Arc<Blob>| blob.state() == BlobState::Complete && blob.size() <= MANIFEST_BYTES_MAX;
    let Some(blob) = held.filter(complete) else {
        return Err(ImportError::Incomplete(format!(
            "manifest {digest} is not here"
        )));
    };
    let bytes: BytesMut = handle
        .read(&blob, 0..blob.size())
        .try_collect()
        .await
        .map_err(|error| ImportError::Incomplete(error.to_string()))?;
    serde_json::from_slice(&bytes)
        .map_err(|error| ImportError::Incomplete(format!("cannot read manifest {digest}: {error}")))
}

async fn tell(handle: &Handle, event: Event) -> Result<(), ImportError> {
    let sent = handle.parts().facts.send(Fact::Event(event)).await;
    sent.map_err(|_| ImportError::Stopping)
}
