//! What comes from workers' streams.

use super::{Dispatch, Hello, Inner, Outbound, Session, SessionId, backlog, owner};
use crate::store::keys::BatchKey;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tranche_engine::{Epoch, Now, Token, WorkerKey};
use tranche_proto::v1::{self, attach_response::Frame};

/// A worker's place in the hub.
pub struct Place {
    /// Its session.
    pub id: SessionId,
    /// Since when it has it: what it was sent later isn't among what it said that it holds.
    pub since: Now,
    /// Ends its stream from here.
    pub end: CancellationToken,
}

impl Dispatch {
    /// A worker attached. An older session of the same worker id ends. The welcome is the stream's first
    /// frame, and whoever has read it finds the worker here. Of what it holds, what is of batches of its namespace
    /// that are owned here counts against its credit, and it is told whose they are.
    pub fn attach(&self, mut hello: Hello, welcome: v1::Welcome, out: Outbound) -> Place {
        let mut inner = self.lock();
        inner.next_id += 1;
        let id = SessionId(inner.next_id);
        let mut held = std::mem::take(&mut hello.held);
        held.retain(|(batch, _)| hello.scope.sees(&batch.namespace));
        let named: BTreeSet<BatchKey> = held.iter().map(|(batch, _)| batch.clone()).collect();
        let mut session = Session::new(id, hello, self.now(), self.dealt.dropped.clone(), out);
        session.send(Frame::Welcome(welcome));
        if let Some(replicas) = &inner.replicas {
            session.send(Frame::Replicas(replicas.clone()));
        }
        for (batch, owned) in named.iter().filter_map(|batch| inner.owned.get_key_value(batch)) {
            session.send(owner(batch, owned.epoch));
        }
        for (batch, token) in held.into_iter().filter(|(batch, _)| inner.owned.contains_key(batch)) {
            session.hold(batch, token);
        }
        if let Some(&older) = inner.by_worker.get(&session.worker.id) {
            if inner.sessions[&older].worker.incarnation != session.worker.incarnation {
                // Either it was restarted just now, or two processes share an id and end each other's leases.
                tracing::warn!(
                    worker.id = %session.worker.id,
                    peer = %session.peer,
                    "another process attached with the id of a worker that is attached; ids must differ"
                );
            }
            inner.end(older, "another stream attached with this worker id");
        }
        let place = Place { id, since: session.since, end: session.end.clone() };
        inner.by_worker.insert(session.worker.id.clone(), id);
        inner.sessions.insert(id, session);
        place
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

    /// A worker is alive, and brings a report: the time until that is answered is counted.
    pub fn reported(&self, id: SessionId, token: Token) {
        if let Some(session) = self.lock().sessions.get_mut(&id) {
            session.seen = Instant::now();
            if let Some(lease) = session.outstanding.get_mut(&token) {
                // One that is sent again waits since it was first.
                lease.reported.get_or_insert(session.seen);
            }
        }
    }

    /// A worker says that it is alive, and is answered.
    pub fn heartbeat(&self, id: SessionId, number: u64) {
        let mut inner = self.lock();
        let Inner { sessions, queues, .. } = &mut *inner;
        if let Some(session) = sessions.get_mut(&id) {
            session.seen = Instant::now();
            let backlog = backlog(queues, session);
            session.send(Frame::Ack(v1::Ack { heartbeat: number, reports: Vec::new(), backlog }));
        }
    }

    /// When these workers of a batch were last seen, on the clock that began at `origin`; without those that aren't
    /// here, or not for it any more.
    pub fn last_seen<'a>(
        &self,
        batch: &BatchKey,
        workers: impl IntoIterator<Item = &'a WorkerKey>,
        origin: Instant,
    ) -> Vec<(WorkerKey, Duration)> {
        let mut inner = self.lock();
        let mut seen = |worker: &WorkerKey| {
            let session = inner.session_for(worker, batch)?;
            Some((worker.clone(), session.seen.duration_since(origin)))
        };
        workers.into_iter().filter_map(&mut seen).collect()
    }

    /// A worker says what it holds of a batch, in answer to the owner of this epoch: it counts against its
    /// credit. Returns when it was asked: what was sent to it before and isn't named is lost. `None`: this
    /// epoch isn't the owner here (any more), and nothing is changed.
    pub fn holding(&self, id: SessionId, batch: &BatchKey, epoch: Epoch, tokens: &[Token]) -> Option<Now> {
        let mut inner = self.lock();
        let Inner { owned, sessions, .. } = &mut *inner;
        let owned = owned.get(batch).filter(|owned| owned.epoch == epoch)?;
        let session = sessions.get_mut(&id).filter(|session| session.scope.sees(&batch.namespace))?;
        for token in tokens {
            session.hold(batch.clone(), *token);
        }
        // One that attached later was asked, or named what it holds, when it did.
        Some(if session.since.at > owned.since.at { session.since } else { owned.since })
    }
}
