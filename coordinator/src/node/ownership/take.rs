//! Takes locks that are free, and drives what it took.

use super::{PAUSE, Shared};
use crate::driver::{Driver, ledger};
use crate::error::Error;
use crate::metrics::Cause;
use crate::store::keys::{self, BatchKey};
use crate::store::{Revision, SessionId, Txn, TxnOutcome, commit};
use bytes::Bytes;
use futures::FutureExt as _;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tranche_engine::Event;
use tranche_proto::stored::Stored;
use tranche_proto::v1;

/// Locks that are being taken at once: each is a few reads and a write, and after the loss of an owner of many
/// batches the store must also serve the batches that go on.
const TAKES: usize = 16;
/// How much later each coordinator takes a free lock than the one before it in the batch's order: longer than
/// taking it takes, so that one tries, not all.
const STEP: Duration = Duration::from_millis(150);
/// After this long, a lock of ours that nobody drives was taken by a call that never heard so.
const OWN_MOMENT: Duration = Duration::from_secs(1);

/// Why a lock is free.
#[derive(Clone, Debug)]
pub(super) enum Freed {
    /// It was when the session began.
    Before,
    /// It was deleted at this revision, of this owner if that is known.
    Deleted(Option<String>, Revision),
    /// That wasn't seen.
    Unseen,
}

impl Freed {
    fn last(&self) -> Option<&str> {
        match self {
            Self::Deleted(last, _) => last.as_deref(),
            Self::Before | Self::Unseen => None,
        }
    }

    /// Asked when the lock is taken: that its owner had signed off before may be heard of a little later than that
    /// the lock is gone, since each is watched for by itself.
    fn cause(&self, shared: &Shared) -> Cause {
        match self {
            Self::Before => Cause::Start,
            Self::Deleted(Some(last), revision) if shared.members.signed_off(last, *revision) => {
                Cause::Handover
            }
            Self::Deleted(..) | Self::Unseen => Cause::Loss,
        }
    }
}

/// What is to be done with a batch's lock.
#[derive(Clone, Debug)]
enum Job {
    /// Take it, if it is free.
    Take(Freed),
    /// It was taken by this coordinator, at this epoch: drive the batch, if that isn't done.
    Drive(Revision),
}

type Done = (BatchKey, Job, Result<(), Error>);

/// The locks that are to be taken in one session. Dropping it ends the work on them.
#[derive(Default)]
pub(super) struct Takes {
    jobs: BTreeMap<BatchKey, (Instant, Job)>,
    due: BTreeSet<(Instant, BatchKey)>,
    work: JoinSet<Done>,
    /// Those that were free at the start and weren't tried yet.
    first: BTreeSet<BatchKey>,
}

impl Takes {
    /// The lock is free: it is taken when it is this coordinator's turn.
    pub(super) fn free(&mut self, shared: &Shared, batch: BatchKey, freed: Freed) {
        let rank = u32::try_from(shared.members.rank(&batch, &shared.id, freed.last())).unwrap_or(u32::MAX);
        self.plan(batch, Job::Take(freed), STEP.saturating_mul(rank));
    }

    /// The same, for a batch that was there when the session began.
    pub(super) fn free_at_start(&mut self, shared: &Shared, batch: BatchKey) {
        self.first.insert(batch.clone());
        self.free(shared, batch, Freed::Before);
    }

    /// The lock was taken.
    pub(super) fn taken(&mut self, shared: &Shared, batch: BatchKey, owner: &str, epoch: Revision) {
        if owner == shared.id && !driven(shared, &batch, epoch) {
            self.plan(batch, Job::Drive(epoch), OWN_MOMENT);
        } else {
            self.drop_job(&batch);
            self.first.remove(&batch);
        }
    }

    /// Whether all that was free at the start was tried.
    pub(super) fn started(&self) -> bool {
        self.first.is_empty()
    }

    fn plan(&mut self, batch: BatchKey, job: Job, after: Duration) {
        self.drop_job(&batch);
        let at = Instant::now() + after;
        self.due.insert((at, batch.clone()));
        self.jobs.insert(batch, (at, job));
    }

