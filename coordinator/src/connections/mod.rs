//! The connections of the gRPC port: how many there are, and what each of them may cost.
//!
//! | module | bounds |
//! | --- | --- |
//! | [`seats`] | connections, in all and of an address |
//! | [`conduct`] | how fast an address may begin anew whose connections end badly |
//! | [`frames`], [`watched`] | frames that cost work and bring none; the time until a connection begins, and that its peer leaves unread what is sent to it |
//! | [`unread`] | the time that an answer waits for window, and the bytes that do |
//!
//! Calls have their limits in [`crate::grpc`]. Nothing here waits for a peer: what is beyond a limit is refused or ended
//! there and then, with a reason in the log and in the metrics. tonic's own server has no place for that, so the
//! connections are served by hyper, as tonic does it.

mod conduct;
mod frames;
mod seats;
mod unread;
mod watched;

pub(crate) use seats::{Seated, Visit, Visiting};

use self::frames::{Excess, Sparingly};
use self::seats::Seats;
use self::unread::{Streams, Unread};
use self::watched::Watched;
use crate::config::Config;
use crate::metrics::{CallMetrics, ConnectionMetrics};
use futures::{Stream, StreamExt as _, stream};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::process::{Resource, getrlimit};
use std::convert::Infallible;
use std::error::Error as _;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::transport::server::Connected;
use tower::{Service, ServiceExt as _};
use tranche_proto::HTTP2_FRAME_BYTES;

/// Calls and streams of one connection at once; HTTP/2 makes a client wait with one more, and one that doesn't
/// is refused (`REFUSED_STREAM`). The process's limits are in [`Config`].
pub(crate) const MAX_STREAMS: u32 = 1024;
/// The most bytes of a call's headers: ours are a few hundred. One more is answered with status 431.
const MAX_HEADER_BYTES: u32 = 16 * 1024;
/// Streams that a client reset before we looked at them; one more ends the connection.
const MAX_PENDING_RESETS: usize = 20;
/// Streams that a client made us reset by its mistakes, in a connection's life; one more ends it.
const MAX_ERROR_RESETS: usize = 128;
/// A ping when nothing came for this long: below the idle limits of usual load balancers.
pub(crate) const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// A connection whose ping isn't answered for this long is dead.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a connection's large answers that wait for their reader: five pages of the largest. One more answer
/// ends as `OVERLOADED`.
const UNREAD_BYTES: usize = 16 * 1024 * 1024;
/// Files that a process needs beside its connections.
const OTHER_FILES: usize = 256;
/// After a connection couldn't be accepted; there may be no free descriptor for a while.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// What attackers can bring about isn't said more often, at once and a second.
const SAID: (u32, u32) = (20, 2);
/// Leases come in frames that are cut to HTTP/2's size already.
const WHOLE: &str = "/tranche.v1.WorkerService/";

/// Why a connection was ended from here, or by its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// Its peer went, or we did.
    Closed,
    /// No seat was left, and no call of it had been let in.
    Displaced,
    /// Its first frame didn't come in time.
    Silent,
    /// Its peer didn't take what was sent.
    Unread,
    /// Too many PINGs.
    Pings,
    /// Too many SETTINGS.
    Settings,
    /// Too many frames that bring no data.
    Frames,
    /// Too many of what h2 counts: resets, CONTINUATION, tiny or endless headers and data.
    Flood,
    /// What came isn't HTTP/2.
    Protocol,
    /// A ping wasn't answered.
    Dead,
}

impl Why {
    /// All.
    pub(crate) const ALL: [Self; 10] = [
        Self::Closed,
        Self::Displaced,
        Self::Silent,
        Self::Unread,
        Self::Pings,
        Self::Settings,
        Self::Frames,
        Self::Flood,
        Self::Protocol,
        Self::Dead,
    ];

