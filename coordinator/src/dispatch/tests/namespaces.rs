//! Workers of one namespace, beside those of all.

use super::*;

const A: &str = "team-a";
const B: &str = "team-b";

fn attach_of(dispatch: &Dispatch, namespace: &str, id: &str, leases: u32) -> (SessionId, Frames) {
    let scope = namespace.parse().expect("a namespace");
    attach_with(dispatch, Hello { scope, ..hello(id, Vec::new()) }, leases, u64::MAX / 2)
}

/// An owned batch of this namespace, and what wakes its owner.
fn batch_of(dispatch: &Dispatch, namespace: &str, id: &str) -> (BatchKey, Arc<Notify>) {
    let key = BatchKey::new(namespace, id);
    let (wake, _) = own(dispatch, &key, 1, 10);
    (key, wake)
}

fn ids(taken: &[WorkerKey]) -> Vec<String> {
    taken.iter().map(|worker| worker.id.to_string()).collect()
}

fn is_woken(wake: &Notify) -> bool {
    use futures::FutureExt as _;
    wake.notified().now_or_never().is_some()
}

#[test]
fn a_worker_of_a_namespace_is_dealt_its_batches_alone_also_when_nobody_else_is_there() {
    let dispatch = Dispatch::default();
    let ((a, _), (b, wake_b)) = (batch_of(&dispatch, A, "x"), batch_of(&dispatch, B, "x"));
    assert!(dispatch.take(&b, "noop", 5).is_empty());
    let (_of_a, _frames) = attach_of(&dispatch, A, "wa", 2);
    assert!(!is_woken(&wake_b), "there is nothing for it");
    assert!(dispatch.take(&b, "noop", 5).is_empty());
    assert_eq!(ids(&dispatch.take(&a, "noop", 5)), ["wa", "wa"]);
    let (_of_b, _frames) = attach_of(&dispatch, B, "wb", 1);
    assert!(is_woken(&wake_b), "now there is");
    assert_eq!(ids(&dispatch.take(&b, "noop", 5)), ["wb"]);
    let (_of_all, _frames) = attach(&dispatch, "w", 1, u64::MAX / 2);
    assert!(is_woken(&wake_b));
    assert_eq!(ids(&dispatch.take(&b, "noop", 5)), ["w"]);
}

#[test]
fn a_namespace_s_own_workers_come_first_and_are_no_burden_to_the_others() {
    let dispatch = Dispatch::default();
    let ((a, _), (b, _)) = (batch_of(&dispatch, A, "x"), batch_of(&dispatch, B, "x"));
    let (_all, _frames) = attach(&dispatch, "w", 8, u64::MAX / 2);
    let (_own, _frames) = attach_of(&dispatch, A, "wa", 3);
    assert!(dispatch.take(&b, "noop", 0).is_empty());
    assert_eq!(ids(&dispatch.take(&a, "noop", 2)), ["wa", "wa"]);
    // Both are hungry: what was done for it by its own counts, so the other's turn comes first.
    assert_eq!(ids(&dispatch.take(&b, "noop", 1)), ["w"]);
    assert_eq!(ids(&dispatch.take(&a, "noop", 9))[..2], ["wa", "w"]);
}

/// Batches that nobody works for don't hold up those that come later.
#[test]
fn a_batch_without_workers_holds_up_no_namespace_and_owes_nothing_to_newcomers() {
    let dispatch = Dispatch::default();
    let ((waits, _), (old, _)) = (batch_of(&dispatch, B, "waits"), batch_of(&dispatch, A, "old"));
    assert!(dispatch.take(&waits, "noop", 5).is_empty());
    let (_own, _frames) = attach_of(&dispatch, A, "wa", 1);
    let mut counter = 0;
    let mut lease = |key: &BatchKey| {
        let taken = dispatch.take(key, "noop", 2);
        for to in &taken {
            counter += 1;
            assert!(grant(&dispatch, to, key, counter, 0));
            dispatch.freed(to, token(counter));
        }
        taken.len()
    };
    for _ in 0..100 {
        assert!(lease(&old) > 0);
    }
    let (new, _) = batch_of(&dispatch, A, "new");
    let mut shares = [0, 0];
    for _ in 0..100 {
        shares[0] += lease(&old);
        shares[1] += lease(&new);
    }
    let [old, new] = shares;
    assert!(old * 2 > new && new * 2 > old, "{old} to {new}");
}

