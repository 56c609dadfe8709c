//! Dealing out the sequence, and what comes back: everything before the decision.

use super::lease::LiveLease;
use super::write::{RECORD_BYTES, WRITE_RECORDS};
use super::{Batch, LINGER, Waiting};
use crate::Phase;
use crate::event::{Answer, Command, Grant, OpId, Refusal, Report, ReportResult};
use crate::ids::{Now, Token, WorkerKey};
use crate::record::{InlineFailure, Lease, RangePhase, RangeRecord, Segment, Winner};
use crate::runs::{Run, Runs};
use crate::size::{LEASE_BYTES, Pace};
use tranche_guards::Guard;

impl Batch {
    pub(super) fn appended(&mut self, op: OpId, mut segment: Segment, now: Now) {
        let state = &mut self.records.state;
        if !Guard::AppendOnce.on() && segment.run.last <= state.total {
            segment.run = Run::new(state.total + 1, state.total + segment.run.len());
        }
        let answer = if segment.run.last <= state.total {
            Ok(Answer::Appended(state.total))
        } else if self.records.decision.is_some() {
            Err(Refusal::Decided)
        } else if state.sealed {
            Err(Refusal::Sealed(state.total))
        } else if segment.run.first != state.total + 1 {
            Err(Refusal::Gap(state.total + 1))
        } else {
            state.total = segment.run.last;
            self.dirty.state = true;
            self.dirty.bytes += 64 + segment.object.len();
            self.dirty.segments.insert(segment.run.first);
            let through = segment.run.last;
            self.records.segments.insert(segment.run.first, segment);
            self.lingering_since.get_or_insert(now.at);
            Ok(Answer::Appended(through))
        };
        // In `after`, also when nothing changed: what it says may be in this very write.
        self.behind(Guard::AppendAfterDurable).push(Command::Answer { op, answer });
    }

    /// Tasks that were never leased.
    pub(super) fn available(&self) -> u64 {
        self.records.state.total - self.records.cutoff.cutoff
    }

    /// Whether a part of the tasks that wait should wait on for more to come.
    fn lingers(&self, now: Now) -> bool {
        !self.records.state.sealed
            && self.available() < self.spec.max_range
            && self.lingering_since.is_some_and(|since| now.at < since + LINGER)
    }

    /// About how many leases the tasks after the cut-off make.
    pub(super) fn fresh_leases(&self, now: Now) -> usize {
        let available = self.available();
        if available == 0 || self.lingers(now) {
            return 0;
        }
        // Workers' paces differ and sizes shrink as tasks are dealt: one request too many is returned,
        // one too few is taken with the next step.
        let typical =
            Pace::default().next(available, 1, false, self.spec.min_range, self.spec.max_range).max(1);
        usize::try_from(available.div_ceil(typical)).unwrap_or(usize::MAX)
    }

    /// Leases the next tasks to the worker: first what came back, then what follows the cut-off. When
    /// nothing is left, it may help with what takes long.
    pub(super) fn grant_stage(&mut self, worker: &WorkerKey, now: Now) -> bool {
        let idle = !self.leases.holds_any(worker);
        let fits = |waiting: &Waiting| waiting.ready_at <= now.at && (idle || !self.on_trial(waiting.first));
        if let Some(index) = self.again.iter().position(fits) {
            let waiting = self.again.remove(index).expect("found above");
            let runs = self.records.ranges[&waiting.first].missing();
            self.lease_range(worker, waiting.first, runs, waiting.attempt, now);
            return true;
        }
        if self.available() == 0 {
            return self.grant_backup(worker, now);
        }
        if self.lingers(now) {
            return false;
        }
        let size = self.next_size(worker);
        let first = self.records.cutoff.cutoff + 1;
        let run = Run::new(first, first + size - 1);
        self.records.cutoff.cutoff = run.last;
        self.records.ranges.insert(first, RangeRecord::new(run));
        if self.available() == 0 {
            self.lingering_since = None;
        } else if !self.records.state.sealed {
            self.lingering_since = Some(now.at);
        }
        self.lease_range(worker, first, Runs::from(run), 0, now);
        true
    }

    /// Whether the next loss makes a task fail. What kills must not be taken for its neighbour: such a range is
    /// leased to a worker that holds nothing else of the batch, and which stages it with nothing beside it.
    pub(super) fn on_trial(&self, first: u64) -> bool {
        let range = &self.records.ranges[&first];
        range.losses > 0 && range.losses + 1 >= self.spec.max_attempts && range.missing().count() == 1
    }

    /// Ranges that could be leased again now.
    pub(super) fn ready_again(&self, now: Now) -> impl Iterator<Item = &Waiting> {
        self.again.iter().filter(move |waiting| waiting.ready_at <= now.at)
    }

