//! What stands between the nodes and their origin: it passes everything on, until a test has it do
//! something else.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::ServerConfig;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;

use super::ORIGIN_PORT;
use super::place::Place;

/// A connection that is not taken within this finds the queue of a silent port full.
const QUEUE_TIMEOUT: Duration = Duration::from_millis(300);

/// What it does with connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Conduct {
    /// Passes them on.
    Passes,
    /// Refuses them: nothing listens.
    Refuses,
    /// Drops their packets: the queue of a socket that nobody accepts from is full.
    Drops,
    /// Answers with bytes that belong to no protocol.
    Babbles,
    /// Answers each request with this status and an HTML page.
    Page(u16),
    /// Shows a certificate that nobody vouches for, where it speaks TLS.
    Untrusted,
    /// Shows one that is out of date.
    Expired,
}

/// It, in front of one origin. Dropping it closes its port and every connection.
pub(crate) struct Middlebox {
    address: SocketAddr,
    backend: String,
    tls: Option<Certificates>,
    runtime: Option<Runtime>,
}

struct Certificates {
    directory: TempDir,
    good: Arc<ServerConfig>,
    untrusted: Arc<ServerConfig>,
    expired: Arc<ServerConfig>,
}

impl Middlebox {
    /// One in front of the origin at `backend`, `host:port`, that speaks plain HTTP.
    pub(crate) fn plain(backend: &str) -> Self {
        Self::start(backend, |_| None)
    }

    /// One that speaks TLS with the nodes.
    pub(crate) fn tls(backend: &str) -> Self {
        Self::start(backend, |host| Some(Certificates::new(host)))
    }

    fn start(backend: &str, tls: impl FnOnce(&str) -> Option<Certificates>) -> Self {
        let place = Place::loopback();
        let mut middlebox = Self {
            address: SocketAddr::new(place.address.into(), ORIGIN_PORT),
            backend: backend.to_owned(),
            tls: tls(&place.address.to_string()),
            runtime: None,
        };
        middlebox.begin(Conduct::Passes);
        middlebox
    }

    /// The URL that nodes are given for the upstream.
    pub(crate) fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// Where it listens, at the usual port.
    pub(crate) fn address(&self) -> IpAddr {
        self.address.ip()
    }

    /// The file with the authority that nodes are to trust, where it speaks TLS.
    pub(crate) fn authority(&self) -> Option<PathBuf> {
        let tls = self.tls.as_ref()?;
        Some(tls.directory.path().join("ca.pem"))
    }

    /// Closes all connections, and does this with new ones.
    pub(crate) fn begin(&mut self, conduct: Conduct) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
        if conduct == Conduct::Refuses {
            return;
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime can be built");
        let acceptor = self.tls.as_ref().map(|tls| {
            TlsAcceptor::from(Arc::clone(match conduct {
                Conduct::Untrusted => &tls.untrusted,
                Conduct::Expired => &tls.expired,
                Conduct::Passes
                | Conduct::Refuses
                | Conduct::Drops
                | Conduct::Babbles
                | Conduct::Page(_) => &tls.good,
            }))
        });
        let listener = {
            let _runtime = runtime.enter();
            listen(self.address)
        };
        if conduct == Conduct::Drops {
            let fillers = runtime.block_on(fill(self.address));
            runtime.spawn(async move {
                std::future::pending::<()>().await;
                drop((listener, fillers));
            });
        } else {
            let backend = self.backend.clone();
            runtime.spawn(accept(listener, conduct, acceptor, backend));
        }
        self.runtime = Some(runtime);
    }
}

impl Drop for Middlebox {
    fn drop(&mut self) {
        self.begin(Conduct::Refuses);
    }
}

fn listen(address: SocketAddr) -> TcpListener {
    let socket = TcpSocket::new_v4().expect("sockets can be made");
    socket.set_reuseaddr(true).expect("it can be set");
    socket.bind(address).expect("the port is free");
    socket.listen(8).expect("it can listen")
}

