//! The body of a stream that ends with a status when something is over: a credential, or the process.

use bytes::Bytes;
use http::HeaderMap;
use std::pin::Pin;
use std::task::{Context, Poll};
use tonic::Status;
use tonic::body::Body;

/// Which way a body goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// To the service: the end is an error of what it reads.
    Request,
    /// To the caller: the end is the call's status.
    Response,
}

/// A body, until something is over.
pub(super) struct Ending<L> {
    body: Body,
    side: Side,
    /// Asked before each frame, also of a body that always has one: must cost next to nothing.
    look: L,
    /// Waits while the body has none.
    over: Pin<Box<dyn Future<Output = Status> + Send>>,
    ended: bool,
}

impl<L> Ending<L>
where
    L: FnMut() -> Option<Status> + Send + Unpin + 'static,
{
    /// The body that ends when `look` or `over` says how.
    pub(super) fn wrap(
        body: Body,
        side: Side,
        look: L,
        over: impl Future<Output = Status> + Send + 'static,
    ) -> Body {
        Body::new(Self { body, side, look, over: Box::pin(over), ended: false })
    }
}

impl<L: FnMut() -> Option<Status> + Unpin> http_body::Body for Ending<L> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Status>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let status = if let Some(status) = (self.look)() {
            status
        } else {
            if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
                return Poll::Ready(frame);
            }
            std::task::ready!(self.over.as_mut().poll(cx))
        };
        self.ended = true;
        // What is still done for it ends.
        self.body = Body::empty();
        if self.side == Side::Request {
            return Poll::Ready(Some(Err(status)));
        }
        let mut trailers = HeaderMap::new();
        status.add_header(&mut trailers)?;
        Poll::Ready(Some(Ok(http_body::Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.body.is_end_stream()
    }
}
