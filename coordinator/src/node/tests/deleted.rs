//! What was deleted, and copies of transactions that are still on their way then.

use super::fake::FakeWorker;
use super::*;
use crate::store::{Compare, Txn, TxnOutcome};

const CREATES: &str = "txn specs/";
const DELETES: &str = "txn deletions/";

impl World {
    async fn created(&self, request_id: &str) -> BatchKey {
        self.node.create("default", spec(), request_id).await.expect("created").key
    }

    /// Sees a batch to its end.
    async fn ended(&self, batch: &BatchKey) {
        let worker = FakeWorker::attach(&self.node, "fake", 1);
        self.node.cancel(batch, "anna", "").await.expect("cancelled");
        self.until(batch, |view| view.state.swept).await;
        drop(worker);
    }

    async fn deleted(&self, batch: &BatchKey) {
        self.ended(batch).await;
        timeout(LONG, self.node.delete(batch)).await.expect("in time").expect("deleted");
    }

    /// Nothing of any batch is stored.
    async fn is_empty(&self) {
        for prefix in ["specs/", "states/", "locks/", "cutoffs/", "decisions/", "requests/"] {
            assert_eq!(self.store.listed(prefix).await, 0, "there are {prefix}");
        }
    }
}

#[tokio::test]
async fn i8_a_late_copy_of_a_create_makes_no_deleted_batch_again() {
    let dir = folder();
    let world = World::start(dir.path()).await;
    for request_id in ["r1", ""] {
        let batch = world.created(request_id).await;
        let copy = world.store.sent(CREATES);
        world.deleted(&batch).await;
        assert_eq!(world.store.late(&copy).await, TxnOutcome::Refused, "request id {request_id:?}");
        world.is_empty().await;
        assert!(matches!(world.node.get(&batch).await, Err(Error::NotFound(_))));
    }
    world.end().await;
}

#[tokio::test]
async fn i8_a_create_that_was_second_makes_no_batch_after_the_first_one_was_deleted() {
    let dir = folder();
    let world = World::start(dir.path()).await;
    let beside = world.beside(dir.path()).await;
    let stopped = world.store.stop(CREATES);
    let node = world.node.clone();
    let call = tokio::spawn(async move { node.create("default", spec(), "r1").await });
    let go = stopped.reached().await;
    let copy = world.store.sent(CREATES);
    let batch = beside.created("r1").await;
    go.send(()).expect("it waits");
    assert_eq!(call.await.expect("not aborted").expect("the same").key, batch);
    beside.deleted(&batch).await;
    assert_eq!(world.store.late(&copy).await, TxnOutcome::Refused);
    world.is_empty().await;
    beside.end().await;
    world.end().await;
}

#[tokio::test]
async fn a_request_id_makes_another_batch_once_the_first_is_deleted() {
    let dir = folder();
    let world = World::start(dir.path()).await;
    let first = world.created("r1").await;
    world.deleted(&first).await;
    let deletion = world.store.sent(DELETES);
    let second = world.created("r1").await;
    assert_ne!(first, second);
    // The next one keeps its request, whatever becomes of a copy of the deletion.
    assert_eq!(world.store.late(&deletion).await, TxnOutcome::Refused);
    assert_eq!(world.created("r1").await, second);
    world.deleted(&second).await;
    world.is_empty().await;
    world.end().await;
}

