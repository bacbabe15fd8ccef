//! Bodies that go from a file to a TCP socket within the kernel.
//!
//! hyper carries bytes in memory and nothing else. So it is given as many bytes of a stand-in, which
//! it queues and does not copy, and the file's range goes past it to the connection, which knows the
//! stand-in by its address and sends the range in its place. Where the two do not fit each other the
//! connection breaks off: no byte of the stand-in is ever sent.
//!
//! What sendfile spares the server, a client on the same host pays for: it is the client's own reads
//! that make the kernel take up the file's pages, one by one and cold. A client that is busy with what
//! it gets, as whoever checks and unpacks layers is, is done sooner where the server copies for it.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
};

use crate::{
    buffers::Buffer,
    clock,
    piece::{self, FileRange},
};

/// A client on this host that takes in fewer bytes a second is busy with what it gets: skopeo and
/// containerd take 100 to 400 MB/s; each of eight clients that throw all away takes 1 GB/s.
const BUSY_BYTES_PER_SECOND: f64 = 5e8;

/// How much is copied at once for such a client. Of 32 to 256 KiB it is the least that took no more
/// CPU than the next.
const COPIED_BYTES: usize = 128 << 10;

/// What hyper holds in place of a file's range. Memory of its own, which nothing else points to.
static STAND_IN: LazyLock<Box<[u8]>> =
    LazyLock::new(|| vec![0; piece::FILE_BYTES_MAX].into_boxed_slice());

fn stands_in(slice: &[u8]) -> bool {
    !slice.is_empty() && STAND_IN.as_ptr_range().contains(&slice.as_ptr())
}

/// Hands files' ranges from a connection's bodies to its stream, one at a time.
#[derive(Clone, Default)]
pub(super) struct Handover(Arc<Mutex<Pending>>);

#[derive(Default)]
struct Pending {
    /// What is to be sent of the range that was given last.
    range: Option<FileRange>,
    /// Whoever waits until that is sent.
    waiting: Option<Waker>,
}

