//! Who asks for work, who has some, and what is on its way to whom.
//!
//! Workers' requests wait in one queue a handler, those of one namespace's workers in a line of their own. A worker
//! of a namespace is told of its batches alone, and no owner of another one hears that it is there. An owner that
//! has leases to give takes requests from the head ([`Dispatch::take`]): nothing is assigned before. When several
//! batches are hungry, the one that got the least for its priority goes first ([`queue`]).
//!
//! All of it is behind one lock, which is never held across a wait: a few map operations a lease.
//! Sending is part of it, so that a worker that was told of a rollback can't get a staging lease of that
//! batch afterwards.

mod figures;
mod latency;
mod queue;
mod session;
mod workers;

pub use figures::{Figures, HandlerFigures};
pub use latency::Latency;
pub use session::{Hello, Session, SessionId};
pub use workers::Place;

use crate::metrics::Dealt;
use crate::node::Host;
use crate::store::keys::BatchKey;
use queue::Queue;
use session::Outstanding;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tonic::Status;
use tranche_engine::{Epoch, Now, Phase, Token, WorkerKey};
use tranche_guards::Guard;
use tranche_proto::v1::{self, attach_response::Frame};

/// Frames that wait for a worker to read them. A worker's leases are bounded by its credit, and each makes
/// a grant and an acknowledgement; a worker that leaves this many unread doesn't read, and is dropped.
pub const OUTBOUND_BOUND: usize = 4096;

/// What a worker's stream sends.
pub type Outbound = mpsc::Sender<Result<v1::AttachResponse, Status>>;

/// The hub between workers' sessions and batches' owners.
pub struct Dispatch {
    inner: Mutex<Inner>,
    latency: Latency,
    dealt: Dealt,
    origin: Instant,
    host: Host,
}

#[derive(Default)]
struct Inner {
    next_id: u64,
    sessions: BTreeMap<SessionId, Session>,
    /// By the worker's id: one that attaches again, also in another life, replaces the session before.
    by_worker: HashMap<Arc<str>, SessionId>,
    queues: BTreeMap<String, Queue>,
    /// Batches that are owned here.
    owned: BTreeMap<BatchKey, Owned>,
    /// Batches that are rolling back: no staging lease of theirs is sent any more.
    revoked: BTreeSet<BatchKey>,
    /// Who is there, for workers; `None`: not known yet.
    replicas: Option<v1::Replicas>,
}

/// A batch that is owned here.
struct Owned {
    epoch: Epoch,
    /// When those that were attached then were told so.
    since: Now,
}

/// A lease to be sent.
pub struct Delivery {
    /// The batch.
    pub batch: BatchKey,
    /// The lease.
    pub token: Token,
    /// What it asks.
    pub phase: Phase,
    /// The frames, in order; several when the tasks don't fit into one.
    pub frames: Vec<v1::Grant>,
    /// Payload bytes, counted against the worker's credit.
    pub bytes: u64,
}

impl Default for Dispatch {
    fn default() -> Self {
        Self::new(Instant::now(), Host::default())
    }
}

impl Dispatch {
    /// A hub without workers, whose times begin at `origin`.
    pub fn new(origin: Instant, host: Host) -> Self {
        Self { inner: Mutex::default(), latency: Latency::default(), dealt: Dealt::default(), origin, host }
    }

