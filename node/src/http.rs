//! The HTTP/1.1 server that the mirror and the admin endpoint share: accepting, bounds, answers.
//!
//! Every bound that protects the daemon from its clients stands here, with its reason.

use std::{
    convert::Infallible,
    future::{Future, ready},
    io,
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Request, Response, StatusCode,
    body::{Body as _, Incoming},
    header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

use crate::piece::Piece;

pub(crate) use self::body::ReplyBody;
use self::{
    idle::{Activity, Idle},
    sendfile::{FileSender, Handover},
    timeouts::{HeadSeen, Patience, TimeoutStream},
};

mod body;
mod idle;
mod sendfile;
mod timeouts;

/// Connections of one endpoint at a time. For one more, the one that has waited longest for a
/// request is closed; where all are being answered, it waits for one of them, and those that follow
/// in the kernel's backlog. A host's clients use about 10 each; this is what 400 pulls at once would
/// need, and keeps the file descriptors that clients can take well below the limit of a service
/// (65,536 or more).
const CONNECTIONS_MAX: usize = 4096;

/// Connections that wait in the kernel until they are accepted. A client that finds no room there
/// tries again after a second, and that is how a burst of them becomes slow.
const BACKLOG: u32 = 4096;

/// How long a connection that has to make room may take to end before another is closed.
const CLOSING_PAUSE: Duration = Duration::from_millis(100);

/// How long a client may take to send a request's line and headers, which fit one packet, and how
/// long for a TLS handshake before.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a client may take in nothing of its answer. One that unpacks as it reads stands still
/// while its disk is busy; one that is stopped, or whose program hangs, would keep its connection for
/// ever.
const ANSWER_TIMEOUT: Duration = Duration::from_mins(5);

/// How long a connection may stand idle between requests; Go's clients give up theirs at 90 s.
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);

/// Bytes of a request's line and headers: an `Authorization` with a large token takes 16 KiB.
const HEAD_BYTES_MAX: usize = 32 << 10;

/// Headers of one request; clients send about ten.
const HEADERS_MAX: usize = 100;

/// Bytes that wait for one vectored write before the body is asked for more.
const WRITE_BYTES_MAX: usize = 256 << 10;

/// And where more connections than [`CROWD`] are open, which may all belong to clients that read
/// nothing. hyper also reads heads into no more than this.
const WRITE_BYTES_CROWDED: usize = 2 * HEAD_BYTES_MAX;

/// Connections that hosts with many pulls at once have.
const CROWD: usize = 256;

/// How long running answers may go on after a shutdown began.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

/// The pause after a failed `accept`: out of file descriptors, it would fail again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The first byte of a TLS handshake record.
const TLS_HANDSHAKE: u8 = 0x16;

/// The media type of bytes that nothing is said of.
pub(crate) const OCTETS: &str = "application/octet-stream";

/// Whatever ends a body early.
pub(crate) type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// The answer to a request.
pub(crate) type Reply = Response<ReplyBody>;

/// The body of a request. None is read but of those who may import.
pub(crate) struct RequestBody {
    incoming: Incoming,
    seen: HeadSeen,
}

impl RequestBody {
    /// Its pieces, in order.
    pub(crate) fn into_stream(self) -> impl Stream<Item = io::Result<Bytes>> + Send {
        futures::stream::try_unfold(self, |mut body| async {
            let data = body.next().await?;
            Ok(data.map(|data| (data, body)))
        })
    }

    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            let frame = tokio::time::timeout(ANSWER_TIMEOUT, self.incoming.frame()).await;
            // What came is no part of a further head, whose time would be running.
            self.seen.set();
            let frame = frame.map_err(|_| io::ErrorKind::TimedOut)?;
            match frame.transpose().map_err(io::Error::other)? {
                None => return Ok(None),
                Some(frame) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }
}

