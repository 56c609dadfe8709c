//! What a namespace may have, of all coordinators together.

use super::*;
use crate::store::Txn;
use tranche_proto::TaskList;
use tranche_proto::stored::Stored;

/// Two coordinators on one store.
async fn two(dir: &Path, change: impl Fn(&mut Config)) -> (World, World) {
    let StoreConfig::Embedded { path } = config(dir).store else { panic!("not embedded") };
    let store = Troubled::new(Embedded::open(path).await.expect("opened"));
    let mut config = config(dir);
    config.objects = Some(config.objects_dir());
    // As on etcd, they must reckon with each other.
    config.store = "etcd:http://127.0.0.1:1".parse().expect("a store");
    change(&mut config);
    (World::with(store.clone(), config.clone()).await, World::with(store, config).await)
}

impl World {
    async fn make(&self, namespace: &str) -> Result<BatchKey, Error> {
        Ok(timeout(LONG, self.node.create(namespace, spec(), "")).await.expect("in time")?.key)
    }

    async fn over(&self, batch: &BatchKey) {
        self.node.cancel(batch, "ann", "").await.expect("decided");
        self.until(batch, |view| view.state.swept).await;
    }
}

fn refused<T>(result: Result<T, Error>, wanted: (&str, &str)) {
    match result.err().expect("refused") {
        Error::Quota { of, setting, passes: false, .. } => assert_eq!((of.as_str(), setting), wanted),
        other => panic!("{other}"),
    }
}

const BATCHES: (&str, &str) = ("namespaces/a", "max_batches_per_namespace");
const BYTES: (&str, &str) = ("namespaces/a", "max_bytes_per_namespace");

#[tokio::test]
async fn a_namespace_has_as_many_batches_as_it_may_at_all_coordinators_together() {
    let dir = folder();
    let (one, other) = two(dir.path(), |config| config.max_batches_per_namespace = 3).await;
    let first = one.node.create("a", spec(), "r").await.expect("the first").key;
    other.make("a").await.expect("the second");
    let third = one.make("a").await.expect("the third");
    refused(one.make("a").await, BATCHES);
    refused(other.make("a").await, BATCHES);
    other.make("b").await.expect("another namespace has its own");
    let again = other.node.create("a", spec(), "r").await.expect("made before").key;
    assert_eq!(again, first);
    one.over(&third).await;
    // Who didn't see it end finds it so.
    let fourth = other.make("a").await.expect("room again");
    refused(one.make("a").await, BATCHES);
    assert_eq!(one.store.listed("slots/a/").await, 3);
    // The slots outlive the owner, and go with the batches.
    let store = one.store.clone();
    one.end().await;
    until("taken over", || other.drives(&first)).await;
    refused(other.make("a").await, BATCHES);
    other.over(&fourth).await;
    other.make("a").await.expect("room again");
    for (batch, _) in other.node.shared.handles() {
        other.over(&batch).await;
    }
    assert_eq!(store.listed("slots/").await, 0);
    other.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_at_once_as_many_are_made_as_there_may_be() {
    let dir = folder();
    let (one, other) = two(dir.path(), |config| config.max_batches_per_namespace = 5).await;
    let makes = (0..24).map(|n| {
        let node = if n % 2 == 0 { one.node.clone() } else { other.node.clone() };
        tokio::spawn(async move { node.create("a", spec(), &format!("r{n}")).await })
    });
    let mut made = 0;
    for make in makes.collect::<Vec<_>>() {
        match timeout(LONG, make).await.expect("in time").expect("joined") {
            Ok(_) => made += 1,
            // The second, which a client would try again: others were quicker time and again.
            Err(Error::Quota { .. } | Error::Store(StoreError::Unavailable(_))) => {}
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!((made, one.store.listed("slots/a/").await), (5, 5));
    one.end().await;
    other.end().await;
}

#[tokio::test]
async fn a_slot_that_nobody_needs_is_found_when_there_is_no_other() {
    let dir = folder();
    let (one, other) = two(dir.path(), |config| config.max_batches_per_namespace = 1).await;
    let gone = v1::SlotRecord { batch: "namespaces/a/batches/gone".to_owned(), bytes: 7 };
    let left = Txn::new().put(keys::slot("a", 0), Stored::new(gone).encode());
    one.store.txn(&left).await.expect("put");
    let batch = one.make("a").await.expect("made in its place");
    refused(other.make("a").await, BATCHES);
    one.over(&batch).await;
    one.end().await;
    other.end().await;
}

#[tokio::test]
async fn without_a_limit_batches_hold_no_slots() {
    let dir = folder();
    let (one, other) = two(dir.path(), |config| config.max_batches_per_namespace = 0).await;
    let batch = one.make("a").await.expect("made");
    one.append(&batch, 1, 3).await;
    assert_eq!(one.store.listed("slots/").await, 0);
    one.end().await;
    other.end().await;
}

/// As many bytes as so many of [`World::append`]'s tasks have.
fn bytes_of(tasks: usize) -> usize {
    let task = |_| v1::Task { key: "k".to_owned(), payload: vec![7; 10].into() };
    (0..tasks).map(task).collect::<TaskList>().bytes().len()
}

#[tokio::test]
async fn a_coordinator_alone_keeps_the_limit_of_bytes_to_the_byte() {
    let dir = folder();
    let StoreConfig::Embedded { path } = config(dir.path()).store else { panic!("not embedded") };
    let store = Troubled::new(Embedded::open(path).await.expect("opened"));
    let limited = Config { max_bytes_per_namespace: bytes_of(4), ..config(dir.path()) };
    let world = World::with(store.clone(), limited.clone()).await;
    let (one, two) = (world.make("a").await.expect("made"), world.make("a").await.expect("made"));
    refused(world.append_once(&one, 1, 5).await, BYTES);
    world.append(&one, 1, 3).await;
    world.append(&two, 1, 1).await;
    for batch in [&one, &two] {
        let next = world.node.get(batch).await.expect("there").state.total.cast_unsigned() + 1;
        refused(world.append_once(batch, next, 1).await, BYTES);
        // What is durable may be said again.
        world.append(batch, 1, 1).await;
    }
    let elsewhere = world.make("b").await.expect("made");
    world.append(&elsewhere, 1, 4).await;
    // It is the same after a restart.
    world.end().await;
    let world = World::with(store, limited).await;
    refused(world.append_once(&two, 2, 1).await, BYTES);
    world.over(&one).await;
    world.append(&two, 2, 3).await;
    refused(world.append_once(&two, 5, 1).await, BYTES);
    world.end().await;
}

#[tokio::test]
async fn coordinators_reckon_with_what_the_others_took() {
    let dir = folder();
    let (one, other) = two(dir.path(), |config| config.max_bytes_per_namespace = bytes_of(4)).await;
    let (first, second) = (one.make("a").await.expect("made"), other.make("a").await.expect("made"));
    one.append(&first, 1, 3).await;
    refused(other.append_once(&second, 1, 2).await, BYTES);
    other.append(&second, 1, 1).await;
    refused(other.append_once(&second, 2, 1).await, BYTES);
    refused(one.append_once(&first, 4, 1).await, BYTES);
    // What a lost owner had is counted, whoever has it now.
    other.end().await;
    until("taken over", || one.drives(&second)).await;
    refused(one.append_once(&first, 4, 1).await, BYTES);
    one.over(&second).await;
    one.append(&first, 4, 1).await;
    refused(one.append_once(&first, 5, 1).await, BYTES);
    one.end().await;
}
