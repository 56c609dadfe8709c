//! Stragglers: when nothing is left to lease, an idle worker gets a second lease on the slowest range. The
//! first report counts; the other worker is told to stop.

use super::lease::LiveLease;
use super::{Batch, WRITE_RECORDS};
use crate::Phase;
use crate::event::Command;
use crate::ids::{Now, Token, WorkerKey};
use crate::record;
use crate::runs::Run;
use std::time::Duration;

/// How long nothing is offered that the worker which asked may not have: a backup to the straggler's own worker, a
/// range on trial to one that holds others. It queues up again behind the others, which get as long to ask.
const MISS_PAUSE: Duration = Duration::from_millis(250);

/// How many times as long as a typical lease one must be out to be a straggler.
const SLOW: u32 = 2;

/// How long staging leases of this batch took, as their workers said.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Typical {
    total: Duration,
    leases: u32,
}

impl Typical {
    pub(super) fn finished(&mut self, elapsed: Duration) {
        self.total = self.total.saturating_add(elapsed);
        self.leases = self.leases.saturating_add(1);
    }

    fn mean(self) -> Duration {
        self.total.checked_div(self.leases).unwrap_or_default()
    }
}

/// A lease that was lost, to the other one of its range or while its worker was away: the worker was told to
/// stop, and may be at it yet.
#[derive(Clone, Debug)]
pub(super) struct Stopping {
    pub(super) worker: WorkerKey,
    /// Its range as it was then; it may have been split since.
    pub(super) run: Run,
    pub(super) since: Duration,
}

impl Batch {
    /// Nothing but backups can be leased for staging now.
    pub(super) fn all_dealt(&self, now: Now) -> bool {
        self.available() == 0 && self.ready_again(now).next().is_none()
    }

    /// When a staging lease that is out may get a backup; `None`: it has one, or isn't sent yet.
    fn slow_at(&self, token: Token, lease: &LiveLease) -> Option<Duration> {
        if lease.phase != Phase::Stage || lease.sent_at.is_none() {
            return None;
        }
        let range = &self.records.ranges[&lease.run.first];
        let alone =
            range.lease.as_ref().is_some_and(|primary| primary.token == token) && range.backup.is_none();
        let slow = self.settings.backup_after.max(self.typical.mean().saturating_mul(SLOW));
        alone.then(|| lease.out_since.saturating_add(slow))
    }

    /// The leases that may get a backup by now.
    fn stragglers(&self, now: Now) -> impl Iterator<Item = (Token, &LiveLease)> {
        let slow = move |token: Token, lease| self.slow_at(token, lease).is_some_and(|at| at <= now.at);
        self.leases.iter().filter(move |(token, lease)| slow(*token, lease))
    }

    /// Whether nobody asked just now for whom nothing could be found of what waits.
    pub(super) fn none_missed(&self, now: Now) -> bool {
        self.missed_until <= now.at
    }

    /// How many backups could be leased now.
    pub(super) fn backups(&self, now: Now) -> usize {
        if !self.none_missed(now) || !self.all_dealt(now) {
            return 0;
        }
        self.stragglers(now).take(WRITE_RECORDS).count()
    }

    /// When the next lease is out for long enough.
    pub(super) fn backup_at(&self, now: Now) -> Option<Duration> {
        if self.records.decision.is_some() || !self.all_dealt(now) {
            return None;
        }
        let first = self.leases.iter().filter_map(|(token, lease)| self.slow_at(token, lease)).min();
        first.map(|at| at.max(self.missed_until))
    }

    /// Leases the tasks of the slowest range a second time. False: there is none that this worker could
    /// help with.
    pub(super) fn grant_backup(&mut self, worker: &WorkerKey, now: Now) -> bool {
        let idle = !self.leases.holds_any(worker);
        let may =
            |lease: &LiveLease| lease.worker.id != worker.id && (idle || !self.on_trial(lease.run.first));
        let others = self.stragglers(now).filter(|(_, lease)| may(lease));
        let slowest = others.min_by_key(|(token, lease)| (lease.out_since, *token));
        let Some((_, LiveLease { run, attempt, .. })) = slowest else { return false };
        let (first, attempt) = (run.first, *attempt);
        let runs = self.records.ranges[&first].lease.as_ref().expect("a straggler is leased").runs.clone();
        self.lease_range(worker, first, runs, attempt, now);
        true
    }

    /// Nothing was found for a request. One of the stragglers' own worker makes room for others: they may
    /// help. So does one that holds leases, when a range waits for a worker without any.
    pub(super) fn nothing_for(&mut self, worker: WorkerKey, now: Now) {
        let undecided = self.records.decision.is_none();
        let straggles = || self.all_dealt(now) && self.stragglers(now).next().is_some();
        let missed = undecided && (self.trial_waits(now) || straggles());
        if missed {
            self.missed_until = now.at + MISS_PAUSE;
        }
        self.out.push(Command::Return { worker, keep: !missed });
    }

    /// One of two leases ended without counting: the other goes on alone, and is given time again before
    /// it gets another backup.
    pub(super) fn goes_on_alone(&mut self, first: u64, now: Now) -> bool {
        let Some(other) = self.records.ranges[&first].lease.as_ref().map(|lease| lease.token) else {
            return false;
        };
        if let Some(lease) = self.leases.times(&other) {
            lease.out_since = now.at;
        }
        self.touch(first);
        true
    }

