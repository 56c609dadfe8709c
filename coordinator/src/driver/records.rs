//! Records as the engine sees them, and as they are stored.

use tranche_engine as engine;
use tranche_engine::{Run, Runs};
use tranche_proto::stored::{decode_runs, encode_runs};
use tranche_proto::v1;

/// The engine's part of a spec.
pub fn spec(record: &v1::SpecRecord) -> engine::Spec {
    let batch = record.batch.clone().unwrap_or_default();
    let limit = batch.failure_limit.unwrap_or_default();
    let bounds = batch.range_bounds.unwrap_or_default();
    engine::Spec {
        create_time_ms: record.create_time_ms,
        commit_mode: match batch.commit_mode() {
            v1::batch::CommitMode::Manual => engine::CommitMode::Manual,
            v1::batch::CommitMode::Auto | v1::batch::CommitMode::Unspecified => engine::CommitMode::Auto,
        },
        failure_limit: engine::FailureLimit {
            max_failed: limit.max_failed_tasks.map(i64::cast_unsigned),
            max_ratio: limit.max_failed_ratio,
            min_sample: limit.min_sample.cast_unsigned(),
        },
        deadline: batch.deadline.and_then(|deadline| deadline.try_into().ok()),
        min_range: u64::from(bounds.min_tasks.max(1).cast_unsigned()),
        max_range: u64::from(bounds.max_tasks.max(1).cast_unsigned()),
        max_attempts: batch.max_attempts.max(1).cast_unsigned(),
    }
}

/// A state as it is stored.
pub fn state_to_proto(state: engine::State) -> v1::batch::State {
    match state {
        engine::State::Importing => v1::batch::State::Importing,
        engine::State::Committing => v1::batch::State::Committing,
        engine::State::RollingBack => v1::batch::State::RollingBack,
        engine::State::Committed => v1::batch::State::Committed,
        engine::State::RolledBack => v1::batch::State::RolledBack,
        engine::State::Held => v1::batch::State::Held,
    }
}

/// A stored state record, with what only the store keeps beside.
pub fn state_record(state: &engine::StateRecord, report_uri: &str) -> v1::StateRecord {
    v1::StateRecord {
        state: state_to_proto(state.state).into(),
        sealed: state.sealed,
        total: state.total.cast_signed(),
        staged: state.staged.cast_signed(),
        failed: state.failed.cast_signed(),
        committed: state.committed.cast_signed(),
        rolled_back: state.rolled_back.cast_signed(),
        published: state.published,
        swept: state.swept,
        residue_removed: state.residue_removed.cast_signed(),
        update_time_ms: state.update_time_ms,
        end_time_ms: state.end_time_ms,
        report_uri: report_uri.to_owned(),
        decide_time_ms: state.decide_time_ms,
        cutoff: state.cutoff.cast_signed(),
        late_sweep: state.late_sweep,
    }
}

/// The engine's part of a state record; `Err` names a state that this version doesn't know.
pub fn state_from(record: &v1::StateRecord) -> Result<engine::StateRecord, String> {
    let state = match v1::batch::State::try_from(record.state) {
        Ok(v1::batch::State::Importing) => engine::State::Importing,
        Ok(v1::batch::State::Committing) => engine::State::Committing,
        Ok(v1::batch::State::RollingBack) => engine::State::RollingBack,
        Ok(v1::batch::State::Committed) => engine::State::Committed,
        Ok(v1::batch::State::RolledBack) => engine::State::RolledBack,
        Ok(v1::batch::State::Held) => engine::State::Held,
        Ok(v1::batch::State::Unspecified) | Err(_) => return Err(format!("unknown state {}", record.state)),
    };
    Ok(engine::StateRecord {
        state,
        sealed: record.sealed,
        total: record.total.cast_unsigned(),
        staged: record.staged.cast_unsigned(),
        failed: record.failed.cast_unsigned(),
        committed: record.committed.cast_unsigned(),
        rolled_back: record.rolled_back.cast_unsigned(),
        published: record.published,
        swept: record.swept,
        residue_removed: record.residue_removed.cast_unsigned(),
        update_time_ms: record.update_time_ms,
        end_time_ms: record.end_time_ms,
        decide_time_ms: record.decide_time_ms,
        cutoff: record.cutoff.cast_unsigned(),
        late_sweep: record.late_sweep,
    })
}

/// An outcome as it is stored.
pub fn outcome_to_proto(outcome: engine::Outcome) -> v1::decision::Outcome {
    match outcome {
        engine::Outcome::Commit => v1::decision::Outcome::Commit,
        engine::Outcome::Rollback => v1::decision::Outcome::Rollback,
    }
}

