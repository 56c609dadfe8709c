//! The worker: owns the session's [`Machine`], and does what it says.

use crate::config::{Config, ConfigError};
use crate::handler::Handler;
use crate::lease::Token;
use crate::link::{Link, LinkEvent};
use crate::run::{self, Handlers};
use crate::session::transport::{Http2, Transport};
use crate::session::{Command, Event, LinkId, Machine, Now, Outcome, Settings};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use tranche_proto::v1;

/// Events that wait for the worker's task. Few: frames may hold some MiB each, and when this is full
/// the links stop reading, which is what a worker that can't keep up should do.
const EVENTS: usize = 8;
/// Frames in an outbox beside one for each lease: heartbeats and PhaseAcks. When an outbox is full the
/// coordinator hasn't read for long: the stream is ended, and reports are sent again on the next.
const OUTBOX_SPARE: usize = 256;
/// How long cancelled leases may take to stop at the end.
const STOP_WITHIN: Duration = Duration::from_secs(2);

/// A worker: attaches to its coordinators and runs their leases through its handlers.
pub struct Worker {
    config: Config,
    handlers: Handlers,
    transport: Arc<dyn Transport>,
    attached: watch::Sender<Option<String>>,
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
        Self::with_transport(config, handlers, Arc::new(Http2::default()))
    }

    /// A worker that reaches its coordinators another way, for simulations.
    pub fn with_transport(
        config: Config,
        handlers: Vec<Arc<dyn Handler>>,
        transport: Arc<dyn Transport>,
    ) -> Self {
        let handlers = handlers.into_iter().map(|handler| (handler.name().to_owned(), handler)).collect();
        Self { config, handlers, transport, attached: watch::Sender::new(None) }
    }

    /// Tells the URL of the coordinator that last took this worker in; none before the first did.
    pub fn attached(&self) -> watch::Receiver<Option<String>> {
        self.attached.subscribe()
    }

    /// Works until `shutdown`, then drains: gives back what wasn't started, finishes what runs, and
    /// waits until the reports are acknowledged, for at most [`Config::drain_timeout`].
    ///
    /// A coordinator that can't be reached is no error: it is dialled for ever.
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

struct Running {
    config: Config,
    machine: Machine,
    handlers: Arc<Handlers>,
    attached: watch::Sender<Option<String>>,
    start: Instant,
    links: JoinSet<()>,
    stop_links: CancellationToken,
    events: mpsc::Receiver<LinkEvent>,
    wires: HashMap<LinkId, Wire>,
    leases: JoinSet<(Token, Outcome)>,
    cancels: HashMap<Token, CancellationToken>,
}

impl Running {
    fn new(worker: Worker) -> Self {
        let Worker { config, handlers, transport, attached } = worker;
        let machine = Machine::new(Settings {
            worker: config.id.clone(),
            incarnation: uuid::Uuid::new_v4().to_string(),
            handlers: handlers.keys().cloned().collect(),
            slots: config.slots,
            prefetch: config.prefetch,
            window_bytes: config.window_bytes,
            links: config.coordinators.len(),
            labels: config.labels.clone(),
            drain_timeout: config.drain_timeout,
        });
        let (sender, events) = mpsc::channel(EVENTS);
        let stop_links = CancellationToken::new();
        let mut links = JoinSet::new();
        for (id, url) in config.coordinators.iter().enumerate() {
            let link = Link {
                id,
                url: url.clone(),
                transport: Arc::clone(&transport),
                events: sender.clone(),
                stop: stop_links.clone(),
                outbox: config.slots + config.prefetch + OUTBOX_SPARE,
            };
            links.spawn(link.run(config.clone()));
        }
        Self {
            config,
            machine,
            handlers: Arc::new(handlers),
            attached,
            start: Instant::now(),
            links,
            stop_links,
            events,
            wires: HashMap::new(),
            leases: JoinSet::new(),
            cancels: HashMap::new(),
        }
    }

    async fn run(mut self, shutdown: CancellationToken) {
        info!(worker.id = self.config.id, slots = self.config.slots, "worker started");
        let mut draining = false;
        loop {
            let wake = self.machine.wake_at().map(|at| self.start + at);
            let event = tokio::select! {
                biased;
                () = shutdown.cancelled(), if !draining => {
                    draining = true;
                    info!(worker.id = self.config.id, "draining");
                    Event::Shutdown
                }
                Some(ended) = self.leases.join_next(), if !self.leases.is_empty() => match ended {
                    Ok((token, outcome)) => {
                        self.cancels.remove(&token);
                        Event::Finished(token, outcome)
                    }
                    // Panics are caught inside, nobody aborts.
                    Err(error) => {
                        warn!(%error, "a lease's task was lost");
                        continue;
                    }
                },
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
                Event::Closed(link)
            }
        }
    }

    /// True when the worker shall end.
    fn carry_out(&mut self, commands: Vec<Command>) -> bool {
        let mut exit = false;
        for command in commands {
            match command {
                Command::Send(link, frame) => self.send(link, frame),
                Command::Close(link, why) => {
                    info!(coordinator = self.config.coordinators[link], why, "stream ended");
                    if let Some(wire) = self.wires.remove(&link) {
                        wire.close.cancel();
                    }
                }
                Command::Attached(link) => {
                    self.attached.send_replace(Some(self.config.coordinators[link].clone()));
                }
                Command::Run(job) => {
                    let cancel = CancellationToken::new();
                    self.cancels.insert(job.token, cancel.clone());
                    self.leases.spawn(run::run(Arc::clone(&self.handlers), *job, cancel));
                }
                Command::Cancel(token) => {
                    if let Some(cancel) = self.cancels.get(&token) {
                        cancel.cancel();
                    }
                }
                Command::Leave(batch) => self.handlers.values().for_each(|handler| handler.leave(&batch)),
                Command::Exit => exit = true,
            }
        }
        exit
    }

    /// Never waits: the task that waited for a slow coordinator here would stop serving the others.
    fn send(&mut self, link: LinkId, frame: v1::AttachRequest) {
        let Some(wire) = self.wires.get(&link) else { return };
        if let Err(mpsc::error::TrySendError::Full(_)) = wire.outbox.try_send(frame) {
            warn!(coordinator = self.config.coordinators[link], "the coordinator doesn't read: stream ended");
            wire.close.cancel();
            self.wires.remove(&link);
        }
    }

    async fn end(mut self) {
        self.stop_links.cancel();
        // Ends the streams, after the frames that are still in them.
        self.wires.clear();
        drop(self.events);
        while self.links.join_next().await.is_some() {}
        let stopped = async { while self.leases.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_WITHIN, stopped).await.is_err() {
            warn!(leases = self.leases.len(), "leases didn't stop in time");
            self.leases.shutdown().await;
        }
        info!(worker.id = self.config.id, "worker ended");
    }
}
