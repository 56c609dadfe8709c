use super::*;
use crate::identity::Scope;
use std::collections::HashMap;
use tokio::sync::mpsc::Receiver;
use tranche_engine::{Epoch, LEASE_BYTES};

mod namespaces;

type Frames = Receiver<Result<v1::AttachResponse, Status>>;

fn worker(id: &str) -> WorkerKey {
    WorkerKey::new(id, "life-1")
}

fn hello(id: &str, held: Vec<(BatchKey, Token)>) -> Hello {
    Hello {
        worker: worker(id),
        scope: Scope::All,
        handlers: vec!["noop".to_owned()],
        slots: 1,
        labels: HashMap::new(),
        held,
        version: String::new(),
        peer: String::new(),
    }
}

fn attach(dispatch: &Dispatch, id: &str, leases: u32, bytes: u64) -> (SessionId, Frames) {
    attach_with(dispatch, hello(id, Vec::new()), leases, bytes)
}

fn attach_with(dispatch: &Dispatch, hello: Hello, leases: u32, bytes: u64) -> (SessionId, Frames) {
    let (out, mut frames) = mpsc::channel(OUTBOUND_BOUND);
    let session = dispatch.attach(hello, v1::Welcome::default(), out).id;
    let first = frames.try_recv().unwrap().unwrap().frame.unwrap();
    assert!(matches!(first, Frame::Welcome(_)), "{first:?}");
    dispatch.credit(session, leases, bytes);
    (session, frames)
}

fn batch(dispatch: &Dispatch, id: &str, priority: u32) -> BatchKey {
    let key = BatchKey::new("default", id);
    own(dispatch, &key, 1, priority);
    key
}

/// Registers an owner, and gives what wakes it and the workers that are told.
fn own(dispatch: &Dispatch, key: &BatchKey, epoch: u64, priority: u32) -> (Arc<Notify>, Vec<WorkerKey>) {
    let wake = Arc::new(Notify::new());
    let told = dispatch.register(key, Epoch(epoch), "noop", priority, wake.clone());
    (wake, told)
}

fn frame(frames: &mut Frames) -> Option<Frame> {
    frames.try_recv().ok().map(|frame| frame.unwrap().frame.unwrap())
}

