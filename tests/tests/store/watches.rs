//! Watches.

use crate::util::{applied, delete, get, next, put};
use std::sync::Arc;
use tranche_coordinator::store::{RangeOptions, Store, Txn, WatchEvent};

pub(crate) async fn order_and_replay(store: Arc<dyn Store>) {
    let store = store.as_ref();
    let start = store.range("w/", RangeOptions::default()).await.unwrap().revision;
    // From before anything was written, and under a longer prefix.
    let mut early = store.watch("w/", start).await.unwrap();
    let mut narrow = store.watch("w/b", start).await.unwrap();
    put(store, "w/a", "1").await;
    let first = get(store, "w/a").await;
    put(store, "x/a", "not watched").await;
    let both = applied(store, Txn::new().put("w/b1", "2").put("v", "no").put("w/b2", "3")).await;
    let (b1, b2) = (get(store, "w/b1").await, get(store, "w/b2").await);
    let gone = delete(store, "w/a").await;
    delete(store, "w/a").await;
    put(store, "w/a", "4").await;
    let last = get(store, "w/a").await;

    let all = [
        WatchEvent::Put(first),
        WatchEvent::Put(b1.clone()),
        WatchEvent::Put(b2.clone()),
        WatchEvent::Deleted("w/a".into(), gone),
        WatchEvent::Put(last.clone()),
    ];
    // From the past, and from the middle of it.
    let mut replay = store.watch("w/", start).await.unwrap();
    let mut tail = store.watch("w/", both).await.unwrap();
    for event in &all {
        assert_eq!(&next(&mut early).await, event);
        assert_eq!(&next(&mut replay).await, event);
    }
    for event in &all[3..] {
        assert_eq!(&next(&mut tail).await, event);
    }
    assert_eq!(next(&mut narrow).await, WatchEvent::Put(b1));
    assert_eq!(next(&mut narrow).await, WatchEvent::Put(b2));
    // From now on: only what comes.
    let mut now = store.watch("w/", last.mod_revision).await.unwrap();
    put(store, "w/c", "5").await;
    let entry = get(store, "w/c").await;
    for watch in [&mut early, &mut replay, &mut tail, &mut now] {
        assert_eq!(next(watch).await, WatchEvent::Put(entry.clone()));
    }
}

/// Each watch sees every event of its keys once, in order, while many write.
pub(crate) async fn many_watches(store: Arc<dyn Store>) {
    const KEYS: usize = 8;
    const WRITES: usize = 15;
    let start = store.range("m/", RangeOptions::default()).await.unwrap().revision;
    let mut watches = Vec::new();
    for key in 0..KEYS {
        watches.push(store.watch(&format!("m/{key}"), start).await.unwrap());
    }
    let mut whole = store.watch("m/", start).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for key in 0..KEYS {
        let store = Arc::clone(&store);
        tasks.spawn(async move {
            for write in 0..WRITES {
                put(store.as_ref(), &format!("m/{key}"), write.to_string()).await;
            }
        });
    }
    for watch in &mut watches {
        for write in 0..WRITES {
            let WatchEvent::Put(entry) = next(watch).await else { panic!("not a put") };
            assert_eq!(entry.value, write.to_string());
        }
    }
    let mut last = start;
    for _ in 0..KEYS * WRITES {
        let WatchEvent::Put(entry) = next(&mut whole).await else { panic!("not a put") };
        assert!(entry.mod_revision > last, "out of order");
        last = entry.mod_revision;
    }
    while let Some(task) = tasks.join_next().await {
        task.unwrap();
    }
}

/// Readers that don't read hold up nobody; each gets every event, or is told from where on it must list
/// again.
pub(crate) async fn slow_readers_are_told(store: Arc<dyn Store>) {
    const TXNS: usize = 100;
    let store = store.as_ref();
    let start = store.range("s/", RangeOptions::default()).await.unwrap().revision;
    let mut watches = Vec::new();
    for _ in 0..8 {
        watches.push(store.watch("s/", start).await.unwrap());
    }
    let mut last = 0;
    for i in 0..TXNS {
        // Together far more than a connection takes in that nobody reads from.
        let value = vec![i as u8; 1024];
        let txn = (0..128).fold(Txn::new(), |txn, key| txn.put(format!("s/{key:03}"), value.clone()));
        last = applied(store, txn).await;
    }
    for watch in &mut watches {
        let (mut seen, mut count) = (start, 0);
        while seen < last || count % 128 > 0 {
            match next(watch).await {
                WatchEvent::Put(entry) => {
                    assert!(entry.mod_revision >= seen, "out of order");
                    seen = entry.mod_revision;
                    count += 1;
                }
                WatchEvent::Missed(revision) => {
                    assert!(revision >= seen, "back in time");
                    (seen, count) = (revision, 0);
                }
                event @ WatchEvent::Deleted(..) => panic!("{event:?}"),
            }
        }
    }
    put(store, "s/end", "x").await;
    let end = get(store, "s/end").await;
    for watch in &mut watches {
        assert_eq!(next(watch).await, WatchEvent::Put(end.clone()));
    }
}
