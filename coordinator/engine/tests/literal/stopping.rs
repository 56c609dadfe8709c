//! Workers that were told to stop, and an owner that is followed by another before they said that they did.

use crate::support::desk::Desk;
use crate::support::{STOP_TOGETHER, TTL, but, done, run, runs, settings, spec, worker};
use std::time::Duration;
use tranche_engine::{
    Command, CommitMode, Event, Grant, Phase, Settings, Spec, State, Stopping, Token, WorkerKey,
};

const AFTER: Duration = Duration::from_secs(3);
const MS: Duration = Duration::from_millis(1);

/// Held when all is accounted for, so that nothing but staging is leased.
fn manual() -> Spec {
    Spec { commit_mode: CommitMode::Manual, ..spec() }
}

/// `a` has range 1, and `b` a backup of it. With 20 tasks, `c` has range 11.
fn doubled(spec: Spec, total: u64) -> (Desk, Grant, Grant) {
    let mut desk = Desk::tuned(spec, Settings { backup_after: AFTER, ..settings() }).filled(total);
    let primary = desk.lease(&worker("a"));
    desk.wait(MS);
    if total > 10 {
        desk.lease(&worker("c"));
    }
    desk.wait(AFTER.saturating_sub(MS));
    let backup = desk.lease(&worker("b"));
    assert_eq!(backup.run, primary.run);
    (desk, primary, backup)
}

/// `a` was first, and `b` was told to stop.
fn beaten(spec: Spec, total: u64) -> (Desk, Grant) {
    let (mut desk, primary, backup) = doubled(spec, total);
    desk.report(done(&primary));
    desk.settle();
    (desk, backup)
}

fn stopping(desk: &Desk, first: u64) -> Vec<(Token, WorkerKey)> {
    let noted = desk.store.records.ranges[&first].stopping.iter();
    noted.map(|Stopping { token, worker }| (*token, worker.clone())).collect()
}

fn appetite(desk: &Desk) -> usize {
    desk.batch.appetite(desk.now())
}

fn acks(desk: &mut Desk, id: &str) -> Vec<Command> {
    desk.push(Event::PhaseAck { worker: worker(id) });
    desk.settle()
}

#[test]
fn the_write_that_counts_one_names_who_is_told_to_stop() {
    let (mut desk, primary, backup) = doubled(manual(), 10);
    desk.report(done(&primary));
    desk.step();
    let write = desk.in_flight.clone().expect("a write");
    let [range] = &write.ranges[..] else { panic!("{write:?}") };
    let told = Stopping { token: backup.token, worker: worker("b") };
    assert_eq!((range.stopping.clone(), range.losers.clone()), (vec![told], vec![backup.token]));
}

#[test]
fn what_was_never_sent_is_awaited_by_nobody() {
    let mut desk = Desk::tuned(manual(), Settings { backup_after: AFTER, ..settings() }).filled(10);
    let primary = desk.lease(&worker("a"));
    desk.wait(AFTER);
    desk.ask(&worker("b"));
    desk.report(done(&primary));
    desk.settle();
    assert_eq!(stopping(&desk, 1), []);
}

#[test]
fn a_new_owner_rolls_nothing_back_while_a_beaten_worker_may_stage_it() {
    let (mut desk, backup) = beaten(spec(), 20);
    desk.take_over();
    assert_eq!(stopping(&desk, 1), [(backup.token, worker("b"))]);
    assert!(desk.batch.holders().contains(&worker("b")), "it is asked whether it is seen");
    // `b` isn't attached to the new owner yet.
    desk.cancel();
    desk.settle();
    acks(&mut desk, "a");
    acks(&mut desk, "c");
    desk.wait(STOP_TOGETHER);
    assert_eq!(appetite(&desk), 1, "of range 1 something may be staged yet");
    assert_eq!(desk.lease(&worker("c")).run, run(11, 20));
    assert_eq!(appetite(&desk), 0);
    // It comes, still at it; stops; and says so.
    desk.attach(&worker("b"), &[backup.token]);
    let commands = desk.settle();
    assert!(
        commands.contains(&Command::Tell { worker: worker("b"), phase: Phase::Rollback }),
        "{commands:?}"
    );
    assert_eq!(appetite(&desk), 0);
    acks(&mut desk, "b");
    let rollback = desk.lease(&worker("b"));
    assert_eq!((rollback.phase, rollback.run), (Phase::Rollback, run(1, 10)));
    assert!(rollback.attempts.iter().any(|attempt| attempt.token == backup.token));
    desk.report(done(&rollback));
    desk.settle();
    assert_eq!((stopping(&desk, 1), desk.store.records.state.late_sweep), (vec![], false));
}

