//! What is to be made durable, what waits for it, and what happens when it is refused.

use super::lease::LiveLease;
use super::retry::Retrying;
use super::{Batch, Closing, Waiting};
use crate::Phase;
use crate::event::{Answer, Command, Event, OpId, Write};
use crate::ids::Now;
use crate::record::{RangePhase, Records, State};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tranche_guards::Guard;

/// Records of one write, at most: with the state, the cut-off, the decision and the lock they stay
/// below the store's 128 operations.
pub(super) const WRITE_RECORDS: usize = 100;
/// Bytes of one write, about, at most: below etcd's request limit of 1.5 MiB with room for two more
/// records of the largest kind.
pub(super) const WRITE_BYTES: usize = 512 * 1024;
/// Bytes of one range's record, about, at most: a write that is nearly full still takes two of them, the
/// halves of a split. An attempt that would make it larger doesn't count.
pub(super) const RECORD_BYTES: usize = 384 * 1024;
#[derive(Debug, Default)]
pub(super) struct Dirty {
    pub(super) state: bool,
    pub(super) cutoff: bool,
    pub(super) decision: bool,
    pub(super) report: bool,
    pub(super) release: bool,
    pub(super) segments: BTreeSet<u64>,
    /// With the bytes that each was counted with.
    pub(super) ranges: BTreeMap<u64, usize>,
    pub(super) folded: Vec<u64>,
    pub(super) bytes: usize,
}

impl Dirty {
    pub(super) fn full(&self) -> bool {
        self.segments.len() + self.ranges.len() + self.folded.len() >= WRITE_RECORDS
            || self.bytes >= WRITE_BYTES
    }

    pub(super) fn any(&self) -> bool {
        // `cutoff`, `segments`, `ranges` and `folded` never change without the state being marked, but
        // asking for all costs nothing.
        self.state || self.cutoff || self.decision || self.release || self.full_of_something()
    }

    pub(super) fn full_of_something(&self) -> bool {
        !(self.segments.is_empty() && self.ranges.is_empty() && self.folded.is_empty())
    }
}

impl Batch {
    /// Makes the volatile part from the records.
    pub(super) fn take_up(&mut self, now: Now) {
        let before = std::mem::take(&mut self.leases);
        let known = |token| before.get(&token);
        self.none_expires_before = Duration::ZERO;
        self.again.clear();
        self.finish.clear();
        self.closing = Closing::Idle;
        self.late = false;
        self.retrying = None;
        for (first, range) in &mut self.records.ranges {
            if range.phase != RangePhase::Leased {
                continue;
            }
            for token in range.tokens() {
                if self.unsent.contains(&token) {
                    range.drop_lease(token);
                }
            }
            for lease in range.leases() {
                self.workers.meet(&lease.worker, now.at);
                // Only a worker that never heard of a lease has no time at which it could.
                let sent_at = known(lease.token).and_then(|lease| lease.sent_at).unwrap_or(Duration::ZERO);
                let live = LiveLease {
                    worker: lease.worker.clone(),
                    run: range.run,
                    phase: Phase::Stage,
                    attempt: range.losses,
                    granted_at: now.at,
                    sent_at: Some(sent_at),
                    out_since: known(lease.token).map_or(now.at, |lease| lease.out_since),
                    publish: false,
                };
                self.stopping.remove(&lease.token);
                self.stopped.remove(&lease.token);
                self.leases.insert(lease.token, live);
            }
            if range.lease.is_none() {
                self.again.push_back(Waiting { first: *first, ready_at: now.at, attempt: range.losses });
            }
        }
        self.take_up_stopping(now);
        match self.records.decision.as_ref().map(|decision| decision.outcome) {
            None => {}
            Some(outcome) => {
                self.again.clear();
                self.queue_finish(outcome, now);
                let phase = outcome.phase();
                match self.records.state.state {
                    State::Importing | State::Held => self.enter_decided(now),
                    State::Committing | State::RollingBack | State::Committed | State::RolledBack => {}
                }
                if !self.records.state.state.is_final() {
                    self.out.push(Command::Broadcast { phase });
                }
            }
        }
        if !self.dirty.any() {
            self.open_closing(now);
        }
    }

