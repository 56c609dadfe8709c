//! Several workers, a client, somebody who cancels, owners that crash: a whole batch's life on a model.

use super::library::Library;
use crate::support::desk::Desk;
use crate::support::{TTL, but, error, found, grants};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;
use tranche_engine::{
    Command, Event, Grant, OpId, Outcome, Phase, RangePhase, Report, Runs, Spec, State, Token, WorkerKey,
};

pub(crate) const WORKERS: usize = 4;
const SLOTS: usize = 3;

/// What happens next. Numbers are taken modulo what there is.
#[derive(Clone, Debug)]
pub(crate) enum Action {
    /// Tasks are appended; with `again`, what was appended last is appended once more.
    Append {
        tasks: u64,
        again: bool,
        gap: bool,
    },
    Seal,
    Retry,
    /// The worker asks for a lease.
    Ask {
        worker: usize,
    },
    /// The worker ends one of its leases.
    Work {
        worker: usize,
        lease: usize,
        how: How,
    },
    /// The worker sends an old report once more.
    Repeat {
        worker: usize,
        report: usize,
    },
    Release {
        worker: usize,
        lease: usize,
    },
    /// The worker dies; if not `noticed`, only its leases' end tells.
    Die {
        worker: usize,
        noticed: bool,
    },
    /// The worker starts again, as a new life.
    Start {
        worker: usize,
    },
    /// The stream breaks: what is sent to the worker is lost until it attaches again.
    Break {
        worker: usize,
    },
    Attach {
        worker: usize,
    },
    /// Somebody else decides. Unless `told`, the owner finds out by a refused write, or later.
    Decide {
        commit: bool,
        told: bool,
    },
    /// The owner hears of the decision.
    Hear,
    Step,
    Land,
    /// The store couldn't say what became of the write, and it wasn't applied.
    Refuse,
    /// It was applied, but the owner only sees it in the records.
    LoseAnswer,
    /// The owner crashes; another takes over.
    Crash {
        applied: bool,
        silent: bool,
    },
    /// Time passes; attached workers' heartbeats arrive, if they do.
    Pass {
        ms: u64,
        heartbeats: bool,
    },
}

#[derive(Clone, Debug)]
pub(crate) enum How {
    Well,
    /// Of the tasks, those whose number has this remainder by 3 fail.
    Partly(u64),
    AllFail,
    Error,
    Nonsense,
    /// It is done and reported, but the report is lost.
    Unheard,
}

#[derive(Debug)]
struct Held {
    grant: Grant,
    since: Duration,
    report: Option<Report>,
}

#[derive(Debug)]
struct Worker {
    key: WorkerKey,
    lives: u32,
    alive: bool,
    attached: bool,
    heard: Duration,
    leases: BTreeMap<Token, Held>,
    old: Vec<Report>,
    asked: usize,
    /// The death of an earlier life that the owner wasn't told of.
    unnoticed: Vec<WorkerKey>,
}

pub(crate) struct World {
    pub(crate) desk: Desk,
    pub(crate) library: Library,
    workers: Vec<Worker>,
    queue: VecDeque<WorkerKey>,
    poison: Option<u64>,
    heard_decision: bool,
    appended: u64,
    ops: BTreeSet<OpId>,
    pub(crate) returned_in_vain: u32,
    pub(crate) broken: Option<String>,
}

impl World {
    pub(crate) fn new(spec: Spec, poison: Option<u64>) -> Self {
        let desk = Desk::with(spec);
        let at = desk.at;
        let workers = (0..WORKERS)
            .map(|index| Worker {
                key: WorkerKey::new(format!("w{index}"), "1"),
                lives: 1,
                alive: true,
                attached: true,
                heard: at,
                leases: BTreeMap::new(),
                old: Vec::new(),
                asked: 0,
                unnoticed: Vec::new(),
            })
            .collect();
        Self {
            desk,
            library: Library::default(),
            workers,
            queue: VecDeque::new(),
            poison,
            heard_decision: false,
            appended: 0,
            ops: BTreeSet::new(),
            returned_in_vain: 0,
            broken: None,
        }
    }

    pub(crate) fn verdict(&mut self) -> Result<(), String> {
        match self.broken.take().or_else(|| self.desk.broken.take()) {
            Some(text) => Err(text),
            None => Ok(()),
        }
    }

    fn breaks(&mut self, text: String) {
        self.broken.get_or_insert(text);
    }

