//! yamux as libp2p wants it, with the two settings that libp2p-yamux does not pass on: the size of
//! a frame, which decides what bulk costs, and how far a peer may send ahead.

use std::{
    collections::VecDeque,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use futures::{AsyncRead, AsyncWrite, ready};
use libp2p::core::muxing::{StreamMuxer, StreamMuxerEvent};
use yamux::{Config, Connection, ConnectionError, Mode, Stream};

use super::limits::{FRAME_BYTES_MAX, STREAMS_MAX, WINDOW_BYTES_MAX};

/// One multiplexed connection.
pub(super) struct Muxer<C> {
    connection: Connection<C>,
    /// Streams that the peer opened and nobody took yet; yamux keeps them under [`STREAMS_MAX`].
    inbound: VecDeque<Stream>,
    waker: Option<Waker>,
}

impl<C: AsyncRead + AsyncWrite + Unpin> Muxer<C> {
    /// Speaks yamux on an authenticated connection.
    pub(super) fn new(io: C, dialer: bool) -> Self {
        let mut config = Config::default();
        config
            .set_max_num_streams(STREAMS_MAX)
            .set_max_connection_receive_window(Some(WINDOW_BYTES_MAX))
            .set_split_send_size(FRAME_BYTES_MAX);
        let mode = if dialer { Mode::Client } else { Mode::Server };
        Self {
            connection: Connection::new(io, config, mode),
            inbound: VecDeque::new(),
            waker: None,
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Stream, ConnectionError>> {
        let next = ready!(self.connection.poll_next_inbound(cx));
        Poll::Ready(next.unwrap_or(Err(ConnectionError::Closed)))
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin> StreamMuxer for Muxer<C> {
    type Substream = Stream;
    type Error = ConnectionError;

    fn poll_inbound(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Stream, ConnectionError>> {
        if let Some(stream) = self.inbound.pop_front() {
            return Poll::Ready(Ok(stream));
        }
        if let Poll::Ready(next) = self.poll_next(cx) {
            return Poll::Ready(next);
        }
        self.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    fn poll_outbound(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Stream, ConnectionError>> {
        self.connection.poll_new_outbound(cx)
    }

    fn poll_close(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), ConnectionError>> {
        self.connection.poll_close(cx)
    }

    /// yamux moves bytes only while it is asked for inbound streams, so that is done here, and
    /// what comes is kept for `poll_inbound`.
    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<StreamMuxerEvent, ConnectionError>> {
        loop {
            let stream = ready!(self.poll_next(cx))?;
            self.inbound.push_back(stream);
            if let Some(waker) = self.waker.take() {
                waker.wake();
            }
        }
    }
}
