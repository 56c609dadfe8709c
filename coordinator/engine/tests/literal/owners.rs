//! Writes that are refused, owners that change, workers that come back.

use crate::support::desk::Desk;
use crate::support::{ack, acks, done, error, grants, spec, the_grant, worker};
use std::time::Duration;
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
    assert_eq!(desk.step(), [Command::Return { worker: b.clone() }]);
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

#[test]
fn a_retry_over_several_writes_is_answered_though_its_last_write_is_refused() {
    let mut desk =
        Desk::of_with(Spec { min_range: 1, max_range: 1, commit_mode: CommitMode::Manual, ..spec() }, 150);
    let a = worker("a");
    for _ in 0..150 {
        let grant = desk.lease(&a);
        desk.report(crate::support::but(&grant, grant.runs.clone()));
        desk.settle();
    }
    assert_eq!(desk.state(), State::Held);
    let op = desk.retry();
    desk.step();
    desk.land();
    desk.step();
    assert_eq!(desk.in_flight.as_ref().map(|write| write.ranges.len()), Some(50));
    desk.reload();
    let commands = desk.settle();
    let answered: Vec<_> = commands.iter().filter(|c| matches!(c, Command::Answer { .. })).collect();
    assert!(
        matches!(answered[..], [Command::Answer { op: other, answer: Ok(_) }] if *other == op),
        "{commands:?}"
    );
    assert_eq!(desk.store.records.state.failed, 0);
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
fn a_worker_that_keeps_its_leases_after_a_take_over_may_report_them() {
    let mut desk = Desk::of(20);
    let a = worker("a");
    let grant = desk.lease(&a);
    desk.take_over();
    desk.wait(Duration::from_millis(5));
    desk.attach(&a, &[grant.token]);
    assert_eq!(grants(&desk.settle()), []);
    desk.wait_seconds(9);
    desk.report(done(&grant));
    assert_eq!(desk.settle(), [ack(&a, grant.token, ReportResult::Durable)]);
}

#[test]
fn a_lease_that_its_worker_does_not_name_after_a_take_over_goes_to_the_front() {
    let mut desk = Desk::of(30);
    let (a, b) = (worker("a"), worker("b"));
    let kept = desk.lease(&a);
    let lost = desk.lease(&a);
    // It was attached before: it names its leases at the very moment of the take-over.
    desk.take_over();
    desk.attach(&a, &[kept.token]);
    assert_eq!(desk.settle(), [Command::Freed { worker: a.clone(), token: lost.token }]);
    let again = desk.lease(&b);
    assert_eq!((again.run, again.attempt), (lost.run, 0), "it doesn't count as an attempt");
    assert!(again.token.epoch > lost.token.epoch);
    desk.report(done(&lost));
    assert_eq!(acks(&desk.settle()), [ReportResult::Stale]);
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
fn a_grant_that_is_not_sent_yet_is_not_lost_by_an_attach() {
    let mut desk = Desk::of(20);
    let a = worker("a");
    desk.ask(&a);
    desk.attach(&a, &[]);
    let grant = the_grant(&desk.settle());
    desk.report(done(&grant));
    assert_eq!(acks(&desk.settle()), [ReportResult::Durable]);
}

#[test]
fn nothing_is_granted_to_a_worker_that_is_gone() {
    let mut desk = Desk::of(20);
    let a = worker("a");
    desk.ask(&a);
    desk.gone(&a);
    let commands = desk.settle();
    assert_eq!(grants(&commands), []);
    desk.ask(&a);
    assert_eq!(desk.settle(), [Command::Return { worker: a.clone() }]);
    let again = desk.lease(&worker("b"));
    assert_eq!(again.run.first, 1);
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
fn a_new_life_of_a_worker_ends_the_old_one() {
    let mut desk = Desk::of(20);
    let a = worker("a");
    let grant = desk.lease(&a);
    let second = tranche_engine::WorkerKey::new("a", "2");
    desk.attach(&second, &[]);
    desk.settle();
    let again = desk.lease(&second);
    assert_eq!((again.run, again.attempt), (grant.run, 1));
    assert_eq!(desk.store.records.ranges[&1].losses, 1);
}

#[test]
fn an_owner_that_takes_over_an_undecided_batch_with_all_counted_decides() {
    let mut desk = Desk::of(10);
    let a = worker("a");
    let grant = desk.lease(&a);
    desk.report(done(&grant));
    desk.step();
    desk.apply_unheard();
    let commands = desk.take_over();
    assert_eq!(commands[0], Command::Broadcast { phase: Phase::Commit });
    assert_eq!(desk.state(), State::Committing);
}

#[test]
fn an_owner_that_finds_a_decision_enters_it() {
    let mut desk = Desk::of(20);
    desk.lease(&worker("a"));
    desk.decide(Outcome::Rollback);
    let commands = desk.take_over();
    assert_eq!(commands, [Command::Broadcast { phase: Phase::Rollback }]);
    assert_eq!(desk.state(), State::RollingBack);
}

#[test]
fn an_owner_of_a_swept_batch_gives_the_lock_back() {
    let mut desk = Desk::with(spec());
    desk.seal();
    desk.settle();
    assert!(desk.ended);
    desk.ended = false;
    desk.store.released = false;
    assert_eq!(desk.take_over(), [Command::Ended]);
    assert!(desk.store.released);
}

#[test]
fn the_engine_asks_for_no_more_requests_than_it_has_use_for() {
    let mut desk = Desk::of(20);
    assert_eq!(desk.batch.appetite(desk.now()), 2);
    desk.ask(&worker("a"));
    assert_eq!(desk.batch.appetite(desk.now()), 1, "one is on its way");
    desk.step();
    desk.ask(&worker("b"));
    assert_eq!(desk.batch.appetite(desk.now()), 0, "one is in flight, one waits");
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
fn a_decision_is_worked_in_before_what_came_before_it() {
    let mut desk = Desk::of(20);
    let a = worker("a");
    let grant = desk.lease(&a);
    desk.ask(&a);
    desk.report(done(&grant));
    desk.cancel();
    let commands = desk.settle();
    assert_eq!(commands[0], Command::Broadcast { phase: Phase::Rollback });
    assert_eq!(grants(&commands).len(), 0, "nothing is staged after the decision: {commands:?}");
    assert_eq!(acks(&commands), [ReportResult::Decided]);
    assert_eq!(desk.store.records.cutoff.cutoff, 10);
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
