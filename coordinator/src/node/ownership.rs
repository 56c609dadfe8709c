//! Which batches this coordinator owns: takes sequence locks that are free, and drives their batches.
//!
//! The locks hang on this coordinator's session with the store. When the session is lost every driver
//! stops (it couldn't write any more anyway: its epoch is over), and a new session begins from the start.

use super::Shared;
use crate::config::{DEFAULT_SESSION_TTL, StoreConfig};
use crate::driver::{Driver, ledger, records};
use crate::error::Error;
use crate::store::keys::{self, BatchKey};
use crate::store::{RangeOptions, Revision, Session, SessionId, Txn, TxnOutcome, Watch, WatchEvent, commit};
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tranche_engine::Event;
use tranche_proto::stored::Stored;
use tranche_proto::v1;

/// Pause before a session is tried again when the store doesn't answer.
const PAUSE: Duration = Duration::from_millis(500);
/// States read at once at the start.
const PAGE: usize = 1000;

/// Begins to own batches, in a task of its own; returns once those that were free are driven.
pub(super) async fn start(shared: Arc<Shared>) -> Result<(), Error> {
    let (ready, started) = oneshot::channel();
    let task = shared.clone();
    shared.tasks.spawn(async move { own_until_stopped(task, ready).await });
    started.await.map_err(|_| Error::ShuttingDown)?
}

async fn own_until_stopped(shared: Arc<Shared>, ready: oneshot::Sender<Result<(), Error>>) {
    let mut ready = Some(ready);
    while !shared.stop.is_cancelled() {
        if let Err(error) = own(&shared, &mut ready).await {
            if let Some(ready) = ready.take() {
                let _ = ready.send(Err(error));
                return;
            }
            tracing::warn!(%error, "can't own batches now, trying again");
            tokio::select! {
                () = tokio::time::sleep(PAUSE) => {}
                () = shared.stop.cancelled() => {}
            }
        }
    }
}

/// One session's life.
async fn own(
    shared: &Arc<Shared>,
    ready: &mut Option<oneshot::Sender<Result<(), Error>>>,
) -> Result<(), Error> {
    let store = &shared.store;
    let session_ttl = match shared.config.store {
        StoreConfig::Etcd { session_ttl, .. } => session_ttl,
        // It ends with the process.
        StoreConfig::Embedded { .. } => DEFAULT_SESSION_TTL,
    };
    let mut session = store.session(session_ttl).await?;
    // From before the first read, so that nothing falls in between.
    let revision =
        store.range(keys::COORDINATORS, RangeOptions { limit: 1, ..Default::default() }).await?.revision;
    let mut locks = store.watch(keys::LOCKS, revision).await?;
    let mut decisions = store.watch(keys::DECISIONS, revision).await?;
    register(shared, &session).await?;
    shared.session.send_replace(Some(session.id));
    let term = Term { stop: shared.stop.child_token(), drivers: TaskTracker::new() };
    *shared.term.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(term.clone());
    let served = serve(shared, &mut session, &mut locks, &mut decisions, ready).await;
    shared.session.send_replace(None);
    shared.term.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
    term.stop.cancel();
    term.drivers.close();
    term.drivers.wait().await;
    // Frees every lock at once; should it fail, they go with the session's time.
    if let Err(error) = store.close_session(session.id).await {
        tracing::warn!(%error, "session not closed, its locks go when its time is over");
    }
    served
}

/// The time of one session: what is driven in it.
#[derive(Clone)]
pub(super) struct Term {
    stop: CancellationToken,
    drivers: TaskTracker,
}

async fn serve(
    shared: &Arc<Shared>,
    session: &mut Session,
    locks: &mut Watch,
    decisions: &mut Watch,
    ready: &mut Option<oneshot::Sender<Result<(), Error>>>,
) -> Result<(), Error> {
    take_free(shared).await?;
    if let Some(ready) = ready.take() {
        let _ = ready.send(Ok(()));
    }
    loop {
        tokio::select! {
            () = shared.stop.cancelled() => return Ok(()),
            () = lost(session) => {
                tracing::warn!("session with the store lost: every batch is given up and taken again");
                return Ok(());
            }
            event = locks.recv() => match event {
                Some(WatchEvent::Deleted(key, _)) => {
                    if let Some(batch) = key.strip_prefix(keys::LOCKS).and_then(BatchKey::from_tail) {
                        take(shared, &batch).await?;
                    }
                }
                Some(WatchEvent::Missed(_)) => take_free(shared).await?,
                Some(WatchEvent::Put(_)) => {}
                None => return Err(closed()),
            },
            event = decisions.recv() => match event {
                Some(WatchEvent::Put(entry)) => {
                    let batch = entry.key.strip_prefix(keys::DECISIONS).and_then(BatchKey::from_tail);
                    if let Some(batch) = batch {
                        tell(shared, &batch, &entry)?;
                    }
                }
                Some(WatchEvent::Missed(_)) => {
                    for (batch, _) in shared.handles() {
                        if let Some(entry) = shared.store.get(&keys::decision(&batch)).await? {
                            tell(shared, &batch, &entry)?;
                        }
                    }
                }
                Some(WatchEvent::Deleted(..)) => {}
                None => return Err(closed()),
            },
        }
    }
}

async fn lost(session: &mut Session) {
    // A sender that is gone means that the session is, too.
    let _ = session.lost.wait_for(|lost| *lost).await;
}

fn closed() -> Error {
    Error::Store(crate::store::StoreError::Unavailable("the store was closed".to_owned()))
}

