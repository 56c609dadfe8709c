//! Another way to etcd than TCP, for simulated networks: everything above the bytes stays the real thing.

use etcd_client::{BalancedChannelBuilder, Channel};
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use http::{Request, Response, Uri};
use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::sync::mpsc;
use tonic::body::Body;
use tonic::transport::Endpoint;
use tonic::transport::channel::Change;
use tower::util::BoxCloneSyncService;
use tower::{BoxError, Service, ServiceExt as _};

/// Makes a channel to an endpoint, which brings all settings of a real one (keep-alive, time limits).
#[derive(Clone)]
pub struct Dial(Arc<dyn Fn(&Endpoint) -> tonic::transport::Channel + Send + Sync>);

impl Dial {
    /// For instance [`Endpoint::connect_with_connector_lazy`]. The channel must connect again by itself.
    pub fn new(dial: impl Fn(&Endpoint) -> tonic::transport::Channel + Send + Sync + 'static) -> Self {
        Self(Arc::new(dial))
    }
}

impl fmt::Debug for Dial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dial").finish_non_exhaustive()
    }
}

/// Members that the client's builder queues before the channel is used first: the client's own number.
const MEMBERS: usize = 64;

impl BalancedChannelBuilder for Dial {
    type Error = tonic::transport::Error;

    fn balanced_channel(
        self,
        _: usize,
    ) -> Result<(Channel, mpsc::Sender<Change<Uri, Endpoint>>), Self::Error> {
        let (members, told) = mpsc::channel(MEMBERS);
        let channel = first(self, told).boxed().shared();
        Ok((Channel::Custom(BoxCloneSyncService::new(First { channel })), members))
    }
}

/// A channel to the first member that is told. A simulated etcd has one.
async fn first(
    dial: Dial,
    mut told: mpsc::Receiver<Change<Uri, Endpoint>>,
) -> Option<tonic::transport::Channel> {
    loop {
        if let Change::Insert(_, endpoint) = told.recv().await? {
            return Some((dial.0)(&endpoint));
        }
    }
}

#[derive(Clone)]
struct First {
    channel: Shared<BoxFuture<'static, Option<tonic::transport::Channel>>>,
}

impl Service<Request<Body>> for First {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let channel = self.channel.clone();
        async move {
            let channel = channel.await.ok_or("no member of etcd is known")?;
            Ok(channel.oneshot(request).await?)
        }
        .boxed()
    }
}