fn owner_frame(key: &BatchKey, epoch: u64) -> Frame {
    Frame::Owner(v1::Owner { batch: key.to_string(), epoch })
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
    dispatch.give_back(&key, "noop", &first[0], true);
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
fn leases_that_a_worker_brings_along_count_against_its_credit_if_they_are_from_here() {
    let dispatch = Dispatch::default();
    let (ours, theirs) = (batch(&dispatch, "a", 10), BatchKey::new("default", "b"));
    let hello = hello("w1", vec![(theirs, token(6)), (ours.clone(), token(7)), (ours.clone(), token(8))]);
    let (out, mut frames) = mpsc::channel(8);
    dispatch.replicas(v1::Replicas::default());
    let session = dispatch.attach(hello, v1::Welcome::default(), out).id;
    dispatch.credit(session, 2, u64::MAX / 2);
    assert!(matches!(frame(&mut frames), Some(Frame::Welcome(_))));
    assert!(matches!(frame(&mut frames), Some(Frame::Replicas(_))));
    assert_eq!(frame(&mut frames), Some(owner_frame(&ours, 1)), "once, and no word of another's batch");
    assert_eq!(frame(&mut frames), None);
    assert!(dispatch.take(&ours, "noop", 1).is_empty());
    dispatch.freed(&worker("w1"), token(7));
    assert_eq!(dispatch.take(&ours, "noop", 2).len(), 1);
}

#[test]
fn a_new_owner_is_told_to_every_worker_and_takes_up_what_they_hold() {
    let dispatch = Dispatch::default();
    let (w1, mut frames) = attach(&dispatch, "w1", 2, u64::MAX / 2);
    let (w2, mut frames2) = attach(&dispatch, "w2", 2, u64::MAX / 2);
    let key = BatchKey::new("default", "a");
    let (_, told) = own(&dispatch, &key, 5, 10);
    assert_eq!(told, [worker("w1"), worker("w2")]);
    assert_eq!(frame(&mut frames), Some(owner_frame(&key, 5)));
    assert_eq!(frame(&mut frames2), Some(owner_frame(&key, 5)));
    assert!(dispatch.holding(w1, &key, Epoch(4), &[token(1), token(2)]).is_none(), "an older owner's answer");
    assert!(dispatch.holding(w1, &key, Epoch(6), &[token(1), token(2)]).is_none(), "not ours");
    assert_eq!(dispatch.take(&key, "noop", 9).len(), 4, "neither counted");
    let key2 = BatchKey::new("default", "b");
    own(&dispatch, &key2, 6, 10);
    let asked = dispatch.holding(w2, &key2, Epoch(6), &[token(3)]).unwrap();
    assert!(asked.at <= dispatch.now().at);
    assert_eq!(dispatch.sessions(Session::leases), [0, 1]);
    assert_eq!(dispatch.holding(w2, &key2, Epoch(6), &[token(3)]), Some(asked), "said twice, counted once");
    assert_eq!(dispatch.sessions(Session::leases), [0, 1]);
}

#[test]
fn a_late_worker_was_asked_when_it_attached() {
    let dispatch = Dispatch::default();
    let key = batch(&dispatch, "a", 10);
    let (out, _frames) = mpsc::channel(8);
    let place = dispatch.attach(hello("w1", vec![(key.clone(), token(1))]), v1::Welcome::default(), out);
    assert_eq!(dispatch.holding(place.id, &key, Epoch(1), &[token(1)]), Some(place.since));
}

#[test]
fn the_leases_of_an_owner_that_ends_are_nobodys_burden() {
    let dispatch = Dispatch::default();
    let (key, other) = (BatchKey::new("default", "a"), batch(&dispatch, "b", 10));
    let (wake, _) = own(&dispatch, &key, 1, 10);
    let (_session, _frames) = attach(&dispatch, "w1", 2, u64::MAX / 2);
    assert!(grant(&dispatch, &worker("w1"), &key, 1, 0) && grant(&dispatch, &worker("w1"), &other, 2, 0));
    assert!(dispatch.take(&other, "noop", 1).is_empty());
    dispatch.unregister(&key, "noop", &wake);
    assert_eq!(dispatch.take(&other, "noop", 2).len(), 1, "its own lease still counts");
}

#[test]
fn an_older_epoch_that_comes_late_is_no_owner() {
    let dispatch = Dispatch::default();
    let key = BatchKey::new("default", "a");
    let (session, mut frames) = attach(&dispatch, "w1", 1, u64::MAX / 2);
    own(&dispatch, &key, 7, 10);
    let (late, told) = own(&dispatch, &key, 6, 10);
    assert_eq!(told, []);
    assert_eq!(frame(&mut frames), Some(owner_frame(&key, 7)));
    assert_eq!(frame(&mut frames), None);
    dispatch.unregister(&key, "noop", &late);
    assert!(dispatch.holding(session, &key, Epoch(7), &[]).is_some());
}

#[test]
fn a_worker_hears_how_much_waits_for_its_handlers() {
    let dispatch = Dispatch::default();
    let (a, b) = (batch(&dispatch, "a", 10), BatchKey::new("default", "b"));
    let (wake, _) = own(&dispatch, &b, 1, 10);
    let (session, mut frames) = attach(&dispatch, "w1", 1, u64::MAX / 2);
    let mut backlog = || {
        dispatch.heartbeat(session, 1);
        loop {
            if let Frame::Ack(ack) = frame(&mut frames).expect("an answer") {
                return ack.backlog;
            }
        }
    };
    assert_eq!(backlog(), 0);
    // A turn is taken by the one that waits longest; both say how hungry they are.
    assert_eq!(dispatch.take(&a, "noop", 7).len(), 1);
    dispatch.take(&b, "noop", 5);
    assert_eq!(backlog(), 6 + 5);
    dispatch.take(&b, "noop", 4);
    assert_eq!(backlog(), 6 + 4);
    dispatch.unregister(&b, "noop", &wake);
    assert_eq!(backlog(), 6);
    dispatch.take(&a, "noop", usize::MAX);
    assert_eq!(backlog(), i32::MAX);
    // Another handler's batches aren't for it.
    dispatch.take(&a, "noop", 1);
    let other = BatchKey::new("default", "c");
    dispatch.register(&other, Epoch(1), "object", 10, Arc::new(Notify::new()));
    dispatch.take(&other, "object", 9);
    assert_eq!(backlog(), 1);
}

#[test]
fn anothers_rollback_is_passed_on_and_keeps_nothing_back_here() {
    let dispatch = Dispatch::default();
    let key = BatchKey::new("default", "a");
    let (_session, mut frames) = attach(&dispatch, "w1", 2, u64::MAX / 2);
    dispatch.relay(&key, v1::Phase::Rollback);
    assert!(matches!(frame(&mut frames), Some(Frame::PhaseChanged(_))));
    assert!(grant(&dispatch, &worker("w1"), &key, 1, 0));
}

#[test]
fn requests_that_an_owner_took_along_queue_up_again() {
    let dispatch = Dispatch::default();
    let key = BatchKey::new("default", "a");
    let (wake, _) = own(&dispatch, &key, 1, 10);
    let (_session, _frames) = attach(&dispatch, "w1", 1, u64::MAX / 2);
    assert_eq!(dispatch.take(&key, "noop", 1).len(), 1);
    dispatch.unregister(&key, "noop", &wake);
    let other = batch(&dispatch, "b", 10);
    assert_eq!(dispatch.take(&other, "noop", 1).len(), 1, "its one credit isn't used up");
}

#[test]
fn an_owner_that_ends_late_leaves_its_successor_registered() {
    let dispatch = Dispatch::default();
    let key = BatchKey::new("default", "a");
    let (old, _) = own(&dispatch, &key, 1, 10);
    own(&dispatch, &key, 2, 10);
    dispatch.unregister(&key, "noop", &old);
    let (_session, _frames) = attach(&dispatch, "w1", 1, u64::MAX / 2);
    assert_eq!(dispatch.take(&key, "noop", 1).len(), 1);
}

#[test]
fn a_new_batch_is_no_business_of_workers_that_wait() {
    let dispatch = Dispatch::default();
    let (_session, mut frames) = attach(&dispatch, "w1", 2, u64::MAX / 2);
    let key = BatchKey::new("default", "a");
    dispatch.register_unleased(&key, Epoch(3), "noop", 10, Arc::new(Notify::new()));
    assert_eq!(frame(&mut frames), None, "nobody can hold anything of it");
    assert_eq!(dispatch.take(&key, "noop", 9).len(), 2, "and all the same it gets their requests");
    let hello = hello("w2", vec![(key.clone(), token(1))]);
    let (out, mut frames) = mpsc::channel(8);
    dispatch.attach(hello, v1::Welcome::default(), out);
    assert!(matches!(frame(&mut frames), Some(Frame::Welcome(_))));
    assert_eq!(frame(&mut frames), Some(owner_frame(&key, 3)), "who names it is told whose it is");
}

/// What an idle worker costs, counted: one small frame for each heartbeat, and nothing for what doesn't concern
/// it. With ten thousand of them each byte and each frame more is a lot.
#[test]
fn an_idle_worker_costs_one_small_frame_a_heartbeat() {
    const WORKERS: usize = 1000;
    // A minute's.
    let interval = crate::config::Config::default().idle_heartbeat();
    let heartbeats = std::time::Duration::from_mins(1).as_secs() / interval.as_secs();
    assert!(heartbeats <= 10, "one each {interval:?}");
    let dispatch = Dispatch::default();
    let mut fleet: Vec<_> =
        (0..WORKERS).map(|n| attach(&dispatch, &format!("w{n}"), 2, u64::MAX / 2)).collect();
    let (mut frames, mut bytes) = (0, 0);
    let mut read = |fleet: &mut Vec<(SessionId, Frames)>| {
        for (_, worker) in fleet {
            while let Some(frame) = frame(worker) {
                frames += 1;
                bytes += prost::Message::encoded_len(&v1::AttachResponse { frame: Some(frame) });
            }
        }
        (frames, bytes)
    };
    for number in 1..=heartbeats {
        // A batch comes, is worked on by a few, and goes.
        let key = BatchKey::new("default", format!("b{number}"));
        let wake = Arc::new(Notify::new());
        dispatch.register_unleased(&key, Epoch(number), "noop", 10, wake.clone());
        for to in dispatch.take(&key, "noop", 3) {
            dispatch.give_back(&key, "noop", &to, false);
        }
        for (session, _) in &fleet {
            dispatch.heartbeat(*session, number);
        }
        dispatch.unregister(&key, "noop", &wake);
    }
    let (frames, bytes) = read(&mut fleet);
    assert_eq!(frames, WORKERS * usize::try_from(heartbeats).expect("few"));
    assert!(bytes <= 8 * frames, "{bytes} bytes in {frames} frames");
}

#[test]
fn a_rollback_is_one_frame_for_each_worker() {
    let dispatch = Dispatch::default();
    let mut fleet: Vec<_> = (0..100).map(|n| attach(&dispatch, &format!("w{n}"), 2, u64::MAX / 2)).collect();
    let key = BatchKey::new("default", "a");
    dispatch.register_unleased(&key, Epoch(1), "noop", 10, Arc::new(Notify::new()));
    dispatch.broadcast(&key, v1::Phase::Rollback);
    for (_, frames) in &mut fleet {
        assert!(matches!(frame(frames), Some(Frame::PhaseChanged(_))));
        assert_eq!(frame(frames), None);
    }
}

/// Owners that have nothing to give take no turn, and the others' turns go on as if they weren't there.
#[test]
fn turns_are_the_hungry_ones_only() {
    let dispatch = Dispatch::default();
    let idle: Vec<_> = (0..50).map(|n| batch(&dispatch, &format!("idle{n}"), 10)).collect();
    let (a, b) = (batch(&dispatch, "a", 10), batch(&dispatch, "b", 10));
    for key in &idle {
        assert!(dispatch.take(key, "noop", 1).is_empty(), "nobody is there");
        dispatch.take(key, "noop", 0);
    }
    let (_session, _frames) = attach(&dispatch, "w1", 4, u64::MAX / 2);
    dispatch.take(&b, "noop", 0);
    assert_eq!(dispatch.take(&a, "noop", 2).len(), 2);
    assert_eq!(dispatch.take(&b, "noop", 9).len(), 2);
}
