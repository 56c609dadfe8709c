//! What only etcd can do to us: end streams, lose answers, stand still, compact.

use crate::util::{PATIENCE, applied, get, keys, next, put, until_gone, until_lost};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tranche_coordinator::store::commit::commit;
use tranche_coordinator::store::etcd::{Etcd, EtcdConfig};
use tranche_coordinator::store::{RangeOptions, Store, StoreError, Txn, TxnOutcome, WatchEvent};
use tranche_tests::etcd::{EtcdServer, shared};

/// Counts a key up until told to stop; each step is settled, whatever happens to its answer.
async fn count_up(store: Arc<Etcd>, mut stop: oneshot::Receiver<()>) -> u64 {
    let (mut seen, mut number) = (0, 0_u64);
    while stop.try_recv().is_err() {
        number += 1;
        let txn = Txn::new().modified("n", seen).put("n", number.to_string());
        match commit(store.as_ref(), &txn).await.unwrap() {
            TxnOutcome::Applied(revision) => seen = revision,
            // Nobody else writes: a lost answer was taken for a refusal.
            TxnOutcome::Refused => panic!("step {number} refused"),
        }
    }
    number
}

/// etcd is killed again and again while a key is counted up: no step is lost or doubled, and a watch
/// that lives through it all sees each of them once, in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_and_restarted_nothing_is_lost() {
    let mut server = EtcdServer::start().await;
    let store = server.store("/t/").await;
    let mut watch = store.watch("n", 0).await.unwrap();
    let (stop, stopped) = oneshot::channel();
    let counting = tokio::spawn(count_up(Arc::clone(&store), stopped));
    let mut expected = 1_u64;
    let see = async |event: WatchEvent, expected: &mut u64| {
        let WatchEvent::Put(entry) = event else { panic!("{event:?}") };
        assert_eq!(entry.value, expected.to_string());
        *expected += 1;
    };
    for _ in 0..4 {
        // Some steps, so that each kill comes in the midst of them.
        for _ in 0..rand::random_range(5..40) {
            see(next(&mut watch).await, &mut expected).await;
        }
        server.kill();
        server.restart().await;
    }
    stop.send(()).unwrap();
    let last = timeout(PATIENCE, counting).await.unwrap().unwrap();
    while expected <= last {
        see(next(&mut watch).await, &mut expected).await;
    }
    assert_eq!(get(store.as_ref(), "n").await.value, last.to_string());
}

/// A short outage costs no session; its keep-alives go on, on a new stream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_survives_a_short_outage() {
    let mut server = EtcdServer::start().await;
    let store = server.store("/t/").await;
    let session = store.session(Duration::from_mins(1)).await.unwrap();
    let other = store.session(Duration::from_secs(2)).await.unwrap();
    applied(store.as_ref(), Txn::new().put_held("long", "1", session.id)).await;
    server.kill();
    // The one with the short time to live is lost meanwhile, and says so by itself.
    until_lost(&other).await;
    server.restart().await;
    assert!(!*session.lost.borrow());
    assert_eq!(get(store.as_ref(), "long").await.value, "1");
    put(store.as_ref(), "x", "1").await;
    store.close_session(session.id).await.unwrap();
    until_gone(store.as_ref(), "long").await;
}

/// A server that stands still: calls end by themselves and say what is known; a session is lost before
/// its lease can be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_waits_for_a_server_that_stands_still() {
    let server = EtcdServer::start().await;
    let call_timeout = Duration::from_millis(500);
    let store = Etcd::connect(EtcdConfig { call_timeout, ..server.config("/t/") }).await.unwrap();
    let session = store.session(Duration::from_secs(2)).await.unwrap();
    let held = applied(store.as_ref(), Txn::new().put_held("held", "1", session.id)).await;
    let mut watch = store.watch("", held).await.unwrap();

    server.stop();
    let txn = Txn::new().absent("k").put("k", "1");
    let calls = async {
        assert!(matches!(store.get("k").await, Err(StoreError::Unavailable(_))));
        let range = store.range("", RangeOptions::default()).await;
        assert!(matches!(range, Err(StoreError::Unavailable(_))));
        assert!(matches!(store.txn(&txn).await, Err(StoreError::Unknown(_))));
        assert!(store.session(Duration::from_secs(2)).await.is_err());
        assert!(Etcd::connect(EtcdConfig { call_timeout, ..server.config("/t/") }).await.is_err());
        until_lost(&session).await;
        // Lost here; there it is still held.
        assert!(store.close_session(session.id).await.is_err());
    };
    timeout(PATIENCE, calls).await.expect("calls that end");

    server.cont();
    // The answer was lost, and the transaction may have arrived: either way it is settled, once.
    let TxnOutcome::Applied(revision) = commit(store.as_ref(), &txn).await.unwrap() else {
        // A late arrival after the reading back: then it is there.
        assert_eq!(get(store.as_ref(), "k").await.value, "1");
        return;
    };
    assert_eq!(get(store.as_ref(), "k").await.create_revision, revision);
    until_gone(store.as_ref(), "held").await;
    // The watch saw both, in either order.
    let mut events = [next(&mut watch).await, next(&mut watch).await];
    events.sort_by_key(|event| matches!(event, WatchEvent::Deleted(..)));
    assert_eq!(events[0], WatchEvent::Put(get(store.as_ref(), "k").await));
    assert!(matches!(&events[1], WatchEvent::Deleted(key, _) if key == "held"));
}