    fn drop_job(&mut self, batch: &BatchKey) {
        if let Some((at, _)) = self.jobs.remove(batch) {
            self.due.remove(&(at, batch.clone()));
        }
    }

    /// Begins what is due. Never waits.
    pub(super) fn go_on(&mut self, shared: &Arc<Shared>) {
        while let Some(done) = self.work.try_join_next() {
            self.done(shared, done);
        }
        let now = Instant::now();
        while self.work.len() < TAKES && self.due.first().is_some_and(|(at, _)| *at <= now) {
            let Some((_, batch)) = self.due.pop_first() else { return };
            let Some((_, job)) = self.jobs.remove(&batch) else { continue };
            let shared = shared.clone();
            self.work.spawn(async move {
                let work = async {
                    match &job {
                        Job::Take(freed) => take(&shared, &batch, freed).await,
                        Job::Drive(epoch) if driven(&shared, &batch, *epoch) => Ok(()),
                        Job::Drive(epoch) => {
                            let session = *shared.session.borrow();
                            match session {
                                Some(session) => begin(&shared, &batch, *epoch, session).await,
                                None => Ok(()),
                            }
                        }
                    }
                };
                // A batch that makes this panic must not be without an owner for ever.
                let result = AssertUnwindSafe(work).catch_unwind().await;
                let result = result.unwrap_or_else(|_| Err(Error::NotOwned { batch: batch.clone() }));
                (batch, job, result)
            });
        }
    }

    /// Waits until something is done or due.
    pub(super) async fn wait(&mut self, shared: &Shared) {
        let due = self.due.first().filter(|_| self.work.len() < TAKES).map(|(at, _)| *at);
        let idle = self.work.is_empty();
        tokio::select! {
            // Each that is done makes room for what is due.
            biased;
            Some(done) = self.work.join_next(), if !idle => self.done(shared, done),
            () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
            () = std::future::pending() => {}
        }
    }

    fn done(&mut self, shared: &Shared, done: Result<Done, JoinError>) {
        // It doesn't panic, and isn't aborted while this lives.
        let Ok((batch, job, result)) = done else { return };
        self.first.remove(&batch);
        let Err(error) = result else { return };
        if matches!(error, Error::Damaged { .. }) {
            // It won't heal, and one damaged batch must not keep the others from their owner.
            tracing::error!(batch.id = %batch, %error, "batch can't be read, left alone");
            return;
        }
        // What came since is newer; and a lock that somebody has isn't free.
        let superseded = self.jobs.contains_key(&batch)
            || matches!(job, Job::Take(_)) && shared.members.owner(&batch).is_some();
        if !superseded {
            tracing::warn!(batch.id = %batch, %error, "batch not taken yet, tried again");
            self.plan(batch, job, PAUSE);
        }
    }
}

/// What a lock says of its owner.
pub(in crate::node) fn lock_record(shared: &Shared) -> Bytes {
    let record = v1::LockRecord {
        coordinator: shared.id.clone(),
        endpoint: shared.endpoint.clone(),
        nonce: shared.host.new_id(),
    };
    Stored::new(record).encode().into()
}

/// Takes a batch's lock, if it is free and the batch still needs an owner.
async fn take(shared: &Arc<Shared>, batch: &BatchKey, freed: &Freed) -> Result<(), Error> {
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
            shared.metrics.ownership.taken(freed.cause(shared));
            drive_created(shared, batch, epoch, session).await
        }
    }
}

/// Drives a batch that this coordinator just made or took, with its lock in this session. Nobody else would: so
/// it isn't given up while the session lives.
pub(in crate::node) async fn drive_created(
    shared: &Arc<Shared>,
    batch: &BatchKey,
    epoch: Revision,
    session: SessionId,
) -> Result<(), Error> {
    loop {
        match begin(shared, batch, epoch, session).await {
            Err(Error::Store(error)) if *shared.session.borrow() == Some(session) => {
                tracing::warn!(batch.id = %batch, %error, "own batch can't be read, tried again");
                tokio::select! {
                    biased;
                    () = shared.stop.cancelled() => return Err(Error::ShuttingDown),
                    () = tokio::time::sleep(PAUSE) => {}
                }
            }
            done => return done,
        }
    }
}

