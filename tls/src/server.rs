//! The side that is connected to.

use crate::files::{certificates, key, roots};
use crate::{FileError, H2, Loaded, PeerCertificate, Reloading, provider};
use futures::{Stream, StreamExt as _, stream};
use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::server::TlsStream;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::server::{Connected, TcpConnectInfo};

/// Handshakes at once. One more ends the oldest: who holds many half-open keeps nobody out.
pub const MAX_HANDSHAKES: usize = 256;
/// How long a handshake may take.
pub const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// Connections whose handshake is done and that wait to be served.
const READY: usize = 64;
/// After a connection couldn't be accepted; there may be no free descriptor for a while.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// No timer is set for longer.
const LONGEST: Duration = Duration::from_hours(24 * 365);

/// Where a server's certificate is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerFiles {
    /// The certificate, with those between it and its CA (PEM).
    pub cert: PathBuf,
    /// Its private key (PEM).
    pub key: PathBuf,
    /// Certificate authorities (PEM) of clients. Default: clients aren't asked for a certificate.
    pub client_ca: Option<PathBuf>,
    /// A client without a certificate isn't let in.
    pub client_required: bool,
}

impl ServerFiles {
    /// Reads them, and again when they change. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// One of them can't be used.
    pub fn start(self) -> Result<Reloading<ServerConfig>, FileError> {
        self.start_for(&[H2])
    }

    /// The same for other protocols than gRPC's, as in ALPN (`h2`, `http/1.1`).
    ///
    /// # Errors
    /// As [`ServerFiles::start`].
    pub fn start_for(self, protocols: &[&[u8]]) -> Result<Reloading<ServerConfig>, FileError> {
        let protocols: Vec<Vec<u8>> = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        let files: Vec<_> = [Some(&self.cert), Some(&self.key), self.client_ca.as_ref()]
            .into_iter()
            .flatten()
            .cloned()
            .collect();
        Reloading::start("TLS", move || {
            let mut value = self.load()?;
            value.alpn_protocols.clone_from(&protocols);
            Ok(Loaded { value, files: files.clone() })
        })
    }

    fn load(&self) -> Result<ServerConfig, FileError> {
        let builder = ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13]);
        let builder = builder.expect("ring has TLS 1.3");
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(ca) => {
                let mut verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots(ca)?), provider());
                if !self.client_required {
                    verifier = verifier.allow_unauthenticated();
                }
                let verifier = verifier.build().map_err(|error| FileError::new(ca, error))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config =
            builder.with_single_cert(certificates(&self.cert)?, key(&self.key)?).map_err(|error| {
                FileError::new(&self.cert, format!("doesn't go with {}: {error}", self.key.display()))
            })?;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub struct TlsPeer {
    /// Where.
    pub tcp: TcpConnectInfo,
    /// The certificate, verified; `None`: it brought none.
    pub certificate: Option<Arc<PeerCertificate>>,
}

/// A connection after its handshake. It ends when the client's certificate does: the client connects again, with
/// its next one.
#[derive(Debug)]
pub struct TlsConnection<S> {
    stream: TlsStream<S>,
    certificate: Option<Arc<PeerCertificate>>,
    expiry: Option<Pin<Box<Sleep>>>,
}

impl<S> TlsConnection<S> {
    /// Whether the client brought a certificate, which was verified.
    pub fn is_known(&self) -> bool {
        self.certificate.is_some()
    }

    /// The connection below.
    pub fn get_ref(&self) -> &S {
        self.stream.get_ref().0
    }

    fn new(stream: TlsStream<S>) -> io::Result<Self> {
        let presented = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let certificate = match presented {
            None => None,
            // It was verified by another parser; who isn't understood is nobody.
            Some(der) => {
                let unreadable = || io::Error::other("the client's certificate can't be read");
                Some(Arc::new(PeerCertificate::read(der).ok_or_else(unreadable)?))
            }
        };
        let left = certificate.as_ref().map(|certificate| certificate.remaining().min(LONGEST));
        let expiry = left.map(|left| Box::pin(tokio::time::sleep(left)));
        Ok(Self { stream, certificate, expiry })
    }
}

impl<S: Connected<ConnectInfo = TcpConnectInfo>> Connected for TlsConnection<S> {
    type ConnectInfo = TlsPeer;
    fn connect_info(&self) -> TlsPeer {
        TlsPeer { tcp: self.stream.get_ref().0.connect_info(), certificate: self.certificate.clone() }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsConnection<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // A connection is always read from, so this is enough to end it.
        if let Some(expiry) = &mut self.expiry
            && expiry.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::Error::other("the client's certificate expired")));
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsConnection<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// The connections after their handshakes, in the order in which those end. Each handshake is a task of its own, with
/// the newest certificate, and bounded in number and in time. Must be called inside a tokio runtime.
pub fn accept<S>(
    incoming: impl Stream<Item = io::Result<S>> + Send + 'static,
    config: Reloading<ServerConfig>,
) -> impl Stream<Item = io::Result<TlsConnection<S>>> + Send + 'static
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (out, ready) = mpsc::channel(READY);
    // Ends with the stream.
    let accepting = AbortOnDropHandle::new(tokio::spawn(accepting(incoming, config, out)));
    stream::unfold((ready, accepting), |(mut ready, accepting)| async move {
        let connection = ready.recv().await?;
        Some((Ok(connection), (ready, accepting)))
    })
}

async fn accepting<S>(
    incoming: impl Stream<Item = io::Result<S>>,
    config: Reloading<ServerConfig>,
    out: mpsc::Sender<TlsConnection<S>>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut handshakes = JoinSet::new();
    let mut oldest: VecDeque<AbortHandle> = VecDeque::new();
    tokio::pin!(incoming);
    while let Some(connection) = incoming.next().await {
        let connection = match connection {
            Ok(connection) => connection,
            Err(error) => {
                tracing::debug!(%error, "connection not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        while handshakes.try_join_next().is_some() {}
        if handshakes.len() >= MAX_HANDSHAKES {
            oldest.retain(|handshake| !handshake.is_finished());
            if let Some(first) = oldest.pop_front() {
                tracing::debug!(most = MAX_HANDSHAKES, "too many handshakes at once, the oldest is ended");
                first.abort();
            }
        }
        let (acceptor, out) = (TlsAcceptor::from(config.get()), out.clone());
        oldest.push_back(handshakes.spawn(handshake(acceptor, connection, out)));
        if oldest.len() > 2 * MAX_HANDSHAKES {
            oldest.retain(|handshake| !handshake.is_finished());
        }
    }
    // No more will come; those that are at it may end.
    while handshakes.join_next().await.is_some() {}
}

async fn handshake<S>(acceptor: TlsAcceptor, connection: S, out: mpsc::Sender<TlsConnection<S>>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let made = tokio::time::timeout(HANDSHAKE_TIME, acceptor.accept(connection)).await;
    let made = made.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    match made.and_then(TlsConnection::new) {
        Ok(connection) => drop(out.send(connection).await),
        Err(error) => tracing::debug!(%error, "handshake failed"),
    }
}

#[cfg(test)]
mod tests;
