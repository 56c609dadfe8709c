//! Coordinators and workers as real processes, on a real etcd or the embedded store.

use crate::control::Control;
use crate::etcd::{self, EtcdServer, free_port};
use crate::history::History;
use crate::in_process::InProcess;
use crate::process::{Process, program};
use crate::wait::{PATIENCE, eventually};
use prost::Message as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tranche_client::v1::batch::State;
use tranche_client::{Client, Options, v1};
use tranche_coordinator::store::keys::{self, BatchKey};
use tranche_worker::Handler;

/// How often a coordinator is started: another process may take its port between choice and start.
const START_ATTEMPTS: usize = 5;

/// What a cluster is to be made of.
#[derive(Debug)]
pub struct Builder {
    coordinators: usize,
    embedded: bool,
    etcd: Option<String>,
    flags: Vec<(String, String)>,
    client: Options,
}

impl Default for Builder {
    fn default() -> Self {
        let flag = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        Self {
            coordinators: 1,
            embedded: false,
            etcd: None,
            flags: vec![
                flag("session-ttl", "2s"),
                flag("lease-ttl", "2s"),
                flag("retry-pause", "50ms"),
                flag("late-sweep-after", "0s"),
                flag("log", "info,tranche_coordinator=debug,tranche_coordinator::grpc::layers=info"),
            ],
            client: Options::default(),
        }
    }
}

impl Builder {
    /// How many coordinators. Default: 1.
    pub fn coordinators(mut self, number: usize) -> Self {
        self.coordinators = number;
        self
    }

    /// On the embedded store instead of etcd.
    pub fn embedded(mut self) -> Self {
        self.embedded = true;
        self
    }

    /// On this etcd instead of the one that the tests of a process share.
    pub fn etcd(mut self, server: &EtcdServer) -> Self {
        self.etcd = Some(server.endpoint());
        self
    }

    /// On etcd at this URL, for a test that puts something between.
    pub fn etcd_at(mut self, endpoint: impl Into<String>) -> Self {
        self.etcd = Some(endpoint.into());
        self
    }

    /// A flag of every coordinator (`"lease-ttl", "500ms"`). Defaults: `--session-ttl 2s --lease-ttl 2s
    /// --retry-pause 50ms --late-sweep-after 0s`.
    pub fn flag(mut self, name: &str, value: &str) -> Self {
        self.flags.retain(|(known, _)| known != name);
        self.flags.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The limits of the cluster's client.
    pub fn client(mut self, options: Options) -> Self {
        self.client = options;
        self
    }

    /// Starts the coordinators, and waits until they serve.
    pub async fn start(self) -> Cluster {
        let dir = tempfile::tempdir().expect("a folder for the cluster");
        for folder in ["logs", "data", "objects"] {
            std::fs::create_dir(dir.path().join(folder)).expect("a folder");
        }
        let prefix = format!("/{}/", uuid::Uuid::new_v4().simple());
        let etcd = match (self.embedded, self.etcd) {
            (true, _) => None,
            (false, Some(endpoint)) => Some(endpoint),
            (false, None) => Some(etcd::shared().await.endpoint()),
        };
        let mut flags = self.flags;
        if let Some(endpoint) = &etcd {
            flags.push(("store".into(), format!("etcd:{endpoint}")));
            flags.push(("prefix".into(), prefix.clone()));
        } else {
            flags.push(("store".into(), format!("embedded:{}", dir.path().join("state").display())));
            // It is etcd's.
            flags.retain(|(name, _)| name != "session-ttl");
        }
        flags.push(("objects".into(), dir.path().join("objects").display().to_string()));
        let mut cluster =
            Cluster { coordinators: Vec::new(), workers: Vec::new(), etcd, prefix, flags, client: None, dir };
        for index in 0..self.coordinators {
            cluster.add_coordinator(index).await;
        }
        let client = Client::connect_lazy(cluster.url(0), self.client).expect("a URL");
        cluster.client = Some(client);
        cluster
    }
}

#[derive(Debug)]
struct Coordinator {
    port: u16,
    process: Process,
}

/// Coordinators, workers, a client. All processes are killed when it is dropped; when the test fails,
/// their logs are shown.
#[derive(Debug)]
pub struct Cluster {
    workers: Vec<(String, Process)>,
    coordinators: Vec<Coordinator>,
    etcd: Option<String>,
    prefix: String,
    flags: Vec<(String, String)>,
    client: Option<Client>,
    // Last: removed when nobody writes there any more.
    dir: TempDir,
}

impl Cluster {
    /// One coordinator on etcd, with short times to live.
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    /// Another cluster than that.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The folder for the test's data; workers may read and write there, and nowhere else.
    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Where logs, objects and the embedded store are (`logs`, `objects`, `state`).
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The prefix of the cluster's keys in etcd.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The URL of its etcd.
    pub fn etcd_endpoint(&self) -> &str {
        self.etcd.as_deref().expect("a cluster on etcd")
    }

