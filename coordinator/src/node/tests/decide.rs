//! A client's decision beside a busy owner.

use super::fake::FakeWorker;
use super::*;
use crate::store::Txn;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_needs_no_luck_beside_an_owner_that_grants_all_the_time() {
    let dir = folder();
    let world = World::start(dir.path()).await;
    let worker = FakeWorker::attach(&world.node, "fake", 64);
    for round in 1..=10 {
        let one = v1::RangeBounds { min_tasks: 1, max_tasks: 1 };
        let spec = v1::Batch { range_bounds: Some(one), ..spec() };
        let batch = world.node.create("default", spec, "").await.expect("created").key;
        world.append(&batch, 1, 10_000).await;
        world.until(&batch, |view| view.state.staged > 50).await;
        world.node.cancel(&batch, "anna", "").await.expect("cancelled");
        assert_eq!(world.store.decisions(), round, "nothing moved the cut-off in between");
    }
    drop(worker);
    world.end().await;
}

#[tokio::test]
async fn a_batch_without_a_cut_off_is_called_damaged() {
    let dir = folder();
    let world = World::start(dir.path()).await;
    let batch = world.node.create("default", spec(), "").await.expect("created").key;
    world.store.txn(&Txn::new().delete(keys::cutoff(&batch))).await.expect("deleted");
    let answer = timeout(LONG, world.node.cancel(&batch, "anna", "")).await.expect("an answer");
    assert!(matches!(answer, Err(Error::Damaged { .. })));
    world.end().await;
}

/// By the clock of the test: each call waits for an owner that doesn't come to it.
#[tokio::test(start_paused = true)]
async fn a_decision_that_was_made_is_in_every_answer() {
    let dir = folder();
    let a = World::start(dir.path()).await;
    let b = a.beside(dir.path()).await;
    let batch = a.node.create("default", spec(), "").await.expect("created").key;
    let stopped = a.store.stop("txn states/");
    let (node, key) = (a.node.clone(), batch.clone());
    let sealing = tokio::spawn(async move { node.seal(&key, Some(0)).await });
    let go = stopped.reached().await;
    for node in [&b.node, &b.node, &a.node, &a.node] {
        let view = node.cancel(&batch, "anna", "why").await.expect("cancelled");
        let decision = view.decision.expect("it was made");
        assert_eq!((decision.actor.as_str(), decision.message.as_str()), ("anna", "why"));
    }
    assert_eq!(a.store.decisions(), 1);
    drop(go);
    let _ = sealing.await.expect("not aborted");
    a.until(&batch, View::is_final).await;
    a.end().await;
    b.end().await;
}

#[tokio::test]
async fn a_batch_that_was_cancelled_unsealed_is_never_sealed() {
    let dir = folder();
    let world = World::start(dir.path()).await;
    let batch = world.node.create("default", spec(), "").await.expect("created").key;
    world.node.cancel(&batch, "anna", "").await.expect("cancelled");
    world.until(&batch, |view| view.state.swept).await;
    for total in [None, Some(0), Some(1)] {
        let sealed = world.node.seal(&batch, total).await;
        assert!(matches!(sealed, Err(Error::WrongState { .. })), "{total:?}: {sealed:?}");
    }
    world.end().await;
}
