//! The embedded origin: a registry with one image, on a link of limited rate.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::{Body, Frame, Incoming, SizeHint},
    header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, RANGE},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::json;
use shoal_node::{config::ByteRate, content::Span};
use shoal_protocol::digest::Digest;
use tokio::{
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
};

use super::{
    image::{Blob, Image, MANIFEST_TYPE},
    throttle::{Throttle, ThrottledSocket},
};

/// The repository and tag of the image.
pub(crate) const REPOSITORY: &str = "demo/gpu";
pub(crate) const TAG: &str = "latest";

/// What one read of a blob's body yields. Larger pieces would be copied in larger pieces too.
const FRAME_BYTES: u64 = 64 << 10;

/// More than all clients of the largest demo open; later ones wait in the listener's backlog.
const CONNECTIONS_MAX: usize = 1024;

/// A running registry; dropping it closes its sockets.
#[derive(Debug)]
pub(crate) struct Registry {
    address: SocketAddr,
    state: Arc<State>,
    accepting: JoinHandle<()>,
}

#[derive(Debug)]
struct State {
    image: Arc<Image>,
    throttle: Arc<Throttle>,
    streams: Streams,
    manifest_gets: AtomicU64,
    blob_gets: AtomicU64,
}

/// How many blob bodies are on their way, and how many were at most.
#[derive(Debug, Default)]
struct Streams {
    now: AtomicU64,
    peak: AtomicU64,
}

/// What the registry served so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Served {
    /// Bytes written to its sockets, headers included.
    pub(crate) bytes: u64,
    /// GETs of a manifest.
    pub(crate) manifest_gets: u64,
    /// GETs of a blob or a range of one.
    pub(crate) blob_gets: u64,
    /// The most blob bodies on their way at once since this was last asked.
    pub(crate) streams_peak: u64,
}

type Reply = Response<Either<Full<Bytes>, BlobBody>>;

impl Registry {
    /// Serves an image on a free port of 127.0.0.1.
    pub(crate) async fn start(image: Arc<Image>, rate: ByteRate) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let state = Arc::new(State {
            image,
            throttle: Arc::new(Throttle::new(rate)),
            streams: Streams::default(),
            manifest_gets: AtomicU64::new(0),
            blob_gets: AtomicU64::new(0),
        });
        Ok(Self {
            address,
            accepting: tokio::spawn(accept(listener, Arc::clone(&state))),
            state,
        })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// What was served since the start. Begins a new peak.
    pub(crate) fn served(&self) -> Served {
        let streams = &self.state.streams;
        Served {
            bytes: self.state.throttle.written(),
            manifest_gets: self.state.manifest_gets.load(Relaxed),
            blob_gets: self.state.blob_gets.load(Relaxed),
            streams_peak: streams.peak.swap(streams.now.load(Relaxed), Relaxed),
        }
    }
}

impl Served {
    /// What was served after `earlier`.
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            bytes: self.bytes - earlier.bytes,
            manifest_gets: self.manifest_gets - earlier.manifest_gets,
            blob_gets: self.blob_gets - earlier.blob_gets,
            streams_peak: self.streams_peak,
        }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Ends, and all connections with it, when its task is aborted.
