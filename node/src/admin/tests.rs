//! The admin endpoint as its clients see it, over a real socket.

use std::{net::SocketAddr, time::Duration};

use futures::{StreamExt, TryStreamExt, stream};
use sha2::Digest as _;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_util::sync::DropGuard;

use super::*;
use crate::store::StoreError;

struct TestAdmin {
    readiness: Result<(), String>,
}

impl Admin for TestAdmin {
    fn readiness(&self) -> Result<(), String> {
        self.readiness.clone()
    }

    fn metrics(&self) -> String {
        "shoal_bans_total 0\n".into()
    }

    async fn node_stats(&self) -> NodeStats {
        NodeStats {
            id: "ab".repeat(32),
            members_alive: 3,
            ..NodeStats::default()
        }
    }

    async fn swarm_stats(&self) -> SwarmStats {
        SwarmStats::merge(vec![self.node_stats().await], 3)
    }

    fn pull(&self, reference: Reference, options: PullOptions) -> BoxStream<'static, PullEvent> {
        let platform = options.platform.map(|platform| platform.to_string());
        stream::iter([
            PullEvent::Manifest {
                digest: format!("{reference} {platform:?}"),
                layers: Vec::new(),
            },
            PullEvent::Done {
                bytes: 7,
                seconds: 0.5,
            },
        ])
        .boxed()
    }

    async fn export_manifest(&self, reference: Reference) -> Result<Manifest, PullError> {
        Err(PullError::NotFound(reference.to_string()))
    }

    async fn export_blob(&self, digest: Digest, _: Hint) -> Result<BlobBody, PullError> {
        Err(PullError::NotFound(digest.to_string()))
    }

    async fn import_blob(
        &self,
        digest: Digest,
        _: BlobKind,
        _: u64,
        body: ImportBody,
    ) -> Result<(), ImportError> {
        let came: Vec<_> = body.try_collect().await.map_err(ImportError::Body)?;
        if Digest::sha256(sha2::Sha256::digest(came.concat()).into()) == digest {
            Ok(())
        } else {
            Err(StoreError::Differs { digest }.into())
        }
    }

    async fn import_tag(&self, _: TagKey, _: Digest) -> Result<u64, ImportError> {
        Ok(3)
    }
}

async fn start(readiness: Result<(), String>) -> (SocketAddr, DropGuard) {
    let (address, _, stop) = start_with_token(readiness).await;
    (address, stop)
}

/// The address, what those who may import and export send, and what stops it.
async fn start_with_token(readiness: Result<(), String>) -> (SocketAddr, String, DropGuard) {
    let dir = tempfile::TempDir::new().unwrap();
    let token = Token::create(dir.path()).unwrap();
    let shown = std::fs::read_to_string(token_file(dir.path())).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let admin = Arc::new(TestAdmin { readiness });
    tokio::spawn(serve(listener, admin, token, stop.clone()));
    let shown = format!("Authorization: Bearer {shown}\r\n");
    (address, shown, stop.drop_guard())
}

