//! Dealing out the sequence, and counting what comes back.

use crate::support::desk::Desk;
use crate::support::{ack, acks, but, done, grants, run, runs, spec, the_grant, worker};
use std::time::Duration;
use tranche_engine::{
    Command, CommitMode, Cutoff, Outcome, Phase, RangePhase, Reason, ReportResult, Runs, Spec, State,
};

#[test]
fn origin_2_3_a_portion_starts_right_after_the_cutoff() {
    let mut desk = Desk::of(25);
    let (a, b) = (worker("a"), worker("b"));
    assert_eq!(desk.lease(&a).run, run(1, 10));
    assert_eq!(desk.store.records.cutoff.cutoff, 10);
    assert_eq!(desk.lease(&b).run, run(11, 20));
    assert_eq!(desk.store.records.cutoff.cutoff, 20);
    assert_eq!(desk.lease(&a).run, run(21, 25), "the rest, though it is less than a portion");
    desk.ask(&b);
    assert_eq!(desk.settle(), [Command::Return { worker: b, keep: true }]);
}

#[test]
fn origin_2_3_the_cutoff_and_the_ranges_record_move_in_one_write_before_the_lease_is_sent() {
    let mut desk = Desk::of(25);
    let a = worker("a");
    desk.ask(&a);
    assert_eq!(desk.step(), [], "nothing is sent yet");
    let write = desk.in_flight.clone().expect("a write");
    assert_eq!(write.cutoff, Some(Cutoff { cutoff: 10, next_token: 1 }));
    assert!(write.undecided);
    assert_eq!(write.ranges.len(), 1);
    let range = &write.ranges[0];
    assert_eq!((range.run, range.phase), (run(1, 10), RangePhase::Leased));
    let lease = range.lease.clone().expect("a lease");
    assert_eq!((lease.worker, lease.runs), (a.clone(), runs(&[(1, 10)])));
    let grant = the_grant(&desk.land());
    assert_eq!((grant.token, grant.phase, grant.attempt), (lease.token, Phase::Stage, 0));
}

#[test]
fn origin_2_2_a_worker_queues_again_after_its_portion() {
    let mut desk = Desk::of(40);
    let (quick, slow) = (worker("quick"), worker("slow"));
    let held = desk.lease(&slow);
    for first in [11, 21, 31] {
        let grant = desk.lease(&quick);
        assert_eq!(grant.run.first, first);
        desk.report(done(&grant));
        desk.settle();
    }
    assert_eq!(desk.store.records.state.staged, 30);
    desk.report(done(&held));
    desk.settle();
    assert_eq!(desk.state(), State::Committing);
}

#[test]
fn origin_2_4_nothing_is_preassigned() {
    let mut desk = Desk::of(40);
    let (a, b) = (worker("a"), worker("b"));
    desk.attach(&a, &[]);
    desk.attach(&b, &[]);
    desk.settle();
    assert_eq!((desk.batch.leases().count(), desk.store.records.cutoff.cutoff), (0, 0));
    // Uneven work: all that one doesn't take, the other does.
    for _ in 0..4 {
        desk.does(&b);
    }
    assert!(desk.store.records.ranges.values().all(|range| range.winners[0].worker == "b"));
}

#[test]
fn requests_that_gather_share_one_write() {
    let mut desk = Desk::of(40);
    let writes = desk.store.writes;
    for id in ["a", "b", "c", "d"] {
        desk.ask(&worker(id));
    }
    let all = grants(&desk.settle());
    assert_eq!(all.iter().map(|grant| grant.run.first).collect::<Vec<_>>(), [1, 11, 21, 31]);
    assert_eq!(all.iter().map(|grant| &*grant.worker.id).collect::<Vec<_>>(), ["a", "b", "c", "d"]);
    assert_eq!(desk.store.writes, writes + 1);
}

