//! How a call's answer ended, for whoever counts that.

use crate::metrics::CallMetrics;
use bytes::Bytes;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tonic::Status;
use tonic::body::Body;

/// An answer's body. What its trailers say is counted; that none came, because the client went away, when it is
/// dropped.
pub(super) struct Told {
    body: Body,
    metrics: CallMetrics,
    method: &'static str,
    ended: bool,
}

impl Told {
    pub(super) fn wrap(body: Body, metrics: CallMetrics, method: &'static str) -> Body {
        Body::new(Self { body, metrics, method, ended: false })
    }
}

impl http_body::Body for Told {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if !self.ended {
            let status = match &frame {
                Some(Ok(frame)) => frame.trailers_ref().and_then(Status::from_header_map),
                Some(Err(status)) => Some(status.clone()),
                None => None,
            };
            if let Some(status) = status {
                self.ended = true;
                self.metrics.ended(self.method, Some(&status));
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        if !self.ended {
            self.metrics.ended(self.method, None);
        }
    }
}