    // ---- coordinators ----

    /// A coordinator's URL; it stays the same when it is started again.
    pub fn url(&self, coordinator: usize) -> String {
        format!("http://127.0.0.1:{}", self.coordinators[coordinator].port)
    }

    /// All coordinators' URLs.
    pub fn urls(&self) -> Vec<String> {
        (0..self.coordinators.len()).map(|index| self.url(index)).collect()
    }

    /// A coordinator's process, to kill or stop it.
    pub fn coordinator(&mut self, index: usize) -> &mut Process {
        &mut self.coordinators[index].process
    }

    /// Starts a coordinator that is gone again, on its address.
    pub async fn restart(&mut self, index: usize) {
        self.coordinators[index].process.kill9();
        let port = self.coordinators[index].port;
        let mut process = self.spawn_coordinator(index, port);
        process.said("listening on").await.expect("a coordinator that starts again");
        self.coordinators[index].process = process;
    }

    async fn add_coordinator(&mut self, index: usize) {
        let mut failure = String::new();
        for _ in 0..START_ATTEMPTS {
            let port = free_port();
            let mut process = self.spawn_coordinator(index, port);
            match process.said("listening on").await {
                Ok(address) => {
                    assert_eq!(address, format!("127.0.0.1:{port}"));
                    self.coordinators.push(Coordinator { port, process });
                    return;
                }
                Err(error) => failure = error,
            }
        }
        panic!("no coordinator: {failure}");
    }

    fn spawn_coordinator(&self, index: usize, port: u16) -> Process {
        let mut arguments = vec!["--listen".to_owned(), format!("127.0.0.1:{port}")];
        for (name, value) in &self.flags {
            arguments.extend([format!("--{name}"), value.clone()]);
        }
        let name = format!("coordinator-{index}");
        Process::spawn(&name, &program("tranche-coordinator"), &arguments, &self.logs())
    }

    fn logs(&self) -> PathBuf {
        self.dir.path().join("logs")
    }

    // ---- workers ----

    /// Starts a worker process with both built-in handlers, attached to all coordinators.
    pub async fn worker(&mut self, id: &str, slots: usize) -> &mut Process {
        self.worker_with(id, slots, &[]).await
    }

    /// Starts a worker process with more flags. One with the same id that was there before is killed.
    pub async fn worker_with(&mut self, id: &str, slots: usize, flags: &[(&str, &str)]) -> &mut Process {
        self.workers.retain(|(known, _)| known != id);
        let data = self.data().display().to_string();
        let mut arguments = Vec::new();
        for url in self.urls() {
            arguments.extend(["--coordinator".to_owned(), url]);
        }
        arguments
            .extend(["--id", id, "--slots", &slots.to_string(), "--allow-root", &data].map(str::to_owned));
        arguments.extend(["--drain-timeout", "2s", "--log", "info,tranche_worker=debug"].map(str::to_owned));
        for (name, value) in flags {
            arguments.extend([format!("--{name}"), (*value).to_owned()]);
        }
        let mut process = Process::spawn(id, &program("tranche-worker"), &arguments, &self.logs());
        process.said("attached to").await.expect("a worker that attaches");
        self.workers.push((id.to_owned(), process));
        &mut self.workers.last_mut().expect("just pushed").1
    }

