//! Bodies from files, as clients get them: bytes over a real socket.

use std::{
    fs::File, io::Write as _, net::SocketAddr, ops::Range, path::Path, sync::Arc, time::Duration,
};

use ed25519_dalek::SigningKey;
use futures::stream;
use reqwest::{Certificate, Client};
use sha2::{Digest as _, Sha256};
use shoal_protocol::{digest::Digest, message::BlobKind};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::mpsc,
};
use tokio_util::sync::DropGuard;

use super::*;
use crate::{
    config::{MIRROR_CA_FILE, MirrorTls},
    piece::{FILE_BYTES_MAX, FileRange},
    store::{Blob, Demand, Store, StoreConfig},
    tls::Certificates,
};

/// More than all that sockets hold, so that a client that does not read stops the server.
const FILE_BYTES: usize = 24 << 20;

/// How long anything here may take at most.
const SOON: Duration = Duration::from_secs(20);

/// Both ends of a connection: the client's, then the server's.
pub(super) async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await;
    (client.unwrap(), listener.accept().await.unwrap().0)
}

/// A file, and what is in it.
#[derive(Clone)]
struct Source {
    file: Arc<File>,
    bytes: Bytes,
}

impl Source {
    fn new() -> Self {
        let mut bytes = vec![0; FILE_BYTES];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        Self {
            file: Arc::new(file),
            bytes: bytes.into(),
        }
    }

    fn in_file(&self, range: Range<usize>) -> Piece {
        let range = range.start as u64..range.end as u64;
        Piece::File(FileRange::new(Arc::clone(&self.file), range))
    }

    fn in_memory(&self, range: Range<usize>) -> Piece {
        Piece::Bytes(self.bytes.slice(range))
    }

    /// These bytes: from memory, from the file and from memory by turns, in pieces of many lengths.
    fn mixed(&self, range: Range<usize>) -> Vec<Result<Piece, BodyError>> {
        let lengths = [1, 70_000, 300, 4097, FILE_BYTES_MAX, 17, 0, 0, 300_000];
        let (mut at, mut pieces) = (range.start, Vec::new());
        for (turn, length) in lengths.into_iter().cycle().enumerate() {
            if at == range.end {
                break;
            }
            let end = range.end.min(at + length);
            pieces.push(Ok(if turn % 3 == 0 {
                self.in_memory(at..end)
            } else {
                self.in_file(at..end)
            }));
            at = end;
        }
        pieces
    }
}

/// An answer that announces this length.
fn announcing(length: usize, pieces: Vec<Result<Piece, BodyError>>) -> Reply {
    let mut reply = streamed(StatusCode::OK, OCTETS, stream::iter(pieces));
    reply
        .headers_mut()
        .insert(CONTENT_LENGTH, HeaderValue::from(length));
    reply
}

/// Answers each request by what its path says of the source.
async fn start<A>(source: &Source, tls: Option<TlsAcceptor>, answer: A) -> (SocketAddr, DropGuard)
where
    A: Fn(&Source, &str) -> Reply + Clone + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let source = source.clone();
    let handler = move |request: Request<RequestBody>| {
        ready(answer(
            &source,
            request.uri().path().trim_start_matches('/'),
        ))
    };
    tokio::spawn(serve(listener, tls, handler, stop.clone()));
    (address, stop.drop_guard())
}

/// Answers a path `start-end` with these bytes.
fn span(source: &Source, path: &str) -> Reply {
    let (start, end) = path.split_once('-').unwrap();
    let range = start.parse().unwrap()..end.parse().unwrap();
    announcing(range.len(), source.mixed(range))
}

/// A client with little room for what it has not read.
async fn connect(address: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(64 << 10).unwrap();
    socket.connect(address).await.unwrap()
}

async fn ask(client: &mut TcpStream, method: &str, path: &str) {
    let request = format!("{method} /{path} HTTP/1.1\r\nHost: x\r\n\r\n");
    client.write_all(request.as_bytes()).await.unwrap();
}

/// Reads the head of an answer, and says how long its body is.
async fn head(client: &mut TcpStream) -> usize {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    length.unwrap().parse().unwrap()
}

