//! Which batches this coordinator owns: takes sequence locks that are free, and drives their batches; and who
//! else is there, which decides whose turn it is.
//!
//! The locks hang on this coordinator's session with the store. When the session is lost every driver
//! stops (it couldn't write any more anyway: its epoch is over), and a new session begins from the start.

mod take;

pub(super) use take::{drive_created, drive_loaded, lock_record};

use super::{Member, Shared, Term};
use crate::config::{DEFAULT_SESSION_TTL, StoreConfig};
use crate::driver::{ledger, records};
use crate::error::Error;
use crate::store::keys::{self, BatchKey};
use crate::store::{Entry, RangeOptions, Revision, Session, StoreError, Txn, Watch, WatchEvent, commit};
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use take::{Freed, Takes};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tranche_engine::{Decision, Event, Outcome};
use tranche_proto::stored::Stored;
use tranche_proto::v1;

/// Pause before a session is tried again when the store doesn't answer.
const PAUSE: Duration = Duration::from_millis(500);
/// How long a coordinator that leaves tries to say so: without that its record goes with its session, a moment
/// later.
const LEAVE_LIMIT: Duration = Duration::from_millis(500);

/// Begins to own batches, in a task of its own; returns once those that were free are driven. What the store
/// doesn't do now is tried again within `start_timeout`.
pub(super) async fn start(shared: Arc<Shared>) -> Result<(), Error> {
    let (ready, started) = oneshot::channel();
    let task = shared.clone();
    shared.tasks.spawn(async move { own_until_stopped(task, ready).await });
    started.await.map_err(|_| Error::ShuttingDown)?
}

