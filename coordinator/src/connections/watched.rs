//! A connection whose frames are counted, and whose peer has to get on with it: the first frame, and what is
//! sent to it, must go within a time.

use super::Why;
use super::frames::Frames;
use super::seats::Visit;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// A connection, after its handshake of TLS.
pub(super) struct Watched<C> {
    connection: C,
    visit: Arc<Visit>,
    frames: Frames,
    patience: Duration,
    /// Until the first frame came.
    begin: Option<Pin<Box<Sleep>>>,
    /// Since a write began to wait for the peer.
    stuck: Option<Pin<Box<Sleep>>>,
}

impl<C> Watched<C> {
    pub(super) fn new(connection: C, visit: Arc<Visit>, patience: Duration) -> Self {
        let (frames, begin) = (Frames::new(Instant::now()), Some(Box::pin(sleep(patience))));
        Self { connection, visit, frames, patience, begin, stuck: None }
    }

    /// Waits for the peer to take what is sent to it, but not for ever.
    fn wait<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stuck = None;
            return written;
        }
        let stuck = self.stuck.get_or_insert_with(|| Box::pin(sleep(self.patience)));
        std::task::ready!(stuck.as_mut().poll(cx));
        Poll::Ready(Err(self.visit.end(Why::Unread)))
    }
}

impl<C: AsyncWrite + Unpin> Watched<C> {
    /// Tells the peer, if it can be told at once, and ends the connection.
    fn end(&mut self, cx: &mut Context<'_>, why: Why, said: Option<&str>) -> io::Error {
        if let Some(word) = said.and_then(|said| self.frames.goodbye(said)) {
            // Who doesn't read this either is told nothing.
            let _ = Pin::new(&mut self.connection).poll_write(cx, &word);
            let _ = Pin::new(&mut self.connection).poll_flush(cx);
        }
        self.visit.end(why)
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin> AsyncRead for Watched<C> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let me = &mut *self;
        let before = buffer.filled().len();
        let read = Pin::new(&mut me.connection).poll_read(cx, buffer);
        if let Poll::Ready(Ok(())) = &read
            && let Err(excess) = me.frames.came(&buffer.filled()[before..])
        {
            let error = me.end(cx, Why::from(excess), Some(excess.said()));
            buffer.set_filled(before);
            return Poll::Ready(Err(error));
        }
        if let Some(begin) = &mut me.begin {
            if me.frames.begun() {
                me.begin = None;
            } else if begin.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(me.end(cx, Why::Silent, None)));
            }
        }
        read
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for Watched<C> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let me = &mut *self;
        let written = Pin::new(&mut me.connection).poll_write(cx, bytes);
        if let Poll::Ready(Ok(written)) = &written {
            me.frames.sent(&bytes[..*written]);
        }
        me.wait(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let me = &mut *self;
        let written = Pin::new(&mut me.connection).poll_write_vectored(cx, slices);
        if let Poll::Ready(Ok(written)) = &written {
            let mut left = *written;
            for slice in slices {
                let part = left.min(slice.len());
                me.frames.sent(&slice[..part]);
                left -= part;
            }
        }
        me.wait(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.connection.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.connection).poll_flush(cx);
        self.wait(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let closed = Pin::new(&mut self.connection).poll_shutdown(cx);
        self.wait(cx, closed)
    }
}