#[test]
fn origin_1_6_counters_change_in_the_write_of_the_range_that_they_count() {
    let mut desk = Desk::of(20);
    let a = worker("a");
    let grant = desk.lease(&a);
    desk.report(but(&grant, runs(&[(3, 3), (7, 8)])));
    assert_eq!(desk.step(), []);
    let write = desk.in_flight.clone().expect("a write");
    assert_eq!((write.state.staged, write.state.failed), (7, 3));
    let range = &write.ranges[0];
    assert_eq!((range.phase, range.lease.is_none()), (RangePhase::Staged, true));
    assert_eq!(range.winners[0].runs, runs(&[(1, 2), (4, 6), (9, 10)]));
    assert_eq!(range.winners[0].receipt, format!("receipt {}", grant.token).into_bytes());
    assert_eq!(range.failed_runs, runs(&[(3, 3), (7, 8)]));
    assert_eq!(range.failure_objects, [format!("failures/{}", grant.token)]);
    assert_eq!(desk.land(), [ack(&a, grant.token, ReportResult::Durable)]);
}

#[test]
fn origin_1_6_counters_drive_the_state() {
    let mut desk = Desk::of(20);
    let a = worker("a");
    let first = desk.lease(&a);
    let second = desk.lease(&a);
    desk.report(done(&first));
    desk.settle();
    assert_eq!(desk.state(), State::Importing);
    desk.report(but(&second, runs(&[(20, 20)])));
    desk.step();
    let write = desk.in_flight.clone().expect("a write");
    assert_eq!(write.state.state, State::Committing, "in the same write as the last report");
    assert_eq!((write.state.staged, write.state.failed, write.ranges.len()), (19, 1, 1));
    let decision = write.decision.clone().expect("decided");
    assert_eq!((decision.outcome, decision.reason), (Outcome::Commit, Reason::AllAccounted));
    assert_eq!((decision.cutoff, write.undecided), (20, true));
    let commands = desk.land();
    assert!(commands.contains(&Command::Broadcast { phase: Phase::Commit }), "{commands:?}");
    assert!(commands.contains(&ack(&a, second.token, ReportResult::Durable)), "{commands:?}");
}

#[test]
fn origin_1_2_a_worker_that_looks_a_second_time_is_free_for_others() {
    let mut desk = Desk::of(20);
    let (a, b) = (worker("a"), worker("b"));
    let first = desk.lease(&a);
    desk.lease(&b);
    desk.report(done(&first));
    let commands = desk.settle();
    let leave = Command::Leave { worker: a.clone(), state: State::Importing };
    assert!(commands.contains(&leave), "all is handed out, others still work: {commands:?}");
    desk.ask(&a);
    assert_eq!(desk.settle(), [Command::Return { worker: a, keep: true }]);
}

#[test]
fn a_worker_is_not_sent_away_while_there_is_more() {
    let mut desk = Desk::of(30);
    let a = worker("a");
    let commands = desk.does(&a);
    assert!(!commands.iter().any(|command| matches!(command, Command::Leave { .. })), "{commands:?}");
}

#[test]
fn a_manual_batch_is_held_when_all_is_accounted_for() {
    let mut desk = Desk::of_with(Spec { commit_mode: CommitMode::Manual, ..spec() }, 10);
    let a = worker("a");
    desk.does(&a);
    assert_eq!(desk.state(), State::Held);
    assert_eq!(desk.store.records.decision, None);
    desk.ask(&a);
    assert_eq!(desk.settle(), [Command::Return { worker: a, keep: true }]);
}

#[test]
fn a_retry_leases_the_failed_tasks_alone_under_a_new_token() {
    let mut desk = Desk::of_with(Spec { commit_mode: CommitMode::Manual, ..spec() }, 20);
    let (a, b) = (worker("a"), worker("b"));
    let first = desk.lease(&a);
    let failed = runs(&[(2, 3), (9, 9)]);
    desk.report(but(&first, failed.clone()));
    desk.does(&a);
    assert_eq!((desk.state(), desk.store.records.state.failed), (State::Held, 3));
    desk.wait_seconds(5);
    let op = desk.retry();
    let commands = desk.settle();
    assert_eq!(commands, [Command::Answer { op, answer: Ok(tranche_engine::Answer::Retried(3)) }]);
    let state = &desk.store.records.state;
    assert_eq!((state.state, state.staged, state.failed), (State::Importing, 17, 0));
    assert_eq!(state.update_time_ms, desk.now().wall_ms, "the state changed now");
    let again = desk.lease(&b);
    assert_eq!((again.run, again.runs.clone()), (run(1, 10), failed));
    assert!(again.token > first.token);
    desk.report(but(&again, runs(&[(9, 9)])));
    desk.settle();
    assert_eq!((desk.state(), desk.store.records.state.staged), (State::Held, 19));
    let winners: Vec<_> =
        desk.store.records.ranges[&1].winners.iter().map(|w| (w.token, w.runs.clone())).collect();
    assert_eq!(winners, [(first.token, runs(&[(1, 1), (4, 8), (10, 10)])), (again.token, runs(&[(2, 3)])),]);
}

