use super::*;
use std::collections::HashMap;
use tokio::sync::mpsc::Receiver;
use tranche_engine::{Epoch, LEASE_BYTES};

type Frames = Receiver<Result<v1::AttachResponse, Status>>;

fn worker(id: &str) -> WorkerKey {
    WorkerKey::new(id, "life-1")
}

fn hello(id: &str, held: Vec<(BatchKey, Token)>) -> Hello {
    Hello {
        worker: worker(id),
        handlers: vec!["noop".to_owned()],
        slots: 1,
        labels: HashMap::new(),
        held,
        version: String::new(),
        peer: String::new(),
    }
}

fn attach(dispatch: &Dispatch, id: &str, leases: u32, bytes: u64) -> (SessionId, Frames) {
    let hello = hello(id, Vec::new());
    let (out, mut frames) = mpsc::channel(OUTBOUND_BOUND);
    let (session, _) = dispatch.attach(hello, v1::Welcome::default(), out);
    let first = frames.try_recv().unwrap().unwrap().frame.unwrap();
    assert!(matches!(first, Frame::Welcome(_)), "{first:?}");
    dispatch.credit(session, leases, bytes);
    (session, frames)
}

fn batch(dispatch: &Dispatch, id: &str, priority: u32) -> BatchKey {
    let key = BatchKey::new("default", id);
    dispatch.register(&key, "noop", priority, Arc::new(Notify::new()));
    key
}

fn token(counter: u64) -> Token {
    Token { epoch: Epoch(1), counter }
}

fn grant(dispatch: &Dispatch, to: &WorkerKey, batch: &BatchKey, counter: u64, bytes: u64) -> bool {
    let delivery = Delivery {
        batch: batch.clone(),
        token: token(counter),
        phase: Phase::Stage,
        frames: vec![v1::Grant::default()],
        bytes,
    };
    dispatch.grant(to, delivery)
}

#[test]
fn requests_are_served_in_the_order_in_which_they_came() {
    let dispatch = Dispatch::default();
    let key = batch(&dispatch, "a", 10);
    let _frames: Vec<_> = ["w1", "w2", "w3"].map(|id| attach(&dispatch, id, 2, u64::MAX / 2)).into();
    let order: Vec<_> = dispatch.take(&key, "noop", 6).iter().map(|w| w.id.to_string()).collect();
    assert_eq!(order, ["w1", "w2", "w3", "w1", "w2", "w3"], "each lease, then again at the end of the line");
    assert!(dispatch.take(&key, "noop", 1).is_empty(), "nobody has credit left");
}

#[test]
fn a_worker_that_is_done_queues_again_at_the_end() {
    let dispatch = Dispatch::default();
    let key = batch(&dispatch, "a", 10);
    let _frames: Vec<_> = ["w1", "w2", "w3"].map(|id| attach(&dispatch, id, 1, u64::MAX / 2)).into();
    for counter in 1..=2 {
        let taken = dispatch.take(&key, "noop", 1);
        assert!(grant(&dispatch, &taken[0], &key, counter, 0));
    }
    dispatch.freed(&worker("w1"), token(1));
    let order: Vec<_> = dispatch.take(&key, "noop", 3).iter().map(|w| w.id.to_string()).collect();
    assert_eq!(order, ["w3", "w1"]);
}

#[test]
fn hungry_batches_share_by_priority() {
    let dispatch = Dispatch::default();
    let (high, low) = (batch(&dispatch, "high", 30), batch(&dispatch, "low", 10));
    let (_session, _frames) = attach(&dispatch, "w1", 1, u64::MAX / 2);
    let mut shares: HashMap<&BatchKey, u32> = HashMap::new();
    let mut counter = 0;
    // Both are always hungry; the one credit goes back and forth.
    for turn in 0..800 {
        let key = if turn % 2 == 0 { &high } else { &low };
        for to in dispatch.take(key, "noop", 5) {
            counter += 1;
            assert!(grant(&dispatch, &to, key, counter, 0));
            *shares.entry(key).or_default() += 1;
            dispatch.freed(&to, token(counter));
        }
    }
    let (high, low) = (f64::from(shares[&high]), f64::from(shares[&low]));
    assert!((2.5..=3.5).contains(&(high / low)), "{high} to {low}");
}

