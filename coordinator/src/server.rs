//! The process as one library call: the binary, the command line's all-in-one and the tests use it.

use crate::config::{Config, ConfigError, StoreConfig};
use crate::connections::Visiting;
use crate::error::Error;
use crate::grpc::{self, auth::AuthLayer, worker::Workers};
use crate::identity::Book;
use crate::manifest::Objects;
use crate::metrics::Operator;
use crate::node::{Host, Node};
use crate::peers::Peers;
use crate::store::embedded::Embedded;
use crate::store::{RangeOptions, Store, StoreError, keys};
use futures::Stream;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::JoinError;
use tokio::time::Instant;
use tokio_rustls::rustls::ServerConfig;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::server::Connected;
use tranche_proto::MAX_FRAME_BYTES;
use tranche_proto::v1::worker_service_server::WorkerServiceServer;
use tranche_tls::{ClientFiles, Credentials, FileError, Reloading, ServerFiles, TlsConnection};

/// How long connections have, with nothing in work on them, to bring over the last words and be closed by their
/// clients.
const LINGER: Duration = Duration::from_millis(500);

/// This part of the grace time is what the last writes to the store may take: a half.
const STORE_PART: u32 = 2;

/// Why a coordinator didn't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The address can't be listened on.
    #[error("can't listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// A file of a key, a certificate, a token or of the identities can't be used.
    #[error("can't start: {0}")]
    Security(#[from] FileError),
    /// The store, or the object storage, can't be used.
    #[error("can't start: {0}")]
    Node(#[from] Error),
    /// The store didn't answer within `start_timeout`.
    #[error("store {store} not reached within {waited:?} (start_timeout): {last}")]
    StoreAway {
        /// Which store, as in the configuration.
        store: String,
        /// How long it was tried.
        waited: Duration,
        /// The last failure.
        last: StoreError,
    },
}

/// A coordinator that is ready to serve.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    ops: Option<(TcpListener, SocketAddr)>,
    node: Arc<Node>,
    config: Config,
    gate: Gate,
    stop: CancellationToken,
}

/// What is asked of those who connect, and what we say of ourselves.
struct Gate {
    tls: Option<Reloading<ServerConfig>>,
    /// Of the ops port: probes bring no certificate.
    ops_tls: Option<Reloading<ServerConfig>>,
    /// Scrapers do.
    ops_asks: bool,
    auth: AuthLayer,
    peers: Arc<Peers>,
}

impl Gate {
    fn new(config: &Config) -> Result<Self, FileError> {
        let security = &config.security;
        let book = security.identities.clone();
        let book = book.map(|path| Reloading::start("identities", move || Book::load(&path))).transpose()?;
        let pair = security.tls_cert.clone().zip(security.tls_key.clone());
        let tls = pair.clone().map(|(cert, key)| {
            let client_ca = security.tls_client_ca.clone();
            // Without identities a certificate is all that is asked for.
            ServerFiles { cert, key, client_ca, client_required: book.is_none() }.start()
        });
        let ops_tls = pair.clone().filter(|_| config.ops_listen.is_some()).map(|(cert, key)| {
            let client_ca = security.ops_client_ca.clone();
            let files = ServerFiles { cert, key, client_ca, client_required: false };
            files.start_for(&[b"http/1.1"])
        });
        let (cert, key) = pair.unzip();
        let files =
            ClientFiles { ca: security.tls_ca.clone(), cert, key, token: security.token_file.clone() };
        Ok(Self {
            tls: tls.transpose()?,
            ops_tls: ops_tls.transpose()?,
            ops_asks: security.ops_client_ca.is_some(),
            auth: AuthLayer::new(book, &security.open_services),
            peers: Arc::new(Peers::with(Credentials::load(files)?)),
        })
    }
}

