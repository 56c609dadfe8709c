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