#[test]
fn a_batch_that_was_not_hungry_saves_nothing_up() {
    let dispatch = Dispatch::default();
    let (busy, late) = (batch(&dispatch, "busy", 10), batch(&dispatch, "late", 10));
    let (_session, _frames) = attach(&dispatch, "w1", 1, u64::MAX / 2);
    let mut counter = 0;
    let mut lease = |key: &BatchKey, appetite: usize| {
        let taken = dispatch.take(key, "noop", appetite);
        for to in &taken {
            counter += 1;
            assert!(grant(&dispatch, to, key, counter, 0));
            dispatch.freed(to, token(counter));
        }
        taken.len()
    };
    for _ in 0..100 {
        assert_eq!(lease(&busy, 1), 1);
    }
    let mut late_share = 0;
    for _ in 0..100 {
        late_share += lease(&late, 2);
        lease(&busy, 2);
    }
    assert!((40..=110).contains(&late_share), "{late_share} of 200: its turn, not a hundred turns at once");
}

#[test]
fn a_request_that_nothing_was_found_for_keeps_its_place() {
    let dispatch = Dispatch::default();
    let key = batch(&dispatch, "a", 10);
    let _frames: Vec<_> = ["w1", "w2"].map(|id| attach(&dispatch, id, 1, u64::MAX / 2)).into();
    let first = dispatch.take(&key, "noop", 1);
    dispatch.give_back(&key, "noop", &first[0]);
    let order: Vec<_> = dispatch.take(&key, "noop", 2).iter().map(|w| w.id.to_string()).collect();
    assert_eq!(order, ["w1", "w2"]);
}

#[test]
fn a_workers_window_of_bytes_is_kept_but_it_is_never_starved() {
    let dispatch = Dispatch::default();
    let key = batch(&dispatch, "a", 10);
    let (_session, _frames) = attach(&dispatch, "w1", 10, 2 * LEASE_BYTES);
    assert_eq!(dispatch.take(&key, "noop", 10).len(), 2, "two leases of the usual size fit");
    let (_session, _frames2) = attach(&dispatch, "w2", 10, 1);
    assert_eq!(dispatch.take(&key, "noop", 10).len(), 1, "one, however small the window");
}

#[test]
fn no_staging_lease_follows_a_rollback() {
    let dispatch = Dispatch::default();
    let key = batch(&dispatch, "a", 10);
    let (_session, mut frames) = attach(&dispatch, "w1", 2, u64::MAX / 2);
    let taken = dispatch.take(&key, "noop", 1);
    dispatch.broadcast(&key, v1::Phase::Rollback);
    assert!(!grant(&dispatch, &taken[0], &key, 1, 0), "it was being read when the batch was revoked");
    let told = frames.try_recv().unwrap().unwrap().frame.unwrap();
    assert!(matches!(told, Frame::PhaseChanged(_)));
    assert!(frames.try_recv().is_err(), "nothing after it");
    assert_eq!(dispatch.take(&key, "noop", 9).len(), 2, "the credit is free again");
}

#[test]
fn a_worker_that_reads_nothing_is_dropped_at_the_bound_and_not_before() {
    let dispatch = Dispatch::default();
    let key = batch(&dispatch, "a", 10);
    let (session, _frames) = attach(&dispatch, "w1", 1, 1);
    let ended = || dispatch.sessions(|s| (s.id, s.end.is_cancelled()));
    for _ in 0..OUTBOUND_BOUND {
        dispatch.tell(&worker("w1"), &key, v1::Phase::Commit);
    }
    assert_eq!(ended(), [(session, false)], "{OUTBOUND_BOUND} frames wait");
    dispatch.tell(&worker("w1"), &key, v1::Phase::Commit);
    assert_eq!(ended(), [(session, true)], "one more");
}

