//! What libp2p takes for a multiplexer: a connection that is one stream, of both directions.
//!
//! Messages and chunks have connections of their own, so there is nothing to multiplex, and TCP's
//! flow control serves each. yamux in this place copied every byte twice and put a task between
//! the socket and whoever reads: on loopback a node moved 0.62 of what rustls alone did, at 1.56
//! times its CPU.

use std::{
    convert::Infallible,
    io,
    pin::Pin,
    task::{Context, Poll},
};

use futures::{
    AsyncRead, AsyncWrite, FutureExt as _,
    channel::oneshot::{self, Receiver, Sender},
};
use libp2p::core::muxing::{StreamMuxer, StreamMuxerEvent};

/// One connection. It ends with its stream.
pub(super) struct Muxer<C> {
    stream: Option<Whole<C>>,
    dialer: bool,
    ended: Receiver<Infallible>,
}

impl<C> Muxer<C> {
    /// Makes a stream of an authenticated connection: the dialer opens it, the listener accepts it.
    pub(super) fn new(connection: C, dialer: bool) -> Self {
        let (ends, ended) = oneshot::channel();
        Self {
            stream: Some(Whole {
                connection,
                _ends: ends,
            }),
            dialer,
            ended,
        }
    }

    fn take(&mut self, dialer: bool) -> Poll<io::Result<Whole<C>>> {
        if self.dialer != dialer {
            return Poll::Pending;
        }
        self.stream
            .take()
            .map_or(Poll::Pending, |stream| Poll::Ready(Ok(stream)))
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin> StreamMuxer for Muxer<C> {
    type Substream = Whole<C>;
    type Error = io::Error;

    fn poll_inbound(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<Whole<C>>> {
        self.take(false)
    }

    fn poll_outbound(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<Whole<C>>> {
        self.take(true)
    }

    fn poll_close(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream = None;
        Poll::Ready(Ok(()))
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<StreamMuxerEvent>> {
        self.ended
            .poll_unpin(cx)
            .map(|_| Err(io::ErrorKind::ConnectionAborted.into()))
    }
}

/// The stream.
pub(super) struct Whole<C> {
    connection: C,
    /// Tells the [`Muxer`] when it is dropped.
    _ends: Sender<Infallible>,
}

impl<C: AsyncRead + Unpin> AsyncRead for Whole<C> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.connection).poll_read(cx, into)
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for Whole<C> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.connection).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_close(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use futures::io::Cursor;

    use super::*;

    fn muxer(dialer: bool) -> Muxer<Cursor<Vec<u8>>> {
        Muxer::new(Cursor::new(Vec::new()), dialer)
    }

    #[test]
    fn the_dialer_opens_one_stream_and_the_listener_accepts_one() {
        let cx = &mut Context::from_waker(Waker::noop());
        let (mut dialer, mut listener) = (muxer(true), muxer(false));
        assert!(Pin::new(&mut dialer).poll_inbound(cx).is_pending());
        assert!(Pin::new(&mut listener).poll_outbound(cx).is_pending());
        let opened = Pin::new(&mut dialer).poll_outbound(cx);
        let accepted = Pin::new(&mut listener).poll_inbound(cx);
        assert!(opened.is_ready() && accepted.is_ready());
        assert!(Pin::new(&mut dialer).poll_outbound(cx).is_pending());
        assert!(Pin::new(&mut listener).poll_inbound(cx).is_pending());
    }

    #[test]
    fn a_connection_ends_when_its_stream_is_dropped() {
        let cx = &mut Context::from_waker(Waker::noop());
        let mut muxer = muxer(true);
        let Poll::Ready(Ok(stream)) = Pin::new(&mut muxer).poll_outbound(cx) else {
            panic!("there is a stream");
        };
        assert!(Pin::new(&mut muxer).poll(cx).is_pending());
        drop(stream);
        assert!(matches!(Pin::new(&mut muxer).poll(cx), Poll::Ready(Err(_))));
    }
}