/// Tells the batch's driver of a decision. Not waited for: one driver that is slow to take it in must not
/// keep the other batches from their owner.
fn tell(shared: &Arc<Shared>, batch: &BatchKey, entry: &crate::store::Entry) -> Result<(), Error> {
    let Some(handle) = shared.handle(batch) else { return Ok(()) };
    let record = ledger::decode::<v1::DecisionRecord>(entry)?.value;
    let decision = records::decision_from(&record)
        .map_err(|message| Error::Damaged { what: entry.key.clone(), message })?;
    shared.tasks.spawn(async move { handle.event(Event::Decided(decision)).await });
    Ok(())
}

async fn register(shared: &Arc<Shared>, session: &Session) -> Result<(), Error> {
    let record = v1::CoordinatorRecord {
        endpoint: shared.endpoint.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        start_time_ms: shared.start_time_ms,
    };
    let txn = Txn::new().put_held(keys::coordinator(&shared.id), Stored::new(record).encode(), session.id);
    commit::commit(&*shared.store, &txn).await?;
    Ok(())
}

/// What a lock says of its owner.
pub(super) fn lock_record(shared: &Shared) -> Bytes {
    let record = v1::LockRecord {
        coordinator: shared.id.clone(),
        endpoint: shared.endpoint.clone(),
        nonce: uuid::Uuid::new_v4().to_string(),
    };
    Stored::new(record).encode().into()
}

/// Takes every lock that is free, of batches that still need an owner.
async fn take_free(shared: &Arc<Shared>) -> Result<(), Error> {
    let mut after = None;
    loop {
        let options = RangeOptions { limit: PAGE, after: after.take(), ..RangeOptions::default() };
        let page = shared.store.range(keys::STATES, options).await?;
        for entry in &page.entries {
            let Some(batch) = entry.key.strip_prefix(keys::STATES).and_then(BatchKey::from_tail) else {
                continue;
            };
            let state = match ledger::decode::<v1::StateRecord>(entry) {
                Ok(state) => state.value,
                Err(error) => {
                    // One damaged batch must not keep the others from their owner.
                    tracing::error!(batch.id = %batch, %error, "batch can't be read, left alone");
                    continue;
                }
            };
            if !state.swept {
                take(shared, &batch).await?;
            }
        }
        match page.entries.last() {
            Some(last) if page.more => after = Some(last.key.clone()),
            _ => return Ok(()),
        }
    }
}

/// Takes a batch's lock, if it is free and the batch still needs an owner.
async fn take(shared: &Arc<Shared>, batch: &BatchKey) -> Result<(), Error> {
    let store = &*shared.store;
    let Some(session) = *shared.session.borrow() else { return Ok(()) };
    let Some(state) = store.get(&keys::state(batch)).await? else { return Ok(()) };
    if shared.stop.is_cancelled() || ledger::decode::<v1::StateRecord>(&state)?.value.swept {
        return Ok(());
    }
    let lock = keys::lock(batch);
    let txn = Txn::new().absent(lock.clone()).created(keys::state(batch), state.create_revision).put_held(
        lock,
        lock_record(shared),
        session,
    );
    match commit::commit(store, &txn).await? {
        TxnOutcome::Refused => Ok(()),
        TxnOutcome::Applied(epoch) => {
            tracing::info!(batch.id = %batch, epoch, "sequence lock taken");
            drive(shared, batch, epoch).await
        }
    }
}

/// Drives a batch that this coordinator just made, with its lock in this session. Nobody else would: so it
/// isn't given up while the session lives.
pub(super) async fn drive_created(
    shared: &Arc<Shared>,
    batch: &BatchKey,
    epoch: Revision,
    session: SessionId,
) -> Result<(), Error> {
    loop {
        match begin(shared, batch, epoch).await {
            Err(Error::Store(error)) if *shared.session.borrow() == Some(session) => {
                tracing::warn!(batch.id = %batch, %error, "new batch can't be read, tried again");
                tokio::select! {
                    () = tokio::time::sleep(PAUSE) => {}
                    () = shared.stop.cancelled() => return Err(Error::ShuttingDown),
                }
            }
            done => return done,
        }
    }
}

async fn begin(shared: &Arc<Shared>, batch: &BatchKey, epoch: Revision) -> Result<(), Error> {
    if shared.handle(batch).is_none() {
        drive(shared, batch, epoch).await?;
    }
    // The watch may have come by a decision after the records were read, when nobody was there to be told.
    match shared.store.get(&keys::decision(batch)).await? {
        Some(entry) => tell(shared, batch, &entry),
        None => Ok(()),
    }
}

/// Drives a batch whose lock this coordinator took at this epoch, unless it was lost meanwhile.
async fn drive(shared: &Arc<Shared>, batch: &BatchKey, epoch: Revision) -> Result<(), Error> {
    let loaded = match ledger::load(&*shared.store, batch).await {
        Ok(Some(loaded)) if loaded.lock_revision == epoch => loaded,
        // Deleted, or another epoch began: its owner drives the batch.
        Ok(_) => return Ok(()),
        Err(error @ Error::Damaged { .. }) => {
            tracing::error!(batch.id = %batch, %error, "batch can't be read, left alone");
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let term = shared.term.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
    let Some(term) = term else { return Err(Error::ShuttingDown) };
    let (driver, handle) = Driver::new(shared.clone(), batch.clone(), loaded);
    shared.own(batch.clone(), handle.clone());
    let (shared, batch) = (shared.clone(), batch.clone());
    term.drivers.spawn(async move {
        driver.run(term.stop).await;
        shared.disown(&batch, &handle);
    });
    Ok(())
}
