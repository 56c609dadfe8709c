//! The gRPC services: they decode, ask the node, encode, and no more.
//!
//! [`routes`] gives them all, ready to serve, with reflection and health.

mod admin;
mod append;
pub mod auth;
mod batch;
mod elsewhere;
mod ending;
pub mod layers;
mod meter;
pub(crate) mod page;
mod peers;
pub mod rate;
pub mod status;
mod told;
pub(crate) mod validate;
mod watch;
pub mod worker;

use crate::config::Config;
use crate::connections::{Door, KEEPALIVE_INTERVAL, Seated, Visiting};
use crate::node::Node;
use crate::peers::Peers;
use futures::Stream;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic::transport::server::{Connected, TcpIncoming};
use tonic_health::ServingStatus;
use tonic_health::server::{HealthReporter, HealthService};
use tower::ServiceBuilder;
use tranche_proto::v1::admin_service_server::AdminServiceServer;
use tranche_proto::v1::batch_service_server::BatchServiceServer;
use tranche_proto::{FILE_DESCRIPTOR_SET, MAX_APPEND_BYTES};

/// The services whose health is told, beside the whole ("").
const SERVICES: [&str; 3] =
    ["tranche.v1.BatchService", "tranche.v1.WorkerService", "tranche.v1.AdminService"];
/// A service that doesn't exist, whose health says only that the process answers: what a liveness probe asks for.
/// A coordinator whose store is away isn't ready, and to start it anew would help nobody.
pub const LIVE: &str = "tranche.live";
/// A message a little over the limit is still read, so that it can be refused with its field.
const MAX_MESSAGE_BYTES: usize = MAX_APPEND_BYTES + 1024 * 1024;

/// All there is to serve.
pub struct Services {
    /// Takes further services, and serves them.
    pub router: Router,
    /// Says whether we serve; to be told before the router runs.
    pub health: Health,
    /// The tasks of open append streams. They end with their streams; close and wait for it after the
    /// router ended.
    pub tasks: TaskTracker,
    /// The calls in work.
    pub(crate) calls: layers::CallLayer,
}

/// The services on this node. Streams end with `SHUTTING_DOWN` once `shutdown` is cancelled, and nothing new is
/// begun.
///
/// # Panics
/// Never: the descriptors are our own build's.
pub fn routes(node: Arc<Node>, config: &Config, shutdown: &CancellationToken) -> Services {
    routes_over(node, config, shutdown, Arc::default(), auth::AuthLayer::default())
}

/// The same, with other connections to the other coordinators, and asking who calls.
///
/// # Panics
/// Never: the descriptors are our own build's.
pub fn routes_over(
    node: Arc<Node>,
    config: &Config,
    shutdown: &CancellationToken,
    peers: Arc<Peers>,
    auth: auth::AuthLayer,
) -> Services {
    let tasks = TaskTracker::new();
    let metrics = node.shared().metrics.clone();
    let owners = peers::Owners::new(node, peers, config.max_append_inflight_bytes);
    let batches = batch::Batches::new(owners.clone(), config, shutdown.clone(), tasks.clone());
    let reporter = HealthReporter::new();
    let health = HealthService::from_health_reporter(reporter.clone());
    let descriptors = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            // Or the details of errors are base64 in grpcurl.
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
            // Each version would list and describe only itself.
            .register_encoded_file_descriptor_set(tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET)
    };
    let (most, timeout) = (config.max_concurrent_requests, config.request_timeout);
    let calls = layers::CallLayer::new(most, timeout, shutdown.clone()).counted(metrics.calls.clone());
    let batches = BatchServiceServer::new(batches).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let routes = Routes::new(batches)
        .add_service(AdminServiceServer::new(admin::Admin { owners, limit: config.request_timeout }))
        .add_service(tonic_health::pb::health_server::HealthServer::new(health))
        .add_service(descriptors().build_v1().expect("our own descriptors"))
        .add_service(descriptors().build_v1alpha().expect("our own descriptors"));
    let door = Door::new(config, metrics.connections.clone());
    let rate = rate::RateLayer::new(config.rate());
    let router = Router { routes, calls: calls.clone(), auth, rate, door };
    Services { router, health: Health(reporter), tasks, calls }
}

/// Our services with their layers.
pub struct Router {
    routes: Routes,
    calls: layers::CallLayer,
    auth: auth::AuthLayer,
    rate: rate::RateLayer,
    door: Door,
}

impl Router {
    /// One more service.
    pub fn add_service<S>(self, service: S) -> Self
    where
        S: tower::Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>
            + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send + 'static,
    {
        Self { routes: self.routes.add_service(service), ..self }
    }

    /// The way in, for [`Router::serve`].
    pub(crate) fn door(&self) -> &Door {
        &self.door
    }

    /// Serves connections that the door let in, until `shutdown` and then until they are done.
    pub(crate) async fn serve<C>(
        self,
        incoming: impl Stream<Item = io::Result<C>> + Send + 'static,
        shutdown: CancellationToken,
    ) where
        C: Visiting + Connected + AsyncRead + AsyncWrite + Unpin + Send + 'static,
        C::ConnectInfo: Clone + Send + Sync + 'static,
    {
        let layers = ServiceBuilder::new().layer(self.calls).layer(self.auth).layer(self.rate);
        let service = layers.service(self.routes.prepare());
        self.door.serve(service, incoming, shutdown).await;
    }
}

/// Connections with `TCP_NODELAY`: without it a small call waits some 40 ms for Nagle's algorithm.
pub(crate) fn incoming(
    listener: TcpListener,
    door: &Door,
) -> impl Stream<Item = io::Result<Seated<TcpStream>>> + Send + 'static {
    let incoming =
        TcpIncoming::from(listener).with_nodelay(Some(true)).with_keepalive(Some(KEEPALIVE_INTERVAL));
    door.admit(incoming, |stream| stream.peer_addr().ok())
}

/// What `grpc.health.v1` says.
#[derive(Clone, Debug)]
pub struct Health(HealthReporter);

impl Health {
    /// Says for every service, and for the whole, whether it serves. [`LIVE`] always does.
    pub async fn set(&self, serving: bool) {
        let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        self.0.set_service_status(LIVE, ServingStatus::Serving).await;
        for service in SERVICES.into_iter().chain([""]) {
            self.0.set_service_status(service, status).await;
        }
    }
}

#[cfg(test)]
mod tests;
