//! Owners that change, workers that come back or don't.

use crate::support::desk::Desk;
use crate::support::{ack, acks, done, grants, spec, the_grant, worker};
use std::time::Duration;
use tranche_engine::{Command, Epoch, Event, Outcome, Phase, ReportResult, State, Token};

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
fn a_lease_that_a_worker_still_holds_after_it_was_lost_is_revoked() {
    let mut desk = Desk::of(20);
    let (a, b) = (worker("a"), worker("b"));
    let lost = desk.lease(&a);
    desk.wait_seconds(11);
    desk.settle();
    let again = desk.lease(&b);
    assert_eq!(again.run, lost.run);
    desk.attach(&a, &[lost.token]);
    let commands = desk.settle();
    let [Command::Revoke { worker, token, .. }] = commands.as_slice() else { panic!("{commands:?}") };
    assert_eq!((worker, *token), (&a, lost.token));
    desk.report(done(&again));
    assert_eq!(acks(&desk.settle()), [ReportResult::Durable]);
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
    assert_eq!(desk.settle(), [Command::Return { worker: a.clone(), keep: true }]);
    let again = desk.lease(&worker("b"));
    assert_eq!(again.run.first, 1);
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
fn while_it_rolls_back_only_a_phase_ack_or_the_leases_end_frees_a_range() {
    let mut desk = Desk::of(20);
    let a = worker("a");
    let grant = desk.lease(&a);
    desk.wait_seconds(1);
    desk.cancel();
    desk.settle();
    // It stopped the lease and doesn't name it, but its handler may still be at it.
    desk.attach(&a, &[]);
    assert_eq!(desk.settle(), [Command::Tell { worker: a.clone(), phase: Phase::Rollback }]);
    assert_eq!(desk.batch.appetite(desk.now()), 0);
    desk.push(Event::PhaseAck { worker: a.clone() });
    assert_eq!(desk.settle(), [Command::Freed { worker: a.clone(), token: grant.token }]);
    assert_eq!(desk.lease(&a).phase, Phase::Rollback);
}

#[test]
fn an_owner_that_takes_over_a_batch_to_be_swept_asks_for_a_worker_at_once() {
    let mut desk = Desk::of(10);
    let a = worker("a");
    for _ in 0..3 {
        desk.does(&a);
    }
    assert_eq!(desk.state(), State::Committed);
    desk.in_flight = None;
    let settings = crate::support::settings();
    let records = desk.store.records.clone();
    let batch = tranche_engine::Batch::new(spec(), tranche_engine::Epoch(9), settings, records, desk.now());
    assert_eq!(batch.appetite(desk.now()), 1);
}

#[test]
fn a_new_owner_keeps_what_each_worker_names_and_leases_the_rest_again_at_once() {
    let mut desk = Desk::of(40);
    let (a, b, c) = (worker("a"), worker("b"), worker("c"));
    let (kept_a, lost_a) = (desk.lease(&a), desk.lease(&a));
    let (lost_b, kept_b) = (desk.lease(&b), desk.lease(&b));
    desk.take_over();
    assert_eq!(desk.batch.appetite(desk.now()), 0, "all is out, and may still be held");
    desk.attach(&a, &[kept_a.token]);
    assert_eq!(desk.settle(), [Command::Freed { worker: a.clone(), token: lost_a.token }]);
    let again = desk.lease(&c);
    assert_eq!((again.run, again.attempt), (lost_a.run, 0));
    desk.attach(&b, &[kept_b.token]);
    assert_eq!(desk.settle(), [Command::Freed { worker: b.clone(), token: lost_b.token }]);
    let again = desk.lease(&c);
    assert_eq!((again.run, again.attempt), (lost_b.run, 0));
    assert!(desk.store.records.ranges.values().all(|range| range.losses == 0));
    assert!(!desk.store.records.state.late_sweep, "nobody was lost");
    for (worker, grant) in [(&b, &kept_b), (&a, &kept_a)] {
        desk.report(done(grant));
        assert_eq!(acks(&desk.settle()), [ReportResult::Durable], "{}", worker.id);
    }
    for grant in [&lost_a, &lost_b] {
        desk.report(done(grant));
        assert_eq!(acks(&desk.settle()), [ReportResult::Stale]);
    }
}

#[test]
fn a_report_that_comes_to_a_new_owner_before_its_worker_says_what_it_holds_counts() {
    let mut desk = Desk::of(20);
    let a = worker("a");
    let (reported, held) = (desk.lease(&a), desk.lease(&a));
    desk.take_over();
    desk.report(done(&reported));
    assert_eq!(desk.settle(), [ack(&a, reported.token, ReportResult::Durable)]);
    // It was named when it was still unanswered.
    desk.attach(&a, &[reported.token, held.token]);
    let commands = desk.settle();
    assert_eq!(grants(&commands), []);
    assert_eq!(desk.store.records.state.staged, 10);
    desk.report(done(&reported));
    assert_eq!(desk.settle(), [ack(&a, reported.token, ReportResult::Durable)]);
    desk.report(done(&held));
    assert!(acks(&desk.settle()).contains(&ReportResult::Durable));
    assert_eq!(desk.state(), State::Committing);
}

#[test]
fn a_report_and_an_attach_of_the_same_moment_count_in_either_order() {
    for report_first in [true, false] {
        let mut desk = Desk::of(20);
        let a = worker("a");
        let grant = desk.lease(&a);
        desk.take_over();
        desk.wait(Duration::from_millis(5));
        if report_first {
            desk.report(done(&grant));
            desk.attach(&a, &[]);
        } else {
            desk.attach(&a, &[grant.token]);
            desk.report(done(&grant));
        }
        assert_eq!(desk.settle(), [ack(&a, grant.token, ReportResult::Durable)]);
        assert_eq!(desk.store.records.state.staged, 10);
    }
}

#[test]
fn what_a_worker_was_sent_after_it_was_asked_is_not_lost_by_its_answer() {
    let mut desk = Desk::of(30);
    let a = worker("a");
    let old = desk.lease(&a);
    desk.take_over();
    let asked = desk.now();
    desk.wait(Duration::from_millis(5));
    let new = desk.lease(&a);
    desk.batch.push(Event::Attached { worker: a.clone(), held: vec![old.token] }, asked);
    assert_eq!(desk.settle(), []);
    desk.report(done(&new));
    assert_eq!(acks(&desk.settle()), [ReportResult::Durable]);
}

#[test]
fn a_worker_that_never_answers_a_new_owner_loses_its_leases_after_their_full_time() {
    let mut desk = Desk::of(20);
    let a = worker("a");
    let grant = desk.lease(&a);
    desk.wait_seconds(9);
    desk.take_over();
    desk.wait(crate::support::TTL.saturating_sub(Duration::from_millis(1)));
    assert_eq!(desk.settle(), []);
    desk.wait(Duration::from_millis(1));
    let revoke = Command::Revoke { worker: a, token: grant.token, reason: "lease expired" };
    assert_eq!(desk.settle(), [revoke]);
    assert!(desk.store.records.state.late_sweep);
}

#[test]
fn a_lost_lease_that_a_worker_names_is_waited_for_before_its_range_is_rolled_back() {
    let mut desk = Desk::of(10);
    let (a, b) = (worker("a"), worker("b"));
    let lost = desk.lease(&a);
    desk.attach(&a, &[]);
    desk.settle();
    desk.wait_seconds(1);
    desk.lease(&b);
    desk.take_over();
    desk.attach(&a, &[lost.token]);
    desk.attach(&b, &[]);
    desk.cancel();
    desk.settle();
    assert_eq!(desk.batch.appetite(desk.now()), 0);
    desk.push(Event::PhaseAck { worker: b.clone() });
    desk.settle();
    assert_eq!(desk.batch.appetite(desk.now()), 0, "the other still stages under the lost token");
    desk.push(Event::PhaseAck { worker: a });
    desk.settle();
    assert_eq!(desk.lease(&b).phase, Phase::Rollback);
}

#[test]
fn an_owner_that_was_followed_says_nothing_of_its_followers_leases() {
    let mut desk = Desk::of(20);
    let a = worker("a");
    let grant = desk.lease(&a);
    let later = Token { epoch: Epoch(grant.token.epoch.0 + 1), counter: 1 };
    let mut report = done(&grant);
    report.token = later;
    desk.report(report);
    assert_eq!(desk.settle(), [], "it may count there");
    desk.attach(&a, &[grant.token, later]);
    assert_eq!(desk.settle(), []);
    // One of its own that isn't out is another matter.
    let mut report = done(&grant);
    report.token = Token { counter: 77, ..grant.token };
    desk.report(report);
    assert_eq!(acks(&desk.settle()), [ReportResult::Stale]);
}
