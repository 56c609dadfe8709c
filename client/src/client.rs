//! A connection to a coordinator.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};
use tranche_proto::MAX_FRAME_BYTES;
use tranche_proto::v1::admin_service_client::AdminServiceClient;
use tranche_proto::v1::batch_service_client::BatchServiceClient;

use crate::retry::Retry;
use crate::{Error, Options};

/// A connection to a coordinator; any coordinator answers any call. Cheap to clone, and connects again
/// by itself.
#[derive(Clone)]
pub struct Client {
    url: String,
    channel: Channel,
    options: Options,
}

impl Client {
    /// Connects to `http://HOST:PORT` with the default [`Options`].
    ///
    /// One attempt: a wrong address is told at once. Later losses are bridged.
    pub async fn connect(url: impl Into<String>) -> Result<Self, Error> {
        Self::connect_with(url, Options::default()).await
    }

    /// Connects with other limits than the default.
    pub async fn connect_with(url: impl Into<String>, options: Options) -> Result<Self, Error> {
        let url = url.into();
        let endpoint = endpoint(&url, &options)?;
        let channel =
            endpoint.connect().await.map_err(|source| Error::Connect { url: url.clone(), source })?;
        Ok(Self { url, channel, options })
    }

    /// Connects at the first call. Must be called inside a tokio runtime.
    pub fn connect_lazy(url: impl Into<String>, options: Options) -> Result<Self, Error> {
        let url = url.into();
        let channel = endpoint(&url, &options)?.connect_lazy();
        Ok(Self { url, channel, options })
    }

    /// Connects at the first call, another way than by TCP: `dial` makes the channel of the endpoint, which
    /// brings all settings. For instance [`Endpoint::connect_with_connector_lazy`].
    pub fn connect_over(
        url: impl Into<String>,
        options: Options,
        dial: impl FnOnce(&Endpoint) -> Channel,
    ) -> Result<Self, Error> {
        let url = url.into();
        let channel = dial(&endpoint(&url, &options)?);
        Ok(Self { url, channel, options })
    }

    /// The coordinator's URL, as given.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The limits of this client.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The generated client, for what has no helper here. It neither repeats nor limits in time.
    pub fn batches(&self) -> BatchServiceClient<Channel> {
        BatchServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_FRAME_BYTES)
    }

    /// The generated client of the operators' service.
    pub fn admin(&self) -> AdminServiceClient<Channel> {
        AdminServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_FRAME_BYTES)
    }

    /// Makes an idempotent call, again and again within the budget.
    pub(crate) async fn repeated<T, F, Fut>(&self, name: &'static str, call: F) -> Result<T, Error>
    where
        F: Fn() -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        let mut retry = Retry::new(self.options.retry_for);
        loop {
            match self.once(name, call()).await {
                Ok(answer) => return Ok(answer),
                Err(error) => retry.pause(error).await?,
            }
        }
    }

    /// Makes a call once, within its time.
    pub(crate) async fn once<T>(
        &self,
        name: &'static str,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Error> {
        match tokio::time::timeout(self.options.call_timeout, call).await {
            Ok(answer) => answer.map(Response::into_inner).map_err(|status| Error::call(name, status)),
            Err(_) => Err(Error::call(name, too_late(self.options.call_timeout))),
        }
    }

    /// A call's request.
    pub(crate) fn request<M>(message: M) -> Request<M> {
        Request::new(message)
    }
}

pub(crate) fn too_late(limit: Duration) -> Status {
    Status::deadline_exceeded(format!("no answer within {limit:?}"))
}

fn endpoint(url: &str, options: &Options) -> Result<Endpoint, Error> {
    let invalid = |source| Error::Url { url: url.to_owned(), source };
    let endpoint = Endpoint::from_shared(url.to_owned()).map_err(invalid)?;
    let endpoint =
        endpoint.user_agent(concat!("tranche-client/", env!("CARGO_PKG_VERSION"))).map_err(invalid)?;
    Ok(endpoint
        .connect_timeout(options.connect_timeout)
        .tcp_nodelay(true)
        // Below the 60 s after which load balancers commonly cut an idle connection; the service
        // tolerates it. Without it a coordinator that vanished is never noticed by a watch.
        .http2_keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(10))
        .keep_alive_while_idle(true))
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("url", &self.url)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}
