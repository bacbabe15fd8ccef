//! Content in memory, a mirror over it, and a client that sees every byte.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt, stream};
use sha2::{Digest as _, Sha256};
use shoal_protocol::{
    digest::Digest,
    message::Hint,
    reference::{Reference, Tag, Upstream},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    content::{BlobBody, Content, Manifest, PullError, Span},
    metrics::Metrics,
    mirror::{MirrorOptions, serve},
};

pub(super) fn digest_of(bytes: &[u8]) -> Digest {
    Digest::sha256(Sha256::digest(bytes).into())
}

/// Content in memory, with the failures a test sets.
#[derive(Default)]
pub(super) struct TestContent {
    pub(super) blobs: BTreeMap<Digest, Bytes>,
    /// By `repository:tag` or `repository@digest`, with the upstream in front.
    pub(super) manifests: BTreeMap<String, Manifest>,
    pub(super) tags: Vec<Tag>,
    /// What the origin's own list says, where it has one.
    pub(super) referrers: Option<Vec<serde_json::Value>>,
    /// What everything that is not there answers.
    pub(super) missing: Option<PullError>,
    /// After how many bytes a blob's stream ends, and how.
    pub(super) cut: Option<(usize, Cut)>,
    /// What was asked, as text.
    pub(super) asked: Mutex<Vec<String>>,
    /// Blob questions and streams that live.
    pub(super) alive: Arc<AtomicUsize>,
}

#[derive(Clone, Copy)]
pub(super) enum Cut {
    Error,
    End,
    Stall,
    StallBeforeHeaders,
}

pub(super) struct Alive(Arc<AtomicUsize>);

impl Alive {
    pub(super) fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(count))
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl TestContent {
    pub(super) fn with_blob(bytes: Bytes) -> (Self, Digest) {
        let digest = digest_of(&bytes);
        let content = Self {
            blobs: [(digest, bytes)].into(),
            ..Self::default()
        };
        (content, digest)
    }

    pub(super) fn with_manifest(reference: &str, manifest: Manifest) -> Self {
        Self {
            manifests: [(reference.to_owned(), manifest)].into(),
            ..Self::default()
        }
    }

    pub(super) fn absent(&self, what: &str) -> PullError {
        self.missing
            .clone()
            .unwrap_or_else(|| PullError::NotFound(format!("{what} does not exist")))
    }

    pub(super) fn note(&self, asked: String) {
        self.asked.lock().unwrap().push(asked);
    }
}

impl Content for TestContent {
    async fn manifest(&self, reference: Reference) -> Result<Manifest, PullError> {
        let name = reference.to_string();
        self.note(name.clone());
        self.manifests
            .get(&name)
            .cloned()
            .ok_or_else(|| self.absent(&name))
    }

    async fn blob(&self, digest: Digest, hint: Hint, span: Span) -> Result<BlobBody, PullError> {
        let alive = Alive::new(&self.alive);
        self.note(format!("{}/{} {span:?}", hint.upstream, hint.repository));
        let blob = self
            .blobs
            .get(&digest)
            .ok_or_else(|| self.absent("the blob"))?;
        let size = blob.len() as u64;
        let range = span.resolve(size)?;
        let bytes = blob.slice(range.start as usize..range.end as usize);
        if matches!(self.cut, Some((_, Cut::StallBeforeHeaders))) {
            futures::future::pending::<()>().await;
        }
        let sent = self.cut.map_or(bytes.len(), |(at, _)| at);
        let pieces: Vec<_> = bytes[..sent].chunks(100_000).collect();
        let pieces: Vec<_> = pieces
            .into_iter()
            .map(|piece| Ok(bytes.slice_ref(piece).into()))
            .collect();
        let tail = match self.cut {
            Some((_, Cut::Error)) => {
                stream::iter([Err(PullError::Corrupt("the digest differs".into()))]).boxed()
            }
            Some((_, Cut::Stall)) => stream::pending().boxed(),
            _ => stream::empty().boxed(),
        };
        let stream = stream::iter(pieces).chain(tail).map(move |piece| {
            let _alive = &alive;
            piece
        });
        Ok(BlobBody {
            size,
            range,
            stream: stream.boxed(),
        })
    }