/// Connections that take up the queue of a port from which nobody accepts.
async fn fill(address: SocketAddr) -> Vec<TcpStream> {
    let mut fillers = Vec::new();
    while let Ok(connected) = tokio::time::timeout(QUEUE_TIMEOUT, TcpStream::connect(address)).await
    {
        fillers.push(connected.expect("the port listens"));
        assert!(fillers.len() < 100, "a queue of 8 does not fill");
    }
    fillers
}

async fn accept(
    listener: TcpListener,
    conduct: Conduct,
    acceptor: Option<TlsAcceptor>,
    backend: String,
) {
    while let Ok((stream, _)) = listener.accept().await {
        let (acceptor, backend) = (acceptor.clone(), backend.clone());
        tokio::spawn(async move {
            // Nodes that leave, or do not trust it, are part of the tests.
            match acceptor {
                Some(acceptor) if conduct != Conduct::Babbles => {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        behave(stream, conduct, &backend).await;
                    }
                }
                Some(_) | None => behave(stream, conduct, &backend).await,
            }
        });
    }
}

async fn behave<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, conduct: Conduct, backend: &str) {
    match conduct {
        Conduct::Babbles => {
            let _ = stream.write_all(b"\x00\x01 220 nothing of use\r\n").await;
            let _ = stream.shutdown().await;
        }
        Conduct::Page(status) => {
            let mut request = vec![0; 16 << 10];
            while stream.read(&mut request).await.is_ok_and(|read| read > 0) {
                let page = "<!doctype html><title>Log in</title><p>Log in to use this network.";
                let head = request.starts_with(b"HEAD");
                let answer = format!(
                    "HTTP/1.1 {status} Page\r\nContent-Type: text/html; charset=utf-8\r\n\
                     Content-Length: {}\r\n\r\n{}",
                    page.len(),
                    if head { "" } else { page },
                );
                if stream.write_all(answer.as_bytes()).await.is_err() {
                    break;
                }
            }
        }
        Conduct::Passes | Conduct::Untrusted | Conduct::Expired => {
            if let Ok(mut origin) = TcpStream::connect(backend).await {
                let _ = copy_bidirectional(&mut stream, &mut origin).await;
            }
        }
        Conduct::Refuses | Conduct::Drops => unreachable!("nothing is accepted then"),
    }
}

impl Certificates {
    fn new(host: &str) -> Self {
        let key = KeyPair::generate().expect("keys can be made");
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = authority.self_signed(&key).expect("it signs itself");
        let issuer = Issuer::from_params(&authority, &key);
        let directory = TempDir::new().expect("temporary directories can be made");
        std::fs::write(directory.path().join("ca.pem"), certificate.pem()).expect("it is writable");

        let names = CertificateParams::new(vec![host.to_owned()]).expect("it is an address");
        let mut old = names.clone();
        old.not_before = date_time_ymd(2001, 1, 1);
        old.not_after = date_time_ymd(2002, 1, 1);
        let key = || KeyPair::generate().expect("keys can be made");
        let signed = |names: &CertificateParams| {
            let key = key();
            let certificate = names.signed_by(&key, &issuer).expect("the authority signs");
            server(&certificate, &key)
        };
        let own = key();
        let untrusted = names.self_signed(&own).expect("it signs itself");
        Self {
            directory,
            good: signed(&names),
            expired: signed(&old),
            untrusted: server(&untrusted, &own),
        }
    }
}

fn server(certificate: &rcgen::Certificate, key: &KeyPair) -> Arc<ServerConfig> {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let config = ServerConfig::builder_with_provider(provider.into())
        .with_safe_default_protocol_versions()
        .expect("the provider has them")
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            key.serialize_der().try_into().expect("it is a key"),
        );
    Arc::new(config.expect("key and certificate fit"))
}
