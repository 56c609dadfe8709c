//! The session's state machine: events and the time in, commands out.

use super::held::{Held, Job, Outcome, Stage, report};
use super::link::{Link, Phase};
use crate::lease::Token;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;
use tracing::{info, warn};
use tranche_proto::v1::attach_request::Frame as Out;
use tranche_proto::{PROTOCOL_VERSION, v1};

/// Time since the worker started.
pub type Now = Duration;
/// A coordinator: its place in the worker's list of URLs.
pub type LinkId = usize;

/// What the machine needs to know of its worker.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The worker's id.
    pub worker: String,
    /// New at each start of the process.
    pub incarnation: String,
    /// The handlers it has.
    pub handlers: BTreeSet<String>,
    /// How many leases run at once.
    pub slots: usize,
    /// How many more are asked for, so that a slot never waits for the network.
    pub prefetch: usize,
    /// The most payload bytes held at once.
    pub window_bytes: u64,
    /// How many coordinators there are; the window is split evenly between them.
    pub links: usize,
    /// Labels for people.
    pub labels: BTreeMap<String, String>,
    /// How long running leases may go on after a shutdown began.
    pub drain_timeout: Duration,
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// A connection to a coordinator is open, nothing was sent on it yet.
    Opened(LinkId),
    /// The stream ended.
    Closed(LinkId),
    /// A frame came.
    Frame(LinkId, v1::AttachResponse),
    /// A lease that was run has ended, by itself or because it was cancelled.
    Finished(Token, Outcome),
    /// The worker shall end.
    Shutdown,
    /// Time passed.
    Tick,
}

/// What to do.
#[derive(Debug)]
pub enum Command {
    /// Send a frame.
    Send(LinkId, v1::AttachRequest),
    /// The stream is of no use any more: end it, and dial again after a pause.
    Close(LinkId, &'static str),
    /// A coordinator took this worker in.
    Attached(LinkId),
    /// Run a lease; answer with [`Event::Finished`], always.
    Run(Box<Job>),
    /// Tell a running lease to stop.
    Cancel(Token),
    /// Forget a batch.
    Leave(String),
    /// All is settled, or the time to drain is over: end. Said once.
    Exit,
}

/// Decides what a worker does. Drive it with [`Machine::handle`], at the latest at
/// [`Machine::wake_at`], and carry out what it returns, in order.
#[derive(Debug)]
pub struct Machine {
    pub(super) settings: Settings,
    pub(super) links: Vec<Link>,
    /// Bounded by the credit.
    pub(super) held: BTreeMap<Token, Held>,
    /// Leases that wait for a slot, the oldest first; may name some that are gone.
    pub(super) queue: VecDeque<Token>,
    /// Who waits to hear that nothing of a batch is being staged here any more.
    pub(super) acks: BTreeMap<String, BTreeSet<LinkId>>,
    /// Batches that were rolled back: parts of stage grants that were still under way are no grants.
    pub(super) rolled_back: VecDeque<String>,
    /// When the drain ends, once the worker shuts down.
    pub(super) shutdown: Option<Now>,
    pub(super) exited: bool,
    pub(super) commands: Vec<Command>,
}

impl Machine {
    /// A worker that isn't connected.
    pub fn new(settings: Settings) -> Self {
        let links = (0..settings.links).map(|_| Link::new()).collect();
        Self {
            settings,
            links,
            held: BTreeMap::new(),
            queue: VecDeque::new(),
            acks: BTreeMap::new(),
            rolled_back: VecDeque::new(),
            shutdown: None,
            exited: false,
            commands: Vec::new(),
        }
    }

    /// Takes an event; returns what to do, in order.
    pub fn handle(&mut self, now: Now, event: Event) -> Vec<Command> {
        self.pass_time(now);
        match event {
            Event::Opened(link) => self.opened(now, link),
            Event::Closed(link) => self.down(link),
            Event::Frame(link, frame) => self.frame(now, link, frame.frame),
            Event::Finished(token, outcome) => self.finished(now, token, outcome),
            Event::Shutdown => self.shut_down(now),
            Event::Tick => {}
        }
        self.start_waiting(now);
        self.ack_rollbacks();
        self.end_drained_links();
        self.exit_if_done(now);
        std::mem::take(&mut self.commands)
    }

