//! Carries out the engine's commands.

use super::{Driver, records};
use crate::dispatch::{Delivery, Dispatch};
use crate::manifest::Objects;
use crate::store::keys::BatchKey;
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tranche_engine::{Command, Grant, Phase, Report, ReportError, ReportResult, Runs, Token, WorkerKey};
use tranche_proto::{TaskList, v1};

/// Bytes of tasks in one frame of a lease; more go into the next frame.
pub(crate) const FRAME_BYTES: usize = 1024 * 1024;

/// Staging leases whose tasks are being read. Each ends with the lease sent, or with a report of failure.
#[derive(Default)]
pub(super) struct Deliveries {
    tasks: JoinSet<Option<Report>>,
}

impl Deliveries {
    /// Waits for a delivery that failed; its lease is reported as failed.
    pub(super) async fn failed(&mut self) -> Report {
        loop {
            match self.tasks.join_next().await {
                Some(Ok(Some(report))) => return report,
                Some(Ok(None) | Err(_)) => {}
                None => std::future::pending().await,
            }
        }
    }

    pub(super) async fn abort(&mut self) {
        self.tasks.shutdown().await;
    }
}

impl Driver {
    pub(super) fn act(&mut self, commands: Vec<Command>) {
        let dispatch = self.shared.dispatch.clone();
        for command in commands {
            match command {
                Command::Grant(grant) => {
                    if grant.publish || grant.phase == Phase::Publish {
                        self.begin_report();
                    }
                    self.deliver(grant);
                }
                Command::Ack { worker, token, result } => {
                    self.shared.metrics.batches.report(&result);
                    dispatch.ack(&worker, ack(token, result));
                }
                Command::Broadcast { phase } => {
                    tracing::info!(batch.id = %self.key, ?phase, "decided");
                    dispatch.broadcast(&self.key, phase_to_proto(phase));
                }
                Command::Tell { worker, phase } => dispatch.tell(&worker, &self.key, phase_to_proto(phase)),
                Command::Revoke { worker, token, reason } => {
                    tracing::info!(batch.id = %self.key, worker.id = %worker.id, %token, reason, "lease revoked");
                    self.shared.metrics.batches.revoked.inc();
                    dispatch.revoke(&worker, &self.key, token, reason);
                }
                Command::Freed { worker, token } => dispatch.freed(&worker, token),
                Command::Leave { worker, state } => {
                    dispatch.leave(&worker, &self.key, records::state_to_proto(state));
                }
                Command::Return { worker, keep } => {
                    dispatch.give_back(&self.key, &self.handler, &worker, keep);
                }
                Command::Answer { op, answer } => {
                    if let Some(reply) = self.ops.remove(&op) {
                        // A client that went away misses its answer; what it asked for is done.
                        let _ = reply.send(answer);
                    }
                }
                Command::Ended => self.ended = true,
            }
        }
    }

    fn deliver(&mut self, grant: Grant) {
        let head = self.head(&grant);
        let key = self.key.clone();
        let dispatch = self.shared.dispatch.clone();
        if grant.phase != Phase::Stage {
            let delivery =
                Delivery { batch: key, token: grant.token, phase: grant.phase, frames: vec![head], bytes: 0 };
            dispatch.grant(&grant.worker, delivery);
            return;
        }
        let segments = self.segments(&grant.runs);
        let objects = self.shared.objects.clone();
        self.deliveries.tasks.spawn(async move {
            let (worker, token, batch) = (grant.worker.clone(), grant.token, key.clone());
            match stage(&objects, &dispatch, key, head, &segments, grant).await {
                Ok(()) => None,
                Err(error) => {
                    dispatch.undelivered(&worker, &batch);
                    Some(undeliverable(worker, token, format!("tasks can't be read: {error}")))
                }
            }
        });
    }

    /// The records of the segments that hold these tasks.
    fn segments(&self, runs: &Runs) -> Vec<v1::SegmentRecord> {
        let Some((first, last)) = runs.iter().next().zip(runs.iter().last()) else { return Vec::new() };
        let all = &self.batch.records().segments;
        let begin = all.range(..=first.first).next_back().map_or(0, |(begin, _)| *begin);
        all.range(begin..=last.last).map(|(_, segment)| records::segment_record(segment)).collect()
    }

