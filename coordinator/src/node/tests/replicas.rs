//! Several coordinators on one store.

use super::fake::{FakeWorker, RawWorker, report};
use super::*;
use crate::identity::Scope;
use crate::metrics::Operator;
use crate::store::{Store, Txn, TxnOutcome};
use tokio::time::Instant;
use tranche_ops::Operated as _;
use tranche_proto::stored::Stored;
use tranche_proto::v1::attach_request::Frame as To;
use tranche_proto::v1::attach_response::Frame;
use tranche_proto::v1::report_ack::Result as Told;

/// By the clock of the test, which stands still while anything works: that nobody waits for a turn of its own.
#[tokio::test(start_paused = true)]
async fn the_batches_of_a_coordinator_that_leaves_are_taken_at_once_by_all_the_others() {
    let dir = folder();
    let a = World::start(dir.path()).await;
    let mut batches = Vec::new();
    for _ in 0..30 {
        batches.push(a.node.create("default", spec(), "").await.expect("created").key);
    }
    let (b, c) = (a.beside(dir.path()).await, a.beside(dir.path()).await);
    until("all know each other", || {
        [&a, &b, &c].iter().all(|w| w.node.shared.members.list().borrow().len() == 3)
    })
    .await;
    let (store, left) = (a.store.clone(), Instant::now());
    a.end().await;
    until("each is driven", || batches.iter().all(|batch| b.drives(batch) || c.drives(batch))).await;
    assert!(left.elapsed() < Duration::from_millis(150), "{:?}", left.elapsed());
    let shares = [&b, &c].map(|world| batches.iter().filter(|batch| world.drives(batch)).count());
    assert_eq!(shares[0] + shares[1], 30, "each by one");
    assert!(shares.iter().all(|share| *share > 5), "{shares:?}");
    assert_eq!(store.listed(keys::COORDINATORS).await, 2);
    b.end().await;
    c.end().await;
}

#[tokio::test]
async fn a_batch_whose_owner_is_lost_goes_on_with_another() {
    let dir = folder();
    let (a, mut workers) = (World::start(dir.path()).await, Vec::new());
    let b = a.beside(dir.path()).await;
    let batch = a.node.create("default", spec(), "").await.expect("created").key;
    a.append(&batch, 1, 500).await;
    for world in [&a, &b] {
        workers.push(FakeWorker::attach(&world.node, "fake", 2));
    }
    a.until(&batch, |view| view.state.staged > 0).await;
    let epoch = a.node.shared.handle(&batch).expect("driven").epoch();
    a.lose_session().await;
    until("it has another owner", || {
        [&a, &b].iter().any(|world| world.node.shared.handle(&batch).is_some_and(|h| h.epoch() > epoch))
    })
    .await;
    let owner = if b.drives(&batch) { &b } else { &a };
    timeout(LONG, owner.node.seal(&batch, Some(500))).await.expect("answered").expect("sealed");
    let view = owner.until(&batch, View::is_final).await;
    assert_eq!((view.state.state(), view.state.staged, view.state.committed), (State::Committed, 500, 500));
    drop(workers);
    a.end().await;
    b.end().await;
}

#[tokio::test]
async fn a_lease_outlives_its_owner_and_is_reported_to_the_next() {
    let dir = folder();
    let a = World::start(dir.path()).await;
    let b = a.beside(dir.path()).await;
    let batch = a.node.create("default", spec(), "").await.expect("created").key;
    a.append(&batch, 1, 3).await;
    let (mut at_a, service_a) = RawWorker::start(&a.node).await;
    let grant = at_a.granted().await;
    let (mut at_b, service_b) = RawWorker::start(&b.node).await;
    at_b.holds(&[&grant]);
    drop(at_a);
    service_a.end().await;
    a.end().await;
    until("taken over", || b.drives(&batch)).await;
    while !matches!(at_b.next().await, Frame::Owner(_)) {}
    b.node.seal(&batch, Some(3)).await.expect("sealed");
    // Its lease is known by now, and no other is given for the same tasks.
    let others = at_b.until_answered().await;
    assert!(!others.iter().any(|frame| matches!(frame, Frame::Grant(_) | Frame::Revoke(_))), "{others:?}");
    assert_eq!(b.node.leases(&Scope::All, Some(&batch)).await.expect("listed").len(), 1);
    at_b.report(&grant).await;
    timeout(LONG, at_b.settled(&grant)).await.expect("the report counts");
    b.until(&batch, |view| view.state.staged == 3).await;
    drop(at_b);
    b.end().await;
    service_b.end().await;
}