    pub(crate) fn act(&mut self, action: &Action) -> Result<(), String> {
        if self.desk.ended {
            return self.verdict();
        }
        match action {
            Action::Append { tasks, again, gap } => self.append(*tasks, *again, *gap),
            Action::Seal => {
                let op = self.desk.seal();
                self.ops.insert(op);
            }
            Action::Retry => {
                let op = self.desk.retry();
                self.ops.insert(op);
            }
            Action::Ask { worker } => self.ask(*worker),
            Action::Work { worker, lease, how } => self.work(*worker, *lease, how),
            Action::Repeat { worker, report } => self.repeat(*worker, *report),
            Action::Release { worker, lease } => self.release(*worker, *lease),
            Action::Die { worker, noticed } => self.die(*worker, *noticed),
            Action::Start { worker } => self.start(*worker),
            Action::Break { worker } => self.workers[*worker].attached = false,
            Action::Attach { worker } => self.attach(*worker),
            Action::Decide { commit, told } => self.decide(*commit, *told),
            Action::Hear => self.hear(),
            Action::Step => self.step(),
            Action::Land => self.land(),
            Action::Refuse => {
                if self.desk.in_flight.is_some() {
                    self.desk.reload();
                }
            }
            Action::LoseAnswer => {
                if self.desk.in_flight.is_some() {
                    self.desk.apply_unheard();
                    if !self.released() {
                        self.desk.reload();
                    }
                }
            }
            Action::Crash { applied, silent } => self.crash(*applied, *silent),
            Action::Pass { ms, heartbeats } => self.pass(*ms, *heartbeats),
        }
        self.bounded();
        self.verdict()
    }

    fn append(&mut self, tasks: u64, again: bool, gap: bool) {
        let total = self.desk.batch.state().total;
        let first = match (again, gap) {
            (true, _) => self.desk.store.records.segments.keys().next_back().copied().unwrap_or(1),
            (_, true) => total + 2,
            _ => total + 1,
        };
        let op = self.desk.append(first, first + tasks - 1);
        self.ops.insert(op);
        self.appended += 1;
    }

    fn ask(&mut self, index: usize) {
        let worker = &mut self.workers[index];
        if worker.alive && worker.attached && worker.leases.len() + worker.asked < SLOTS {
            worker.asked += 1;
            self.queue.push_back(worker.key.clone());
        }
    }

    /// The shell takes requests from the queue, as many as the engine says.
    fn take_requests(&mut self) -> usize {
        let take = self.desk.batch.appetite(self.desk.now()).min(self.queue.len());
        for key in self.queue.drain(..take).collect::<Vec<_>>() {
            self.desk.ask(&key);
        }
        take
    }

    fn work(&mut self, index: usize, lease: usize, how: &How) {
        let poison = self.poison;
        let worker = &mut self.workers[index];
        if !worker.alive || worker.leases.is_empty() {
            return;
        }
        let token = *worker.leases.keys().nth(lease % worker.leases.len()).expect("modulo");
        let held = worker.leases.get_mut(&token).expect("just found");
        let grant = held.grant.clone();
        if grant.phase == Phase::Stage && poison.is_some_and(|task| grant.runs.contains(task)) {
            // Something of it was staged before the worker died.
            self.library.stage(token, &a_part(&grant));
            return self.die(index, true);
        }
        let report = match held.report.clone() {
            Some(report) => report,
            None => match Self::report(&mut self.library, &grant, how) {
                Ok(report) => report,
                Err(text) => return self.breaks(text),
            },
        };
        held.report = Some(report.clone());
        worker.old.push(report.clone());
        if report.phase == Phase::Stage && report.error.is_none() && report.done > 0 {
            let valid = report.done + report.failed.count() == grant.runs.count();
            if valid {
                self.desk.counted.insert(token);
            }
        }
        if worker.attached && !matches!(how, How::Unheard) {
            self.desk.report(report);
        }
    }

