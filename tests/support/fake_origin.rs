//! An origin that misbehaves on request: a small registry inside the test process.
//!
//! It serves an image, or one in each of several repositories, on an address of the loopback; blob bytes are generated as they are sent,
//! so that images of any size need no memory. What it does wrong is a [`Faults`].

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::ops::Range;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use hyper::body::{Body, Frame, SizeHint};
use hyper::header::{
    ACCEPT_RANGES, AUTHORIZATION, CONTENT_RANGE, CONTENT_TYPE, HeaderName, HeaderValue, LOCATION,
    RANGE, RETRY_AFTER, WWW_AUTHENTICATE,
};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::time::sleep_until;

use super::access::{Access, AccessLog};
use super::image::{Blob, Content, Image};
use super::place::Place;
use super::{ORIGIN_PORT, REPOSITORY, TAG, clock};

/// Bytes of one frame of a body.
const FRAME: usize = 128 * 1024;

/// What the origin does wrong.
#[derive(Clone, Debug, Default)]
pub(crate) struct Faults {
    /// Answers every GET of a blob whole, with 200, whatever range it asks for.
    pub(crate) no_ranges: bool,
    /// Answers requests for blobs with 429 and `Retry-After: 1` for so long after the first.
    pub(crate) busy: Option<Duration>,
    /// Breaks this many bodies of blobs off in the middle.
    pub(crate) cuts: usize,
    /// Sends bodies no faster than this many bytes per second, all together.
    pub(crate) bytes_per_second: Option<u64>,
    /// Redirects requests for blobs to URLs that end after so long, and bodies with them.
    pub(crate) presigned: Option<Duration>,
    /// Answers so many requests for manifests, HEAD as GET, and the others with 429; says each time how
    /// many are left, as Docker Hub does.
    pub(crate) manifests_max: Option<usize>,
    /// Wants a token for each repository, from a realm of its own that has one user, [`LOGIN`]; the tokens
    /// live for so long.
    pub(crate) token_lifetime: Option<Duration>,
}

/// The name and password of an origin's one user, as HTTP's Basic scheme has them.
pub(crate) const LOGIN: &str = "cHVsbGVyOnMzY3JldA==";

/// The origin. Dropping it closes its port and every connection.
pub(crate) struct FakeOrigin {
    address: SocketAddr,
    runtime: Option<Runtime>,
    shared: Arc<Shared>,
}

struct Shared {
    address: SocketAddr,
    /// Repositories, with what is in each under [`TAG`].
    images: Vec<(String, Image)>,
    faults: Faults,
    /// When the first blob was asked for.
    first_blob: OnceLock<Instant>,
    cuts_left: AtomicUsize,
    /// From when the lives of presigned URLs count.
    started: Instant,
    /// Bodies that broke off because their URL had ended.
    ended: AtomicUsize,
    manifests_left: AtomicUsize,
    /// Tokens that were given: the scopes, and the end of each.
    tokens: Mutex<HashMap<String, (Vec<String>, Instant)>>,
    /// When the next frame may leave, where the rate is limited.
    next_frame: Mutex<Option<Instant>>,
    log: Mutex<Vec<Entry>>,
}

/// A request, and the bytes written for it so far.
struct Entry {
    access: Access,
    written: Arc<AtomicU64>,
}

impl FakeOrigin {
    /// Serves `image` with these faults.
    pub(crate) fn serving(image: &Image, faults: Faults) -> Self {
        Self::serving_all(vec![(REPOSITORY.to_owned(), image.clone())], faults)
    }

    /// Serves an image in each of these repositories.
    pub(crate) fn serving_all(images: Vec<(String, Image)>, faults: Faults) -> Self {
        let address = SocketAddr::new(Place::loopback().address.into(), ORIGIN_PORT);
        let shared = Arc::new(Shared {
            address,
            images,
            first_blob: OnceLock::new(),
            cuts_left: faults.cuts.into(),
            started: clock::now(),
            ended: AtomicUsize::new(0),
            manifests_left: faults.manifests_max.unwrap_or_default().into(),
            tokens: Mutex::default(),
            faults,
            next_frame: Mutex::new(None),
            log: Mutex::new(Vec::new()),
        });
        let mut origin = Self {
            address,
            runtime: None,
            shared,
        };
        origin.start();
        origin
    }

