//! What all parts of a coordinator share.

use super::{Bytes, Host, Registry, Slots, Streams, Term, members::Members, ownership};
use crate::config::Config;
use crate::dispatch::Dispatch;
use crate::driver::Handle;
use crate::error::Error;
use crate::manifest::Objects;
use crate::metrics::Metrics;
use crate::store::keys::{self, BatchKey};
use crate::store::{Measured, SessionId, Store, StoreError};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tranche_engine::{Epoch, Now};

/// What all parts of a coordinator share.
pub struct Shared {
    /// This coordinator's id; new at each start.
    pub id: String,
    /// The URL at which it is reached.
    pub endpoint: String,
    /// Its clock on the wall, and its ids.
    pub host: Host,
    /// Its configuration.
    pub config: Config,
    /// What is counted as it happens.
    pub metrics: Arc<Metrics>,
    /// The store; what goes through it is counted.
    pub store: Arc<dyn Store>,
    /// The object storage.
    pub objects: Objects,
    /// The hub of workers.
    pub dispatch: Arc<Dispatch>,
    /// Cancelled when the coordinator stops.
    pub stop: CancellationToken,
    /// Cancelled when what still waits for the store is left as it is.
    pub(super) cut: CancellationToken,
    /// Every task that outlives a call.
    pub tasks: TaskTracker,
    /// The monotonic clock's origin.
    pub origin: Instant,
    /// When it started, in milliseconds since 1970.
    pub start_time_ms: i64,
    /// Bytes of tasks that are not durable yet, of all append streams; a permit is one byte.
    pub append_bytes: Arc<Semaphore>,
    /// Which slots of the namespaces are taken.
    pub slots: Slots,
    /// What the namespaces have in bytes.
    pub bytes: Arc<Bytes>,
    /// WatchBatch streams.
    pub watchers: Arc<Streams>,
    /// AppendTasks streams.
    pub appenders: Arc<Streams>,
    /// Streams of workers.
    pub workers: Arc<Streams>,
    /// Who else is there, and who owns what.
    pub members: Members,
    pub(super) session: watch::Sender<Option<SessionId>>,
    pub(super) term: Mutex<Option<Term>>,
    registry: RwLock<Registry>,
    changes: watch::Sender<u64>,
}

impl Shared {
    pub(super) fn new(
        config: Config,
        endpoint: String,
        store: Arc<dyn Store>,
        objects: Objects,
        host: Host,
        stop: CancellationToken,
    ) -> Self {
        let origin = Instant::now();
        let metrics = Arc::new(Metrics::default());
        Self {
            id: host.new_id(),
            endpoint,
            append_bytes: Arc::new(Semaphore::new(config.max_append_inflight_bytes)),
            slots: Slots::new(config.slots()),
            bytes: Bytes::new(config.max_bytes_per_namespace as u64, &config.store),
            watchers: Streams::new("watchers", config.max_watchers, config.watchers_share()),
            appenders: Streams::new("append streams", config.max_append_streams, config.appenders_share()),
            workers: Streams::new("workers", config.max_workers, config.workers_share()),
            config,
            store: Arc::new(Measured::new(store, metrics.clone())),
            metrics,
            objects,
            dispatch: Arc::new(Dispatch::new(origin, host.clone())),
            stop,
            cut: CancellationToken::new(),
            tasks: TaskTracker::new(),
            origin,
            start_time_ms: host.wall_ms(),
            host,
            members: Members::default(),
            session: watch::channel(None).0,
            term: Mutex::new(None),
            registry: RwLock::new(Registry::new()),
            changes: watch::channel(0).0,
        }
    }

    /// The time for the engine.
    pub fn now(&self) -> Now {
        Now { at: self.origin.elapsed(), wall_ms: self.host.wall_ms() }
    }

    /// The handle of a batch that is owned here. `None` from the moment on at which the session may be over.
    pub fn handle(&self, batch: &BatchKey) -> Option<Handle> {
        let registry = self.registry.read().unwrap_or_else(PoisonError::into_inner);
        registry.get(batch).filter(|handle| !handle.ended()).cloned()
    }

    /// The term of now, for what is to be owned in it. An error that passes when there is none.
    pub(super) fn living(&self) -> Result<Term, Error> {
        let term = self.term.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match term.filter(Term::lives) {
            Some(term) => Ok(term),
            None if self.stop.is_cancelled() => Err(Error::ShuttingDown),
            None => {
                let message = "the session with the store was lost, and another didn't begin yet".to_owned();
                Err(Error::Store(StoreError::Unavailable(message)))
            }
        }
    }

    /// Whether new work can be taken: not while the process leaves, nor without a session with the store.
    ///
    /// # Errors
    /// Why it can't.
    pub fn ready(&self) -> Result<(), Error> {
        if self.stop.is_cancelled() {
            return Err(Error::ShuttingDown);
        }
        self.living().map(drop)
    }

    /// The session with the store, and its changes.
    pub(crate) fn sessions(&self) -> watch::Receiver<Option<SessionId>> {
        self.session.subscribe()
    }

    /// All batches that are owned here.
    pub fn handles(&self) -> Vec<(BatchKey, Handle)> {
        let registry = self.registry.read().unwrap_or_else(PoisonError::into_inner);
        let driven = registry.iter().filter(|(_, handle)| !handle.ended());
        let mut all: Vec<_> = driven.map(|(key, handle)| (key.clone(), handle.clone())).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }

    /// What an owner refuses from what it knows, without a write, is right only while it is the owner: one that
    /// was replaced and doesn't know it yet knows too little.
    ///
    /// # Errors
    /// [`Error::NotOwned`]: the lock isn't of this epoch any more.
    pub(super) async fn still_owner(&self, batch: &BatchKey, epoch: Epoch) -> Result<(), Error> {
        let lock = self.store.get(&keys::lock(batch)).await?;
        if lock.is_some_and(|lock| lock.create_revision == epoch.0) {
            return Ok(());
        }
        Err(Error::NotOwned { batch: batch.clone() })
    }

    pub(super) fn owned_changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Signs off: nothing new is given to this coordinator by the others, who know by it that it is leaving.
    pub async fn leave(&self) {
        ownership::leave(self).await;
    }

    /// A driver is there for the batch. False: one of the same epoch or a later one is there already.
    pub(super) fn own(&self, batch: BatchKey, handle: Handle) -> bool {
        let mut registry = self.registry.write().unwrap_or_else(PoisonError::into_inner);
        if registry.get(&batch).is_some_and(|there| !there.ended() && there.epoch() >= handle.epoch()) {
            return false;
        }
        registry.insert(batch, handle);
        drop(registry);
        self.changes.send_modify(|changes| *changes += 1);
        true
    }

    /// The driver of this handle ended. Another one of the batch, of a later epoch, stays.
    pub(super) fn disown(&self, batch: &BatchKey, handle: &Handle) {
        let mut registry = self.registry.write().unwrap_or_else(PoisonError::into_inner);
        if registry.get(batch).is_some_and(|registered| registered.same(handle)) {
            registry.remove(batch);
        }
        drop(registry);
        self.changes.send_modify(|changes| *changes += 1);
    }
}