    fn report(library: &mut Library, grant: &Grant, how: &How) -> Result<Report, String> {
        if matches!(how, How::Error) {
            if grant.phase == Phase::Stage {
                library.stage(grant.token, &grant.runs);
            }
            return Ok(error(grant, "no space left on device"));
        }
        if grant.phase != Phase::Stage {
            let residue = library.finish(grant)?;
            return Ok(found(grant, residue));
        }
        let failed: Runs = match how {
            How::Partly(rest) => {
                let numbers = grant.runs.iter().flat_map(|run| run.first..=run.last);
                numbers.filter(|number| number % 3 == *rest).collect()
            }
            How::AllFail => grant.runs.clone(),
            How::Well | How::Error | How::Nonsense | How::Unheard => Runs::default(),
        };
        library.stage(grant.token, &grant.runs.minus(&failed));
        let mut report = but(grant, failed);
        if matches!(how, How::Nonsense) {
            report.done += 1;
        }
        Ok(report)
    }

    fn repeat(&mut self, index: usize, report: usize) {
        let worker = &self.workers[index];
        if !worker.old.is_empty() {
            let report = worker.old[report % worker.old.len()].clone();
            self.desk.report(report);
        }
    }

    fn release(&mut self, index: usize, lease: usize) {
        let worker = &mut self.workers[index];
        let idle: Vec<Token> =
            worker.leases.iter().filter(|(_, held)| held.report.is_none()).map(|(token, _)| *token).collect();
        if worker.alive && worker.attached && !idle.is_empty() {
            let token = idle[lease % idle.len()];
            worker.leases.remove(&token);
            let key = worker.key.clone();
            self.desk.push(Event::Release { worker: key, token });
        }
    }

    fn die(&mut self, index: usize, noticed: bool) {
        let worker = &mut self.workers[index];
        if !worker.alive {
            return;
        }
        worker.alive = false;
        worker.attached = false;
        worker.asked = 0;
        for (token, held) in std::mem::take(&mut worker.leases) {
            if held.grant.phase == Phase::Stage && held.report.is_none() {
                // It was in the middle of it.
                self.library.stage(token, &a_part(&held.grant));
            }
        }
        let key = worker.key.clone();
        self.queue.retain(|other| *other != key);
        if noticed {
            self.desk.gone(&key);
        } else {
            self.workers[index].unnoticed.push(key);
        }
    }

    fn start(&mut self, index: usize) {
        let worker = &mut self.workers[index];
        if worker.alive {
            return;
        }
        worker.lives += 1;
        worker.key = WorkerKey::new(worker.key.id.clone(), worker.lives.to_string());
        worker.alive = true;
        self.attach(index);
    }

    fn attach(&mut self, index: usize) {
        let worker = &mut self.workers[index];
        if !worker.alive || worker.attached {
            return;
        }
        worker.attached = true;
        worker.asked = 0;
        worker.heard = self.desk.at;
        let key = worker.key.clone();
        let held: Vec<Token> = worker.leases.keys().copied().collect();
        let reports: Vec<Report> = worker.leases.values().filter_map(|held| held.report.clone()).collect();
        self.queue.retain(|other| *other != key);
        self.desk.attach(&key, &held);
        for report in reports {
            self.desk.report(report);
        }
    }

    fn decide(&mut self, commit: bool, told: bool) {
        let outcome = if commit { Outcome::Commit } else { Outcome::Rollback };
        // An approval compares the state's record, and that it says HELD.
        if commit && self.desk.store.records.state.state != State::Held {
            return;
        }
        if self.desk.decide(outcome).is_some() && told {
            self.hear();
        }
    }

    fn hear(&mut self) {
        if !self.heard_decision
            && let Some(decision) = self.desk.store.records.decision.clone()
        {
            self.heard_decision = true;
            self.desk.push(Event::Decided(decision));
        }
    }

    fn step(&mut self) {
        self.take_requests();
        let commands = self.desk.step();
        self.deliver(commands);
    }

    fn land(&mut self) {
        if self.desk.in_flight.is_some() {
            let commands = self.desk.land();
            self.deliver(commands);
        }
    }

    fn crash(&mut self, applied: bool, silent: bool) {
        if self.desk.in_flight.is_some() && applied {
            self.desk.apply_unheard();
        }
        if self.released() {
            return;
        }
        self.ops.clear();
        self.queue.clear();
        self.desk.in_flight = None;
        let commands = self.desk.take_over();
        self.heard_decision = self.desk.store.records.decision.is_some();
        self.deliver(commands);
        for index in 0..self.workers.len() {
            let worker = &mut self.workers[index];
            for key in worker.unnoticed.drain(..) {
                // A new owner doesn't know it: its leases lapse.
                drop(key);
            }
            worker.asked = 0;
            let attached = std::mem::replace(&mut worker.attached, false);
            if attached && !silent {
                self.attach(index);
            }
        }
    }