#[test]
fn a_worker_of_a_namespace_hears_of_its_batches_alone() {
    let dispatch = Dispatch::default();
    let (of_a, mut frames) = attach_of(&dispatch, A, "wa", 4);
    let (_all, mut others) = attach(&dispatch, "w", 1, u64::MAX / 2);
    let key = BatchKey::new(B, "x");
    let (wake, told) = own(&dispatch, &key, 1, 10);
    assert_eq!(ids(&told), ["w"], "the owner hears of nobody else, either");
    assert_eq!(dispatch.take(&key, "noop", 7).len(), 1);
    dispatch.broadcast(&key, v1::Phase::Rollback);
    dispatch.relay(&key, v1::Phase::Rollback);
    dispatch.tell(&worker("wa"), &key, v1::Phase::Rollback);
    dispatch.leave(&worker("wa"), &key, v1::batch::State::RolledBack);
    assert!(!grant(&dispatch, &worker("wa"), &key, 1, 0));
    assert!(dispatch.holding(of_a, &key, Epoch(1), &[token(1)]).is_none());
    assert!(dispatch.last_seen(&key, [&worker("wa")], Instant::now()).is_empty());
    dispatch.heartbeat(of_a, 1);
    let Some(Frame::Ack(ack)) = frame(&mut frames) else { panic!("nothing but the answer") };
    assert_eq!(ack.backlog, 0, "what waits there isn't told");
    assert_eq!(frame(&mut frames), None);
    assert_eq!(dispatch.sessions(Session::leases), [0, 0]);
    assert_eq!(frame(&mut others), Some(owner_frame(&key, 1)));
    dispatch.unregister(&key, "noop", &wake);
    // Its own are all there.
    let own_key = BatchKey::new(A, "x");
    let (_, told) = own(&dispatch, &own_key, 1, 10);
    assert_eq!(ids(&told), ["wa", "w"]);
    assert_eq!(frame(&mut frames), Some(owner_frame(&own_key, 1)));
    assert_eq!(dispatch.take(&own_key, "noop", 9).len(), 5);
    dispatch.heartbeat(of_a, 2);
    assert!(matches!(frame(&mut frames), Some(Frame::Ack(ack)) if ack.backlog == 4));
}

#[test]
fn a_worker_that_attaches_again_in_another_namespace_has_nothing_of_the_first_any_more() {
    let dispatch = Dispatch::default();
    let (key, _) = batch_of(&dispatch, A, "x");
    let (_before, _frames) = attach_of(&dispatch, A, "w", 3);
    let taken = dispatch.take(&key, "noop", 2);
    assert_eq!(taken.len(), 2);
    assert!(grant(&dispatch, &taken[0], &key, 1, 0));
    let held = vec![(key.clone(), token(1))];
    let scope = B.parse().expect("a namespace");
    let (after, mut frames) = attach_with(&dispatch, Hello { scope, ..hello("w", held) }, 3, u64::MAX / 2);
    assert!(!grant(&dispatch, &taken[1], &key, 2, 0), "the one that was on its way");
    assert!(dispatch.last_seen(&key, [&worker("w")], Instant::now()).is_empty(), "its lease runs out");
    assert!(dispatch.holding(after, &key, Epoch(1), &[token(1)]).is_none());
    assert_eq!(frame(&mut frames), None);
    assert_eq!(dispatch.sessions(Session::leases), [0]);
    assert!(dispatch.take(&key, "noop", 2).is_empty());
}

#[test]
fn lines_of_namespaces_that_are_gone_are_not_kept() {
    let dispatch = Dispatch::default();
    for number in 0..100 {
        let namespace = format!("team-{number}");
        let (key, wake) = batch_of(&dispatch, &namespace, "x");
        let (session, _frames) = attach_of(&dispatch, &namespace, &format!("w{number}"), 1);
        assert!(dispatch.take(&key, "noop", 0).is_empty());
        if number % 2 == 0 {
            dispatch.detach(session);
            dispatch.unregister(&key, "noop", &wake);
        } else {
            dispatch.unregister(&key, "noop", &wake);
            dispatch.detach(session);
        }
    }
    assert_eq!(dispatch.lock().queues["noop"].namespaces(), 0);
}

#[test]
fn figures_say_which_namespaces_somebody_works_for() {
    let dispatch = Dispatch::default();
    let (_a, _frames) = attach_of(&dispatch, A, "wa", 1);
    let serves = |namespace: &str| dispatch.figures().handlers["noop"].serves.namespace(namespace);
    assert!(serves(A) && !serves(B));
    let (_all, _frames) = attach(&dispatch, "w", 1, u64::MAX / 2);
    assert!(serves(A) && serves(B));
}
