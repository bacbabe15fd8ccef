//! A client that pulls as container engines do, checks every digest and throws the bytes away.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{
    Request, StatusCode, Uri,
    body::{Body, Incoming},
    header::ACCEPT,
};
use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use shoal_node::clock;
use shoal_protocol::{digest::Digest, limits::MANIFEST_BYTES_MAX};
use tokio::time::timeout;

use super::image::MANIFEST_TYPE;

/// With no byte for so long a pull has failed. More than the minute after which a mirror says
/// itself that it got nothing.
const STALL: Duration = Duration::from_secs(75);

/// The image to pull and where from.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// A registry or a mirror.
    pub(crate) server: SocketAddr,
    /// The repository as this server names it.
    pub(crate) repository: String,
    pub(crate) tag: String,
    /// The manifest that the tag must turn out to name.
    pub(crate) manifest_digest: Digest,
    /// Blobs pulled at a time: 3 as docker, up to 6 as podman.
    pub(crate) parallel: usize,
}

/// How a pull went.
#[derive(Debug)]
pub(crate) struct Pull {
    /// From the first request to the last byte, or to the failure.
    pub(crate) elapsed: Duration,
    /// Every digest matched, or what went wrong.
    pub(crate) result: Result<(), PullFailure>,
}

/// Why an image could not be pulled.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PullFailure {
    #[error("GET {path}: {problem}")]
    Transport { path: String, problem: String },
    #[error("GET {path}: the server answered {status}: {said}")]
    Status {
        path: String,
        status: StatusCode,
        said: String,
    },
    #[error("GET {path}: no byte for {} seconds", STALL.as_secs())]
    Stalled { path: String },
    #[error("the manifest is not one: {0}")]
    Manifest(#[from] serde_json::Error),
    #[error("{wanted} was asked for, but {size} bytes with {got} came")]
    Mismatch {
        wanted: Digest,
        got: Digest,
        size: u64,
    },
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: String,
    size: u64,
}

/// A client of its own: its connections are shared with no other.
#[derive(Clone)]
pub(crate) struct Client {
    http: HttpClient<HttpConnector, Empty<Bytes>>,
}

impl Client {
    pub(crate) fn new() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        Self {
            http: HttpClient::builder(TokioExecutor::new()).build(connector),
        }
    }

    /// Pulls an image, counting the bytes that come into `received`.
    pub(crate) async fn pull(&self, target: &Target, received: &Arc<AtomicU64>) -> Pull {
        let start = clock::instant();
        let result = self.pull_all(target, received).await;
        Pull {
            elapsed: start.elapsed(),
            result,
        }
    }

    async fn pull_all(&self, target: &Target, received: &AtomicU64) -> Result<(), PullFailure> {
        let Target {
            server, repository, ..
        } = target;
        self.get(*server, "/v2/").await?;
        let path = format!("/v2/{repository}/manifests/{}", target.tag);
        let manifest = self.get(*server, &path).await?;
        received.fetch_add(manifest.len() as u64, Relaxed);
        let got = Digest::sha256(Sha256::digest(&manifest).into());
        if got != target.manifest_digest {
            return Err(PullFailure::Mismatch {
                wanted: target.manifest_digest,
                got,
                size: manifest.len() as u64,
            });
        }
        let manifest: Manifest = serde_json::from_slice(&manifest)?;
        stream::iter([manifest.config].into_iter().chain(manifest.layers))
            .map(|blob| self.pull_blob(target, blob, received))
            .buffer_unordered(target.parallel)
            .try_collect()
            .await
    }

    async fn pull_blob(
        &self,
        target: &Target,
        blob: Descriptor,
        received: &AtomicU64,
    ) -> Result<(), PullFailure> {
        let path = format!("/v2/{}/blobs/{}", target.repository, blob.digest);
        let wanted: Digest = blob
            .digest
            .parse()
            .map_err(|error| transport(&path, &error))?;
        let mut body = self.send(target.server, &path).await?;
        let mut hasher = Sha256::new();
        let mut size = 0;
        while let Some(frame) = timeout(STALL, body.frame())
            .await
            .map_err(|_| PullFailure::Stalled { path: path.clone() })?
        {
            let frame = frame.map_err(|error| transport(&path, &error))?;
            if let Some(bytes) = frame.data_ref() {
                hasher.update(bytes);
                size += bytes.len() as u64;
                received.fetch_add(bytes.len() as u64, Relaxed);
            }
        }
        let got = Digest::sha256(hasher.finalize().into());
        if got == wanted && size == blob.size {
            Ok(())
        } else {
            Err(PullFailure::Mismatch { wanted, got, size })
        }
    }

    /// A whole small answer; an error if it is not a 200.
    pub(crate) async fn get(&self, server: SocketAddr, path: &str) -> Result<Bytes, PullFailure> {
        let body = self.send(server, path).await?;
        timeout(STALL, small(body))
            .await
            .map_err(|_| PullFailure::Stalled {
                path: path.to_owned(),
            })?
            .map_err(|error| transport(path, &*error))
    }

    async fn send(&self, server: SocketAddr, path: &str) -> Result<Incoming, PullFailure> {
        let uri: Uri = format!("http://{server}{path}")
            .parse()
            .map_err(|error| transport(path, &error))?;
        let request = Request::get(uri)
            .header(ACCEPT, MANIFEST_TYPE)
            .body(Empty::new())
            .map_err(|error| transport(path, &error))?;
        let reply = timeout(STALL, self.http.request(request))
            .await
            .map_err(|_| PullFailure::Stalled {
                path: path.to_owned(),
            })?
            .map_err(|error| transport(path, &error))?;
        let (head, body) = reply.into_parts();
        if head.status == StatusCode::OK {
            return Ok(body);
        }
        let said = small(body).await.unwrap_or_default();
        Err(PullFailure::Status {
            path: path.to_owned(),
            status: head.status,
            said: String::from_utf8_lossy(&said).chars().take(300).collect(),
        })
    }
}

