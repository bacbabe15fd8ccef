//! What the endpoints see of the node: [`Content`] for the mirror, [`Admin`] for the operator.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt as _, TryStreamExt as _, stream, stream::BoxStream};
use serde::Deserialize;
use shoal_protocol::{
    digest::Digest,
    directory::{NodeId, Peer},
    limits::MANIFEST_BYTES_MAX,
    message::{BlobKind, Hint, TagAnswer, TagFailure, TagKey},
    reference::{Reference, Selector, Tag},
};
use tokio::sync::{mpsc, oneshot};

use crate::{
    admin::{Admin, PullEvent, PullOptions},
    clock::unix_seconds,
    content::{BlobBody, Content, Manifest, PullError, Span, Stale},
    driver::{Fact, Parts},
    image,
    import::{self, ImportBody, ImportError},
    mirror::media_type_of,
    stats::{NodeStats, SwarmStats},
    store::{Blob, BlobState, Demand, DemandEvent},
};

/// How long a client waits for the first bytes. The clients that were measured all wait longer.
const FIRST_BYTES: Duration = Duration::from_secs(60);

/// How long members have to answer a question for their statistics.
const STATS_DEADLINE: Duration = Duration::from_secs(2);

/// Members that are asked at once.
const STATS_FAN_OUT: usize = 64;

/// Sizes remembered from manifests; 100,000 take some 10 MB.
const SIZES_MAX: usize = 100_000;

/// A handle to the running node. Cloning it clones a handle.
#[derive(Clone)]
pub(crate) struct Handle(Arc<Inner>);

struct Inner {
    parts: Arc<Parts>,
    demands: mpsc::Sender<DemandEvent>,
    readers: AtomicU64,
    ready: AtomicBool,
    /// Sizes of blobs, from manifests whose digest matched.
    sizes: Mutex<BTreeMap<Digest, u64>>,
}

/// What of a manifest matters here: the blobs that it names.
#[derive(Deserialize)]
struct Named {
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: String,
    size: u64,
}

impl Handle {
    pub(crate) fn new(parts: Arc<Parts>, demands: mpsc::Sender<DemandEvent>) -> Self {
        Self(Arc::new(Inner {
            parts,
            demands,
            readers: AtomicU64::new(0),
            ready: AtomicBool::new(false),
            sizes: Mutex::new(BTreeMap::new()),
        }))
    }

    pub(crate) fn set_ready(&self) {
        self.0.ready.store(true, Ordering::Relaxed);
    }

    pub(crate) fn parts(&self) -> &Parts {
        &self.0.parts
    }

    /// A blob that can be read from now on, complete or on its way.
    pub(crate) async fn want(
        &self,
        blob: Digest,
        kind: BlobKind,
        hint: Hint,
    ) -> Result<Arc<Blob>, PullError> {
        let store = self.0.parts.store.clone();
        let held = tokio::task::spawn_blocking(move || {
            store
                .get(&blob)
                .filter(|stored| stored.state() == BlobState::Complete)
        });
        if let Ok(Some(stored)) = held.await {
            return Ok(stored);
        }
        let size = self.known_size(&blob);
        let (reply, answer) = oneshot::channel();
        self.tell(Fact::WantBlob {
            blob,
            kind,
            size,
            hint,
            reply,
        })
        .await?;
        match tokio::time::timeout(FIRST_BYTES, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(stopping()),
            Err(_) => Err(PullError::TimedOut(format!(
                "nothing of {blob} came within {} s, from peers or from its origin",
                FIRST_BYTES.as_secs()
            ))),
        }
    }

    pub(crate) fn read(
        &self,
        blob: &Arc<Blob>,
        range: std::ops::Range<u64>,
    ) -> impl Stream<Item = Result<Bytes, PullError>> + Send + use<> {
        blob.stream(range, self.demand())
    }

    /// The line of one more reader.
    fn demand(&self) -> Demand {
        let reader = self.0.readers.fetch_add(1, Ordering::Relaxed);
        Demand::new(self.0.demands.clone(), reader)
    }

    async fn tell(&self, fact: Fact) -> Result<(), PullError> {
        self.0.parts.facts.send(fact).await.map_err(|_| stopping())
    }

    fn known_size(&self, blob: &Digest) -> Option<u64> {
        self.0
            .sizes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(blob)
            .copied()
    }

