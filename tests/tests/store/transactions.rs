//! Reads and transactions.

use crate::util::{applied, delete, get, keys, put, refused};
use bytes::Bytes;
use std::collections::BTreeSet;
use std::sync::Arc;
use tranche_coordinator::store::{MAX_TXN_OPS, RangeOptions, SessionId, Store, StoreError, Txn, TxnOutcome};

fn all() -> RangeOptions {
    RangeOptions::default()
}

pub(crate) async fn reads_and_prefixes(store: Arc<dyn Store>) {
    let store = store.as_ref();
    assert_eq!(store.get("a/1").await.unwrap(), None);
    // Neighbours of the prefix on both sides, and text beyond ASCII.
    let mut names = ["a", "a.", "a/", "a/1", "a/10", "a/2", "a/\u{7f}", "a/ü", "a/\u{10ffff}", "a0", "b/1"];
    for name in names {
        put(store, name, name).await;
    }
    names.sort_unstable();
    assert_eq!(keys(store, "", all()).await, (names.map(String::from).to_vec(), false));
    for prefix in ["a", "a/", "a/1", "a/ü", "a/\u{10ffff}", "b/1", "c"] {
        let wanted: Vec<_> =
            names.iter().filter(|name| name.starts_with(prefix)).map(ToString::to_string).collect();
        assert_eq!(keys(store, prefix, all()).await, (wanted, false), "{prefix}");
    }
    let entry = get(store, "a/10").await;
    assert_eq!((entry.key.as_str(), entry.value.as_ref()), ("a/10", b"a/10".as_slice()));
}

pub(crate) async fn pages(store: Arc<dyn Store>) {
    let store = store.as_ref();
    for name in ["a", "p/1", "p/2", "p/3", "p/4", "p/5", "q"] {
        put(store, name, "x").await;
    }
    let page = |after: Option<&str>, limit, descending| {
        let after = after.map(String::from);
        async move {
            let (keys, more) = keys(store, "p/", RangeOptions { limit, after, descending }).await;
            (keys.join(" "), more)
        }
    };
    assert_eq!(page(None, 2, false).await, ("p/1 p/2".into(), true));
    assert_eq!(page(Some("p/2"), 2, false).await, ("p/3 p/4".into(), true));
    assert_eq!(page(Some("p/4"), 2, false).await, ("p/5".into(), false));
    // Exactly what is left: no more.
    assert_eq!(page(Some("p/3"), 2, false).await, ("p/4 p/5".into(), false));
    assert_eq!(page(Some("p/5"), 2, false).await, (String::new(), false));
    assert_eq!(page(None, 5, false).await, ("p/1 p/2 p/3 p/4 p/5".into(), false));
    // A key that isn't there, between two; and beyond both ends.
    assert_eq!(page(Some("p/2x"), 0, false).await, ("p/3 p/4 p/5".into(), false));
    assert_eq!(page(Some("a"), 1, false).await, ("p/1".into(), true));
    assert_eq!(page(Some("q"), 0, false).await, (String::new(), false));

    assert_eq!(page(None, 2, true).await, ("p/5 p/4".into(), true));
    assert_eq!(page(Some("p/4"), 2, true).await, ("p/3 p/2".into(), true));
    assert_eq!(page(Some("p/2"), 2, true).await, ("p/1".into(), false));
    assert_eq!(page(Some("p/1"), 0, true).await, (String::new(), false));
    assert_eq!(page(Some("z"), 1, true).await, ("p/5".into(), true));
    assert_eq!(page(Some("a"), 0, true).await, (String::new(), false));

    // A page tells the store's revision, also an empty one.
    let last = put(store, "z", "x").await;
    for after in [None, Some("q".to_owned())] {
        let page = store.range("p/", RangeOptions { after, ..all() }).await.unwrap();
        assert!(page.revision >= last, "{page:?}");
    }
}

