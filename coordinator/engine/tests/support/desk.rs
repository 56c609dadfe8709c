//! An owner's desk: one batch, the model store, a clock in the test's hand. Every write that is applied
//! and every command that leaves is checked.

use super::store::{Refused, Store};
use super::{BORN_MS, invariants, segment, settings, spec};
use std::collections::BTreeSet;
use std::time::Duration;
use tranche_engine::{
    Answer, Batch, Command, Decision, Epoch, Event, Grant, Now, OpId, Outcome, Phase, RangePhase,
    RangeRecord, Reason, Report, ReportResult, Settings, Spec, State, Token, WorkerKey, Write,
};

pub(crate) struct Desk {
    pub(crate) batch: Batch,
    pub(crate) store: Store,
    pub(crate) spec: Spec,
    pub(crate) settings: Settings,
    pub(crate) epoch: u64,
    pub(crate) at: Duration,
    pub(crate) in_flight: Option<Write>,
    /// A write without an answer, which may be applied yet, and what it was made upon.
    limbo: Option<(Write, u64)>,
    /// The store's writes that the owner knows of.
    seen: u64,
    /// The write that was applied last.
    pub(crate) last: Option<Write>,
    /// Stage reports that were staged in part at least, to know what a `Durable` is about.
    pub(crate) counted: BTreeSet<Token>,
    tokens: BTreeSet<Token>,
    pub(crate) ended: bool,
    next_op: u64,
    /// The first rule that was broken.
    pub(crate) broken: Option<String>,
}

impl Desk {
    pub(crate) fn new() -> Self {
        Self::with(spec())
    }

    pub(crate) fn with(spec: Spec) -> Self {
        Self::tuned(spec, settings())
    }

    pub(crate) fn tuned(spec: Spec, settings: Settings) -> Self {
        let store = Store::default();
        let now = Now { at: Duration::from_secs(1000), wall_ms: BORN_MS };
        let batch = Batch::new(spec.clone(), Epoch(7), settings, store.records.clone(), now);
        Self {
            batch,
            store,
            spec,
            settings,
            epoch: 7,
            at: now.at,
            in_flight: None,
            limbo: None,
            seen: 0,
            last: None,
            counted: BTreeSet::new(),
            tokens: BTreeSet::new(),
            ended: false,
            next_op: 0,
            broken: None,
        }
    }

    /// A batch with `total` tasks, sealed.
    pub(crate) fn of(total: u64) -> Self {
        Self::of_with(spec(), total)
    }

    pub(crate) fn of_with(spec: Spec, total: u64) -> Self {
        Self::with(spec).filled(total)
    }

    /// With so many tasks, sealed.
    pub(crate) fn filled(mut self, total: u64) -> Self {
        self.append(1, total);
        self.seal();
        self.settle();
        self
    }

    pub(crate) fn now(&self) -> Now {
        let passed = self.at.saturating_sub(Duration::from_secs(1000));
        Now { at: self.at, wall_ms: BORN_MS + passed.as_millis() as i64 }
    }

    pub(crate) fn wait(&mut self, time: Duration) {
        self.at += time;
    }

    pub(crate) fn wait_seconds(&mut self, seconds: u64) {
        self.wait(Duration::from_secs(seconds));
    }

    pub(crate) fn op(&mut self) -> OpId {
        self.next_op += 1;
        OpId(self.next_op)
    }

    pub(crate) fn push(&mut self, event: Event) {
        self.batch.push(event, self.now());
    }

    pub(crate) fn append(&mut self, first: u64, last: u64) -> OpId {
        let op = self.op();
        self.push(Event::Appended { op, segment: segment(first, last) });
        op
    }

    pub(crate) fn seal(&mut self) -> OpId {
        let op = self.op();
        self.push(Event::Seal { op, total: None });
        op
    }

    pub(crate) fn retry(&mut self) -> OpId {
        let op = self.op();
        self.push(Event::RetryFailed { op });
        op
    }

    pub(crate) fn ask(&mut self, worker: &WorkerKey) {
        self.push(Event::Request { worker: worker.clone() });
    }

