//! What runs on the simulated hosts: the coordinators' and the workers' real code, as their binaries run it.

use crate::etcd::{self, Data};
use crate::library::{HANDLER, Library, Memory};
use crate::wire::{self, Cuts};
use futures::FutureExt as _;
use object_store::memory::InMemory;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tranche_coordinator::Server;
use tranche_coordinator::config::{Config, StoreConfig};
use tranche_coordinator::manifest::Objects;
use tranche_coordinator::node::{Host, Node};
use tranche_coordinator::peers::Peers;
use tranche_coordinator::store::etcd::{Dial, Etcd, EtcdConfig};
use tranche_worker::Worker;
use tranche_worker::session::transport::Http2;

/// Where coordinators listen.
pub const PORT: u16 = 7070;
/// The store's prefix.
pub const PREFIX: &str = "/tranche/v1/";
/// How long a process that failed stays down before it is started again, as by systemd.
const RESTART: Duration = Duration::from_millis(500);
/// When the simulations begin: 2026, in milliseconds since 1970.
const EPOCH_MS: i64 = 1_767_225_600_000;

/// What the hosts of one simulation share: disks, and what the tests look at.
#[derive(Clone, Debug)]
pub struct World {
    /// etcd's disk.
    pub data: Data,
    /// The object storage.
    pub objects: Arc<InMemory>,
    /// What workers import into.
    pub library: Library,
    /// Counts ids.
    pub ids: Arc<AtomicU64>,
    /// How long a task takes.
    pub task_time: Duration,
}

impl World {
    /// An empty one.
    pub fn new(task_time: Duration) -> Self {
        Self {
            data: Data::default(),
            objects: Arc::default(),
            library: Library::default(),
            ids: Arc::default(),
            task_time,
        }
    }
}

/// One host's controls from outside: cuts its connections, asks it to leave.
#[derive(Clone, Debug, Default)]
pub struct Controls {
    /// Its open connections.
    pub cuts: Cuts,
    stop: Arc<Mutex<CancellationToken>>,
}

impl Controls {
    /// Tells the process to stop, as SIGTERM does.
    pub fn terminate(&self) {
        self.token().cancel();
    }

    fn token(&self) -> CancellationToken {
        self.stop.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// For a new process.
    fn renewed(&self) -> CancellationToken {
        let mut stop = self.stop.lock().unwrap_or_else(PoisonError::into_inner);
        *stop = CancellationToken::new();
        stop.clone()
    }
}

/// A coordinator's configuration: the defaults, but what would make a run long.
pub fn config() -> Config {
    Config {
        store: StoreConfig::Etcd {
            endpoints: vec![format!("http://etcd:{}", etcd::PORT)],
            prefix: PREFIX.to_owned(),
            session_ttl: Duration::from_secs(5),
            call_timeout: Duration::from_secs(5),
        },
        objects: Some(PathBuf::from("objects")),
        handlers: vec![HANDLER.to_owned()],
        lease_ttl: Duration::from_secs(4),
        backup_after: Duration::from_secs(2),
        late_sweep_after: Duration::from_secs(20),
        shutdown_grace: Duration::from_secs(3),
        ..Config::default()
    }
}

/// The store's configuration for [`config`].
pub fn etcd_config() -> EtcdConfig {
    let mut etcd = EtcdConfig::new([format!("http://etcd:{}", etcd::PORT)]);
    PREFIX.clone_into(&mut etcd.prefix);
    etcd
}

/// A coordinator's process, started again whenever it fails, until it is told to stop.
///
/// # Errors
/// It can't listen.
pub async fn coordinator(world: World, name: String, controls: Controls) -> turmoil::Result {
    let stop = controls.renewed();
    while !stop.is_cancelled() {
        match serve(&world, &name, &controls, &stop).await {
            Ok(()) => return Ok(()),
            Err(error) => tracing::warn!(host = name, error, "coordinator ended, started again"),
        }
        stop.run_until_cancelled(tokio::time::sleep(RESTART)).await;
    }
    Ok(())
}

async fn serve(
    world: &World,
    name: &str,
    controls: &Controls,
    shutdown: &CancellationToken,
) -> Result<(), String> {
    let config = config();
    let failed = |error: &dyn std::fmt::Display| error.to_string();
    let store = Etcd::connect_with(etcd_config(), Dial::new(wire::lazy)).await.map_err(|e| failed(&e))?;
    let incoming = wire::listen(PORT, controls.cuts.clone()).await.map_err(|e| failed(&e))?;
    let stop = CancellationToken::new();
    let _end = stop.clone().drop_guard();
    let node = Node::start(
        config.clone(),
        format!("http://{name}:{PORT}"),
        store,
        Objects::over(world.objects.clone()),
        host(world, name),
        stop.clone(),
    );
    let node = Arc::new(node.await.map_err(|e| failed(&e))?);
    let peers = Arc::new(Peers::over(wire::lazy));
    let serving = Server::serve(node, &config, peers, incoming, stop, shutdown.clone());
    serving.await;
    Ok(())
}

fn host(world: &World, name: &str) -> Host {
    let (ids, name) = (world.ids.clone(), name.to_owned());
    let wall_ms = || {
        let since = turmoil::sim_elapsed().unwrap_or_default();
        EPOCH_MS + i64::try_from(since.as_millis()).unwrap_or_default()
    };
    let new_id = move || format!("{:08}-{name}", ids.fetch_add(1, Ordering::Relaxed));
    Host::new(wall_ms, new_id)
}

/// A worker's process.
///
/// # Errors
/// Its configuration is wrong.
pub async fn worker(world: World, name: String, coordinators: Vec<String>) -> turmoil::Result {
    let mut config = tranche_worker::Config::new(coordinators.iter().map(|host| url(host)));
    config.id.clone_from(&name);
    config.slots = 2;
    config.reconnect_max = Duration::from_secs(2);
    let transport =
        Http2 { dial: Some(Arc::new(|endpoint| wire::eager(endpoint).boxed())), ..Http2::default() };
    let handler = Memory::new(world.library.clone(), world.task_time);
    let worker = Worker::with_transport(config, vec![Arc::new(handler)], Arc::new(transport));
    worker.run(CancellationToken::new()).await?;
    Ok(())
}

/// A coordinator's URL.
pub fn url(host: &str) -> String {
    format!("http://{host}:{PORT}")
}
