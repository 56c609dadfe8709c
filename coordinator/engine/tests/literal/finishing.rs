//! After the decision to commit: ranges, publish, sweep, fold.

use crate::support::desk::Desk;
use crate::support::{acks, but, done, error, found, run, runs, spec, worker};
use std::time::Duration;
use tranche_engine::{Command, Event, Phase, RangePhase, ReportResult, Spec, State};

/// Two ranges staged by `a` and `b`, decided COMMIT.
fn committing() -> Desk {
    let mut desk = Desk::of(20);
    desk.does(&worker("a"));
    desk.does(&worker("b"));
    assert_eq!(desk.state(), State::Committing);
    desk
}

#[test]
fn origin_1_3_the_second_stage_commits_what_was_imported_with_success() {
    let mut desk = Desk::of(20);
    let a = worker("a");
    let grant = desk.lease(&a);
    desk.report(but(&grant, runs(&[(4, 5)])));
    desk.settle();
    let other = desk.lease(&a);
    desk.report(but(&other, runs(&[(11, 20)])));
    desk.settle();
    assert_eq!(desk.batch.appetite(desk.now()), 1, "nothing of the second range is to be committed");
    let commit = desk.lease(&a);
    assert_eq!((commit.phase, commit.run), (Phase::Commit, run(1, 10)));
    assert_eq!(commit.attempts.len(), 1);
    assert_eq!(
        (commit.attempts[0].token, commit.attempts[0].runs.clone()),
        (grant.token, runs(&[(1, 3), (6, 10)]))
    );
    assert_eq!(commit.attempts[0].receipt, format!("receipt {}", grant.token).into_bytes());
}

#[test]
fn a_range_is_committed_by_the_worker_that_staged_it_if_it_is_here() {
    let mut desk = committing();
    let (a, b, c) = (worker("a"), worker("b"), worker("c"));
    assert_eq!(desk.lease(&b).run, run(11, 20));
    desk.gone(&a);
    desk.settle();
    assert_eq!(desk.lease(&c).run, run(1, 10), "by any other when it is gone");
}

#[test]
fn a_commit_that_fails_is_tried_for_ever_with_growing_pauses() {
    let mut desk = committing();
    let a = worker("a");
    let commit = desk.lease(&a);
    desk.report(done(&commit));
    desk.settle();
    for pause in [1, 2, 4, 8, 8, 8] {
        let commit = desk.lease(&a);
        desk.report(error(&commit, "no route"));
        assert_eq!(acks(&desk.settle()), [ReportResult::Durable]);
        assert_eq!(desk.state(), State::Committing);
        assert!(desk.batch.message().contains("no route"));
        assert_eq!(desk.batch.wake_at(desk.now()), Some(desk.at + Duration::from_secs(pause)));
        desk.wait_seconds(pause);
    }
    desk.does(&a);
    assert_eq!(desk.store.records.state.committed, 20);
    assert_eq!(desk.batch.message(), "");
}

#[test]
fn a_lost_commit_lease_is_given_to_another() {
    let mut desk = committing();
    let (a, b) = (worker("a"), worker("b"));
    let commit = desk.lease(&a);
    desk.gone(&a);
    assert_eq!(desk.settle(), [Command::Freed { worker: a, token: commit.token }]);
    let mine = desk.lease(&b);
    assert_eq!(mine.run, run(11, 20), "its own first");
    let again = desk.lease(&b);
    assert_eq!(again.run, commit.run);
    desk.report(done(&commit));
    assert_eq!(acks(&desk.settle()), [ReportResult::Stale]);
}

#[test]
fn origin_1_6_publish_then_committed_then_sweep_and_fold() {
    let mut desk = committing();
    let a = worker("a");
    desk.does(&a);
    desk.does(&a);
    let state = &desk.store.records.state;
    assert_eq!((state.state, state.committed, state.published), (State::Committing, 20, false));
    assert!(desk.store.records.ranges.values().all(|range| range.phase == RangePhase::Committed));
    let publish = desk.lease(&a);
    assert_eq!((publish.phase, publish.run, publish.staged), (Phase::Publish, run(1, 20), 20));
    desk.report(done(&publish));
    desk.step();
    let write = desk.in_flight.clone().expect("a write");
    assert_eq!((write.state.state, write.state.published, write.report), (State::Committed, true, true));
    assert!(!write.release);
    assert_eq!((write.state.cutoff, write.state.end_time_ms), (20, desk.now().wall_ms));
    let commands = desk.land();
    let leave = Command::Leave { worker: a.clone(), state: State::Committed };
    assert!(commands.contains(&leave), "origin 1.5, the workers end: {commands:?}");
    let sweep = desk.lease(&a);
    assert_eq!(sweep.phase, Phase::Sweep);
    desk.report(found(&sweep, 2));
    desk.settle();
    let sweep = desk.lease(&a);
    desk.report(found(&sweep, 0));
    desk.step();
    let write = desk.in_flight.clone().expect("a write");
    assert_eq!((write.folded.clone(), write.state.swept, write.release), (vec![1, 11], true, true));
    let commands = desk.land();
    assert_eq!((acks(&commands), commands.last()), (vec![ReportResult::Durable], Some(&Command::Ended)));
    assert_eq!(desk.store.records.state.residue_removed, 0, "what a commit left over is no residue");
}

