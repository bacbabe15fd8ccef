//! The body of an answer, and how it is given to hyper.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream::BoxStream};
use http_body_util::Full;
use hyper::body::{Body, Frame, SizeHint};

use super::{BodyError, sendfile::Handover};
use crate::piece::{self, Piece};

/// The body of an answer.
pub(crate) enum ReplyBody {
    /// It is at hand.
    Full(Full<Bytes>),
    /// It comes piece by piece.
    Pieces(BoxStream<'static, Result<Piece, BodyError>>),
}

impl Default for ReplyBody {
    fn default() -> Self {
        Self::Full(Full::default())
    }
}

impl ReplyBody {
    /// Holds something until all of it was taken.
    pub(crate) fn holding<T: Send + 'static>(self, held: T) -> Self {
        match self {
            Self::Full(body) => Self::Full(body),
            Self::Pieces(pieces) => {
                let held = move |_: &_| {
                    let _ = &held;
                };
                Self::Pieces(pieces.inspect(held).boxed())
            }
        }
    }

    /// To be written to a connection, which sends from files if there is a way to hand them over.
    pub(super) fn onto(self, files: Option<&Handover>) -> Outgoing {
        match (self, files) {
            (Self::Full(body), _) => Outgoing::Full(body),
            (Self::Pieces(pieces), Some(files)) => Outgoing::Pieces(pieces, files.clone()),
            (Self::Pieces(pieces), None) => {
                let bytes = piece::in_memory(pieces, BodyError::from).map_ok(Piece::Bytes);
                Outgoing::Pieces(bytes.boxed(), Handover::default())
            }
        }
    }
}

/// A body as hyper takes it.
pub(super) enum Outgoing {
    Full(Full<Bytes>),
    Pieces(BoxStream<'static, Result<Piece, BodyError>>, Handover),
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self {
            Self::Full(body) => Pin::new(body)
                .poll_frame(cx)
                .map_err(|never| match never {}),
            Self::Pieces(pieces, files) => {
                ready!(files.poll_sent(cx));
                let next = ready!(pieces.poll_next_unpin(cx));
                Poll::Ready(next.map(|piece| match piece? {
                    Piece::Bytes(bytes) => Ok(Frame::data(bytes)),
                    Piece::File(range) => Ok(Frame::data(files.give(range)?)),
                }))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(body) => body.is_end_stream(),
            Self::Pieces(..) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(body) => body.size_hint(),
            Self::Pieces(..) => SizeHint::default(),
        }
    }
}
