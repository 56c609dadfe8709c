//! The worker: owns the session's [`Machine`], and does what it says.

use crate::config::{Config, ConfigError};
use crate::handler::Handler;
use crate::lease::Token;
use crate::link::{Link, LinkEvent};
use crate::metrics::{Metrics, Operator};
use crate::run::{self, Handlers};
use crate::session::transport::{Http2, Transport};
use crate::session::{Command, Event, LinkId, Machine, Now, Settings};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use tranche_proto::v1;

/// Events that wait for the worker's task. Few: frames may hold some MiB each, and when this is full
/// the links stop reading, which is what a worker that can't keep up should do.
const EVENTS: usize = 8;
/// Frames in an outbox beside one for each lease: heartbeats and PhaseAcks, and a Holding for each batch that a
/// coordinator takes over, of which there may be many at once. When an outbox is full the coordinator hasn't
/// read for long: the stream is ended, and reports are sent again on the next.
const OUTBOX_SPARE: usize = 1024;
/// A worker: attaches to its coordinators and runs their leases through its handlers.
pub struct Worker {
    config: Config,
    handlers: Handlers,
    transport: Arc<dyn Transport>,
    incarnation: String,
    attached: watch::Sender<Option<String>>,
    metrics: Arc<Metrics>,
}

/// A worker could not run.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// Its configuration is wrong.
    #[error("bad configuration: {0}")]
    Config(#[from] ConfigError),
    /// It has no handler, so nothing could ever be leased to it.
    #[error("a worker needs at least one handler")]
    NoHandler,
}

impl Worker {
    /// A worker with these handlers; of two with the same name the later counts.
    pub fn new(config: Config, handlers: Vec<Arc<dyn Handler>>) -> Self {
        let http2 = Http2 { credentials: config.credentials.clone(), ..Http2::default() };
        Self::with_transport(config, handlers, Arc::new(http2))
    }

    /// A worker that reaches its coordinators another way, for simulations.
    pub fn with_transport(
        config: Config,
        handlers: Vec<Arc<dyn Handler>>,
        transport: Arc<dyn Transport>,
    ) -> Self {
        let handlers = handlers.into_iter().map(|handler| (handler.name().to_owned(), handler)).collect();
        let incarnation = uuid::Uuid::new_v4().to_string();
        let metrics = Arc::new(Metrics::new(config.slots));
        Self { config, handlers, transport, incarnation, attached: watch::Sender::new(None), metrics }
    }

    /// Says which life of the worker's id this is, 1 to 128 characters; for simulations. No two lives may
    /// have the same. Default: a random UUID.
    #[must_use]
    pub fn with_incarnation(self, incarnation: String) -> Self {
        Self { incarnation, ..self }
    }

    /// What an ops port tells of this worker ([`tranche_ops::serve`]).
    pub fn operator(&self) -> Operator {
        Operator::new(self.metrics.clone())
    }

    /// Tells the URL of the coordinator that last took this worker in; none before the first did.
    pub fn attached(&self) -> watch::Receiver<Option<String>> {
        self.attached.subscribe()
    }

    /// Works until `shutdown`, then drains: gives back what wasn't started, finishes what runs, and
    /// waits until the reports are acknowledged, whoever owns their batches by then, for at most
    /// [`Config::drain_timeout`]. What still runs after that is cancelled, and what it staged removed, which
    /// may take 2 s more.
    ///
    /// A coordinator that can't be reached is no error: it is dialled for ever. Other coordinators, of which
    /// those tell, are dialled as long as they are there.
    ///
    /// # Errors
    /// The configuration is wrong.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), WorkerError> {
        self.config.check()?;
        if self.handlers.is_empty() {
            return Err(WorkerError::NoHandler);
        }
        Running::new(self).run(shutdown).await;
        Ok(())
    }
}

/// An open connection, seen from the worker.
struct Wire {
    outbox: mpsc::Sender<v1::AttachRequest>,
    close: CancellationToken,
}

