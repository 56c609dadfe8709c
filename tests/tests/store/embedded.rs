//! What only the embedded store promises: it survives its process, and a full disk.

use crate::util::{applied, delete, embedded, get, next, put};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tranche_coordinator::store::embedded::Embedded;
use tranche_coordinator::store::{RangeOptions, Store, StoreError, Txn, TxnOutcome, WatchEvent};

/// Tells the test binary that it is the child of one of its tests, and where its store is.
const CHILD_DIR: &str = "TRANCHE_TEST_STORE_DIR";
/// Writers in a child, so that transactions are written in groups.
const WRITERS: usize = 6;

#[tokio::test]
async fn a_new_process_finds_all_but_the_sessions() {
    let dir = tempfile::tempdir().unwrap();
    let (entry, last);
    {
        let store = embedded(dir.path()).await;
        let session = store.session(Duration::from_mins(1)).await.unwrap();
        put(store.as_ref(), "a", "1").await;
        put(store.as_ref(), "a", "2").await;
        applied(store.as_ref(), Txn::new().put_held("lock", "me", session.id).put("b", "3")).await;
        put(store.as_ref(), "gone", "4").await;
        last = delete(store.as_ref(), "gone").await;
        entry = get(store.as_ref(), "a").await;
        let mut watch = store.watch("", last).await.unwrap();
        drop(store);
        // The store is gone: so are its sessions and watches.
        assert!(*session.lost.borrow());
        assert_eq!(watch.recv().await, None);
    }
    let store = embedded(dir.path()).await;
    assert_eq!(get(store.as_ref(), "a").await, entry);
    assert_eq!(get(store.as_ref(), "b").await.value, "3");
    assert_eq!(store.get("lock").await.unwrap(), None);
    assert_eq!(store.get("gone").await.unwrap(), None);
    // The session's end was a change; revisions go on.
    let now = store.range("", RangeOptions::default()).await.unwrap().revision;
    assert_eq!(now, last + 1);
    // The events of the former process are not remembered: a watch is told so, and goes on.
    let mut watch = store.watch("", last).await.unwrap();
    assert_eq!(next(&mut watch).await, WatchEvent::Missed(now));
    let mut current = store.watch("", now).await.unwrap();
    assert_eq!(put(store.as_ref(), "a", "5").await, now + 1);
    let entry = get(store.as_ref(), "a").await;
    assert_eq!(next(&mut watch).await, WatchEvent::Put(entry.clone()));
    assert_eq!(next(&mut current).await, WatchEvent::Put(entry));
}

#[tokio::test]
async fn a_second_opener_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = embedded(dir.path()).await;
    let Err(StoreError::Unavailable(text)) = Embedded::open(dir.path()).await else { panic!("opened twice") };
    assert!(text.contains(dir.path().to_str().unwrap()), "{text}");
    assert!(text.contains("another process"), "{text}");
    put(store.as_ref(), "k", "1").await;
    drop(store);
    assert_eq!(get(embedded(dir.path()).await.as_ref(), "k").await.value, "1");
}

/// I7: what was acknowledged survives SIGKILL, whenever it comes.
#[tokio::test]
async fn killed_at_any_moment_it_keeps_what_it_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = BTreeMap::new();
    for _ in 0..8 {
        let mut child = child(dir.path(), "acknowledging_child", None);
        let pid = Pid::from_child(&child);
        let stop_after = rand::random_range(1..400);
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // Lines after the kill were acknowledged before it.
        for (count, (writer, number)) in lines.map_while(Result::ok).filter_map(|l| acked(&l)).enumerate() {
            acknowledged.insert(writer, number);
            if count == stop_after {
                kill_process(pid, Signal::KILL).unwrap();
            }
        }
        let status = child.wait().unwrap();
        assert!(!status.success(), "the child ended by itself: {status}");

        let store = embedded(dir.path()).await;
        for (writer, number) in &acknowledged {
            let (one, other) = (format!("one/{writer}"), format!("other/{writer}"));
            let found: u64 = text(&get(store.as_ref(), &one).await.value).parse().unwrap();
            // One more may have been carried out, whose answer the kill cut off.
            assert!(found == *number || found == number + 1, "writer {writer}: {found}, told {number}");
            // And nothing by half.
            assert_eq!(get(store.as_ref(), &other).await.value, found.to_string());
        }
        assert_eq!(store.get("held").await.unwrap(), None);
    }
    assert_eq!(acknowledged.len(), WRITERS);
}

