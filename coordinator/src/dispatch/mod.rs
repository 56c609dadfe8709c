//! Who asks for work, who has some, and what is on its way to whom.
//!
//! Workers' requests wait in one queue a handler. An owner that has leases to give takes requests from
//! the head ([`Dispatch::take`]): nothing is assigned before. When several batches are hungry, the one
//! that got the least for its priority goes first ([`queue`]).
//!
//! All of it is behind one lock, which is never held across a wait: a few map operations a lease.
//! Sending is part of it, so that a worker that was told of a rollback can't get a staging lease of that
//! batch afterwards.

mod latency;
mod queue;
mod session;

pub use latency::Latency;
pub use session::{Hello, Session, SessionId};

use crate::store::keys::BatchKey;
use queue::Queue;
use session::Outstanding;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tranche_engine::{Phase, Token, WorkerKey};
use tranche_proto::v1::{self, attach_response::Frame};

/// Frames that wait for a worker to read them. A worker's leases are bounded by its credit, and each makes
/// a grant and an acknowledgement; a worker that leaves this many unread doesn't read, and is dropped.
pub const OUTBOUND_BOUND: usize = 4096;

/// What a worker's stream sends.
pub type Outbound = mpsc::Sender<Result<v1::AttachResponse, Status>>;

/// The hub between workers' sessions and batches' owners.
#[derive(Default)]
pub struct Dispatch {
    inner: Mutex<Inner>,
    latency: Latency,
}

#[derive(Default)]
struct Inner {
    next_id: u64,
    sessions: BTreeMap<SessionId, Session>,
    by_worker: HashMap<WorkerKey, SessionId>,
    queues: HashMap<String, Queue>,
    /// Batches that are rolling back: no staging lease of theirs is sent any more.
    revoked: HashSet<BatchKey>,
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

impl Dispatch {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change is complete before anything can panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Latencies from a worker's credit and a batch's backlog both being there to the lease being sent.
    pub fn grant_latency(&self) -> &Latency {
        &self.latency
    }

    // ---- batches ----

    /// A batch is owned here from now on; `wake` is notified when there is a request for it. Tells which
    /// workers are there, and what leases of the batch they hold.
    pub fn register(
        &self,
        batch: &BatchKey,
        handler: &str,
        priority: u32,
        wake: Arc<Notify>,
    ) -> Vec<(WorkerKey, Vec<Token>)> {
        let mut inner = self.lock();
        inner.queues.entry(handler.to_owned()).or_default().register(batch, priority, wake);
        inner.revoked.remove(batch);
        inner.sessions.values().map(|session| (session.worker.clone(), session.held(batch))).collect()
    }

    /// The owner that registered with `wake` is none any more. Requests that it took and didn't answer queue
    /// up again. One that registered later stays.
    pub fn unregister(&self, batch: &BatchKey, handler: &str, wake: &Arc<Notify>) {
        let mut inner = self.lock();
        if !inner.queues.get_mut(handler).is_some_and(|queue| queue.unregister(batch, wake)) {
            return;
        }
        inner.revoked.remove(batch);
        let mut waiting = Vec::new();
        for session in inner.sessions.values_mut() {
            while session.answered(batch).is_some() {
                waiting.push(session.id);
            }
        }
        for session in waiting {
            inner.enqueue(session);
        }
        inner.feed(handler);
    }