    fn head(&self, grant: &Grant) -> v1::Grant {
        let target =
            self.spec.batch.as_ref().and_then(|batch| batch.targets.first()).cloned().unwrap_or_default();
        v1::Grant {
            batch: self.key.to_string(),
            handler: target.handler,
            params: target.params,
            token: Some(records::token_to_proto(grant.token)),
            phase: phase_to_proto(grant.phase).into(),
            range: Some(records::run_to_proto(grant.run)),
            runs: records::runs_to_proto(&grant.runs),
            tasks: Bytes::new(),
            more: false,
            attempts: grant
                .attempts
                .iter()
                .map(|attempt| v1::StagedAttempt {
                    token: Some(records::token_to_proto(attempt.token)),
                    runs: records::runs_to_proto(&attempt.runs),
                    receipt: attempt.receipt.clone().into(),
                })
                .collect(),
            attempt: grant.attempt.cast_signed(),
            batch_create_time_ms: self.spec.create_time_ms,
            staged: grant.staged.cast_signed(),
            publish: grant.publish,
            alone: grant.alone,
            backlog: 0,
            traceparent: self.spec.traceparent.clone(),
        }
    }
}

/// Reads the tasks of a lease and sends it.
async fn stage(
    objects: &Objects,
    dispatch: &Arc<Dispatch>,
    batch: BatchKey,
    head: v1::Grant,
    segments: &[v1::SegmentRecord],
    grant: Grant,
) -> Result<(), crate::error::Error> {
    let runs: Vec<(u64, u64)> = grant.runs.iter().map(|run| (run.first, run.last)).collect();
    let mut lists = in_frames(objects.read_tasks(segments, &runs).await?, FRAME_BYTES);
    let bytes = lists.iter().map(|list| list.bytes().len() as u64).sum();
    let rest = lists.split_off(lists.len().min(1));
    let tasks = lists.first().map(TaskList::bytes).cloned().unwrap_or_default();
    let (batch_name, of) = (head.batch.clone(), (head.token, head.phase));
    let mut frames = vec![v1::Grant { tasks, ..head }];
    frames.extend(rest.iter().map(|list| v1::Grant {
        batch: batch_name.clone(),
        token: of.0,
        phase: of.1,
        tasks: list.bytes().clone(),
        ..v1::Grant::default()
    }));
    let last = frames.len() - 1;
    frames[..last].iter_mut().for_each(|frame| frame.more = true);
    // Not on its way: the lease's time runs out, or the worker's next word says that it doesn't hold it.
    dispatch.grant(&grant.worker, Delivery { batch, token: grant.token, phase: grant.phase, frames, bytes });
    Ok(())
}

/// Cuts tasks into frames of at most `most` bytes, or of one larger task. A frame that comes from one segment shares
/// its memory.
pub(crate) fn in_frames(pieces: Vec<TaskList>, most: usize) -> Vec<TaskList> {
    let mut frames: Vec<TaskList> = Vec::new();
    for piece in pieces {
        let mut from = 0;
        while from < piece.len() {
            let rest = piece.slice(from..piece.len());
            let room = frames.last().map_or(0, |frame| most.saturating_sub(frame.bytes().len()));
            let fitting = rest.fitting(room);
            if fitting > 0
                && let Some(frame) = frames.last_mut()
            {
                frame.append(&rest.slice(0..fitting));
                from += fitting;
            } else {
                let fitting = rest.fitting(most).max(1);
                frames.push(rest.slice(0..fitting));
                from += fitting;
            }
        }
    }
    frames
}

fn undeliverable(worker: WorkerKey, token: Token, message: String) -> Report {
    Report {
        worker,
        token,
        phase: Phase::Stage,
        done: 0,
        failed: Runs::default(),
        failure_object: None,
        receipt: Vec::new(),
        error: Some(ReportError(message)),
        published: false,
        residue: 0,
        elapsed: Duration::ZERO,
    }
}

fn ack(token: Token, result: ReportResult) -> v1::ReportAck {
    use v1::report_ack::Result;
    let (result, message) = match result {
        ReportResult::Durable => (Result::Durable, String::new()),
        ReportResult::Stale => (Result::Stale, "the lease was given to another".to_owned()),
        ReportResult::Decided => (Result::Decided, "the batch was decided before".to_owned()),
        ReportResult::Invalid(message) => (Result::Invalid, message),
    };
    v1::ReportAck { token: Some(records::token_to_proto(token)), result: result.into(), message }
}

/// A phase on the wire.
pub(crate) fn phase_to_proto(phase: Phase) -> v1::Phase {
    match phase {
        Phase::Stage => v1::Phase::Stage,
        Phase::Commit => v1::Phase::Commit,
        Phase::Rollback => v1::Phase::Rollback,
        Phase::Publish => v1::Phase::Publish,
        Phase::Sweep => v1::Phase::Sweep,
    }
}
