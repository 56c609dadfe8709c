//! Coordinator and worker of one import.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt as _;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tranche_client::Client;
use tranche_coordinator::Server;
use tranche_coordinator::config::Config;
use tranche_worker::handlers::Object;
use tranche_worker::{Worker, config::Config as WorkerConfig};

use crate::error::{CliError, Result, chain};

/// How long both may take to end once the batch has; then the process ends without them, which is safe:
/// all that matters is on disk.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// How long the sweep after the end may take; it only removes empty folders and index files.
const SWEPT_WITHIN: Duration = Duration::from_secs(30);

/// How often the coordinator is asked whether it has done all: nothing tells it by itself.
const POLL: Duration = Duration::from_millis(20);

/// Shorter than a cluster's: the worker dies with its coordinator, so after a kill the next import need not
/// wait long for leases that nobody holds.
const LEASE_TTL: Duration = Duration::from_secs(4);

/// How long to wait for a store that another import has: one that is just ending is let go; a longer wait
/// would only look as if nothing happened.
const STORE_WITHIN: Duration = Duration::from_secs(2);

/// The two, running.
pub(super) struct Node {
    address: SocketAddr,
    /// Each ends with its name, and why if it failed.
    tasks: JoinSet<(&'static str, Result<(), String>)>,
    stop_worker: CancellationToken,
    stop_server: CancellationToken,
}

impl Node {
    /// Opens the store and starts the coordinator.
    pub(super) async fn start(state: &Path, port: u16) -> Result<Self> {
        let cannot = |error: &(dyn std::error::Error + 'static)| {
            CliError::caused(format!("cannot start the coordinator on {}", state.display()), error)
                .hint("does another import into this library run? `--state DIR` names another place")
        };
        std::fs::create_dir_all(state).map_err(|e| cannot(&e))?;
        let listen = SocketAddr::from(([127, 0, 0, 1], port));
        let config = Config {
            listen,
            start_timeout: STORE_WITHIN,
            lease_ttl: LEASE_TTL,
            shutdown_grace: Duration::from_secs(5),
            ..Config::embedded(state.to_owned())
        };
        let server = Box::pin(Server::start(config)).await.map_err(|e| cannot(&e))?;
        let address = server.local_addr();
        let (stop_worker, stop_server) = (CancellationToken::new(), CancellationToken::new());
        let mut tasks = JoinSet::new();
        let stop = stop_server.clone();
        tasks.spawn(async move {
            server.run(stop).await;
            ("coordinator", Ok(()))
        });
        Ok(Self { address, tasks, stop_worker, stop_server })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// A client over loopback.
    pub(super) async fn client(&self) -> Result<Client> {
        Ok(Client::connect(format!("http://{}", self.address)).await?)
    }

    /// Starts the worker, which may touch what lies below `roots`.
    pub(super) fn attach(&mut self, roots: Vec<PathBuf>, slots: Option<usize>) {
        let mut config = WorkerConfig::new([format!("http://{}", self.address)]);
        if let Some(slots) = slots {
            config.slots = slots;
        }
        let worker = Worker::new(config, vec![Arc::new(Object::new(roots))]);
        let stop = self.stop_worker.clone();
        self.tasks.spawn(async move { ("worker", worker.run(stop).await.map_err(|e| chain(&e))) });
    }

    /// Waits until one of them ends before its time.
    pub(super) async fn failed(&mut self) -> CliError {
        match self.tasks.join_next().await {
            Some(Ok((name, Ok(())))) => CliError::new(format!("the {name} ended before the batch")),
            Some(Ok((name, Err(why)))) => CliError::new(format!("the {name} failed: {why}")),
            Some(Err(error)) => CliError::caused("a part of the import failed", &error),
            None => CliError::new("nothing runs that could import"),
        }
        .hint("the next import into this library finishes or rolls back what this one has begun")
    }

    /// Waits until the coordinator drives nothing any more: after a commit it still has the staging folder
    /// swept. If that takes long it is left to the next import.
    pub(super) async fn swept(&self, client: &Client) {
        let idle = async {
            loop {
                let all: Result<Vec<_>, _> = client.coordinators().try_collect().await;
                if all.is_ok_and(|all| all.iter().all(|c| c.owned_batches == 0)) {
                    return;
                }
                tokio::time::sleep(POLL).await;
            }
        };
        if tokio::time::timeout(SWEPT_WITHIN, idle).await.is_err() {
            tracing::warn!("what was staged is not swept yet; the next import does it");
        }
    }

    /// Ends the worker, then the coordinator.
    pub(super) async fn stop(mut self) {
        self.stop_worker.cancel();
        let all = async {
            while let Some(ended) = self.tasks.join_next().await {
                // Whichever was first: without the worker the coordinator has nothing left to do.
                self.stop_server.cancel();
                match ended {
                    Ok((name, Err(why))) => tracing::warn!(name, why, "ended badly after the batch"),
                    Ok((_, Ok(()))) => {}
                    Err(error) => tracing::warn!(%error, "ended badly after the batch"),
                }
            }
        };
        if tokio::time::timeout(STOP_WITHIN, all).await.is_err() {
            tracing::warn!("coordinator and worker did not end in time");
        }
    }
}