    /// The last write was applied unheard: the lock is gone, and nobody takes a swept batch.
    fn released(&mut self) -> bool {
        if self.desk.store.released {
            self.desk.ended = true;
            self.ops.clear();
        }
        self.desk.store.released
    }

    fn pass(&mut self, ms: u64, heartbeats: bool) {
        self.desk.wait(Duration::from_millis(ms));
        let at = self.desk.at;
        for worker in &mut self.workers {
            if worker.alive && worker.attached && heartbeats {
                worker.heard = at;
                self.desk.batch.seen(&worker.key, at);
            }
            // A worker stops by itself when nobody hears it.
            let heard = worker.heard;
            let lapsed: Vec<Token> = worker
                .leases
                .iter()
                .filter(|(_, held)| held.since.max(heard) + TTL <= at)
                .map(|(token, _)| *token)
                .collect();
            for token in lapsed {
                let held = worker.leases.remove(&token).expect("just listed");
                if held.grant.phase == Phase::Stage && held.report.is_none() {
                    self.library.stage(token, &a_part(&held.grant));
                }
            }
        }
    }

    fn deliver(&mut self, commands: Vec<Command>) {
        for command in commands {
            match command {
                Command::Grant(grant) => self.hand_out(grant),
                Command::Ack { worker, token, .. }
                | Command::Revoke { worker, token, .. }
                | Command::Freed { worker, token } => self.drop_lease(&worker, token),
                Command::Return { worker } => {
                    if let Some(known) = self.attached(&worker) {
                        let _ = known;
                        self.queue.push_front(worker);
                    }
                }
                Command::Broadcast { phase: Phase::Rollback } => {
                    for index in 0..self.workers.len() {
                        self.stop_staging(index);
                    }
                }
                Command::Tell { worker, phase: Phase::Rollback } => {
                    if let Some(index) = self.attached(&worker) {
                        self.stop_staging(index);
                    }
                }
                Command::Answer { op, .. } => {
                    self.ops.remove(&op);
                }
                Command::Broadcast { .. } | Command::Tell { .. } | Command::Leave { .. } | Command::Ended => {
                }
            }
        }
    }

    fn attached(&self, key: &WorkerKey) -> Option<usize> {
        self.workers.iter().position(|worker| worker.key == *key && worker.attached)
    }

    fn hand_out(&mut self, grant: Grant) {
        if grant.phase == Phase::Rollback {
            let at_work = self.workers.iter().find(|worker| {
                worker.leases.values().any(|held| {
                    held.grant.phase == Phase::Stage
                        && held.report.is_none()
                        && held.grant.run.first <= grant.run.last
                        && held.grant.run.last >= grant.run.first
                })
            });
            if let Some(worker) = at_work {
                let text = format!("I4: {:?} is rolled back while {} stages it", grant.run, worker.key.id);
                self.breaks(text);
            }
        }
        let at = self.desk.at;
        let Some(index) = self.attached(&grant.worker) else { return };
        let worker = &mut self.workers[index];
        worker.asked = worker.asked.saturating_sub(1);
        worker.heard = worker.heard.max(at);
        worker.leases.insert(grant.token, Held { grant, since: at, report: None });
    }

    fn drop_lease(&mut self, key: &WorkerKey, token: Token) {
        let Some(index) = self.attached(key) else { return };
        if let Some(held) = self.workers[index].leases.remove(&token)
            && held.grant.phase == Phase::Stage
            && held.report.is_none()
        {
            self.library.stage(token, &a_part(&held.grant));
        }
    }

    fn stop_staging(&mut self, index: usize) {
        let worker = &mut self.workers[index];
        if !worker.attached {
            return;
        }
        let staging: Vec<Token> = worker
            .leases
            .iter()
            .filter(|(_, held)| held.grant.phase == Phase::Stage)
            .map(|(token, _)| *token)
            .collect();
        let key = worker.key.clone();
        for token in staging {
            self.drop_lease(&key, token);
        }
        self.desk.push(Event::PhaseAck { worker: key });
    }

    /// I10: what the engine holds is bounded by what workers can hold, and by what was lost within a TTL.
    fn bounded(&mut self) {
        let leases = self.desk.batch.leases().count();
        let lives: u32 = self.workers.iter().map(|worker| worker.lives).sum();
        if leases > lives as usize * SLOTS * 4 {
            self.breaks(format!("I10: {leases} leases of {lives} lives"));
        }
    }