    /// Remembers the sizes of the blobs that a verified manifest names.
    fn learn_sizes(&self, manifest: &[u8]) {
        let Ok(named) = serde_json::from_slice::<Named>(manifest) else {
            return;
        };
        let mut sizes = self.0.sizes.lock().unwrap_or_else(PoisonError::into_inner);
        for descriptor in named.config.into_iter().chain(named.layers) {
            if let Ok(digest) = descriptor.digest.parse() {
                if sizes.len() >= SIZES_MAX {
                    sizes.clear();
                }
                sizes.insert(digest, descriptor.size);
            }
        }
    }

    async fn resolve(&self, key: TagKey) -> Result<(Digest, Option<Stale>), PullError> {
        let (reply, answer) = oneshot::channel();
        let name = format!("{}/{}:{}", key.upstream, key.repository, key.tag);
        self.tell(Fact::WantTag { key, reply }).await?;
        let answer = match tokio::time::timeout(FIRST_BYTES, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => return Err(stopping()),
            Err(_) => return Err(PullError::TimedOut(format!("nobody said what {name} is"))),
        };
        match answer {
            TagAnswer::Fresh(record) => Ok((record.digest, None)),
            TagAnswer::Stale(record, reason) => {
                let age_seconds = unix_seconds().saturating_sub(record.asked_at);
                Ok((
                    record.digest,
                    Some(Stale {
                        reason,
                        age_seconds,
                    }),
                ))
            }
            TagAnswer::Imported(record) => Ok((
                record.digest,
                Some(Stale {
                    reason: "no origin can be asked; this was imported from a file".to_owned(),
                    age_seconds: unix_seconds().saturating_sub(record.asked_at),
                }),
            )),
            TagAnswer::Failed(TagFailure::NotFound(text)) => Err(PullError::NotFound(text)),
            TagAnswer::Failed(TagFailure::Denied(text)) => Err(PullError::Denied(text)),
            TagAnswer::Failed(TagFailure::Throttled(seconds)) => Err(PullError::Throttled {
                reason: format!("the origin of {name} is limiting its clients"),
                retry_after: seconds.map(|seconds| Duration::from_secs(seconds.into())),
            }),
            TagAnswer::Failed(TagFailure::Unreachable(text)) => Err(PullError::Unavailable(text)),
        }
    }

    /// How many members there are, this node included.
    pub(crate) async fn members(&self) -> usize {
        self.member_list().await.len()
    }

    async fn member_list(&self) -> Vec<Peer> {
        let (reply, members) = oneshot::channel();
        match self.tell(Fact::WantMembers { reply }).await {
            Ok(()) => members.await.unwrap_or_default(),
            Err(_) => Vec::new(),
        }
    }

    /// Waits until a blob is complete; the error is the one that readers get.
    pub(crate) async fn completed(&self, blob: &Arc<Blob>) -> Result<(), PullError> {
        let last = blob.size().saturating_sub(1);
        self.read(blob, last..blob.size())
            .try_for_each(|_| async { Ok(()) })
            .await
    }

    async fn peer_stats(&self, peer: Peer) -> Option<NodeStats> {
        let (reply, answer) = oneshot::channel();
        self.tell(Fact::WantPeerStats { peer, reply }).await.ok()?;
        let json = tokio::time::timeout(STATS_DEADLINE, answer)
            .await
            .ok()?
            .ok()?;
        serde_json::from_slice(&json).ok()
    }
}

fn stopping() -> PullError {
    PullError::Unavailable("this node is stopping".to_owned())
}

impl Content for Handle {
    async fn manifest(&self, reference: Reference) -> Result<Manifest, PullError> {
        let Reference {
            upstream,
            repository,
            selector,
        } = reference;
        let hint = Hint {
            upstream: upstream.clone(),
            repository: repository.clone(),
        };
        let (digest, stale) = match selector {
            Selector::Digest(digest) => (digest, None),
            Selector::Tag(tag) => {
                self.resolve(TagKey {
                    upstream,
                    repository,
                    tag,
                })
                .await?
            }
        };
        let blob = self.want(digest, BlobKind::Manifest, hint).await?;
        if blob.size() > MANIFEST_BYTES_MAX {
            return Err(PullError::NotFound(format!(
                "{digest} is a blob, not a manifest"
            )));
        }
        let pieces = self.read(&blob, 0..blob.size()).try_fold(
            BytesMut::with_capacity(blob.size() as usize),
            |mut all, piece| async move {
                all.extend_from_slice(&piece);
                Ok(all)
            },
        );
        let bytes = match tokio::time::timeout(FIRST_BYTES, pieces).await {
            Ok(bytes) => bytes?.freeze(),
            Err(_) => {
                return Err(PullError::TimedOut(format!(
                    "manifest {digest} did not come within {} s",
                    FIRST_BYTES.as_secs()
                )));
            }
        };
        let media_type = media_type_of(&bytes).ok_or_else(|| {
            PullError::NotFound(format!("{digest} is not a manifest of any known kind"))
        })?;
        self.learn_sizes(&bytes);
        Ok(Manifest {
            digest,
            media_type,
            bytes,
            stale,
        })
    }

