//! Writes that are refused, or whose answer is lost; what waits for a write.

use crate::support::desk::Desk;
use crate::support::{ack, acks, done, error, spec, the_grant, worker};
use tranche_engine::{
    Answer, Command, CommitMode, Event, FailureLimit, Outcome, Phase, Refusal, ReportResult, Spec, State,
};

#[test]
fn a_refused_write_loses_no_report_and_no_call_and_returns_requests() {
    let mut desk = Desk::new();
    let (a, b) = (worker("a"), worker("b"));
    desk.append(1, 30);
    desk.settle();
    desk.wait_seconds(1);
    let grant = desk.lease(&a);
    desk.report(done(&grant));
    desk.ask(&b);
    let op = desk.append(31, 40);
    assert_eq!(desk.step(), []);
    desk.reload();
    assert_eq!(desk.step(), [Command::Return { worker: b.clone(), keep: true }]);
    let commands = desk.land();
    assert!(commands.contains(&ack(&a, grant.token, ReportResult::Durable)), "{commands:?}");
    assert!(commands.contains(&Command::Answer { op, answer: Ok(Answer::Appended(40)) }), "{commands:?}");
    assert_eq!(desk.store.records.state.staged, 10);
}

#[test]
fn a_report_that_meets_a_cancel_in_the_store_is_answered_decided() {
    let mut desk = Desk::of(20);
    let a = worker("a");
    let grant = desk.lease(&a);
    desk.report(done(&grant));
    desk.step();
    desk.decide(Outcome::Rollback);
    assert_eq!(desk.land(), []);
    let commands = desk.settle();
    assert_eq!(commands[0], Command::Broadcast { phase: Phase::Rollback });
    assert!(commands.contains(&ack(&a, grant.token, ReportResult::Decided)), "{commands:?}");
    assert_eq!(desk.state(), State::RollingBack);
    assert_eq!(desk.store.records.state.staged, 0);
}

#[test]
fn a_write_that_was_applied_unheard_still_sends_its_grants() {
    let mut desk = Desk::of(20);
    let a = worker("a");
    desk.ask(&a);
    desk.step();
    desk.apply_unheard();
    desk.reload();
    let grant = the_grant(&desk.settle());
    assert_eq!(desk.store.records.ranges[&1].lease.as_ref().map(|lease| lease.token), Some(grant.token));
}

/// 150 ranges of one task that failed: to put them back takes two writes.
fn all_failed() -> Desk {
    let mut desk =
        Desk::of_with(Spec { min_range: 1, max_range: 1, commit_mode: CommitMode::Manual, ..spec() }, 150);
    let a = worker("a");
    for _ in 0..150 {
        let grant = desk.lease(&a);
        desk.report(crate::support::but(&grant, grant.runs.clone()));
        desk.settle();
    }
    assert_eq!(desk.state(), State::Held);
    desk
}

#[test]
fn a_retry_over_several_writes_is_answered_with_all_though_a_write_is_refused() {
    for (refused, applied) in [(1, false), (1, true), (2, false), (2, true)] {
        let mut desk = all_failed();
        let op = desk.retry();
        desk.step();
        if refused == 2 {
            desk.land();
            desk.step();
            assert_eq!(desk.in_flight.as_ref().map(|write| write.ranges.len()), Some(50));
        }
        if applied {
            desk.apply_unheard();
        }
        desk.reload();
        let commands = desk.settle();
        let answers: Vec<_> = commands.into_iter().filter(|c| matches!(c, Command::Answer { .. })).collect();
        assert_eq!(
            answers,
            [Command::Answer { op, answer: Ok(Answer::Retried(150)) }],
            "{refused} {applied}"
        );
        assert_eq!(desk.store.records.state.failed, 0);
    }
}

#[test]
fn tokens_of_finishing_leases_are_not_used_again_after_a_refused_write() {
    let mut desk = Desk::of(20);
    let a = worker("a");
    let first = desk.lease(&a);
    let second = desk.lease(&a);
    desk.report(done(&first));
    desk.report(done(&second));
    desk.settle();
    assert_eq!(desk.state(), State::Committing);
    let one = desk.lease(&a);
    desk.report(done(&one));
    desk.step();
    desk.reload();
    desk.settle();
    let again = desk.lease(&a);
    assert!(again.token > one.token, "{} after {}", again.token, one.token);
}

#[test]
fn a_lease_that_expired_in_a_refused_write_is_not_revoked_before_the_write_is_durable() {
    let mut desk = Desk::of(20);
    let a = worker("a");
    let grant = desk.lease(&a);
    desk.wait_seconds(11);
    assert_eq!(desk.step(), [], "the loss isn't durable yet");
    desk.reload();
    // The lease stands, and its worker may still report.
    desk.report(done(&grant));
    let commands = desk.settle();
    assert_eq!(acks(&commands), [ReportResult::Durable]);
}

#[test]
fn a_lease_that_its_worker_does_not_name_is_lost_also_when_the_first_write_is_refused() {
    let mut desk = Desk::of(20);
    let (a, b) = (worker("a"), worker("b"));
    let grant = desk.lease(&a);
    desk.wait_seconds(1);
    desk.attach(&a, &[]);
    desk.step();
    desk.wait_seconds(1);
    desk.reload();
    desk.settle();
    assert_eq!(desk.lease(&b).run, grant.run);
}

#[test]
fn the_repeat_of_a_report_is_durable_only_once_the_first_is() {
    let mut desk = Desk::of(20);
    let a = worker("a");
    let grant = desk.lease(&a);
    desk.report(done(&grant));
    desk.report(done(&grant));
    assert_eq!(desk.step(), []);
    assert_eq!(acks(&desk.land()), [ReportResult::Durable, ReportResult::Durable]);
    desk.report(done(&grant));
    assert_eq!(acks(&desk.settle()), [ReportResult::Durable]);
}

