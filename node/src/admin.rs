//! The admin endpoint: health, metrics, statistics, pulls on demand, images in and out, a status page.

use std::{future::Future, sync::Arc};

use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};
use shoal_protocol::{
    digest::Digest,
    message::{BlobKind, Hint, TagKey},
    reference::Reference,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use self::{
    carry::TagImported,
    platform::{Platform, PlatformError},
    token::{Token, token_file},
};
pub use crate::{
    content::{BlobBody, Manifest, PullError},
    import::{ImportBody, ImportError},
};
use crate::{
    http,
    stats::{NodeStats, SwarmStats},
};

mod carry;
mod page;
mod platform;
mod routes;
mod token;

/// Whatever the admin endpoint reports on: the node, or a test's stand-in.
pub trait Admin: Send + Sync + 'static {
    /// Whether the node can serve pulls; otherwise why not.
    fn readiness(&self) -> Result<(), String>;

    /// The metrics in the Prometheus text format.
    fn metrics(&self) -> String;

    /// What this node says of itself.
    fn node_stats(&self) -> impl Future<Output = NodeStats> + Send;

    /// What all reachable nodes together say; bounded in time.
    fn swarm_stats(&self) -> impl Future<Output = SwarmStats> + Send;

    /// Fetches an image into this node. Dropping the stream stops reporting.
    fn pull(&self, reference: Reference, options: PullOptions) -> BoxStream<'static, PullEvent>;

    /// The manifest that a reference names, from wherever it is to be had.
    fn export_manifest(
        &self,
        reference: Reference,
    ) -> impl Future<Output = Result<Manifest, PullError>> + Send;

    /// A blob, from wherever it is to be had.
    fn export_blob(
        &self,
        digest: Digest,
        hint: Hint,
    ) -> impl Future<Output = Result<BlobBody, PullError>> + Send;

    /// Takes in a blob of `size` bytes. All of `body` is read, whatever comes of it.
    fn import_blob(
        &self,
        digest: Digest,
        kind: BlobKind,
        size: u64,
        body: ImportBody,
    ) -> impl Future<Output = Result<(), ImportError>> + Send;

    /// Has the swarm answer with this manifest, which is here with all that it names, where no origin
    /// can be asked about the tag. Returns how many other members were told.
    fn import_tag(
        &self,
        key: TagKey,
        digest: Digest,
    ) -> impl Future<Output = Result<u64, ImportError>> + Send;
}

/// What to fetch of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PullOptions {
    /// The platform to choose from an index; the node's own where none is given.
    pub platform: Option<Platform>,
}

/// A step of a pull, one JSON object a line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum PullEvent {
    /// The image's manifest is known.
    Manifest {
        /// Its digest.
        digest: String,
        /// The blobs that will be fetched: the layers and the config.
        layers: Vec<PullLayer>,
    },
    /// A blob got on.
    Progress {
        /// Its digest.
        digest: String,
        /// How many of its bytes are here.
        have_bytes: u64,
        /// How many of them came from the origin in this pull.
        from_origin: u64,
        /// How many of them came from peers in this pull.
        from_peers: u64,
    },
    /// Everything is here and checked. The last event.
    Done {
        /// The bytes of all blobs.
        bytes: u64,
        /// How long it took.
        seconds: f64,
    },
    /// It failed. The last event.
    Failed {
        /// Why.
        error: String,
    },
}

/// A blob of an image that is being pulled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullLayer {
    /// Its digest.
    pub digest: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its media type.
    pub media_type: String,
}

/// Serves the admin endpoint until `shutdown`; running answers then have 5 s to end. Images go in and
/// out for those alone who show `token`.
pub async fn serve<A: Admin>(
    listener: TcpListener,
    admin: Arc<A>,
    token: Token,
    shutdown: CancellationToken,
) {
    let token = Arc::new(token);
    let handler = move |request| {
        let (admin, token) = (Arc::clone(&admin), Arc::clone(&token));
        async move { routes::respond(request, &*admin, &token).await }
    };
    http::serve(listener, None, handler, shutdown).await;
}

#[cfg(test)]
mod tests;