    /// Its name among the labels.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Displaced => "displaced",
            Self::Silent => "silent",
            Self::Unread => "unread",
            Self::Pings => "pings",
            Self::Settings => "settings",
            Self::Frames => "frames",
            Self::Flood => "flood",
            Self::Protocol => "protocol",
            Self::Dead => "dead",
        }
    }

    /// Whether the peer did something that ours never do. One that is cut off from us, or too slow, does nothing: a
    /// fleet behind one address comes back all at once when its network does.
    fn is_attack(self) -> bool {
        match self {
            Self::Pings | Self::Settings | Self::Frames | Self::Flood | Self::Protocol => true,
            Self::Closed | Self::Displaced | Self::Silent | Self::Unread | Self::Dead => false,
        }
    }

    /// As hyper and h2 tell it.
    fn of(error: &hyper::Error) -> Self {
        if error.is_timeout() {
            return Self::Dead;
        }
        let Some(error) = error.source().and_then(|cause| cause.downcast_ref::<h2::Error>()) else {
            return Self::Closed;
        };
        if error.is_io() || error.is_remote() {
            return Self::Closed;
        }
        match error.reason() {
            Some(h2::Reason::ENHANCE_YOUR_CALM) => Self::Flood,
            Some(h2::Reason::NO_ERROR) => Self::Closed,
            _ => Self::Protocol,
        }
    }
}

impl From<Excess> for Why {
    fn from(excess: Excess) -> Self {
        match excess {
            Excess::Pings => Self::Pings,
            Excess::Settings => Self::Settings,
            Excess::Others => Self::Frames,
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed => "it was closed",
            Self::Displaced => "no seat was left, and no call of it had been let in",
            Self::Silent => "its first frame didn't come in time",
            Self::Unread => "its peer doesn't take what is sent",
            Self::Pings => "too many PINGs",
            Self::Settings => "too many SETTINGS",
            Self::Frames => "too many frames that bring no data",
            Self::Flood => "too many resets or frames without an end",
            Self::Protocol => "what came isn't HTTP/2",
            Self::Dead => "a ping wasn't answered",
        })
    }
}

/// The way in.
#[derive(Clone, Debug)]
pub(crate) struct Door {
    seats: Arc<Seats>,
    patience: Duration,
    streams: Streams,
    metrics: ConnectionMetrics,
    said: Arc<Mutex<Sparingly>>,
}

/// How many connections there may be, where a process has so many files.
pub fn most_connections(config: &Config) -> usize {
    let files = getrlimit(Resource::Nofile).current.map_or(usize::MAX, |files| files as usize);
    config.max_connections.min(files.saturating_sub(OTHER_FILES).max(1))
}

impl Door {
    /// With the limits of this configuration.
    pub(crate) fn new(config: &Config, metrics: ConnectionMetrics) -> Self {
        let of_one = config.max_peer_connections.unwrap_or(usize::MAX);
        Self {
            seats: Seats::new(most_connections(config), of_one, metrics.clone()),
            patience: config.peer_timeout,
            streams: Streams::new(config.peer_timeout, metrics.clone()),
            metrics,
            said: Arc::new(Mutex::new(Sparingly::new(SAID))),
        }
    }