/// A link's task, seen from the worker.
struct Dialler {
    url: String,
    dials: watch::Sender<bool>,
    stop: CancellationToken,
}

struct Running {
    config: Config,
    machine: Machine,
    handlers: Arc<Handlers>,
    transport: Arc<dyn Transport>,
    attached: watch::Sender<Option<String>>,
    metrics: Arc<Metrics>,
    /// The links whose coordinators took this worker in.
    taken_in: BTreeSet<LinkId>,
    start: Instant,
    links: JoinSet<()>,
    diallers: BTreeMap<LinkId, Dialler>,
    stop_links: CancellationToken,
    /// The links' tasks get clones of it.
    sender: mpsc::Sender<LinkEvent>,
    events: mpsc::Receiver<LinkEvent>,
    wires: BTreeMap<LinkId, Wire>,
    /// Leases and the removal of lost attempts.
    leases: JoinSet<Event>,
    cancels: BTreeMap<Token, CancellationToken>,
}

impl Running {
    fn new(worker: Worker) -> Self {
        let Worker { config, handlers, transport, incarnation, attached, metrics } = worker;
        let machine = Machine::new(Settings {
            worker: config.id.clone(),
            incarnation,
            handlers: handlers.keys().cloned().collect(),
            slots: config.slots,
            prefetch: config.prefetch,
            window_bytes: config.window_bytes,
            coordinators: config.coordinators.clone(),
            labels: config.labels.clone(),
            drain_timeout: config.drain_timeout,
        });
        let (sender, events) = mpsc::channel(EVENTS);
        Self {
            config,
            machine,
            handlers: Arc::new(handlers),
            transport,
            attached,
            metrics,
            taken_in: BTreeSet::new(),
            start: Instant::now(),
            links: JoinSet::new(),
            diallers: BTreeMap::new(),
            stop_links: CancellationToken::new(),
            sender,
            events,
            wires: BTreeMap::new(),
            leases: JoinSet::new(),
            cancels: BTreeMap::new(),
        }
    }

    async fn run(mut self, shutdown: CancellationToken) {
        info!(worker.id = self.config.id, slots = self.config.slots, "worker started");
        let commands = self.machine.handle(self.now(), Event::Tick);
        self.carry_out(commands);
        let mut draining = false;
        loop {
            self.metrics.now(self.leases.len(), self.taken_in.len(), draining);
            let wake = self.machine.wake_at().map(|at| self.start + at);
            let event = tokio::select! {
                biased;
                () = shutdown.cancelled(), if !draining => {
                    draining = true;
                    info!(worker.id = self.config.id, "draining");
                    Event::Shutdown
                }
                Some(ended) = self.leases.join_next(), if !self.leases.is_empty() => match ended {
                    Ok(event) => {
                        if let Event::Finished(token, _) | Event::Removed(token) = &event {
                            self.cancels.remove(token);
                        }
                        event
                    }
                    // Panics are caught inside, nobody aborts.
                    Err(error) => {
                        warn!(%error, "a lease's task was lost");
                        continue;
                    }
                },
                Some(ended) = self.links.join_next(), if !self.links.is_empty() => {
                    if let Err(error) = ended {
                        warn!(%error, "a link's task was lost");
                    }
                    continue;
                }
                Some(event) = self.events.recv() => self.link_event(event),
                () = tokio::time::sleep_until(wake.unwrap_or(self.start)), if wake.is_some() => Event::Tick,
            };
            let commands = self.machine.handle(self.now(), event);
            if self.carry_out(commands) {
                break;
            }
        }
        self.end().await;
    }

    fn now(&self) -> Now {
        self.start.elapsed()
    }

    fn link_event(&mut self, event: LinkEvent) -> Event {
        match event {
            LinkEvent::Opened { link, outbox, close } => {
                self.wires.insert(link, Wire { outbox, close });
                Event::Opened(link)
            }
            LinkEvent::Frame(link, frame) => Event::Frame(link, *frame),
            LinkEvent::Closed(link) => {
                self.wires.remove(&link);
                self.taken_in.remove(&link);
                Event::Closed(link)
            }
        }
    }

