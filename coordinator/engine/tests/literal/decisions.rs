//! What decides, and that it is done once.

use crate::support::desk::Desk;
use crate::support::{STOP_TOGETHER, TTL, ack, acks, but, done, runs, spec, worker};
use std::time::Duration;
use tranche_engine::{
    Command, CommitMode, Event, FailureLimit, Outcome, Phase, Reason, ReportResult, Spec, State,
};

#[test]
fn too_many_failures_revoke_the_batch_in_the_write_that_counts_them() {
    let limit = FailureLimit { max_failed: Some(2), ..FailureLimit::default() };
    let mut desk = Desk::of_with(Spec { failure_limit: limit, ..spec() }, 40);
    let a = worker("a");
    let grant = desk.lease(&a);
    desk.report(but(&grant, runs(&[(1, 2)])));
    desk.settle();
    assert_eq!(desk.state(), State::Importing);
    let grant = desk.lease(&a);
    desk.report(but(&grant, runs(&[(11, 11)])));
    desk.step();
    let write = desk.in_flight.clone().expect("a write");
    assert_eq!((write.state.state, write.state.failed), (State::RollingBack, 3));
    let decision = write.decision.clone().expect("decided");
    assert_eq!((decision.outcome, decision.reason), (Outcome::Rollback, Reason::FailureLimit));
    assert_eq!(decision.message, "3 tasks failed, at most 2 may");
    let commands = desk.land();
    assert!(commands.contains(&Command::Broadcast { phase: Phase::Rollback }), "{commands:?}");
}

#[test]
fn the_deadline_revokes_the_batch_though_nothing_happens() {
    let mut desk = Desk::of_with(Spec { deadline: Some(Duration::from_mins(1)), ..spec() }, 10);
    assert_eq!(desk.batch.wake_at(desk.now()), Some(desk.at + Duration::from_mins(1)));
    desk.wait_seconds(60);
    desk.settle();
    let decision = desk.store.records.decision.clone().expect("decided");
    assert_eq!((decision.outcome, decision.reason), (Outcome::Rollback, Reason::Deadline));
}

#[test]
fn the_deadline_revokes_a_held_batch_too() {
    let deadline = Some(Duration::from_mins(1));
    let mut desk = Desk::of_with(Spec { deadline, commit_mode: CommitMode::Manual, ..spec() }, 10);
    desk.does(&worker("a"));
    assert_eq!(desk.state(), State::Held);
    desk.wait_seconds(60);
    desk.settle();
    assert_eq!(desk.state(), State::RollingBack);
}

#[test]
fn origin_1_4_a_revoke_tells_all_workers_at_once() {
    let mut desk = Desk::of(40);
    let (a, b) = (worker("a"), worker("b"));
    let grant = desk.lease(&a);
    desk.lease(&b);
    desk.cancel();
    assert_eq!(desk.step(), [Command::Broadcast { phase: Phase::Rollback }], "before any write");
    assert_eq!(desk.in_flight.as_ref().map(|write| write.state.state), Some(State::RollingBack));
    desk.land();
    desk.report(done(&grant));
    assert_eq!(acks(&desk.settle()), [ReportResult::Decided]);
    assert_eq!(desk.store.records.state.staged, 0);
}

#[test]
fn origin_1_4_a_rollback_waits_until_nothing_is_staged_any_more() {
    let mut desk = Desk::of(30);
    let (a, b) = (worker("a"), worker("b"));
    let (of_a, of_b) = (desk.lease(&a), desk.lease(&b));
    let staged = desk.lease(&a);
    desk.report(done(&staged));
    desk.settle();
    desk.cancel();
    desk.settle();
    // What nobody works on is rolled back without the others, once all had a moment to stop.
    desk.wait(STOP_TOGETHER);
    assert_eq!(desk.batch.appetite(desk.now()), 1);
    let first = desk.lease(&a);
    assert_eq!((first.phase, first.run), (Phase::Rollback, staged.run));
    assert_eq!(first.attempts[0].token, staged.token);
    assert_eq!(desk.batch.appetite(desk.now()), 0);
    desk.push(Event::PhaseAck { worker: a.clone() });
    assert_eq!(desk.settle(), [Command::Freed { worker: a.clone(), token: of_a.token }]);
    let second = desk.lease(&a);
    assert_eq!((second.run, second.attempts[0].token), (of_a.run, of_a.token), "it never reported");
    // The other one never says a word.
    desk.wait(TTL);
    desk.batch.seen(&a, desk.at);
    let commands = desk.settle();
    assert_eq!(commands, [Command::Revoke { worker: b, token: of_b.token, reason: "lease expired" }]);
    assert_eq!(desk.lease(&a).run, of_b.run);
}

#[test]
fn origin_1_6_a_rollback_ends_when_every_range_is_and_nothing_is_left() {
    let mut desk = Desk::of(20);
    let a = worker("a");
    desk.does(&a);
    desk.cancel();
    desk.settle();
    let rollback = desk.lease(&a);
    desk.report(done(&rollback));
    desk.settle();
    assert_eq!((desk.state(), desk.store.records.state.rolled_back), (State::RollingBack, 10));
    for residue in [3, 1, 0] {
        assert_eq!(desk.state(), State::RollingBack);
        let sweep = desk.lease(&a);
        assert_eq!(sweep.phase, Phase::Sweep);
        desk.report(crate::support::found(&sweep, residue));
        desk.settle();
    }
    assert_eq!((desk.state(), desk.store.records.state.residue_removed), (State::RolledBack, 4));
    assert!(desk.ended && desk.store.records.state.swept && desk.store.records.ranges.is_empty());
    assert_eq!(desk.store.reports, 1);
}

#[test]
fn a_decision_is_heard_once() {
    let mut desk = Desk::of(20);
    desk.lease(&worker("a"));
    desk.cancel();
    desk.settle();
    let decision = desk.store.records.decision.clone().expect("decided");
    desk.push(Event::Decided(decision));
    assert_eq!(desk.settle(), []);
}

#[test]
fn an_approval_commits_what_is_held() {
    let mut desk = Desk::of_with(Spec { commit_mode: CommitMode::Manual, ..spec() }, 10);
    let a = worker("a");
    desk.does(&a);
    let decision = desk.decide(Outcome::Commit).expect("undecided");
    desk.wait_seconds(3);
    desk.push(Event::Decided(decision.clone()));
    desk.settle();
    let state = &desk.store.records.state;
    assert_eq!((state.state, state.decide_time_ms), (State::Committing, decision.decide_time_ms));
    assert_eq!(desk.lease(&a).phase, Phase::Commit);
}

#[test]
fn the_last_report_loses_against_a_cancel() {
    let mut desk = Desk::of(10);
    let a = worker("a");
    let grant = desk.lease(&a);
    desk.report(done(&grant));
    desk.step();
    assert!(desk.in_flight.as_ref().is_some_and(|write| write.decision.is_some()));
    desk.decide(Outcome::Rollback);
    desk.land();
    let commands = desk.settle();
    assert_eq!(
        commands,
        [Command::Broadcast { phase: Phase::Rollback }, ack(&a, grant.token, ReportResult::Decided),]
    );
    assert_eq!(desk.state(), State::RollingBack);
}