    async fn blob(&self, digest: Digest, hint: Hint, span: Span) -> Result<BlobBody, PullError> {
        let blob = self.want(digest, BlobKind::Blob, hint).await?;
        let size = blob.size();
        let range = span.resolve(size)?;
        let held = blob.state() == BlobState::Complete;
        let mut pieces = Box::pin(blob.pieces(range.clone(), self.demand()));
        let first = match tokio::time::timeout(FIRST_BYTES, pieces.next()).await {
            Ok(first) => first.transpose()?,
            Err(_) => {
                return Err(PullError::TimedOut(format!(
                    "nothing of {digest} came within {} s, from peers or from its origin",
                    FIRST_BYTES.as_secs()
                )));
            }
        };
        let metrics = Arc::clone(&self.0.parts.metrics);
        let all = stream::iter(first.map(Ok))
            .chain(pieces)
            .inspect_ok(move |piece| {
                if held {
                    metrics.bytes_from_local.add(piece.len() as u64);
                }
            });
        Ok(BlobBody {
            size,
            range,
            stream: all.boxed(),
        })
    }

    async fn blob_size(&self, digest: Digest, hint: Hint) -> Result<u64, PullError> {
        let store = self.0.parts.store.clone();
        let stored = tokio::task::spawn_blocking(move || store.get(&digest));
        if let Ok(Some(stored)) = stored.await {
            return Ok(stored.size());
        }
        if let Some(size) = self.known_size(&digest) {
            return Ok(size);
        }
        let size = self.0.parts.origins.blob_size(&digest, &hint).await;
        size.map_err(|error| PullError::from(&error))
    }

    async fn tags(&self, hint: Hint) -> Result<Vec<Tag>, PullError> {
        self.0
            .parts
            .origins
            .tags(&hint)
            .await
            .map_err(|error| PullError::from(&error))
    }

    async fn referrers(
        &self,
        hint: Hint,
        subject: Digest,
    ) -> Result<Vec<serde_json::Value>, PullError> {
        let origins = &self.0.parts.origins;
        let listed = origins.referrers(&hint, &subject).await;
        listed.map_err(|error| PullError::from(&error))
    }
}

impl Admin for Handle {
    fn readiness(&self) -> Result<(), String> {
        if self.0.ready.load(Ordering::Relaxed) {
            Ok(())
        } else {
            Err("looking for the members of the swarm".to_owned())
        }
    }

    fn metrics(&self) -> String {
        let parts = &self.0.parts;
        parts.metrics.render(&parts.origins.stats())
    }

    async fn node_stats(&self) -> NodeStats {
        let (reply, answer) = oneshot::channel();
        if self.tell(Fact::WantStats { reply }).await.is_err() {
            return NodeStats::default();
        }
        answer.await.unwrap_or_default()
    }

    async fn swarm_stats(&self) -> SwarmStats {
        let members = self.member_list().await;
        let me = NodeId(self.0.parts.key.verifying_key().to_bytes());
        let me = self.0.parts.directory.lookup(&me);
        let total = members.len();
        let others = members.into_iter().filter(|peer| Some(*peer) != me);
        let mut answers: Vec<NodeStats> = stream::iter(others.collect::<Vec<_>>())
            .map(|peer| self.peer_stats(peer))
            .buffer_unordered(STATS_FAN_OUT)
            .filter_map(|answer| async move { answer })
            .collect()
            .await;
        answers.push(self.node_stats().await);
        SwarmStats::merge(answers, total)
    }

    fn pull(&self, reference: Reference, options: PullOptions) -> BoxStream<'static, PullEvent> {
        image::pull(self.clone(), reference, options)
    }

    async fn export_manifest(&self, reference: Reference) -> Result<Manifest, PullError> {
        self.manifest(reference).await
    }

    async fn export_blob(&self, digest: Digest, hint: Hint) -> Result<BlobBody, PullError> {
        self.blob(digest, hint, Span::Whole).await
    }

    async fn import_blob(
        &self,
        digest: Digest,
        kind: BlobKind,
        size: u64,
        body: ImportBody,
    ) -> Result<(), ImportError> {
        import::blob(self, digest, kind, size, body).await
    }

    async fn import_tag(&self, key: TagKey, digest: Digest) -> Result<u64, ImportError> {
        import::tag(self, key, digest).await
    }
}
