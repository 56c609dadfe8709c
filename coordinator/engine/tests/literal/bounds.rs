//! One write stays within the store's bounds, whatever gathered.

use crate::support::desk::Desk;
use crate::support::{but, done, grants, spec, worker};
use std::time::Duration;
use tranche_engine::{CommitMode, RangePhase, Runs, Segment, Spec, State};

fn of_singles(total: u64) -> Desk {
    Desk::of_with(Spec { min_range: 1, max_range: 1, max_attempts: 9, ..spec() }, total)
}

/// So many leases of one task each, all of one worker.
fn leased(desk: &mut Desk, count: usize) -> Vec<tranche_engine::Grant> {
    let a = worker("a");
    for _ in 0..count {
        desk.ask(&a);
    }
    let granted = grants(&desk.settle());
    assert_eq!(granted.len(), count);
    granted
}

#[test]
fn a_thousand_requests_are_granted_in_writes_of_bounded_size() {
    let mut desk = of_singles(2000);
    let writes = desk.store.writes;
    leased(&mut desk, 1000);
    assert_eq!(desk.store.writes - writes, 10);
}

#[test]
fn a_thousand_reports_with_large_receipts_fit() {
    let mut desk = of_singles(1000);
    for grant in leased(&mut desk, 1000) {
        let mut report = done(&grant);
        report.receipt = vec![7; 64 * 1024];
        desk.report(report);
    }
    desk.settle();
    assert_eq!(desk.store.records.state.staged, 1000);
    assert_eq!(desk.state(), State::Committing);
}

#[test]
fn large_receipts_after_a_retry_fit() {
    let mut desk =
        Desk::of_with(Spec { min_range: 2, max_range: 2, commit_mode: CommitMode::Manual, ..spec() }, 120);
    let granted = leased(&mut desk, 60);
    for grant in granted {
        desk.report(but(&grant, Runs::from_iter([grant.run.first])));
    }
    desk.settle();
    // Half of them are leased again when the next retry touches every range.
    desk.retry();
    desk.settle();
    let granted = leased(&mut desk, 60);
    for grant in &granted[..30] {
        desk.report(but(grant, grant.runs.clone()));
    }
    desk.settle();
    desk.retry();
    for grant in &granted[30..] {
        let mut report = done(grant);
        report.receipt = vec![7; 64 * 1024];
        desk.report(report);
    }
    desk.settle();
    assert_eq!(desk.store.records.state.staged, 90);
}

#[test]
fn a_worker_that_goes_with_a_thousand_leases_fits() {
    let mut desk = of_singles(1000);
    leased(&mut desk, 1000);
    desk.gone(&worker("a"));
    desk.settle();
    assert_eq!(desk.batch.leases().count(), 0);
    assert!(desk.store.records.ranges.values().all(|range| range.losses == 1 && range.lease.is_none()));
}

#[test]
fn a_worker_that_comes_back_without_its_thousand_leases_fits() {
    let mut desk = of_singles(1000);
    leased(&mut desk, 1000);
    desk.wait_seconds(1);
    desk.attach(&worker("a"), &[]);
    desk.settle();
    assert_eq!(desk.batch.leases().count(), 0);
    assert!(desk.store.records.ranges.values().all(|range| range.losses == 0 && range.lease.is_none()));
}

#[test]
fn a_thousand_leases_that_expire_at_once_fit() {
    let mut desk = of_singles(1000);
    leased(&mut desk, 1000);
    desk.take_over();
    desk.wait_seconds(11);
    desk.settle();
    assert_eq!(desk.batch.leases().count(), 0);
    assert!(desk.store.records.ranges.values().all(|range| range.losses == 1));
}

#[test]
fn a_retry_of_a_thousand_ranges_fits() {
    let mut desk =
        Desk::of_with(Spec { min_range: 1, max_range: 1, commit_mode: CommitMode::Manual, ..spec() }, 1000);
    for grant in leased(&mut desk, 1000) {
        desk.report(but(&grant, grant.runs.clone()));
    }
    desk.settle();
    assert_eq!(desk.state(), State::Held);
    desk.retry();
    desk.settle();
    assert_eq!((desk.state(), desk.store.records.state.failed), (State::Importing, 0));
    assert_eq!(leased(&mut desk, 1000).len(), 1000);
}

#[test]
fn a_thousand_ranges_are_folded_bit_by_bit() {
    let mut desk = of_singles(1000);
    for grant in leased(&mut desk, 1000) {
        desk.report(done(&grant));
    }
    desk.settle();
    while !desk.ended {
        desk.does(&worker("a"));
    }
    assert!(desk.store.records.ranges.is_empty());
    assert_eq!(desk.store.folded.committed, 1000);
}

#[test]
fn failures_of_every_second_task_fit() {
    let tasks = 16_384;
    let mut desk = Desk::of_with(Spec { min_range: tasks, max_range: tasks, ..spec() }, tasks * 40);
    let granted = leased(&mut desk, 40);
    for grant in &granted {
        desk.report(but(grant, (grant.run.first..=grant.run.last).step_by(2).collect()));
    }
    desk.settle();
    assert_eq!(desk.store.records.state.failed, tasks * 20);
    assert!(desk.store.records.ranges.values().all(|range| range.phase == RangePhase::Staged));
}

#[test]
fn the_attempts_a_range_remembers_are_bounded() {
    let mut desk = Desk::of(10);
    let a = worker("a");
    for _ in 0..600 {
        desk.lease(&a);
        desk.wait(Duration::from_millis(1));
        desk.attach(&a, &[]);
        desk.settle();
    }
    let losers = desk.store.records.ranges[&1].losers.len();
    assert!(losers <= 256, "{losers} lost attempts in one record");
    for _ in 0..5 {
        let grant = desk.lease(&a);
        desk.push(tranche_engine::Event::Release { worker: a.clone(), token: grant.token });
        desk.settle();
    }
    assert_eq!(desk.store.records.ranges[&1].losers.len(), losers, "a lease never begun leaves nothing");
}

#[test]
fn a_record_that_would_outgrow_a_write_fails_its_tasks_instead() {
    let mut desk = Desk::of_with(Spec { commit_mode: CommitMode::Manual, max_attempts: 1, ..spec() }, 10);
    let a = worker("a");
    // Ten attempts with the largest receipt, one task each.
    for left in (0..10).rev() {
        let grant = desk.lease(&a);
        let first = 11 - left;
        let failed: Runs = (first..=10).collect();
        let mut report = but(&grant, failed);
        report.receipt = vec![7; 64 * 1024];
        desk.report(report);
        desk.settle();
        desk.retry();
        desk.settle();
    }
    let weight: usize = desk.store.records.ranges[&1].winners.iter().map(|w| w.receipt.len()).sum();
    assert!(weight <= 512 * 1024, "{weight} bytes of receipts in one record");
}

#[test]
fn a_lease_carries_few_mebibytes_of_payload() {
    let mut desk = Desk::with(Spec { min_range: 20, max_range: 10_000, ..spec() });
    let op = desk.op();
    let segment = Segment { bytes: 1024 * 1024, ..crate::support::segment(1, 10) };
    desk.push(tranche_engine::Event::Appended { op, segment });
    let op = desk.op();
    let segment = Segment { bytes: 40 * 1024 * 1024, ..crate::support::segment(11, 20) };
    desk.push(tranche_engine::Event::Appended { op, segment });
    desk.seal();
    desk.settle();
    // The first ten are a mebibyte, each of the next is four.
    assert_eq!(desk.lease(&worker("a")).run.len(), 10);
    assert_eq!(desk.lease(&worker("a")).run.len(), 1);
}