    fn now(&self) -> Now {
        Now { at: self.origin.elapsed(), wall_ms: self.host.wall_ms() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change is complete before anything can panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Latencies from a worker's credit and a batch's backlog both being there to the lease being sent.
    pub fn grant_latency(&self) -> &Latency {
        &self.latency
    }

    /// What was dealt, counted.
    pub fn dealt(&self) -> &Dealt {
        &self.dealt
    }

    // ---- batches ----

    /// A batch is owned here from now on; `wake` is notified when there is a request for it. Every worker
    /// of its namespace that is attached is told, and answers with what it holds of the batch; returns who they are.
    /// None, if a later epoch of the batch is here already.
    pub fn register(
        &self,
        batch: &BatchKey,
        epoch: Epoch,
        handler: &str,
        priority: u32,
        wake: Arc<Notify>,
    ) -> Vec<WorkerKey> {
        let mut inner = self.lock();
        if !inner.own(batch, Owned { epoch, since: self.now() }, handler, priority, wake) {
            return Vec::new();
        }
        let tell = |session: &Session| {
            session.send(owner(batch, epoch));
            session.worker.clone()
        };
        inner.serving(batch).map(tell).collect()
    }

    /// The same for a batch of which nothing was ever leased, by this owner or one before: no worker can hold
    /// anything of it, so none is told and asked. Else every small batch would be the business of every worker.
    pub fn register_unleased(
        &self,
        batch: &BatchKey,
        epoch: Epoch,
        handler: &str,
        priority: u32,
        wake: Arc<Notify>,
    ) {
        let owned = Owned { epoch, since: self.now() };
        self.lock().own(batch, owned, handler, priority, wake);
    }

    /// The owner that registered with `wake` is none any more. Requests that it took and didn't answer queue
    /// up again, and its leases count against nobody's credit: they are another's. One that registered later
    /// stays.
    pub fn unregister(&self, batch: &BatchKey, handler: &str, wake: &Arc<Notify>) {
        let mut inner = self.lock();
        if !inner.queues.get_mut(handler).is_some_and(|queue| queue.unregister(batch, wake)) {
            return;
        }
        inner.owned.remove(batch);
        inner.revoked.remove(batch);
        inner.forget_leases(batch);
        let Inner { queues, sessions, .. } = &mut *inner;
        if let Some(queue) = queues.get_mut(handler) {
            queue.wake_beside(batch, sessions);
        }
    }

    /// Takes at most `appetite` requests from the head of the queue for this batch. Fewer than there are
    /// when another hungry batch's turn comes first; it is woken.
    pub fn take(&self, batch: &BatchKey, handler: &str, appetite: usize) -> Vec<WorkerKey> {
        let mut inner = self.lock();
        let Inner { queues, sessions, .. } = &mut *inner;
        let Some(queue) = queues.get_mut(handler) else { return Vec::new() };
        queue.hungry(batch, appetite);
        let mut taken = Vec::new();
        while taken.len() < appetite {
            let Some((session, since)) = queue.deal(batch, handler, sessions) else { break };
            let session = sessions.get_mut(&session).expect("dealt from the living");
            session.taken.push_back((batch.clone(), since));
            taken.push(session.worker.clone());
            if session.free(handler) {
                queue.push_back(session);
            }
        }
        queue.wake_beside(batch, sessions);
        taken
    }

    /// A request that nothing was found for keeps its place at the head; without `keep` it goes to the end:
    /// there may be something for others.
    pub fn give_back(&self, batch: &BatchKey, handler: &str, worker: &WorkerKey, keep: bool) {
        let mut inner = self.lock();
        let Some(session) = inner.session(worker) else { return };
        session.answered(batch);
        let id = session.id;
        let Inner { queues, sessions, .. } = &mut *inner;
        if let (Some(queue), Some(session)) = (queues.get_mut(handler), sessions.get(&id)) {
            queue.hungry(batch, 0);
            if keep {
                queue.push_front(session);
            } else {
                queue.push_back(session);
            }
            queue.wake_beside(batch, sessions);
        }
    }

    // ---- to workers ----

    /// Sends a lease. Says whether it is on its way; a staging lease of a batch that was revoked isn't,
    /// nor one to a worker that isn't here, or is of another namespace.
    pub fn grant(&self, worker: &WorkerKey, delivery: Delivery) -> bool {
        let mut inner = self.lock();
        let revoked = inner.revoked.contains(&delivery.batch) && Guard::RevokedBatch.on();
        let Some((session, backlog)) = inner.session_and_backlog(worker) else { return false };
        let foreign = !session.scope.sees(&delivery.batch.namespace);
        if foreign || delivery.phase == Phase::Stage && revoked {
            inner.undelivered(worker, &delivery.batch);
            return false;
        }
        let since = session.answered(&delivery.batch);
        session.outstanding.insert(
            delivery.token,
            Outstanding { batch: delivery.batch, bytes: delivery.bytes, reported: None },
        );
        for frame in delivery.frames {
            session.send(Frame::Grant(v1::Grant { backlog, ..frame }));
        }
        let waited = since.map(|since| since.elapsed());
        if let Some(waited) = waited {
            self.latency.add(waited);
        }
        self.dealt.granted(delivery.phase, waited);
        true
    }

    /// A lease for which this batch took a request of the worker could not be sent.
    pub fn undelivered(&self, worker: &WorkerKey, batch: &BatchKey) {
        self.lock().undelivered(worker, batch);
    }

    /// Settles a report, and frees its credit.
    pub fn ack(&self, worker: &WorkerKey, ack: v1::ReportAck) {
        let mut inner = self.lock();
        let token = ack.token.as_ref().map(crate::driver::records::token_from);
        if let Some((session, backlog)) = inner.session_and_backlog(worker) {
            let lease = token.and_then(|token| session.outstanding.get(&token));
            if let Some(since) = lease.and_then(|lease| lease.reported) {
                self.dealt.report.observe(since.elapsed().as_secs_f64());
            }
            session.send(Frame::Ack(v1::Ack { heartbeat: 0, reports: vec![ack], backlog }));
        }
        if let Some(token) = token {
            inner.freed(worker, token);
        }
    }

    /// A lease isn't the worker's any more; it needs no word.
    pub fn freed(&self, worker: &WorkerKey, token: Token) {
        self.lock().freed(worker, token);
    }

    /// Tells a worker that a lease isn't its own any more.
    pub fn revoke(&self, worker: &WorkerKey, batch: &BatchKey, token: Token, reason: &str) {
        let mut inner = self.lock();
        if let Some(session) = inner.session(worker) {
            session.send(Frame::Revoke(v1::Revoke {
                batch: batch.to_string(),
                token: Some(crate::driver::records::token_to_proto(token)),
                reason: reason.to_owned(),
            }));
        }
        inner.freed(worker, token);
    }

    /// Tells a worker that a batch has nothing more for it.
    pub fn leave(&self, worker: &WorkerKey, batch: &BatchKey, state: v1::batch::State) {
        if let Some(session) = self.lock().session_for(worker, batch) {
            session.send(Frame::Leave(v1::Leave { batch: batch.to_string(), state: state.into() }));
        }
    }

    /// Tells one worker that a batch was decided.
    pub fn tell(&self, worker: &WorkerKey, batch: &BatchKey, phase: v1::Phase) {
        if let Some(session) = self.lock().session_for(worker, batch) {
            session.send(phase_changed(batch, phase));
        }
    }

    /// Tells every worker of its namespace that a batch of this owner was decided. After a rollback no staging lease
    /// of it is sent.
    pub fn broadcast(&self, batch: &BatchKey, phase: v1::Phase) {
        let mut inner = self.lock();
        if phase == v1::Phase::Rollback {
            inner.revoked.insert(batch.clone());
        }
        inner.tell_all(batch, phase);
    }

    /// Tells every worker that another coordinator's batch was decided: one that hears of it here first stops
    /// the sooner. What is sent from here is the business of this one's own batches, and doesn't change.
    pub fn relay(&self, batch: &BatchKey, phase: v1::Phase) {
        self.lock().tell_all(batch, phase);
    }

    /// Tells every worker which coordinators are there; who attaches later hears it after its welcome.
    pub fn replicas(&self, replicas: v1::Replicas) {
        let mut inner = self.lock();
        for session in inner.sessions.values() {
            session.send(Frame::Replicas(replicas.clone()));
        }
        inner.replicas = Some(replicas);
    }

    /// Tells every worker that this coordinator is leaving.
    pub fn drain(&self) {
        for session in self.lock().sessions.values() {
            session.send(Frame::Drain(v1::Drain {}));
        }
    }

    /// Looks at all sessions.
    pub fn sessions<T>(&self, look: impl Fn(&Session) -> T) -> Vec<T> {
        self.lock().sessions.values().map(look).collect()
    }
}

fn owner(batch: &BatchKey, epoch: Epoch) -> Frame {
    Frame::Owner(v1::Owner { batch: batch.to_string(), epoch: epoch.0 })
}

fn phase_changed(batch: &BatchKey, phase: v1::Phase) -> Frame {
    Frame::PhaseChanged(v1::PhaseChanged { batch: batch.to_string(), phase: phase.into() })
}

/// How many leases could be given now to one like this.
fn backlog(queues: &BTreeMap<String, Queue>, session: &Session) -> i32 {
    let of = |handler: &String| queues.get(handler).map_or(0, |queue| queue.backlog(&session.scope));
    i32::try_from(session.handlers.iter().map(of).fold(0, usize::saturating_add)).unwrap_or(i32::MAX)
}

impl Inner {
    /// False: a later epoch of the batch is here already.
    fn own(
        &mut self,
        batch: &BatchKey,
        owned: Owned,
        handler: &str,
        priority: u32,
        wake: Arc<Notify>,
    ) -> bool {
        if self.owned.get(batch).is_some_and(|there| there.epoch > owned.epoch) {
            return false;
        }
        self.queues.entry(handler.to_owned()).or_default().register(batch, priority, wake);
        self.revoked.remove(batch);
        // An earlier epoch's leases, if its driver hasn't ended yet: the workers say what they still hold.
        self.forget_leases(batch);
        self.owned.insert(batch.clone(), owned);
        true
    }

    fn session(&mut self, worker: &WorkerKey) -> Option<&mut Session> {
        let session = self.sessions.get_mut(self.by_worker.get(&worker.id)?)?;
        (session.worker.incarnation == worker.incarnation).then_some(session)
    }

    /// The same, if it may work for this batch: one that attached again may be of another namespace now.
    fn session_for(&mut self, worker: &WorkerKey, batch: &BatchKey) -> Option<&mut Session> {
        self.session(worker).filter(|session| session.scope.sees(&batch.namespace))
    }

    /// Also, how many leases could be given now for the worker's handlers.
    fn session_and_backlog(&mut self, worker: &WorkerKey) -> Option<(&mut Session, i32)> {
        let id = self.session(worker)?.id;
        let session = self.sessions.get_mut(&id)?;
        let backlog = backlog(&self.queues, session);
        Some((session, backlog))
    }

    /// Those who may work for this batch.
    fn serving(&self, batch: &BatchKey) -> impl Iterator<Item = &Session> {
        self.sessions.values().filter(move |session| session.scope.sees(&batch.namespace))
    }

    fn tell_all(&self, batch: &BatchKey, phase: v1::Phase) {
        for session in self.serving(batch) {
            session.send(phase_changed(batch, phase));
        }
    }

    /// What a batch's owner took and gave doesn't count any more.
    fn forget_leases(&mut self, batch: &BatchKey) {
        let mut freed = Vec::new();
        for session in self.sessions.values_mut() {
            if session.forget(batch) {
                freed.push(session.id);
            }
        }
        for session in freed {
            self.enqueue(session);
        }
    }

    fn undelivered(&mut self, worker: &WorkerKey, batch: &BatchKey) {
        if let Some(session) = self.session(worker) {
            session.answered(batch);
            let id = session.id;
            self.enqueue(id);
        }
    }

    fn freed(&mut self, worker: &WorkerKey, token: Token) {
        if let Some(session) = self.session(worker)
            && session.outstanding.remove(&token).is_some()
        {
            let id = session.id;
            self.enqueue(id);
        }
    }

    /// A worker with free credit queues up, once in each of its handlers' queues.
    fn enqueue(&mut self, id: SessionId) {
        let Self { sessions, queues, .. } = self;
        let Some(session) = sessions.get(&id) else { return };
        for handler in session.handlers.iter().filter(|handler| session.free(handler)) {
            if !queues.contains_key(handler) {
                queues.insert(handler.clone(), Queue::default());
            }
            let queue = queues.get_mut(handler).expect("it is there");
            queue.push_back(session);
            queue.wake_next(&session.scope, sessions);
        }
    }

    fn end(&mut self, id: SessionId, reason: &str) {
        let Some(session) = self.sessions.remove(&id) else { return };
        if self.by_worker.get(&session.worker.id) == Some(&id) {
            self.by_worker.remove(&session.worker.id);
        }
        tracing::debug!(worker.id = %session.worker.id, reason, "session ended");
        session.end.cancel();
        for handler in &session.handlers {
            if let Some(queue) = self.queues.get_mut(handler) {
                queue.wake_next(&session.scope, &self.sessions);
            }
        }
    }
}

#[cfg(test)]
mod tests;
