//! The session's state machine: events and the time in, commands out.

use super::batches::Batches;
use super::held::{Held, Job, Outcome, Removal, Stage};
use super::link::{Link, Phase};
use crate::lease::Token;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;
use tracing::info;
use tranche_guards::Guard;
use tranche_proto::v1::attach_request::Frame as Out;
use tranche_proto::{PROTOCOL_VERSION, v1};

/// Time since the worker started.
pub type Now = Duration;
/// A way to a coordinator: one URL. Never used twice.
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
    /// The URLs that it was given. Their links are there for ever, with the ids 0, 1, 2, ...
    pub coordinators: Vec<String>,
    /// Labels for people.
    pub labels: BTreeMap<String, String>,
    /// How long running leases may go on after a shutdown began.
    pub drain_timeout: Duration,
}

/// What happened.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "one at a time, and handled as it comes")]
pub enum Event {
    /// A connection to a coordinator is open, nothing was sent on it yet.
    Opened(LinkId),
    /// The stream ended.
    Closed(LinkId),
    /// A frame came.
    Frame(LinkId, v1::AttachResponse),
    /// A lease that was run has ended, by itself or because it was cancelled.
    Finished(Token, Outcome),
    /// What a lost attempt had staged is removed, or that was given up.
    Removed(Token),
    /// The worker shall end.
    Shutdown,
    /// Time passed. The first event, too: the answer says whom to dial.
    Tick,
}

/// What to do.
#[derive(Debug)]
pub enum Command {
    /// Dial this URL, again and again when its stream ends, until [`Command::Rest`] or
    /// [`Command::HangUp`] is said of it.
    Dial {
        /// The link, new or one that rested.
        link: LinkId,
        /// Where to.
        url: String,
    },
    /// Don't dial until [`Command::Dial`] is said again.
    Rest(LinkId),
    /// The link is no more.
    HangUp(LinkId),
    /// Send a frame.
    Send(LinkId, v1::AttachRequest),
    /// The stream is of no use any more: end it. The link dials again after a pause.
    Close(LinkId, &'static str),
    /// A coordinator took this worker in.
    Attached(LinkId),
    /// Run a lease; answer with [`Event::Finished`], always.
    Run(Box<Job>),
    /// Tell a running lease to stop.
    Cancel(Token),
    /// Remove what a lost attempt staged; answer with [`Event::Removed`], always.
    Remove(Box<Removal>),
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
    pub(super) links: BTreeMap<LinkId, Link>,
    pub(super) next_link: LinkId,
    /// A stream came or went, or a list of coordinators came: see who is to be dialled.
    pub(super) links_changed: bool,
    /// Bounded by the credit.
    pub(super) held: BTreeMap<Token, Held>,
    /// Leases that wait for a slot, the oldest first; may name some that are gone, but never more than are held.
    pub(super) queue: VecDeque<Token>,
    /// Who waits to hear that nothing of a batch is being staged here any more.
    pub(super) acks: BTreeMap<String, BTreeSet<(LinkId, i32)>>,
    pub(super) batches: Batches,
    /// When the drain ends, once the worker shuts down.
    pub(super) shutdown: Option<Now>,
    /// That time is over, what ran is told to stop.
    pub(super) cancelled: bool,
    pub(super) exited: bool,
    pub(super) commands: Vec<Command>,
}

impl Machine {
    /// A worker that isn't connected.
    pub fn new(settings: Settings) -> Self {
        let links: BTreeMap<LinkId, Link> =
            settings.coordinators.iter().map(|url| Link::configured(url.clone())).enumerate().collect();
        Self {
            next_link: links.len(),
            links_changed: true,
            settings,
            links,
            held: BTreeMap::new(),
            queue: VecDeque::new(),
            acks: BTreeMap::new(),
            batches: Batches::default(),
            shutdown: None,
            cancelled: false,
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
            Event::Removed(token) => self.removed(token),
            Event::Shutdown => self.shut_down(now),
            Event::Tick => {}
        }
        self.start_waiting(now);
        self.ack_phases();
        self.end_drained_links();
        self.settle_links();
        self.send_credits();
        self.exit_if_done(now);
        std::mem::take(&mut self.commands)
    }

    /// When something happens by itself: call [`Machine::handle`] with [`Event::Tick`] then.
    pub fn wake_at(&self) -> Option<Now> {
        let lapse = self.held.values().filter_map(Held::lapses_at).min();
        let heartbeat =
            self.links.values().filter_map(|link| link.attached().map(|a| a.next_heartbeat)).min();
        let dead = self.links.values().filter_map(Link::dead_at).min();
        [lapse, heartbeat, dead, self.drain_wakes_at()].into_iter().flatten().min()
    }

    /// Leases that hold a slot now, the cancelled ones that didn't stop yet too.
    pub fn slots_taken(&self) -> usize {
        self.held.values().filter(|held| held.takes_slot()).count()
    }

    fn pass_time(&mut self, now: Now) {
        let lapsed = self.held.iter().filter(|(_, held)| held.lapses_at().is_some_and(|at| now >= at));
        let lapsed: Vec<Token> = lapsed.map(|(token, _)| *token).collect();
        for token in lapsed {
            let link = self.held.get(&token).map(|held| held.link);
            self.stop(token, "its time to live is over");
            // After a pause of both sides the stream may be as it was. Its coordinator takes the lease to be held
            // for as long as it hears of this worker: the next Hello says that it isn't.
            if let Some(link) = link.filter(|link| self.attached(*link).is_some()) {
                self.close(link, "leases on it have lapsed");
            }
        }
        for link in self.link_ids() {
            if self.links[&link].dead_at().is_some_and(|at| now >= at) {
                self.close(link, "the coordinator doesn't answer");
            } else if self.attached(link).is_some_and(|a| now >= a.next_heartbeat) {
                self.heartbeat(now, link);
            }
        }
    }

