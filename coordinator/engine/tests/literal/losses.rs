//! Workers that are lost, leases that fail, tasks that kill.

use crate::support::desk::Desk;
use crate::support::{TTL, ack, acks, done, error, grants, run, runs, spec, worker};
use std::time::Duration;
use tranche_engine::{Command, Event, RangePhase, ReportResult, Spec, State};

#[test]
fn a_lost_workers_range_is_the_next_one_leased_under_a_new_token() {
    let mut desk = Desk::of(40);
    let (a, b) = (worker("a"), worker("b"));
    let lost = desk.lease(&a);
    desk.lease(&b);
    desk.gone(&a);
    assert_eq!(desk.settle(), [Command::Freed { worker: a.clone(), token: lost.token }]);
    let range = &desk.store.records.ranges[&1];
    assert_eq!((range.losses, range.losers.clone(), range.phase), (1, vec![lost.token], RangePhase::Leased));
    let again = desk.lease(&b);
    assert_eq!((again.run, again.attempt), (lost.run, 1), "before what was never leased");
    assert_ne!(again.token, lost.token);
    desk.report(done(&lost));
    assert_eq!(desk.settle(), [ack(&a, lost.token, ReportResult::Stale)]);
    desk.report(done(&again));
    assert_eq!(acks(&desk.settle()), [ReportResult::Durable]);
}

#[test]
fn a_lease_that_is_not_renewed_lapses() {
    let mut desk = Desk::of(20);
    let (a, b) = (worker("a"), worker("b"));
    let (lost, kept) = (desk.lease(&a), desk.lease(&b));
    desk.wait(TTL / 2);
    desk.batch.seen(&b, desk.at);
    desk.wait(TTL / 2);
    assert_eq!(desk.batch.wake_at(desk.now()), Some(desk.at));
    assert_eq!(
        desk.settle(),
        [Command::Revoke { worker: a.clone(), token: lost.token, reason: "lease expired" }]
    );
    assert_eq!(desk.batch.leases().map(|lease| lease.token).collect::<Vec<_>>(), [kept.token]);
    assert_eq!(desk.lease(&b).run, lost.run);
}

#[test]
fn a_lease_that_comes_back_unstarted_is_no_attempt() {
    let mut desk = Desk::of(40);
    let (a, b) = (worker("a"), worker("b"));
    let grant = desk.lease(&a);
    desk.push(Event::Release { worker: a.clone(), token: grant.token });
    assert_eq!(desk.settle(), [Command::Freed { worker: a, token: grant.token }]);
    let again = desk.lease(&b);
    assert_eq!((again.run, again.attempt), (grant.run, 0));
    assert_eq!(desk.store.records.ranges[&1].losses, 0);
}

#[test]
fn a_release_by_somebody_else_takes_nothing() {
    let mut desk = Desk::of(20);
    let (a, b) = (worker("a"), worker("b"));
    let grant = desk.lease(&a);
    desk.push(Event::Release { worker: b, token: grant.token });
    desk.settle();
    assert_eq!(desk.batch.leases().count(), 1);
}

#[test]
fn a_range_that_loses_its_workers_is_split_down_to_the_task_that_kills() {
    let mut desk = Desk::of(10);
    let mut killed = 0;
    for life in 0.. {
        let key = tranche_engine::WorkerKey::new("a", format!("{life}"));
        desk.ask(&key);
        let Some(grant) = grants(&desk.settle()).pop() else { break };
        if grant.runs.contains(7) {
            killed += 1;
            desk.gone(&key);
        } else {
            desk.report(done(&grant));
        }
        desk.settle();
        if desk.state() != State::Importing {
            break;
        }
    }
    let state = &desk.store.records.state;
    assert_eq!((state.state, state.staged, state.failed), (State::Committing, 9, 1));
    let guilty: Vec<_> = desk.store.records.ranges.values().filter(|r| r.failed() > 0).collect();
    assert_eq!(guilty.len(), 1);
    assert_eq!((guilty[0].run, guilty[0].failed_runs.clone()), (run(7, 7), runs(&[(7, 7)])));
    assert_eq!(guilty[0].inline_failures[0].code, "WORKER_LOST");
    assert!(guilty[0].inline_failures[0].message.contains("the last was a"));
    // Three lost workers for the range of ten, then one for each half: 6-10, 6-7, 7.
    assert_eq!(killed, 3 + 3);
}

/// A batch of two tasks whose range lost all the workers but one that it may.
fn suspects() -> (Desk, tranche_engine::WorkerKey) {
    let mut desk = Desk::of_with(Spec { max_attempts: 2, ..spec() }, 2);
    for life in ["1", "2"] {
        let killed = tranche_engine::WorkerKey::new("a", life);
        assert_eq!(desk.lease(&killed).run, run(1, 2));
        desk.gone(&killed);
        desk.settle();
    }
    (desk, tranche_engine::WorkerKey::new("a", "3"))
}

#[test]
fn two_tasks_one_of_which_kills_are_never_at_one_worker_together() {
    let (mut desk, a) = suspects();
    desk.ask(&a);
    desk.ask(&a);
    let commands = desk.settle();
    let granted = grants(&commands);
    assert_eq!(granted.iter().map(|grant| (grant.run, grant.alone)).collect::<Vec<_>>(), [(run(1, 1), true)]);
    assert!(commands.contains(&Command::Return { worker: a.clone(), keep: false }), "{commands:?}");
    // It isn't asked at once again, and everybody else may have the other one.
    assert_eq!(desk.batch.appetite(desk.now()), 0);
    let b = worker("b");
    let other = desk.lease(&b);
    assert_eq!((other.run, other.alone), (run(2, 2), true));
    desk.gone(&a);
    desk.report(done(&other));
    desk.settle();
    let state = &desk.store.records.state;
    assert_eq!((state.state, state.staged, state.failed), (State::Committing, 1, 1));
}

