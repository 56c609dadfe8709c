//! How streams to coordinators are opened: HTTP/2 for real, anything else in a simulation.

use async_trait::async_trait;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};
use tranche_proto::v1::worker_service_client::WorkerServiceClient;
use tranche_proto::{HTTP2_FRAME_BYTES, MAX_FRAME_BYTES, v1};
use tranche_tls::{Authorized, Credentials};

/// What a coordinator says.
pub type Inbound = BoxStream<'static, Result<v1::AttachResponse, Status>>;

/// Opens connections.
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    /// Connects to a coordinator.
    ///
    /// # Errors
    /// There is nobody, or it isn't one; the worker tries again after a pause.
    async fn connect(&self, url: &str) -> Result<Box<dyn Connection>, Status>;
}

/// An open connection with no stream on it yet.
#[async_trait]
pub trait Connection: Send {
    /// Opens the stream. `outbound` may hold frames already (Hello does): a coordinator may wait for
    /// them before it answers at all.
    ///
    /// # Errors
    /// The coordinator refused the stream.
    async fn attach(self: Box<Self>, outbound: mpsc::Receiver<v1::AttachRequest>) -> Result<Inbound, Status>;
}

/// Opens the channel of an endpoint, which brings all settings.
pub type Dial =
    Arc<dyn Fn(Endpoint) -> BoxFuture<'static, Result<Channel, tonic::transport::Error>> + Send + Sync>;

/// gRPC over HTTP/2.
#[derive(Clone)]
pub struct Http2 {
    /// How long a connection may take to open.
    pub connect_timeout: Duration,
    /// After how long without anything from the coordinator the connection is pinged. One that is stopped, not gone,
    /// is noticed so, also when its heartbeats are rare; longer than the usual time between those of an idle
    /// worker, whose answers say the same.
    pub keep_alive_interval: Duration,
    /// How long it may take to answer a ping.
    pub keep_alive_timeout: Duration,
    /// CA, client certificate and token. Default: the system's CAs, nothing of our own.
    pub credentials: Credentials,
    /// Another way to open a channel than by TCP, for simulated networks. Default: none.
    pub dial: Option<Dial>,
}

impl fmt::Debug for Http2 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http2")
            .field("connect_timeout", &self.connect_timeout)
            .field("keep_alive_interval", &self.keep_alive_interval)
            .field("keep_alive_timeout", &self.keep_alive_timeout)
            .finish_non_exhaustive()
    }
}

impl Default for Http2 {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            keep_alive_interval: Duration::from_secs(10),
            keep_alive_timeout: Duration::from_secs(5),
            credentials: Credentials::default(),
            dial: None,
        }
    }
}

#[async_trait]
impl Transport for Http2 {
    async fn connect(&self, url: &str) -> Result<Box<dyn Connection>, Status> {
        let wrong = |error| Status::invalid_argument(format!("`{url}` {error}"));
        self.credentials.check(url).map_err(wrong)?;
        let endpoint = tranche_tls::endpoint(url)
            .map_err(wrong)?
            .connect_timeout(self.connect_timeout)
            .tcp_nodelay(true)
            .max_frame_size(HTTP2_FRAME_BYTES)
            .http2_keep_alive_interval(self.keep_alive_interval)
            .keep_alive_timeout(self.keep_alive_timeout)
            .keep_alive_while_idle(true);
        let channel = match &self.dial {
            None => self.credentials.connect(url, &endpoint).await,
            Some(dial) => dial(endpoint).await,
        };
        let channel = channel.map_err(|error| Status::from_error(Box::new(error)))?;
        Ok(Box::new(self.credentials.authorized(channel)))
    }
}

#[async_trait]
impl Connection for Authorized {
    async fn attach(self: Box<Self>, outbound: mpsc::Receiver<v1::AttachRequest>) -> Result<Inbound, Status> {
        let mut client = WorkerServiceClient::new(*self).max_decoding_message_size(MAX_FRAME_BYTES);
        let response = client.attach(ReceiverStream::new(outbound)).await?;
        Ok(response.into_inner().boxed())
    }
}
