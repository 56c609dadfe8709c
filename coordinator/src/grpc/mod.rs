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
use crate::node::Node;
use crate::peers::Peers;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::server::{Router, TcpIncoming};
use tonic_health::ServingStatus;
use tonic_health::server::{HealthReporter, HealthService};
use tower::layer::util::{Identity, Stack};
use tranche_proto::v1::admin_service_server::AdminServiceServer;
use tranche_proto::v1::batch_service_server::BatchServiceServer;
use tranche_proto::{FILE_DESCRIPTOR_SET, HTTP2_FRAME_BYTES, MAX_APPEND_BYTES};

/// The services whose health is told, beside the whole ("").
const SERVICES: [&str; 3] =
    ["tranche.v1.BatchService", "tranche.v1.WorkerService", "tranche.v1.AdminService"];
/// A service that doesn't exist, whose health says only that the process answers: what a liveness probe asks for.
/// A coordinator whose store is away isn't ready, and to start it anew would help nobody.
pub const LIVE: &str = "tranche.live";
/// A message a little over the limit is still read, so that it can be refused with its field.
const MAX_MESSAGE_BYTES: usize = MAX_APPEND_BYTES + 1024 * 1024;
/// A ping when nothing came for this long: below the idle limits of usual load balancers.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// A connection whose ping isn't answered for this long is dead.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Calls and streams of one connection; the process's limits are in [`Config`].
const MAX_CONNECTION_STREAMS: u32 = 1024;
/// The most bytes of a call's headers: ours are a few hundred.
const MAX_HEADER_BYTES: u32 = 16 * 1024;

/// A router with our layers.
pub type Routes = Router<Stack<rate::RateLayer, Stack<auth::AuthLayer, Stack<layers::CallLayer, Identity>>>>;

/// All there is to serve.
pub struct Services {
    /// Takes further services (`add_service`); then `serve_with_incoming_shutdown`, with [`incoming`].
    pub router: Routes,
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
    let metrics = node.shared().metrics.calls.clone();
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
    let calls = layers::CallLayer::new(most, timeout, shutdown.clone()).counted(metrics);
    let router = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(MAX_CONNECTION_STREAMS)
        .max_frame_size(Some(HTTP2_FRAME_BYTES))
        .http2_max_header_list_size(MAX_HEADER_BYTES)
        .layer(calls.clone())
        .layer(auth)
        .layer(rate::RateLayer::new(config.rate()))
        .add_service(BatchServiceServer::new(batches).max_decoding_message_size(MAX_MESSAGE_BYTES))
        .add_service(AdminServiceServer::new(admin::Admin { owners, limit: config.request_timeout }))
        .add_service(tonic_health::pb::health_server::HealthServer::new(health))
        .add_service(descriptors().build_v1().expect("our own descriptors"))
        .add_service(descriptors().build_v1alpha().expect("our own descriptors"));
    Services { router, health: Health(reporter), tasks, calls }
}

/// Connections with `TCP_NODELAY`: without it a small call waits some 40 ms for Nagle's algorithm.
pub fn incoming(listener: TcpListener) -> TcpIncoming {
    TcpIncoming::from(listener).with_nodelay(Some(true)).with_keepalive(Some(KEEPALIVE_INTERVAL))
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
