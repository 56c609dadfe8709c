//! Leases that are out: asked for, and reported about.

use super::Batch;
use crate::Phase;
use crate::event::{Command, Report, ReportError, ReportResult};
use crate::ids::{Now, Token, WorkerKey};
use crate::record::State;
use crate::runs::Run;
use std::time::Duration;
use tranche_guards::Guard;

/// A lease that is out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseView {
    /// Its token.
    pub token: Token,
    /// Who holds it.
    pub worker: WorkerKey,
    /// What it asks.
    pub phase: Phase,
    /// Its range.
    pub run: Run,
    /// How often the range was leased before.
    pub attempt: u32,
    /// When it was granted.
    pub granted_at: Duration,
    /// When it ends unless a heartbeat renews it.
    pub expires_at: Duration,
}

#[derive(Clone, Debug)]
pub(super) struct LiveLease {
    pub(super) worker: WorkerKey,
    pub(super) run: Run,
    pub(super) phase: Phase,
    pub(super) attempt: u32,
    pub(super) granted_at: Duration,
    /// When its worker could first know of it; `None`: its write isn't durable yet. Zero: another owner
    /// sent it.
    pub(super) sent_at: Option<Duration>,
    /// Since when it is out, as far as this owner knows: the age of a straggler.
    pub(super) out_since: Duration,
    /// COMMIT: its worker publishes, too.
    pub(super) publish: bool,
}

impl Batch {
    pub(super) fn request(&mut self, worker: WorkerKey, now: Now) {
        let state = self.workers.meet(&worker, now.at);
        state.seen = state.seen.max(now.at);
        let granted = match self.records.state.state {
            // It was taken from the queue just before its life ended.
            _ if state.gone => false,
            State::Importing if self.records.decision.is_none() => self.grant_stage(&worker, now),
            State::Importing | State::Held => false,
            State::Committing | State::RollingBack | State::Committed | State::RolledBack => {
                self.grant_finish(&worker, now)
            }
        };
        if granted {
            if let Some(state) = self.workers.get_mut(&worker) {
                state.told_to_leave = None;
            }
        } else {
            self.nothing_for(worker, now);
        }
    }

    pub(super) fn report(&mut self, mut report: Report, now: Now) {
        let (worker, token, phase) = (report.worker.clone(), report.token, report.phase);
        let lease =
            self.leases.get(&token).filter(|lease| lease.worker == worker).map(|lease| (token, lease));
        let lease = if Guard::TokenCheck.on() { lease } else { lease.or_else(|| self.lease_beside(token)) };
        let Some((token, leased)) = lease.map(|(token, lease)| (token, lease.phase)) else {
            if self.of_a_later_owner(token) {
                return;
            }
            self.has_stopped_at(&worker, token);
            let result = self.settled_before(token, phase);
            // In `after`: it may be the repeat of a report that is in this very write.
            self.acknowledge(worker, token, result);
            return;
        };
        report.token = token;
        if phase != leased {
            // The worker is done with the lease, whatever it did: it must not stay out.
            let text = format!("invalid report: phase {phase:?}, the lease's is {leased:?}");
            (report.phase, report.error) = (leased, Some(ReportError(text)));
        }
        match leased {
            Phase::Stage => self.report_stage(report, now),
            Phase::Commit | Phase::Rollback => self.report_range(report, now),
            Phase::Publish | Phase::Sweep => self.report_closing(report, now),
        }
        self.maybe_leave(&worker);
    }

    /// For want of a check of the token: the lease of the range that this one was lost from.
    fn lease_beside(&self, lost: Token) -> Option<(Token, &LiveLease)> {
        let range = self.records.ranges.values().find(|range| range.losers.contains(&lost))?;
        let token = range.lease.as_ref()?.token;
        Some((token, self.leases.get(&token)?))
    }

    /// A lease of whoever took the batch over from this owner, which doesn't know it yet. It may count there:
    /// nothing is said of it here.
    pub(super) fn of_a_later_owner(&self, token: Token) -> bool {
        token.epoch > self.epoch
    }

    /// What to say of a report whose lease isn't out: it may be the repeat of one that counted.
    pub(super) fn settled_before(&self, token: Token, phase: Phase) -> ReportResult {
        let counted =
            self.records.ranges.values().any(|range| range.winners.iter().any(|w| w.token == token));
        match self.records.decision {
            _ if counted => ReportResult::Durable,
            Some(_) if phase == Phase::Stage => ReportResult::Decided,
            Some(_) | None => ReportResult::Stale,
        }
    }

    /// Settles a report once that is durable.
    pub(super) fn acknowledge(&mut self, worker: WorkerKey, token: Token, result: ReportResult) {
        self.behind(Guard::AckAfterDurable).push(Command::Ack { worker, token, result });
    }

    /// Where a command waits until the write is durable.
    pub(super) fn behind(&mut self, guard: Guard) -> &mut Vec<Command> {
        if guard.on() { &mut self.after } else { &mut self.out }
    }

    pub(super) fn next_token(&mut self) -> Token {
        self.records.cutoff.next_token += 1;
        Token { epoch: self.epoch, counter: self.records.cutoff.next_token }
    }
}