impl Server {
    /// Checks the configuration, opens the store, binds the address, takes up the batches that are there.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        config.check()?;
        let gate = Gate::new(&config)?;
        let begun = Instant::now();
        let store = open_within(&config).await?;
        let objects = Objects::local(&config.objects_dir())?;
        let (listener, address) = listen(config.listen).await?;
        let ops = match config.ops_listen {
            Some(address) => Some(listen(address).await?),
            None => None,
        };
        let stop = CancellationToken::new();
        let endpoint = config.endpoint(address);
        if let Some(hint) = config.hint() {
            tracing::warn!("{hint}");
        }
        let rest =
            Config { start_timeout: config.start_timeout.saturating_sub(begun.elapsed()), ..config.clone() };
        let started = Node::start(rest, endpoint, store, objects, Host::default(), stop.clone()).await;
        let node = started.map_err(|error| match error {
            Error::Store(last) if last.retryable() => {
                StartError::StoreAway { store: config.store.to_string(), waited: begun.elapsed(), last }
            }
            error => error.into(),
        })?;
        Ok(Self { listener, address, ops, node: Arc::new(node), config, gate, stop })
    }

    /// The address that it listens on.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// The address of its ops port, if it has one.
    pub fn ops_addr(&self) -> Option<SocketAddr> {
        self.ops.as_ref().map(|(_, address)| *address)
    }

    /// Serves until `shutdown`; then refuses what is new, tells the workers, lets writes in flight end,
    /// frees its batches for others, ends open streams, and returns within the configured grace.
    pub async fn run(self, shutdown: CancellationToken) {
        let Self { listener, ops, node, config, gate, stop, .. } = self;
        let Gate { tls, ops_tls, ops_asks, auth, peers } = gate;
        // To the very end: that it leaves is what it has to tell then.
        let ended = CancellationToken::new();
        let telling = ops.map(|(listener, _)| {
            let operator = Arc::new(Operator::new(node.clone(), shutdown.clone()));
            let (incoming, ended) = (tranche_ops::incoming(listener), ended.clone());
            match ops_tls {
                None => tokio::spawn(tranche_ops::serve(incoming, operator, |_| true, ended)),
                Some(tls) => {
                    let incoming = Box::pin(tranche_tls::accept(incoming, tls));
                    let known = move |peer: &TlsConnection<_>| !ops_asks || peer.is_known();
                    tokio::spawn(tranche_ops::serve(incoming, operator, known, ended))
                }
            }
        });
        let serving = Serving::new(node, &config, peers, auth);
        let incoming = grpc::incoming(listener, serving.services.router.door());
        match tls {
            None => serving.run(incoming, stop, shutdown).await,
            Some(tls) => serving.run(tranche_tls::accept(incoming, tls), stop, shutdown).await,
        }
        ended.cancel();
        if let Some(telling) = telling {
            // It doesn't panic, and nobody aborts it.
            let _ = telling.await;
        }
    }

    /// The same with a node that was started, which `stop` stops, and with other connections than TCP.
    pub async fn serve<C>(
        node: Arc<Node>,
        config: &Config,
        peers: Arc<Peers>,
        incoming: impl Stream<Item = std::io::Result<C>> + Send + 'static,
        stop: CancellationToken,
        shutdown: CancellationToken,
    ) where
        C: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
        C::ConnectInfo: Clone + Send + Sync + 'static,
    {
        let serving = Serving::new(node, config, peers, AuthLayer::default());
        let incoming = serving.services.router.door().admit(incoming, |_| None);
        serving.run(incoming, stop, shutdown).await;
    }
}

/// The services of a node, on their way to be served.
struct Serving {
    node: Arc<Node>,
    grace: Duration,
    services: grpc::Services,
    clients: CancellationToken,
    workers: CancellationToken,
}

impl Serving {
    fn new(node: Arc<Node>, config: &Config, peers: Arc<Peers>, auth: AuthLayer) -> Self {
        let (clients, workers) = (CancellationToken::new(), CancellationToken::new());
        let mut services = grpc::routes_over(node.clone(), config, &clients, peers, auth);
        let attach =
            WorkerServiceServer::new(Workers::new(node.clone(), workers.clone(), services.tasks.clone()))
                .max_decoding_message_size(MAX_FRAME_BYTES)
                .max_encoding_message_size(MAX_FRAME_BYTES);
        services.router = services.router.add_service(attach);
        Self { node, grace: config.shutdown_grace, services, clients, workers }
    }

