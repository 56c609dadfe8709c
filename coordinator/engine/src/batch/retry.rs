//! Failed tasks are put back, to be leased again.

use super::{Batch, Waiting};
use crate::event::{Answer, Command, OpId, Refusal};
use crate::ids::Now;
use crate::record::{RangePhase, State};
use crate::runs::Runs;
use std::time::Duration;

#[derive(Debug)]
pub(super) struct Retrying {
    pub(super) op: OpId,
    pub(super) next: u64,
    pub(super) tasks: u64,
}

/// A range whose failed tasks a retry put back.
#[derive(Debug)]
pub(super) struct PutBack {
    op: OpId,
    first: u64,
    failed: Runs,
}

impl Batch {
    pub(super) fn retry_failed(&mut self, op: OpId, now: Now) {
        let before = self.retried.remove(&op).unwrap_or(0);
        if self.records.decision.is_some() {
            self.after.push(Command::Answer { op, answer: Err(Refusal::Decided) });
            return;
        }
        if let Some(running) = self.retrying.take() {
            // Two at once are one: the first one's count is what was retried until now.
            self.after.push(Command::Answer { op: running.op, answer: Ok(Answer::Retried(running.tasks)) });
        }
        self.retrying = Some(Retrying { op, next: 0, tasks: before });
        self.dirty.state = true;
        self.pump_retry(now);
    }

    /// Puts failed tasks back, as many ranges as fit into one write.
    pub(super) fn pump_retry(&mut self, now: Now) {
        let Some(mut retrying) = self.retrying.take() else { return };
        while !self.dirty.full() {
            let next =
                self.records.ranges.range(retrying.next..).find(|(_, range)| !range.failed_runs.is_empty());
            let Some((&first, _)) = next else {
                self.after
                    .push(Command::Answer { op: retrying.op, answer: Ok(Answer::Retried(retrying.tasks)) });
                self.dirty.state = true;
                return;
            };
            let range = self.records.ranges.get_mut(&first).expect("found above");
            let put_back = std::mem::take(&mut range.failed_runs);
            let failed = put_back.count();
            self.put_back.push(PutBack { op: retrying.op, first, failed: put_back });
            range.failure_objects.clear();
            range.inline_failures.clear();
            range.losses = 0;
            range.errors = 0;
            if range.phase == RangePhase::Staged {
                range.phase = RangePhase::Leased;
                self.again.push_back(Waiting { first, ready_at: Duration::ZERO, attempt: 0 });
            }
            retrying.tasks += failed;
            retrying.next = first + 1;
            self.records.state.failed -= failed;
            if self.records.state.state == State::Held {
                self.records.state.state = State::Importing;
                self.records.state.update_time_ms = now.wall_ms;
            }
            self.touch(first);
        }
        self.retrying = Some(retrying);
    }

    /// A call that retried so many tasks is worked in again after its write was refused. It keeps what the
    /// records say was put back.
    pub(super) fn keep_count(&mut self, op: OpId, tasks: u64) {
        let undone = |put_back: &&PutBack| {
            put_back.op == op
                && self.records.ranges.get(&put_back.first).is_some_and(|r| r.failed_runs == put_back.failed)
        };
        let undone: u64 = self.put_back.iter().filter(undone).map(|put_back| put_back.failed.count()).sum();
        self.retried.insert(op, tasks.saturating_sub(undone));
    }
}
