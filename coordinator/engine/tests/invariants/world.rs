//! Several workers, a client, somebody who cancels, owners that crash: a whole batch's life on a model.

mod live;
mod workers;

use crate::action::Action;
use crate::library::Library;
use crate::support::TTL;
use crate::support::desk::Desk;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;
use tranche_engine::{
    Command, Event, Grant, OpId, Outcome, Phase, Report, Runs, Settings, Spec, State, Token, WorkerKey,
};

pub(crate) const WORKERS: usize = 4;
pub(crate) const SLOTS: usize = 3;

/// How often it came to what is rare.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) backups: u32,
    pub(crate) late_sweeps: u32,
}

impl std::ops::Add for Seen {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { backups: self.backups + other.backups, late_sweeps: self.late_sweeps + other.late_sweeps }
    }
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
    /// What a paused process goes on to stage when it wakes up.
    frozen: Vec<(Token, Runs)>,
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
    /// The highest number that the client ever sent.
    appended: u64,
    pub(crate) seen: Seen,
    ops: BTreeSet<OpId>,
    pub(crate) returned_in_vain: u32,
    pub(crate) broken: Option<String>,
}

impl World {
    pub(crate) fn new(spec: Spec, settings: Settings, poison: Option<u64>) -> Self {
        let desk = Desk::tuned(spec, settings);
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
                frozen: Vec::new(),
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
            seen: Seen::default(),
            ops: BTreeSet::new(),
            returned_in_vain: 0,
            broken: None,
        }
    }

    /// Tasks that are there from the start.
    pub(crate) fn begin_with(&mut self, tasks: u64) -> Result<(), String> {
        self.append(tasks, false, false);
        self.step();
        self.land();
        self.verdict()
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
            Action::Freeze { worker } => self.freeze(*worker),
            Action::Start { worker } => self.start(*worker),
            Action::Break { worker } => self.workers[*worker].attached = false,
            Action::Attach { worker } => self.attach(*worker),
            Action::Decide { commit, told } => self.decide(*commit, *told),
            Action::Hear => self.hear(),
            Action::Turn => {
                self.pass(25, true);
                for _ in 0..3 {
                    self.step();
                    self.land();
                }
            }
            Action::Step => self.step(),
            Action::Land => self.land(),
            Action::Refuse => {
                if self.desk.in_flight.is_some() {
                    self.desk.reload();
                }
            }
            Action::Doubt => {
                if self.desk.in_flight.is_some() {
                    self.desk.doubt();
                }
            }
            Action::ApplyLate => {
                self.desk.apply_late();
                self.released();
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
        self.thaw();
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
        self.appended = self.appended.max(first + tasks - 1);
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
        let now = self.desk.now();
        self.desk.batch.gather(now);
        let take = self.desk.batch.appetite(now).min(self.queue.len());
        for key in self.queue.drain(..take).collect::<Vec<_>>() {
            self.desk.ask(&key);
        }
        take
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
                    self.library.stage(token, &workers::a_part(&held.grant));
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
                Command::Return { worker, keep } => {
                    if self.attached(&worker).is_some() {
                        if keep {
                            self.queue.push_front(worker);
                        } else {
                            self.queue.push_back(worker);
                        }
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
                Command::Broadcast { .. } => {
                    for index in 0..self.workers.len() {
                        self.goes_on(index);
                    }
                }
                Command::Tell { worker, .. } => {
                    if let Some(index) = self.attached(&worker) {
                        self.goes_on(index);
                    }
                }
                Command::Answer { op, .. } => {
                    self.ops.remove(&op);
                }
                Command::Leave { .. } | Command::Ended => {}
            }
        }
    }

    fn attached(&self, key: &WorkerKey) -> Option<usize> {
        self.workers.iter().position(|worker| worker.key == *key && worker.attached)
    }
}