    /// Starts worker processes `w1`, `w2`, …
    pub async fn workers(&mut self, number: usize, slots: usize) {
        for index in 1..=number {
            self.worker(&format!("w{index}"), slots).await;
        }
    }

    /// Starts a worker process whose handler `object` is under the test's control. One with the same id that
    /// was there before is killed.
    pub async fn held_worker(&mut self, id: &str, slots: usize, control: &Control) -> &mut Process {
        let process = self.begin_held_worker(id, slots, control);
        process.said("attached to").await.expect("a worker that attaches");
        process
    }

    /// The same, not waiting until it is attached: it may crash soon.
    pub fn begin_held_worker(&mut self, id: &str, slots: usize, control: &Control) -> &mut Process {
        self.workers.retain(|(known, _)| known != id);
        let data = self.data().display().to_string();
        let mut arguments = vec![control.dir().display().to_string(), id.to_owned(), slots.to_string(), data];
        arguments.extend(self.urls());
        let process = Process::spawn(id, &program("held_worker"), &arguments, &self.logs());
        self.workers.push((id.to_owned(), process));
        &mut self.workers.last_mut().expect("just pushed").1
    }

    /// Which coordinator holds the batch's sequence lock now, and its epoch.
    pub async fn owner(&self, batch: &str) -> Option<(usize, u64)> {
        let name = format!("{}{}", self.prefix, keys::lock(&key(batch)));
        let mut etcd = etcd_client::Client::connect([self.etcd_endpoint()], None).await.expect("etcd");
        let answer = etcd.get(name, None).await.expect("an answer");
        let entry = answer.kvs().first()?;
        let record = tranche_proto::v1::LockRecord::decode(entry.value()).expect("a lock record");
        let index = self.urls().iter().position(|url| *url == record.endpoint).expect("one of ours");
        Some((index, entry.create_revision().cast_unsigned()))
    }

    /// Waits until another coordinator than this one holds the batch's sequence lock.
    pub async fn wait_owner_after(&self, batch: &str, before: (usize, u64)) -> (usize, u64) {
        let what = format!("{batch} has another owner than {before:?}");
        eventually(&what, async || self.owner(batch).await.filter(|(_, epoch)| *epoch > before.1)).await
    }

    /// A worker's process, to kill or stop it.
    pub fn worker_process(&mut self, id: &str) -> &mut Process {
        let found = self.workers.iter_mut().find(|(known, _)| known == id);
        &mut found.unwrap_or_else(|| panic!("no worker {id}")).1
    }

    /// A worker in this process, with handlers of the test's own.
    pub async fn attach(&self, id: &str, slots: usize, handlers: Vec<Arc<dyn Handler>>) -> InProcess {
        let mut config = tranche_worker::Config::new(self.urls());
        config.id = id.to_owned();
        config.slots = slots;
        config.prefetch = 0;
        config.drain_timeout = Duration::from_secs(2);
        config.reconnect_max = Duration::from_millis(500);
        InProcess::start(config, handlers).await
    }

    // ---- batches ----

    /// A client of the first coordinator.
    pub fn client(&self) -> &Client {
        self.client.as_ref().expect("made at start")
    }

    /// A client of another one.
    pub fn client_of(&self, coordinator: usize) -> Client {
        Client::connect_lazy(self.url(coordinator), Options::default()).expect("a URL")
    }

    /// Creates a batch, and returns its name.
    pub async fn create(&self, batch: v1::Batch) -> String {
        let request = v1::CreateBatchRequest { batch: Some(batch), ..Default::default() };
        self.client().create(request).await.expect("a new batch").name
    }