/// Listens for connections, on an address that an earlier process may have just left.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves connections, by TLS alone where it is given, until `shutdown`, then lets the running
/// answers end for [`SHUTDOWN_GRACE`]. Returns when no connection is left.
pub(crate) async fn serve<H, F>(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    handler: H,
    shutdown: CancellationToken,
) where
    H: Fn(Request<RequestBody>) -> F + Clone + Send + 'static,
    F: Future<Output = Reply> + Send + 'static,
{
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let idle = Arc::new(Idle::default());
    let connections = TaskTracker::new();
    loop {
        let next = async {
            let accepted = listener.accept().await?;
            Ok::<_, io::Error>((accepted, make_room(&room, &idle).await))
        };
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            next = next => next,
        };
        match accepted {
            Ok(((stream, _), permit)) => {
                let (tls, handler) = (tls.clone(), handler.clone());
                let activity = idle.accepted();
                let terms = Terms {
                    activity: activity.clone(),
                    crowded: CONNECTIONS_MAX - room.available_permits() > CROWD,
                    shutdown: shutdown.clone(),
                };
                connections.spawn(async move {
                    let served = connection(stream, tls, handler, terms);
                    tokio::select! {
                        () = served => {}
                        () = activity.has_to_leave() => {
                            debug!("closed an idle connection to make room for another");
                        }
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                warn!(%error, "cannot accept a connection; trying again");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

/// A place for one more connection.
async fn make_room(room: &Arc<Semaphore>, idle: &Idle) -> Option<OwnedSemaphorePermit> {
    let place = || Arc::clone(room).acquire_owned();
    while room.available_permits() == 0 {
        tokio::select! {
            place = place() => return place.ok(),
            () = idle.close_one() => {}
        }
        if let Ok(place) = tokio::time::timeout(CLOSING_PAUSE, place()).await {
            return place.ok();
        }
    }
    place().await.ok()
}

/// What the server knows of one connection.
struct Terms {
    activity: Activity,
    /// There are many others.
    crowded: bool,
    shutdown: CancellationToken,
}

async fn connection<H, F>(stream: TcpStream, tls: Option<TlsAcceptor>, handler: H, terms: Terms)
where
    H: Fn(Request<RequestBody>) -> F + Send + 'static,
    F: Future<Output = Reply> + Send + 'static,
{
    let mut first = [0];
    let peeked = tokio::select! {
        () = terms.shutdown.cancelled() => return,
        peeked = tokio::time::timeout(HEAD_TIMEOUT, stream.peek(&mut first)) => peeked,
    };
    let speaks_tls = match peeked {
        Ok(Ok(1..)) => first[0] == TLS_HANDSHAKE,
        Ok(Ok(0) | Err(_)) | Err(_) => return,
    };
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "cannot set TCP_NODELAY");
    }
    match tls {
        None if speaks_tls => {
            // Clients that try https first wait up to 10 s for an answer to their ClientHello,
            // unless the connection ends.
            debug!("closed a connection that speaks TLS to this plain HTTP port");
        }
        None => {
            let files = Handover::default();
            let stream = FileSender::new(stream, files.clone());
            converse(stream, Some(files), handler, terms).await;
        }
        Some(_) if !speaks_tls => {
            converse(stream, None, |_| ready(https_only()), terms).await;
        }
        Some(tls) => {
            let handshake = tokio::select! {
                () = terms.shutdown.cancelled() => return,
                done = tokio::time::timeout(HEAD_TIMEOUT, tls.accept(stream)) => done,
            };
            match handshake {
                Ok(Ok(stream)) => converse(stream, None, handler, terms).await,
                Ok(Err(error)) => debug!(%error, "a TLS handshake failed"),
                Err(_) => debug!("a TLS handshake took too long"),
            }
        }
    }
}

/// Answers the requests of one connection, from `files` where its stream can send them.
async fn converse<S, H, F>(stream: S, files: Option<Handover>, handler: H, terms: Terms)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Fn(Request<RequestBody>) -> F + Send + 'static,
    F: Future<Output = Reply> + Send + 'static,
{
    let Terms {
        activity,
        crowded,
        shutdown,
    } = terms;
    let head_seen = HeadSeen::default();
    let patience = Patience {
        head: HEAD_TIMEOUT,
        answer: ANSWER_TIMEOUT,
    };
    let stream = TimeoutStream::new(stream, head_seen.clone(), activity.clone(), patience);
    let io = TokioIo::new(stream);
    let service = service_fn(move |request: Request<Incoming>| {
        head_seen.set();
        activity.asked();
        // Where a body ends may be a matter of opinion (RFC 9112, section 11.2): what follows it is not
        // taken for a request.
        let last = !request.body().is_end_stream();
        let request = request.map(|incoming| RequestBody {
            incoming,
            seen: head_seen.clone(),
        });
        let (reply, activity, files) = (handler(request), activity.clone(), files.clone());
        async move {
            let mut reply = reply.await;
            if last {
                end_connection(&mut reply);
            }
            let body = |body: ReplyBody| activity.until_the_end_of(body.onto(files.as_ref()));
            Ok::<_, Infallible>(reply.map(body))
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        // hyper counts the idle time between requests into this one.
        .header_read_timeout(IDLE_TIMEOUT)
        .max_headers(HEADERS_MAX)
        .max_header_size(HEAD_BYTES_MAX)
        .max_buf_size(if crowded {
            WRITE_BYTES_CROWDED
        } else {
            WRITE_BYTES_MAX
        })
        .serve_connection(io, service);
    tokio::pin!(connection);

    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(SHUTDOWN_GRACE, &mut connection).await {
                Ok(ended) => ended,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = ended {
        debug!(
            error = &error as &dyn std::error::Error,
            "connection ended early"
        );
    }
}

/// What a client is told that speaks plain HTTP to a TLS port.
fn https_only() -> Reply {
    let told = "this port speaks https, and the request came by plain http\n";
    let mut reply = full(StatusCode::BAD_REQUEST, "text/plain; charset=utf-8", told);
    end_connection(&mut reply);
    reply
}

/// Has the connection end with this answer.
fn end_connection(reply: &mut Reply) {
    let close = HeaderValue::from_static("close");
    reply.headers_mut().insert(CONNECTION, close);
}

/// An answer whose body is at hand, with its exact length. hyper leaves the body out for HEAD.
pub(crate) fn full(status: StatusCode, content_type: &str, body: impl Into<Bytes>) -> Reply {
    let body = body.into();
    let length = body.len();
    let mut reply = Response::new(ReplyBody::Full(Full::new(body)));
    *reply.status_mut() = status;
    let headers = reply.headers_mut();
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    if let Ok(value) = HeaderValue::from_str(content_type) {
        headers.insert(CONTENT_TYPE, value);
    }
    reply
}

/// An answer whose body comes piece by piece. An error in it aborts the connection.
pub(crate) fn streamed<S, P, E>(status: StatusCode, content_type: &'static str, stream: S) -> Reply
where
    S: Stream<Item = Result<P, E>> + Send + 'static,
    P: Into<Piece> + 'static,
    E: Into<BodyError> + 'static,
{
    let pieces = stream.map_ok(Into::into).map_err(Into::into);
    let mut reply = Response::new(ReplyBody::Pieces(pieces.boxed()));
    *reply.status_mut() = status;
    reply
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    reply
}

#[cfg(test)]
mod tests;
