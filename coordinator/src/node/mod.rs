//! What this coordinator can be asked: the one place between the gRPC services and the batches.

mod append;
mod bytes;
mod create;
mod decide;
mod delete;
mod failures;
mod host;
mod inspect;
mod list;
mod members;
mod ownership;
mod shared;
mod slots;
mod streams;
mod term;
mod view;

pub use append::Appender;
pub use bytes::Bytes;
pub(crate) use bytes::Driven;
pub use host::Host;
pub use list::ListFilter;
pub use members::Member;
pub use shared::Shared;
pub use slots::Slots;
pub use streams::{Open, Streams};
pub use term::Term;
pub use view::{Live, View, timestamp};

use crate::config::Config;
use crate::dispatch::Session;
use crate::driver::{Handle, Op, ledger};
use crate::error::Error;
use crate::manifest::Objects;
use crate::store::keys::{self, BatchKey};
use crate::store::{Entry, Store, StoreError};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tranche_engine::Answer;
use tranche_proto::v1;

/// How long a call waits for a batch to have an owner here, when it is known that this is the place: locks are
/// seen to be taken a little after they are.
const OWNED_WAIT: Duration = Duration::from_secs(1);
/// How often it is looked who owns a batch that nobody owned, beside what is told of our own.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Where a call about a batch belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Here: it is driven here, or it ended and needs no owner.
    Here,
    /// There: another coordinator drives it.
    There(Member),
}

/// A coordinator's application: all services share one.
pub struct Node {
    shared: Arc<Shared>,
}

impl Node {
    /// Starts: registers the coordinator, takes the sequence locks that are free, and drives those batches
    /// until `stop`. Returns once everything that was free at the start is driven.
    pub async fn start(
        config: Config,
        endpoint: String,
        store: Arc<dyn Store>,
        objects: Objects,
        host: Host,
        stop: CancellationToken,
    ) -> Result<Self, Error> {
        let shared = Arc::new(Shared::new(config, endpoint, store, objects, host, stop));
        ownership::start(shared.clone()).await?;
        Ok(Self { shared })
    }

    /// Waits until every task that was started is done. They end after `stop`.
    pub async fn stopped(&self) {
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }

    /// Leaves what still waits for the store as it is, when that is away for too long: [`Self::stopped`] returns
    /// then, and the locks go with the session's time.
    pub fn cut(&self) {
        self.shared.cut.cancel();
    }

    /// What all parts share.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Names of the handlers that a new batch of a namespace may ask for: the configured ones, and those that
    /// attached workers have who would work for it.
    pub fn known_handlers(&self, namespace: &str) -> Vec<String> {
        let mut known: BTreeSet<String> = self.shared.config.handlers.iter().cloned().collect();
        let of = |session: &Session| session.scope.sees(namespace).then(|| session.handlers.clone());
        known.extend(self.shared.dispatch.sessions(of).into_iter().flatten().flatten());
        known.into_iter().collect()
    }

    /// Reads a batch.
    pub async fn get(&self, batch: &BatchKey) -> Result<View, Error> {
        if let Some(handle) = self.shared.handle(batch) {
            return Ok(View::clone(&handle.view().borrow()));
        }
        self.stored_view(batch).await
    }

    /// A batch as the store has it.
    async fn stored_view(&self, batch: &BatchKey) -> Result<View, Error> {
        let store = &*self.shared.store;
        let not_found = || Error::NotFound(batch.clone());
        let state = store.get(&keys::state(batch)).await?.ok_or_else(not_found)?;
        let spec = store.get(&keys::spec(batch)).await?.ok_or_else(not_found)?;
        let decision = store.get(&keys::decision(batch)).await?;
        let cutoff = store.get(&keys::cutoff(batch)).await?;
        stored_view(batch, &state, &spec, decision.as_ref(), cutoff.as_ref())
    }

    /// Where calls about a batch belong now; `None`: nobody owns it yet.
    pub async fn place(&self, batch: &BatchKey) -> Result<Option<Place>, Error> {
        if self.shared.handle(batch).is_some() {
            return Ok(Some(Place::Here));
        }
        match self.shared.owner_of(batch).await? {
            Some(owner) if owner.id != self.shared.id => Ok(Some(Place::There(owner))),
            // It was just taken here, or was just lost.
            Some(_) => Ok(None),
            None => Ok(self.stored_view(batch).await?.state.swept.then_some(Place::Here)),
        }
    }

    /// The same, once there is a place: a batch whose owner was lost gets another within seconds.
    pub async fn placed(&self, batch: &BatchKey, until: Instant) -> Result<Place, Error> {
        let mut changes = self.shared.owned_changes();
        loop {
            changes.borrow_and_update();
            if let Some(place) = self.place(batch).await? {
                return Ok(place);
            }
            tokio::select! {
                biased;
                () = self.shared.stop.cancelled() => return Err(Error::ShuttingDown),
                () = tokio::time::sleep_until(until) => return Err(Error::NotOwned { batch: batch.clone() }),
                _ = changes.changed() => {}
                () = tokio::time::sleep(LOOK_AGAIN) => {}
            }
        }
    }

    /// Whether this coordinator drives the batch although the store has its lock as another's, or as free. One
    /// that was cut off from the store doesn't know it at once: what it shows is older than what the next owner
    /// shows.
    pub async fn cut_off(&self, batch: &BatchKey) -> Result<bool, Error> {
        if self.shared.handle(batch).is_none() {
            return Ok(false);
        }
        let Some(entry) = self.shared.store.get(&keys::lock(batch)).await? else { return Ok(true) };
        Ok(ledger::decode::<v1::LockRecord>(&entry)?.value.coordinator != self.shared.id)
    }