#[test]
fn a_beaten_worker_that_no_new_owner_hears_makes_it_sweep_late() {
    let (mut desk, _) = beaten(manual(), 10);
    desk.wait(TTL);
    desk.take_over();
    desk.cancel();
    desk.settle();
    desk.wait(STOP_TOGETHER);
    // A full time to live from the take-over on.
    let left = TTL.saturating_sub(STOP_TOGETHER);
    assert_eq!(desk.batch.wake_at(desk.now()), Some(desk.at + left));
    desk.wait(left.saturating_sub(MS));
    desk.settle();
    assert_eq!((appetite(&desk), desk.store.records.state.late_sweep), (0, false));
    desk.wait(MS);
    desk.settle();
    assert_eq!((appetite(&desk), desk.store.records.state.late_sweep), (1, true));
    for phase in [Phase::Rollback, Phase::Sweep] {
        let grant = desk.lease(&worker("a"));
        assert_eq!(grant.phase, phase);
        desk.report(done(&grant));
        desk.settle();
    }
    assert_eq!((desk.state(), desk.ended), (State::RolledBack, false), "it is swept once more");
    desk.does(&worker("a"));
    assert!(desk.ended);
}

#[test]
fn a_beaten_worker_that_the_new_owner_sees_is_awaited_until_it_answers() {
    let (mut desk, _) = beaten(manual(), 10);
    desk.take_over();
    desk.cancel();
    for _ in 0..3 {
        desk.wait(TTL / 2);
        desk.batch.seen(&worker("b"), desk.at);
        desk.settle();
        assert_eq!((appetite(&desk), desk.store.records.state.late_sweep), (0, false));
    }
    acks(&mut desk, "b");
    assert_eq!((appetite(&desk), desk.store.records.state.late_sweep), (1, false));
}

#[test]
fn the_end_of_a_commit_waits_at_the_new_owner_too() {
    let (mut desk, _) = beaten(spec(), 10);
    let a = worker("a");
    for _ in 0..2 {
        desk.does(&a);
    }
    assert_eq!(desk.state(), State::Committed);
    desk.take_over();
    desk.does(&a);
    assert!(!desk.ended && !desk.store.records.state.late_sweep, "swept, and not folded");
    desk.wait(TTL);
    desk.settle();
    assert!(!desk.ended && desk.store.records.state.late_sweep);
    desk.does(&a);
    assert!(desk.ended);
}

#[test]
fn a_new_life_of_a_beaten_worker_is_word_enough() {
    let (mut desk, _) = beaten(manual(), 10);
    desk.take_over();
    desk.cancel();
    desk.attach(&WorkerKey::new("b", "2"), &[]);
    desk.settle();
    assert_eq!((appetite(&desk), desk.store.records.state.late_sweep), (1, false));
}

#[test]
fn a_workers_word_takes_no_write_and_goes_with_the_next_one() {
    let (mut desk, backup) = beaten(spec(), 10);
    let writes = desk.store.writes;
    desk.push(Event::Release { worker: worker("b"), token: backup.token });
    desk.settle();
    assert_eq!((desk.store.writes, stopping(&desk, 1).len()), (writes, 1), "no write for this alone");
    desk.does(&worker("a"));
    assert_eq!((desk.store.writes, stopping(&desk, 1)), (writes + 1, vec![]), "committed");
    // Nobody is awaited by the next owner.
    desk.take_over();
    assert!(!desk.batch.holders().contains(&worker("b")));
    for _ in 0..2 {
        desk.does(&worker("a"));
    }
    assert!(desk.ended);
}

#[test]
fn a_word_that_went_with_its_owner_costs_the_next_one_a_wait() {
    let (mut desk, backup) = beaten(manual(), 10);
    desk.push(Event::Release { worker: worker("b"), token: backup.token });
    desk.settle();
    desk.take_over();
    desk.cancel();
    desk.settle();
    assert_eq!(appetite(&desk), 0);
    // It holds nothing any more, and answers what it is told.
    desk.attach(&worker("b"), &[]);
    desk.settle();
    acks(&mut desk, "b");
    assert_eq!((appetite(&desk), desk.store.records.state.late_sweep), (1, false));
}

#[test]
fn a_refused_write_does_not_forget_a_workers_word() {
    let (mut desk, backup) = beaten(manual(), 10);
    desk.push(Event::Release { worker: worker("b"), token: backup.token });
    desk.settle();
    for _ in 0..2 {
        desk.reload();
        desk.settle();
        assert!(!desk.batch.holders().contains(&worker("b")));
    }
    desk.cancel();
    desk.settle();
    assert_eq!(appetite(&desk), 1);
}

#[test]
fn a_write_that_is_found_applied_names_whom_to_await() {
    let (mut desk, primary, backup) = doubled(manual(), 10);
    desk.report(done(&primary));
    desk.step();
    desk.doubt();
    desk.apply_late();
    // Decided before the report is worked in again: only the records say that it counts.
    desk.cancel();
    desk.settle();
    assert_eq!(stopping(&desk, 1), [(backup.token, worker("b"))]);
    assert_eq!(appetite(&desk), 0);
    acks(&mut desk, "b");
    assert_eq!(appetite(&desk), 1);
}

#[test]
fn a_lease_that_is_out_after_all_is_not_awaited() {
    let (mut desk, primary, backup) = doubled(manual(), 10);
    desk.report(done(&primary));
    desk.step();
    // Neither applied nor heard: both leases are out, and the report is worked in again.
    desk.reload();
    assert_eq!(desk.batch.leases().count(), 2);
    desk.settle();
    assert_eq!(stopping(&desk, 1), [(backup.token, worker("b"))]);
}