    async fn run<C>(
        self,
        incoming: impl Stream<Item = std::io::Result<C>> + Send + 'static,
        stop: CancellationToken,
        shutdown: CancellationToken,
    ) where
        C: Visiting + AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
        C::ConnectInfo: Clone + Send + Sync + 'static,
    {
        let Self { node, grace, services, clients, workers } = self;
        let closed = CancellationToken::new();
        services.health.set(node.shared().ready().is_ok()).await;
        // Connections that are still open when this is dropped are cut.
        let serving = AbortOnDropHandle::new(tokio::spawn(services.router.serve(incoming, closed.clone())));
        tokio::pin!(serving);
        let early = tokio::select! {
            biased;
            () = shutdown.cancelled() => false,
            ended = &mut serving => {
                served(ended);
                true
            }
            () = follow_store(&node, &services.health) => false,
        };
        services.health.set(false).await;
        // Nothing new is begun, and the other coordinators give this one nothing.
        clients.cancel();
        node.shared().leave().await;
        node.shared().dispatch.drain();
        stop.cancel();
        let ended = tokio::time::timeout(grace, async {
            // The batches are free for others from here on. A store that is away must not take the time that
            // the streams' ends need.
            if tokio::time::timeout(grace / STORE_PART, node.stopped()).await.is_err() {
                tracing::warn!(
                    ?grace,
                    "the store doesn't answer in time: left, the locks go with the session"
                );
                node.cut();
                node.stopped().await;
            }
            // Only now: the drivers' last acknowledgements travel on these streams.
            workers.cancel();
            closed.cancel();
            services.tasks.close();
            services.tasks.wait().await;
            if early {
                return true;
            }
            let idle = async {
                services.calls.idle().await;
                tokio::time::sleep(LINGER).await;
            };
            tokio::select! {
                biased;
                ended = &mut serving => {
                    served(ended);
                    true
                }
                () = idle => false,
            }
        })
        .await;
        match ended {
            Ok(true) => {}
            Ok(false) => tracing::info!("connections that their clients keep open are cut"),
            Err(_) => tracing::warn!(?grace, "not all ended within the grace time: cut"),
        }
    }
}

/// It ends when it is told to, or with its connections; a panic goes on here.
fn served(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && let Ok(panic) = error.try_into_panic()
    {
        std::panic::resume_unwind(panic);
    }
}

async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |source| StartError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

/// Health is that of the session with the store: without one nothing can be made or changed here, and a client
/// that has a choice should go elsewhere. Doesn't return.
async fn follow_store(node: &Node, health: &grpc::Health) {
    let mut sessions = node.shared().sessions();
    loop {
        let serving = sessions.borrow_and_update().is_some();
        health.set(serving).await;
        if sessions.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// Opens the store and reads from it, trying again until `start_timeout`.
async fn open_within(config: &Config) -> Result<Arc<dyn Store>, StartError> {
    let begun = Instant::now();
    let mut pause = Duration::from_millis(100);
    loop {
        let last = match open(config).await {
            Ok(store) => {
                match store.range(keys::COORDINATORS, RangeOptions { limit: 1, ..Default::default() }).await {
                    Ok(_) => return Ok(store),
                    Err(error) => error,
                }
            }
            Err(error) => error,
        };
        let waited = begun.elapsed();
        if !last.retryable() {
            return Err(StartError::Node(last.into()));
        }
        if waited + pause >= config.start_timeout {
            return Err(StartError::StoreAway { store: config.store.to_string(), waited, last });
        }
        tracing::warn!(store = %config.store, error = %last, ?waited, "store not reached yet, trying again");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(2));
    }
}

async fn open(config: &Config) -> Result<Arc<dyn Store>, StoreError> {
    match &config.store {
        StoreConfig::Embedded { path } => Ok(Embedded::open(path).await?),
        #[cfg(feature = "etcd")]
        StoreConfig::Etcd { endpoints, prefix, call_timeout, .. } => {
            use crate::store::etcd::{Etcd, EtcdConfig, EtcdFiles};
            let mut etcd = EtcdConfig::new(endpoints.clone());
            etcd.prefix.clone_from(prefix);
            etcd.call_timeout = *call_timeout;
            let security = &config.security;
            etcd.files = EtcdFiles {
                ca: security.etcd_ca.clone(),
                certificate: security.etcd_cert.clone().zip(security.etcd_key.clone()),
                user: security.etcd_user.clone().zip(security.etcd_password_file.clone()),
            };
            Ok(Etcd::connect(etcd).await?)
        }
        #[cfg(not(feature = "etcd"))]
        StoreConfig::Etcd { .. } => {
            Err(StoreError::Rejected("this build has no etcd store (feature `etcd`)".to_owned()))
        }
    }
}

#[cfg(test)]
mod tests;
