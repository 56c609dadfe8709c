//! What is on its way to a batch's driver when that one ends.

use super::fake::{FakeWorker, RawWorker};
use super::*;
use crate::driver::Driver;
use crate::store::{Txn, TxnOutcome};

#[tokio::test]
async fn a_report_that_its_driver_took_along_at_its_end_is_settled() {
    let dir = folder();
    let world = World::start(dir.path()).await;
    let batch = world.node.create("default", spec(), "").await.expect("created").key;
    world.append(&batch, 1, 3).await;
    let (mut worker, service) = RawWorker::start(&world.node).await;
    let grant = worker.granted().await;
    // A write is on its way when the report comes, and the session is lost before it is back.
    let stopped = world.store.stop("txn states/");
    let (node, key) = (world.node.clone(), batch.clone());
    let call = tokio::spawn(async move { node.seal(&key, Some(3)).await });
    let go = stopped.reached().await;
    worker.report(&grant).await;
    world.node.shared.handle(&batch).expect("driven").leases().await;
    world.lose_session().await;
    drop(go);
    let _ = call.await.expect("not aborted");
    timeout(LONG, worker.settled(&grant)).await.expect("the report is settled");
    drop(worker);
    world.end().await;
    service.end().await;
}

#[tokio::test]
async fn a_batch_that_cannot_end_yet_keeps_no_other_from_its_owner() {
    let dir = folder();
    let world = World::start(dir.path()).await;
    let stuck = world.node.create("default", spec(), "").await.expect("created").key;
    let other = world.node.create("default", spec(), "").await.expect("created").key;
    // Its report can't be written: its place is taken.
    let place = dir.path().join("objects/batches").join(&stuck.namespace).join(&stuck.id).join("report.json");
    std::fs::create_dir_all(place.join("taken")).expect("made");
    world.node.cancel(&stuck, "anna", "").await.expect("cancelled");
    world.until(&stuck, |view| view.state.state() == State::RollingBack).await;
    world.lose_session().await;
    world.append(&other, 1, 3).await;
    std::fs::remove_dir_all(&place).expect("it was there");
    world.until(&stuck, View::is_final).await;
    world.end().await;
}

#[tokio::test]
async fn a_worker_that_attaches_while_a_batch_is_taken_over_is_met() {
    let dir = folder();
    let world = World::start(dir.path()).await;
    let batch = world.node.create("default", spec(), "").await.expect("created").key;
    world.append(&batch, 1, 3).await;
    let (mut worker, service) = RawWorker::start(&world.node).await;
    worker.granted().await;
    drop(worker);
    service.end().await;
    world.end().await;

    // A node that owns nothing by itself, so that the take-over can be held where it matters.
    let config = Config::embedded(dir.path().to_owned());
    let store: Arc<dyn Store> = Embedded::open(dir.path()).await.expect("opened");
    let objects = Objects::local(&config.objects_dir()).expect("opened");
    let stop = CancellationToken::new();
    let shared =
        Arc::new(Shared::new(config, String::new(), store.clone(), objects, Host::default(), stop.clone()));
    let node = Arc::new(Node { shared: shared.clone() });
    let session = store.session(Duration::from_secs(5)).await.expect("a session");
    let txn = Txn::new().absent(keys::lock(&batch)).put_held(keys::lock(&batch), "it", session.id);
    assert!(matches!(store.txn(&txn).await, Ok(TxnOutcome::Applied(_))));
    let loaded = ledger::load(&*store, &batch).await.expect("read").expect("there");
    let term = Term::new(session, store.clone(), &stop, &CancellationToken::new());
    let (driver, handle) = Driver::new(shared.clone(), batch.clone(), loaded, term);
    // The batch isn't found by who attaches now. It lost the lease that the record gives it.
    let worker = FakeWorker::attach(&node, "raw", 1);
    shared.own(batch.clone(), handle);
    let driver = tokio::spawn(driver.run(stop.clone()));
    let staged = async {
        let mut view = node.watch(&batch).await.expect("driven").updates;
        view.wait_for(|view| view.state.staged == 3).await.map(|_| ())
    };
    timeout(LONG, staged).await.expect("the lease is given again").expect("driven");
    drop(worker);
    stop.cancel();
    driver.await.expect("joined");
}
