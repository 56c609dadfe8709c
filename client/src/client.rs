//! A connection to the coordinators.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};
use tranche_proto::MAX_FRAME_BYTES;
use tranche_proto::v1::admin_service_client::AdminServiceClient;
use tranche_proto::v1::batch_service_client::BatchServiceClient;
use tranche_tls::Authorized;

use crate::coordinators::{Coordinators, Used};
use crate::retry::Retry;
use crate::{Error, Options};

/// A connection to a coordinator; any coordinator answers any call. Cheap to clone, and connects again
/// by itself: when it knows several coordinators, to the next one.
///
/// It uses one of them until that can't be reached, doesn't answer in time, or says that it can't serve
/// (UNAVAILABLE, such as `SHUTTING_DOWN`); clones move on together.
#[derive(Clone)]
pub struct Client {
    url: String,
    coordinators: Coordinators,
    options: Options,
}

impl Client {
    /// Connects to `http://HOST:PORT` or `https://HOST:PORT`, or to the first that can be reached of several, separated by commas,
    /// with the default [`Options`].
    ///
    /// One attempt at each: a wrong address is told at once. Later losses are bridged.
    pub async fn connect(url: impl Into<String>) -> Result<Self, Error> {
        Self::connect_with(url, Options::default()).await
    }

    /// Connects with other limits than the default.
    pub async fn connect_with(url: impl Into<String>, options: Options) -> Result<Self, Error> {
        let url = url.into();
        Ok(Self { coordinators: Coordinators::connected(&url, &options).await?, url, options })
    }

    /// Connects at the first call. Must be called inside a tokio runtime.
    pub fn connect_lazy(url: impl Into<String>, options: Options) -> Result<Self, Error> {
        Self::connect_over(url, options, Endpoint::connect_lazy)
    }

    /// Connects at the first call, another way than by TCP: `dial` makes the channel of each endpoint, which
    /// brings all settings. For instance [`Endpoint::connect_with_connector_lazy`].
    pub fn connect_over(
        url: impl Into<String>,
        options: Options,
        dial: impl FnMut(&Endpoint) -> Channel,
    ) -> Result<Self, Error> {
        let url = url.into();
        Ok(Self { coordinators: Coordinators::lazy(&url, &options, dial)?, url, options })
    }

    /// The coordinators' URLs, as given.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The limits of this client.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The generated client of the coordinator in use, for what has no helper here. It neither repeats, nor
    /// limits in time, nor moves on.
    pub fn batches(&self) -> BatchServiceClient<Authorized> {
        BatchServiceClient::new(self.coordinators.channel()).max_decoding_message_size(MAX_FRAME_BYTES)
    }

    /// The generated client of the operators' service.
    pub fn admin(&self) -> AdminServiceClient<Authorized> {
        AdminServiceClient::new(self.coordinators.channel()).max_decoding_message_size(MAX_FRAME_BYTES)
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
        let used = self.used();
        let status = match tokio::time::timeout(self.options.call_timeout, call).await {
            Ok(Ok(answer)) => return Ok(answer.into_inner()),
            Ok(Err(status)) => status,
            Err(_) => too_late(self.options.call_timeout),
        };
        let error = Error::call(name, status);
        self.failed(used, &error);
        Err(error)
    }

    /// The coordinator that calls go to now.
    pub(crate) fn used(&self) -> Used {
        self.coordinators.used()
    }

    /// Says what a coordinator answered; moves on from it if another may do better.
    pub(crate) fn failed(&self, used: Used, error: &Error) {
        if error.moves_on() {
            self.coordinators.leave(used);
        }
    }

    /// A call's request.
    pub(crate) fn request<M>(&self, message: M) -> Request<M> {
        let mut request = Request::new(message);
        let traceparent = self.options.traceparent.as_deref();
        // What can't be metadata is no trace, and no reason to fail a call.
        if let Some(value) = traceparent.and_then(|text| AsciiMetadataValue::try_from(text).ok()) {
            request.metadata_mut().insert("traceparent", value);
        }
        request
    }
}

pub(crate) fn too_late(limit: Duration) -> Status {
    Status::deadline_exceeded(format!("no answer within {limit:?}"))
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("url", &self.url)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}
