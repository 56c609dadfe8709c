//! After the decision: ranges are made final or removed, then the batch is closed, swept and folded.

use super::lease::LiveLease;
use super::queue::Queued;
use super::{Batch, Waiting};
use crate::Phase;
use crate::event::{Attempt, Command, Grant, Report, ReportResult};
use crate::ids::{Now, Token, WorkerKey};
use crate::record::{Outcome, RangePhase, RangeRecord, State, Winner};
use crate::runs::{Run, Runs};
use std::sync::Arc;
use std::time::Duration;
use tranche_guards::Guard;

/// How far down the queue a range is looked for that suits a worker.
const PREFER_WITHIN: usize = 256;

/// The batch's own last lease: PUBLISH or SWEEP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Closing {
    /// Not yet, or not any more.
    Idle,
    /// To be leased.
    Ready { phase: Phase, ready_at: Duration, attempt: u32 },
    /// Leased.
    Out,
    /// Swept, nothing was found: fold.
    Done,
}

impl Batch {
    /// Queues every range that the decision asks something of.
    pub(super) fn queue_finish(&mut self, outcome: Outcome, now: Now) {
        self.finish.clear();
        for (first, range) in &self.records.ranges {
            let asked = match outcome {
                Outcome::Commit => range.phase == RangePhase::Staged && range.staged() > 0,
                Outcome::Rollback => range.phase != RangePhase::RolledBack,
            };
            if asked {
                let waiting = Waiting { first: *first, ready_at: now.at, attempt: 0 };
                self.finish.push_back(Queued { waiting, by: staged_by(range) });
            }
        }
    }

    /// With who staged it.
    pub(super) fn queued(&self, waiting: Waiting) -> Queued {
        Queued { waiting, by: self.records.ranges.get(&waiting.first).and_then(staged_by) }
    }

    /// Whether somebody may still be staging the range.
    fn staging(&self, first: u64) -> bool {
        if self.leases.staging() == 0 && self.stopping.is_empty() {
            return false;
        }
        let range = &self.records.ranges[&first];
        range.leases().any(|lease| self.leases.contains_key(&lease.token))
            || self.stopping.values().any(|stopping| stopping.run.overlaps(range.run))
    }

    /// Whether the rollback waits for its workers, who were just told, to stop.
    pub(super) fn stops_first(&self, now: Now) -> bool {
        now.at < self.stops_until
            && self.records.state.state == State::RollingBack
            && (self.leases.staging() > 0 || !self.stopping.is_empty())
            && Guard::RollbackWaits.on()
    }

    /// Whatever is staged after its rollback would stay.
    pub(super) fn may_roll_back(&self, first: u64) -> bool {
        !self.staging(first) || !Guard::RollbackWaits.on()
    }

    /// Leases a range for commit or rollback, or the batch's last step. No write comes first: these
    /// phases are idempotent, and a token is unique by its epoch.
    pub(super) fn grant_finish(&mut self, worker: &WorkerKey, now: Now) -> bool {
        if let Closing::Ready { phase, ready_at, attempt } = self.closing
            && ready_at <= now.at
        {
            let token = self.next_token();
            self.closing = Closing::Out;
            let run = Run::new(1, self.records.cutoff.cutoff.max(1));
            self.send(worker, token, phase, run, Vec::new(), attempt, false, now);
            return true;
        }
        let Some(waiting) = self.pick_finish(worker, now) else { return false };
        let publish = self.is_last_commit();
        let token = self.next_token();
        let range = &self.records.ranges[&waiting.first];
        let (phase, attempts) = match self.records.state.state {
            State::Committing if Guard::WinnersOnly.on() => (Phase::Commit, winners(range)),
            State::Committing => (Phase::Commit, everything(range)),
            _ if Guard::RollbackAll.on() => (Phase::Rollback, everything(range)),
            _ => (Phase::Rollback, winners(range)),
        };
        let run = range.run;
        self.send(worker, token, phase, run, attempts, waiting.attempt, publish, now);
        true
    }

    /// Whether the range that was just picked is the only one that isn't committed, and all others are durably:
    /// whoever commits it publishes the batch in the same lease, which spares a small batch a lease and a write.
    fn is_last_commit(&self) -> bool {
        self.records.state.state == State::Committing
            && self.closing == Closing::Idle
            && !self.records.state.published
            && !self.finishing()
            && !self.dirty.any()
    }