    /// Watches a batch that is owned here, or ended: changes with every write of its owner. Closed after the
    /// owner is done with it.
    pub async fn watch(&self, batch: &BatchKey) -> Result<Watched, Error> {
        if let Some(handle) = self.shared.handle(batch) {
            return Ok(handle.into());
        }
        let view = self.stored_view(batch).await?;
        if view.is_final() {
            return Ok(watch::channel(Arc::new(view)).1.into());
        }
        match self.owned(batch).await {
            Ok(handle) => Ok(handle.into()),
            // It ended just now.
            Err(Error::WrongState { .. }) => {
                Ok(watch::channel(Arc::new(self.stored_view(batch).await?)).1.into())
            }
            Err(error) => Err(error),
        }
    }

    /// The handle of a batch that is owned here, or will be shortly.
    async fn owned(&self, batch: &BatchKey) -> Result<Handle, Error> {
        let mut changes = self.shared.owned_changes();
        if let Some(handle) = self.shared.handle(batch) {
            return Ok(handle);
        }
        let view = self.stored_view(batch).await?;
        if view.state.swept {
            return Err(Error::WrongState {
                batch: batch.clone(),
                state: view.state.state(),
                wanted: "the batch ended, nothing of it can be changed",
            });
        }
        let until = Instant::now() + OWNED_WAIT;
        loop {
            if let Some(handle) = self.shared.handle(batch) {
                return Ok(handle);
            }
            tokio::select! {
                biased;
                () = self.shared.stop.cancelled() => return Err(Error::ShuttingDown),
                () = tokio::time::sleep_until(until) => return Err(Error::NotOwned { batch: batch.clone() }),
                _ = changes.changed() => {}
            }
        }
    }

    /// Seals a batch.
    pub async fn seal(&self, batch: &BatchKey, total: Option<i64>) -> Result<View, Error> {
        let handle = match self.owned(batch).await {
            // Sealed and ended long ago: the same answer as then.
            Err(error @ Error::WrongState { .. }) => {
                let view = self.stored_view(batch).await?;
                return match total {
                    _ if !view.state.sealed => Err(error),
                    Some(said) if said != view.state.total => Err(Error::TotalMismatch {
                        batch: batch.clone(),
                        said,
                        durable: view.state.total.cast_unsigned(),
                    }),
                    _ => Ok(view),
                };
            }
            handle => handle?,
        };
        let epoch = handle.epoch();
        match handle.call(batch, Op::Seal(total.map(i64::cast_unsigned))).await {
            Ok(_) => self.get(batch).await,
            Err(Error::TotalMismatch { batch, durable, .. }) => {
                self.shared.still_owner(&batch, epoch).await?;
                Err(Error::TotalMismatch { batch, said: total.unwrap_or_default(), durable })
            }
            Err(error) => Err(error),
        }
    }

    /// Leases the failed tasks once more; the second value is how many. `NotOwned` means that nothing was done.
    pub async fn retry_failed(&self, batch: &BatchKey) -> Result<(View, u64), Error> {
        let handle = self.owned(batch).await?;
        let call = handle.begin(batch, Op::RetryFailed).await?;
        let answer = call.answer().await.map_err(|error| match error {
            // Whether the driver came to it isn't known.
            Error::NotOwned { batch } => {
                Error::Store(StoreError::Unknown(format!("the owner of {batch} ended before its answer")))
            }
            error => error,
        })?;
        match answer {
            Answer::Retried(tasks) => {
                if tasks == 0 {
                    self.shared.still_owner(batch, handle.epoch()).await?;
                }
                Ok((self.get(batch).await?, tasks))
            }
            other @ (Answer::Appended(_) | Answer::Sealed) => unreachable!("a retry was answered {other:?}"),
        }
    }
}

/// A batch from its stored entries.
fn stored_view(
    batch: &BatchKey,
    state: &Entry,
    spec: &Entry,
    decision: Option<&Entry>,
    cutoff: Option<&Entry>,
) -> Result<View, Error> {
    let state = ledger::decode::<v1::StateRecord>(state)?.value;
    let spec = Arc::new(ledger::decode::<v1::SpecRecord>(spec)?.value);
    let decision = decision.map(ledger::decode::<v1::DecisionRecord>).transpose()?.map(|d| d.value);
    let cutoff = match cutoff {
        Some(entry) => ledger::decode::<v1::CutoffRecord>(entry)?.value.cutoff,
        None => state.cutoff,
    };
    Ok(View {
        key: batch.clone(),
        spec,
        state,
        decision,
        cutoff: cutoff.cast_unsigned(),
        live: Live::default(),
    })
}

/// A batch that is watched.
pub struct Watched {
    /// Changes with every write of its owner. Closed after that one is done with it.
    pub updates: watch::Receiver<Arc<View>>,
    /// In whose time the views are the newest there are; `None`: for ever.
    pub term: Option<Term>,
}

impl From<Handle> for Watched {
    fn from(handle: Handle) -> Self {
        Self { updates: handle.view(), term: Some(handle.term().clone()) }
    }
}

impl From<watch::Receiver<Arc<View>>> for Watched {
    fn from(updates: watch::Receiver<Arc<View>>) -> Self {
        Self { updates, term: None }
    }
}

/// Which batches are owned here.
type Registry = BTreeMap<BatchKey, Handle>;

#[cfg(test)]
impl Node {
    /// Ends the session with the store, as a store that was away too long does.
    pub(crate) async fn lose_session(&self) {
        let session = (*self.shared.session.borrow()).expect("there is one");
        self.shared.store.close_session(session).await.expect("closed");
    }
}

#[cfg(test)]
mod tests;