/// Reads the body of an answer in small reads, while the server fills the socket again.
async fn body(client: &mut TcpStream, length: usize) -> Vec<u8> {
    let mut body = vec![0; length];
    for part in body.chunks_mut(10_007) {
        client.read_exact(part).await.unwrap();
        tokio::task::yield_now().await;
    }
    body
}

/// What comes of a body until the connection ends, however it does.
async fn rest(mut client: TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    let read = tokio::time::timeout(SOON, client.read_to_end(&mut all));
    // A reset ends it as well.
    let _ = read.await.expect("the connection ends");
    let head = all.windows(4).position(|four| four == b"\r\n\r\n");
    // The head may not have been sent either.
    head.map_or_else(Vec::new, |at| all.split_off(at + 4))
}

#[tokio::test]
async fn requests_in_a_row_get_each_the_bytes_asked_for() {
    let source = Source::new();
    let (address, _stop) = start(&source, None, span).await;
    let mut client = connect(address).await;
    let spans = [0..FILE_BYTES, 5..70_010, 0..1, 99..FILE_BYTES - 7, 0..0];
    // All are sent before the first is answered.
    for Range { start, end } in &spans {
        ask(&mut client, "HEAD", &format!("{start}-{end}")).await;
        ask(&mut client, "GET", &format!("{start}-{end}")).await;
    }
    for span in spans {
        assert_eq!(head(&mut client).await, span.len());
        let length = head(&mut client).await;
        assert_eq!(length, span.len());
        assert!(body(&mut client, length).await == source.bytes[span]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_at_once_get_each_its_own_bytes() {
    let source = Source::new();
    let (address, _stop) = start(&source, None, span).await;
    let clients = (0..16usize).map(|number| {
        let bytes = source.bytes.clone();
        tokio::spawn(async move {
            let mut client = connect(address).await;
            for turn in 0..4 {
                let span = number * 100_003 + turn..number * 100_003 + 3_000_000;
                ask(&mut client, "GET", &format!("{}-{}", span.start, span.end)).await;
                let length = head(&mut client).await;
                assert!(body(&mut client, length).await == bytes[span]);
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
}

#[tokio::test]
async fn a_body_without_a_length_has_its_chunks_around_the_files_bytes() {
    let source = Source::new();
    let chunked = |source: &Source, _: &str| {
        let pieces = source.mixed(0..3_000_000);
        streamed(StatusCode::OK, OCTETS, stream::iter(pieces))
    };
    let (address, _stop) = start(&source, None, chunked).await;
    let client = Client::builder().no_proxy().build().unwrap();
    let answer = client
        .get(format!("http://{address}/"))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.content_length(), None);
    assert!(answer.bytes().await.unwrap() == source.bytes[..3_000_000]);
}

#[tokio::test]
async fn over_tls_the_same_bytes_come() {
    let (source, dir) = (Source::new(), tempfile::tempdir().unwrap());
    let config = MirrorTls::Generated { names: Vec::new() };
    let local = "127.0.0.1:0".parse().unwrap();
    let acceptor = Certificates::open(&config, dir.path(), local)
        .unwrap()
        .acceptor();
    let (address, _stop) = start(&source, Some(acceptor.unwrap()), span).await;
    let authority = std::fs::read(dir.path().join(MIRROR_CA_FILE)).unwrap();
    let client = Client::builder()
        .no_proxy()
        .tls_certs_only([Certificate::from_pem(&authority).unwrap()])
        .build()
        .unwrap();
    for span in [0..FILE_BYTES, 7..70_010] {
        let url = format!("https://{address}/{}-{}", span.start, span.end);
        let bytes = client.get(url).send().await.unwrap().bytes().await.unwrap();
        assert!(bytes == source.bytes[span]);
    }
}

/// What was sent before something went wrong is right, and less than was announced.
async fn is_broken_off(source: &Source, announced: usize, answer: fn(&Source, &str) -> Reply) {
    let (address, _stop) = start(source, None, answer).await;
    let mut client = connect(address).await;
    ask(&mut client, "GET", "").await;
    let came = rest(client).await;
    assert!(came.len() < announced);
    assert!(came == source.bytes[..came.len()]);
}

#[tokio::test]
async fn an_error_after_a_files_bytes_breaks_the_answer_off() {
    let answer = |source: &Source, _: &str| {
        let mut pieces = source.mixed(0..5_000_000);
        pieces.push(Err("it has changed".into()));
        announcing(FILE_BYTES, pieces)
    };
    is_broken_off(&Source::new(), FILE_BYTES, answer).await;
}

#[tokio::test]
async fn a_range_that_is_too_long_breaks_the_answer_off() {
    let answer = |source: &Source, _: &str| {
        let too_long = 1000..1001 + FILE_BYTES_MAX;
        let pieces = vec![Ok(source.in_memory(0..1000)), Ok(source.in_file(too_long))];
        announcing(FILE_BYTES, pieces)
    };
    is_broken_off(&Source::new(), FILE_BYTES, answer).await;
}

#[tokio::test]
async fn more_in_a_file_than_was_announced_breaks_the_answer_off() {
    let answer = |source: &Source, _: &str| {
        let pieces = vec![
            Ok(source.in_memory(0..1000)),
            Ok(source.in_file(1000..2000)),
        ];
        announcing(1500, pieces)
    };
    is_broken_off(&Source::new(), 1500, answer).await;
}

#[tokio::test]
async fn a_file_that_has_become_shorter_breaks_the_answer_off() {
    let source = Source::new();
    source.file.set_len(3_000_000).unwrap();
    let answer = |source: &Source, _: &str| announcing(FILE_BYTES, source.mixed(0..FILE_BYTES));
    is_broken_off(&source, FILE_BYTES, answer).await;
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_leaves_nothing_behind() {
    let source = Source::new();
    let (address, stop) = start(&source, None, span).await;
    let mut client = connect(address).await;
    ask(&mut client, "GET", &format!("0-{FILE_BYTES}")).await;
    let length = head(&mut client).await;
    assert!(body(&mut client, 2_000_000).await == source.bytes[..2_000_000]);
    assert!(length > 2_000_000);
    drop(client);
    // The server has the source, and so had the body.
    let waited = async {
        while Arc::strong_count(&source.file) > 2 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let ended = tokio::time::timeout(SOON, waited).await;
    ended.expect("the body is dropped");
    drop(stop);
}

/// The source as a complete blob of a store.
fn stored(source: &Source, dir: &Path) -> Arc<Blob> {
    let store = Store::open(&StoreConfig {
        dir: dir.to_owned(),
        quota_bytes: None,
        min_free_bytes: 0,
        settle_after: Duration::from_secs(3600),
    });
    let (store, key) = (store.unwrap(), SigningKey::from_bytes(&[7; 32]));
    let digest = Digest::sha256(Sha256::digest(&source.bytes).into());
    let size = source.bytes.len() as u64;
    let mut staged = store.stage(digest, BlobKind::Blob, size, key).unwrap();
    staged.write(&source.bytes).unwrap();
    staged.admit().unwrap();
    store.get(&digest).unwrap()
}

#[tokio::test]
async fn a_chunk_that_is_dropped_while_its_blob_is_sent_breaks_the_answer_off() {
    let (source, dir) = (Source::new(), tempfile::tempdir().unwrap());
    let blob = stored(&source, dir.path());
    let whole = {
        let (blob, demands) = (Arc::clone(&blob), mpsc::channel(1).0);
        move |_: &Source, _: &str| {
            let pieces = blob.pieces(0..blob.size(), Demand::new(demands.clone(), 1));
            let mut reply = streamed(StatusCode::OK, OCTETS, pieces);
            let headers = reply.headers_mut();
            headers.insert(CONTENT_LENGTH, HeaderValue::from(FILE_BYTES));
            reply
        }
    };
    let (address, _stop) = start(&source, None, whole).await;
    let mut client = connect(address).await;
    ask(&mut client, "GET", "").await;
    let length = head(&mut client).await;
    assert!(body(&mut client, length).await == source.bytes);

    ask(&mut client, "GET", "").await;
    head(&mut client).await;
    let mut came = body(&mut client, 1_000_000).await;
    assert!(blob.drop_chunk(0).unwrap());
    let _ = client.read_to_end(&mut came).await;
    assert!(came.len() < FILE_BYTES);
    assert!(came == source.bytes[..came.len()]);
}