/// The status code and everything that was received.
async fn ask(address: SocketAddr, request: &str, headers: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("{request} HTTP/1.1\r\nConnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut raw = String::new();
    tokio::time::timeout(Duration::from_secs(10), stream.read_to_string(&mut raw))
        .await
        .unwrap()
        .unwrap();
    (raw[9..12].parse().unwrap(), raw)
}

const HOST: &str = "Host: 127.0.0.1:5006\r\n";

#[tokio::test]
async fn health_readiness_metrics_and_statistics_are_served() {
    let (address, _stop) = start(Ok(())).await;
    for (path, content_type, part) in [
        ("/healthz", "text/plain", "ok"),
        ("/readyz", "text/plain", "ready"),
        (
            "/metrics",
            "text/plain; version=0.0.4",
            "shoal_bans_total 0",
        ),
        ("/v1/node", "application/json", "\"members_alive\":3"),
        ("/v1/stats", "application/json", "\"members_total\":3"),
        ("/", "text/html", "1 of 3 answered"),
    ] {
        let (status, answer) = ask(address, &format!("GET {path}"), HOST).await;
        assert_eq!(status, 200, "{path}");
        let typed = format!("content-type: {content_type}");
        assert!(answer.contains(&typed), "{path}: {answer}");
        assert!(answer.contains(part), "{path}: {answer}");
        let (status, _) = ask(address, &format!("DELETE {path}"), HOST).await;
        assert_eq!(status, 405, "{path}");
    }
    assert_eq!(ask(address, "GET /v1/other", HOST).await.0, 404);
}

#[tokio::test]
async fn a_node_that_is_not_ready_says_why_and_stays_healthy() {
    let (address, _stop) = start(Err("joining the swarm".into())).await;
    let (status, answer) = ask(address, "GET /readyz", HOST).await;
    assert_eq!(status, 503);
    assert!(answer.contains("joining the swarm"));
    assert_eq!(ask(address, "GET /healthz", HOST).await.0, 200);
}

#[tokio::test]
async fn a_pull_is_told_line_by_line() {
    let (address, _stop) = start(Ok(())).await;
    let request = "POST /v1/pull?ref=redis%3A7&platform=linux%2Farm64";
    let (status, answer) = ask(address, request, HOST).await;
    assert_eq!(status, 200);
    assert!(answer.contains("content-type: application/x-ndjson"));
    let events: Vec<PullEvent> = answer
        .lines()
        .filter(|line| line.starts_with('{'))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(
        events,
        [
            PullEvent::Manifest {
                digest: "docker.io/library/redis:7 Some(\"linux/arm64\")".into(),
                layers: Vec::new(),
            },
            PullEvent::Done {
                bytes: 7,
                seconds: 0.5,
            },
        ]
    );
}

#[tokio::test]
async fn a_pull_that_cannot_be_read_is_refused() {
    let (address, _stop) = start(Ok(())).await;
    for request in [
        "POST /v1/pull",
        "POST /v1/pull?ref=Not%20One",
        "POST /v1/pull?ref=redis&platform=linux",
    ] {
        assert_eq!(ask(address, request, HOST).await.0, 400, "{request}");
    }
    assert_eq!(ask(address, "GET /v1/pull?ref=redis", HOST).await.0, 405);
}

#[tokio::test]
async fn web_pages_cannot_make_a_browser_pull() {
    let (address, _stop) = start(Ok(())).await;
    let pull = "POST /v1/pull?ref=redis";
    let rebound = "Host: evil.example:5006\r\n";
    assert_eq!(ask(address, pull, rebound).await.0, 403);
    let cross_origin = format!("{HOST}Origin: https://evil.example\r\n");
    assert_eq!(ask(address, pull, &cross_origin).await.0, 403);
    assert_eq!(ask(address, pull, HOST).await.0, 200);
}

/// A request with a body.
async fn put(address: SocketAddr, path: &str, headers: &str, body: &[u8]) -> (u16, String) {
    let headers = format!(
        "{headers}Connection: close\r\nContent-Length: {}\r\n",
        body.len()
    );
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!("PUT {path} HTTP/1.1\r\n{headers}\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body).await.unwrap();
    let mut raw = String::new();
    stream.read_to_string(&mut raw).await.unwrap();
    (raw[9..12].parse().unwrap(), raw)
}

#[tokio::test]
async fn images_go_in_and_out_for_those_alone_who_show_the_token() {
    let (address, token, _stop) = start_with_token(Ok(())).await;
    let body = vec![7; 3 << 20];
    let digest = Digest::sha256(sha2::Sha256::digest(&body).into());
    let blob = format!(
        "/v1/import/blob?digest={digest}&size={}&kind=blob",
        body.len()
    );
    let tag = format!("/v1/import/tag?ref=r.test%2Fa%3A1&digest={digest}");
    let trusted = format!("{HOST}{token}");
    let other = format!("{HOST}Authorization: Bearer {}\r\n", "0".repeat(64));
    let page = format!("{trusted}Origin: https://evil.example\r\n");
    for (headers, status) in [(HOST, 401), (&other, 401), (&page, 403), (&trusted, 200)] {
        for path in [&blob, &tag] {
            // Who may not import has nothing read.
            let sent = if status == 200 && path == &blob {
                &body[..]
            } else {
                &[]
            };
            assert_eq!(
                put(address, path, headers, sent).await.0,
                status,
                "{headers}"
            );
        }
    }
    let (status, answer) = put(address, &blob, &trusted, b"others").await;
    assert!(status == 400 && answer.contains("tampered"), "{answer}");
    for path in ["/v1/export/manifest?ref=redis", "/v1/export/blob?ref=redis"] {
        let request = format!("GET {path}");
        assert_eq!(ask(address, &request, HOST).await.0, 401, "{path}");
        assert_ne!(ask(address, &request, &trusted).await.0, 401, "{path}");
        assert_eq!(put(address, path, &trusted, &[]).await.0, 405, "{path}");
    }
}

#[tokio::test]
async fn what_cannot_be_imported_is_said_by_its_parameter() {
    let (address, token, _stop) = start_with_token(Ok(())).await;
    let trusted = format!("{HOST}{token}");
    let digest = format!("sha256:{}", "0a".repeat(32));
    for (query, part) in [
        ("blob?size=1&kind=blob".to_owned(), "`digest` is missing"),
        (format!("blob?digest={digest}&size=x&kind=blob"), "size: "),
        (format!("blob?digest={digest}&size=1&kind=x"), "kind: "),
        (format!("tag?digest={digest}&ref=a@{digest}"), "name a tag"),
    ] {
        let path = format!("/v1/import/{query}");
        let (status, answer) = put(address, &path, &trusted, &[]).await;
        assert!(status == 400 && answer.contains(part), "{query}: {answer}");
    }
}
