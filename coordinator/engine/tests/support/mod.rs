//! What the engine's tests share: a model of the store, the invariants, and an owner's desk.

// Each test binary uses its own part of it.
#![allow(dead_code)]

pub(crate) mod desk;
pub(crate) mod invariants;
pub(crate) mod store;

use std::time::Duration;
use tranche_engine::{
    Command, CommitMode, FailureLimit, Grant, Phase, Report, ReportError, ReportResult, Run, Runs, Segment,
    Settings, Spec, Token, WorkerKey,
};

/// Milliseconds since 1970 at which every test begins.
pub(crate) const BORN_MS: i64 = 1_700_000_000_000;
/// How long a rollback waits for all its workers to stop, before it begins without the last.
pub(crate) const STOP_TOGETHER: Duration = Duration::from_millis(50);
/// The leases' life in tests.
pub(crate) const TTL: Duration = Duration::from_secs(10);

pub(crate) fn spec() -> Spec {
    Spec {
        create_time_ms: BORN_MS,
        commit_mode: CommitMode::Auto,
        failure_limit: FailureLimit::default(),
        deadline: None,
        min_range: 10,
        max_range: 10,
        max_attempts: 3,
    }
}

pub(crate) fn settings() -> Settings {
    Settings {
        lease_ttl: TTL,
        retry_pause: Duration::from_secs(1),
        retry_pause_max: Duration::from_secs(8),
        backup_after: Duration::from_hours(1),
        late_sweep_after: Duration::ZERO,
    }
}

pub(crate) fn worker(id: &str) -> WorkerKey {
    WorkerKey::new(id, "1")
}

pub(crate) fn run(first: u64, last: u64) -> Run {
    Run::new(first, last)
}

pub(crate) fn runs(list: &[(u64, u64)]) -> Runs {
    list.iter().map(|&(first, last)| Run::new(first, last)).collect()
}

pub(crate) fn segment(first: u64, last: u64) -> Segment {
    Segment {
        run: Run::new(first, last),
        object: format!("segments/{first}"),
        bytes: (last - first + 1) * 100,
        crc32c: 7,
        offset: 0,
    }
}

/// All that was asked was done.
pub(crate) fn done(grant: &Grant) -> Report {
    let tasks = match grant.phase {
        Phase::Stage => grant.runs.count(),
        Phase::Commit => grant.attempts.iter().map(|attempt| attempt.runs.count()).sum(),
        Phase::Rollback | Phase::Publish | Phase::Sweep => 0,
    };
    Report {
        worker: grant.worker.clone(),
        token: grant.token,
        phase: grant.phase,
        done: tasks,
        failed: Runs::default(),
        failure_object: None,
        receipt: format!("receipt {}", grant.token).into_bytes(),
        error: None,
        published: false,
        residue: 0,
        elapsed: Duration::from_millis(100),
    }
}

/// It was staged but for these.
pub(crate) fn but(grant: &Grant, failed: Runs) -> Report {
    let mut report = done(grant);
    report.done -= failed.count();
    report.failure_object = Some(format!("failures/{}", grant.token));
    report.failed = failed;
    report
}

/// The handler couldn't work at all.
pub(crate) fn error(grant: &Grant, text: &str) -> Report {
    Report { done: 0, error: Some(ReportError(text.to_owned())), ..done(grant) }
}

/// A commit of the last range, which published, too.
pub(crate) fn published(grant: &Grant) -> Report {
    Report { published: true, ..done(grant) }
}

/// A sweep that found something.
pub(crate) fn found(grant: &Grant, residue: u64) -> Report {
    Report { residue, ..done(grant) }
}

pub(crate) fn grants(commands: &[Command]) -> Vec<Grant> {
    commands
        .iter()
        .filter_map(|command| match command {
            Command::Grant(grant) => Some(grant.clone()),
            _ => None,
        })
        .collect()
}

/// The only grant among the commands.
pub(crate) fn the_grant(commands: &[Command]) -> Grant {
    let all = grants(commands);
    assert_eq!(all.len(), 1, "one grant in {commands:?}");
    all.into_iter().next().expect("one")
}

pub(crate) fn ack(worker: &WorkerKey, token: Token, result: ReportResult) -> Command {
    Command::Ack { worker: worker.clone(), token, result }
}

pub(crate) fn acks(commands: &[Command]) -> Vec<ReportResult> {
    commands
        .iter()
        .filter_map(|command| match command {
            Command::Ack { result, .. } => Some(result.clone()),
            _ => None,
        })
        .collect()
}
