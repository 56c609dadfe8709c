//! Workers of a batch: who lives, who left, whose leases lapse.

use super::{Batch, LiveLease, Waiting};
use crate::Phase;
use crate::event::Command;
use crate::ids::{Now, Token, WorkerKey};
use crate::record::{Outcome, State};
use crate::size::Pace;
use std::time::Duration;

#[derive(Clone, Debug)]
pub(super) struct WorkerState {
    pub(super) seen: Duration,
    pub(super) pace: Pace,
    pub(super) gone: bool,
    /// It was told that the batch has nothing more for it in this state.
    pub(super) told_to_leave: Option<State>,
}

impl WorkerState {
    pub(super) fn new(seen: Duration) -> Self {
        Self { seen, pace: Pace::default(), gone: false, told_to_leave: None }
    }
}

impl Batch {
    pub(super) fn expires_at(&self, lease: &LiveLease) -> Duration {
        let seen = self.workers.get(&lease.worker).map_or(Duration::ZERO, |worker| worker.seen);
        lease.granted_at.max(seen) + self.settings.lease_ttl
    }

    fn leases_of(&self, mut which: impl FnMut(&Token, &LiveLease) -> bool) -> Vec<Token> {
        self.leases.iter().filter(|(token, lease)| which(token, lease)).map(|(token, _)| *token).collect()
    }

    /// Leases that nobody renewed go back.
    pub(super) fn expire(&mut self, now: Now) {
        for token in self.leases_of(|_, lease| self.expires_at(lease) <= now.at) {
            let worker = self.leases[&token].worker.clone();
            self.out.push(Command::Revoke { worker, token, reason: "lease expired" });
            self.lose(token, now);
        }
    }

    pub(super) fn gone(&mut self, worker: &WorkerKey, now: Now) {
        if let Some(state) = self.workers.get_mut(worker) {
            state.gone = true;
        }
        for token in self.leases_of(|_, lease| lease.worker == *worker) {
            self.out.push(Command::Freed { worker: worker.clone(), token });
            self.lose(token, now);
        }
    }

    /// The worker was lost with the lease.
    fn lose(&mut self, token: Token, now: Now) {
        let Some(lease) = self.leases.remove(&token) else { return };
        match lease.phase {
            // After a rollback was decided the range waits for just this.
            Phase::Stage if self.records.decision.is_some() => {}
            Phase::Stage => self.lose_stage(lease.run.first, &lease.worker, now),
            Phase::Commit | Phase::Rollback | Phase::Publish | Phase::Sweep => self.requeue(&lease, now),
        }
    }

    /// A lease that was not begun, or that may be repeated, goes back to the front.
    fn requeue(&mut self, lease: &LiveLease, now: Now) {
        let waiting = Waiting { first: lease.run.first, ready_at: now.at, attempt: lease.attempt };
        match lease.phase {
            Phase::Stage if self.records.decision.is_some() => {}
            Phase::Stage => {
                if let Some(range) = self.records.ranges.get_mut(&waiting.first) {
                    range.drop_lease();
                }
                self.touch(waiting.first);
                self.again.push_front(waiting);
            }
            Phase::Commit | Phase::Rollback => self.finish.push_front(waiting),
            phase @ (Phase::Publish | Phase::Sweep) => {
                self.closing = super::Closing::Ready { phase, ready_at: now.at, attempt: lease.attempt };
            }
        }
    }

    pub(super) fn release(&mut self, worker: &WorkerKey, token: Token, now: Now) {
        if self.leases.get(&token).is_some_and(|lease| lease.worker == *worker) {
            let lease = self.leases.remove(&token).expect("found above");
            self.requeue(&lease, now);
        }
        self.out.push(Command::Freed { worker: worker.clone(), token });
    }

    /// Nothing of the batch is staged there any more.
    pub(super) fn phase_ack(&mut self, worker: &WorkerKey) {
        for token in self.leases_of(|_, lease| lease.worker == *worker && lease.phase == Phase::Stage) {
            if self.records.decision.is_some() {
                self.leases.remove(&token);
                self.out.push(Command::Freed { worker: worker.clone(), token });
            }
        }
    }

    /// The worker holds these leases, and none that was sent to it before and isn't among them. Older
    /// lives of the same worker are over.
    pub(super) fn attached(&mut self, worker: &WorkerKey, held: &[Token], at: Now, now: Now) {
        let before: Vec<WorkerKey> = self
            .workers
            .keys()
            .filter(|key| key.id == worker.id && key.incarnation != worker.incarnation)
            .cloned()
            .collect();
        for older in before {
            self.gone(&older, now);
        }
        let state = self.workers.entry(worker.clone()).or_insert_with(|| WorkerState::new(at.at));
        state.seen = state.seen.max(at.at);
        state.gone = false;
        for token in self.leases_of(|token, lease| {
            lease.worker == *worker && !held.contains(token) && lease.granted_at < at.at
        }) {
            let lease = self.leases.remove(&token).expect("listed above");
            self.requeue(&lease, now);
            self.out.push(Command::Freed { worker: worker.clone(), token });
        }
        if let Some(decision) = &self.records.decision
            && !self.records.state.state.is_final()
        {
            let phase = match decision.outcome {
                Outcome::Commit => Phase::Commit,
                Outcome::Rollback => Phase::Rollback,
            };
            self.out.push(Command::Tell { worker: worker.clone(), phase });
        }
    }

    /// Workers that may still think of this batch.
    pub(super) fn participants(&self) -> Vec<WorkerKey> {
        let mut all: Vec<WorkerKey> =
            self.workers.iter().filter(|(_, state)| !state.gone).map(|(key, _)| key.clone()).collect();
        all.sort();
        all
    }

    /// The second look: all tasks are handed out, others still work, and this worker has nothing of the
    /// batch: it is told so, once in each state, and is free for others.
    pub(super) fn maybe_leave(&mut self, worker: &WorkerKey) {
        let state = self.records.state.state;
        let handed_out = match state {
            State::Importing => {
                self.records.state.sealed
                    && self.records.cutoff.cutoff == self.records.state.total
                    && self.again.is_empty()
            }
            State::Held => true,
            State::Committing | State::RollingBack => self.finish.is_empty(),
            State::Committed | State::RolledBack => false,
        };
        if !handed_out || self.leases.values().any(|lease| lease.worker == *worker) {
            return;
        }
        if let Some(known) = self.workers.get_mut(worker)
            && known.told_to_leave != Some(state)
        {
            known.told_to_leave = Some(state);
            self.after.push(Command::Leave { worker: worker.clone(), state });
        }
    }
}