    /// The write is durable: what waited for it.
    pub fn written(&mut self, now: Now) -> Vec<Command> {
        self.in_flight = false;
        self.unsettled.clear();
        self.unsent.clear();
        self.put_back.clear();
        self.forget_stopped();
        for command in &self.after {
            match command {
                Command::Grant(grant) => {
                    if let Some(lease) = self.leases.times(&grant.token) {
                        lease.granted_at = now.at;
                        lease.sent_at = Some(now.at);
                        lease.out_since = now.at;
                    }
                }
                Command::Ended => self.ended = true,
                _ => {}
            }
        }
        std::mem::take(&mut self.after)
    }

    /// The write was refused: somebody decided, or the records are not what they seemed. These are the
    /// records now; what was worked into the refused write is worked in again. Right too when the write was
    /// applied after all and only its answer was lost.
    pub fn reload(&mut self, records: Records, now: Now) {
        self.in_flight = false;
        self.dirty = Dirty::default();
        // Finishing leases take their tokens without a write: what the record says may be older.
        let next_token = self.records.cutoff.next_token.max(records.cutoff.next_token);
        self.records = records;
        self.records.cutoff.next_token = next_token;
        if let Some(Retrying { op, tasks, .. }) = self.retrying.take() {
            self.keep_count(op, tasks);
            self.retry_again(op, now);
        }
        for state in self.workers.values_mut() {
            state.told_to_leave = None;
        }
        let after = std::mem::take(&mut self.after);
        self.take_up(now);
        for command in after {
            match command {
                Command::Grant(grant) => match self.leases.times(&grant.token) {
                    // It was decided meanwhile: nothing is begun any more.
                    Some(_) if self.records.decision.is_some() => {
                        self.leases.remove(&grant.token);
                        self.out.push(Command::Return { worker: grant.worker, keep: true });
                    }
                    Some(lease) => {
                        (lease.sent_at, lease.out_since) = (Some(now.at), now.at);
                        self.out.push(Command::Grant(grant));
                    }
                    None => {
                        self.unsent.insert(grant.token);
                        self.out.push(Command::Return { worker: grant.worker, keep: true });
                    }
                },
                Command::Answer { op, answer } => {
                    if let Ok(Answer::Retried(tasks)) = answer {
                        self.keep_count(op, tasks);
                    }
                    self.retry_again(op, now);
                }
                // The write was applied after all: its event finds the lease lost already.
                Command::Revoke { token, .. } if !self.leases.contains_key(&token) => self.out.push(command),
                _ => {}
            }
        }
        self.put_back.clear();
        let unsettled = std::mem::take(&mut self.unsettled);
        if Guard::EventsKept.on() {
            unsettled.into_iter().rev().for_each(|event| self.inbox.push_front(event));
        }
    }

    /// A call whose events are settled, but not its answer, is a retry that took several writes: it may
    /// have begun some writes ago. What is retried already isn't failed any more.
    pub(super) fn retry_again(&mut self, op: OpId, now: Now) {
        let waits = self.unsettled.iter().any(|(_, event)| match event {
            Event::Appended { op: other, .. }
            | Event::Seal { op: other, .. }
            | Event::RetryFailed { op: other } => *other == op,
            _ => false,
        });
        if !waits {
            self.unsettled.push((now, Event::RetryFailed { op }));
        }
    }

    /// The range changed.
    pub(super) fn touch(&mut self, first: u64) {
        self.dirty.state = true;
        self.note_stopping(first);
        if let Some(range) = self.records.ranges.get(&first) {
            let weight = range.weight();
            let counted = self.dirty.ranges.insert(first, weight).unwrap_or(0);
            self.dirty.bytes = self.dirty.bytes - counted + weight;
        }
    }

    pub(super) fn take_write(&mut self) -> Option<Write> {
        if !self.dirty.any() {
            // Nothing to make durable, nothing to wait for.
            self.unsettled.clear();
            self.out.append(&mut self.after);
            return None;
        }
        let dirty = std::mem::take(&mut self.dirty);
        let records = &self.records;
        self.in_flight = true;
        Some(Write {
            state: records.state.clone(),
            cutoff: dirty.cutoff.then_some(records.cutoff),
            decision: dirty.decision.then(|| records.decision.clone()).flatten(),
            undecided: dirty.decision || records.decision.is_none(),
            segments: dirty.segments.iter().map(|first| records.segments[first].clone()).collect(),
            ranges: dirty.ranges.keys().filter_map(|first| records.ranges.get(first)).cloned().collect(),
            folded: dirty.folded,
            report: dirty.report,
            release: dirty.release,
        })
    }
}
