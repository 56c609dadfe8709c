//! How few writes do: each is a transaction, and syncs a disk.

use crate::support::desk::Desk;
use crate::support::{done, grants, published, spec, the_grant, worker};
use tranche_engine::{Command, Grant, Outcome, Phase, Spec, State, WorkerKey, Write};

/// What the driver does between two writes: it works in what came, then takes as many requests as there is
/// appetite. Lands what that makes, and gives the write.
fn turn(desk: &mut Desk, asking: &WorkerKey) -> (Option<Write>, Vec<Command>) {
    turn_with(desk, asking, usize::MAX)
}

/// The same with so many requests in the queue.
fn turn_with(desk: &mut Desk, asking: &WorkerKey, requests: usize) -> (Option<Write>, Vec<Command>) {
    let now = desk.now();
    desk.batch.gather(now);
    for _ in 0..desk.batch.appetite(now).min(requests) {
        desk.ask(asking);
    }
    let mut commands = desk.step();
    let write = desk.in_flight.clone();
    if write.is_some() {
        commands.extend(desk.land());
    }
    (write, commands)
}

/// Turns until a lease comes.
fn leased(desk: &mut Desk, asking: &WorkerKey) -> (usize, Grant) {
    let mut writes = 0;
    for _ in 0..10 {
        let (write, commands) = turn(desk, asking);
        writes += usize::from(write.is_some());
        if let [grant] = &grants(&commands)[..] {
            return (writes, grant.clone());
        }
    }
    panic!("no lease after ten turns");
}

#[test]
fn a_batch_of_one_task_takes_four_writes_to_its_end_and_one_after_it() {
    let (mut desk, a) = (Desk::new(), worker("a"));
    desk.append(1, 1);
    let (write, commands) = turn(&mut desk, &a);
    assert_eq!((write.expect("the append").ranges.len(), grants(&commands)), (0, vec![]), "more may come");
    desk.seal();
    let (writes, stage) = leased(&mut desk, &a);
    assert_eq!((writes, stage.phase), (1, Phase::Stage), "sealed and leased in one write");
    desk.report(done(&stage));
    let (writes, commit) = leased(&mut desk, &a);
    assert_eq!((writes, commit.phase, commit.publish), (1, Phase::Commit, true), "staged and decided in one");
    desk.report(published(&commit));
    let (write, _) = turn(&mut desk, &a);
    assert_eq!(write.expect("the end").state.state, State::Committed);
    assert_eq!(desk.store.writes, 4);
    let (writes, sweep) = leased(&mut desk, &a);
    assert_eq!((writes, sweep.phase), (0, Phase::Sweep));
    desk.report(done(&sweep));
    desk.settle();
    assert!(desk.store.records.state.swept);
    assert_eq!(desk.store.writes, 5, "the sweep and the fold, which nobody waits for");
}

#[test]
fn what_comes_with_a_decision_of_somebody_else_is_worked_in_after_it() {
    let (mut desk, a) = (Desk::new(), worker("a"));
    desk.append(1, 10);
    desk.settle();
    desk.seal();
    desk.cancel();
    let now = desk.now();
    desk.batch.gather(now);
    assert!(!desk.batch.state().sealed, "nothing is done beside a decision");
    desk.ask(&a);
    let commands = desk.settle();
    assert!(!grants(&commands).iter().any(|grant| grant.phase == Phase::Stage), "{commands:?}");
    assert_eq!(
        desk.store.records.decision.as_ref().map(|decision| decision.outcome),
        Some(Outcome::Rollback)
    );
}

/// Two ranges, staged by `a`, decided COMMIT.
fn two_ranges(a: &WorkerKey) -> Desk {
    let mut desk = Desk::of(20);
    desk.does(a);
    desk.does(a);
    assert_eq!(desk.state(), State::Committing);
    desk
}