    pub(crate) fn report(&mut self, report: Report) {
        self.push(Event::Report(report));
    }

    pub(crate) fn attach(&mut self, worker: &WorkerKey, held: &[Token]) {
        self.push(Event::Attached { worker: worker.clone(), held: held.to_vec() });
    }

    pub(crate) fn gone(&mut self, worker: &WorkerKey) {
        self.push(Event::Gone { worker: worker.clone() });
    }

    /// Somebody else decides in the store; the owner hears of it only by `heard`.
    pub(crate) fn decide(&mut self, outcome: Outcome) -> Option<Decision> {
        let decision = Decision {
            outcome,
            reason: if outcome == Outcome::Commit { Reason::Approved } else { Reason::Cancelled },
            actor: "ann".into(),
            message: String::new(),
            cutoff: self.store.records.cutoff.cutoff,
            decide_time_ms: self.now().wall_ms,
        };
        self.store.decide(decision.clone()).then_some(decision)
    }

    pub(crate) fn cancel(&mut self) {
        let decision = self.decide(Outcome::Rollback).expect("undecided");
        self.push(Event::Decided(decision));
    }

    /// One step; its write stays in flight.
    pub(crate) fn step(&mut self) -> Vec<Command> {
        let step = self.batch.step(self.now());
        if step.write.is_some() {
            assert!(self.in_flight.is_none(), "a second write while one is in flight");
            self.in_flight = step.write;
        }
        self.sent(&step.commands);
        step.commands
    }

    /// The write in flight becomes durable, or is refused as the store's rules say.
    pub(crate) fn land(&mut self) -> Vec<Command> {
        let write = self.in_flight.take().expect("a write in flight");
        if self.seen != self.store.writes {
            // The records aren't those that it compares.
            self.reload();
            return Vec::new();
        }
        match self.store.apply(&write) {
            Err(text) => {
                self.breaks(text);
                Vec::new()
            }
            Ok(Err(Refused)) => {
                self.reload();
                Vec::new()
            }
            Ok(Ok(after)) => {
                if let Err(text) = invariants::check(&self.store, &after) {
                    self.breaks(format!("{text}\nby {write:?}"));
                }
                self.store = after;
                self.seen = self.store.writes;
                self.last = Some(write);
                let commands = self.batch.written(self.now());
                self.sent(&commands);
                commands
            }
        }
    }

    /// The write in flight is applied, and its answer is lost for ever: only the records tell.
    pub(crate) fn apply_unheard(&mut self) {
        let write = self.in_flight.take().expect("a write in flight");
        self.apply_as(write, self.seen);
    }

    /// The write in flight gets no answer and isn't applied yet; the owner goes on from the records.
    pub(crate) fn doubt(&mut self) {
        self.limbo = self.in_flight.take().map(|write| (write, self.seen));
        self.reload();
    }

    /// The write without an answer is applied now, if the records are still those that it compares.
    pub(crate) fn apply_late(&mut self) {
        if let Some((write, seen)) = self.limbo.take() {
            self.apply_as(write, seen);
        }
    }

    fn apply_as(&mut self, write: Write, seen: u64) {
        if seen != self.store.writes {
            return;
        }
        match self.store.apply(&write) {
            Err(text) => self.breaks(text),
            Ok(Err(Refused)) => {}
            Ok(Ok(after)) => {
                if let Err(text) = invariants::check(&self.store, &after) {
                    self.breaks(text);
                }
                self.store = after;
                self.last = Some(write);
            }
        }
    }

    pub(crate) fn reload(&mut self) {
        self.in_flight = None;
        self.seen = self.store.writes;
        self.batch.reload(self.store.records.clone(), self.now());
    }

    /// Steps and lands until nothing is left to do now. All commands in the order in which they left.
    pub(crate) fn settle(&mut self) -> Vec<Command> {
        let mut all = Vec::new();
        for _ in 0..10_000 {
            if self.in_flight.is_none() {
                let commands = self.step();
                let quiet = commands.is_empty() && self.in_flight.is_none();
                all.extend(commands);
                if quiet && !self.batch.has_events() {
                    return all;
                }
            }
            if self.in_flight.is_some() {
                all.extend(self.land());
            }
            if self.broken.is_some() {
                return all;
            }
        }
        self.breaks("I9: steps without end".into());
        all
    }

