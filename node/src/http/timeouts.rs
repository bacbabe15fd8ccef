//! Bounds on how long a client may take to send the head of a request, and to take in an answer.
//!
//! hyper's own bound on heads also runs while a kept connection is idle, and so must be as long as a
//! connection may be idle. This one starts with the first byte of a head. Of answers hyper bounds
//! nothing.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Sleep,
};

use super::idle::Activity;

/// Says that the head of the current request is complete.
#[derive(Clone, Default)]
pub(super) struct HeadSeen(Arc<AtomicBool>);

impl HeadSeen {
    /// A request was handed to its handler.
    pub(super) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// How long a client may take.
#[derive(Clone, Copy)]
pub(super) struct Patience {
    /// To send a head that it has begun.
    pub(super) head: Duration,
    /// To take in a further byte of an answer.
    pub(super) answer: Duration,
}

/// A connection whose reads fail when a head that was begun is not complete in time, and whose
/// writes fail when the client takes in nothing for too long.
pub(super) struct TimeoutStream<S> {
    stream: S,
    head_seen: HeadSeen,
    activity: Activity,
    patience: Patience,
    deadline: Option<Pin<Box<Sleep>>>,
    /// Runs while the client takes in nothing.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> TimeoutStream<S> {
    pub(super) fn new(
        stream: S,
        head_seen: HeadSeen,
        activity: Activity,
        patience: Patience,
    ) -> Self {
        Self {
            stream,
            head_seen,
            activity,
            patience,
            deadline: None,
            stalled: None,
        }
    }

    /// Fails a write that has waited for too long.
    fn bounded(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let allowed = self.patience.answer;
        let stalled = self
            .stalled
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(allowed)));
        stalled.as_mut().poll(cx).map(|()| {
            Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the client takes in nothing of its answer",
            ))
        })
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for TimeoutStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.head_seen.0.swap(false, Ordering::Relaxed) {
            self.deadline = None;
        }
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if buffer.filled().len() > before && self.deadline.is_none() {
            self.deadline = Some(Box::pin(tokio::time::sleep(self.patience.head)));
        }
        if read.is_pending()
            && let Some(deadline) = &mut self.deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the client took too long to send its request",
            )));
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for TimeoutStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.bounded(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.bounded(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // hyper flushes once nothing is left in its own buffers.
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        if flushed.is_ready() {
            self.activity.sent();
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::*;
    use crate::{
        http::{
            idle::Idle,
            sendfile::{FileSender, Handover},
            tests::sockets,
        },
        piece::{FILE_BYTES_MAX, FileRange},
    };

    async fn pair(allowed: Duration) -> (TcpStream, TimeoutStream<TcpStream>, HeadSeen) {
        let (client, stream) = sockets().await;
        let seen = HeadSeen::default();
        (client, bounded(stream, seen.clone(), allowed), seen)
    }

    fn bounded<S>(stream: S, seen: HeadSeen, allowed: Duration) -> TimeoutStream<S> {
        let activity = Arc::new(Idle::default()).accepted();
        let patience = Patience {
            head: allowed,
            answer: allowed,
        };
        TimeoutStream::new(stream, seen, activity, patience)
    }

    /// Whether a read is still waiting well after what is allowed.
    async fn waits(server: &mut TimeoutStream<TcpStream>, allowed: Duration) -> bool {
        let read = server.read_u8();
        tokio::time::timeout(4 * allowed, read).await.is_err()
    }

    #[tokio::test]
    async fn a_head_that_trickles_fails_in_time_and_an_idle_connection_does_not() {
        let allowed = Duration::from_millis(50);
        let (mut client, mut server, seen) = pair(allowed).await;
        let mut byte = [0];

        // Idle: no deadline runs before the first byte.
        assert!(waits(&mut server, allowed).await);

        // A complete head stops the deadline.
        client.write_all(b"G").await.unwrap();
        assert_eq!(server.read(&mut byte).await.unwrap(), 1);
        seen.set();
        assert!(waits(&mut server, allowed).await);

        // One that is begun and not completed does not.
        client.write_all(b"G").await.unwrap();
        assert_eq!(server.read(&mut byte).await.unwrap(), 1);
        let error = server.read(&mut byte).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_client_that_reads_nothing_fails_in_time_and_a_slow_one_does_not() {
        let allowed = Duration::from_millis(300);
        let (mut client, mut server, _) = pair(allowed).await;
        let answer = vec![7; 16 << 20];
        let writing = tokio::spawn(async move {
            let written = server.write_all(&answer).await;
            (server, written)
        });
        let mut some = vec![0; 3 << 20];
        for _ in 0..4 {
            tokio::time::sleep(allowed / 2).await;
            client.read_exact(&mut some).await.unwrap();
        }
        client.read_exact(&mut some).await.unwrap();
        client.read_exact(&mut vec![0; 1 << 20]).await.unwrap();
        let (mut server, written) = writing.await.unwrap();
        written.unwrap();

        let error = server.write_all(&vec![7; 64 << 20]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_client_that_takes_nothing_in_of_a_file_fails_in_time_too() {
        let allowed = Duration::from_millis(300);
        let (_client, stream) = sockets().await;
        let files = Handover::default();
        let stream = FileSender::new(stream, files.clone());
        let mut server = bounded(stream, HeadSeen::default(), allowed);
        let file = Arc::new(tempfile::tempfile().unwrap());
        file.set_len(FILE_BYTES_MAX as u64).unwrap();
        let error = loop {
            let range = FileRange::new(Arc::clone(&file), 0..FILE_BYTES_MAX as u64);
            let stand_in = files.give(range).unwrap();
            if let Err(error) = server.write_all(&stand_in).await {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