    /// Faults stop. The client finishes, the workers work well, and the batch ends by itself (I9).
    pub(crate) fn live(&mut self) -> Result<(), String> {
        self.land();
        if self.desk.ended {
            self.step();
            return self.at_the_end();
        }
        if self.desk.batch.state().total == 0 {
            self.append(5, false, false);
        }
        let op = self.desk.seal();
        self.ops.insert(op);
        for round in 0..1500 {
            self.pass(100, true);
            for index in 0..self.workers.len() {
                self.start(index);
                self.attach(index);
                for _ in 0..SLOTS {
                    self.ask(index);
                    self.work(index, 0, &How::Well);
                }
            }
            self.hear();
            if self.desk.state() == State::Held {
                self.decide(true, true);
            }
            self.pump()?;
            self.verdict()?;
            if self.desk.ended {
                self.step();
                return self.at_the_end();
            }
            if round == 600 {
                // By now everything is sealed, also if the seal's own write was lost.
                self.desk.seal();
            }
        }
        let leases: Vec<_> = self.desk.batch.leases().collect();
        Err(format!(
            "I9: no end in sight: {:?}, {leases:?}, queue {:?}, message {}",
            self.desk.batch.state(),
            self.queue,
            self.desk.batch.message()
        ))
    }

    /// Steps until nothing is left to do at this moment; no busy loops.
    fn pump(&mut self) -> Result<(), String> {
        for _ in 0..1000 {
            let taken = self.take_requests();
            let queued = self.queue.len();
            let commands = self.desk.step();
            let granted = grants(&commands).len();
            let quiet = commands.iter().all(|command| matches!(command, Command::Return { .. }));
            self.deliver(commands);
            if self.desk.in_flight.is_some() {
                self.land();
            } else if taken > 0 && granted == 0 && quiet && self.queue.len() == queued + taken {
                self.returned_in_vain += 1;
                if self.desk.batch.appetite(self.desk.now()) > 0 {
                    return Err("appetite: it asks for requests, and returns them all".into());
                }
            } else if quiet && !self.desk.batch.has_events() && taken == 0 {
                let now = self.desk.now();
                if self.desk.batch.wake_at(now).is_some_and(|wake| wake <= now.at) {
                    return Err("wake: it wants to be woken in the past, for ever".into());
                }
                return Ok(());
            }
            self.verdict()?;
            if self.desk.ended {
                return Ok(());
            }
        }
        Err("I9: a thousand steps at one moment".into())
    }

    /// I4, and nothing is owed to anybody.
    fn at_the_end(&mut self) -> Result<(), String> {
        let records = &self.desk.store.records;
        let state = &records.state;
        if !self.library.staged.is_empty() {
            return Err(format!("I4: staged data is left: {:?}", self.library.staged));
        }
        match state.state {
            State::Committed => {
                if self.library.visible.count() != state.staged || state.committed != state.staged {
                    return Err(format!("I4: {:?} is visible, {state:?}", self.library.visible));
                }
                if state.staged + state.failed != state.total {
                    return Err(format!("I1: {state:?}"));
                }
                if state.staged > 0 && !self.library.published {
                    return Err("I4: never published".into());
                }
                for range in records.ranges.values() {
                    if range.phase == RangePhase::Leased {
                        return Err(format!("I1: {:?} is open at the end", range.run));
                    }
                    let seen = range.failed_runs.minus(&self.library.visible);
                    if seen != range.failed_runs {
                        return Err(format!("I4: failed tasks of {:?} are visible", range.run));
                    }
                }
            }
            State::RolledBack => {
                if !self.library.visible.is_empty() || self.library.published {
                    return Err(format!("I4: {:?} is visible after a rollback", self.library.visible));
                }
            }
            other => return Err(format!("I9: ended in {other:?}")),
        }
        if !self.ops.is_empty() {
            return Err(format!("I7: clients are never answered: {:?}", self.ops));
        }
        if self.desk.store.reports != 1 {
            return Err(format!("I9: {} completion reports", self.desk.store.reports));
        }
        Ok(())
    }
}

/// What a worker that was stopped had staged of it.
fn a_part(grant: &Grant) -> Runs {
    grant.runs.iter().take(1).collect()
}