    /// Those of them that are offered: not one on trial, for a moment after a worker asked that holds others.
    pub(super) fn offered_again(&self, now: Now) -> usize {
        let offered = |waiting: &&Waiting| self.none_missed(now) || !self.on_trial(waiting.first);
        self.ready_again(now).filter(offered).take(WRITE_RECORDS).count()
    }

    /// Whether a range waits that only a worker without another lease gets.
    pub(super) fn trial_waits(&self, now: Now) -> bool {
        self.ready_again(now).any(|waiting| self.on_trial(waiting.first))
    }

    /// A lease of a range that is leased already is the backup of that.
    pub(super) fn lease_range(&mut self, worker: &WorkerKey, first: u64, runs: Runs, attempt: u32, now: Now) {
        let token = self.next_token();
        let alone = self.on_trial(first);
        self.dirty.cutoff = true;
        let range = self.records.ranges.get_mut(&first).expect("a range that is leased is there");
        range.phase = RangePhase::Leased;
        let place = if range.lease.is_none() { &mut range.lease } else { &mut range.backup };
        *place = Some(Lease { token, worker: worker.clone(), runs: runs.clone() });
        let run = range.run;
        self.touch(first);
        self.leases.insert(
            token,
            LiveLease {
                worker: worker.clone(),
                run,
                phase: Phase::Stage,
                attempt,
                granted_at: now.at,
                sent_at: None,
                out_since: now.at,
                publish: false,
            },
        );
        // Only once the cut-off and the range's record are durable does the worker hear of it.
        self.behind(Guard::GrantAfterDurable).push(Command::Grant(Grant {
            worker: worker.clone(),
            token,
            phase: Phase::Stage,
            run,
            runs,
            attempts: Vec::new(),
            attempt,
            staged: 0,
            publish: false,
            alone,
        }));
    }

    fn next_size(&self, worker: &WorkerKey) -> u64 {
        let slots = self.leases.len() + self.waiting_requests() + 1;
        let pace = self.workers.get(worker).map(|w| w.pace).unwrap_or_default();
        let state = &self.records.state;
        let size =
            pace.next(self.available(), slots as u64, state.sealed, self.spec.min_range, self.spec.max_range);
        self.fit_bytes(size.max(1))
    }

    pub(super) fn waiting_requests(&self) -> usize {
        self.inbox.iter().filter(|(_, event)| matches!(event, crate::Event::Request { .. })).count()
    }

    /// As many of the next `size` tasks as [`LEASE_BYTES`] hold, at least one. A segment's bytes are taken
    /// to be spread evenly over its tasks.
    fn fit_bytes(&self, size: u64) -> u64 {
        let mut next = self.records.cutoff.cutoff + 1;
        let end = next + size - 1;
        let (mut taken, mut bytes) = (0u64, 0u64);
        while next <= end {
            let Some((_, segment)) = self.records.segments.range(..=next).next_back() else { break };
            let part = Run::new(next, segment.run.last.min(end).max(next));
            let each = segment.bytes.div_ceil(segment.run.len()).max(1);
            let room = (LEASE_BYTES.saturating_sub(bytes)) / each;
            if room < part.len() {
                return (taken + room).max(1);
            }
            taken += part.len();
            bytes += part.len() * each;
            next = part.last + 1;
        }
        taken.clamp(1, size)
    }

    pub(super) fn report_stage(&mut self, report: Report, now: Now) {
        let Report { worker, token, done, failed, failure_object, receipt, error, elapsed, .. } = report;
        let first = self.leases[&token].run.first;
        if self.records.decision.is_some() {
            // Its data goes with the range's rollback.
            self.leases.remove(&token);
            self.acknowledge(worker, token, ReportResult::Decided);
            return;
        }
        let lease = self.records.ranges[&first].leases().find(|lease| lease.token == token);
        let runs = lease.map(|lease| lease.runs.clone()).unwrap_or_default();
        if let Some(error) = error {
            self.acknowledge(worker, token, ReportResult::Durable);
            self.lease_failed(token, first, error.0, now);
            return;
        }
        let adds_up = done.checked_add(failed.count()) == Some(runs.count()) && runs.contains_all(&failed);
        let fits =
            self.records.ranges[&first].weight() + receipt.len() + 12 * failed.iter().len() <= RECORD_BYTES;
        if !adds_up || !fits {
            let text = if adds_up {
                format!("a receipt of {} bytes is more than the record of its range holds", receipt.len())
            } else {
                format!("{done} staged and {} failed, of a lease of {} tasks", failed.count(), runs.count())
            };
            self.acknowledge(worker, token, ReportResult::Invalid(text.clone()));
            self.lease_failed(token, first, format!("invalid report: {text}"), now);
            return;
        }
        self.leases.remove(&token);
        if let Some(state) = self.workers.get_mut(&worker) {
            state.pace.finished(runs.count(), elapsed);
        }
        self.typical.finished(elapsed);
        let staged = runs.minus(&failed);
        self.records.state.staged += staged.count();
        self.records.state.failed += failed.count();
        let range = self.records.ranges.get_mut(&first).expect("a leased range is there");
        range.end_lease(token);
        range.errors = 0;
        range.win(Winner { token, worker: worker.id.to_string(), runs: staged, receipt });
        range.failed_runs = range.failed_runs.union(&failed);
        range.failure_objects.extend(failure_object);
        self.stop_others(first, now);
        self.finish_staging(first, now);
        self.acknowledge(worker, token, ReportResult::Durable);
    }