/// All of the range failed at `a`, `b` was told to stop; retried, and its worker lost: it is split.
fn halved() -> (Desk, Grant) {
    let (mut desk, primary, backup) = doubled(Spec { max_attempts: 1, ..manual() }, 10);
    desk.report(but(&primary, runs(&[(1, 10)])));
    desk.settle();
    desk.retry();
    desk.settle();
    desk.lease(&worker("c"));
    desk.gone(&worker("c"));
    desk.settle();
    assert_eq!(desk.store.records.ranges.keys().copied().collect::<Vec<_>>(), [1, 6]);
    (desk, backup)
}

#[test]
fn both_parts_of_a_split_range_name_who_was_told_to_stop() {
    let (mut desk, backup) = halved();
    for first in [1, 6] {
        assert_eq!(stopping(&desk, first), [(backup.token, worker("b"))]);
    }
    desk.take_over();
    desk.cancel();
    desk.settle();
    assert_eq!(appetite(&desk), 0);
    acks(&mut desk, "b");
    assert_eq!(appetite(&desk), 2);
}

#[test]
fn both_parts_of_a_split_range_wait_for_a_worker_that_is_back() {
    let (mut desk, backup) = halved();
    desk.take_over();
    desk.attach(&worker("b"), &[backup.token]);
    desk.cancel();
    desk.settle();
    assert_eq!(appetite(&desk), 0);
    acks(&mut desk, "b");
    assert_eq!(appetite(&desk), 2);
}

#[test]
fn a_worker_that_is_back_with_a_lost_lease_is_named_with_the_next_write_of_its_range() {
    let mut desk = Desk::of_with(manual(), 10);
    let (a, b) = (worker("a"), worker("b"));
    let lost = desk.lease(&a);
    desk.wait(TTL);
    desk.settle();
    let again = desk.lease(&b);
    let writes = desk.store.writes;
    desk.attach(&a, &[lost.token]);
    desk.settle();
    assert_eq!((desk.store.writes, stopping(&desk, 1)), (writes, vec![]));
    desk.report(done(&again));
    desk.settle();
    assert_eq!(stopping(&desk, 1), [(lost.token, a)]);
}

/// Found by the simulation: it was about to end itself, with a write that hung.
#[test]
fn a_beaten_worker_that_is_heard_and_says_no_word_makes_it_sweep_late() {
    let (mut desk, _) = beaten(spec(), 10);
    let (a, b) = (worker("a"), worker("b"));
    for _ in 0..3 {
        desk.does(&a);
    }
    assert!(desk.state() == State::Committed && !desk.ended && !desk.store.records.state.late_sweep);
    desk.wait(TTL);
    desk.batch.seen(&b, desk.now().at);
    desk.settle();
    assert!(!desk.ended && desk.store.records.state.late_sweep);
}

/// Found by the simulation: it was paused, came back after the end, and died before it removed anything.
#[test]
fn a_beaten_worker_that_comes_back_after_the_end_makes_it_sweep_late() {
    let (mut desk, backup) = beaten(spec(), 10);
    let a = worker("a");
    for _ in 0..3 {
        desk.does(&a);
    }
    assert!(desk.state() == State::Committed && !desk.ended && !desk.store.records.state.late_sweep);
    desk.attach(&backup.worker, &[backup.token]);
    desk.settle();
    assert!(!desk.ended && desk.store.records.state.late_sweep);
}

/// Two workers stage a range each, and their batch is cancelled.
fn cancelled_while_two_stage() -> (Desk, WorkerKey, WorkerKey) {
    let mut desk = Desk::of(20);
    let (a, b) = (worker("a"), worker("b"));
    desk.lease(&a);
    desk.lease(&b);
    desk.cancel();
    desk.settle();
    (desk, a, b)
}

#[test]
fn a_rollback_begins_when_all_who_stage_have_stopped() {
    let (mut desk, a, b) = cancelled_while_two_stage();
    desk.push(Event::PhaseAck { worker: a.clone() });
    desk.ask(&a);
    assert!(desk.settle().contains(&Command::Return { worker: a.clone(), keep: true }));
    assert_eq!(desk.batch.appetite(desk.now()), 0);
    desk.push(Event::PhaseAck { worker: b });
    desk.settle();
    assert_eq!(desk.batch.appetite(desk.now()), 2);
    assert_eq!(desk.lease(&a).phase, Phase::Rollback);
}

#[test]
fn a_rollback_waits_but_a_moment_for_one_who_doesnt_stop() {
    let (mut desk, a, _) = cancelled_while_two_stage();
    desk.push(Event::PhaseAck { worker: a.clone() });
    desk.settle();
    assert_eq!(desk.batch.wake_at(desk.now()), Some(desk.at + STOP_TOGETHER));
    desk.wait(STOP_TOGETHER.saturating_sub(MS));
    assert_eq!(desk.batch.appetite(desk.now()), 0);
    desk.wait(MS);
    assert_eq!(desk.batch.appetite(desk.now()), 1, "what the other stages is left alone");
    assert_eq!(desk.lease(&a).run.first, 1);
}
