//! A real node on the embedded store, with calls of the store that fail or wait at the worst moment.

mod counts;
mod damaged;
mod decide;
mod deleted;
mod fake;
mod leaving;
mod lost;
mod namespaces;
mod quotas;
mod replicas;
mod session;
mod starting;
mod troubled;

use super::*;
use crate::config::StoreConfig;
use crate::store::embedded::Embedded;
use std::collections::HashMap;
use std::path::Path;
use tempfile::TempDir;
use tokio::time::timeout;
use tranche_proto::v1::batch::State;
use troubled::Troubled;

/// Longer than anything here takes, by far.
const LONG: Duration = Duration::from_secs(20);

struct World {
    store: Arc<Troubled>,
    node: Arc<Node>,
    stop: CancellationToken,
}

impl World {
    async fn start(dir: &Path) -> Self {
        let StoreConfig::Embedded { path } = config(dir).store else { panic!("not embedded") };
        Self::on(Troubled::new(Embedded::open(path).await.expect("opened")), dir).await
    }

    /// Another coordinator on the same store.
    async fn beside(&self, dir: &Path) -> Self {
        Self::on(self.store.clone(), dir).await
    }

    async fn on(store: Arc<Troubled>, dir: &Path) -> Self {
        Self::with(store, config(dir)).await
    }

    async fn with(store: Arc<Troubled>, config: Config) -> Self {
        let objects = Objects::local(&config.objects_dir()).expect("opened");
        let stop = CancellationToken::new();
        let node = Node::start(
            config,
            "http://127.0.0.1:1".to_owned(),
            store.clone(),
            objects,
            Host::default(),
            stop.clone(),
        );
        let node = Arc::new(node.await.expect("started"));
        Self { store, node, stop }
    }

    fn drives(&self, batch: &BatchKey) -> bool {
        self.node.shared.handle(batch).is_some()
    }

    async fn end(self) {
        self.stop.cancel();
        timeout(LONG, self.node.stopped()).await.expect("it stops");
    }

    /// As a client does: a stream whose owner is lost just then is opened again.
    async fn append(&self, batch: &BatchKey, first: u64, tasks: usize) {
        let appended = timeout(LONG, async {
            loop {
                match self.append_once(batch, first, tasks).await {
                    Err(Error::NotOwned { .. }) => {}
                    other => return other,
                }
            }
        });
        appended.await.expect("an owner").expect("durable");
    }

    async fn append_once(&self, batch: &BatchKey, first: u64, tasks: usize) -> Result<u64, Error> {
        let mut appender = self.node.append(batch).await?;
        let task = |_| v1::Task { key: "k".to_owned(), payload: vec![7; 10].into() };
        appender.push(first, (0..tasks).map(task).collect()).await?;
        appender.finish().await
    }

    async fn lose_session(&self) {
        self.node.lose_session().await;
    }

    async fn until(&self, batch: &BatchKey, what: impl Fn(&View) -> bool) -> View {
        let watching = async {
            loop {
                if let Ok(view) = self.node.get(batch).await
                    && what(&view)
                {
                    return view;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if let Ok(view) = timeout(LONG, watching).await {
            return view;
        }
        panic!("it stays {:?}", self.node.get(batch).await)
    }
}

fn config(dir: &Path) -> Config {
    Config { retry_pause: Duration::from_millis(10), ..Config::embedded(dir.to_owned()) }
}

/// Waits until it is so.
async fn until(what: &str, so: impl Fn() -> bool) {
    let waiting = async {
        while !so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(timeout(LONG, waiting).await.is_ok(), "never: {what}");
}

fn spec() -> v1::Batch {
    v1::Batch {
        targets: vec![v1::Target { handler: "noop".into(), params: HashMap::new() }],
        priority: 10,
        max_attempts: 2,
        range_bounds: Some(v1::RangeBounds { min_tasks: 1, max_tasks: 100 }),
        ..v1::Batch::default()
    }
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("a directory")
}

#[tokio::test]
async fn a_batch_whose_creator_hung_up_is_driven() {
    let dir = folder();
    let world = World::start(dir.path()).await;
    // The creating transaction is durable then, nobody was told, and the records are read.
    world.store.lose("txn specs/");
    let stopped = world.store.stop("range segments/");
    let node = world.node.clone();
    let call = tokio::spawn(async move { node.create("default", spec(), "r1").await });
    let go = stopped.reached().await;
    call.abort();
    assert!(call.await.expect_err("aborted").is_cancelled());
    drop(go);
    let batch = world.node.create("default", spec(), "r1").await.expect("the same").key;
    world.append(&batch, 1, 3).await;
    world.end().await;
}

#[tokio::test]
async fn a_batch_that_cannot_be_read_right_after_its_creation_is_driven() {
    let dir = folder();
    let world = World::start(dir.path()).await;
    world.store.lose("txn specs/");
    world.store.fail("range segments/");
    // Whether this call says so or not.
    let _ = world.node.create("default", spec(), "r1").await;
    let batch = world.node.create("default", spec(), "r1").await.expect("the same").key;
    world.append(&batch, 1, 3).await;
    world.end().await;
}

#[tokio::test]
async fn a_session_that_is_lost_while_a_batch_is_created_makes_no_second_driver() {
    let dir = folder();
    let world = World::start(dir.path()).await;
    world.store.lose("txn specs/");
    let stopped = world.store.stop("range segments/");
    let node = world.node.clone();
    let call = tokio::spawn(async move { node.create("default", spec(), "r1").await });
    let go = stopped.reached().await;
    world.lose_session().await;
    let taken = async {
        loop {
            if let Some((batch, handle)) = world.node.shared.handles().pop() {
                return (batch, handle);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let (batch, owner) = timeout(LONG, taken).await.expect("taken with the new session");
    go.send(()).expect("it waits");
    let _ = call.await.expect("not aborted");
    let now = world.node.shared.handle(&batch).expect("driven");
    assert!(now.same(&owner), "the owner of the new epoch is the only one");
    world.append(&batch, 1, 3).await;
    world.end().await;
}