    /// True when the worker shall end.
    fn carry_out(&mut self, commands: Vec<Command>) -> bool {
        let mut exit = false;
        for command in commands {
            match command {
                Command::Dial { link, url } => self.dial(link, url),
                Command::Rest(link) => {
                    if let Some(dialler) = self.diallers.get(&link) {
                        dialler.dials.send_replace(false);
                    }
                }
                Command::HangUp(link) => {
                    if let Some(dialler) = self.diallers.remove(&link) {
                        dialler.stop.cancel();
                    }
                }
                Command::Send(link, frame) => self.send(link, frame),
                Command::Close(link, why) => {
                    info!(coordinator = self.url(link), why, "stream ended");
                    self.taken_in.remove(&link);
                    if let Some(wire) = self.wires.remove(&link) {
                        wire.close.cancel();
                    }
                }
                Command::Attached(link) => {
                    self.taken_in.insert(link);
                    self.attached.send_replace(Some(self.url(link).to_owned()));
                }
                Command::Run(job) => {
                    let cancel = CancellationToken::new();
                    self.cancels.insert(job.token, cancel.clone());
                    let (handlers, metrics) = (Arc::clone(&self.handlers), Arc::clone(&self.metrics));
                    self.leases.spawn(run::run(handlers, metrics, *job, cancel));
                }
                Command::Cancel(token) => {
                    if let Some(cancel) = self.cancels.get(&token) {
                        cancel.cancel();
                    }
                }
                Command::Remove(removal) => {
                    self.metrics.removals.inc();
                    let cancel = CancellationToken::new();
                    self.cancels.insert(removal.lease.token, cancel.clone());
                    self.leases.spawn(run::remove(Arc::clone(&self.handlers), *removal, cancel));
                }
                Command::Leave(batch) => self.handlers.values().for_each(|handler| handler.leave(&batch)),
                Command::Exit => exit = true,
            }
        }
        exit
    }

    fn dial(&mut self, link: LinkId, url: String) {
        if let Some(dialler) = self.diallers.get(&link) {
            dialler.dials.send_replace(true);
            return;
        }
        let dials = watch::Sender::new(true);
        let stop = self.stop_links.child_token();
        let task = Link {
            id: link,
            url: url.clone(),
            transport: Arc::clone(&self.transport),
            events: self.sender.clone(),
            stop: stop.clone(),
            dials: dials.subscribe(),
            outbox: self.config.slots + self.config.prefetch + OUTBOX_SPARE,
        };
        self.links.spawn(task.run(self.config.clone()));
        self.diallers.insert(link, Dialler { url, dials, stop });
    }

    /// A link's URL, for people.
    fn url(&self, link: LinkId) -> &str {
        self.diallers.get(&link).map_or("one that is gone", |dialler| &dialler.url)
    }

    /// Never waits: the task that waited for a slow coordinator here would stop serving the others.
    fn send(&mut self, link: LinkId, frame: v1::AttachRequest) {
        let Some(wire) = self.wires.get(&link) else { return };
        if let Err(mpsc::error::TrySendError::Full(_)) = wire.outbox.try_send(frame) {
            warn!(coordinator = self.url(link), "the coordinator doesn't read: stream ended");
            wire.close.cancel();
            self.wires.remove(&link);
            self.taken_in.remove(&link);
        }
    }

    async fn end(mut self) {
        self.stop_links.cancel();
        // Ends the streams, after the frames that are still in them.
        self.wires.clear();
        drop(self.events);
        drop(self.sender);
        while self.links.join_next().await.is_some() {}
        // They had their time.
        if !self.leases.is_empty() {
            warn!(leases = self.leases.len(), "leases didn't stop in time");
            self.leases.shutdown().await;
        }
        info!(worker.id = self.config.id, "worker ended");
    }
}