    /// A range that this worker staged, if one is near; else one of a worker that isn't here; else the
    /// next.
    fn pick_finish(&mut self, worker: &WorkerKey, now: Now) -> Option<Waiting> {
        let committing = self.records.state.state == State::Committing;
        let ready = |waiting: &Waiting| {
            waiting.ready_at <= now.at && (committing || self.may_roll_back(waiting.first))
        };
        if self.stops_first(now) {
            return None;
        }
        let own = self.finish.of(&worker.id).take(PREFER_WITHIN).find(|(_, waiting)| ready(waiting));
        let free = || self.finish.iter().filter(|(_, queued)| ready(&queued.waiting));
        let orphan = |by: Option<&Arc<str>>| !by.is_some_and(|id| self.workers.is_here(id));
        let others = || {
            let mut near =
                self.finish.iter().take(PREFER_WITHIN).filter(|(_, queued)| ready(&queued.waiting));
            let orphan = near.find(|(_, queued)| orphan(queued.by.as_ref()));
            orphan.or_else(|| free().next()).map(|(place, _)| place)
        };
        let place = own.map(|(place, _)| place).or_else(others)?;
        self.finish.remove(place)
    }

    #[allow(clippy::too_many_arguments)]
    fn send(
        &mut self,
        worker: &WorkerKey,
        token: Token,
        phase: Phase,
        run: Run,
        attempts: Vec<Attempt>,
        attempt: u32,
        publish: bool,
        now: Now,
    ) {
        self.leases.insert(
            token,
            LiveLease {
                worker: worker.clone(),
                run,
                phase,
                attempt,
                granted_at: now.at,
                sent_at: Some(now.at),
                out_since: now.at,
                publish,
            },
        );
        self.out.push(Command::Grant(Grant {
            worker: worker.clone(),
            token,
            phase,
            run,
            runs: Runs::default(),
            attempts,
            attempt,
            staged: self.records.state.staged,
            publish,
            alone: false,
        }));
    }

    /// COMMIT and ROLLBACK.
    pub(super) fn report_range(&mut self, report: Report, now: Now) {
        let Report { worker, token, phase, published, error, .. } = report;
        let lease = self.leases.remove(&token).expect("the caller found it");
        let first = lease.run.first;
        if let Some(error) = error {
            // Retried for ever: the decision stands.
            self.message = format!("{phase:?} of {}-{} by {}: {}", first, lease.run.last, worker.id, error.0);
            let ready_at = now.at + self.settings.pause(lease.attempt);
            let queued = self.queued(Waiting { first, ready_at, attempt: lease.attempt + 1 });
            self.finish.push_back(queued);
            self.acknowledge(worker, token, ReportResult::Durable);
            return;
        }
        let range = self.records.ranges.get_mut(&first).expect("a leased range is there");
        if phase == Phase::Commit {
            range.phase = RangePhase::Committed;
            self.records.state.committed += range.staged();
            // A worker of an older version only commits: PUBLISH follows.
            self.records.state.published |= published && lease.publish;
        } else {
            range.phase = RangePhase::RolledBack;
            self.records.state.rolled_back += range.run.len();
        }
        self.message.clear();
        self.touch(first);
        self.acknowledge(worker, token, ReportResult::Durable);
    }

    /// PUBLISH and SWEEP.
    pub(super) fn report_closing(&mut self, report: Report, now: Now) {
        let Report { worker, token, phase, error, residue, .. } = report;
        let lease = self.leases.remove(&token).expect("the caller found it");
        if let Some(error) = error {
            self.message = format!("{phase:?} by {}: {}", worker.id, error.0);
            let ready_at = now.at + self.settings.pause(lease.attempt);
            self.closing = Closing::Ready { phase, ready_at, attempt: lease.attempt + 1 };
            self.acknowledge(worker, token, ReportResult::Durable);
            return;
        }
        self.message.clear();
        if phase == Phase::Publish {
            self.records.state.published = true;
            self.closing = Closing::Idle;
            self.dirty.state = true;
        } else if residue > 0 && Guard::SweepUntilClean.on() {
            // What was found is gone now; look again until nothing is found.
            if matches!(self.records.state.state, State::RollingBack | State::RolledBack) {
                self.records.state.residue_removed += residue;
                self.dirty.state = true;
            }
            self.closing = Closing::Ready { phase, ready_at: now.at, attempt: lease.attempt };
        } else {
            // The records don't say so: what follows, the end or the fold, is in this very write.
            self.closing = Closing::Done;
            if self.late {
                self.records.state.late_sweep = false;
                self.dirty.state = true;
            }
        }
        self.acknowledge(worker, token, ReportResult::Durable);
    }

    fn finishing(&self) -> bool {
        !self.finish.is_empty() || self.leases.finishing() > 0
    }

    fn close_with(&mut self, phase: Phase, now: Now) {
        if self.closing == Closing::Idle {
            self.closing = Closing::Ready { phase, ready_at: now.at, attempt: 0 };
        }
    }

