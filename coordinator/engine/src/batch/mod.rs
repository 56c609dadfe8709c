//! One batch at its owner.

mod finish;
mod stage;
mod workers;

use crate::Phase;
use crate::event::{Answer, Command, Event, OpId, Refusal, Report, ReportResult, Write};
use crate::ids::{Epoch, Now, Token, WorkerKey};
use crate::record::{Decision, Outcome, RangePhase, Reason, Records, State, StateRecord};
use crate::runs::Run;
use crate::spec::{CommitMode, Spec};
use finish::Closing;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;
use workers::WorkerState;

/// Records of one write, at most: with the state, the cut-off, the decision and the lock they stay
/// below the store's 128 operations.
const WRITE_RECORDS: usize = 100;
/// Bytes of one write, about, at most: below etcd's request limit of 1.5 MiB with room for two more
/// records of the largest kind.
const WRITE_BYTES: usize = 512 * 1024;
/// Bytes of one range's record, about, at most: a write that is nearly full still takes two of them, the
/// halves of a split. An attempt that would make it larger doesn't count.
const RECORD_BYTES: usize = 384 * 1024;
/// How long tasks of a batch that isn't sealed may wait for more, before a small lease is made of them.
const LINGER: Duration = Duration::from_millis(20);

/// The owner's settings.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How long a lease lives without a heartbeat.
    pub lease_ttl: Duration,
    /// How long a lease that failed as a whole waits before it is given again; doubles each time.
    pub retry_pause: Duration,
    /// The longest such wait.
    pub retry_pause_max: Duration,
}

impl Settings {
    fn pause(&self, failed_before: u32) -> Duration {
        self.retry_pause.saturating_mul(1 << failed_before.min(20)).min(self.retry_pause_max)
    }
}

/// What [`Batch::step`] brings.
#[derive(Debug, Default)]
pub struct Step {
    /// To be done now; nothing here waits for a write.
    pub commands: Vec<Command>,
    /// To be made durable; then call [`Batch::written`], or [`Batch::reload`] if it was refused.
    pub write: Option<Write>,
}

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
struct LiveLease {
    worker: WorkerKey,
    run: Run,
    phase: Phase,
    attempt: u32,
    granted_at: Duration,
    /// When its worker could first know of it; `None`: its write isn't durable yet. Zero: another owner
    /// sent it.
    sent_at: Option<Duration>,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    first: u64,
    ready_at: Duration,
    attempt: u32,
}

#[derive(Debug)]
struct Retrying {
    op: OpId,
    next: u64,
    tasks: u64,
}

#[derive(Debug, Default)]
struct Dirty {
    state: bool,
    cutoff: bool,
    decision: bool,
    report: bool,
    release: bool,
    segments: BTreeSet<u64>,
    /// With the bytes that each was counted with.
    ranges: BTreeMap<u64, usize>,
    folded: Vec<u64>,
    bytes: usize,
}

impl Dirty {
    fn full(&self) -> bool {
        self.segments.len() + self.ranges.len() + self.folded.len() >= WRITE_RECORDS
            || self.bytes >= WRITE_BYTES
    }

    fn any(&self) -> bool {
        // `cutoff`, `segments`, `ranges` and `folded` never change without the state being marked, but
        // asking for all costs nothing.
        self.state || self.cutoff || self.decision || self.release || self.full_of_something()
    }

    fn full_of_something(&self) -> bool {
        !(self.segments.is_empty() && self.ranges.is_empty() && self.folded.is_empty())
    }
}

/// One batch at its owner: the records as the last durable write (and the one in flight) left them, and
/// what only lives in memory.
#[derive(Debug)]
pub struct Batch {
    spec: Spec,
    epoch: Epoch,
    settings: Settings,
    records: Records,

    inbox: VecDeque<(Now, Event)>,
    /// Somebody else's decision. It stands already, so it is worked in before anything that came earlier:
    /// nothing may be granted or counted beside it.
    heard: Option<Decision>,
    /// Events that are worked into the write in flight, so that a refused write loses none of them.
    unsettled: Vec<(Now, Event)>,
    out: Vec<Command>,
    after: Vec<Command>,
    dirty: Dirty,
    in_flight: bool,

    leases: BTreeMap<Token, LiveLease>,
    /// Leases of refused writes, which their workers never heard of. A write whose answer was lost may be
    /// applied after the records were read; no lease of it is out even then. Empty after the next write,
    /// which no older one can follow.
    unsent: BTreeSet<Token>,
    workers: HashMap<WorkerKey, WorkerState>,
    /// Ranges to be leased for staging again.
    again: VecDeque<Waiting>,
    /// Ranges to be committed or rolled back.
    finish: VecDeque<Waiting>,
    /// Ranges that are neither `finish`ed nor waiting: leased for commit or rollback.
    closing: Closing,
    retrying: Option<Retrying>,
    /// Since when tasks wait for more to come, in a batch that isn't sealed.
    lingering_since: Option<Duration>,
    message: String,
    ended: bool,
}