    /// A range was accounted for: what else is leased of it doesn't count.
    pub(super) fn stop_others(&mut self, first: u64, now: Now) {
        for token in self.records.ranges[&first].tokens() {
            let range = self.records.ranges.get_mut(&first).expect("found above");
            range.drop_lease(token);
            if let Some(lease) = self.leases.remove(&token) {
                if lease.sent_at.is_none() {
                    // It is of this very write, and was never needed.
                    self.unsend(token);
                    continue;
                }
                let (worker, reason) = (lease.worker.clone(), "another attempt at the same tasks was first");
                self.after.push(Command::Revoke { worker, token, reason });
                let stopping = Stopping { worker: lease.worker, run: lease.run, since: now.at };
                self.stopping.insert(token, stopping);
            }
        }
    }

    /// The lease isn't sent after all; whoever asked for it may ask again.
    fn unsend(&mut self, token: Token) {
        for command in &mut self.after {
            if let Command::Grant(grant) = command
                && grant.token == token
            {
                *command = Command::Return { worker: grant.worker.clone(), keep: true };
            }
        }
    }

    /// A worker that is back holds a lease that was lost: it is told to stop, and a rollback waits for it.
    pub(super) fn stop_lost(&mut self, worker: &WorkerKey, token: Token, now: Now) {
        // It was another's: that one's word is what counts.
        if self.stopping.get(&token).is_some_and(|stopping| stopping.worker.id != worker.id) {
            return;
        }
        if self.records.state.state.is_final() {
            // It removes by itself what it staged, if it lives for as long as that takes.
            self.has_stopped(token);
            self.sweep_late();
            return;
        }
        // The parts of a range that was split since remember it all.
        let lost = self.records.ranges.values().filter(|range| range.losers.contains(&token));
        if let Some(run) = lost.map(|range| range.run).reduce(Run::to) {
            self.stopping.insert(token, Stopping { worker: worker.clone(), run, since: now.at });
        }
    }

    /// Notes in a range's record who may be at it yet. That takes no write of its own: what such a worker
    /// said since is missing in a record until the range changes again, and costs the next owner a wait.
    pub(super) fn note_stopping(&mut self, first: u64) {
        let Some(range) = self.records.ranges.get_mut(&first) else { return };
        range.stopping.clear();
        let run = range.run;
        let here = self.stopping.iter().filter(|(_, stopping)| stopping.run.overlaps(run));
        range.stopping.extend(
            here.map(|(token, stopping)| record::Stopping { token: *token, worker: stopping.worker.clone() }),
        );
    }

    /// Waits for the workers that the records name, but for those that said to this owner that they stopped.
    pub(super) fn take_up_stopping(&mut self, now: Now) {
        for range in self.records.ranges.values() {
            for record::Stopping { token, worker } in &range.stopping {
                if self.stopped.contains_key(token) {
                    continue;
                }
                self.workers.meet(worker, now.at);
                let (worker, run) = (worker.clone(), range.run);
                let known = self.stopping.entry(*token).or_insert(Stopping { worker, run, since: now.at });
                known.run = known.run.to(run);
            }
        }
    }

    /// A worker says that nothing of the lease runs any more: only of one that it was itself told to stop.
    pub(super) fn has_stopped_at(&mut self, worker: &WorkerKey, token: Token) {
        if self.stopping.get(&token).is_some_and(|stopping| stopping.worker == *worker) {
            self.has_stopped(token);
        }
    }

    /// It isn't waited for any more. As long as a record says otherwise, that is remembered.
    pub(super) fn has_stopped(&mut self, token: Token) {
        let Some(Stopping { run, .. }) = self.stopping.remove(&token) else { return };
        if self.is_noted(token, run) {
            self.stopped.insert(token, run);
        }
    }

    fn is_noted(&self, token: Token, run: Run) -> bool {
        let mut parts = self.records.ranges.range(run.first..=run.last);
        parts.any(|(_, range)| range.stopping.iter().any(|stopping| stopping.token == token))
    }

    /// The records are durable as they are here.
    pub(super) fn forget_stopped(&mut self) {
        let mut stopped = std::mem::take(&mut self.stopped);
        stopped.retain(|token, run| self.is_noted(*token, *run));
        self.stopped = stopped;
    }

    /// Nothing of what it was told to stop runs at this worker any more. False: there was nothing.
    pub(super) fn forget_stopping(&mut self, worker: &WorkerKey) -> bool {
        let of_it = |(token, stopping): (&Token, &Stopping)| (stopping.worker == *worker).then_some(*token);
        let its: Vec<Token> = self.stopping.iter().filter_map(of_it).collect();
        for token in &its {
            self.has_stopped(*token);
        }
        !its.is_empty()
    }

    /// When a worker that was told to stop, and didn't say that it has, is given up. The end of the batch
    /// asks for no word any more.
    pub(super) fn gives_up_at(&self, stopping: &Stopping) -> Duration {
        let waits = !self.records.state.state.is_final();
        let seen = if waits { self.last_seen(&stopping.worker) } else { Duration::ZERO };
        stopping.since.max(seen) + self.settings.lease_ttl
    }

    /// Workers that were told to stop, and didn't say that they have: whatever they stage yet is swept late. Also
    /// of one that is heard: it may be about to end, with a write that hangs.
    pub(super) fn give_up(&mut self, now: Now) {
        let over: Vec<Token> = self
            .stopping
            .iter()
            .filter(|(_, stopping)| self.gives_up_at(stopping) <= now.at)
            .map(|(token, _)| *token)
            .collect();
        for token in over {
            self.has_stopped(token);
            self.sweep_late();
        }
    }
}