    async fn blob_size(&self, digest: Digest, _: Hint) -> Result<u64, PullError> {
        self.blobs
            .get(&digest)
            .map(|blob| blob.len() as u64)
            .ok_or_else(|| self.absent("the blob"))
    }

    async fn tags(&self, hint: Hint) -> Result<Vec<Tag>, PullError> {
        self.note(format!("{}/{}", hint.upstream, hint.repository));
        if self.tags.is_empty() {
            return Err(self.absent("the repository"));
        }
        Ok(self.tags.clone())
    }

    async fn referrers(&self, _: Hint, _: Digest) -> Result<Vec<serde_json::Value>, PullError> {
        self.referrers
            .clone()
            .ok_or_else(|| self.absent("the list of referrers"))
    }
}

/// A mirror that serves while it lives.
pub(super) struct Mirror {
    pub(super) address: SocketAddr,
    pub(super) content: Arc<TestContent>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) _stop: DropGuard,
}

impl Mirror {
    pub(super) async fn start(content: TestContent) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let content = Arc::new(content);
        let metrics = Arc::new(Metrics::default());
        let options = MirrorOptions {
            default_upstream: Upstream::default(),
            aliases: ["lab".parse().unwrap()].into(),
            metrics: Arc::clone(&metrics),
            gate: None,
        };
        let stop = CancellationToken::new();
        tokio::spawn(serve(
            listener,
            None,
            Arc::clone(&content),
            options,
            stop.clone(),
        ));
        Self {
            address,
            content,
            metrics,
            _stop: stop.drop_guard(),
        }
    }

    pub(super) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends one request with extra header lines and reads until the connection ends.
    pub(super) async fn ask(&self, method: &str, target: &str, headers: &[&str]) -> Answer {
        let mut stream = self.connect().await;
        let mut request =
            format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
        for line in headers {
            request += line;
            request += "\r\n";
        }
        request += "\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut raw = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut raw));
        // A reset ends an answer as well; what came before it is what counts.
        let _ = read.await.expect("the mirror keeps the connection open");
        Answer::parse(&raw)
    }

    pub(super) async fn get(&self, target: &str) -> Answer {
        self.ask("GET", target, &[]).await
    }

    pub(super) async fn last_asked(&self, target: &str) -> Option<String> {
        self.get(target).await;
        self.content.asked.lock().unwrap().pop()
    }
}

#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) head: String,
    pub(super) body: Vec<u8>,
}

impl Answer {
    pub(super) fn parse(raw: &[u8]) -> Self {
        let end = raw
            .windows(4)
            .position(|four| four == b"\r\n\r\n")
            .expect("an answer has a head");
        let head = String::from_utf8(raw[..end].to_vec()).unwrap();
        Self {
            status: head[9..12].parse().unwrap(),
            body: raw[end + 4..].to_vec(),
            head,
        }
    }

    pub(super) fn headers(&self, name: &str) -> Vec<&str> {
        self.head
            .lines()
            .skip(1)
            .filter_map(|line| line.split_once(": "))
            .filter(|(have, _)| have.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
            .collect()
    }

    pub(super) fn header(&self, name: &str) -> &str {
        match self.headers(name).as_slice() {
            [value] => value,
            other => panic!("{name} is there {} times: {}", other.len(), self.head),
        }
    }

    pub(super) fn code(&self) -> String {
        let json: serde_json::Value = serde_json::from_slice(&self.body).unwrap();
        assert!(json["errors"][0]["message"].is_string());
        assert!(json["errors"][0].get("detail").is_some());
        assert_eq!(self.header("content-type"), "application/json");
        json["errors"][0]["code"].as_str().unwrap().to_owned()
    }
}

pub(super) fn manifest(json: &str, media_type: &str) -> Manifest {
    Manifest {
        digest: digest_of(json.as_bytes()),
        media_type: media_type.to_owned(),
        bytes: Bytes::from(json.to_owned()),
        stale: None,
    }
}

pub(super) fn pattern(len: usize) -> Bytes {
    (0..len).map(|at| (at % 251) as u8).collect()
}