    /// When something happens by itself: call [`Machine::handle`] with [`Event::Tick`] then.
    pub fn wake_at(&self) -> Option<Now> {
        let leases = self.held.values().filter(|held| held.lapses());
        let lapse = leases.map(|held| held.alive + self.links[held.link].ttl).min();
        let heartbeat = self.links.iter().filter_map(|link| link.attached().map(|a| a.next_heartbeat)).min();
        let dead = self.links.iter().filter_map(Link::dead_at).min();
        let drained = self.shutdown.filter(|_| !self.exited);
        [lapse, heartbeat, dead, drained].into_iter().flatten().min()
    }

    /// Leases that hold a slot now, the cancelled ones that didn't stop yet too.
    pub fn slots_taken(&self) -> usize {
        self.held.values().filter(|held| held.takes_slot()).count()
    }

    fn pass_time(&mut self, now: Now) {
        let lapsed: Vec<Token> = self
            .held
            .iter()
            .filter(|(_, held)| held.lapses() && now >= held.alive + self.links[held.link].ttl)
            .map(|(token, _)| *token)
            .collect();
        for token in lapsed {
            self.stop(token, "its time to live is over");
        }
        for link in 0..self.links.len() {
            if self.links[link].dead_at().is_some_and(|at| now >= at) {
                self.close(link, "the coordinator doesn't answer");
            } else if self.links[link].attached().is_some_and(|a| now >= a.next_heartbeat) {
                self.heartbeat(now, link);
            }
        }
    }

