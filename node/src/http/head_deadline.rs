//! A bound on how long a client may take to send the head of a request.
//!
//! hyper's own bound also runs while a kept connection is idle, and so must be as long as a
//! connection may be idle. This one starts with the first byte of a head.

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

/// Says that the head of the current request is complete.
#[derive(Clone, Default)]
pub(super) struct HeadSeen(Arc<AtomicBool>);

impl HeadSeen {
    /// A request was handed to its handler.
    pub(super) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A connection whose reads fail when a head that was begun is not complete in time.
pub(super) struct HeadDeadline<S> {
    stream: S,
    head_seen: HeadSeen,
    allowed: Duration,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl<S> HeadDeadline<S> {
    pub(super) fn new(stream: S, head_seen: HeadSeen, allowed: Duration) -> Self {
        Self {
            stream,
            head_seen,
            allowed,
            deadline: None,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for HeadDeadline<S> {
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
            self.deadline = Some(Box::pin(tokio::time::sleep(self.allowed)));
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

impl<S: AsyncWrite + Unpin> AsyncWrite for HeadDeadline<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
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
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    async fn pair(allowed: Duration) -> (TcpStream, HeadDeadline<TcpStream>, HeadSeen) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let seen = HeadSeen::default();
        let server = HeadDeadline::new(listener.accept().await.unwrap().0, seen.clone(), allowed);
        (client, server, seen)
    }

    #[tokio::test]
    async fn a_head_that_trickles_fails_in_time_and_an_idle_connection_does_not() {
        let allowed = Duration::from_millis(50);
        let (mut client, mut server, seen) = pair(allowed).await;
        let mut byte = [0];

        // Idle: no deadline runs before the first byte.
        assert!(
            tokio::time::timeout(4 * allowed, server.read(&mut byte))
                .await
                .is_err()
        );

        // A complete head stops the deadline.
        client.write_all(b"G").await.unwrap();
        assert_eq!(server.read(&mut byte).await.unwrap(), 1);
        seen.set();
        assert!(
            tokio::time::timeout(4 * allowed, server.read(&mut byte))
                .await
                .is_err()
        );

        // One that is begun and not completed does not.
        client.write_all(b"G").await.unwrap();
        assert_eq!(server.read(&mut byte).await.unwrap(), 1);
        let error = server.read(&mut byte).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
