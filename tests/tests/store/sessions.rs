//! Sessions.

use crate::util::{applied, get, keys, next, put, until_gone, until_lost};
use std::sync::Arc;
use std::time::Duration;
use tranche_coordinator::store::{RangeOptions, SessionId, Store, StoreError, Txn, WatchEvent};

const LONG: Duration = Duration::from_mins(1);
/// About the shortest that etcd takes.
const SHORT: Duration = Duration::from_secs(2);

pub(crate) async fn closing_deletes_the_keys(store: Arc<dyn Store>) {
    let store = store.as_ref();
    let session = store.session(LONG).await.unwrap();
    let txn = Txn::new().put_held("h/1", "a", session.id).put_held("h/2", "b", session.id).put("h/3", "c");
    let revision = applied(store, txn).await;
    assert_eq!(get(store, "h/1").await.create_revision, revision);
    let mut watch = store.watch("h/", revision).await.unwrap();
    assert!(!*session.lost.borrow());

    store.close_session(session.id).await.unwrap();
    assert!(*session.lost.borrow());
    assert_eq!(keys(store, "h/", RangeOptions::default()).await.0, ["h/3"]);
    // A watch sees them go, in one revision.
    let WatchEvent::Deleted(first, at) = next(&mut watch).await else { panic!("not a deletion") };
    assert!(at > revision);
    let second = next(&mut watch).await;
    let other = if first == "h/1" { "h/2" } else { "h/1" };
    assert_eq!(second, WatchEvent::Deleted(other.into(), at));
    // Closing twice, and closing what never was, is no error.
    store.close_session(session.id).await.unwrap();
    store.close_session(SessionId(4_711_998)).await.unwrap();
}

pub(crate) async fn keys_move_between_sessions(store: Arc<dyn Store>) {
    let store = store.as_ref();
    let (old, new) = (store.session(LONG).await.unwrap(), store.session(LONG).await.unwrap());
    assert_ne!(old.id, new.id);
    for key in ["kept", "moved", "lasting", "deleted", "again"] {
        applied(store, Txn::new().put_held(key, "1", old.id)).await;
    }
    applied(store, Txn::new().put_held("moved", "2", new.id).put("lasting", "2").delete("deleted")).await;
    applied(store, Txn::new().delete("again")).await;
    put(store, "again", "2").await;
    store.close_session(old.id).await.unwrap();
    assert_eq!(keys(store, "", RangeOptions::default()).await.0, ["again", "lasting", "moved"]);
    store.close_session(new.id).await.unwrap();
    assert_eq!(keys(store, "", RangeOptions::default()).await.0, ["again", "lasting"]);
}

pub(crate) async fn a_closed_session_holds_nothing(store: Arc<dyn Store>) {
    let store = store.as_ref();
    let session = store.session(LONG).await.unwrap();
    store.close_session(session.id).await.unwrap();
    let answer = store.txn(&Txn::new().put_held("k", "1", session.id)).await;
    assert!(matches!(answer, Err(StoreError::Rejected(_))), "{answer:?}");
    assert_eq!(store.get("k").await.unwrap(), None);
}

/// Two sessions with the same time to live: the one that is held outlives it many times over.
pub(crate) async fn only_the_dropped_one_ends(store: Arc<dyn Store>) {
    let store = store.as_ref();
    let held = store.session(SHORT).await.unwrap();
    applied(store, Txn::new().put_held("held", "1", held.id)).await;
    for round in 0..2 {
        let dropped = store.session(SHORT).await.unwrap();
        let key = format!("dropped/{round}");
        applied(store, Txn::new().put_held(&key, "1", dropped.id)).await;
        let copy = dropped.clone();
        drop(dropped);
        // A copy holds it as well.
        assert!(store.get(&key).await.unwrap().is_some());
        drop(copy);
        until_gone(store, &key).await;
    }
    assert!(!*held.lost.borrow());
    assert_eq!(get(store, "held").await.value, "1");
    store.close_session(held.id).await.unwrap();
    until_lost(&held).await;
}