/// A decision as it is stored. An actor that is empty is this coordinator.
pub fn decision_record(decision: &engine::Decision, coordinator: &str) -> v1::DecisionRecord {
    let reason = match decision.reason {
        engine::Reason::AllAccounted => v1::decision::Reason::AllAccounted,
        engine::Reason::Approved => v1::decision::Reason::Approved,
        engine::Reason::Cancelled => v1::decision::Reason::Cancelled,
        engine::Reason::FailureLimit => v1::decision::Reason::FailureLimit,
        engine::Reason::Deadline => v1::decision::Reason::Deadline,
    };
    let actor = match decision.actor.as_str() {
        "" => format!("coordinator/{coordinator}"),
        actor => actor.to_owned(),
    };
    v1::DecisionRecord {
        outcome: outcome_to_proto(decision.outcome).into(),
        reason: reason.into(),
        actor,
        message: decision.message.clone(),
        cutoff: decision.cutoff.cast_signed(),
        decide_time_ms: decision.decide_time_ms,
        nonce: uuid::Uuid::new_v4().to_string(),
    }
}

/// The engine's part of a decision; `Err` names a value that this version doesn't know.
pub fn decision_from(record: &v1::DecisionRecord) -> Result<engine::Decision, String> {
    let outcome = match record.outcome() {
        v1::decision::Outcome::Commit => engine::Outcome::Commit,
        v1::decision::Outcome::Rollback => engine::Outcome::Rollback,
        v1::decision::Outcome::Unspecified => return Err(format!("unknown outcome {}", record.outcome)),
    };
    let reason = match record.reason() {
        v1::decision::Reason::AllAccounted => engine::Reason::AllAccounted,
        v1::decision::Reason::Approved => engine::Reason::Approved,
        v1::decision::Reason::Cancelled => engine::Reason::Cancelled,
        v1::decision::Reason::FailureLimit => engine::Reason::FailureLimit,
        v1::decision::Reason::Deadline => engine::Reason::Deadline,
        v1::decision::Reason::Unspecified => return Err(format!("unknown reason {}", record.reason)),
    };
    Ok(engine::Decision {
        outcome,
        reason,
        actor: record.actor.clone(),
        message: record.message.clone(),
        cutoff: record.cutoff.cast_unsigned(),
        decide_time_ms: record.decide_time_ms,
    })
}

/// A segment as it is stored.
pub fn segment_record(segment: &engine::Segment) -> v1::SegmentRecord {
    v1::SegmentRecord {
        first: segment.run.first.cast_signed(),
        last: segment.run.last.cast_signed(),
        object: segment.object.clone(),
        size: segment.bytes.cast_signed(),
        crc32c: segment.crc32c,
        offset: segment.offset.cast_signed(),
    }
}

/// A segment from its record.
pub fn segment_from(record: &v1::SegmentRecord) -> Result<engine::Segment, String> {
    Ok(engine::Segment {
        run: run_from(record.first, record.last)?,
        object: record.object.clone(),
        bytes: record.size.cast_unsigned(),
        crc32c: record.crc32c,
        offset: record.offset.cast_unsigned(),
    })
}

fn run_from(first: i64, last: i64) -> Result<Run, String> {
    if first < 1 || last < first {
        return Err(format!("{first}-{last} is no range"));
    }
    Ok(Run::new(first.cast_unsigned(), last.cast_unsigned()))
}

/// A token on the wire.
pub fn token_to_proto(token: engine::Token) -> v1::Token {
    v1::Token { epoch: token.epoch.0, counter: token.counter }
}

/// A token from the wire.
pub fn token_from(token: &v1::Token) -> engine::Token {
    engine::Token { epoch: engine::Epoch(token.epoch), counter: token.counter }
}

fn runs_to_stored(runs: &Runs) -> Vec<u64> {
    encode_runs(runs.iter().map(|run| (run.first, run.last)))
}

fn runs_from_stored(encoded: &[u64]) -> Runs {
    decode_runs(encoded).into_iter().map(|(first, last)| Run::new(first, last)).collect()
}

/// Runs on the wire.
pub fn runs_to_proto(runs: &Runs) -> Vec<v1::Range> {
    runs.iter().map(run_to_proto).collect()
}

/// A run on the wire.
pub fn run_to_proto(run: Run) -> v1::Range {
    v1::Range { first: run.first.cast_signed(), last: run.last.cast_signed() }
}

fn lease_to_stored(lease: &engine::Lease) -> v1::StageLease {
    v1::StageLease {
        token: Some(token_to_proto(lease.token)),
        worker: lease.worker.id.to_string(),
        incarnation: lease.worker.incarnation.to_string(),
        runs: runs_to_stored(&lease.runs),
    }
}