    fn opened(&mut self, now: Now, link: LinkId) {
        self.down(link);
        let Some(there) = self.links.get_mut(&link).filter(|link| link.dials) else {
            // It was told to rest, or to go, just when it got through.
            return self.commands.push(Command::Close(link, "it isn't needed any more"));
        };
        // Whichever link granted them: the coordinator may own a batch that was another's when its leases
        // were granted.
        let held = self
            .held
            .iter()
            .filter(|(_, held)| held.is_ours() && (held.link == link || Guard::HelloNamesAll.on()));
        let held: Vec<_> = held
            .map(|(token, held)| v1::HeldLease { batch: held.batch.clone(), token: Some((*token).into()) })
            .collect();
        let named = held.iter().map(|lease| lease.batch.clone()).collect();
        there.phase = Phase::Greeting { hello: now, named };
        self.links_changed = true;
        let hello = v1::Hello {
            worker: self.settings.worker.clone(),
            incarnation: self.settings.incarnation.clone(),
            handlers: self.settings.handlers.iter().cloned().collect(),
            slots: i32::try_from(self.settings.slots).unwrap_or(i32::MAX),
            labels: self.settings.labels.clone().into_iter().collect(),
            protocol_versions: vec![PROTOCOL_VERSION],
            held,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        self.send(link, Out::Hello(hello));
    }

    fn down(&mut self, link: LinkId) {
        let Some(there) = self.links.get_mut(&link) else { return };
        there.phase = Phase::Down;
        self.links_changed = true;
        // The missing parts went with the stream.
        self.held.retain(|_, held| held.link != link || !matches!(held.stage, Stage::Assembling { .. }));
    }

    pub(super) fn close(&mut self, link: LinkId, why: &'static str) {
        self.down(link);
        self.commands.push(Command::Close(link, why));
    }

    pub(super) fn send(&mut self, link: LinkId, frame: Out) {
        self.commands.push(Command::Send(link, v1::AttachRequest { frame: Some(frame) }));
    }

    fn heartbeat(&mut self, now: Now, link: LinkId) {
        let leases = self.held.iter().filter(|(_, held)| held.link == link && held.is_ours());
        let leases = leases.map(|(token, held)| v1::LeaseProgress {
            token: Some((*token).into()),
            done: held.progress.done().cast_signed(),
        });
        let leases = leases.collect();
        let idle = !self.holds_any(link);
        let Some(attached) = self.links.get_mut(&link).and_then(Link::attached_mut) else { return };
        let number = attached.number;
        attached.number += 1;
        attached.next_heartbeat = now + if idle { attached.idle_interval } else { attached.interval };
        attached.unacked.push_back((number, now));
        self.send(link, Out::Heartbeat(v1::Heartbeat { number, leases }));
        self.send_overdue_reports(now, link);
    }

    /// Leases are a link's now: the next heartbeat comes as soon as leases need it, however long the link had none.
    pub(super) fn heartbeat_soon(&mut self, now: Now, link: LinkId) {
        if !self.holds_any(link) {
            return;
        }
        if let Some(attached) = self.links.get_mut(&link).and_then(Link::attached_mut) {
            attached.next_heartbeat = attached.next_heartbeat.min(now + attached.interval);
        }
    }

    /// Also what is being stopped, or waits for the answer to its report.
    fn holds_any(&self, link: LinkId) -> bool {
        self.held.values().any(|held| held.link == link)
    }

    /// The lease isn't ours any more. A report is kept: the coordinator says whether it counts.
    pub(super) fn stop(&mut self, token: Token, why: &str) {
        let Some(held) = self.held.get_mut(&token) else { return };
        match held.stage {
            Stage::Assembling { .. } | Stage::Waiting(_) => drop(self.held.remove(&token)),
            Stage::Running { .. } => {
                info!(batch.id = held.batch, %token, why, "lease stopped");
                held.stage = Stage::Stopping;
                self.commands.push(Command::Cancel(token));
            }
            Stage::Stopping | Stage::Removing | Stage::Reported { .. } => {}
        }
    }

    fn ack_phases(&mut self) {
        let held = &self.held;
        let staging = |batch: &str| {
            Guard::AckWhenStopped.on()
                && held.values().any(|held| held.batch == batch && held.stages() && held.takes_slot())
        };
        let done: Vec<_> = self.acks.extract_if(.., |batch, _| !staging(batch)).collect();
        for (batch, links) in done {
            for (link, phase) in links {
                // On a new stream Hello has said what is held; the coordinator asks again if it cares.
                if self.attached(link).is_some() {
                    self.send(link, Out::PhaseAck(v1::PhaseAck { batch: batch.clone(), phase }));
                }
            }
        }
    }

    fn start_waiting(&mut self, now: Now) {
        if self.queue.len() > self.held.len() {
            self.queue.retain(|token| self.held.contains_key(token));
        }
        if self.held.values().any(|held| held.alone && held.takes_slot()) {
            return;
        }
        let mut taken = self.slots_taken();
        while taken < self.settings.slots {
            let Some(token) = self.queue.pop_front() else { return };
            let Some(held) = self.held.get_mut(&token) else { continue };
            if let Stage::Waiting(_) = held.stage {
                let alone = held.alone;
                if alone && taken > 0 {
                    // It is the next, whatever comes meanwhile.
                    return self.queue.push_front(token);
                }
                let running = Stage::Running { since: now };
                if let Stage::Waiting(job) = std::mem::replace(&mut held.stage, running) {
                    held.removal = Removal::of(&job).map(Box::new);
                    self.commands.push(Command::Run(job));
                    taken += 1;
                }
                if alone {
                    return;
                }
            }
        }
    }
}