    fn opened(&mut self, now: Now, link: LinkId) {
        self.down(link);
        self.links[link].phase = Phase::Greeting { hello: now };
        let held = self
            .of_link(link)
            .map(|(token, held)| v1::HeldLease { batch: held.batch.clone(), token: Some((*token).into()) });
        let hello = v1::Hello {
            worker: self.settings.worker.clone(),
            incarnation: self.settings.incarnation.clone(),
            handlers: self.settings.handlers.iter().cloned().collect(),
            slots: i32::try_from(self.settings.slots).unwrap_or(i32::MAX),
            labels: self.settings.labels.clone().into_iter().collect(),
            protocol_versions: vec![PROTOCOL_VERSION],
            held: held.collect(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        self.send(link, Out::Hello(hello));
    }

    /// The leases of a link that are still ours.
    fn of_link(&self, link: LinkId) -> impl Iterator<Item = (&Token, &Held)> {
        let ours = move |held: &Held| held.link == link && !matches!(held.stage, Stage::Stopping);
        self.held.iter().filter(move |(_, held)| ours(held))
    }

    fn down(&mut self, link: LinkId) {
        self.links[link].phase = Phase::Down;
        // The missing parts went with the stream.
        self.held.retain(|_, held| held.link != link || !matches!(held.stage, Stage::Assembling(_)));
    }

    pub(super) fn close(&mut self, link: LinkId, why: &'static str) {
        self.down(link);
        self.commands.push(Command::Close(link, why));
    }

    pub(super) fn send(&mut self, link: LinkId, frame: Out) {
        self.commands.push(Command::Send(link, v1::AttachRequest { frame: Some(frame) }));
    }

    fn heartbeat(&mut self, now: Now, link: LinkId) {
        let leases = self.of_link(link).map(|(token, held)| v1::LeaseProgress {
            token: Some((*token).into()),
            done: held.progress.done().cast_signed(),
        });
        let leases = leases.collect();
        let Some(attached) = self.links[link].attached_mut() else { return };
        let number = attached.number;
        attached.number += 1;
        attached.next_heartbeat = now + attached.interval;
        attached.unacked.push_back((number, now));
        self.send(link, Out::Heartbeat(v1::Heartbeat { number, leases }));
    }

    /// Keeps the report of a lease until it is acknowledged, and sends it.
    pub(super) fn settle(&mut self, token: Token, outcome: Outcome, elapsed: Duration) {
        let Some(held) = self.held.get_mut(&token) else { return };
        let report = report(&held.batch, token, held.phase, outcome, elapsed);
        held.stage = Stage::Reported(Box::new(report.clone()));
        let link = held.link;
        if self.links[link].attached().is_some() {
            self.send(link, Out::Report(report));
        }
    }

    fn finished(&mut self, now: Now, token: Token, outcome: Outcome) {
        match self.held.get(&token).map(|held| &held.stage) {
            Some(Stage::Running { since }) => {
                let elapsed = now.saturating_sub(*since);
                self.settle(token, outcome, elapsed);
            }
            Some(Stage::Stopping) => drop(self.held.remove(&token)),
            Some(Stage::Assembling(_) | Stage::Waiting(_) | Stage::Reported(_)) | None => {
                warn!(%token, "a lease ended that wasn't running");
            }
        }
    }

    /// The lease isn't ours any more. A report is kept: the coordinator says whether it counts.
    pub(super) fn stop(&mut self, token: Token, why: &str) {
        let Some(held) = self.held.get_mut(&token) else { return };
        match held.stage {
            Stage::Assembling(_) | Stage::Waiting(_) => drop(self.held.remove(&token)),
            Stage::Running { .. } => {
                info!(batch.id = held.batch, %token, why, "lease stopped");
                held.stage = Stage::Stopping;
                self.commands.push(Command::Cancel(token));
            }
            Stage::Stopping | Stage::Reported(_) => {}
        }
    }

    fn ack_rollbacks(&mut self) {
        let held = &self.held;
        let staging =
            |batch: &str| held.values().any(|held| held.batch == batch && held.stages() && held.takes_slot());
        let done: Vec<_> = self.acks.extract_if(.., |batch, _| !staging(batch)).collect();
        for (batch, links) in done {
            for link in links {
                // On a new stream Hello has said what is held; the coordinator asks again if it cares.
                if self.links[link].attached().is_some() {
                    let phase = v1::Phase::Rollback as i32;
                    self.send(link, Out::PhaseAck(v1::PhaseAck { batch: batch.clone(), phase }));
                }
            }
        }
    }

    fn start_waiting(&mut self, now: Now) {
        let mut free = self.settings.slots.saturating_sub(self.slots_taken());
        while free > 0 {
            let Some(token) = self.queue.pop_front() else { return };
            let Some(held) = self.held.get_mut(&token) else { continue };
            if let Stage::Waiting(_) = held.stage {
                let running = Stage::Running { since: now };
                if let Stage::Waiting(job) = std::mem::replace(&mut held.stage, running) {
                    self.commands.push(Command::Run(job));
                    free -= 1;
                }
            }
        }
    }

    fn end_drained_links(&mut self) {
        for link in 0..self.links.len() {
            let draining = self.links[link].attached().is_some_and(|attached| attached.draining);
            if draining && !self.held.values().any(|held| held.link == link) {
                self.close(link, "the coordinator is leaving");
            }
        }
    }

    fn shut_down(&mut self, now: Now) {
        if self.shutdown.is_some() {
            return;
        }
        self.shutdown = Some(now + self.settings.drain_timeout);
        for link in 0..self.links.len() {
            if self.links[link].attached().is_some() {
                self.send(link, Out::Credit(v1::Credit::default()));
            }
        }
        let unstarted =
            |_: &Token, held: &mut Held| matches!(held.stage, Stage::Assembling(_) | Stage::Waiting(_));
        let unstarted: Vec<_> = self.held.extract_if(.., unstarted).collect();
        for (token, held) in unstarted {
            if self.links[held.link].attached().is_some() {
                let release = v1::Release { batch: held.batch, token: Some(token.into()) };
                self.send(held.link, Out::Release(release));
            }
        }
    }

    fn exit_if_done(&mut self, now: Now) {
        let Some(deadline) = self.shutdown else { return };
        if self.exited || !(self.held.is_empty() || now >= deadline) {
            return;
        }
        let running = self.held.iter().filter(|(_, held)| matches!(held.stage, Stage::Running { .. }));
        let running: Vec<Token> = running.map(|(token, _)| *token).collect();
        for token in running {
            self.stop(token, "the time to drain is over");
        }
        self.exited = true;
        self.commands.push(Command::Exit);
    }
}
