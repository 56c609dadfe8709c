//! Failed tasks are put back, to be leased again.

use super::{Batch, Waiting};
use crate::event::{Answer, Command, OpId, Refusal};
use crate::ids::Now;
use crate::record::{RangePhase, State};
use std::time::Duration;

#[derive(Debug)]
pub(super) struct Retrying {
    pub(super) op: OpId,
    pub(super) next: u64,
    pub(super) tasks: u64,
}

impl Batch {
    pub(super) fn retry_failed(&mut self, op: OpId, now: Now) {
        if self.records.decision.is_some() {
            self.after.push(Command::Answer { op, answer: Err(Refusal::Decided) });
            return;
        }
        if let Some(running) = self.retrying.take() {
            // Two at once are one: the first one's count is what was retried until now.
            self.after.push(Command::Answer { op: running.op, answer: Ok(Answer::Retried(running.tasks)) });
        }
        self.retrying = Some(Retrying { op, next: 0, tasks: 0 });
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
            let failed = range.failed();
            range.failed_runs = crate::Runs::default();
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
}
