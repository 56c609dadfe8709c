//! The session's state machine: events and the time in, commands out.

use super::held::{Held, Job, Outcome, Stage, report};
use super::link::{Link, Phase, credit};
use crate::handler::Progress;
use crate::lease::{Token, Work};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;
use tracing::{debug, info, warn};
use tranche_proto::v1::attach_request::Frame as Out;
use tranche_proto::v1::attach_response::Frame as In;
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
    settings: Settings,
    links: Vec<Link>,
    /// Bounded by the credit.
    held: BTreeMap<Token, Held>,
    /// Leases that wait for a slot, the oldest first; may name some that are gone.
    queue: VecDeque<Token>,
    /// Who waits to hear that nothing of a batch is being staged here any more.
    acks: BTreeMap<String, BTreeSet<LinkId>>,
    /// Batches that were rolled back: parts of stage grants that were still under way are no grants.
    rolled_back: VecDeque<String>,
    /// When the drain ends, once the worker shuts down.
    shutdown: Option<Now>,
    exited: bool,
    commands: Vec<Command>,
}

/// How many rolled back batches are remembered if no Leave comes for them.
const ROLLED_BACK: usize = 1024;

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

    fn close(&mut self, link: LinkId, why: &'static str) {
        self.down(link);
        self.commands.push(Command::Close(link, why));
    }

    fn send(&mut self, link: LinkId, frame: Out) {
        self.commands.push(Command::Send(link, v1::AttachRequest { frame: Some(frame) }));
    }

    fn frame(&mut self, now: Now, link: LinkId, frame: Option<In>) {
        match (&self.links[link].phase, frame) {
            // What an ended stream still brought.
            (Phase::Down, _) => {}
            (Phase::Greeting { hello }, Some(In::Welcome(welcome))) => {
                let hello = *hello;
                self.welcome(now, link, hello, &welcome);
            }
            (Phase::Greeting { .. }, _) => self.close(link, "the first frame wasn't Welcome"),
            (Phase::Attached(_), None) => warn!(link, "a frame of an unknown kind was refused"),
            (Phase::Attached(_), Some(frame)) => match frame {
                In::Welcome(_) => self.close(link, "a second Welcome came"),
                In::Grant(grant) => self.grant(now, link, grant),
                In::Ack(ack) => self.ack(link, ack),
                In::PhaseChanged(change) => self.phase_changed(link, change),
                In::Revoke(revoke) => {
                    if let Some(token) = revoke.token.map(Token::from) {
                        info!(batch.id = revoke.batch, %token, reason = revoke.reason, "lease revoked");
                        self.stop(token, "revoked");
                    }
                }
                In::Replicas(replicas) => debug!(link, endpoints = ?replicas.endpoints, "replicas"),
                In::Drain(_) => self.drain(link),
                In::Leave(leave) => {
                    self.rolled_back.retain(|batch| *batch != leave.batch);
                    self.commands.push(Command::Leave(leave.batch));
                }
            },
        }
    }

    fn welcome(&mut self, now: Now, link: LinkId, hello: Now, welcome: &v1::Welcome) {
        if welcome.protocol_version != PROTOCOL_VERSION {
            warn!(
                link,
                version = welcome.protocol_version,
                "the coordinator chose an unknown protocol version"
            );
            return self.close(link, "the coordinator chose an unknown protocol version");
        }
        self.links[link].attach(welcome, now);
        self.commands.push(Command::Attached(link));
        info!(link, coordinator.id = welcome.coordinator, ttl = ?self.links[link].ttl, "attached");
        let mut reports = Vec::new();
        for held in self.held.values_mut().filter(|held| held.link == link) {
            held.counts_from = 1;
            held.alive = held.alive.max(hello);
            if let Stage::Reported(report) = &held.stage {
                reports.push((**report).clone());
            }
        }
        for report in reports {
            self.send(link, Out::Report(report));
        }
        let credit =
            if self.shutdown.is_some() { v1::Credit::default() } else { credit(&self.settings, link) };
        self.send(link, Out::Credit(credit));
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

    fn grant(&mut self, now: Now, link: LinkId, mut grant: v1::Grant) {
        let Some(token) = grant.token.map(Token::from) else {
            return warn!(link, batch.id = grant.batch, "a grant without a token was refused");
        };
        let stage = grant.phase == v1::Phase::Stage as i32;
        if stage && self.rolled_back.contains(&grant.batch) {
            return debug!(batch.id = grant.batch, %token, "the batch is rolled back: grant dropped");
        }
        if self.shutdown.is_some() && !self.held.contains_key(&token) {
            return self.send(link, Out::Release(v1::Release { batch: grant.batch, token: grant.token }));
        }
        let more = grant.more;
        match self.held.get_mut(&token) {
            None => {
                let counts_from = self.links[link].attached().map_or(1, |attached| attached.number);
                let held = Held {
                    batch: grant.batch.clone(),
                    phase: grant.phase,
                    link,
                    alive: now,
                    counts_from,
                    progress: Progress::default(),
                    stage: Stage::Assembling(Box::new(grant)),
                };
                self.held.insert(token, held);
            }
            Some(held) => match &mut held.stage {
                Stage::Assembling(first) => first.tasks.append(&mut grant.tasks),
                Stage::Reported(report) => {
                    let report = (**report).clone();
                    return self.send(link, Out::Report(report));
                }
                // It was sent twice.
                Stage::Waiting(_) | Stage::Running { .. } | Stage::Stopping => return,
            },
        }
        if !more {
            self.assembled(token);
        }
    }

    fn assembled(&mut self, token: Token) {
        let Some(held) = self.held.get_mut(&token) else { return };
        let Stage::Assembling(grant) = &mut held.stage else { return };
        let grant = std::mem::take(&mut **grant);
        let handler = grant.handler.clone();
        let work = if self.settings.handlers.contains(&handler) {
            Work::from_grant(grant)
        } else {
            Err(format!("handler `{handler}` is not known to this worker"))
        };
        match work {
            Ok(work) => {
                let progress = held.progress.clone();
                held.stage = Stage::Waiting(Box::new(Job { token, handler, work, progress }));
                self.queue.push_back(token);
            }
            Err(error) => {
                warn!(batch.id = held.batch, %token, error, "lease refused");
                self.settle(token, Outcome::Error(error), Duration::ZERO);
            }
        }
    }

    /// Keeps the report of a lease until it is acknowledged, and sends it.
    fn settle(&mut self, token: Token, outcome: Outcome, elapsed: Duration) {
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
    fn stop(&mut self, token: Token, why: &str) {
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

    fn ack(&mut self, link: LinkId, ack: v1::Ack) {
        if let Some(attached) = self.links[link].attached_mut() {
            let mut sent = None;
            while let Some((_, at)) = attached.unacked.pop_front_if(|(number, _)| *number <= ack.heartbeat) {
                sent = Some(at);
            }
            for held in self.held.values_mut().filter(|held| held.link == link) {
                if let Some(sent) = sent.filter(|_| held.counts_from <= ack.heartbeat) {
                    held.alive = held.alive.max(sent);
                }
            }
        }
        for settled in ack.reports {
            self.report_settled(settled);
        }
    }

    fn report_settled(&mut self, ack: v1::ReportAck) {
        use v1::report_ack::Result;
        let Some(token) = ack.token.map(Token::from) else { return };
        let Some(held) = self.held.get(&token).filter(|held| matches!(held.stage, Stage::Reported(_))) else {
            return;
        };
        match Result::try_from(ack.result) {
            Ok(Result::Durable) => {}
            Ok(Result::Stale | Result::Decided | Result::UnknownBatch | Result::Invalid) => {
                let result = ack.result().as_str_name();
                warn!(batch.id = held.batch, %token, result, message = ack.message, "report doesn't count");
            }
            // Not taken for settled: the report stays until an answer comes that is understood.
            Ok(Result::Unspecified) | Err(_) => {
                return warn!(batch.id = held.batch, %token, result = ack.result, "answer to a report not known");
            }
        }
        self.held.remove(&token);
    }

    fn phase_changed(&mut self, link: LinkId, change: v1::PhaseChanged) {
        match v1::Phase::try_from(change.phase) {
            Ok(v1::Phase::Commit) => {
                let ack = v1::PhaseAck { batch: change.batch, phase: change.phase };
                self.send(link, Out::PhaseAck(ack));
            }
            Ok(v1::Phase::Rollback) => {
                let staging = |(_, held): &(&Token, &Held)| held.batch == change.batch && held.stages();
                let tokens: Vec<Token> = self.held.iter().filter(staging).map(|(token, _)| *token).collect();
                for token in tokens {
                    self.stop(token, "the batch is rolled back");
                }
                if !self.rolled_back.contains(&change.batch) {
                    self.rolled_back.push_back(change.batch.clone());
                    if self.rolled_back.len() > ROLLED_BACK {
                        self.rolled_back.pop_front();
                    }
                }
                self.acks.entry(change.batch).or_default().insert(link);
            }
            Ok(v1::Phase::Unspecified | v1::Phase::Stage | v1::Phase::Publish | v1::Phase::Sweep)
            | Err(_) => {
                warn!(batch.id = change.batch, phase = change.phase, "a change to this phase is not known");
            }
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

    fn drain(&mut self, link: LinkId) {
        if let Some(attached) = self.links[link].attached_mut() {
            attached.draining = true;
            self.send(link, Out::Credit(v1::Credit::default()));
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