pub(crate) async fn pages_of_many(store: Arc<dyn Store>) {
    let store = store.as_ref();
    let names: Vec<_> = (0..700).map(|i| format!("many/{i:04}")).collect();
    for chunk in names.chunks(100) {
        let txn = chunk.iter().fold(Txn::new(), |txn, name| txn.put(name, vec![7; 300]));
        applied(store, txn).await;
    }
    assert_eq!(keys(store, "many/", all()).await, (names.clone(), false));
    let limited = RangeOptions { limit: 600, ..all() };
    assert_eq!(keys(store, "many/", limited).await, (names[..600].to_vec(), true));
    let backwards = RangeOptions { descending: true, limit: 699, ..all() };
    let wanted: Vec<_> = names.iter().rev().take(699).cloned().collect();
    assert_eq!(keys(store, "many/", backwards).await, (wanted, true));
}

pub(crate) async fn revisions(store: Arc<dyn Store>) {
    let store = store.as_ref();
    let created = put(store, "k", "1").await;
    let entry = get(store, "k").await;
    assert_eq!((entry.create_revision, entry.mod_revision), (created, created));
    let changed = put(store, "k", "2").await;
    assert!(changed > created);
    let entry = get(store, "k").await;
    assert_eq!((entry.create_revision, entry.mod_revision), (created, changed));
    // The same bytes again are a change too.
    let again = put(store, "k", "2").await;
    assert!(again > changed);

    let deleted = delete(store, "k").await;
    assert!(deleted > again);
    assert_eq!(store.get("k").await.unwrap(), None);
    // Nothing to delete: no error, and no change.
    assert!(delete(store, "k").await >= deleted);
    let recreated = put(store, "k", "3").await;
    assert!(recreated > deleted);
    let entry = get(store, "k").await;
    assert_eq!((entry.create_revision, entry.mod_revision), (recreated, recreated));
    let page = store.range("k", all()).await.unwrap();
    assert!(page.revision >= recreated);
    assert_eq!(page.entries, [entry]);
    // A check alone tells the revision it was checked at.
    assert!(applied(store, Txn::new().modified("k", recreated)).await >= recreated);
}

pub(crate) async fn compares(store: Arc<dyn Store>) {
    let store = store.as_ref();
    let txn = || Txn::new().put("out", "x");
    refused(store, txn().created("k", 1)).await;
    refused(store, txn().modified("k", 1)).await;
    let created = applied(store, Txn::new().absent("k").modified("k", 0).put("k", "1")).await;
    let changed = put(store, "k", "2").await;
    refused(store, txn().absent("k")).await;
    refused(store, txn().modified("k", 0)).await;
    refused(store, txn().created("k", changed)).await;
    refused(store, txn().modified("k", created)).await;
    // All must hold.
    refused(store, txn().created("k", created).modified("k", changed).created("other", 5)).await;
    refused(store, txn().created("other", 5).created("k", created)).await;
    assert_eq!(store.get("out").await.unwrap(), None);
    applied(store, txn().created("k", created).modified("k", changed).absent("other")).await;
    assert_eq!(get(store, "out").await.value, "x");
    // What is gone has no revisions, whatever it had.
    delete(store, "k").await;
    refused(store, txn().created("k", created)).await;
    refused(store, txn().modified("k", changed)).await;
    applied(store, txn().absent("k").modified("k", 0)).await;
}

pub(crate) async fn all_or_nothing(store: Arc<dyn Store>) {
    let store = store.as_ref();
    put(store, "old", "1").await;
    let txn = Txn::new().put("a", "1").put("b", "2").delete("old").delete("never");
    refused(store, txn.clone().created("guard", 1)).await;
    assert_eq!(keys(store, "", all()).await.0, ["old"]);
    let revision = applied(store, txn.absent("guard")).await;
    assert_eq!(keys(store, "", all()).await.0, ["a", "b"]);
    for key in ["a", "b"] {
        let entry = get(store, key).await;
        assert_eq!((entry.create_revision, entry.mod_revision), (revision, revision));
    }
}