#[tokio::test]
async fn a_create_that_meets_the_deletion_of_another_batch_makes_one() {
    let dir = folder();
    let world = World::start(dir.path()).await;
    for request_id in ["", "r1"] {
        let stopped = world.store.stop(CREATES);
        let node = world.node.clone();
        let call = tokio::spawn(async move { node.create("default", spec(), request_id).await });
        let go = stopped.reached().await;
        // A batch whose deletion has the same record.
        let compares = world.store.sent(CREATES).compares;
        let record = compares.into_iter().find_map(|compare| match compare {
            Compare::Modified(key, _) => Some(key),
            Compare::Created(..) => None,
        });
        let deletion = Txn::new().put(record.expect("compared"), "another");
        assert!(matches!(world.store.late(&deletion).await, TxnOutcome::Applied(_)));
        go.send(()).expect("it waits");
        let batch = match call.await.expect("not aborted") {
            // Who has a request id asks again, if a batch is wanted still.
            Err(Error::NotOwned { .. }) if !request_id.is_empty() => world.created(request_id).await,
            view => view.expect("created").key,
        };
        world.append(&batch, 1, 3).await;
    }
    assert_eq!(world.store.listed("states/").await, 2);
    world.end().await;
}

#[tokio::test]
async fn a_create_that_was_carried_out_unheard_and_deleted_makes_nothing_more() {
    let dir = folder();
    let world = World::start(dir.path()).await;
    let beside = world.beside(dir.path()).await;
    world.store.lose(CREATES);
    let stopped = world.store.stop("get specs/");
    let node = world.node.clone();
    let call = tokio::spawn(async move { node.create("default", spec(), "r1").await });
    let go = stopped.reached().await;
    // The client tries elsewhere, is told of the batch, and needs it no more.
    let batch = beside.created("r1").await;
    // The lock is the first one's, who finds that.
    until("it is driven", || world.drives(&batch)).await;
    world.ended(&batch).await;
    beside.node.delete(&batch).await.expect("deleted");
    go.send(()).expect("it waits");
    let answer = timeout(LONG, call).await.expect("in time").expect("not aborted");
    assert!(matches!(answer, Err(Error::Store(StoreError::Unknown(_)))), "{answer:?}");
    world.is_empty().await;
    beside.end().await;
    world.end().await;
}

/// A copy of the transaction that took the lock, which comes when the batch has ended and given it back.
#[tokio::test]
async fn a_lock_that_is_taken_late_goes_with_its_batch() {
    let dir = folder();
    let world = World::start(dir.path()).await;
    let batch = world.created("").await;
    world.ended(&batch).await;
    until("its lock is given back", || !world.drives(&batch)).await;
    let state = world.store.get(&keys::state(&batch)).await.expect("read").expect("there");
    let session = (*world.node.shared.session.borrow()).expect("there is one");
    let take = Txn::new()
        .absent(keys::lock(&batch))
        .created(keys::state(&batch), state.create_revision)
        .put_held(keys::lock(&batch), ownership::lock_record(&world.node.shared), session);
    assert!(matches!(world.store.late(&take).await, TxnOutcome::Applied(_)));
    world.node.delete(&batch).await.expect("deleted");
    world.is_empty().await;
    assert_eq!(world.store.late(&take).await, TxnOutcome::Refused, "there is no batch any more");
    world.end().await;
}

#[tokio::test]
async fn of_two_that_delete_a_batch_both_are_right() {
    let dir = folder();
    let world = World::start(dir.path()).await;
    let batch = world.created("r1").await;
    world.ended(&batch).await;
    let stopped = world.store.stop(DELETES);
    let (node, key) = (world.node.clone(), batch.clone());
    let call = tokio::spawn(async move { node.delete(&key).await });
    let go = stopped.reached().await;
    world.node.delete(&batch).await.expect("deleted");
    let next = world.created("r1").await;
    go.send(()).expect("it waits");
    timeout(LONG, call).await.expect("in time").expect("not aborted").expect("deleted");
    assert_eq!(world.created("r1").await, next);
    world.end().await;
}

#[tokio::test]
async fn a_delete_whose_answer_was_lost_is_done() {
    let dir = folder();
    let world = World::start(dir.path()).await;
    let batch = world.created("r1").await;
    world.ended(&batch).await;
    world.store.lose(DELETES);
    timeout(LONG, world.node.delete(&batch)).await.expect("in time").expect("deleted");
    world.is_empty().await;
    world.end().await;
}