/// Compaction takes away events that a watch still wants: it says so, and goes on from there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compaction_is_told() {
    let server = EtcdServer::start().await;
    let store = server.store("/t/").await;
    let first = put(store.as_ref(), "k", "1").await;
    for number in 2..10 {
        put(store.as_ref(), "k", number.to_string()).await;
    }
    let last = get(store.as_ref(), "k").await;
    server.ctl(&["compact", &last.mod_revision.to_string()]);

    let mut watch = store.watch("k", first).await.unwrap();
    let WatchEvent::Missed(revision) = next(&mut watch).await else { panic!("not told") };
    assert!(revision >= last.mod_revision);
    // Who lists now has all that was missed, and the watch has the rest.
    assert_eq!(get(store.as_ref(), "k").await, last);
    put(store.as_ref(), "k", "10").await;
    assert_eq!(next(&mut watch).await, WatchEvent::Put(get(store.as_ref(), "k").await));
    // From the compacted revision on, nothing is missing.
    let mut exact = store.watch("k", last.mod_revision).await.unwrap();
    assert_eq!(next(&mut exact).await, WatchEvent::Put(get(store.as_ref(), "k").await));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prefixes_are_apart() {
    let server = shared().await;
    let (one, two) = (server.store("/apart/").await, server.store("/apart/2/").await);
    let other = server.store("/apartment/").await;
    put(two.as_ref(), "k", "2").await;
    put(other.as_ref(), "k", "3").await;
    assert_eq!(one.get("k").await.unwrap(), None);
    assert_eq!(keys(two.as_ref(), "", RangeOptions::default()).await.0, ["k"]);
    assert_eq!(get(other.as_ref(), "k").await.value, "3");
    // A prefix is a name like any other: what lies under it is seen from above, and only that.
    assert_eq!(keys(one.as_ref(), "", RangeOptions::default()).await.0, ["2/k"]);
    let mut watch = one.watch("", 0).await.unwrap();
    let WatchEvent::Put(entry) = next(&mut watch).await else { panic!("not a put") };
    assert_eq!(entry.key, "2/k");

    let empty = Etcd::connect(server.config("")).await;
    assert!(matches!(empty, Err(StoreError::Rejected(_))), "{empty:?}");
}

/// Nobody listens: said at once as 'not sent', for reads and for changes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_gone_was_not_reached() {
    let mut server = EtcdServer::start().await;
    let store = server.store("/t/").await;
    put(store.as_ref(), "k", "1").await;
    server.kill();
    // The first call may still go out on the old connection.
    let txn = Txn::new().put("k", "2");
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        match store.txn(&txn).await {
            Err(StoreError::Unavailable(_)) => break,
            Err(StoreError::Unknown(_)) => assert!(tokio::time::Instant::now() < deadline),
            other => panic!("{other:?}"),
        }
    }
    assert!(matches!(store.get("k").await, Err(StoreError::Unavailable(_))));
    let gone = Etcd::connect(server.config("/t/")).await;
    assert!(matches!(gone, Err(StoreError::Unavailable(_))), "{gone:?}");
    server.restart().await;
    // The same handle goes on.
    commit(store.as_ref(), &txn).await.unwrap();
    assert_eq!(get(store.as_ref(), "k").await.value, "2");
}