/// Whether the batch has a driver of this epoch or a later one. One of an earlier epoch doesn't count: it can
/// write nothing, and only doesn't know it yet.
fn driven(shared: &Shared, batch: &BatchKey, epoch: Revision) -> bool {
    shared.handle(batch).is_some_and(|handle| handle.epoch().0 >= epoch)
}

/// Drives a batch whose lock this coordinator took at this epoch, in this session, unless it is driven, or was
/// lost meanwhile.
async fn begin(
    shared: &Arc<Shared>,
    batch: &BatchKey,
    epoch: Revision,
    session: SessionId,
) -> Result<(), Error> {
    if !driven(shared, batch, epoch) {
        drive(shared, batch, epoch, session).await?;
    }
    // The watch may have come by a decision after the records were read, when nobody was there to be told.
    let Some(handle) = shared.handle(batch) else { return Ok(()) };
    if let Some(entry) = shared.store.get(&keys::decision(batch)).await? {
        handle.event(Event::Decided(super::decision(&entry)?)).await;
    }
    Ok(())
}

async fn drive(
    shared: &Arc<Shared>,
    batch: &BatchKey,
    epoch: Revision,
    session: SessionId,
) -> Result<(), Error> {
    let loaded = match ledger::load(&*shared.store, batch).await? {
        Some(loaded) if loaded.lock_revision == epoch => loaded,
        // Deleted, or another epoch began: its owner drives the batch.
        _ => return Ok(()),
    };
    drive_loaded(shared, batch, loaded, session)
}

/// Drives a batch whose records are known, at the epoch that they were loaded with: read, or just made here.
pub(in crate::node) fn drive_loaded(
    shared: &Arc<Shared>,
    batch: &BatchKey,
    loaded: ledger::Loaded,
    session: SessionId,
) -> Result<(), Error> {
    let epoch = loaded.lock_revision;
    // Held to the end, so that no driver begins after the term's drivers were waited for.
    let term = shared.term.lock().unwrap_or_else(PoisonError::into_inner);
    let term = match &*term {
        Some(term) if term.session() == session => term,
        // The lock goes with the session that it was taken in, and whoever takes it then drives the batch.
        _ if !shared.stop.is_cancelled() => return Ok(()),
        _ => return Err(Error::ShuttingDown),
    };
    let (driver, handle) = Driver::new(shared.clone(), batch.clone(), loaded, term.clone());
    // Two may come here for one epoch: the call that took the lock, and whoever saw that it is ours.
    if !shared.own(batch.clone(), handle.clone()) {
        return Ok(());
    }
    let (shared, batch, stop, cut) =
        (shared.clone(), batch.clone(), term.stop.clone(), term.cut.clone().cancelled_owned());
    term.drivers.spawn(async move {
        let ran = tokio::select! {
            biased;
            ran = AssertUnwindSafe(driver.run(stop.clone())).catch_unwind() => ran,
            () = cut => Ok(()),
        };
        shared.disown(&batch, &handle);
        if ran.is_err() {
            release(&shared, &batch, epoch, &stop).await;
        }
    });
    Ok(())
}

/// The driver panicked: a mistake of ours. The lock would keep the batch from every owner as long as this
/// process lives; without it another begins from the records, and so may this one.
async fn release(shared: &Shared, batch: &BatchKey, epoch: Revision, stop: &CancellationToken) {
    tracing::error!(batch.id = %batch, "driver failed, its lock is given up");
    shared.metrics.ownership.panics.inc();
    tokio::select! {
        biased;
        // The lock goes with the session.
        () = stop.cancelled() => return,
        () = tokio::time::sleep(PAUSE) => {}
    }
    let lock = keys::lock(batch);
    let txn = Txn::new().created(lock.clone(), epoch).delete(lock);
    while let Err(error) = commit::commit(&*shared.store, &txn).await {
        tracing::warn!(batch.id = %batch, %error, "lock not given up yet");
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}