#[tokio::test]
async fn what_a_worker_has_of_anothers_batch_is_left_to_that_one_until_the_batch_is_over() {
    let dir = folder();
    let a = World::start(dir.path()).await;
    let b = a.beside(dir.path()).await;
    let batch = a.node.create("default", spec(), "").await.expect("created").key;
    a.append(&batch, 1, 3).await;
    let (mut at_a, service_a) = RawWorker::start(&a.node).await;
    let grant = at_a.granted().await;
    let (mut at_b, service_b) = RawWorker::start(&b.node).await;
    at_b.holds(&[&grant]);
    at_b.attach_again().await;
    at_b.send(To::Report(report(&grant))).await;
    // Both have been worked on when this is answered, since the store was asked before.
    b.node.get(&batch).await.expect("there");
    let heard = at_b.until_answered().await;
    assert!(!heard.iter().any(|frame| matches!(frame, Frame::Ack(_) | Frame::Revoke(_))), "{heard:?}");

    a.node.cancel(&batch, "anna", "").await.expect("cancelled");
    let told = timeout(LONG, async {
        while !matches!(at_b.next().await, Frame::PhaseChanged(told) if told.phase() == v1::Phase::Rollback) {
        }
    });
    told.await.expect("a worker hears of a rollback from every coordinator");
    // Another worker does what is left to do, once this one says that it stopped.
    let helper = FakeWorker::attach(&a.node, "fake", 2);
    at_a.send(To::Credit(v1::Credit::default())).await;
    let phase = v1::Phase::Rollback.into();
    at_a.send(To::PhaseAck(v1::PhaseAck { batch: batch.to_string(), phase })).await;
    a.until(&batch, |view| view.state.swept).await;
    at_b.send(To::Report(report(&grant))).await;
    let told = timeout(LONG, async {
        loop {
            if let Frame::Ack(ack) = at_b.next().await
                && let Some(report) = ack.reports.first()
            {
                return report.result();
            }
        }
    });
    assert_eq!(told.await.expect("answered"), Told::UnknownBatch);
    at_b.attach_again().await;
    timeout(LONG, async { while !matches!(at_b.next().await, Frame::Revoke(_)) {} })
        .await
        .expect("it is over");
    drop((at_a, at_b, helper));
    a.end().await;
    b.end().await;
    service_a.end().await;
    service_b.end().await;
}

#[tokio::test]
async fn workers_hear_who_is_there() {
    let dir = folder();
    let a = World::start(dir.path()).await;
    let (mut worker, service) = RawWorker::start(&a.node).await;
    let mut hear = async |expected: &[&World]| {
        let mut ids: Vec<_> = expected.iter().map(|world| world.node.shared.id.clone()).collect();
        ids.sort();
        let heard = timeout(LONG, async {
            loop {
                if let Frame::Replicas(said) = worker.next().await {
                    let said: Vec<_> = said.replicas.into_iter().map(|replica| replica.coordinator).collect();
                    if said == ids {
                        return;
                    }
                }
            }
        });
        heard.await.expect("it hears of them");
    };
    hear(&[&a]).await;
    let b = a.beside(dir.path()).await;
    hear(&[&a, &b]).await;
    b.node.shared.leave().await;
    hear(&[&a]).await;
    drop(worker);
    b.end().await;
    a.end().await;
    service.end().await;
}

#[tokio::test]
async fn new_batches_are_for_whom_has_fewest_and_is_there() {
    let dir = folder();
    let a = World::start(dir.path()).await;
    let b = a.beside(dir.path()).await;
    let least = || a.node.shared.less_loaded().map(|member| member.id);
    let knows_b = || a.node.shared.members.list().borrow().len() == 2;
    until("they know each other", knows_b).await;
    assert_eq!(least(), None, "both have none");
    let batch = a.node.create("default", spec(), "").await.expect("created").key;
    assert_eq!(least().as_ref(), Some(&b.node.shared.id));
    b.node.create("default", spec(), "").await.expect("created");
    until("it is known who has the second", || least().is_none()).await;
    a.node.create("default", spec(), "").await.expect("created");
    assert!(least().is_some());
    let owner = b.node.shared.owner_of(&batch).await.expect("known").expect("owned");
    assert_eq!(owner.id, a.node.shared.id);
    b.node.shared.leave().await;
    until("it left", || least().is_none()).await;
    b.end().await;
    a.end().await;
}

#[tokio::test]
async fn a_take_over_that_fails_is_tried_again() {
    let dir = folder();
    let a = World::start(dir.path()).await;
    let b = a.beside(dir.path()).await;
    let batch = a.node.create("default", spec(), "").await.expect("created").key;
    // What is read first, to take the lock, and what is read then, to drive the batch.
    for call in ["get states/", "get specs/"] {
        a.store.fail(call);
    }
    a.end().await;
    until("it is driven", || b.drives(&batch)).await;
    b.append(&batch, 1, 3).await;
    b.end().await;
}

