use std::{future::ready, os::unix::fs::PermissionsExt as _, path::Path};

use hyper::StatusCode;
use reqwest::{Certificate, Client};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::*;
use crate::{config::MIRROR_CA_FILE, http};

/// A server with a certificate, and the one that renews it.
struct Served {
    address: SocketAddr,
    certificates: Certificates,
    _stop: DropGuard,
}

async fn serve(config: &MirrorTls, data_dir: &Path) -> Served {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let certificates = Certificates::open(config, data_dir, address).unwrap();
    let stop = CancellationToken::new();
    let answer = |_| ready(http::full(StatusCode::OK, "text/plain", "secret"));
    let tls = Some(certificates.acceptor().unwrap());
    tokio::spawn(http::serve(listener, tls, answer, stop.clone()));
    Served {
        address,
        certificates,
        _stop: stop.drop_guard(),
    }
}

impl Served {
    /// What a client that trusts this authority alone gets under this name.
    async fn get(&self, name: &str, authority: &[u8]) -> Result<String, reqwest::Error> {
        let client = Client::builder()
            .no_proxy()
            .tls_certs_only([Certificate::from_pem(authority).unwrap()])
            .resolve(name, self.address)
            .build()?;
        let url = format!("https://{name}:{}/", self.address.port());
        client.get(url).send().await?.text().await
    }
}

fn generated(names: &[&str]) -> MirrorTls {
    MirrorTls::Generated {
        names: names.iter().map(ToString::to_string).collect(),
    }
}

fn authority_of(data_dir: &Path) -> Vec<u8> {
    fs::read(data_dir.join(MIRROR_CA_FILE)).unwrap()
}

/// A certificate for localhost that signs itself, and its key, in two files.
fn write_own(directory: &Path) -> MirrorTls {
    let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (certificate, key) = (directory.join("own.pem"), directory.join("own.key"));
    fs::write(&certificate, own.cert.pem()).unwrap();
    fs::write(&key, own.signing_key.serialize_pem()).unwrap();
    MirrorTls::Files { certificate, key }
}

#[tokio::test]
async fn a_generated_certificate_is_for_localhost_and_the_given_names_and_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let served = serve(&generated(&["node-1.example"]), dir.path()).await;
    let authority = authority_of(dir.path());
    for name in ["localhost", "127.0.0.1", "node-1.example"] {
        let got = served.get(name, &authority).await;
        assert_eq!(got.unwrap(), "secret", "{name}");
    }
    assert!(served.get("elsewhere.example", &authority).await.is_err());
    let mode = |name: &str| {
        let permissions = fs::metadata(dir.path().join(name)).unwrap().permissions();
        permissions.mode() & 0o777
    };
    assert_eq!(mode("mirror-ca.key"), 0o600);
    assert_eq!(mode(MIRROR_CA_FILE) & 0o444, 0o444);
}

#[tokio::test]
async fn the_authority_stays_over_restarts_and_signs_for_its_own_names_only() {
    let dir = tempfile::tempdir().unwrap();
    serve(&generated(&[]), dir.path()).await;
    let first = authority_of(dir.path());
    let again = serve(&generated(&[]), dir.path()).await;
    assert_eq!(authority_of(dir.path()), first);
    assert!(again.get("localhost", &first).await.is_ok());

    let named = serve(&generated(&["node-1.example"]), dir.path()).await;
    let second = authority_of(dir.path());
    assert_ne!(second, first);
    assert!(named.get("node-1.example", &second).await.is_ok());
    let error = named.get("node-1.example", &first).await.unwrap_err();
    assert!(error.is_connect(), "{error:?}");
}

#[tokio::test]
async fn a_generated_certificate_is_replaced_when_it_is_due() {
    let dir = tempfile::tempdir().unwrap();
    let mut served = serve(&generated(&[]), dir.path()).await;
    let shown = |served: &Served| {
        let shown = served.certificates.shown.0.read().unwrap();
        shown.cert[0].clone()
    };
    let first = shown(&served);
    let lasts = ends_at(&first).unwrap() - unix_seconds();
    assert!(lasts > 29 * 24 * 3600, "{lasts} s");
    served.certificates.look();
    assert_eq!(shown(&served), first, "it is not due");
    let Source::Generated(authority) = &mut served.certificates.source else {
        panic!("it is generated");
    };
    authority.expire();
    served.certificates.look();
    assert_ne!(shown(&served), first);
    let authority = authority_of(dir.path());
    assert!(served.get("localhost", &authority).await.is_ok());
}

#[tokio::test]
async fn files_of_ones_own_are_read_again_once_both_have_changed() {
    let dir = tempfile::tempdir().unwrap();
    let config = write_own(dir.path());
    let mut served = serve(&config, dir.path()).await;
    let own = dir.path().join("own.pem");
    let first = fs::read(&own).unwrap();
    assert!(served.get("localhost", &first).await.is_ok());

    // The certificate alone fits no key.
    let key = fs::read(dir.path().join("own.key")).unwrap();
    write_own(dir.path());
    let next_key = fs::read(dir.path().join("own.key")).unwrap();
    fs::write(dir.path().join("own.key"), key).unwrap();
    served.certificates.look();
    assert!(served.get("localhost", &first).await.is_ok());

    fs::write(dir.path().join("own.key"), next_key).unwrap();
    served.certificates.look();
    let second = fs::read(&own).unwrap();
    assert!(served.get("localhost", &second).await.is_ok());
    assert!(served.get("localhost", &first).await.is_err());
}

#[test]
fn files_that_are_no_certificate_and_key_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let address = "127.0.0.1:5005".parse().unwrap();
    let open = |config: &MirrorTls| match Certificates::open(config, dir.path(), address) {
        Ok(_) => panic!("it cannot be used"),
        Err(error) => error.to_string(),
    };
    let good = write_own(dir.path());
    let MirrorTls::Files { certificate, key } = &good else {
        unreachable!("it was written to files")
    };
    let missing = MirrorTls::Files {
        certificate: dir.path().join("missing.pem"),
        key: key.clone(),
    };
    assert!(open(&missing).contains("missing.pem"));
    let swapped = MirrorTls::Files {
        certificate: key.clone(),
        key: certificate.clone(),
    };
    assert!(open(&swapped).contains("own.key is not a PEM certificate chain"));
    let other = tempfile::tempdir().unwrap();
    write_own(other.path());
    let strangers = MirrorTls::Files {
        certificate: certificate.clone(),
        key: other.path().join("own.key"),
    };
    let error = open(&strangers);
    assert!(error.contains("cannot be used"), "{error}");
}

#[tokio::test]
async fn plain_http_to_a_tls_port_is_told_so_and_a_handshake_that_stops_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let served = serve(&generated(&[]), dir.path()).await;
    let mut plain = TcpStream::connect(served.address).await.unwrap();
    let request = b"GET /v2/ HTTP/1.1\r\nHost: h\r\n\r\n";
    plain.write_all(request).await.unwrap();
    let mut answer = String::new();
    plain.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert!(answer.contains("speaks https") && !answer.contains("secret"));

    let mut silent = TcpStream::connect(served.address).await.unwrap();
    // The head of a handshake record of 256 bytes, and no more.
    silent.write_all(&[0x16, 3, 1, 1, 0]).await.unwrap();
    let mut rest = Vec::new();
    let limit = Duration::from_secs(15);
    let read = tokio::time::timeout(limit, silent.read_to_end(&mut rest)).await;
    assert!(read.is_ok(), "the connection is still open after {limit:?}");
}