    /// Another owner takes over from what is in the store.
    pub(crate) fn take_over(&mut self) -> Vec<Command> {
        self.in_flight = None;
        // A write of the old owner compares its lock.
        self.limbo = None;
        self.seen = self.store.writes;
        self.epoch += 3;
        let records = self.store.records.clone();
        self.batch = Batch::new(self.spec.clone(), Epoch(self.epoch), self.settings, records, self.now());
        self.settle()
    }

    /// The worker asks and gets a lease.
    pub(crate) fn lease(&mut self, worker: &WorkerKey) -> Grant {
        self.ask(worker);
        super::the_grant(&self.settle())
    }

    /// The worker asks, gets a lease and does it.
    pub(crate) fn does(&mut self, worker: &WorkerKey) -> Vec<Command> {
        let grant = self.lease(worker);
        self.report(super::done(&grant));
        self.settle()
    }

    pub(crate) fn state(&self) -> State {
        self.store.records.state.state
    }

    fn breaks(&mut self, text: String) {
        self.broken.get_or_insert(text);
    }

    /// What a command says must be durable when it leaves (I6, I7).
    fn sent(&mut self, commands: &[Command]) {
        for command in commands {
            if let Err(text) = self.is_true(command) {
                self.breaks(text);
            }
        }
    }

    fn is_true(&mut self, command: &Command) -> Result<(), String> {
        let records = &self.store.records;
        let outcome = records.decision.as_ref().map(|decision| decision.outcome);
        match command {
            Command::Grant(grant) => {
                if !self.tokens.insert(grant.token) {
                    return Err(format!("I6: token {} is granted twice", grant.token));
                }
                let range = records.ranges.get(&grant.run.first);
                let right = match grant.phase {
                    Phase::Stage => range
                        .into_iter()
                        .flat_map(|range| range.lease.iter().chain(&range.backup))
                        .any(|lease| lease.token == grant.token && lease.runs == grant.runs),
                    Phase::Commit if grant.publish => {
                        // A write without an answer may have made the range itself COMMITTED since.
                        let others = records.state.committed
                            - range
                                .filter(|r| r.phase == RangePhase::Committed)
                                .map_or(0, RangeRecord::staged);
                        let last = range.map_or(0, RangeRecord::staged);
                        outcome == Some(Outcome::Commit) && others + last == records.state.staged
                    }
                    Phase::Commit => outcome == Some(Outcome::Commit),
                    Phase::Rollback => outcome == Some(Outcome::Rollback),
                    Phase::Publish => records.state.committed == records.state.staged,
                    Phase::Sweep => {
                        records.state.state == State::Committed
                            || records.ranges.values().all(|range| range.phase == RangePhase::RolledBack)
                    }
                };
                if right { Ok(()) } else { Err(format!("I7: granted before it is durable: {grant:?}")) }
            }
            Command::Ack { token, result: ReportResult::Durable, .. } if self.counted.contains(token) => {
                let counts =
                    records.ranges.values().any(|range| range.winners.iter().any(|w| w.token == *token));
                if counts || records.state.state.is_final() {
                    Ok(())
                } else {
                    Err(format!("I7: {token} was called durable and isn't"))
                }
            }
            Command::Answer { answer: Ok(Answer::Appended(through)), .. }
                if records.state.total < *through =>
            {
                Err(format!("I7: {through} was called durable and isn't"))
            }
            Command::Answer { answer: Ok(Answer::Sealed), .. } if !records.state.sealed => {
                Err("I7: the seal was called durable and isn't".into())
            }
            Command::Broadcast { .. } | Command::Tell { .. } if outcome.is_none() => {
                Err("I7: told of a decision that isn't durable".into())
            }
            Command::Ended => {
                self.ended = true;
                if self.store.released { Ok(()) } else { Err("I9: ended with the lock held".into()) }
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        if !std::thread::panicking()
            && let Some(text) = &self.broken
        {
            panic!("{text}");
        }
    }
}