/// Its signing off and the deletion of its lock are watched for by themselves, and may be heard of in any order.
#[tokio::test]
async fn an_owner_that_signed_off_handed_over_in_whatever_order_that_is_heard() {
    let dir = folder();
    let a = World::start(dir.path()).await;
    let b = a.beside(dir.path()).await;
    let members = || b.node.shared.members.list().borrow().len();
    until("they know each other", || members() == 2).await;
    let batch = a.node.create("default", spec(), "").await.expect("created").key;
    until("its owner is known", || b.node.shared.members.owner(&batch).is_some()).await;
    // One watch is of each.
    let signs_off = [(); 2].map(|()| a.store.stop("event coordinators/"));
    a.node.shared.leave().await;
    let mut told = Vec::new();
    for stopped in signs_off {
        told.push(stopped.reached().await);
    }
    let taken = a.store.stop("txn locks/");
    a.end().await;
    let go = timeout(LONG, taken.reached()).await.expect("it takes the lock");
    assert_eq!(members(), 2, "it hasn't heard of it");
    for told in told {
        let _ = told.send(());
    }
    until("it has", || members() == 1).await;
    go.send(()).expect("it waits");
    until("it is driven", || b.drives(&batch)).await;
    let text = Operator::new(b.node.clone(), CancellationToken::new()).metrics();
    let count = |cause: &str| {
        let name = format!("tranche_takeovers_total{{cause=\"{cause}\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&name)).expect("there").to_owned()
    };
    assert_eq!([count("handover"), count("loss")], ["1", "0"]);
    b.end().await;
}

#[tokio::test]
async fn a_lock_of_its_own_that_nobody_drives_is_driven() {
    let dir = folder();
    let a = World::start(dir.path()).await;
    let batch = BatchKey::new("default", "0198-lost-answer");
    // A creation whose caller never heard that it was carried out.
    let session = (*a.node.shared.session.borrow()).expect("there is one");
    let state = v1::StateRecord { state: State::Importing.into(), ..v1::StateRecord::default() };
    let spec = v1::SpecRecord { batch: Some(spec()), ..v1::SpecRecord::default() };
    let txn = Txn::new()
        .put(keys::spec(&batch), Stored::new(spec).encode())
        .put(keys::state(&batch), Stored::new(state).encode())
        .put(keys::cutoff(&batch), Stored::new(v1::CutoffRecord::default()).encode())
        .put_held(keys::lock(&batch), ownership::lock_record(&a.node.shared), session);
    let Ok(TxnOutcome::Applied(epoch)) = a.store.txn(&txn).await else { panic!("refused") };
    until("it is driven", || a.drives(&batch)).await;
    assert_eq!(a.node.shared.handle(&batch).expect("driven").epoch().0, epoch);
    a.append(&batch, 1, 3).await;
    a.end().await;
}

#[tokio::test]
async fn a_batch_whose_owner_panics_gets_another() {
    let dir = folder();
    let a = World::start(dir.path()).await;
    let batch = a.node.create("default", spec(), "").await.expect("created").key;
    let epoch = a.node.shared.handle(&batch).expect("driven").epoch();
    a.store.panic("txn states/");
    let sealed = a.node.seal(&batch, Some(0)).await;
    assert!(sealed.is_err(), "{sealed:?}");
    until("it has another owner", || a.node.shared.handle(&batch).is_some_and(|h| h.epoch() > epoch)).await;
    // And who takes it over may do so too.
    let b = a.beside(dir.path()).await;
    b.store.panic("get states/");
    a.end().await;
    until("it is driven", || b.drives(&batch)).await;
    b.node.seal(&batch, Some(0)).await.expect("sealed");
    b.end().await;
}

#[tokio::test]
async fn a_driver_whose_lock_is_gone_makes_way_for_the_next() {
    let dir = folder();
    let a = World::start(dir.path()).await;
    let batch = a.node.create("default", spec(), "").await.expect("created").key;
    let epoch = a.node.shared.handle(&batch).expect("driven").epoch();
    // It writes nothing just now, so it can't find out by itself.
    a.store.txn(&Txn::new().delete(keys::lock(&batch))).await.expect("deleted");
    until("it has another owner", || a.node.shared.handle(&batch).is_some_and(|h| h.epoch() > epoch)).await;
    a.append(&batch, 1, 3).await;
    a.end().await;
}

#[tokio::test]
async fn a_batch_that_ends_as_it_is_begun_to_be_watched_is_told_as_ended() {
    let dir = folder();
    let a = World::start(dir.path()).await;
    let b = a.beside(dir.path()).await;
    let batch = a.node.create("default", spec(), "").await.expect("created").key;
    // It was read as one that goes on.
    let stopped = a.store.stop("get cutoffs/");
    let (node, key) = (b.node.clone(), batch.clone());
    let watching = tokio::spawn(async move { node.watch(&key).await });
    let go = stopped.reached().await;
    a.node.cancel(&batch, "anna", "").await.expect("cancelled");
    a.until(&batch, |view| view.state.swept).await;
    drop(go);
    let watched = watching.await.expect("not aborted").expect("there");
    assert_eq!(watched.updates.borrow().state.state(), State::RolledBack);
    a.end().await;
    b.end().await;
}