/// A full disk (here: a limit on the size of files) refuses transactions, breaks nothing, and what was
/// acknowledged stays.
#[tokio::test]
async fn a_full_disk_is_told_and_survived() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = child(dir.path(), "filling_child", Some("trap '' XFSZ; ulimit -f 16384; exec \"$@\""));
    let lines: Vec<_> = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok).collect();
    assert!(child.wait().unwrap().success(), "{lines:#?}");
    let Some((_, last)) = lines.iter().filter_map(|line| acked(line)).next_back() else {
        panic!("{lines:#?}");
    };
    let store = embedded(dir.path()).await;
    for number in 0..=last {
        assert_eq!(get(store.as_ref(), &format!("big/{number:04}")).await.value.len(), 64 * 1024);
    }
    put(store.as_ref(), "after", "x").await;
}

/// Starts this binary again, to run one of the functions below.
fn child(dir: &Path, name: &str, shell: Option<&str>) -> std::process::Child {
    let binary = std::env::current_exe().unwrap();
    let mut command = match shell {
        Some(script) => {
            let mut shell = Command::new("sh");
            shell.args(["-c", script, "sh"]).arg(binary);
            shell
        }
        None => Command::new(binary),
    };
    command.args(["--exact", &format!("embedded_only::{name}"), "--nocapture", "--ignored"]);
    command.env(CHILD_DIR, dir).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap()
}

fn acked(line: &str) -> Option<(usize, u64)> {
    let (writer, number) = line.strip_prefix("acknowledged ")?.split_once(' ')?;
    Some((writer.parse().ok()?, number.parse().ok()?))
}

fn acknowledge(writer: usize, number: u64) {
    // One write call, so that a kill can't tear a line.
    std::io::stdout().write_all(format!("\nacknowledged {writer} {number}\n").as_bytes()).unwrap();
    std::io::stdout().flush().unwrap();
}

fn text(value: &[u8]) -> &str {
    std::str::from_utf8(value).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the child of killed_at_any_moment_it_keeps_what_it_acknowledged"]
async fn acknowledging_child() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    let store = embedded(Path::new(&dir)).await;
    let session = store.session(Duration::from_mins(1)).await.unwrap();
    applied(store.as_ref(), Txn::new().absent("held").put_held("held", "x", session.id)).await;
    let writers = (0..WRITERS).map(|writer| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            let (one, other) = (format!("one/{writer}"), format!("other/{writer}"));
            loop {
                let (seen, number) = match store.get(&one).await.unwrap() {
                    Some(entry) => (entry.mod_revision, text(&entry.value).parse::<u64>().unwrap() + 1),
                    None => (0, 1),
                };
                let value = number.to_string();
                let txn = Txn::new().modified(&one, seen).put(&one, value.clone()).put(&other, value);
                applied(store.as_ref(), txn).await;
                acknowledge(writer, number);
            }
        })
    });
    futures::future::join_all(writers).await;
}

#[tokio::test]
#[ignore = "the child of a_full_disk_is_told_and_survived"]
async fn filling_child() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    let store = embedded(Path::new(&dir)).await;
    let big = |number: u64| Txn::new().put(format!("big/{number:04}"), vec![number as u8; 64 * 1024]);
    let mut full = 0;
    for number in 0.. {
        match store.txn(&big(number)).await {
            Ok(TxnOutcome::Applied(_)) => acknowledge(0, number),
            Err(StoreError::Rejected(text)) => {
                assert!(text.contains("no space left"), "{text}");
                full = number;
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    // Reading goes on, and so does refusing.
    assert!(full > 0);
    assert_eq!(store.get(&format!("big/{full:04}")).await.unwrap(), None);
    assert_eq!(get(store.as_ref(), "big/0000").await.value.len(), 64 * 1024);
    let again = store.txn(&big(full)).await;
    assert!(matches!(again, Err(StoreError::Rejected(_))), "{again:?}");
}