    /// The connections that get a seat, before anything is read of them. Never fails.
    pub(crate) fn admit<S: Send + 'static>(
        &self,
        incoming: impl Stream<Item = io::Result<S>> + Send + 'static,
        peer: impl Fn(&S) -> Option<SocketAddr> + Send + 'static,
    ) -> impl Stream<Item = io::Result<Seated<S>>> + Send + 'static {
        let seats = self.seats.clone();
        stream::unfold((Box::pin(incoming), seats, peer, Sparingly::new(SAID)), |state| async {
            let (mut incoming, seats, peer, mut said) = state;
            loop {
                match incoming.next().await? {
                    Ok(stream) => {
                        if let Some(seat) = seats.take(peer(&stream)) {
                            return Some((Ok(Seated::new(stream, seat)), (incoming, seats, peer, said)));
                        }
                    }
                    Err(error) => {
                        if let Some(unsaid) = said.say() {
                            tracing::warn!(%error, unsaid, "connection not accepted");
                        }
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        })
    }

    /// Serves all that come until `shutdown`, and then those that are there until they are done.
    pub(crate) async fn serve<C, S>(
        self,
        service: S,
        incoming: impl Stream<Item = io::Result<C>> + Send + 'static,
        shutdown: CancellationToken,
    ) where
        C: Visiting + Connected + AsyncRead + AsyncWrite + Unpin + Send + 'static,
        C::ConnectInfo: Clone + Send + Sync + 'static,
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send + 'static,
    {
        let http2 = self.http2();
        let mut open = JoinSet::new();
        {
            // Dropped as soon as nothing more is taken: the port is closed.
            let mut incoming = Box::pin(incoming);
            loop {
                tokio::select! {
                    biased;
                    () = shutdown.cancelled() => break,
                    Some(_) = open.join_next(), if !open.is_empty() => {}
                    connection = incoming.next() => match connection {
                        Some(Ok(connection)) => {
                            open.spawn(self.clone().attend(http2.clone(), service.clone(), connection, shutdown.clone()));
                        }
                        Some(Err(error)) => tracing::debug!(%error, "connection not accepted"),
                        None => break,
                    },
                }
            }
        }
        while open.join_next().await.is_some() {}
    }

    fn http2(&self) -> http2::Builder<Streams> {
        let mut http2 = http2::Builder::new(self.streams.clone());
        http2
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEPALIVE_INTERVAL.min(self.patience))
            .keep_alive_timeout(KEEPALIVE_TIMEOUT.min(self.patience))
            .max_concurrent_streams(MAX_STREAMS)
            .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
            .max_local_error_reset_streams(MAX_ERROR_RESETS)
            .max_frame_size(HTTP2_FRAME_BYTES)
            // h2 takes less than this.
            .max_header_list_size(MAX_HEADER_BYTES + 1);
        http2
    }

    async fn attend<C, S>(
        self,
        http2: http2::Builder<Streams>,
        service: S,
        connection: C,
        shutdown: CancellationToken,
    ) where
        C: Visiting + Connected + AsyncRead + AsyncWrite + Unpin + Send + 'static,
        C::ConnectInfo: Clone + Send + Sync + 'static,
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send + 'static,
    {
        let visit = connection.visit().clone();
        let of = Of { service, info: connection.connect_info(), visit: visit.clone(), unread: Unread::new() };
        let watched = Watched::new(connection, visit.clone(), self.patience);
        let connection = http2.serve_connection(TokioIo::new(watched), of);
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = &mut connection => ended,
            () = shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        let why = visit.why().or_else(|| ended.as_ref().err().map(Why::of)).unwrap_or(Why::Closed);
        self.metrics.ended(why);
        let peer = visit.peer;
        if why == Why::Closed {
            if let Err(error) = ended {
                tracing::debug!(?peer, error = ?error, "connection broke");
            }
            return;
        }
        // Known to its seat, too, which is given back with the last of it.
        visit.end(why);
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner).say();
        if let Some(unsaid) = said {
            tracing::info!(?peer, reason = why.name(), unsaid, "connection ended: {why}");
        }
    }
}

/// The services, for one connection.
#[derive(Clone)]
struct Of<S, I> {
    service: S,
    info: I,
    visit: Arc<Visit>,
    unread: Unread,
}

impl<S, I> hyper::service::Service<Request<Incoming>> for Of<S, I>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
    I: Clone + Send + Sync + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = futures::future::BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let mut request = request.map(Body::new);
        // Where tonic's own `remote_addr` looks.
        request.extensions_mut().insert(self.info.clone());
        request.extensions_mut().insert(self.visit.clone());
        let path = request.uri().path();
        let (method, whole) = (CallMetrics::method(path), path.starts_with(WHOLE));
        let (service, unread) = (self.service.clone(), self.unread.clone());
        Box::pin(async move {
            let response = service.oneshot(request).await?;
            Ok(response.map(|body| unread.answer(body, method, whole)))
        })
    }
}