#[test]
fn the_second_of_two_suspects_waits_for_the_only_worker_to_be_done_with_the_first() {
    let (mut desk, a) = suspects();
    let first = desk.lease(&a);
    desk.ask(&a);
    assert_eq!(desk.settle(), [Command::Return { worker: a.clone(), keep: false }]);
    assert_eq!(desk.batch.appetite(desk.now()), 0);
    let again_at = desk.batch.wake_at(desk.now()).expect("it is offered again");
    desk.wait(again_at.saturating_sub(desk.at));
    assert_eq!(desk.batch.appetite(desk.now()), 1);
    desk.report(done(&first));
    desk.settle();
    assert_eq!(desk.lease(&a).run, run(2, 2));
}

#[test]
fn a_worker_that_holds_a_suspect_is_given_other_tasks_meanwhile() {
    let mut desk = Desk::with(Spec { max_attempts: 1, ..spec() });
    desk.append(1, 2);
    desk.settle();
    desk.wait_seconds(1);
    let (a, b) = (worker("a"), worker("b"));
    assert_eq!(desk.lease(&a).run, run(1, 2));
    desk.gone(&a);
    desk.append(3, 12);
    desk.seal();
    desk.settle();
    assert_eq!(desk.lease(&b).run, run(1, 1));
    let other = desk.lease(&b);
    assert_eq!((other.run.first, other.alone), (3, false));
    let c = worker("c");
    assert_eq!(desk.lease(&c).run, run(2, 2));
}

#[test]
fn a_split_after_a_retry_keeps_what_is_staged() {
    let mut desk = Desk::of_with(
        Spec { commit_mode: tranche_engine::CommitMode::Manual, max_attempts: 1, ..spec() },
        10,
    );
    let (a, b) = (worker("a"), worker("b"));
    let first = desk.lease(&a);
    desk.report(crate::support::but(&first, runs(&[(2, 2), (5, 6), (9, 9)])));
    desk.settle();
    desk.retry();
    desk.settle();
    desk.lease(&a);
    desk.gone(&a);
    desk.settle();
    let halves: Vec<_> = desk.store.records.ranges.values().map(|r| (r.run, r.missing())).collect();
    assert_eq!(halves, [(run(1, 5), runs(&[(2, 2), (5, 5)])), (run(6, 10), runs(&[(6, 6), (9, 9)]))]);
    assert_eq!(desk.store.records.state.staged, 6);
    for _ in 0..2 {
        desk.does(&b);
    }
    assert_eq!((desk.state(), desk.store.records.state.staged), (State::Held, 10));
}

#[test]
fn a_lease_that_fails_as_a_whole_is_given_again_after_a_growing_pause() {
    let mut desk = Desk::of(10);
    let a = worker("a");
    for pause in [1, 2] {
        let grant = desk.lease(&a);
        desk.report(error(&grant, "disk full"));
        let commands = desk.settle();
        assert!(commands.contains(&ack(&a, grant.token, ReportResult::Durable)), "{commands:?}");
        assert_eq!(desk.batch.appetite(desk.now()), 0);
        desk.ask(&a);
        assert_eq!(desk.settle(), [Command::Return { worker: a.clone(), keep: true }]);
        assert_eq!(desk.batch.wake_at(desk.now()), Some(desk.at + Duration::from_secs(pause)));
        desk.wait_seconds(pause);
        assert_eq!(desk.batch.appetite(desk.now()), 1);
    }
    let grant = desk.lease(&a);
    desk.report(error(&grant, "disk full"));
    desk.settle();
    let range = &desk.store.records.ranges[&1];
    assert_eq!(range.inline_failures[0].code, "STAGE_ERROR");
    assert_eq!(range.inline_failures[0].message, "disk full");
    assert_eq!((range.failed(), range.losers.len()), (10, 3));
    assert_eq!(desk.store.records.state.failed, 10);
}

#[test]
fn long_messages_are_cut_between_characters() {
    let mut desk = Desk::of_with(Spec { max_attempts: 1, ..spec() }, 10);
    let grant = desk.lease(&worker("a"));
    desk.report(error(&grant, &"é".repeat(1000)[..]));
    desk.settle();
    assert_eq!(desk.store.records.ranges[&1].inline_failures[0].message, "é".repeat(256));
}

#[test]
fn a_retry_forgets_how_often_it_failed() {
    let mut desk = Desk::of_with(
        Spec { commit_mode: tranche_engine::CommitMode::Manual, max_attempts: 1, ..spec() },
        10,
    );
    let a = worker("a");
    let grant = desk.lease(&a);
    desk.report(error(&grant, "disk full"));
    desk.settle();
    assert_eq!(desk.state(), State::Held);
    desk.retry();
    desk.settle();
    let range = &desk.store.records.ranges[&1];
    assert_eq!((range.errors, range.inline_failures.len(), range.failed()), (0, 0, 0));
    desk.does(&a);
    assert_eq!((desk.state(), desk.store.records.state.staged), (State::Held, 10));
}
