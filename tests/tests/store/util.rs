//! Short words for the tests.

use bytes::Bytes;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};
use tranche_coordinator::store::embedded::Embedded;
use tranche_coordinator::store::{
    Entry, RangeOptions, Revision, Session, Store, Txn, TxnOutcome, Watch, WatchEvent,
};

/// Long enough for anything on a busy machine; nothing takes that long unless it is broken.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

pub(crate) async fn embedded(dir: &Path) -> Arc<Embedded> {
    Embedded::open(dir).await.unwrap()
}

/// The revision of a transaction that must be applied.
pub(crate) async fn applied(store: &dyn Store, txn: Txn) -> Revision {
    match store.txn(&txn).await.unwrap() {
        TxnOutcome::Applied(revision) => revision,
        TxnOutcome::Refused => panic!("refused: {txn:?}"),
    }
}

pub(crate) async fn put(store: &dyn Store, key: &str, value: impl Into<Bytes>) -> Revision {
    applied(store, Txn::new().put(key, value)).await
}

pub(crate) async fn delete(store: &dyn Store, key: &str) -> Revision {
    applied(store, Txn::new().delete(key)).await
}

pub(crate) async fn refused(store: &dyn Store, txn: Txn) {
    assert_eq!(store.txn(&txn).await.unwrap(), TxnOutcome::Refused, "{txn:?}");
}

pub(crate) async fn get(store: &dyn Store, key: &str) -> Entry {
    store.get(key).await.unwrap().unwrap_or_else(|| panic!("{key} is missing"))
}

/// The keys of a range, in the order read, and whether there is more.
pub(crate) async fn keys(store: &dyn Store, prefix: &str, options: RangeOptions) -> (Vec<String>, bool) {
    let page = store.range(prefix, options).await.unwrap();
    (page.entries.into_iter().map(|entry| entry.key).collect(), page.more)
}

pub(crate) async fn next(watch: &mut Watch) -> WatchEvent {
    timeout(PATIENCE, watch.recv()).await.expect("an event in time").expect("an open watch")
}

pub(crate) async fn until_lost(session: &Session) {
    let mut lost = session.lost.clone();
    timeout(PATIENCE, lost.wait_for(|lost| *lost)).await.expect("lost in time").expect("a store");
}

/// Polls until the key is gone.
pub(crate) async fn until_gone(store: &dyn Store, key: &str) {
    let deadline = Instant::now() + PATIENCE;
    while store.get(key).await.unwrap().is_some() {
        assert!(Instant::now() < deadline, "{key} is still there");
        sleep(Duration::from_millis(20)).await;
    }
}