#[test]
fn a_new_stream_of_a_worker_ends_its_older_one() {
    let dispatch = Dispatch::default();
    let (first, _frames) = attach(&dispatch, "w1", 1, 1);
    let (second, _frames2) = attach(&dispatch, "w1", 1, 1);
    assert_eq!(dispatch.sessions(|s| s.id), [second]);
    dispatch.detach(first);
    assert_eq!(dispatch.sessions(|s| s.id), [second], "the older one's end changes nothing");
}

/// A worker that says "attached" on the word of its welcome is in every answer from then on.
#[test]
fn whoever_read_the_welcome_finds_the_worker() {
    let dispatch = Dispatch::default();
    std::thread::scope(|scope| {
        for round in 0..500 {
            let (out, mut frames) = mpsc::channel(8);
            let hello = hello(&format!("w{round}"), Vec::new());
            let attaching = scope.spawn(|| dispatch.attach(hello, v1::Welcome::default(), out));
            assert!(frames.blocking_recv().is_some());
            assert_eq!(dispatch.sessions(|s| s.id).len(), round + 1);
            attaching.join().unwrap();
        }
    });
}

#[test]
fn leases_that_a_worker_brings_along_count_against_its_credit() {
    let dispatch = Dispatch::default();
    let key = batch(&dispatch, "a", 10);
    let hello = hello("w1", vec![(key.clone(), token(7))]);
    let (out, _frames) = mpsc::channel(8);
    let (session, _) = dispatch.attach(hello, v1::Welcome::default(), out);
    dispatch.credit(session, 1, u64::MAX / 2);
    assert!(dispatch.take(&key, "noop", 1).is_empty());
    let other = BatchKey::new("default", "b");
    let seen = dispatch.register(&other, "noop", 1, Arc::new(Notify::new()));
    assert_eq!(seen, [(worker("w1"), vec![])]);
    dispatch.freed(&worker("w1"), token(7));
    assert_eq!(dispatch.take(&key, "noop", 1).len(), 1);
}

#[test]
fn requests_that_an_owner_took_along_queue_up_again() {
    let dispatch = Dispatch::default();
    let (key, wake) = (BatchKey::new("default", "a"), Arc::new(Notify::new()));
    dispatch.register(&key, "noop", 10, wake.clone());
    let (_session, _frames) = attach(&dispatch, "w1", 1, u64::MAX / 2);
    assert_eq!(dispatch.take(&key, "noop", 1).len(), 1);
    dispatch.unregister(&key, "noop", &wake);
    let other = batch(&dispatch, "b", 10);
    assert_eq!(dispatch.take(&other, "noop", 1).len(), 1, "its one credit isn't used up");
}

#[test]
fn an_owner_that_ends_late_leaves_its_successor_registered() {
    let dispatch = Dispatch::default();
    let (key, old, new) = (BatchKey::new("default", "a"), Arc::new(Notify::new()), Arc::new(Notify::new()));
    dispatch.register(&key, "noop", 10, old.clone());
    dispatch.register(&key, "noop", 10, new);
    dispatch.unregister(&key, "noop", &old);
    let (_session, _frames) = attach(&dispatch, "w1", 1, u64::MAX / 2);
    assert_eq!(dispatch.take(&key, "noop", 1).len(), 1);
}

#[test]
fn the_streams_of_a_batchs_workers_end_and_no_others() {
    let dispatch = Dispatch::default();
    let (a, b) = (batch(&dispatch, "a", 10), batch(&dispatch, "b", 10));
    let _frames: Vec<_> = ["w1", "w2"].map(|id| attach(&dispatch, id, 1, u64::MAX / 2)).into();
    assert!(grant(&dispatch, &worker("w1"), &a, 1, 0) && grant(&dispatch, &worker("w2"), &b, 2, 0));
    dispatch.end_holders(&a);
    assert_eq!(dispatch.sessions(|session| session.worker.id.to_string()), ["w2"]);
}