async fn accept(listener: TcpListener, state: Arc<State>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => {
                match accepted {
                    Ok((socket, _)) => {
                        connections.spawn(serve(socket, Arc::clone(&state)));
                    }
                    Err(error) => tracing::warn!(%error, "the origin cannot accept a connection"),
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(socket: TcpStream, state: Arc<State>) {
    if let Err(error) = socket.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    let socket = ThrottledSocket::new(socket, Arc::clone(&state.throttle));
    let service = service_fn(|request: Request<Incoming>| {
        let reply = reply(&state, &request);
        async move { Ok::<_, Infallible>(reply) }
    });
    let connection = http1::Builder::new().serve_connection(TokioIo::new(socket), service);
    if let Err(error) = connection.await {
        // A client that closes in the middle is normal: a lease may be taken from it.
        tracing::debug!(%error, "a connection to the origin ended");
    }
}

fn reply<B>(state: &Arc<State>, request: &Request<B>) -> Reply {
    let get = match *request.method() {
        Method::GET => true,
        Method::HEAD => false,
        _ => return failure(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED"),
    };
    let path = request.uri().path();
    if path == "/v2/" || path == "/v2" {
        return respond(headers(StatusCode::OK, "application/json", 2), "{}".into());
    }
    let below = path
        .strip_prefix("/v2/")
        .and_then(|path| path.strip_prefix(REPOSITORY))
        .and_then(|path| path.strip_prefix('/'));
    match below.and_then(|path| path.split_once('/')) {
        Some(("manifests", selector)) => manifest(state, selector, get),
        Some(("blobs", digest)) => match digest.parse() {
            Ok(digest) => blob(state, &digest, request.headers(), get),
            Err(_) => failure(StatusCode::BAD_REQUEST, "DIGEST_INVALID"),
        },
        _ => failure(StatusCode::NOT_FOUND, "NAME_UNKNOWN"),
    }
}

fn manifest(state: &State, selector: &str, get: bool) -> Reply {
    let Image {
        manifest,
        manifest_digest,
        ..
    } = &*state.image;
    if selector != TAG && selector.parse() != Ok(*manifest_digest) {
        return failure(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN");
    }
    if get {
        state.manifest_gets.fetch_add(1, Relaxed);
    }
    let headers = headers(StatusCode::OK, MANIFEST_TYPE, manifest.len() as u64)
        .header("Docker-Content-Digest", manifest_digest.to_string());
    respond(headers, manifest.clone())
}

fn blob(state: &Arc<State>, digest: &Digest, asked: &HeaderMap, get: bool) -> Reply {
    let Some(blob) = state.image.blob(digest) else {
        return failure(StatusCode::NOT_FOUND, "BLOB_UNKNOWN");
    };
    let size = blob.size();
    let span = asked
        .get(RANGE)
        .and_then(|value| span(value.to_str().ok()?));
    let Ok(range) = span.unwrap_or(Span::Whole).resolve(size) else {
        return failure(StatusCode::RANGE_NOT_SATISFIABLE, "RANGE_INVALID");
    };
    let status = match span {
        Some(_) => StatusCode::PARTIAL_CONTENT,
        None => StatusCode::OK,
    };
    let length = range.end - range.start;
    let mut headers = headers(status, "application/octet-stream", length)
        .header("Docker-Content-Digest", digest.to_string())
        .header(ACCEPT_RANGES, "bytes");
    if span.is_some() {
        let last = range.end.saturating_sub(1);
        headers = headers.header(
            CONTENT_RANGE,
            format!("bytes {}-{last}/{size}", range.start),
        );
    }
    if !get {
        return respond(headers, Bytes::new());
    }
    state.blob_gets.fetch_add(1, Relaxed);
    let body = BlobBody::new(state, blob.clone(), range);
    headers
        .body(Either::Right(body))
        .expect("the headers are valid")
}

/// One range of a Range header; `None`, and so the whole blob, for anything else (RFC 9110,
/// section 14.2).
fn span(header: &str) -> Option<Span> {
    let (first, last) = header.strip_prefix("bytes=")?.split_once('-')?;
    match (first, last) {
        ("", last) => Some(Span::Last(last.parse().ok()?)),
        (first, "") => Some(Span::From(first.parse().ok()?, None)),
        (first, last) => Some(Span::From(first.parse().ok()?, Some(last.parse().ok()?))),
    }
}

fn headers(status: StatusCode, media_type: &str, length: u64) -> hyper::http::response::Builder {
    Response::builder()
        .status(status)
        .header(CONTENT_TYPE, media_type)
        .header(CONTENT_LENGTH, length)
}

fn respond(headers: hyper::http::response::Builder, body: Bytes) -> Reply {
    headers
        .body(Either::Left(Full::new(body)))
        .expect("the headers are valid")
}

fn failure(status: StatusCode, code: &str) -> Reply {
    let body = json!({ "errors": [{ "code": code, "message": code, "detail": null }] }).to_string();
    respond(
        headers(status, "application/json", body.len() as u64),
        body.into(),
    )
}

/// A range of a blob on its way to a client, computed as it is sent.
struct BlobBody {
    blob: Blob,
    range: std::ops::Range<u64>,
    state: Arc<State>,
}

impl BlobBody {
    fn new(state: &Arc<State>, blob: Blob, range: std::ops::Range<u64>) -> Self {
        let now = state.streams.now.fetch_add(1, Relaxed) + 1;
        state.streams.peak.fetch_max(now, Relaxed);
        Self {
            blob,
            range,
            state: Arc::clone(state),
        }
    }
}

impl Drop for BlobBody {
    fn drop(&mut self) {
        self.state.streams.now.fetch_sub(1, Relaxed);
    }
}

impl Body for BlobBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let length = FRAME_BYTES.min(self.range.end - self.range.start);
        if length == 0 {
            return Poll::Ready(None);
        }
        let bytes = self.blob.read(self.range.start, length as usize);
        self.range.start += length;
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.range.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.range.end - self.range.start)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http_body_util::BodyExt;
    use serde_json::Value;
    use shoal_node::{clock, config::ByteSize};

    use super::*;

    const FAST: ByteRate = ByteRate(1 << 40);

    async fn registry(rate: ByteRate) -> (Arc<Image>, Registry) {
        let image = Arc::new(Image::generate(ByteSize(2 << 20), 1));
        let registry = Registry::start(Arc::clone(&image), rate).await.unwrap();
        (image, registry)
    }

    async fn ask(
        registry: &Registry,
        method: &str,
        path: &str,
        range: Option<&str>,
    ) -> (StatusCode, HeaderMap, Bytes) {
        let socket = TcpStream::connect(registry.address()).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(socket))
            .await
            .unwrap();
        tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path);
        if let Some(range) = range {
            request = request.header(RANGE, range);
        }
        let reply = sender
            .send_request(request.body(Full::<Bytes>::default()).unwrap())
            .await
            .unwrap();
        let (head, body) = reply.into_parts();
        (
            head.status,
            head.headers,
            body.collect().await.unwrap().to_bytes(),
        )
    }

    /// The digest and size of the largest layer.
    fn large(image: &Image) -> (String, u64) {
        let manifest: Value = serde_json::from_slice(&image.manifest).unwrap();
        let layer = &manifest["layers"][0];
        (
            layer["digest"].as_str().unwrap().to_owned(),
            layer["size"].as_u64().unwrap(),
        )
    }

    #[tokio::test]
    async fn the_manifest_is_found_by_tag_and_by_digest() {
        let (image, registry) = registry(FAST).await;
        for selector in [TAG.to_owned(), image.manifest_digest.to_string()] {
            let path = format!("/v2/demo/gpu/manifests/{selector}");
            let (status, headers, body) = ask(&registry, "GET", &path, None).await;
            assert_eq!((status, body), (StatusCode::OK, image.manifest.clone()));
            assert_eq!(headers[CONTENT_TYPE], MANIFEST_TYPE);
            let (status, headers, body) = ask(&registry, "HEAD", &path, None).await;
            assert_eq!((status, body.len()), (StatusCode::OK, 0));
            assert_eq!(headers[CONTENT_LENGTH], image.manifest.len().to_string());
        }
        assert_eq!(registry.served().manifest_gets, 2);
        for path in [
            "/v2/demo/gpu/manifests/other",
            "/v2/other/manifests/latest",
            "/",
        ] {
            assert_eq!(
                ask(&registry, "GET", path, None).await.0,
                StatusCode::NOT_FOUND
            );
        }
    }

    #[tokio::test]
    async fn blobs_are_served_whole_and_in_ranges() {
        let (image, registry) = registry(FAST).await;
        let (digest, size) = large(&image);
        let path = format!("/v2/demo/gpu/blobs/{digest}");
        let (status, _, whole) = ask(&registry, "GET", &path, None).await;
        assert_eq!((status, whole.len() as u64), (StatusCode::OK, size));
        for (range, expected) in [
            ("bytes=500-1499", 500..1500),
            ("bytes=700000-", 700_000..size as usize),
            ("bytes=-10", size as usize - 10..size as usize),
        ] {
            let (status, headers, body) = ask(&registry, "GET", &path, Some(range)).await;
            assert_eq!(status, StatusCode::PARTIAL_CONTENT, "{range}");
            let shown = format!("bytes {}-{}/{size}", expected.start, expected.end - 1);
            assert_eq!(headers[CONTENT_RANGE], shown);
            assert_eq!(body, whole.slice(expected));
        }
        let (status, ..) = ask(&registry, "GET", &path, Some("bytes=99999999-")).await;
        assert_eq!(status, StatusCode::RANGE_NOT_SATISFIABLE);
        assert_eq!(registry.served().blob_gets, 4);
    }

    #[tokio::test]
    async fn all_connections_share_one_rate_and_every_byte_is_counted() {
        let (image, registry) = registry(ByteRate(4_000_000)).await;
        let (digest, size) = large(&image);
        let path = format!("/v2/demo/gpu/blobs/{digest}");
        let start = clock::instant();
        let (first, second) = tokio::join!(
            ask(&registry, "GET", &path, None),
            ask(&registry, "GET", &path, None)
        );
        let elapsed = start.elapsed();
        assert_eq!(first.2, second.2);
        let served = registry.served();
        assert!(
            (2 * size..2 * size + 2000).contains(&served.bytes),
            "{served:?}"
        );
        assert_eq!(served.streams_peak, 2);
        let due = Duration::from_secs_f64(2.0 * size as f64 / 4e6);
        assert!(
            elapsed + Duration::from_millis(40) > due,
            "{elapsed:?} for {due:?}"
        );
    }
}