impl Batch {
    /// Takes a batch over from its records (a new batch has none but its state). Leases that are out get
    /// one full time to live to be renewed.
    pub fn new(spec: Spec, epoch: Epoch, settings: Settings, records: Records, now: Now) -> Self {
        let mut batch = Self {
            spec,
            epoch,
            settings,
            records,
            inbox: VecDeque::new(),
            heard: None,
            unsettled: Vec::new(),
            out: Vec::new(),
            after: Vec::new(),
            dirty: Dirty::default(),
            in_flight: false,
            leases: BTreeMap::new(),
            unsent: BTreeSet::new(),
            workers: HashMap::new(),
            again: VecDeque::new(),
            finish: VecDeque::new(),
            closing: Closing::Idle,
            retrying: None,
            lingering_since: None,
            message: String::new(),
            ended: false,
        };
        batch.take_up(now);
        batch
    }

    /// Makes the volatile part from the records.
    fn take_up(&mut self, now: Now) {
        let before = std::mem::take(&mut self.leases);
        self.again.clear();
        self.finish.clear();
        self.closing = Closing::Idle;
        self.retrying = None;
        for (first, range) in &self.records.ranges {
            if range.phase != RangePhase::Leased {
                continue;
            }
            match range.lease.as_ref().filter(|lease| !self.unsent.contains(&lease.token)) {
                Some(lease) => {
                    self.workers.entry(lease.worker.clone()).or_insert_with(|| WorkerState::new(now.at));
                    self.leases.insert(
                        lease.token,
                        LiveLease {
                            worker: lease.worker.clone(),
                            run: range.run,
                            phase: Phase::Stage,
                            attempt: range.losses,
                            granted_at: now.at,
                            sent_at: Some(
                                before.get(&lease.token).and_then(|l| l.sent_at).unwrap_or(Duration::ZERO),
                            ),
                        },
                    );
                }
                None => {
                    self.again.push_back(Waiting { first: *first, ready_at: now.at, attempt: range.losses });
                }
            }
        }
        match self.records.decision.as_ref().map(|decision| decision.outcome) {
            None => {}
            Some(outcome) => {
                self.again.clear();
                self.queue_finish(outcome, now);
                let phase = match outcome {
                    Outcome::Commit => Phase::Commit,
                    Outcome::Rollback => Phase::Rollback,
                };
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

    /// Takes in an event. It is worked in at the next [`Batch::step`] without a write in flight.
    pub fn push(&mut self, event: Event, now: Now) {
        match event {
            Event::Decided(decision) => self.heard = Some(decision),
            event => self.inbox.push_back((now, event)),
        }
    }

    /// A worker is alive.
    pub fn seen(&mut self, worker: &WorkerKey, at: Duration) {
        if let Some(state) = self.workers.get_mut(worker) {
            state.seen = state.seen.max(at);
        }
    }

    /// Works in what gathered, as much as one write holds. While a write is in flight nothing happens.
    /// After [`Batch::written`] and [`Batch::reload`] it must be called again, also without a new event:
    /// what is to be done may take several writes.
    pub fn step(&mut self, now: Now) -> Step {
        if self.ended {
            // Calls that came while the last write was in flight are answered; nothing of them is written.
            while let Some((at, event)) = self.inbox.pop_front() {
                self.work_in(at, event, now);
            }
            self.unsettled.clear();
            self.out.append(&mut self.after);
            return Step { commands: std::mem::take(&mut self.out), write: None };
        }
        if self.in_flight {
            return Step { commands: std::mem::take(&mut self.out), write: None };
        }
        if let Some(decision) = self.heard.take() {
            self.decided(decision, now);
        }
        self.expire(now);
        self.pump_retry(now);
        while !self.dirty.full() {
            let Some((at, event)) = self.inbox.pop_front() else { break };
            self.work_in(at, event, now);
        }
        self.advance(now);
        // First the write: if there is none, what would have waited for it goes now.
        let write = self.take_write();
        Step { commands: std::mem::take(&mut self.out), write }
    }

    /// The write is durable: what waited for it.
    pub fn written(&mut self, now: Now) -> Vec<Command> {
        self.in_flight = false;
        self.unsettled.clear();
        self.unsent.clear();
        for command in &self.after {
            match command {
                Command::Grant(grant) => {
                    if let Some(lease) = self.leases.get_mut(&grant.token) {
                        lease.granted_at = now.at;
                        lease.sent_at = Some(now.at);
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
        let unanswered: Vec<OpId> = self.retrying.iter().map(|retrying| retrying.op).collect();
        for op in unanswered {
            self.retry_again(op, now);
        }
        // Finishing leases take their tokens without a write: what the record says may be older.
        let next_token = self.records.cutoff.next_token.max(records.cutoff.next_token);
        self.records = records;
        self.records.cutoff.next_token = next_token;
        for state in self.workers.values_mut() {
            state.told_to_leave = None;
        }
        let after = std::mem::take(&mut self.after);
        self.take_up(now);
        for command in after {
            match command {
                Command::Grant(grant) => match self.leases.get_mut(&grant.token) {
                    // It was decided meanwhile: nothing is begun any more.
                    Some(_) if self.records.decision.is_some() => {
                        self.leases.remove(&grant.token);
                        self.out.push(Command::Return { worker: grant.worker });
                    }
                    Some(lease) => {
                        lease.sent_at = Some(now.at);
                        self.out.push(Command::Grant(grant));
                    }
                    None => {
                        self.unsent.insert(grant.token);
                        self.out.push(Command::Return { worker: grant.worker });
                    }
                },
                Command::Answer { op, .. } => self.retry_again(op, now),
                _ => {}
            }
        }
        for event in std::mem::take(&mut self.unsettled).into_iter().rev() {
            self.inbox.push_front(event);
        }
    }

    /// Which ownership this is.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// A call whose events are settled, but not its answer, is a retry that took several writes: it may
    /// have begun some writes ago. What is retried already isn't failed any more.
    fn retry_again(&mut self, op: OpId, now: Now) {
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

    /// True while a write is in flight.
    pub fn busy(&self) -> bool {
        self.in_flight
    }

    /// True while events wait to be worked in.
    pub fn has_events(&self) -> bool {
        !self.inbox.is_empty() || self.heard.is_some()
    }

    /// The state record, as of the last write handed out.
    pub fn state(&self) -> &StateRecord {
        &self.records.state
    }

    /// All records, as of the last write handed out.
    pub fn records(&self) -> &Records {
        &self.records
    }

    /// The last error of a lease that is being retried; empty if all is well.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The leases that are out.
    pub fn leases(&self) -> impl Iterator<Item = LeaseView> + '_ {
        self.leases.iter().map(|(token, lease)| LeaseView {
            token: *token,
            worker: lease.worker.clone(),
            phase: lease.phase,
            run: lease.run,
            attempt: lease.attempt,
            granted_at: lease.granted_at,
            expires_at: self.expires_at(lease),
        })
    }

    /// Workers that hold leases, to be asked whether they were seen.
    pub fn holders(&self) -> BTreeSet<WorkerKey> {
        self.leases.values().map(|lease| lease.worker.clone()).collect()
    }

    /// When [`Batch::step`] has something to do even if nothing happens. `None` while a write is in
    /// flight, since it has nothing to do then.
    pub fn wake_at(&self, now: Now) -> Option<Duration> {
        if self.in_flight || self.ended {
            return None;
        }
        let mut wake: Option<Duration> = None;
        let mut at = |time: Duration| wake = Some(wake.map_or(time, |earliest: Duration| earliest.min(time)));
        for lease in self.leases.values() {
            at(self.expires_at(lease));
        }
        for waiting in self.again.iter().chain(&self.finish) {
            if waiting.ready_at > now.at {
                at(waiting.ready_at);
            }
        }
        if let Closing::Ready { ready_at, .. } = self.closing
            && ready_at > now.at
        {
            at(ready_at);
        }
        if let Some(since) = self.lingering_since
            && since + LINGER > now.at
        {
            at(since + LINGER);
        }
        if self.records.decision.is_none()
            && let Some(deadline) = self.spec.deadline_ms()
        {
            let left = u64::try_from(deadline.saturating_sub(now.wall_ms)).unwrap_or(0);
            at(now.at + Duration::from_millis(left));
        }
        wake
    }

    /// About how many leases could be granted now, beyond the requests that wait to be worked in; the shell
    /// takes as many requests from the queue.
    pub fn appetite(&self, now: Now) -> usize {
        let ready = |queue: &VecDeque<Waiting>| {
            queue.iter().filter(|w| w.ready_at <= now.at).take(WRITE_RECORDS).count()
        };
        let some = match self.records.state.state {
            State::Importing if self.records.decision.is_none() => {
                ready(&self.again) + self.fresh_leases(now)
            }
            State::Importing | State::Held | State::Committed | State::RolledBack => 0,
            State::Committing => ready(&self.finish),
            State::RollingBack => {
                let free = |w: &&Waiting| w.ready_at <= now.at && !self.staging(w.first);
                self.finish.iter().filter(free).take(WRITE_RECORDS).count()
            }
        };
        let closing = matches!(self.closing, Closing::Ready { ready_at, .. } if ready_at <= now.at);
        (some + usize::from(closing)).min(WRITE_RECORDS).saturating_sub(self.waiting_requests())
    }

    fn work_in(&mut self, at: Now, event: Event, now: Now) {
        match &event {
            // A request is returned by a reload; a decision is in the records then.
            Event::Request { .. } | Event::Decided(_) => {}
            _ => self.unsettled.push((at, event.clone())),
        }
        match event {
            Event::Appended { op, segment } => self.appended(op, segment, now),
            Event::Seal { op, total } => self.seal(op, total),
            Event::RetryFailed { op } => self.retry_failed(op, now),
            Event::Request { worker } => self.request(worker, now),
            Event::Report(report) => self.report(report, now),
            Event::Release { worker, token } => self.release(&worker, token, now),
            Event::PhaseAck { worker } => self.phase_ack(&worker),
            Event::Attached { worker, held } => {
                if !self.attached(&worker, &held, at, now) {
                    self.inbox.push_front((at, Event::Attached { worker, held }));
                }
            }
            Event::Gone { worker } => {
                if !self.gone(&worker, now) {
                    self.inbox.push_front((at, Event::Gone { worker }));
                }
            }
            Event::Decided(decision) => self.decided(decision, now),
        }
    }

    fn request(&mut self, worker: WorkerKey, now: Now) {
        let state = self.workers.entry(worker.clone()).or_insert_with(|| WorkerState::new(now.at));
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
            self.out.push(Command::Return { worker });
        }
    }

    fn report(&mut self, report: Report, now: Now) {
        let Report { worker, token, phase, .. } = &report;
        let (worker, token) = (worker.clone(), *token);
        let known = self.leases.get(&token).is_some_and(|l| l.worker == worker && l.phase == *phase);
        if !known {
            let result = self.settled_before(token, *phase);
            // In `after`: it may be the repeat of a report that is in this very write.
            self.after.push(Command::Ack { worker, token, result });
            return;
        }
        match phase {
            Phase::Stage => self.report_stage(report, now),
            Phase::Commit | Phase::Rollback => self.report_range(report, now),
            Phase::Publish | Phase::Sweep => self.report_closing(report, now),
        }
        self.maybe_leave(&worker);
    }

    /// What to say of a report whose lease isn't out: it may be the repeat of one that counted.
    fn settled_before(&self, token: Token, phase: Phase) -> ReportResult {
        let counted =
            self.records.ranges.values().any(|range| range.winners.iter().any(|w| w.token == token));
        match self.records.decision {
            _ if counted => ReportResult::Durable,
            Some(_) if phase == Phase::Stage => ReportResult::Decided,
            Some(_) | None => ReportResult::Stale,
        }
    }

    fn seal(&mut self, op: OpId, total: Option<u64>) {
        let state = &mut self.records.state;
        let answer = if total.is_some_and(|said| said != state.total) {
            Err(Refusal::TotalMismatch(state.total))
        } else if state.sealed {
            Ok(Answer::Sealed)
        } else if self.records.decision.is_some() {
            Err(Refusal::Decided)
        } else {
            state.sealed = true;
            self.dirty.state = true;
            self.lingering_since = None;
            Ok(Answer::Sealed)
        };
        // In `after`, also when nothing changed: what it says may be in this very write.
        self.after.push(Command::Answer { op, answer });
    }

    fn retry_failed(&mut self, op: OpId, now: Now) {
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
    fn pump_retry(&mut self, now: Now) {
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

    fn decided(&mut self, decision: Decision, now: Now) {
        if self.records.decision.is_some() {
            return;
        }
        let phase = match decision.outcome {
            Outcome::Commit => Phase::Commit,
            Outcome::Rollback => Phase::Rollback,
        };
        self.records.decision = Some(decision);
        self.out.push(Command::Broadcast { phase });
        self.enter_decided(now);
    }

    /// Moves on what the counters, the clock and the ranges say.
    fn advance(&mut self, now: Now) {
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

    fn advance_undecided(&mut self, now: Now) {
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
    fn decide(&mut self, outcome: Outcome, reason: Reason, message: String, now: Now) {
        let cutoff = self.records.cutoff.cutoff;
        let phase = match outcome {
            Outcome::Commit => Phase::Commit,
            Outcome::Rollback => Phase::Rollback,
        };
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

    fn enter_decided(&mut self, now: Now) {
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
    }

    fn next_token(&mut self) -> Token {
        self.records.cutoff.next_token += 1;
        Token { epoch: self.epoch, counter: self.records.cutoff.next_token }
    }

    /// The range changed.
    fn touch(&mut self, first: u64) {
        self.dirty.state = true;
        if let Some(range) = self.records.ranges.get(&first) {
            let weight = range.weight();
            let counted = self.dirty.ranges.insert(first, weight).unwrap_or(0);
            self.dirty.bytes = self.dirty.bytes - counted + weight;
        }
    }

    fn take_write(&mut self) -> Option<Write> {
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