    /// Ends the streams of the workers that hold leases of this batch: they attach again, and say what they
    /// hold and have done.
    pub fn end_holders(&self, batch: &BatchKey) {
        let mut inner = self.lock();
        let holders: Vec<SessionId> =
            inner.sessions.values().filter(|s| !s.held(batch).is_empty()).map(|s| s.id).collect();
        for id in holders {
            inner.end(id, "a batch that it works for changes its owner");
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
        while taken.len() < appetite && queue.turn_of(batch) {
            let Some((session, since)) = queue.pop(handler, sessions) else { break };
            queue.served(batch);
            let session = sessions.get_mut(&session).expect("popped from the living");
            session.taken.push_back((batch.clone(), since));
            taken.push(session.worker.clone());
            if session.free(handler) {
                queue.push_back(session.id);
            }
        }
        queue.wake_next(sessions);
        taken
    }

    /// A request that nothing was found for goes back to the head.
    pub fn give_back(&self, batch: &BatchKey, handler: &str, worker: &WorkerKey) {
        let mut inner = self.lock();
        let Inner { queues, sessions, by_worker, .. } = &mut *inner;
        let Some(session) = by_worker.get(worker).and_then(|id| sessions.get_mut(id)) else { return };
        session.answered(batch);
        let id = session.id;
        if let Some(queue) = queues.get_mut(handler) {
            queue.hungry(batch, 0);
            queue.push_front(id);
            queue.wake_next(sessions);
        }
    }

    // ---- to workers ----

    /// Sends a lease. Says whether it is on its way; a staging lease of a batch that was revoked isn't,
    /// nor one to a worker that isn't here.
    pub fn grant(&self, worker: &WorkerKey, delivery: Delivery) -> bool {
        let mut inner = self.lock();
        if delivery.phase == Phase::Stage && inner.revoked.contains(&delivery.batch) {
            inner.undelivered(worker, &delivery.batch);
            return false;
        }
        let Some(session) = inner.session(worker) else { return false };
        let since = session.answered(&delivery.batch);
        session
            .outstanding
            .insert(delivery.token, Outstanding { batch: delivery.batch, bytes: delivery.bytes });
        for frame in delivery.frames {
            session.send(Frame::Grant(frame));
        }
        if let Some(since) = since {
            self.latency.add(since.elapsed());
        }
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
        if let Some(session) = inner.session(worker) {
            session.send(Frame::Ack(v1::Ack { heartbeat: 0, reports: vec![ack], backlog: 0 }));
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
        if let Some(session) = self.lock().session(worker) {
            session.send(Frame::Leave(v1::Leave { batch: batch.to_string(), state: state.into() }));
        }
    }

    /// Tells one worker that a batch was decided.
    pub fn tell(&self, worker: &WorkerKey, batch: &BatchKey, phase: v1::Phase) {
        if let Some(session) = self.lock().session(worker) {
            session.send(phase_changed(batch, phase));
        }
    }

    /// Tells every worker that a batch was decided. After a rollback no staging lease of it is sent.
    pub fn broadcast(&self, batch: &BatchKey, phase: v1::Phase) {
        let mut inner = self.lock();
        if phase == v1::Phase::Rollback {
            inner.revoked.insert(batch.clone());
        }
        for session in inner.sessions.values() {
            session.send(phase_changed(batch, phase));
        }
    }

    /// Tells every worker that this coordinator is leaving.
    pub fn drain(&self) {
        for session in self.lock().sessions.values() {
            session.send(Frame::Drain(v1::Drain {}));
        }
    }

    // ---- from workers ----

    /// A worker attached. An older session of the same worker id ends. The welcome is the stream's first
    /// frame, and whoever has read it finds the worker here. Returns the session's id, and what ends the
    /// session's stream from here.
    pub fn attach(
        &self,
        hello: Hello,
        welcome: v1::Welcome,
        out: Outbound,
    ) -> (SessionId, CancellationToken) {
        let mut inner = self.lock();
        inner.next_id += 1;
        let id = SessionId(inner.next_id);
        let session = Session::new(id, hello, out);
        session.send(Frame::Welcome(welcome));
        let same_id = inner.sessions.values().filter(|s| s.worker.id == session.worker.id);
        let replaced: Vec<(SessionId, bool)> =
            same_id.map(|s| (s.id, s.worker.incarnation != session.worker.incarnation)).collect();
        for (older, other_process) in replaced {
            if other_process {
                // Either it was restarted just now, or two processes share an id and end each other's leases.
                tracing::warn!(
                    worker.id = %session.worker.id,
                    peer = %session.peer,
                    "another process attached with the id of a worker that is attached; ids must differ"
                );
            }
            inner.end(older, "another stream attached with this worker id");
        }
        let end = session.end.clone();
        inner.by_worker.insert(session.worker.clone(), id);
        inner.sessions.insert(id, session);
        (id, end)
    }

    /// A worker's stream ended. Its leases live on until their time is over.
    pub fn detach(&self, id: SessionId) {
        self.lock().end(id, "stream ended");
    }

    /// A worker says how much it takes.
    pub fn credit(&self, id: SessionId, leases: u32, bytes: u64) {
        let mut inner = self.lock();
        if let Some(session) = inner.sessions.get_mut(&id) {
            session.window_leases = leases;
            session.window_bytes = bytes;
            inner.enqueue(id);
        }
    }

    /// A worker is alive.
    pub fn seen(&self, id: SessionId) {
        if let Some(session) = self.lock().sessions.get_mut(&id) {
            session.seen = Instant::now();
        }
    }

    /// Answers a worker's heartbeat.
    pub fn heartbeat(&self, id: SessionId, number: u64) {
        if let Some(session) = self.lock().sessions.get(&id) {
            session.send(Frame::Ack(v1::Ack { heartbeat: number, reports: Vec::new(), backlog: 0 }));
        }
    }

    /// When a worker was last seen, on the clock that began at `origin`.
    pub fn last_seen(&self, worker: &WorkerKey, origin: Instant) -> Option<Duration> {
        let mut inner = self.lock();
        inner.session(worker).map(|session| session.seen.duration_since(origin))
    }

    /// Looks at all sessions.
    pub fn sessions<T>(&self, look: impl Fn(&Session) -> T) -> Vec<T> {
        self.lock().sessions.values().map(look).collect()
    }
}

fn phase_changed(batch: &BatchKey, phase: v1::Phase) -> Frame {
    Frame::PhaseChanged(v1::PhaseChanged { batch: batch.to_string(), phase: phase.into() })
}

impl Inner {
    fn session(&mut self, worker: &WorkerKey) -> Option<&mut Session> {
        self.sessions.get_mut(self.by_worker.get(worker)?)
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
        let Some(session) = self.sessions.get(&id) else { return };
        for handler in session.handlers.clone() {
            if self.sessions[&id].free(&handler) {
                self.queues.entry(handler.clone()).or_default().push_back(id);
                self.feed(&handler);
            }
        }
    }

    fn feed(&mut self, handler: &str) {
        if let Some(queue) = self.queues.get_mut(handler) {
            queue.wake_next(&self.sessions);
        }
    }

    fn end(&mut self, id: SessionId, reason: &str) {
        let Some(session) = self.sessions.remove(&id) else { return };
        if self.by_worker.get(&session.worker) == Some(&id) {
            self.by_worker.remove(&session.worker);
        }
        tracing::debug!(worker.id = %session.worker.id, reason, "session ended");
        session.end.cancel();
    }
}

#[cfg(test)]
mod tests;