#[test]
fn the_repeat_of_a_report_of_tasks_that_all_failed_is_durable_too() {
    let mut desk = Desk::of_with(Spec { commit_mode: CommitMode::Manual, ..spec() }, 10);
    let a = worker("a");
    let mut reports = Vec::new();
    for _ in 0..3 {
        let grant = desk.lease(&a);
        reports.push(crate::support::but(&grant, grant.runs.clone()));
        for _ in 0..2 {
            desk.report(reports[reports.len() - 1].clone());
            assert_eq!(acks(&desk.settle()), [ReportResult::Durable]);
        }
        desk.retry();
        desk.settle();
    }
    // The newest is kept; the older ones are lost attempts.
    let range = &desk.store.records.ranges[&1];
    assert_eq!((range.winners.len(), range.losers.len(), range.staged()), (1, 2, 0));
    desk.report(reports[0].clone());
    assert_eq!(acks(&desk.settle()), [ReportResult::Stale]);
    desk.cancel();
    desk.settle();
    assert_eq!(desk.lease(&a).attempts.len(), 3, "a rollback names them all");
}

#[test]
fn a_call_that_is_refused_by_what_is_not_durable_yet_waits_for_it() {
    let mut desk = Desk::new();
    desk.append(1, 10);
    desk.append(1, 10);
    desk.seal();
    desk.seal();
    let late = desk.append(11, 12);
    assert_eq!(desk.step(), []);
    let commands = desk.land();
    assert_eq!(commands.len(), 5);
    assert_eq!(commands[4], Command::Answer { op: late, answer: Err(Refusal::Sealed(10)) });
}

#[test]
fn a_call_is_answered_once_though_a_write_is_refused() {
    let mut desk = Desk::new();
    desk.append(1, 10);
    desk.settle();
    let again = desk.append(1, 10);
    desk.append(11, 20);
    let mut commands = desk.step();
    desk.reload();
    commands.extend(desk.settle());
    let answers = commands.iter().filter(|c| matches!(c, Command::Answer { op, .. } if *op == again)).count();
    assert_eq!(answers, 1);
}

#[test]
fn while_a_write_is_in_flight_nothing_wants_to_be_woken() {
    let mut desk = Desk::new();
    desk.append(1, 20);
    desk.settle();
    desk.wait_seconds(1);
    desk.lease(&worker("a"));
    desk.append(21, 30);
    desk.step();
    desk.wait_seconds(11);
    assert_eq!(desk.batch.wake_at(desk.now()), None, "step() would do nothing");
}

#[test]
fn an_error_that_meets_a_refused_write_counts_once() {
    let mut desk = Desk::of(20);
    let a = worker("a");
    let grant = desk.lease(&a);
    desk.report(error(&grant, "disk full"));
    desk.step();
    desk.reload();
    desk.settle();
    assert_eq!(desk.store.records.ranges[&1].errors, 1);
    assert_eq!(desk.batch.message(), "disk full");
}

#[test]
fn a_held_batch_that_meets_an_approval_while_it_retries_commits() {
    let limit = FailureLimit::default();
    let mut desk =
        Desk::of_with(Spec { commit_mode: CommitMode::Manual, failure_limit: limit, ..spec() }, 10);
    let a = worker("a");
    let grant = desk.lease(&a);
    desk.report(crate::support::but(&grant, crate::support::runs(&[(2, 2)])));
    desk.settle();
    assert_eq!(desk.state(), State::Held);
    let op = desk.retry();
    desk.step();
    desk.decide(Outcome::Commit);
    desk.land();
    let commands = desk.settle();
    assert!(commands.contains(&Command::Answer { op, answer: Err(Refusal::Decided) }), "{commands:?}");
    assert_eq!(desk.state(), State::Committing);
    desk.push(Event::Attached { worker: a.clone(), held: Vec::new() });
    assert_eq!(desk.settle(), [Command::Tell { worker: a, phase: Phase::Commit }]);
}

#[test]
fn a_call_that_comes_during_the_last_write_is_answered() {
    let mut desk = Desk::new();
    desk.seal();
    while !desk.batch.state().swept {
        desk.step();
        if !desk.batch.state().swept && desk.in_flight.is_some() {
            desk.land();
        }
    }
    let op = desk.append(1, 5);
    assert_eq!(desk.land(), [Command::Ended]);
    assert_eq!(desk.step(), [Command::Answer { op, answer: Err(Refusal::Decided) }]);
}

#[test]
fn what_needs_no_write_leaves_with_the_same_step() {
    let mut desk = Desk::of(20);
    let a = worker("a");
    let grant = desk.lease(&a);
    desk.report(done(&grant));
    desk.settle();
    desk.report(done(&grant));
    assert_eq!(desk.step(), [ack(&a, grant.token, ReportResult::Durable)]);
}

#[test]
fn a_lease_that_was_never_sent_is_given_again_though_its_write_is_applied_late() {
    let mut desk = Desk::of(20);
    let a = worker("a");
    desk.ask(&a);
    desk.step();
    desk.doubt();
    desk.settle();
    desk.apply_late();
    assert!(desk.store.records.ranges[&1].lease.is_some());
    desk.ask(&a);
    assert_eq!(desk.settle(), [Command::Return { worker: a.clone(), keep: true }], "that write is refused");
    // The worker lives, and doesn't know of that lease: waiting for its end would take for ever.
    assert_eq!(desk.batch.leases().count(), 0);
    assert_eq!(desk.lease(&a).run.first, 1);
}
