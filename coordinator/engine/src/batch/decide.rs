//! From the counters and the clock to the decision, and from state to state.

use super::{Batch, STOP_TOGETHER};
use crate::event::{Command, Refusal};
use crate::ids::Now;
use crate::record::{Decision, Outcome, Reason, State};
use crate::spec::CommitMode;

impl Batch {
    pub(super) fn decided(&mut self, decision: Decision, now: Now) {
        if self.records.decision.is_some() {
            return;
        }
        let phase = decision.outcome.phase();
        self.records.decision = Some(decision);
        self.out.push(Command::Broadcast { phase });
        self.enter_decided(now);
    }

    /// Moves on what the counters, the clock and the ranges say.
    pub(super) fn advance(&mut self, now: Now) {
        let state = self.records.state.state;
        match state {
            State::Importing | State::Held => {
                self.advance_undecided(now);
            }
            State::Committing | State::RollingBack => self.advance_decided(now),
            State::Committed | State::RolledBack => self.advance_final(),
        }
        self.open_closing(now);
        if self.records.state.state != state {
            self.records.state.update_time_ms = now.wall_ms;
            self.dirty.state = true;
        }
    }

    pub(super) fn advance_undecided(&mut self, now: Now) {
        if self.records.decision.is_some() {
            return;
        }
        let state = &self.records.state;
        let complete = state.sealed && state.staged + state.failed == state.total && self.retrying.is_none();
        if let Some(message) = self.spec.failure_limit.crossed(state.staged, state.failed, complete) {
            self.decide(Outcome::Rollback, Reason::FailureLimit, message, now);
        } else if self.spec.deadline_ms().is_some_and(|deadline| now.wall_ms >= deadline) {
            let message = format!(
                "not decided {} s after its creation",
                self.spec.deadline.unwrap_or_default().as_secs_f64()
            );
            self.decide(Outcome::Rollback, Reason::Deadline, message, now);
        } else if complete && state.state == State::Importing {
            match self.spec.commit_mode {
                CommitMode::Auto => self.decide(Outcome::Commit, Reason::AllAccounted, String::new(), now),
                CommitMode::Manual => self.records.state.state = State::Held,
            }
        }
    }

    /// Makes the decision, in the write that is being built.
    pub(super) fn decide(&mut self, outcome: Outcome, reason: Reason, message: String, now: Now) {
        let cutoff = self.records.cutoff.cutoff;
        let phase = outcome.phase();
        self.records.decision = Some(Decision {
            outcome,
            reason,
            actor: String::new(),
            message,
            cutoff,
            decide_time_ms: now.wall_ms,
        });
        self.dirty.decision = true;
        // Leases of this very write are revoked by the broadcast; the workers must hear of them first.
        self.after.push(Command::Broadcast { phase });
        self.enter_decided(now);
    }

    pub(super) fn enter_decided(&mut self, now: Now) {
        let outcome = self.records.decision.as_ref().expect("decided").outcome;
        self.records.state.state = match outcome {
            Outcome::Commit => State::Committing,
            Outcome::Rollback => State::RollingBack,
        };
        self.records.state.update_time_ms = now.wall_ms;
        self.records.state.decide_time_ms =
            self.records.decision.as_ref().map_or(now.wall_ms, |decision| decision.decide_time_ms);
        self.dirty.state = true;
        self.again.clear();
        self.lingering_since = None;
        if let Some(retrying) = self.retrying.take() {
            self.after.push(Command::Answer { op: retrying.op, answer: Err(Refusal::Decided) });
        }
        self.queue_finish(outcome, now);
        if outcome == Outcome::Rollback {
            self.stops_until = now.at + STOP_TOGETHER;
        }
    }
}
