//! Answers that their reader doesn't read.
//!
//! HTTP/2 lets a reader hold an answer up by giving it no window. hyper asks an answer's body for a next part when the
//! reader made room for the one before, so a body that isn't asked is one that isn't read: its stream is reset
//! after a time, and the others on the connection go on. What waits like that is bounded, too: an answer is handed over in
//! small parts, and the rest of the large ones of a connection is counted.

use super::frames::Sparingly;
use super::{SAID, UNREAD_BYTES};
use crate::error::Error;
use crate::metrics::ConnectionMetrics;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use std::cell::Cell;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep};
use tonic::Status;
use tonic::body::Body;

/// What is handed over at once: h2 takes a part for a single byte of window, and then holds all of it.
const PART: usize = 16 * 1024;

/// What a stream's body did last.
#[derive(Clone, Copy, Debug, Default)]
struct Handed {
    /// Parts that it gave.
    parts: u64,
    /// It wasn't asked again since it gave the last.
    last: bool,
    method: &'static str,
}

tokio::task_local! {
    /// Of the stream whose task this is.
    static HANDED: Cell<Handed>;
}

/// Runs the streams of all connections.
#[derive(Clone, Debug)]
pub(super) struct Streams {
    patience: Duration,
    metrics: ConnectionMetrics,
    said: Arc<Mutex<Sparingly>>,
}

impl Streams {
    pub(super) fn new(patience: Duration, metrics: ConnectionMetrics) -> Self {
        Self { patience, metrics, said: Arc::new(Mutex::new(Sparingly::new(SAID))) }
    }

    fn unread(&self, method: &str) {
        self.metrics.unread_streams.inc();
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner).say();
        if let Some(unsaid) = said {
            tracing::info!(rpc.method = method, patience = ?self.patience, unsaid, "stream reset: its answer isn't read");
        }
    }
}

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let streams = self.clone();
        tokio::spawn(HANDED.scope(Cell::default(), async move {
            tokio::pin!(stream);
            let mut waiting: Option<(u64, Pin<Box<Sleep>>)> = None;
            // Dropping the stream resets it.
            poll_fn(|cx| {
                if stream.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(());
                }
                let handed = HANDED.with(Cell::get);
                if !handed.last {
                    waiting = None;
                    return Poll::Pending;
                }
                let (part, until) =
                    waiting.get_or_insert_with(|| (handed.parts, Box::pin(sleep(streams.patience))));
                if *part != handed.parts {
                    *part = handed.parts;
                    until.as_mut().reset(Instant::now() + streams.patience);
                }
                ready!(until.as_mut().poll(cx));
                streams.unread(handed.method);
                Poll::Ready(())
            })
            .await;
        }));
    }
}

/// A connection's answers that wait for their reader.
#[derive(Clone, Debug)]
pub(super) struct Unread(Arc<Semaphore>);

impl Unread {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(UNREAD_BYTES)))
    }

    /// The answer of a call. Large ones are cut, unless they are `whole`.
    pub(super) fn answer(&self, body: Body, method: &'static str, whole: bool) -> Body {
        Body::new(Answer { body, method, unread: (!whole).then(|| self.0.clone()), rest: None, ended: false })
    }
}

struct Answer {
    body: Body,
    method: &'static str,
    unread: Option<Arc<Semaphore>>,
    rest: Option<(Bytes, OwnedSemaphorePermit)>,
    ended: bool,
}

impl Answer {
    fn hand(&self, last: bool) {
        // In a test there may be no task of a stream.
        let _ = HANDED.try_with(|handed| {
            let parts = handed.get().parts + u64::from(last);
            handed.set(Handed { parts, last, method: self.method });
        });
    }

    fn cut(&mut self, mut bytes: Bytes) -> Frame<Bytes> {
        let Some(unread) = self.unread.as_ref().filter(|_| bytes.len() > PART) else {
            return Frame::data(bytes);
        };
        let size = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let Ok(permit) = unread.clone().try_acquire_many_owned(size) else {
            self.ended = true;
            let mut trailers = http::HeaderMap::new();
            let busy =
                Error::Busy { what: "bytes of answers not read on this connection", limit: UNREAD_BYTES };
            let status = Status::from(busy);
            // It is made of ASCII.
            let _ = status.add_header(&mut trailers);
            return Frame::trailers(trailers);
        };
        let part = bytes.split_to(PART);
        self.rest = Some((bytes, permit));
        Frame::data(part)
    }
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let me = &mut *self;
        me.hand(false);
        if me.ended {
            return Poll::Ready(None);
        }
        let frame = if let Some((mut rest, permit)) = me.rest.take() {
            let part = rest.split_to(rest.len().min(PART));
            if !rest.is_empty() {
                me.rest = Some((rest, permit));
            }
            Frame::data(part)
        } else {
            match ready!(Pin::new(&mut me.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) => me.cut(bytes),
                    Err(frame) => frame,
                },
                other => return Poll::Ready(other),
            }
        };
        me.hand(frame.is_data());
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.ended || (self.rest.is_none() && self.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        // Only asked before the first part.
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{BodyExt as _, Full};

    fn all(body: usize) -> Body {
        Body::new(Full::new(Bytes::from(vec![7; body])))
    }

    #[tokio::test]
    async fn a_large_answer_comes_in_parts_and_a_whole_one_at_once() {
        let unread = Unread::new();
        for (size, whole, parts) in
            [(PART, false, 1), (PART + 1, false, 2), (10 * PART, false, 10), (10 * PART, true, 1)]
        {
            let mut answer = unread.answer(all(size), "GetBatch", whole);
            let mut seen = Vec::new();
            while let Some(frame) = answer.frame().await {
                seen.push(frame.expect("whole").into_data().expect("data").len());
            }
            assert_eq!((seen.iter().sum::<usize>(), seen.len()), (size, parts));
        }
        assert_eq!(unread.0.available_permits(), UNREAD_BYTES);
    }

    #[tokio::test]
    async fn what_a_connection_leaves_unread_is_bounded() {
        let unread = Unread::new();
        let half = UNREAD_BYTES / 2;
        let mut waiting = [(); 2].map(|()| unread.answer(all(half), "GetBatch", false));
        for answer in &mut waiting {
            answer.frame().await.expect("a part").expect("whole");
        }
        let mut small = unread.answer(all(PART), "GetBatch", false);
        small.frame().await.expect("a part").expect("whole").into_data().expect("data");
        let mut refused = unread.answer(all(PART + 1), "GetBatch", false);
        let trailers =
            refused.frame().await.expect("an end").expect("whole").into_trailers().expect("trailers");
        let status = Status::from_header_map(&trailers).expect("a status");
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
        assert!(refused.frame().await.is_none());
        drop(waiting);
        let mut next = unread.answer(all(half), "GetBatch", false);
        next.frame().await.expect("a part").expect("whole").into_data().expect("there is room again");
    }
}