#[test]
fn only_the_last_commit_publishes_when_all_others_are_durable() {
    let a = worker("a");
    let mut desk = two_ranges(&a);
    let first = desk.lease(&a);
    assert!(!first.publish, "another range waits");
    let second = desk.lease(&a);
    assert!(!second.publish, "the first one is out");
    // It comes back while the other's report isn't durable yet.
    desk.report(done(&first));
    desk.push(tranche_engine::Event::Release { worker: a.clone(), token: second.token });
    desk.ask(&a);
    assert!(!the_grant(&desk.settle()).publish, "the first one isn't durable yet");
}

#[test]
fn the_last_range_alone_is_committed_and_published_in_one_lease() {
    let a = worker("a");
    let mut desk = two_ranges(&a);
    let first = desk.lease(&a);
    desk.report(published(&first));
    desk.settle();
    let state = &desk.store.records.state;
    assert_eq!((state.state, state.published), (State::Committing, false), "it wasn't asked to");
    let last = desk.lease(&a);
    assert_eq!((last.phase, last.publish, last.staged), (Phase::Commit, true, 20));
    desk.report(published(&last));
    desk.settle();
    let state = &desk.store.records.state;
    assert_eq!((state.state, state.published, state.committed), (State::Committed, true, 20));
}

#[test]
fn a_worker_that_only_commits_is_asked_to_publish() {
    let a = worker("a");
    let mut desk = two_ranges(&a);
    desk.does(&a);
    let last = desk.lease(&a);
    assert!(last.publish);
    desk.report(done(&last));
    desk.settle();
    let state = &desk.store.records.state;
    assert_eq!((state.state, state.published, state.committed), (State::Committing, false, 20));
    assert_eq!(desk.lease(&a).phase, Phase::Publish);
}

#[test]
fn a_last_commit_that_fails_or_is_lost_is_asked_to_publish_again() {
    let a = worker("a");
    let mut desk = two_ranges(&a);
    desk.does(&a);
    let last = desk.lease(&a);
    desk.report(crate::support::error(&last, "no route"));
    desk.settle();
    desk.wait_seconds(1);
    let again = desk.lease(&a);
    assert_eq!((again.run, again.publish, again.attempt), (last.run, true, 1));
    let b = worker("b");
    desk.gone(&a);
    desk.settle();
    let other = desk.lease(&b);
    assert_eq!((other.run, other.publish), (last.run, true));
    desk.report(published(&other));
    desk.settle();
    assert_eq!(desk.state(), State::Committed);
}

/// Ranges of one task each, sealed.
fn of_singles(ranges: u64) -> Desk {
    Desk::of_with(Spec { min_range: 1, max_range: 1, ..spec() }, ranges)
}

#[test]
fn ranges_one_after_the_other_take_two_writes_each() {
    const RANGES: u64 = 50;
    let (mut desk, a) = (of_singles(RANGES), worker("a"));
    let before = desk.store.writes;
    let mut given = 0;
    while !desk.ended {
        let (_, commands) = turn_with(&mut desk, &a, 1);
        let next = grants(&commands);
        given += next.len() as u64;
        for grant in &next {
            desk.report(done(grant));
        }
    }
    assert_eq!(given, 2 * RANGES + 2, "each to be staged and to be committed, PUBLISH, SWEEP");
    // Each report goes with the next lease. The first lease, PUBLISH with the end, and the fold are more.
    assert_eq!(desk.store.writes - before, 2 * RANGES + 3);
}

/// Writes of a batch whose leases, and then their reports, all come at once.
fn writes_together(ranges: u64) -> u64 {
    let (mut desk, a) = (of_singles(ranges), worker("a"));
    let before = desk.store.writes;
    let mut held = Vec::new();
    while !desk.ended {
        let (write, commands) = turn(&mut desk, &a);
        held.extend(grants(&commands));
        if write.is_none() && grants(&commands).is_empty() && !desk.batch.has_events() {
            held.drain(..).for_each(|grant| desk.report(done(&grant)));
        }
    }
    desk.store.writes - before
}

#[test]
fn a_hundred_ranges_that_come_together_are_one_write_and_one_more_is_two() {
    // Leases; reports with the decision; commits; PUBLISH with the end; fold.
    assert_eq!(writes_together(100), 5);
    assert_eq!(writes_together(101), 9, "all but PUBLISH twice");
}
