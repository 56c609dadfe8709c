//! A worker that was lost may wake up when its batch has long ended.

use crate::support::desk::Desk;
use crate::support::{TTL, done, found, settings, spec, worker};
use std::time::Duration;
use tranche_engine::{Command, Event, Phase, Settings, State};

const LATER: Duration = Duration::from_mins(1);
const MS: Duration = Duration::from_millis(1);

fn desk() -> Desk {
    Desk::tuned(spec(), Settings { late_sweep_after: LATER, ..settings() }).filled(10)
}

fn late(desk: &Desk) -> bool {
    desk.store.records.state.late_sweep
}

/// `a` lost a lease by silence, and `b` did the work: committed, and swept once.
fn committed() -> Desk {
    let mut desk = desk();
    desk.lease(&worker("a"));
    desk.wait(TTL);
    desk.settle();
    for _ in 0..4 {
        desk.does(&worker("b"));
    }
    assert_eq!((desk.state(), desk.ended), (State::Committed, false));
    desk
}

/// The same, cancelled.
fn rolled_back() -> Desk {
    let mut desk = desk();
    desk.lease(&worker("a"));
    desk.wait(TTL);
    desk.settle();
    desk.cancel();
    desk.settle();
    for _ in 0..2 {
        desk.does(&worker("b"));
    }
    assert_eq!((desk.state(), desk.ended), (State::RolledBack, false));
    desk
}

#[test]
fn a_lease_that_expires_makes_the_batch_be_swept_late_in_the_same_write() {
    let mut desk = desk();
    desk.lease(&worker("a"));
    desk.wait(TTL.saturating_sub(MS));
    desk.settle();
    assert!(!late(&desk));
    desk.wait(MS);
    desk.step();
    let write = desk.in_flight.clone().expect("a write");
    assert_eq!((write.state.late_sweep, write.ranges[0].losses), (true, 1));
}

#[test]
fn a_worker_that_is_over_or_gives_back_is_no_reason() {
    let (a, b) = (worker("a"), worker("b"));
    let mut desk = desk();
    desk.lease(&a);
    desk.gone(&a);
    desk.settle();
    desk.lease(&b);
    desk.attach(&tranche_engine::WorkerKey::new("b", "2"), &[]);
    desk.settle();
    let grant = desk.lease(&worker("c"));
    desk.push(Event::Release { worker: worker("c"), token: grant.token });
    desk.settle();
    assert_eq!((late(&desk), desk.store.records.ranges[&1].losses), (false, 2));
    for _ in 0..4 {
        desk.does(&worker("c"));
    }
    assert!(desk.ended);
}

#[test]
fn a_commit_is_swept_again_later_and_only_then_folded() {
    let mut desk = committed();
    let b = worker("b");
    let due = desk.at + LATER;
    assert_eq!((desk.batch.appetite(desk.now()), desk.batch.wake_at(desk.now())), (0, Some(due)));
    desk.wait(LATER.saturating_sub(MS));
    assert_eq!(desk.batch.appetite(desk.now()), 0);
    desk.ask(&b);
    assert_eq!(desk.settle(), [Command::Return { worker: b.clone(), keep: true }]);
    desk.wait(MS);
    assert_eq!(desk.batch.appetite(desk.now()), 1);
    let sweep = desk.lease(&b);
    assert_eq!(sweep.phase, Phase::Sweep);
    desk.report(found(&sweep, 1));
    desk.settle();
    assert!(late(&desk) && !desk.ended, "until nothing is found");
    desk.does(&b);
    assert!(!late(&desk) && desk.ended);
    assert_eq!(desk.store.records.state.residue_removed, 0);
}

#[test]
fn what_a_rollbacks_late_sweep_finds_is_counted() {
    let mut desk = rolled_back();
    let b = worker("b");
    desk.wait(LATER.saturating_sub(MS));
    assert_eq!(desk.batch.appetite(desk.now()), 0);
    desk.wait(MS);
    let sweep = desk.lease(&b);
    desk.report(found(&sweep, 3));
    desk.settle();
    desk.does(&b);
    assert!(desk.ended);
    assert_eq!((desk.state(), desk.store.records.state.residue_removed), (State::RolledBack, 3));
}

#[test]
fn a_take_over_does_not_begin_the_wait_again() {
    let mut desk = rolled_back();
    desk.wait(LATER / 2);
    assert_eq!(desk.take_over(), []);
    assert_eq!(desk.batch.wake_at(desk.now()), Some(desk.at + LATER / 2));
    desk.wait(LATER / 2);
    desk.does(&worker("b"));
    assert!(desk.ended);
}

#[test]
fn after_a_take_over_a_commit_is_swept_at_once_and_later_all_the_same() {
    let mut desk = committed();
    desk.wait(LATER / 2);
    desk.take_over();
    // Whether it was swept isn't recorded; to do it twice harms nothing.
    desk.does(&worker("b"));
    assert!(late(&desk) && !desk.ended);
    assert_eq!(desk.batch.wake_at(desk.now()), Some(desk.at + LATER / 2));
    desk.wait(LATER / 2);
    desk.does(&worker("b"));
    assert!(desk.ended);
}

#[test]
fn a_refused_write_forgets_neither_the_wish_nor_the_wait() {
    let mut desk = rolled_back();
    desk.wait(LATER / 2);
    desk.reload();
    assert_eq!(desk.settle(), []);
    assert!(late(&desk));
    assert_eq!(desk.batch.wake_at(desk.now()), Some(desk.at + LATER / 2));
}

#[test]
fn without_a_wait_it_happens_at_once() {
    let mut desk = Desk::of(10);
    desk.lease(&worker("a"));
    desk.wait(TTL);
    desk.settle();
    desk.cancel();
    desk.settle();
    for _ in 0..2 {
        desk.does(&worker("b"));
    }
    assert_eq!((desk.state(), desk.batch.appetite(desk.now())), (State::RolledBack, 1));
    desk.does(&worker("b"));
    assert!(desk.ended);
}

#[test]
fn a_lease_that_expires_after_the_cancel_is_a_reason_too() {
    let mut desk = desk();
    let grant = desk.lease(&worker("a"));
    desk.cancel();
    desk.settle();
    assert_eq!(desk.batch.appetite(desk.now()), 0);
    desk.wait(TTL);
    let commands = desk.settle();
    let revoke = Command::Revoke { worker: worker("a"), token: grant.token, reason: "lease expired" };
    assert_eq!(commands, [revoke]);
    assert!(late(&desk));
    assert_eq!(desk.lease(&worker("b")).phase, Phase::Rollback);
}

#[test]
fn a_late_sweep_that_its_worker_loses_is_given_to_another() {
    let mut desk = rolled_back();
    desk.wait(LATER);
    let sweep = desk.lease(&worker("b"));
    desk.gone(&worker("b"));
    desk.settle();
    let again = desk.lease(&worker("c"));
    assert_eq!((again.phase, again.run), (Phase::Sweep, sweep.run));
    desk.report(done(&again));
    desk.settle();
    assert!(desk.ended);
}