fn lease_from_stored(lease: &v1::StageLease) -> Result<engine::Lease, String> {
    Ok(engine::Lease {
        token: token(lease.token.as_ref())?,
        worker: engine::WorkerKey::new(lease.worker.as_str(), lease.incarnation.as_str()),
        runs: runs_from_stored(&lease.runs),
    })
}

fn stopping_to_stored(stopping: &engine::Stopping) -> v1::StageLease {
    v1::StageLease {
        token: Some(token_to_proto(stopping.token)),
        worker: stopping.worker.id.to_string(),
        incarnation: stopping.worker.incarnation.to_string(),
        runs: Vec::new(),
    }
}

fn stopping_from_stored(lease: &v1::StageLease) -> Result<engine::Stopping, String> {
    let engine::Lease { token, worker, .. } = lease_from_stored(lease)?;
    Ok(engine::Stopping { token, worker })
}

fn token(token: Option<&v1::Token>) -> Result<engine::Token, String> {
    token.map(token_from).ok_or_else(|| "a token is missing".to_owned())
}

/// A range as it is stored.
pub fn range_record(range: &engine::RangeRecord) -> v1::RangeRecord {
    use v1::range_record::Phase;
    let phase = match range.phase {
        engine::RangePhase::Leased => Phase::Leased,
        engine::RangePhase::Staged => Phase::Staged,
        engine::RangePhase::Committed => Phase::Committed,
        engine::RangePhase::RolledBack => Phase::RolledBack,
    };
    v1::RangeRecord {
        first: range.run.first.cast_signed(),
        last: range.run.last.cast_signed(),
        phase: phase.into(),
        lease: range.lease.as_ref().map(lease_to_stored),
        backup: range.backup.as_ref().map(lease_to_stored),
        winners: range
            .winners
            .iter()
            .map(|winner| v1::WinnerRecord {
                token: Some(token_to_proto(winner.token)),
                worker: winner.worker.clone(),
                runs: runs_to_stored(&winner.runs),
                receipt: winner.receipt.clone().into(),
            })
            .collect(),
        losers: range.losers.iter().copied().map(token_to_proto).collect(),
        stopping: range.stopping.iter().map(stopping_to_stored).collect(),
        staged: range.staged().cast_signed(),
        failed: range.failed().cast_signed(),
        failed_runs: runs_to_stored(&range.failed_runs),
        failure_objects: range.failure_objects.clone(),
        losses: range.losses.cast_signed(),
        inline_failures: range
            .inline_failures
            .iter()
            .map(|failure| v1::InlineFailure {
                runs: runs_to_stored(&failure.runs),
                code: failure.code.clone(),
                message: failure.message.clone(),
            })
            .collect(),
        errors: range.errors.cast_signed(),
    }
}

/// A range from its record; `Err` says what this version can't read.
pub fn range_from(record: &v1::RangeRecord) -> Result<engine::RangeRecord, String> {
    use v1::range_record::Phase;
    let phase = match record.phase() {
        Phase::Leased => engine::RangePhase::Leased,
        Phase::Staged => engine::RangePhase::Staged,
        Phase::Committed => engine::RangePhase::Committed,
        Phase::RolledBack => engine::RangePhase::RolledBack,
        Phase::Unspecified => return Err(format!("unknown phase {}", record.phase)),
    };
    let mut winners = Vec::with_capacity(record.winners.len());
    for winner in &record.winners {
        winners.push(engine::Winner {
            token: token(winner.token.as_ref())?,
            worker: winner.worker.clone(),
            runs: runs_from_stored(&winner.runs),
            receipt: winner.receipt.to_vec(),
        });
    }
    Ok(engine::RangeRecord {
        run: run_from(record.first, record.last)?,
        phase,
        lease: record.lease.as_ref().map(lease_from_stored).transpose()?,
        backup: record.backup.as_ref().map(lease_from_stored).transpose()?,
        winners,
        losers: record.losers.iter().map(token_from).collect(),
        stopping: record.stopping.iter().map(stopping_from_stored).collect::<Result<_, _>>()?,
        failed_runs: runs_from_stored(&record.failed_runs),
        failure_objects: record.failure_objects.clone(),
        inline_failures: record
            .inline_failures
            .iter()
            .map(|failure| engine::InlineFailure {
                runs: runs_from_stored(&failure.runs),
                code: failure.code.clone(),
                message: failure.message.clone(),
            })
            .collect(),
        losses: record.losses.cast_unsigned(),
        errors: record.errors.cast_unsigned(),
    })
}

/// The tasks of a record of a range that failed, as runs.
pub fn failed_runs(record: &v1::RangeRecord) -> Runs {
    runs_from_stored(&record.failed_runs)
}

/// The tasks of an inline failure, as runs.
pub fn inline_runs(failure: &v1::InlineFailure) -> Runs {
    runs_from_stored(&failure.runs)
}

#[cfg(test)]
mod tests;
