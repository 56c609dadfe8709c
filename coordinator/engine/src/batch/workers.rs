//! Workers of a batch: who lives, who left, whose leases lapse.

use super::lease::LiveLease;
use super::{Batch, Waiting};
use crate::Phase;
use crate::event::Command;
use crate::ids::{Now, Token, WorkerKey};
use crate::record::State;
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
    pub(super) fn last_seen(&self, worker: &WorkerKey) -> Duration {
        self.workers.get(worker).map_or(Duration::ZERO, |worker| worker.seen)
    }

    pub(super) fn expires_at(&self, lease: &LiveLease) -> Duration {
        lease.granted_at.max(self.last_seen(&lease.worker)) + self.settings.lease_ttl
    }

    /// A worker's leases, of those that this is true of.
    fn leases_of(&self, worker: &WorkerKey, which: impl Fn(&Token, &LiveLease) -> bool) -> Vec<Token> {
        self.leases.of(worker).filter(|(token, lease)| which(token, lease)).map(|(token, _)| token).collect()
    }

    /// Leases that nobody renewed go back, as many as one write holds; the rest at the next step. The
    /// worker is told once that is durable: until then a refused write may give it the lease back, and
    /// nobody but the lease's end would find out that it was dropped.
    pub(super) fn expire(&mut self, now: Now) {
        self.give_up(now);
        if now.at < self.none_expires_before {
            return;
        }
        let (mut over, mut next) = (Vec::new(), now.at + self.settings.lease_ttl);
        for (token, lease) in self.leases.iter() {
            match self.expires_at(lease) {
                at if at <= now.at => over.push(token),
                at => next = next.min(at),
            }
        }
        for token in over {
            if self.dirty.full() {
                return;
            }
            let lease = &self.leases[&token];
            let (worker, reason) = (lease.worker.clone(), "lease expired");
            if lease.phase == Phase::Stage && lease.sent_at.is_some() {
                self.sweep_late();
            }
            self.after.push(Command::Revoke { worker, token, reason });
            self.lose(token, now);
        }
        self.none_expires_before = next;
    }

    /// A worker that staged is silent. It may be paused, and go on with it when the batch has long ended.
    pub(super) fn sweep_late(&mut self) {
        self.records.state.late_sweep = true;
        self.dirty.state = true;
    }

    /// False: there is more of it than one write holds.
    #[must_use]
    pub(super) fn gone(&mut self, worker: &WorkerKey, now: Now) -> bool {
        if let Some(state) = self.workers.get_mut(worker) {
            state.gone = true;
        }
        self.after.retain(|command| !matches!(command, Command::Grant(grant) if grant.worker == *worker));
        if self.forget_stopping(worker) && self.records.state.state.is_final() {
            // It may have staged until now, and the sweep may have been before.
            self.sweep_late();
        }
        for token in self.leases_of(worker, |_, _| true) {
            if self.dirty.full() {
                return false;
            }
            match self.leases[&token].sent_at {
                Some(_) => {
                    self.after.push(Command::Freed { worker: worker.clone(), token });
                    self.lose(token, now);
                }
                // It never heard of this one.
                None => self.take_back(token, now),
            }
        }
        true
    }

    /// A lease that was never begun goes back: nothing is staged under its token.
    fn take_back(&mut self, token: Token, now: Now) {
        let Some(lease) = self.leases.remove(&token) else { return };
        if lease.phase == Phase::Stage
            && self.records.decision.is_none()
            && let Some(range) = self.records.ranges.get_mut(&lease.run.first)
        {
            range.end_lease(token);
        }
        self.requeue(token, &lease, now);
    }

    /// The worker was lost with the lease.
    fn lose(&mut self, token: Token, now: Now) {
        let Some(lease) = self.leases.remove(&token) else { return };
        match lease.phase {
            // After a rollback was decided the range waits for just this.
            Phase::Stage if self.records.decision.is_some() => {}
            Phase::Stage => self.lose_stage(token, lease.run.first, &lease.worker, now),
            Phase::Commit | Phase::Rollback | Phase::Publish | Phase::Sweep => {
                self.requeue(token, &lease, now);
            }
        }
    }

    /// A lease that was not begun, or that may be repeated, goes back to the front.
    fn requeue(&mut self, token: Token, lease: &LiveLease, now: Now) {
        let waiting = Waiting { first: lease.run.first, ready_at: now.at, attempt: lease.attempt };
        match lease.phase {
            Phase::Stage if self.records.decision.is_some() => {}
            Phase::Stage => {
                if let Some(range) = self.records.ranges.get_mut(&waiting.first) {
                    range.drop_lease(token);
                }
                if !self.goes_on_alone(waiting.first, now) {
                    self.touch(waiting.first);
                    self.again.push_front(waiting);
                }
            }
            Phase::Commit | Phase::Rollback => {
                let queued = self.queued(waiting);
                self.finish.push_front(queued);
            }
            phase @ (Phase::Publish | Phase::Sweep) => {
                self.closing = super::Closing::Ready { phase, ready_at: now.at, attempt: lease.attempt };
            }
        }
    }

    pub(super) fn release(&mut self, worker: &WorkerKey, token: Token, now: Now) {
        if self.leases.get(&token).is_some_and(|lease| lease.worker == *worker) {
            self.take_back(token, now);
        }
        self.has_stopped_at(worker, token);
        self.after.push(Command::Freed { worker: worker.clone(), token });
    }

    /// Nothing of the batch is staged there any more.
    pub(super) fn phase_ack(&mut self, worker: &WorkerKey) {
        if self.records.decision.is_some() {
            self.forget_stopping(worker);
        }
        for token in self.leases_of(worker, |_, lease| lease.phase == Phase::Stage) {
            if self.records.decision.is_some() {
                self.leases.remove(&token);
                self.after.push(Command::Freed { worker: worker.clone(), token });
            }
        }
    }

    /// The worker holds these leases, and none that was sent to it before and isn't among them. Older
    /// lives of the same worker are over.
    /// False: there is more of it than one write holds.
    #[must_use]
    pub(super) fn attached(&mut self, worker: &WorkerKey, held: &[Token], at: Now, now: Now) -> bool {
        for older in self.workers.other_lives(worker) {
            if !self.gone(&older, now) {
                return false;
            }
            self.workers.remove(&older);
        }
        let state = self.workers.meet(worker, at.at);
        state.seen = state.seen.max(at.at);
        state.gone = false;
        // What was sent since isn't among those it named. After a decision only PhaseAck says that a worker
        // stopped staging: a lease that it dropped may still be running there.
        let decided = self.records.decision.is_some();
        let stays = |token: &Token, lease: &LiveLease| {
            held.contains(token) || (decided && lease.phase == Phase::Stage)
        };
        for token in self.leases_of(worker, |token, lease| {
            !stays(token, lease) && lease.sent_at.is_some_and(|sent_at| sent_at <= at.at)
        }) {
            if self.dirty.full() {
                return false;
            }
            let lease = self.leases.remove(&token).expect("listed above");
            self.requeue(token, &lease, now);
            self.after.push(Command::Freed { worker: worker.clone(), token });
        }
        for &token in held {
            if self.leases.contains_key(&token) || self.of_a_later_owner(token) {
                continue;
            }
            // It was lost meanwhile. A report of it that is still to come is answered all the same.
            self.stop_lost(worker, token, now);
            let (worker, reason) = (worker.clone(), "the lease ended while the worker was away");
            self.after.push(Command::Revoke { worker, token, reason });
        }
        if let Some(decision) = &self.records.decision
            && !self.records.state.state.is_final()
        {
            let phase = decision.outcome.phase();
            self.out.push(Command::Tell { worker: worker.clone(), phase });
        }
        true
    }

    /// Workers that may still think of this batch.
    pub(super) fn participants(&self) -> Vec<WorkerKey> {
        let mut all: Vec<WorkerKey> =
            self.workers.iter().filter(|(_, state)| !state.gone).map(|(key, _)| key).collect();
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
        if !handed_out || self.leases.holds_any(worker) {
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