pub(crate) async fn limits(store: Arc<dyn Store>) {
    let store = store.as_ref();
    let ops = |count| (0..count).fold(Txn::new(), |txn, i| txn.put(format!("op/{i:03}"), "x"));
    let compares = |count| (0..count).fold(Txn::new(), |txn, i| txn.absent(format!("no/{i:03}")));
    let mut most = ops(MAX_TXN_OPS);
    most.compares = compares(MAX_TXN_OPS).compares;
    applied(store, most).await;
    assert_eq!(keys(store, "op/", all()).await.0.len(), MAX_TXN_OPS);
    applied(store, Txn::new().put("large", vec![1; 1024 * 1024])).await;

    for (what, txn) in [
        ("129 ops", ops(MAX_TXN_OPS + 1)),
        ("129 compares", compares(MAX_TXN_OPS + 1).put("x", "x")),
        ("a key twice", Txn::new().put("x", "1").put("x", "2")),
        ("a key put and deleted", Txn::new().put("x", "1").delete("x")),
        ("an empty key", Txn::new().put("", "1")),
        ("too many bytes", Txn::new().put("x", vec![1; 2 * 1024 * 1024])),
        ("a session that isn't", Txn::new().put("x", "1").put_held("y", "1", SessionId(4_711_999))),
    ] {
        let answer = store.txn(&txn).await;
        assert!(matches!(answer, Err(StoreError::Rejected(_))), "{what}: {answer:?}");
    }
    assert_eq!(store.get("x").await.unwrap(), None);
    // Whether a session is there matters only if the compares hold.
    refused(store, Txn::new().created("no", 1).put_held("y", "1", SessionId(4_711_999))).await;
}

pub(crate) async fn values_are_bytes(store: Arc<dyn Store>) {
    let store = store.as_ref();
    let every: Vec<u8> = (0..=u8::MAX).collect();
    for (key, value) in
        [("every", every), ("empty", vec![]), ("zero", vec![0]), ("no text", vec![0xff, 0xfe, 0xc3])]
    {
        put(store, key, value.clone()).await;
        assert_eq!(get(store, key).await.value, Bytes::from(value), "{key}");
    }
}

/// Many count up one key by comparing what they read: the sum is exact.
pub(crate) async fn no_update_is_lost(store: Arc<dyn Store>) {
    const TASKS: u64 = 8;
    const EACH: u64 = 12;
    put(store.as_ref(), "sum", "0").await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..TASKS {
        let store = Arc::clone(&store);
        tasks.spawn(async move {
            let mut done = 0;
            while done < EACH {
                let seen = get(store.as_ref(), "sum").await;
                let value: u64 = std::str::from_utf8(&seen.value).unwrap().parse().unwrap();
                let txn = Txn::new().modified("sum", seen.mod_revision).put("sum", (value + 1).to_string());
                if let TxnOutcome::Applied(_) = store.txn(&txn).await.unwrap() {
                    done += 1;
                }
            }
        });
    }
    while let Some(task) = tasks.join_next().await {
        task.unwrap();
    }
    assert_eq!(get(store.as_ref(), "sum").await.value, (TASKS * EACH).to_string());
}

/// I3: of fifty that decide at once, exactly one does.
pub(crate) async fn one_decision_wins(store: Arc<dyn Store>) {
    let mut tasks = tokio::task::JoinSet::new();
    for name in 0..50 {
        let store = Arc::clone(&store);
        tasks.spawn(async move {
            let txn = Txn::new().absent("decision").put("decision", name.to_string());
            (name, store.txn(&txn).await.unwrap())
        });
    }
    let mut winners = Vec::new();
    while let Some(task) = tasks.join_next().await {
        if let (name, TxnOutcome::Applied(revision)) = task.unwrap() {
            winners.push((name.to_string(), revision));
        }
    }
    let decision = get(store.as_ref(), "decision").await;
    assert_eq!(winners.len(), 1);
    assert_eq!(winners, [(String::from_utf8(decision.value.to_vec()).unwrap(), decision.create_revision)]);
}

pub(crate) async fn commits_are_counted(store: Arc<dyn Store>) {
    let before = store.transactions();
    let mut seen = BTreeSet::new();
    let writes = (0..20).map(|i| {
        let store = Arc::clone(&store);
        async move { put(store.as_ref(), &format!("c/{i}"), "x").await }
    });
    for revision in futures::future::join_all(writes).await {
        // Each transaction has a revision of its own, also when they were written together.
        assert!(seen.insert(revision));
    }
    refused(store.as_ref(), Txn::new().absent("c/0").put("c/0", "y")).await;
    store.txn(&Txn::new().put("", "x")).await.unwrap_err();
    assert_eq!(store.transactions() - before, 21);
}