    /// Opens the batch's own last leases as soon as nothing stands before them, so that the appetite is
    /// there before the next step. Nobody gets one while a write is in flight.
    pub(super) fn open_closing(&mut self, now: Now) {
        let state = &self.records.state;
        if self.finishing() || self.records.cutoff.cutoff == 0 {
            return;
        }
        match state.state {
            State::Committing if !state.published => self.close_with(Phase::Publish, now),
            State::Committed | State::RolledBack if state.swept => {}
            State::RolledBack if self.swept_late() => self.close_late(now),
            State::Committed if self.swept_late() && self.closing == Closing::Done => self.close_late(now),
            State::RollingBack | State::Committed => self.close_with(Phase::Sweep, now),
            State::Importing | State::Held | State::Committing | State::RolledBack => {}
        }
    }

    /// It is to be swept once more, later: a worker that was lost may have woken up.
    fn swept_late(&self) -> bool {
        self.records.state.late_sweep && Guard::LateSweep.on()
    }

    /// Opens the late sweep, some time after the end; another owner doesn't begin that time again.
    fn close_late(&mut self, now: Now) {
        if matches!(self.closing, Closing::Idle | Closing::Done) {
            let passed = u64::try_from(now.wall_ms - self.records.state.end_time_ms).unwrap_or(0);
            let left = self.settings.late_sweep_after.saturating_sub(Duration::from_millis(passed));
            self.late = true;
            self.closing = Closing::Ready { phase: Phase::Sweep, ready_at: now.at + left, attempt: 0 };
        }
    }

    pub(super) fn advance_decided(&mut self, now: Now) {
        if self.finishing() {
            return;
        }
        let nothing_leased = self.records.cutoff.cutoff == 0;
        if nothing_leased && self.dirty.any() {
            // It was decided in this very step: a state isn't skipped.
            return;
        }
        let done = match self.records.state.state {
            State::Committing if self.records.state.published || nothing_leased => {
                self.records.state.published = true;
                State::Committed
            }
            State::Committing => return,
            _ if self.closing == Closing::Done || nothing_leased => State::RolledBack,
            _ => return,
        };
        self.records.state.state = done;
        self.records.state.end_time_ms = now.wall_ms;
        self.records.state.cutoff = self.records.cutoff.cutoff;
        self.dirty.report = true;
        for worker in self.participants() {
            self.after.push(Command::Leave { worker, state: done });
        }
    }

    pub(super) fn advance_final(&mut self) {
        if self.dirty.any() {
            return;
        }
        if self.records.state.swept {
            // All is done, and yet it was taken over: nothing is left but to give the lock back.
            self.dirty.release = true;
            self.after.push(Command::Ended);
            return;
        }
        let swept = self.records.state.state == State::RolledBack
            || self.records.cutoff.cutoff == 0
            || self.closing == Closing::Done;
        // A worker that is silent since it was told to stop makes a late sweep necessary.
        if swept && self.stopping.is_empty() && !self.swept_late() {
            self.fold();
        }
    }

    /// Ranges are folded into the state's counts, but for those with failures, which the failure list
    /// needs. Bit by bit; the last write says `swept`.
    fn fold(&mut self) {
        let foldable: Vec<u64> = self
            .records
            .ranges
            .iter()
            .filter(|(_, range)| range.failed_runs.is_empty())
            .map(|(first, _)| *first)
            .take(super::write::WRITE_RECORDS)
            .collect();
        self.dirty.state = true;
        for first in &foldable {
            self.records.ranges.remove(first);
        }
        let last = !self.records.ranges.values().any(|range| range.failed_runs.is_empty());
        self.dirty.folded = foldable;
        if last {
            self.records.state.swept = true;
            self.dirty.release = true;
            self.after.push(Command::Ended);
        }
    }
}

fn staged_by(range: &RangeRecord) -> Option<Arc<str>> {
    let winner = range.winners.first().map(|winner| Arc::from(winner.worker.as_str()));
    winner.or_else(|| range.lease.as_ref().map(|lease| lease.worker.id.clone()))
}

fn winners(range: &RangeRecord) -> Vec<Attempt> {
    range.winners.iter().filter(|winner| !winner.runs.is_empty()).map(attempt).collect()
}

fn attempt(winner: &Winner) -> Attempt {
    Attempt { token: winner.token, runs: winner.runs.clone(), receipt: winner.receipt.clone() }
}

/// Every attempt there ever was, the ones that never reported too.
fn everything(range: &RangeRecord) -> Vec<Attempt> {
    let mut all: Vec<Attempt> = range.winners.iter().map(attempt).collect();
    let others = range.losers.iter().copied().chain(range.tokens());
    all.extend(others.map(|token| Attempt { token, runs: Runs::default(), receipt: Vec::new() }));
    all
}
