//! A session with the store that is over: nothing is answered from memory any more.

use super::*;
use crate::store::{StoreError, Txn};
use tranche_proto::stored::Stored;

#[tokio::test]
async fn an_owner_whose_session_is_lost_answers_nothing_from_memory() {
    let dir = folder();
    let a = World::start(dir.path()).await;
    let b = a.beside(dir.path()).await;
    let batch = a.node.create("default", spec(), "").await.expect("created").key;
    a.append(&batch, 1, 3).await;
    let session = *a.node.shared.session.borrow();
    // A write hangs at the store for as long as this test takes.
    let stopped = a.store.stop("txn states/");
    let (node, key) = (a.node.clone(), batch.clone());
    let sealing = tokio::spawn(async move { node.seal(&key, Some(3)).await });
    let go = stopped.reached().await;
    a.lose_session().await;
    assert!(!a.drives(&batch), "from the moment on at which the session is lost");
    assert!(sealing.await.expect("not aborted").is_err());
    until("it is taken over", || b.drives(&batch)).await;
    b.node.cancel(&batch, "anna", "").await.expect("cancelled");
    b.until(&batch, |view| view.state.swept).await;
    let view = a.node.get(&batch).await.expect("read");
    assert_eq!(view.state.state(), State::RolledBack);
    // Nor does the write keep it from its next session.
    until("it has another session", || {
        let now = *a.node.shared.session.borrow();
        now.is_some() && now != session
    })
    .await;
    drop(go);
    a.end().await;
    b.end().await;
}

#[tokio::test]
async fn one_that_was_paused_reads_the_store_before_it_noticed_anything() {
    let dir = folder();
    let world = World::start(dir.path()).await;
    let batch = world.node.create("default", spec(), "").await.expect("created").key;
    // Another owner's write, which this one doesn't know of.
    let state = v1::StateRecord { state: State::Importing.into(), total: 77, ..v1::StateRecord::default() };
    let txn = Txn::new().put(keys::state(&batch), Stored::new(state).encode());
    world.store.txn(&txn).await.expect("written");
    assert_eq!(world.node.get(&batch).await.expect("from memory").state.total, 0);
    world.store.oversleep();
    assert_eq!(world.node.get(&batch).await.expect("read").state.total, 77);
    assert!(world.node.shared.handles().is_empty());
    let listed = world.node.list("default", ListFilter { page_size: 9, ..ListFilter::default() }).await;
    assert_eq!(listed.expect("read").0[0].state.total, 77);
    world.end().await;
}

#[tokio::test]
async fn a_store_that_stutters_as_changes_are_read_again_costs_no_batch_its_owner() {
    let dir = folder();
    let world = World::start(dir.path()).await;
    let batch = world.node.create("default", spec(), "").await.expect("created").key;
    let (session, epoch) =
        (*world.node.shared.session.borrow(), world.node.shared.handle(&batch).unwrap().epoch());
    world.store.fail("range locks/");
    let read = world.store.stop("range states/");
    world.store.miss(keys::LOCKS).await;
    drop(timeout(LONG, read.reached()).await.expect("the locks were read after all"));
    world.append(&batch, 1, 3).await;
    assert_eq!(*world.node.shared.session.borrow(), session);
    assert_eq!(world.node.shared.handle(&batch).expect("driven").epoch(), epoch);
    world.end().await;
}

#[tokio::test]
async fn a_batch_whose_creator_loses_its_session_can_be_created_again() {
    let dir = folder();
    let world = World::start(dir.path()).await;
    let stopped = world.store.stop("txn specs/");
    let node = world.node.clone();
    let call = tokio::spawn(async move { node.create("default", spec(), "r1").await });
    let go = stopped.reached().await;
    world.lose_session().await;
    drop(go);
    let passing = |error: Error| matches!(error, Error::Store(error) if error.retryable());
    assert!(passing(call.await.expect("not aborted").expect_err("the store refuses that session")));
    let created = async {
        loop {
            match world.node.create("default", spec(), "r1").await {
                Ok(view) => return view.key,
                Err(error) => assert!(passing(error)),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let batch = timeout(LONG, created).await.expect("with the next session");
    world.append(&batch, 1, 3).await;
    world.store.oversleep();
    assert!(passing(world.node.create("default", spec(), "").await.expect_err("its session may be over")));
    world.end().await;
}

/// Found by chaos: the record of the session before was taken for the new one, and went with its session.
#[tokio::test]
async fn a_coordinator_that_signs_on_again_is_there_for_as_long_as_its_new_session() {
    let dir = folder();
    let world = World::start(dir.path()).await;
    let key = keys::coordinator(&world.node.shared.id);
    let before = world.store.get(&key).await.expect("read").expect("signed on").mod_revision;
    // The session before isn't closed yet, and the first call never comes there.
    let next = world.store.session(LONG).await.expect("a session");
    world.store.fail_with("txn coordinators/", StoreError::Unknown("by order of the test".to_owned()));
    ownership::register(&world.node.shared, &next).await.expect("signed on");
    let after = world.store.get(&key).await.expect("read").expect("signed on").mod_revision;
    assert!(after > before, "it hangs on the session before: {before}, {after}");
    world.end().await;
}
