//! A registry in memory, for tests: it answers as each test says, and writes down what it is
//! asked.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt, stream};
use futures_rustls::{TlsAcceptor, rustls::ServerConfig};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    HeaderMap, Request, Response, StatusCode,
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use sha2::{Digest as _, Sha256};
use shoal_protocol::digest::Digest;
use tokio::net::TcpListener;
use tokio_util::compat::{FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};

pub(super) type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// One request that was received.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) method: String,
    /// Path and query.
    pub(super) target: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Seen {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// A server on loopback that ends with its test's runtime.
pub(super) struct Fake {
    pub(super) address: SocketAddr,
    scheme: &'static str,
    seen: Arc<Mutex<Vec<Seen>>>,
    accepted: Arc<AtomicUsize>,
}

/// Certificates for a server on 127.0.0.1.
pub(super) struct Authority {
    pub(super) server: Arc<ServerConfig>,
    directory: tempfile::TempDir,
}

impl Fake {
    /// A server that answers with `answer`, which is given its own base URL too.
    pub(super) async fn start<F>(answer: F) -> Self
    where
        F: Fn(&Seen, &str) -> Response<Body> + Send + Sync + 'static,
    {
        Self::listen(answer, None).await
    }

    /// The same over TLS.
    pub(super) async fn start_tls<F>(answer: F, authority: &Authority) -> Self
    where
        F: Fn(&Seen, &str) -> Response<Body> + Send + Sync + 'static,
    {
        let acceptor = TlsAcceptor::from(Arc::clone(&authority.server));
        Self::listen(answer, Some(acceptor)).await
    }

    async fn listen<F>(answer: F, tls: Option<TlsAcceptor>) -> Self
    where
        F: Fn(&Seen, &str) -> Response<Body> + Send + Sync + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let fake = Self {
            address: listener.local_addr().unwrap(),
            scheme: if tls.is_some() { "https" } else { "http" },
            seen: Arc::default(),
            accepted: Arc::default(),
        };
        let base = fake.url();
        let (seen, accepted) = (Arc::clone(&fake.seen), Arc::clone(&fake.accepted));
        let answer = Arc::new(answer);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                accepted.fetch_add(1, Ordering::SeqCst);
                let (answer, seen, base) = (Arc::clone(&answer), Arc::clone(&seen), base.clone());
                let service = service_fn(move |request| {
                    let (answer, seen) = (Arc::clone(&answer), Arc::clone(&seen));
                    let base = base.clone();
                    async move {
                        let request = read(request).await;
                        seen.lock().unwrap().push(request.clone());
                        Ok::<_, Infallible>(answer(&request, &base))
                    }
                });
                let tls = tls.clone();
                tokio::spawn(async move {
                    let http = hyper::server::conn::http1::Builder::new();
                    // A client that goes away, or does not trust us, is what some tests are about.
                    if let Some(tls) = tls {
                        if let Ok(stream) = tls.accept(stream.compat()).await {
                            let io = TokioIo::new(stream.compat());
                            let _ = http.serve_connection(io, service).await;
                        }
                    } else {
                        let io = TokioIo::new(stream);
                        let _ = http.serve_connection(io, service).await;
                    }
                });
            }
        });
        fake
    }

    pub(super) fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// What was received so far.
    pub(super) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// How many requests had a target that begins so.
    pub(super) fn count(&self, prefix: &str) -> usize {
        let seen = self.seen();
        seen.iter().filter(|s| s.target.starts_with(prefix)).count()
    }

    /// How many connections were accepted.
    pub(super) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

async fn read(request: Request<Incoming>) -> Seen {
    let (parts, body) = request.into_parts();
    Seen {
        method: parts.method.to_string(),
        target: parts.uri.to_string(),
        headers: parts.headers,
        body: body.collect().await.unwrap().to_bytes(),
    }
}

impl Authority {
    /// An authority that signs a certificate for 127.0.0.1.
    pub(super) fn new() -> Self {
        let authority_key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::default();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority = parameters.self_signed(&authority_key).unwrap();
        let issuer = rcgen::Issuer::from_params(&parameters, &authority_key);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()])
            .unwrap()
            .signed_by(&key, &issuer)
            .unwrap();
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let server = ServerConfig::builder_with_provider(provider.into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                key.serialize_der().try_into().unwrap(),
            )
            .unwrap();
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("ca.pem"), authority.pem()).unwrap();
        Self {
            server: Arc::new(server),
            directory,
        }
    }

    /// The authority's certificate in PEM.
    pub(super) fn file(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }
}

pub(super) fn digest_of(bytes: &[u8]) -> Digest {
    Digest::sha256(Sha256::digest(bytes).into())
}

/// An answer with a body.
pub(super) fn answer(
    status: u16,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Response<Body> {
    let body = Full::new(body.into()).map_err(|never| match never {});
    with_headers(status, headers, body.boxed_unsync())
}

/// An answer that promises `promised` bytes and breaks off after `bytes`.
pub(super) fn cut(
    status: u16,
    headers: &[(&str, &str)],
    bytes: Bytes,
    promised: u64,
) -> Response<Body> {
    let end = async {
        // Lets the bytes reach the socket.
        tokio::time::sleep(Duration::from_millis(20)).await;
        Err(std::io::Error::other("cut"))
    };
    unfinished(status, headers, bytes, promised, end)
}

/// An answer that promises `promised` bytes and sends nothing after `bytes`.
pub(super) fn stall(bytes: Bytes, promised: u64) -> Response<Body> {
    unfinished(200, &[], bytes, promised, std::future::pending())
}

fn unfinished(
    status: u16,
    headers: &[(&str, &str)],
    bytes: Bytes,
    promised: u64,
    end: impl Future<Output = std::io::Result<Frame<Bytes>>> + Send + 'static,
) -> Response<Body> {
    let frames = stream::iter([Ok(Frame::data(bytes))]).chain(stream::once(end));
    let body = StreamBody::new(frames).boxed_unsync();
    let mut response = with_headers(status, headers, body);
    response
        .headers_mut()
        .insert("content-length", promised.into());
    response
}

fn with_headers(status: u16, headers: &[(&str, &str)], body: Body) -> Response<Body> {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response.body(body).unwrap()
}

/// Serves `blob` as a registry does, with ranges.
pub(super) fn serve_blob(seen: &Seen, blob: &Bytes) -> Response<Body> {
    let size = blob.len();
    let Some(range) = seen.header("range") else {
        return if seen.method == "HEAD" {
            answer(200, &[("content-length", &size.to_string())], "")
        } else {
            answer(200, &[], blob.clone())
        };
    };
    let (first, last) = range
        .strip_prefix("bytes=")
        .unwrap()
        .split_once('-')
        .unwrap();
    let first: usize = first.parse().unwrap();
    let end = last
        .parse()
        .map_or(size, |last: usize| (last + 1).min(size));
    if first >= size {
        return answer(416, &[("content-range", &format!("bytes */{size}"))], "");
    }
    answer(
        206,
        &[(
            "content-range",
            &format!("bytes {first}-{}/{size}", end - 1),
        )],
        blob.slice(first..end),
    )
}

/// The query of a request.
pub(super) fn query(seen: &Seen) -> BTreeMap<String, String> {
    let (_, query) = seen.target.split_once('?').unwrap_or_default();
    url::form_urlencoded::parse(query.as_bytes())
        .into_owned()
        .collect()
}

pub(super) fn status(code: u16) -> Response<Body> {
    let text = StatusCode::from_u16(code).unwrap().to_string();
    answer(code, &[("content-type", "text/plain")], text)
}