    /// Comes back after [`stop`](Self::stop), at its old address.
    pub(crate) fn start(&mut self) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime can be built");
        let listener = runtime
            .block_on(TcpListener::bind(self.address))
            .expect("the port is free");
        runtime.spawn(accept(listener, Arc::clone(&self.shared)));
        self.runtime = Some(runtime);
    }

    /// The URL that a node is given for the upstream.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How many bodies broke off because their presigned URL had ended.
    pub(crate) fn ended(&self) -> usize {
        self.shared.ended.load(Ordering::Relaxed)
    }

    /// Goes away: from now on the port refuses connections. The log stays.
    pub(crate) fn stop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }
}

impl AccessLog for FakeOrigin {
    fn log(&self) -> Vec<Access> {
        let log = self.shared.log.lock().expect("nobody panicked");
        let with_bytes = |entry: &Entry| Access {
            bytes: entry.written.load(Ordering::Relaxed),
            ..entry.access.clone()
        };
        log.iter().map(with_bytes).collect()
    }
}

impl Drop for FakeOrigin {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let Ok((connection, _)) = listener.accept().await else {
            continue;
        };
        let shared = Arc::clone(&shared);
        let answer = service_fn(move |request| {
            let answer = shared.answer(&request);
            async move { Ok::<_, Infallible>(answer) }
        });
        tokio::spawn(async move {
            let server = hyper::server::conn::http1::Builder::new();
            // A client that leaves is part of the tests.
            let _ = server
                .serve_connection(TokioIo::new(connection), answer)
                .await;
        });
    }
}

impl Shared {
    fn answer(self: &Arc<Self>, request: &Request<hyper::body::Incoming>) -> Response<Reply> {
        let path = request.uri().path();
        let range = request
            .headers()
            .get(RANGE)
            .and_then(|value| value.to_str().ok());
        let written = Arc::new(AtomicU64::new(0));
        let header = request.headers().get(AUTHORIZATION);
        let authorization = header.and_then(|value| value.to_str().ok());
        let response = if path == "/token" {
            self.token(request.uri().query().unwrap_or_default(), authorization)
        } else if let Some(scope) = self.scope_wanted(path, authorization) {
            self.challenge(&scope)
        } else {
            self.route(request.method(), path, range, &written)
        };
        let access = Access {
            method: request.method().to_string(),
            path: path.to_owned(),
            status: response.status().as_u16(),
            bytes: 0,
            range: range.map(str::to_owned),
            at: Some(clock::now()),
        };
        let entry = Entry { access, written };
        self.log.lock().expect("nobody panicked").push(entry);
        response
    }