async fn small<B: Body<Data = Bytes, Error: std::error::Error + Send + Sync + 'static>>(
    body: B,
) -> Result<Bytes, Box<dyn std::error::Error + Send + Sync>> {
    let whole = Limited::new(body, MANIFEST_BYTES_MAX as usize)
        .collect()
        .await?;
    Ok(whole.to_bytes())
}

/// hyper's errors say little; their causes say more.
fn transport(path: &str, error: &dyn std::error::Error) -> PullFailure {
    let mut problem = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        problem = format!("{problem}: {error}");
        cause = error.source();
    }
    PullFailure::Transport {
        path: path.to_owned(),
        problem,
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;
    use hyper::{Response, server::conn::http1, service::service_fn};
    use hyper_util::rt::TokioIo;
    use shoal_node::config::{ByteRate, ByteSize};
    use tokio::net::{TcpListener, TcpSocket};

    use super::*;
    use crate::demo::{
        image::Image,
        registry::{REPOSITORY, Registry, TAG},
    };

    const FAST: ByteRate = ByteRate(1 << 40);

    fn target(server: SocketAddr, image: &Image) -> Target {
        Target {
            server,
            repository: REPOSITORY.to_owned(),
            tag: TAG.to_owned(),
            manifest_digest: image.manifest_digest,
            parallel: 3,
        }
    }

    #[tokio::test]
    async fn a_pull_reads_the_whole_image_once() {
        let image = Arc::new(Image::generate(ByteSize(2 << 20), 1));
        let registry = Registry::start(Arc::clone(&image), FAST).await.unwrap();
        let received = Arc::default();
        let pull = Client::new()
            .pull(&target(registry.address(), &image), &received)
            .await;
        pull.result.unwrap();
        assert_eq!(received.load(Relaxed), image.size());
        let served = registry.served();
        assert_eq!((served.manifest_gets, served.blob_gets), (1, 7));
    }

    #[tokio::test]
    async fn a_tag_that_names_another_image_fails_the_pull() {
        let image = Arc::new(Image::generate(ByteSize(1 << 20), 1));
        let other = Image::generate(ByteSize(1 << 20), 2);
        let registry = Registry::start(image, FAST).await.unwrap();
        let pull = Client::new()
            .pull(&target(registry.address(), &other), &Arc::default())
            .await;
        assert!(
            matches!(pull.result, Err(PullFailure::Mismatch { .. })),
            "{pull:?}"
        );
    }

    /// Serves an image, but damages or shortens what it sends of layers.
    async fn faulty(image: Arc<Image>, cut: bool) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let image = Arc::clone(&image);
                let service = service_fn(move |request: Request<Incoming>| {
                    let name = request.uri().path().rsplit('/').next().unwrap_or_default();
                    let body = match name.parse().ok().and_then(|digest| image.blob(&digest)) {
                        Some(blob) => {
                            let mut bytes = blob.read(0, blob.size() as usize).to_vec();
                            let middle = bytes.len() / 2;
                            if cut {
                                bytes.truncate(middle);
                            } else {
                                bytes[middle] ^= 1;
                            }
                            bytes.into()
                        }
                        None => image.manifest.clone(),
                    };
                    async move { Ok::<_, hyper::Error>(Response::new(Full::new(body))) }
                });
                let connection = http1::Builder::new();
                tokio::spawn(connection.serve_connection(TokioIo::new(socket), service));
            }
        });
        address
    }

    #[tokio::test]
    async fn a_wrong_or_missing_byte_fails_the_pull() {
        let image = Arc::new(Image::generate(ByteSize(1 << 20), 1));
        for cut in [false, true] {
            let server = faulty(Arc::clone(&image), cut).await;
            let pull = Client::new()
                .pull(&target(server, &image), &Arc::default())
                .await;
            assert!(
                matches!(pull.result, Err(PullFailure::Mismatch { .. })),
                "{pull:?}"
            );
        }
    }

    #[tokio::test]
    async fn nobody_listening_is_a_clear_failure() {
        let image = Image::generate(ByteSize(1 << 20), 1);
        // Bound, so that no other test gets the port, but not listening.
        let silent = TcpSocket::new_v4().unwrap();
        silent.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = silent.local_addr().unwrap();
        let pull = Client::new()
            .pull(&target(address, &image), &Arc::default())
            .await;
        let failure = pull.result.unwrap_err().to_string();
        assert!(failure.contains("Connection refused"), "{failure}");
    }
}