#[test]
fn a_retry_of_nothing_leaves_a_held_batch_held() {
    let mut desk = Desk::of_with(Spec { commit_mode: CommitMode::Manual, ..spec() }, 10);
    desk.does(&worker("a"));
    let op = desk.retry();
    assert_eq!(desk.settle(), [Command::Answer { op, answer: Ok(tranche_engine::Answer::Retried(0)) }]);
    assert_eq!(desk.state(), State::Held);
}

#[test]
fn a_retry_of_a_range_that_is_leased_again_is_leased_after_that() {
    let mut desk = Desk::of_with(Spec { commit_mode: CommitMode::Manual, ..spec() }, 10);
    let a = worker("a");
    let grant = desk.lease(&a);
    desk.report(but(&grant, runs(&[(1, 4)])));
    desk.settle();
    desk.retry();
    desk.settle();
    let again = desk.lease(&a);
    desk.report(but(&again, runs(&[(1, 2)])));
    desk.retry();
    desk.settle();
    let third = desk.lease(&a);
    assert_eq!(third.runs, runs(&[(1, 2)]));
    desk.report(done(&third));
    desk.settle();
    assert_eq!((desk.state(), desk.store.records.state.staged), (State::Held, 10));
}

#[test]
fn a_report_that_contradicts_its_lease_does_not_count() {
    let bad = |bend: fn(&mut tranche_engine::Report)| {
        let mut desk = Desk::of(20);
        let grant = desk.lease(&worker("a"));
        let mut report = done(&grant);
        bend(&mut report);
        desk.report(report);
        let result = acks(&desk.settle()).remove(0);
        assert!(matches!(result, ReportResult::Invalid(_)), "{result:?}");
        assert_eq!((desk.store.records.state.staged, desk.store.records.ranges[&1].errors), (0, 1));
    };
    bad(|report| report.done = 9);
    bad(|report| report.done = 11);
    bad(|report| {
        report.done = u64::MAX;
        report.failed = runs(&[(1, 1)]);
    });
    bad(|report| {
        report.done = 9;
        report.failed = runs(&[(11, 11)]);
    });
}

#[test]
fn sizes_follow_a_workers_speed_within_the_specs_bounds() {
    let mut desk = Desk::of_with(Spec { min_range: 5, max_range: 300, ..spec() }, 1_000_000);
    let (quick, slow) = (worker("quick"), worker("slow"));
    for _ in 0..8 {
        let grant = desk.lease(&quick);
        desk.report(tranche_engine::Report { elapsed: Duration::from_millis(1), ..done(&grant) });
        desk.settle();
        let grant = desk.lease(&slow);
        desk.report(tranche_engine::Report {
            elapsed: Duration::from_secs(100) * u32::try_from(grant.runs.count()).expect("few"),
            ..done(&grant)
        });
        desk.settle();
    }
    assert_eq!(desk.lease(&quick).run.len(), 300);
    assert_eq!(desk.lease(&slow).run.len(), 5);
}

#[test]
fn every_number_is_dealt_once_and_in_order_whatever_the_sizes() {
    let mut desk = Desk::of_with(Spec { min_range: 1, max_range: 97, ..spec() }, 1000);
    let mut dealt = Runs::default();
    let mut next = 1;
    for turn in 0u64.. {
        if desk.store.records.cutoff.cutoff == 1000 {
            break;
        }
        let grant = desk.lease(&worker(if turn % 3 == 0 { "a" } else { "b" }));
        assert_eq!(grant.run.first, next);
        next = grant.run.last + 1;
        dealt = dealt.union(&grant.runs);
        desk.report(tranche_engine::Report { elapsed: Duration::from_millis(turn % 7 * 50), ..done(&grant) });
        desk.settle();
    }
    assert_eq!(dealt, runs(&[(1, 1000)]));
}
