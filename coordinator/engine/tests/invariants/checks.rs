//! The checks themselves can fail: writes are tampered with, and the check that is meant fires.

use crate::support::desk::Desk;
use crate::support::{but, done, invariants, runs, worker};
use tranche_engine::{RangePhase, State, Token, Write};

/// A desk with a write in flight that counts a report: 8 tasks of 1-10 staged, 2 failed.
fn counting() -> Desk {
    let mut desk = Desk::of(20);
    let (a, b) = (worker("a"), worker("b"));
    let grant = desk.lease(&a);
    let other = desk.lease(&b);
    desk.report(done(&other));
    desk.settle();
    desk.report(but(&grant, runs(&[(3, 4)])));
    desk.step();
    desk
}

/// What the checks say of the write after `tamper`.
fn said(tamper: impl FnOnce(&mut Write)) -> String {
    let desk = counting();
    let mut write = desk.in_flight.clone().expect("a write");
    tamper(&mut write);
    match desk.store.apply(&write) {
        Err(text) => text,
        Ok(Err(refused)) => format!("{refused:?}"),
        Ok(Ok(after)) => invariants::check(&desk.store, &after).err().unwrap_or_default(),
    }
}

#[test]
fn an_honest_write_passes() {
    assert_eq!(said(|_| {}), "");
}

#[test]
fn a_task_counted_twice_is_i1() {
    assert!(said(|write| write.ranges[0].failed_runs = runs(&[(1, 2)])).starts_with("I1"));
}

#[test]
fn a_range_called_staged_with_tasks_missing_is_i1() {
    assert!(said(|write| write.ranges[0].failed_runs = runs(&[(3, 3)])).starts_with("I1"));
}

#[test]
fn a_cutoff_that_moves_alone_is_i2() {
    let text = said(|write| {
        let mut cutoff = tranche_engine::Cutoff { cutoff: 15, next_token: 9 };
        cutoff.cutoff = 15;
        write.cutoff = Some(cutoff);
    });
    assert!(text.starts_with("I2"), "{text}");
}

#[test]
fn a_range_over_its_neighbour_is_i2() {
    let text = said(|write| {
        let mut range = write.ranges[0].clone();
        range.run = tranche_engine::Run::new(5, 10);
        range.phase = RangePhase::Leased;
        range.winners.clear();
        range.failed_runs = runs(&[]);
        write.ranges.push(range);
    });
    assert!(text.starts_with("I2"), "{text}");
}

#[test]
fn a_jump_in_the_table_is_i3() {
    assert!(said(|write| write.state.state = State::Committed).starts_with("I3"));
}

#[test]
fn a_changed_decision_is_i3() {
    let text = said(|write| {
        if let Some(decision) = &mut write.decision {
            decision.outcome = tranche_engine::Outcome::Rollback;
        }
    });
    assert!(text.starts_with("I3"), "{text}");
}

#[test]
fn a_counter_that_lies_is_i5() {
    assert!(said(|write| write.state.staged += 1).starts_with('I'));
    let text = said(|write| {
        write.state.rolled_back += 1;
    });
    assert!(text.starts_with("I5"), "{text}");
}

#[test]
fn a_report_without_its_lease_is_i6() {
    let text = said(|write| {
        let token = write.ranges[0].winners[0].token;
        write.ranges[0].winners[0].token = Token { counter: token.counter + 99, ..token };
    });
    assert!(text.starts_with("I6"), "{text}");
}

#[test]
fn a_forgotten_attempt_is_i7() {
    let text = said(|write| {
        let mut other = write.ranges[0].clone();
        other.run = tranche_engine::Run::new(11, 20);
        other.winners.clear();
        other.failed_runs = runs(&[(11, 20)]);
        write.ranges.push(other);
        write.state.staged -= 10;
        write.state.failed += 10;
    });
    assert!(text.starts_with("I7"), "{text}");
}

#[test]
fn an_overwritten_segment_is_i8() {
    let text = said(|write| write.segments.push(crate::support::segment(1, 20)));
    assert!(text.starts_with("I8"), "{text}");
}