    fn route(
        self: &Arc<Self>,
        method: &Method,
        path: &str,
        range: Option<&str>,
        written: &Arc<AtomicU64>,
    ) -> Response<Reply> {
        if matches!(path, "/v2/" | "/v2") {
            return reply(StatusCode::OK, &[], Reply::text("{}"));
        }
        if let Some(signed) = path.strip_prefix("/store/") {
            return self.signed_blob(method, signed, range, written);
        }
        let found = self.images.iter().find_map(|(repository, image)| {
            let rest = path.strip_prefix(&format!("/v2/{repository}/"))?;
            Some((image, rest))
        });
        let Some((image, rest)) = found else {
            return reply(StatusCode::NOT_FOUND, &[], Reply::text(r#"{"errors":[]}"#));
        };
        let manifest = &image.manifest;
        if let Some(name) = rest.strip_prefix("manifests/")
            && (name == TAG || name == manifest.digest)
        {
            let headers = [
                (CONTENT_TYPE, Image::media_type()),
                (
                    HeaderName::from_static("docker-content-digest"),
                    &manifest.digest,
                ),
            ];
            let within = self.faults.manifests_max.is_none() || take_one(&self.manifests_left);
            let mut response = if within {
                let body = self.body(method, manifest, 0..manifest.size(), false, None, written);
                reply(StatusCode::OK, &headers, body)
            } else {
                let body = Reply::text(r#"{"errors":[{"code":"TOOMANYREQUESTS"}]}"#);
                reply(StatusCode::TOO_MANY_REQUESTS, &[(RETRY_AFTER, "1")], body)
            };
            if let Some(max) = self.faults.manifests_max {
                let left = self.manifests_left.load(Ordering::Relaxed);
                for (name, count) in [("ratelimit-limit", max), ("ratelimit-remaining", left)] {
                    let value = format!("{count};w=21600").parse();
                    let value = value.expect("numbers are values");
                    response.headers_mut().insert(name, value);
                }
            }
            return response;
        }
        let named = |blob: &&Blob| rest.strip_prefix("blobs/") == Some(&blob.digest);
        match image.blobs.iter().find(named) {
            Some(blob) if self.faults.presigned.is_some() => {
                let life = self.faults.presigned.unwrap_or_default();
                let end = self.started.elapsed() + life;
                let location = format!("/store/{}/blobs/{}", end.as_millis(), blob.digest);
                let headers = [(LOCATION, location.as_str())];
                reply(StatusCode::TEMPORARY_REDIRECT, &headers, Reply::text(""))
            }
            None => reply(StatusCode::NOT_FOUND, &[], Reply::text(r#"{"errors":[]}"#)),
            Some(_) if self.is_busy() => {
                let body = Reply::text(r#"{"errors":[{"code":"TOOMANYREQUESTS"}]}"#);
                reply(StatusCode::TOO_MANY_REQUESTS, &[(RETRY_AFTER, "1")], body)
            }
            Some(blob) => self.blob(method, blob, range, None, written),
        }
    }

    /// What a store gives for a presigned URL: when it ends, and the blob.
    fn signed_blob(
        self: &Arc<Self>,
        method: &Method,
        signed: &str,
        range: Option<&str>,
        written: &Arc<AtomicU64>,
    ) -> Response<Reply> {
        let found = signed.split_once("/blobs/").and_then(|(end, digest)| {
            let end = self.started + Duration::from_millis(end.parse().ok()?);
            let mut blobs = self.images.iter().flat_map(|(_, image)| &image.blobs);
            let blob = blobs.find(|blob| blob.digest == digest)?;
            Some((end, blob))
        });
        match found {
            Some((end, blob)) if clock::now() < end => {
                self.blob(method, blob, range, Some(end), written)
            }
            _ => reply(
                StatusCode::FORBIDDEN,
                &[],
                Reply::text("Request has expired"),
            ),
        }
    }

    /// What the realm gives, by a question's query and who asks.
    fn token(&self, query: &str, authorization: Option<&str>) -> Response<Reply> {
        let Some(lifetime) = self.faults.token_lifetime else {
            return reply(StatusCode::NOT_FOUND, &[], Reply::text(""));
        };
        if authorization != Some(&format!("Basic {LOGIN}")) {
            return reply(StatusCode::UNAUTHORIZED, &[], Reply::text(""));
        }
        let fields = url::form_urlencoded::parse(query.as_bytes());
        let scopes = fields.filter(|(name, _)| name == "scope");
        let scopes = scopes.map(|(_, scope)| scope.into_owned()).collect();
        let mut tokens = self.tokens.lock().expect("nobody panicked");
        let token = format!("token-{}", tokens.len());
        let end = clock::now() + lifetime;
        tokens.insert(token.clone(), (scopes, end));
        let seconds = lifetime.as_secs();
        let body = format!(r#"{{"token":"{token}","expires_in":{seconds}}}"#);
        reply(StatusCode::OK, &[], Reply::text(body))
    }

    /// The scope that a token is wanted for and that this header does not show.
    fn scope_wanted(&self, path: &str, authorization: Option<&str>) -> Option<String> {
        self.faults.token_lifetime?;
        let path = path.strip_prefix("/v2/")?;
        let mut ends = ["/manifests/", "/blobs/"].into_iter();
        let end = ends.find_map(|part| path.find(part))?;
        let scope = format!("repository:{}:pull", &path[..end]);
        let token = authorization.and_then(|header| header.strip_prefix("Bearer "));
        let tokens = self.tokens.lock().expect("nobody panicked");
        let shown = token.and_then(|token| tokens.get(token));
        let good =
            |(scopes, end): &(Vec<String>, Instant)| scopes.contains(&scope) && clock::now() < *end;
        (!shown.is_some_and(good)).then_some(scope)
    }

    fn challenge(&self, scope: &str) -> Response<Reply> {
        let realm = format!("http://{}/token", self.address);
        let challenge = format!(r#"Bearer realm="{realm}",service="tests",scope="{scope}""#);
        let headers = [(WWW_AUTHENTICATE, challenge.as_str())];
        let body = Reply::text(r#"{"errors":[{"code":"UNAUTHORIZED"}]}"#);
        reply(StatusCode::UNAUTHORIZED, &headers, body)
    }

    fn blob(
        self: &Arc<Self>,
        method: &Method,
        blob: &Blob,
        range: Option<&str>,
        until: Option<Instant>,
        written: &Arc<AtomicU64>,
    ) -> Response<Reply> {
        let size = blob.size();
        let octets = (CONTENT_TYPE, "application/octet-stream");
        let cut = method == Method::GET && size > 0 && take_one(&self.cuts_left);
        let wanted = range
            .filter(|_| !self.faults.no_ranges)
            .and_then(|text| parse(text, size));
        match wanted {
            None => {
                let body = self.body(method, blob, 0..size, cut, until, written);
                let accept = if self.faults.no_ranges {
                    "none"
                } else {
                    "bytes"
                };
                reply(StatusCode::OK, &[octets, (ACCEPT_RANGES, accept)], body)
            }
            Some((from, to)) if from < to => {
                let range = format!("bytes {from}-{}/{size}", to - 1);
                let body = self.body(method, blob, from..to, cut, until, written);
                reply(
                    StatusCode::PARTIAL_CONTENT,
                    &[octets, (CONTENT_RANGE, &range)],
                    body,
                )
            }
            Some(_) => {
                let range = format!("bytes */{size}");
                let headers = [(CONTENT_RANGE, range.as_str())];
                reply(StatusCode::RANGE_NOT_SATISFIABLE, &headers, Reply::text(""))
            }
        }
    }

    fn body(
        self: &Arc<Self>,
        method: &Method,
        blob: &Blob,
        Range {
            start: from,
            end: to,
        }: Range<u64>,
        cut: bool,
        until: Option<Instant>,
        written: &Arc<AtomicU64>,
    ) -> Reply {
        let frames = if method == Method::HEAD {
            stream::empty().boxed()
        } else {
            let end = if cut { from + (to - from) / 2 } else { to };
            let content = blob.content.clone();
            self.frames(content, from..end, cut, until, Arc::clone(written))
        };
        Reply {
            length: to - from,
            frames,
        }
    }

    /// The bytes of a body, paced and counted; where it is `cut`, an error follows them, on which
    /// the server breaks the connection. So it is for what has not left by `until`.
    fn frames(
        self: &Arc<Self>,
        content: Content,
        Range { start, end }: Range<u64>,
        cut: bool,
        until: Option<Instant>,
        written: Arc<AtomicU64>,
    ) -> BoxStream<'static, Result<Bytes, std::io::Error>> {
        let shared = Arc::clone(self);
        let bytes = stream::unfold(start, move |offset| {
            let (shared, content, written) =
                (Arc::clone(&shared), content.clone(), Arc::clone(&written));
            async move {
                if offset >= end {
                    return None;
                }
                if until.is_some_and(|until| clock::now() >= until) {
                    shared.ended.fetch_add(1, Ordering::Relaxed);
                    return Some((Err(std::io::Error::other("the URL has ended")), end));
                }
                let frame = content.read(offset, FRAME.min((end - offset) as usize));
                let length = frame.len() as u64;
                shared.pace(length).await;
                written.fetch_add(length, Ordering::Relaxed);
                Some((Ok(Bytes::from(frame)), offset + length))
            }
        });
        let broken = std::io::Error::other("cut, as the test wants it");
        bytes
            .chain(stream::iter(cut.then_some(Err(broken))))
            .boxed()
    }

    fn is_busy(&self) -> bool {
        let first = self.first_blob.get_or_init(clock::now);
        self.faults.busy.is_some_and(|busy| first.elapsed() < busy)
    }

    async fn pace(&self, bytes: u64) {
        let Some(rate) = self.faults.bytes_per_second else {
            return;
        };
        let leaves = {
            let mut next = self.next_frame.lock().expect("nobody panicked");
            let leaves = next.unwrap_or_else(clock::now).max(clock::now());
            *next = Some(leaves + Duration::from_secs_f64(bytes as f64 / rate as f64));
            leaves
        };
        sleep_until(leaves.into()).await;
    }
}

/// Takes one of the faults that are left, if any is.
fn take_one(left: &AtomicUsize) -> bool {
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
        count.checked_sub(1)
    })
    .is_ok()
}

/// `bytes=a-b`, `bytes=a-` or `bytes=-n` as a half-open range, clamped to `size`.
fn parse(range: &str, size: u64) -> Option<(u64, u64)> {
    let (from, to) = range.strip_prefix("bytes=")?.split_once('-')?;
    if from.is_empty() {
        return Some((size.saturating_sub(to.parse().ok()?), size));
    }
    let end = if to.is_empty() {
        size
    } else {
        to.parse::<u64>().ok()?.saturating_add(1)
    };
    Some((from.parse().ok()?, end.min(size)))
}

fn reply(status: StatusCode, headers: &[(HeaderName, &str)], body: Reply) -> Response<Reply> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    for (name, value) in headers {
        let value = HeaderValue::from_str(value).expect("the test wrote it");
        response.headers_mut().insert(name, value);
    }
    response
}

/// A body of known length: hyper sends `Content-Length`, for HEAD too, and breaks the connection
/// on an error.
struct Reply {
    length: u64,
    frames: BoxStream<'static, Result<Bytes, std::io::Error>>,
}

impl Reply {
    fn text(text: impl Into<Bytes>) -> Self {
        let text = text.into();
        Self {
            length: text.len() as u64,
            frames: stream::iter((!text.is_empty()).then_some(Ok(text))).boxed(),
        }
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        self.frames
            .poll_next_unpin(context)
            .map(|frame| frame.map(|bytes| bytes.map(Frame::data)))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::support::client;

    fn image() -> Image {
        Image::generate(901, &[3_000_000, 1024])
    }

    #[test]
    fn an_honest_origin_is_read_once_by_a_direct_pull() {
        let (image, place) = (image(), Place::loopback());
        let origin = FakeOrigin::serving(&image, Faults::default());
        client::pull(&place, &origin.url(), &image).expect("it serves");
        assert!((origin.copies(&image) - 1.0).abs() < 1e-9);
        assert_eq!(origin.manifest_gets(), 1);
        let digest = &image.blobs[1].digest;
        let part = client::blob(&place, &origin.url(), digest)
            .range("-10")
            .finish()
            .unwrap();
        assert_eq!((part.status, part.bytes), (206, 10));
        assert!(
            origin
                .log()
                .iter()
                .any(|access| access.range.as_deref() == Some("bytes=-10"))
        );
        let beyond = client::blob(&place, &origin.url(), digest)
            .range("9999999-")
            .finish();
        assert_eq!(beyond.unwrap().status, 416);
    }

    #[test]
    fn every_fault_shows_itself_to_a_client() {
        let (image, place) = (image(), Place::loopback());
        let digest = &image.blobs[1].digest;
        let faults = Faults {
            no_ranges: true,
            busy: Some(Duration::from_millis(300)),
            cuts: 1,
            ..Faults::default()
        };
        let mut origin = FakeOrigin::serving(&image, faults);
        let get = || {
            client::blob(&place, &origin.url(), digest)
                .range("0-9")
                .finish()
        };
        assert_eq!(get().unwrap().status, 429);
        std::thread::sleep(Duration::from_millis(300));
        assert!(
            get().unwrap_err().contains("1500160 bytes"),
            "half of the body, then the end"
        );
        assert_eq!(
            get().unwrap().bytes,
            3_000_320,
            "the whole, whatever the range"
        );
        origin.stop();
        let get = client::blob(&place, &origin.url(), digest).finish();
        assert!(get.is_err(), "a stopped origin refuses");
    }

    #[test]
    fn the_rate_limit_is_shared_by_all_requests() {
        let (image, place) = (image(), Place::loopback());
        let faults = Faults {
            bytes_per_second: Some(6_000_000),
            ..Faults::default()
        };
        let origin = FakeOrigin::serving(&image, faults);
        let digest = &image.blobs[1].digest;
        let read = |place: &Place| {
            client::check_blob(place, &origin.url(), digest)
                .unwrap()
                .took
        };
        let longest = client::all_at_once(&[place.clone(), place], read)
            .into_iter()
            .max()
            .unwrap();
        assert!(
            (0.9..1.3).contains(&longest.as_secs_f64()),
            "6 MB at 6 MB/s took {longest:?}"
        );
    }
}