impl Handover {
    /// Ready when all that was given is sent.
    pub(super) fn poll_sent(&self, cx: &Context<'_>) -> Poll<()> {
        let mut pending = self.lock();
        if pending.range.is_none() {
            return Poll::Ready(());
        }
        pending.waiting = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Gives a range to be sent, once nothing else is, and returns what hyper is to hold in its place.
    ///
    /// # Errors
    /// Where another is still to be sent, or there is no stand-in as long.
    pub(super) fn give(&self, range: FileRange) -> io::Result<Bytes> {
        let mut pending = self.lock();
        let stand_in = STAND_IN.get(..range.len()).map(Bytes::from_static);
        match stand_in {
            Some(stand_in) if pending.range.is_none() => {
                // hyper has nothing written of what is empty.
                pending.range = (range.len() > 0).then_some(range);
                Ok(stand_in)
            }
            _ => Err(misfit()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn misfit() -> io::Error {
    io::Error::other("what is to be sent from a file is not what was announced")
}

/// A connection that sends a file's range wherever hyper has it write the stand-in.
pub(super) struct FileSender {
    stream: TcpStream,
    files: Handover,
    client: Client,
    /// Since when a range is being sent, and how long it was.
    sending: Option<(Instant, usize)>,
}

/// What is known of the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Client {
    /// It is on another host.
    Remote,
    /// It is on this one, and takes in what it gets at once,
    Idle,
    /// or has its hands full.
    Busy,
}

impl Client {
    fn of(stream: &TcpStream) -> Self {
        match (stream.local_addr(), stream.peer_addr()) {
            (Ok(own), Ok(peer)) if own.ip() == peer.ip() => Self::Idle,
            _ => Self::Remote,
        }
    }

    /// Learns how long it took to take in so many bytes.
    fn took(self, bytes: usize, time: Duration) -> Self {
        match self {
            Self::Remote => Self::Remote,
            Self::Idle | Self::Busy
                if bytes as f64 >= time.as_secs_f64() * BUSY_BYTES_PER_SECOND =>
            {
                Self::Idle
            }
            Self::Idle | Self::Busy => Self::Busy,
        }
    }
}

impl FileSender {
    pub(super) fn new(stream: TcpStream, files: Handover) -> Self {
        Self {
            client: Client::of(&stream),
            stream,
            files,
            sending: None,
        }
    }
}

/// Sends what the socket takes in of a range.
fn poll_send(
    stream: &TcpStream,
    range: &mut FileRange,
    client: Client,
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    loop {
        ready!(stream.poll_write_ready(cx))?;
        let sent = match client {
            Client::Remote | Client::Idle => {
                stream.try_io(Interest::WRITABLE, || range.send(stream))
            }
            Client::Busy => copy(stream, range),
        };
        match sent {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            sent => return Poll::Ready(sent),
        }
    }
}

/// Sends what the socket takes in of a copy of a range's first bytes.
fn copy(stream: &TcpStream, range: &mut FileRange) -> io::Result<usize> {
    let mut copied = Buffer::of(COPIED_BYTES);
    let part = range.peek(&mut copied)?;
    let sent = stream.try_write(&copied[..part])?;
    range.advance(sent);
    Ok(sent)
}

impl AsyncRead for FileSender {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for FileSender {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Self {
            stream,
            files,
            client,
            sending,
        } = &mut *self;
        let mut pending = files.lock();
        let at = slices.iter().position(|slice| stands_in(slice));
        let before = &slices[..at.unwrap_or(slices.len())];
        match (at, &mut pending.range) {
            (None, None) => Pin::new(stream).poll_write_vectored(cx, slices),
            (Some(at), Some(range)) if slices[at].len() == range.len() => {
                if before.iter().any(|slice| !slice.is_empty()) {
                    return Pin::new(stream).poll_write_vectored(cx, before);
                }
                let (since, bytes) =
                    *sending.get_or_insert_with(|| (clock::instant(), range.len()));
                let sent = ready!(poll_send(stream, range, *client, cx))?;
                if range.len() == 0 {
                    *client = client.took(bytes, since.elapsed());
                    *sending = None;
                    pending.range = None;
                    if let Some(waiting) = pending.waiting.take() {
                        waiting.wake();
                    }
                }
                Poll::Ready(Ok(sent))
            }
            // hyper would copy the stand-in were this not vectored: then a range is here and no
            // stand-in.
            _ => Poll::Ready(Err(misfit())),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::http::tests::sockets;

    async fn pair() -> (TcpStream, FileSender, Handover) {
        let (client, stream) = sockets().await;
        let files = Handover::default();
        (client, FileSender::new(stream, files.clone()), files)
    }

    fn range() -> FileRange {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        FileRange::new(Arc::new(file), 2..8)
    }

    async fn sent(mut client: TcpStream, sender: FileSender) -> String {
        drop(sender);
        let mut came = String::new();
        client.read_to_string(&mut came).await.unwrap();
        came
    }

    #[tokio::test]
    async fn what_stands_in_is_replaced_and_what_is_around_it_is_not() {
        let (client, mut sender, files) = pair().await;
        let stand_in = files.give(range()).unwrap();
        let mut all = [
            IoSlice::new(b"ab"),
            IoSlice::new(&stand_in),
            IoSlice::new(b"c"),
        ];
        let mut left = &mut all[..];
        while !left.is_empty() {
            let written = sender.write_vectored(left).await.unwrap();
            IoSlice::advance_slices(&mut left, written);
        }
        assert_eq!(sent(client, sender).await, "ab234567c");
    }

    #[tokio::test]
    async fn to_a_busy_client_it_is_copied() {
        let (client, mut sender, files) = pair().await;
        sender.client = Client::Busy;
        let stand_in = files.give(range()).unwrap();
        sender.write_all(&stand_in).await.unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123").unwrap();
        let stand_in = files.give(FileRange::new(Arc::new(file), 2..8)).unwrap();
        sender.client = Client::Busy;
        let error = sender.write_all(&stand_in).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(sent(client, sender).await, "234567");
    }

    #[tokio::test]
    async fn a_client_on_this_host_is_busy_if_it_takes_long() {
        let (_client, sender, _) = pair().await;
        assert_eq!(sender.client, Client::Idle);
        let (fast, slow) = (Duration::from_micros(1900), Duration::from_micros(2100));
        assert_eq!(Client::Idle.took(1_000_000, slow), Client::Busy);
        assert_eq!(Client::Busy.took(1_000_000, fast), Client::Idle);
        assert_eq!(Client::Remote.took(1_000_000, slow), Client::Remote);
    }

    #[tokio::test]
    async fn what_stands_in_is_never_sent() {
        let (client, mut sender, files) = pair().await;
        let stand_in = files.give(range()).unwrap();
        assert!(files.give(range()).is_err(), "one at a time");
        let copied = vec![0; stand_in.len()];
        assert!(sender.write_all(&copied).await.is_err(), "copied");
        assert!(sender.write_all(&stand_in[1..]).await.is_err(), "a part");
        sender.write_all(&stand_in).await.unwrap();
        assert!(sender.write_all(&stand_in).await.is_err(), "once more");
        assert_eq!(sent(client, sender).await, "234567");
    }
}