async fn own_until_stopped(shared: Arc<Shared>, ready: oneshot::Sender<Result<(), Error>>) {
    let mut ready = Some(ready);
    let start_until = Instant::now() + shared.config.start_timeout;
    while !shared.stop.is_cancelled() {
        let error = match own(&shared, &mut ready).await {
            Ok(()) if ready.is_none() => continue,
            Ok(()) => lost_at_start(),
            Err(error) => error,
        };
        if ready.is_some() && !(passing(&error) && Instant::now() + PAUSE < start_until) {
            if let Some(ready) = ready.take() {
                let _ = ready.send(Err(error));
            }
            return;
        }
        tracing::warn!(%error, "can't own batches now, trying again");
        tokio::select! {
            biased;
            () = shared.stop.cancelled() => {}
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

/// Whether the store may do it later.
fn passing(error: &Error) -> bool {
    matches!(error, Error::Store(error) if error.retryable())
}

fn lost_at_start() -> Error {
    Error::Store(StoreError::Unavailable("the session was lost during the start".to_owned()))
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
    let mut watches = Watches {
        coordinators: store.watch(keys::COORDINATORS, revision).await?,
        locks: store.watch(keys::LOCKS, revision).await?,
        decisions: store.watch(keys::DECISIONS, revision).await?,
    };
    if let Err(error) = register(shared, &session).await {
        // It was refused because the session took too long to come here?
        return Err(if store.session_lives(session.id) && !*session.lost.borrow() {
            error
        } else {
            lost_at_start()
        });
    }
    shared.metrics.ownership.sessions.inc();
    let term = Term::new(session.clone(), store.clone(), &shared.stop, &shared.cut);
    // Should this panic, the drivers must not hold on to the locks.
    let _cut = term.cut.clone().drop_guard();
    *shared.term.lock().unwrap_or_else(PoisonError::into_inner) = Some(term.clone());
    shared.session.send_replace(Some(session.id));
    let served = serve(shared, &mut session, &mut watches, revision, ready).await;
    shared.session.send_replace(None);
    shared.term.lock().unwrap_or_else(PoisonError::into_inner).take();
    term.stop.cancel();
    // Nobody tells from here on who owns what: the store is asked.
    shared.members.relist(Vec::new());
    if !shared.stop.is_cancelled() {
        // The locks are gone, or go now. What is written still is written or not, as after a crash.
        term.cut.cancel();
    }
    term.drivers.close();
    term.drivers.wait().await;
    // Frees every lock at once; should it fail, they go with the session's time.
    tokio::select! {
        biased;
        () = shared.cut.cancelled() => tracing::warn!("session left open, its locks go when its time is over"),
        closed = store.close_session(session.id) => if let Err(error) = closed {
            tracing::warn!(%error, "session not closed, its locks go when its time is over");
        }
    }
    served
}

/// What a session looks at.
struct Watches {
    coordinators: Watch,
    locks: Watch,
    decisions: Watch,
}

async fn serve(
    shared: &Arc<Shared>,
    session: &mut Session,
    watches: &mut Watches,
    begun: Revision,
    ready: &mut Option<oneshot::Sender<Result<(), Error>>>,
) -> Result<(), Error> {
    list_members(shared).await?;
    list_locks(shared).await?;
    let mut takes = Takes::default();
    for batch in free(shared).await? {
        takes.free_at_start(shared, batch);
    }
    loop {
        takes.go_on(shared);
        if takes.started()
            && let Some(ready) = ready.take()
        {
            let _ = ready.send(Ok(()));
        }
        tokio::select! {
            // What ends the session first. Then the watches: their events are few beside what the store can
            // do, and are only noted here. What they hold up is begun above, at every turn.
            biased;
            () = shared.stop.cancelled() => return Ok(()),
            () = lost(session) => {
                tracing::warn!("session with the store lost: every batch is given up and taken again");
                shared.metrics.ownership.lost.inc();
                return Ok(());
            }
            // What was missed is read; a store that doesn't answer just then costs no batch its owner.
            event = watches.coordinators.recv() => {
                let event = event.ok_or_else(closed)?;
                while let Err(error) = member_changed(shared, event.clone()).await {
                    pause_after(shared, session, error).await?;
                }
            }
            event = watches.locks.recv() => {
                let event = event.ok_or_else(closed)?;
                while let Err(error) = lock_changed(shared, &mut takes, begun, event.clone()).await {
                    pause_after(shared, session, error).await?;
                }
            }
            event = watches.decisions.recv() => {
                let event = event.ok_or_else(closed)?;
                while let Err(error) = decided(shared, event.clone()).await {
                    pause_after(shared, session, error).await?;
                }
            }
            () = takes.wait(shared) => {}
        }
    }
}

async fn member_changed(shared: &Shared, event: WatchEvent) -> Result<(), Error> {
    let changed = match event {
        WatchEvent::Put(entry) => {
            let Some(member) = Member::decode(&entry) else { return Ok(()) };
            shared.members.change(|list| drop(list.insert(member.id.clone(), member)))
        }
        WatchEvent::Deleted(key, revision) => {
            let id = key.strip_prefix(keys::COORDINATORS).unwrap_or_default();
            shared.members.went(id, revision);
            shared.members.change(|list| drop(list.remove(id)))
        }
        WatchEvent::Missed(_) => return list_members(shared).await,
    };
    if changed {
        tell_members(shared);
    }
    Ok(())
}

async fn list_members(shared: &Shared) -> Result<(), Error> {
    let mut all = Vec::new();
    ledger::each(&*shared.store, keys::COORDINATORS, |entry| {
        all.extend(Member::decode(entry));
        Ok(())
    })
    .await?;
    shared.members.change(|list| *list = all.into_iter().map(|member| (member.id.clone(), member)).collect());
    tell_members(shared);
    Ok(())
}

/// Workers keep a stream to each.
fn tell_members(shared: &Shared) {
    let list = shared.members.list().borrow().clone();
    let replica =
        |member: &Member| v1::Replica { coordinator: member.id.clone(), endpoint: member.endpoint.clone() };
    shared.dispatch.replicas(v1::Replicas { replicas: list.iter().map(replica).collect() });
}

async fn lock_changed(
    shared: &Arc<Shared>,
    takes: &mut Takes,
    begun: Revision,
    event: WatchEvent,
) -> Result<(), Error> {
    match event {
        WatchEvent::Put(entry) => {
            let batch = entry.key.strip_prefix(keys::LOCKS).and_then(BatchKey::from_tail);
            if let Some(batch) = batch {
                let owner = owner(&entry);
                takes.taken(shared, batch.clone(), &owner.id, entry.create_revision);
                shared.members.locked(batch, owner, entry.create_revision);
            }
        }
        WatchEvent::Deleted(key, revision) => {
            if let Some(batch) = key.strip_prefix(keys::LOCKS).and_then(BatchKey::from_tail) {
                let last = shared.members.unlocked(&batch, revision);
                // An event that is late says nothing of who has it now.
                if shared.members.owner(&batch).is_none() {
                    takes.free(shared, batch, Freed::Deleted(last.map(|last| last.id), revision));
                }
            }
        }
        WatchEvent::Missed(_) => {
            for (batch, owner, epoch) in list_locks(shared).await? {
                // One of before this session isn't in it, and goes.
                if epoch > begun {
                    takes.taken(shared, batch, &owner.id, epoch);
                }
            }
            for batch in free(shared).await? {
                takes.free(shared, batch, Freed::Unseen);
            }
        }
    }
    Ok(())
}

/// The owner that a lock names. One that can't be read is taken all the same, by nobody that could be asked.
fn owner(entry: &Entry) -> Member {
    Member::owner(entry).unwrap_or_else(|error| {
        tracing::error!(%error, "lock without a name");
        Member { id: String::new(), endpoint: String::new() }
    })
}

async fn list_locks(shared: &Shared) -> Result<Vec<(BatchKey, Member, Revision)>, Error> {
    let mut all = Vec::new();
    ledger::each(&*shared.store, keys::LOCKS, |entry| {
        if let Some(batch) = entry.key.strip_prefix(keys::LOCKS).and_then(BatchKey::from_tail) {
            all.push((batch, owner(entry), entry.create_revision));
        }
        Ok(())
    })
    .await?;
    shared.members.relist(all.clone());
    Ok(all)
}

/// Batches that still need an owner and, as far as is known, have none.
async fn free(shared: &Shared) -> Result<Vec<BatchKey>, Error> {
    let mut free = Vec::new();
    ledger::each(&*shared.store, keys::STATES, |entry| {
        let Some(batch) = entry.key.strip_prefix(keys::STATES).and_then(BatchKey::from_tail) else {
            return Ok(());
        };
        match ledger::decode::<v1::StateRecord>(entry) {
            Ok(state) if !state.value.swept && shared.members.owner(&batch).is_none() => free.push(batch),
            Ok(_) => {}
            // One damaged batch must not keep the others from their owner.
            Err(error) => tracing::error!(batch.id = %batch, %error, "batch can't be read, left alone"),
        }
        Ok(())
    })
    .await?;
    Ok(free)
}

async fn decided(shared: &Arc<Shared>, event: WatchEvent) -> Result<(), Error> {
    match event {
        WatchEvent::Put(entry) => {
            if let Some(batch) = entry.key.strip_prefix(keys::DECISIONS).and_then(BatchKey::from_tail) {
                tell(shared, &batch, &entry);
            }
        }
        WatchEvent::Missed(_) => {
            for (batch, _) in shared.handles() {
                if let Some(entry) = shared.store.get(&keys::decision(&batch)).await? {
                    tell(shared, &batch, &entry);
                }
            }
        }
        WatchEvent::Deleted(..) => {}
    }
    Ok(())
}

/// Waits before the store is asked again. An error when that is no use.
async fn pause_after(shared: &Shared, session: &mut Session, error: Error) -> Result<(), Error> {
    if !passing(&error) {
        return Err(error);
    }
    tracing::warn!(%error, "changes that were missed aren't read yet, trying again");
    tokio::select! {
        biased;
        () = shared.stop.cancelled() => Err(error),
        () = lost(session) => Err(error),
        () = tokio::time::sleep(PAUSE) => Ok(()),
    }
}

async fn lost(session: &mut Session) {
    // A sender that is gone means that the session is, too.
    let _ = session.lost.wait_for(|lost| *lost).await;
}

fn closed() -> Error {
    Error::Store(StoreError::Unavailable("the store was closed".to_owned()))
}

/// Tells the batch's driver of a decision. Not waited for: one driver that is slow to take it in must not
/// keep the other batches from their owner. A rollback of another coordinator's batch is passed on to the
/// workers, who may hear of it here first.
fn tell(shared: &Arc<Shared>, batch: &BatchKey, entry: &Entry) {
    let decision = match decision(entry) {
        Ok(decision) => decision,
        Err(error) => {
            tracing::error!(batch.id = %batch, %error, "decision can't be read");
            return;
        }
    };
    if let Some(handle) = shared.handle(batch) {
        shared.tasks.spawn(async move { handle.event(Event::Decided(decision)).await });
    } else if decision.outcome == Outcome::Rollback {
        shared.dispatch.relay(batch, v1::Phase::Rollback);
    }
}

fn decision(entry: &Entry) -> Result<Decision, Error> {
    let record = ledger::decode::<v1::DecisionRecord>(entry)?.value;
    records::decision_from(&record).map_err(|message| Error::Damaged { what: entry.key.clone(), message })
}

pub(super) async fn register(shared: &Arc<Shared>, session: &Session) -> Result<(), Error> {
    let record = v1::CoordinatorRecord {
        endpoint: shared.endpoint.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        start_time_ms: shared.start_time_ms,
        nonce: shared.host.new_id(),
    };
    let txn = Txn::new().put_held(keys::coordinator(&shared.id), Stored::new(record).encode(), session.id);
    commit::commit(&*shared.store, &txn).await?;
    Ok(())
}

/// Takes this coordinator's name off the list: the others give it nothing new, and workers don't look for it.
/// Not longer than [`LEAVE_LIMIT`].
pub(super) async fn leave(shared: &Shared) {
    let txn = Txn::new().delete(keys::coordinator(&shared.id));
    let left = tokio::time::timeout(LEAVE_LIMIT, commit::commit(&*shared.store, &txn)).await;
    if !matches!(left, Ok(Ok(_))) {
        tracing::warn!("not signed off: the record goes with the session");
    }
}
