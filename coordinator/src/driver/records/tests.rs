//! Records survive the way into the store and back.

use super::{engine, range_from, range_record};
use tranche_engine::{Run, Runs, WorkerKey};
use tranche_proto::v1;

fn token(counter: u64) -> engine::Token {
    engine::Token { epoch: engine::Epoch(7), counter }
}

fn lease(counter: u64, worker: &str) -> engine::Lease {
    let worker = WorkerKey::new(worker, "1");
    engine::Lease { token: token(counter), worker, runs: Runs::from(Run::new(4, 9)) }
}

fn range() -> engine::RangeRecord {
    let winner = engine::Winner {
        token: token(1),
        worker: "a".into(),
        runs: Runs::from(Run::new(1, 2)),
        receipt: b"receipt".to_vec(),
    };
    let failure = engine::InlineFailure {
        runs: Runs::from(Run::new(3, 3)),
        code: "WORKER_LOST".into(),
        message: "lost".into(),
    };
    engine::RangeRecord {
        run: Run::new(1, 9),
        phase: engine::RangePhase::Leased,
        lease: Some(lease(4, "b")),
        backup: Some(lease(5, "c")),
        winners: vec![winner],
        losers: vec![token(2), token(3)],
        stopping: vec![engine::Stopping { token: token(3), worker: WorkerKey::new("d", "2") }],
        failed_runs: Runs::from(Run::new(3, 3)),
        failure_objects: vec!["failures/1".into()],
        inline_failures: vec![failure],
        losses: 2,
        errors: 1,
    }
}

#[test]
fn a_range_is_read_as_it_was_written() {
    assert_eq!(range_from(&range_record(&range())), Ok(range()));
}

#[test]
fn who_was_told_to_stop_is_named_without_tasks() {
    let told = v1::StageLease {
        token: Some(v1::Token { epoch: 7, counter: 3 }),
        worker: "d".into(),
        incarnation: "2".into(),
        runs: Vec::new(),
    };
    assert_eq!(range_record(&range()).stopping, [told]);
}

#[test]
fn a_range_whose_stopped_lease_has_no_token_is_not_read() {
    let mut record = range_record(&range());
    record.stopping[0].token = None;
    assert!(range_from(&record).is_err());
}