    /// Appends tasks, not sealing. The first has sequence number `first`.
    pub async fn append(&self, batch: &str, first: i64, tasks: impl IntoIterator<Item = v1::Task>) -> i64 {
        let tasks = tokio_stream::iter(tasks.into_iter().collect::<Vec<_>>());
        self.client().appender(batch).starting_at(first).run(tasks).await.expect("tasks are appended")
    }

    /// Seals a batch.
    pub async fn seal(&self, batch: &str) {
        self.client().seal(batch, None).await.expect("a sealed batch");
    }

    /// Creates a batch, appends the tasks, seals it, and returns its name.
    pub async fn submit(&self, batch: v1::Batch, tasks: impl IntoIterator<Item = v1::Task>) -> String {
        let tasks = tokio_stream::iter(tasks.into_iter().collect::<Vec<_>>());
        let request = v1::CreateBatchRequest { batch: Some(batch), ..Default::default() };
        self.client().submit(request, tasks).await.expect("a submitted batch").name
    }

    /// Reads a batch.
    pub async fn get(&self, batch: &str) -> v1::Batch {
        self.client().get(batch).await.expect("a batch")
    }

    /// Waits until the batch is in this state.
    ///
    /// # Panics
    /// When it ends in another one, or takes too long.
    pub async fn wait_state(&self, batch: &str, state: State) -> v1::Batch {
        let wait = self.client().wait_until(batch, |seen| seen.state() == state);
        match tokio::time::timeout(PATIENCE, wait).await {
            Ok(Ok(seen)) if seen.state() == state => seen,
            Ok(Ok(seen)) => panic!("{batch} should be {state:?}, and ended: {seen:#?}"),
            Ok(Err(error)) => panic!("{batch} should be {state:?}: {error}"),
            Err(late) => panic!("{batch} isn't {state:?} yet ({late}): {:#?}", self.get(batch).await),
        }
    }

    /// Waits until the batch ended and nothing of it is left where it was staged.
    pub async fn wait_swept(&self, batch: &str) -> v1::Batch {
        let what = format!("{batch} is swept");
        eventually(&what, async || Some(self.get(batch).await).filter(|seen| seen.swept)).await
    }

    /// The tasks that failed, by sequence number.
    pub async fn failures(&self, batch: &str) -> Vec<v1::TaskFailure> {
        use futures::TryStreamExt as _;
        self.client().failures(batch).try_collect().await.expect("a failure list")
    }

    /// All that the cluster's etcd ever held.
    pub async fn history(&self) -> History {
        History::read(self.etcd_endpoint(), &self.prefix).await
    }

    /// Reads the batch's history, and asserts every invariant that can be read from it; see
    /// [`crate::invariants`].
    pub async fn assert_invariants(&self, batch: &str) -> crate::BatchHistory {
        let history = self.history().await.batch(&key(batch));
        crate::invariants::check(&history);
        history
    }
}

/// The store's name of a batch.
pub fn key(batch: &str) -> BatchKey {
    BatchKey::parse(batch).unwrap_or_else(|| panic!("{batch} is no batch name"))
}

/// A batch for the handler, with nothing else said.
pub fn batch_for(handler: &str) -> v1::Batch {
    batch_into(v1::Target { handler: handler.into(), ..Default::default() })
}

/// A batch into the target, with nothing else said.
pub fn batch_into(target: v1::Target) -> v1::Batch {
    v1::Batch { targets: vec![target], ..Default::default() }
}

/// The batch, with ranges that hold so many tasks each.
pub fn in_ranges_of(tasks: i32, batch: v1::Batch) -> v1::Batch {
    let bounds = v1::RangeBounds { min_tasks: tasks, max_tasks: tasks };
    v1::Batch { range_bounds: Some(bounds), ..batch }
}

/// `number` tasks with keys `k1`, `k2`, …
pub fn tasks(number: u64) -> Vec<v1::Task> {
    (1..=number).map(|n| v1::Task { key: format!("k{n}"), payload: "x".into() }).collect()
}