    /// Decides whether a range whose lease ended is accounted for, or has tasks left (a retry came while
    /// it was leased).
    fn finish_staging(&mut self, first: u64, now: Now) {
        let range = self.records.ranges.get_mut(&first).expect("a leased range is there");
        if range.missing().is_empty() {
            range.phase = RangePhase::Staged;
        } else {
            self.again.push_front(Waiting { first, ready_at: now.at, attempt: range.losses });
        }
        self.touch(first);
    }

    /// The handler couldn't work at all: the lease is given again after a pause, and after as many tries
    /// as the spec allows its tasks fail.
    fn lease_failed(&mut self, token: Token, first: u64, message: String, now: Now) {
        self.leases.remove(&token);
        let range = self.records.ranges.get_mut(&first).expect("a leased range is there");
        range.drop_lease(token);
        range.errors += 1;
        let errors = range.errors;
        self.message.clone_from(&message);
        if self.goes_on_alone(first, now) {
            return;
        }
        if errors >= self.spec.max_attempts {
            self.fail_missing(first, "STAGE_ERROR", message, now);
        } else {
            let ready_at = now.at + self.settings.pause(errors - 1);
            self.again.push_back(Waiting { first, ready_at, attempt: errors });
            self.touch(first);
        }
    }

    fn fail_missing(&mut self, first: u64, code: &str, message: String, now: Now) {
        let range = self.records.ranges.get_mut(&first).expect("a range that fails is there");
        let missing = range.missing();
        self.records.state.failed += missing.count();
        range.failed_runs = range.failed_runs.union(&missing);
        let mut message = message;
        message.truncate(message.floor_char_boundary(512));
        range.inline_failures.push(InlineFailure { runs: missing, code: code.to_owned(), message });
        self.finish_staging(first, now);
    }

    /// The range's worker was lost. A range that lost too many is split, down to the task that kills.
    pub(super) fn lose_stage(&mut self, token: Token, first: u64, worker: &WorkerKey, now: Now) {
        let max = self.spec.max_attempts;
        let range = self.records.ranges.get_mut(&first).expect("a leased range is there");
        range.drop_lease(token);
        range.losses += 1;
        let losses = range.losses;
        if self.goes_on_alone(first, now) {
            return;
        }
        let range = &self.records.ranges[&first];
        if losses < max {
            self.again.push_front(Waiting { first, ready_at: now.at, attempt: losses });
            self.touch(first);
            return;
        }
        let missing = range.missing();
        if missing.count() <= 1 {
            let message =
                format!("{losses} workers were lost while they staged it, the last was {}", worker.id);
            self.fail_missing(first, "WORKER_LOST", message, now);
            return;
        }
        let (left, right) = split(range, max);
        for half in [right, left] {
            let (first, attempt) = (half.run.first, half.losses);
            if half.missing().is_empty() {
                unreachable!("both halves of a split have tasks missing");
            }
            self.records.ranges.insert(first, half);
            self.touch(first);
            self.again.push_front(Waiting { first, ready_at: now.at, attempt });
        }
    }
}

/// Splits a range in the middle of the tasks that it misses. One more loss splits a half again.
fn split(range: &RangeRecord, max_attempts: u32) -> (RangeRecord, RangeRecord) {
    let missing = range.missing();
    let mut left = missing.count() / 2;
    let mut middle = range.run.first;
    for run in missing.iter() {
        if left <= run.len() {
            middle = run.first + left - 1;
            break;
        }
        left -= run.len();
    }
    let half = |run: Run| RangeRecord {
        run,
        phase: RangePhase::Leased,
        lease: None,
        backup: None,
        winners: range
            .winners
            .iter()
            .filter(|winner| winner.runs.is_empty() || !winner.runs.within(run).is_empty())
            .map(|winner| Winner { runs: winner.runs.within(run), ..winner.clone() })
            .collect(),
        losers: range.losers.clone(),
        stopping: range.stopping.clone(),
        failed_runs: range.failed_runs.within(run),
        failure_objects: range.failure_objects.clone(),
        inline_failures: range
            .inline_failures
            .iter()
            .map(|failure| InlineFailure { runs: failure.runs.within(run), ..failure.clone() })
            .filter(|failure| !failure.runs.is_empty())
            .collect(),
        // One at least: it is known to have lost a worker.
        losses: (max_attempts - 1).max(1),
        errors: 0,
    };
    (half(Run::new(range.run.first, middle)), half(Run::new(middle + 1, range.run.last)))
}
