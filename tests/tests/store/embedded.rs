//! What only the embedded store promises: it survives its process, and a full disk.

use crate::util::{applied, delete, embedded, get, next, put};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use std::time::Duration;
use tranche_coordinator::store::embedded::Embedded;
use tranche_coordinator::store::{RangeOptions, Store, StoreError, Txn, WatchEvent};

/// Writers in a child (`src/bin/store_child.rs`).
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
        let mut child = child(dir.path(), "acknowledge", None);
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
    let mut child = child(dir.path(), "fill", Some("trap '' XFSZ; ulimit -f 16384; exec \"$@\""));
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

/// Starts the process that writes, in one of its ways.
fn child(dir: &Path, name: &str, shell: Option<&str>) -> std::process::Child {
    let binary = env!("CARGO_BIN_EXE_store_child");
    let mut command = match shell {
        Some(script) => {
            let mut shell = Command::new("sh");
            shell.args(["-c", script, "sh"]).arg(binary);
            shell
        }
        None => Command::new(binary),
    };
    command.arg(dir).arg(name).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap()
}

fn acked(line: &str) -> Option<(usize, u64)> {
    let (writer, number) = line.strip_prefix("acknowledged ")?.split_once(' ')?;
    Some((writer.parse().ok()?, number.parse().ok()?))
}

fn text(value: &[u8]) -> &str {
    std::str::from_utf8(value).unwrap()
}
