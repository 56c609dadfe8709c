//! Tasks that come, also while others are staged already.

use crate::support::desk::Desk;
use crate::support::{done, run, segment, spec, worker};
use std::time::Duration;
use tranche_engine::{Answer, Command, Event, Outcome, Refusal, Spec, State};

fn answer(desk: &mut Desk, op: tranche_engine::OpId) -> Result<Answer, Refusal> {
    let commands = desk.settle();
    let found = commands.iter().find_map(|command| match command {
        Command::Answer { op: other, answer } if *other == op => Some(answer.clone()),
        _ => None,
    });
    found.expect("an answer")
}

#[test]
fn a_segment_is_acknowledged_once_it_is_durable() {
    let mut desk = Desk::new();
    let op = desk.append(1, 10);
    assert_eq!(desk.step(), []);
    let write = desk.in_flight.clone().expect("a write");
    assert_eq!((write.segments, write.state.total), (vec![segment(1, 10)], 10));
    assert_eq!(desk.land(), [Command::Answer { op, answer: Ok(Answer::Appended(10)) }]);
}

#[test]
fn a_repeated_segment_makes_no_second_task() {
    let mut desk = Desk::new();
    desk.append(1, 10);
    desk.append(11, 20);
    desk.settle();
    let op = desk.append(1, 10);
    assert_eq!(answer(&mut desk, op), Ok(Answer::Appended(20)));
    assert_eq!((desk.store.records.state.total, desk.store.records.segments.len()), (20, 2));
}

#[test]
fn a_gap_and_an_overlap_are_told_the_next_number() {
    let mut desk = Desk::new();
    desk.append(1, 10);
    desk.settle();
    let gap = desk.append(12, 20);
    assert_eq!(answer(&mut desk, gap), Err(Refusal::Gap(11)));
    let overlap = desk.append(6, 15);
    assert_eq!(answer(&mut desk, overlap), Err(Refusal::Gap(11)));
    assert_eq!(desk.store.records.state.total, 10);
}

#[test]
fn nothing_is_appended_after_the_seal_but_a_repeat_is_answered() {
    let mut desk = Desk::of(10);
    let more = desk.append(11, 12);
    assert_eq!(answer(&mut desk, more), Err(Refusal::Sealed(10)));
    let repeat = desk.append(1, 10);
    assert_eq!(answer(&mut desk, repeat), Ok(Answer::Appended(10)));
    let again = desk.seal();
    assert_eq!(answer(&mut desk, again), Ok(Answer::Sealed));
}

#[test]
fn a_seal_with_another_total_is_refused() {
    let mut desk = Desk::new();
    desk.append(1, 10);
    let op = desk.op();
    desk.push(Event::Seal { op, total: Some(11) });
    assert_eq!(answer(&mut desk, op), Err(Refusal::TotalMismatch(10)));
    assert!(!desk.store.records.state.sealed);
    let op = desk.op();
    desk.push(Event::Seal { op, total: Some(10) });
    assert_eq!(answer(&mut desk, op), Ok(Answer::Sealed));
    let op = desk.op();
    desk.push(Event::Seal { op, total: Some(9) });
    assert_eq!(answer(&mut desk, op), Err(Refusal::TotalMismatch(10)));
}

#[test]
fn nothing_is_appended_sealed_or_retried_after_the_decision() {
    let mut desk = Desk::new();
    desk.append(1, 10);
    desk.settle();
    desk.decide(Outcome::Rollback);
    desk.reload();
    let op = desk.append(11, 20);
    assert_eq!(answer(&mut desk, op), Err(Refusal::Decided));
    let op = desk.seal();
    assert_eq!(answer(&mut desk, op), Err(Refusal::Decided));
    let op = desk.retry();
    assert_eq!(answer(&mut desk, op), Err(Refusal::Decided));
}

#[test]
fn tasks_are_staged_while_others_are_still_appended() {
    let mut desk = Desk::new();
    let a = worker("a");
    desk.append(1, 10);
    desk.settle();
    assert_eq!(desk.lease(&a).run, run(1, 10), "a whole portion doesn't wait");
    desk.append(11, 14);
    desk.settle();
    desk.ask(&a);
    assert_eq!(
        desk.settle(),
        [Command::Return { worker: a.clone(), keep: true }],
        "a part waits a moment for more"
    );
    assert_eq!(desk.batch.appetite(desk.now()), 0);
    let wake = desk.batch.wake_at(desk.now()).expect("it wants to be woken");
    desk.wait(wake.saturating_sub(desk.at));
    assert_eq!(desk.batch.appetite(desk.now()), 1);
    assert_eq!(desk.lease(&a).run, run(11, 14));
}

#[test]
fn a_batch_that_is_not_sealed_is_not_complete() {
    let mut desk = Desk::new();
    let a = worker("a");
    desk.append(1, 10);
    desk.settle();
    desk.does(&a);
    assert_eq!((desk.state(), desk.store.records.state.staged), (State::Importing, 10));
    desk.seal();
    desk.settle();
    assert_eq!(desk.state(), State::Committing);
}

#[test]
fn the_seal_ends_the_wait_for_more() {
    let mut desk = Desk::new();
    desk.append(1, 4);
    desk.seal();
    desk.settle();
    assert_eq!(desk.lease(&worker("a")).run, run(1, 4));
}

#[test]
fn an_empty_sealed_batch_goes_through_every_state() {
    let mut desk = Desk::new();
    desk.seal();
    desk.step();
    assert_eq!(desk.in_flight.as_ref().map(|write| write.state.state), Some(State::Committing));
    desk.land();
    desk.step();
    let write = desk.in_flight.clone().expect("a write");
    assert_eq!((write.state.state, write.report), (State::Committed, true));
    desk.land();
    desk.step();
    let write = desk.in_flight.clone().expect("a write");
    assert!(write.state.swept && write.release);
    assert_eq!(desk.land(), [Command::Ended]);
}

#[test]
fn a_cancelled_batch_without_leases_goes_through_every_state() {
    let mut desk = Desk::new();
    desk.append(1, 10);
    desk.settle();
    desk.cancel();
    assert_eq!(desk.step().len(), 1);
    assert_eq!(desk.in_flight.as_ref().map(|write| write.state.state), Some(State::RollingBack));
    desk.land();
    desk.settle();
    assert_eq!(desk.state(), State::RolledBack);
    assert!(desk.ended);
}

#[test]
fn a_deadline_in_an_empty_queue_wakes_the_owner() {
    let mut desk = Desk::of_with(Spec { deadline: Some(Duration::from_mins(1)), ..spec() }, 10);
    let grant = desk.lease(&worker("a"));
    desk.report(done(&grant));
    desk.settle();
    assert_eq!(desk.state(), State::Committing, "in time");
    desk.wait_seconds(100);
    desk.settle();
    assert_eq!(desk.state(), State::Committing, "a decision stands");
}