#[test]
fn a_publish_that_fails_is_tried_again() {
    let mut desk = committing();
    let a = worker("a");
    desk.does(&a);
    desk.does(&a);
    let publish = desk.lease(&a);
    desk.report(error(&publish, "read only"));
    desk.settle();
    desk.ask(&a);
    assert_eq!(desk.settle(), [Command::Return { worker: a.clone(), keep: true }]);
    desk.wait_seconds(1);
    let publish = desk.lease(&a);
    assert_eq!((publish.phase, publish.attempt), (Phase::Publish, 1));
    desk.gone(&a);
    desk.settle();
    let publish = desk.lease(&worker("b"));
    assert_eq!(publish.phase, Phase::Publish);
    desk.report(done(&publish));
    desk.settle();
    assert_eq!(desk.state(), State::Committed);
}

#[test]
fn ranges_with_failures_stay_for_the_failure_list() {
    let mut desk = Desk::of(20);
    let a = worker("a");
    desk.does(&a);
    let grant = desk.lease(&a);
    desk.report(but(&grant, runs(&[(12, 12)])));
    desk.settle();
    while !desk.ended {
        desk.does(&a);
    }
    assert_eq!(desk.store.records.ranges.keys().copied().collect::<Vec<_>>(), [11]);
    assert_eq!((desk.store.records.state.committed, desk.store.records.state.failed), (19, 1));
}

#[test]
fn a_batch_whose_tasks_all_failed_commits_nothing_and_ends() {
    let mut desk = Desk::of(10);
    let a = worker("a");
    let grant = desk.lease(&a);
    desk.report(but(&grant, runs(&[(1, 10)])));
    desk.settle();
    let publish = desk.lease(&a);
    assert_eq!((publish.phase, publish.staged), (Phase::Publish, 0));
    desk.report(done(&publish));
    desk.settle();
    assert_eq!((desk.state(), desk.store.records.state.committed), (State::Committed, 0));
    desk.does(&a);
    assert!(desk.ended);
}

#[test]
fn several_attempts_that_count_are_all_committed_with_their_own_tasks() {
    let manual = Spec { commit_mode: tranche_engine::CommitMode::Manual, ..spec() };
    let mut desk = Desk::of_with(manual, 10);
    let (a, b) = (worker("a"), worker("b"));
    let first = desk.lease(&a);
    desk.report(but(&first, runs(&[(1, 5)])));
    desk.settle();
    desk.retry();
    desk.settle();
    let second = desk.lease(&b);
    desk.report(done(&second));
    desk.settle();
    let decision = desk.decide(tranche_engine::Outcome::Commit).expect("undecided");
    desk.push(Event::Decided(decision));
    desk.settle();
    let commit = desk.lease(&a);
    let attempts: Vec<_> = commit.attempts.iter().map(|t| (t.token, t.runs.clone())).collect();
    assert_eq!(attempts, [(first.token, runs(&[(6, 10)])), (second.token, runs(&[(1, 5)]))]);
    desk.report(done(&commit));
    desk.settle();
    assert_eq!(desk.store.records.state.committed, 10);
}

#[test]
fn a_take_over_while_committing_goes_on_with_what_is_left() {
    let mut desk = committing();
    let a = worker("a");
    desk.does(&a);
    let out = desk.lease(&a);
    let commands = desk.take_over();
    assert_eq!(commands, [Command::Broadcast { phase: Phase::Commit }]);
    desk.report(done(&out));
    assert_eq!(acks(&desk.settle()), [ReportResult::Stale]);
    let again = desk.lease(&a);
    assert_eq!((again.phase, again.run), (Phase::Commit, out.run));
    assert!(again.token.epoch > out.token.epoch);
}
