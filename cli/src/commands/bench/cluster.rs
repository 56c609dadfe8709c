//! The processes of one run: etcd, a coordinator, workers, all on loopback.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use futures::TryStreamExt as _;
use futures::future::select_all;
use serde_json::{Value, json};
use tranche_client::{Client, v1};

use super::etcd;
use super::process::Process;
use super::runs::Context;
use super::usage::Usage;
use crate::error::{CliError, Result};

/// What kind of cluster a row wants.
#[derive(Clone, Debug, Args)]
pub(crate) struct ClusterArgs {
    /// How many worker processes.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(0..=1_000))]
    pub(super) workers: u32,
    /// Slots of each worker.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=1_024))]
    pub(super) slots: u32,
    #[command(flatten)]
    pub(super) store: StoreArgs,
}

/// Where the coordinator keeps its records.
#[derive(Clone, Debug, Args)]
pub(crate) struct StoreArgs {
    /// The coordinator's store.
    #[arg(long, value_enum, default_value_t = Store::Etcd)]
    pub(super) store: Store,
    /// An etcd that runs already, such as <http://127.0.0.1:2379>; the bench uses a prefix of its own.
    #[arg(long, value_name = "URL", conflicts_with = "store")]
    pub(super) etcd: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Store {
    /// etcd.
    Etcd,
    /// The coordinator's own, on disk.
    Embedded,
}

impl ClusterArgs {
    /// For the JSON.
    pub(super) fn json(&self) -> Value {
        let store = if self.store.store == Store::Etcd { "etcd" } else { "embedded" };
        json!({"workers": self.workers, "slots": self.slots, "store": store})
    }
}

/// Flags beyond those that every cluster has.
#[derive(Clone, Debug)]
pub(super) struct Flags {
    /// Of the workers, separated by commas.
    pub(super) handlers: &'static str,
    pub(super) worker: Vec<String>,
    pub(super) coordinator: Vec<String>,
}

impl Default for Flags {
    fn default() -> Self {
        Self { handlers: "noop", worker: Vec::new(), coordinator: Vec::new() }
    }
}

/// A coordinator that serves.
#[derive(Debug)]
pub(super) struct Replica {
    pub(super) process: Process,
    pub(super) url: String,
}

/// The processes of one run. Dropping it kills them.
#[derive(Debug)]
pub(super) struct Cluster {
    /// None with an etcd that was there before, and with the embedded store.
    pub(super) etcd: Option<Process>,
    pub(super) coordinator: Replica,
    pub(super) workers: Vec<Process>,
    /// Flags that give a coordinator this cluster's store and objects.
    pub(super) store: Vec<String>,
}

impl Cluster {
    pub(super) async fn start(context: &Context, args: &ClusterArgs) -> Result<Self> {
        Self::start_with(context, args, &Flags::default()).await
    }

    pub(super) async fn start_with(context: &Context, args: &ClusterArgs, flags: &Flags) -> Result<Self> {
        let folder = context.folder();
        let (etcd, store) = match (&args.store.etcd, args.store.store) {
            (Some(url), _) => (None, format!("etcd:{url}")),
            (None, Store::Etcd) => {
                let (etcd, url) = etcd::start(folder)?;
                (Some(etcd), format!("etcd:{url}"))
            }
            (None, Store::Embedded) => (None, format!("embedded:{}", folder.join("store").display())),
        };
        let mut store = vec!["--store".to_owned(), store];
        if args.store.store == Store::Etcd {
            // An etcd that was there before keeps its other keys.
            store.extend(["--prefix".to_owned(), format!("/tranche-bench/{}/", uuid::Uuid::now_v7())]);
        }
        store.extend(["--objects".to_owned(), folder.join("objects").display().to_string()]);
        let coordinator = replica(folder, "coordinator", &store, &flags.coordinator).await?;
        let mut workers = Vec::new();
        for n in 1..=args.workers {
            workers.push(worker(folder, &format!("worker-{n}"), &coordinator.url, args.slots, flags)?);
        }
        for worker in &mut workers {
            worker.ready("attached to ").await?;
        }
        Ok(Self { etcd, coordinator, workers, store })
    }

    /// One more coordinator on the same store. The caller keeps it.
    pub(super) async fn replica(&self, context: &Context, name: &str, flags: &[String]) -> Result<Replica> {
        replica(context.folder(), name, &self.store, flags).await
    }

    /// A client of the coordinator.
    pub(super) async fn client(&self) -> Result<Client> {
        Ok(Client::connect(&self.coordinator.url).await?)
    }

    /// Does `work`; an error as soon as one of the processes ends.
    pub(super) fn while_alive<'a, T: 'a>(
        &'a mut self,
        work: impl Future<Output = Result<T>> + 'a,
    ) -> impl Future<Output = Result<T>> + 'a {
        // An append is a large future; here it is moved out of the way once for all rows.
        let work = Box::pin(work);
        let all = self.workers.iter_mut().chain([&mut self.coordinator.process]).chain(self.etcd.as_mut());
        let ended = select_all(all.map(|process| Box::pin(process.ended())));
        async {
            tokio::select! {
                done = work => done,
                (failure, ..) = ended => Err(failure),
            }
        }
    }

    /// What each process has used up to now: the client (this process), the coordinator, the workers,
    /// etcd.
    pub(super) fn usage(&self) -> Vec<Usage> {
        let mut all = vec![Usage::of("client", std::process::id())];
        let others = [&self.coordinator.process].into_iter().chain(&self.workers).chain(&self.etcd);
        all.extend(others.filter_map(|process| Some(Usage::of(process.name(), process.id()?))));
        all
    }

    /// What the coordinator says about itself: transactions, grant latency.
    pub(super) async fn coordinator_report(&self, client: &Client) -> Result<v1::Coordinator> {
        let coordinators: Vec<v1::Coordinator> = client.coordinators().try_collect().await?;
        Ok(coordinators.into_iter().find(|c| c.answering).unwrap_or_default())
    }

    /// Ends all of it, workers first.
    pub(super) async fn stop(self) {
        for process in self.workers.into_iter().chain([self.coordinator.process]).chain(self.etcd) {
            process.stop().await;
        }
    }
}

async fn replica(folder: &Path, name: &str, store: &[String], more: &[String]) -> Result<Replica> {
    let program = beside("tranche-coordinator")?;
    let mut flags = ["--listen", "127.0.0.1:0", "--log", "warn"].map(str::to_owned).to_vec();
    flags.extend(store.iter().chain(more).cloned());
    let mut process = Process::start(name, &program, &flags, folder)?;
    let url = format!("http://{}", process.ready("listening on ").await?);
    Ok(Replica { process, url })
}

fn worker(folder: &Path, name: &str, url: &str, slots: u32, more: &Flags) -> Result<Process> {
    let slots = slots.to_string();
    let flags = [
        ("--coordinator", url),
        ("--id", &format!("bench-{name}")),
        ("--slots", &slots),
        ("--handlers", more.handlers),
        ("--log", "warn"),
    ];
    let mut flags: Vec<String> = flags.iter().flat_map(|(f, v)| [(*f).to_owned(), (*v).to_owned()]).collect();
    flags.extend(more.worker.iter().cloned());
    Process::start(name, &beside("tranche-worker")?, &flags, folder)
}

/// A binary of the same build as this one.
pub(super) fn beside(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let path = own.with_file_name(name);
    if path.is_file() {
        return Ok(path);
    }
    let release = if cfg!(debug_assertions) { "" } else { " --release" };
    Err(CliError::new(format!("{} is missing", path.display()))
        .hint(format!("cargo build --workspace{release}")))
}
