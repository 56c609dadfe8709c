//! Bytes over turmoil's network instead of the machine's: channels for clients, listeners for servers.

use futures::FutureExt as _;
use futures::stream::{self, Stream};
use http::Uri;
use hyper_util::rt::TokioIo;
use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::{Connected, TcpConnectInfo};
use tonic::transport::{Channel, Endpoint};
use turmoil::net::{TcpListener, TcpStream};

/// A channel over the simulated network, with all settings of the endpoint. It connects at its first call,
/// and again whenever its connection broke.
pub fn lazy(endpoint: &Endpoint) -> Channel {
    endpoint.connect_with_connector_lazy(tower::service_fn(connect))
}

/// As [`lazy`], but connected, as a worker does it.
///
/// # Errors
/// There is no connection.
pub async fn eager(endpoint: Endpoint) -> Result<Channel, tonic::transport::Error> {
    endpoint.connect_with_connector(tower::service_fn(connect)).await
}

async fn connect(uri: Uri) -> io::Result<TokioIo<TcpStream>> {
    let host = uri.host().unwrap_or_default().to_owned();
    let port = uri.port_u16().unwrap_or(80);
    Ok(TokioIo::new(TcpStream::connect((host, port)).await?))
}

/// Breaks every open connection of a server at once, by server.
#[derive(Clone, Debug, Default)]
pub struct Cuts(Arc<Mutex<CancellationToken>>);

impl Cuts {
    /// Resets all connections that are open now.
    pub fn cut(&self) {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *open).cancel();
    }

    fn open(&self) -> CancellationToken {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The cuts of several servers, by name.
pub type CutsByHost = BTreeMap<String, Cuts>;

/// Connections to a port of this host, for `serve_with_incoming`.
///
/// # Errors
/// The port is taken.
pub async fn listen(port: u16, cuts: Cuts) -> io::Result<impl Stream<Item = io::Result<Wire>>> {
    let listener = TcpListener::bind(("0.0.0.0", port)).await?;
    Ok(stream::unfold((listener, cuts), async |(listener, cuts)| {
        let accepted = listener.accept().await.map(|(stream, _)| Wire::new(stream, &cuts));
        Some((accepted, (listener, cuts)))
    }))
}

/// A server's connection.
pub struct Wire {
    stream: TcpStream,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Wire {
    fn new(stream: TcpStream, cuts: &Cuts) -> Self {
        Self { stream, cut: Box::pin(cuts.open().cancelled_owned()) }
    }

    fn is_cut(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.cut.poll_unpin(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::ConnectionReset.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.is_cut(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.is_cut(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Connected for Wire {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        TcpConnectInfo {
            local_addr: self.stream.local_addr().ok(),
            remote_addr: self.stream.peer_addr().ok(),
        }
    }
}
