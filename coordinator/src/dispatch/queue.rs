//! One handler's queue of requests, and whose turn it is.
//!
//! Workers with free credit stand in line, each once; one that takes a lease and has credit left queues
//! again at the end, so leases go round. Among hungry batches the turn is by stride scheduling
//! (Waldspurger and Weihl, 1995): each lease moves a batch's pass on by the inverse of its priority, and
//! the lowest pass is next. A lease is about a second of work whatever its tasks cost, so equal leases are
//! equal shares of the workers.

use super::session::{Session, SessionId};
use crate::store::keys::BatchKey;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use tokio::sync::Notify;
use tokio::time::Instant;

/// What one lease moves a batch of priority 1. Divisible by every priority up to 10, and fine for the
/// others.
const STRIDE: u64 = 2520 * 1000;

#[derive(Default)]
pub(super) struct Queue {
    line: VecDeque<(SessionId, Instant)>,
    inside: BTreeSet<SessionId>,
    batches: BTreeMap<BatchKey, Backlog>,
    /// Those of them that are hungry, by whose turn it is: an owner with nothing to give costs nothing here.
    hungry: BTreeSet<(u64, BatchKey)>,
    /// The appetites of all batches: it is asked for with every frame.
    backlog: usize,
}

struct Backlog {
    stride: u64,
    pass: u64,
    appetite: usize,
    hungry_since: Instant,
    wake: Arc<Notify>,
}

impl Queue {
    pub(super) fn register(&mut self, batch: &BatchKey, priority: u32, wake: Arc<Notify>) {
        // A newcomer starts with the others: it neither owes nor is owed.
        let pass = self.lowest_pass();
        let stride = STRIDE / u64::from(priority.max(1));
        let newcomer = Backlog { stride, pass, appetite: 0, hungry_since: Instant::now(), wake };
        if let Some(before) = self.batches.insert(batch.clone(), newcomer) {
            self.gone(batch, &before);
        }
    }

    /// False: it wasn't registered with this `wake`.
    pub(super) fn unregister(&mut self, batch: &BatchKey, wake: &Arc<Notify>) -> bool {
        let registered = self.batches.get(batch).is_some_and(|backlog| Arc::ptr_eq(&backlog.wake, wake));
        if registered && let Some(gone) = self.batches.remove(batch) {
            self.gone(batch, &gone);
        }
        registered
    }

    fn gone(&mut self, batch: &BatchKey, gone: &Backlog) {
        self.backlog -= gone.appetite;
        self.hungry.remove(&(gone.pass, batch.clone()));
    }

    fn lowest_pass(&self) -> u64 {
        self.hungry.first().map_or(0, |(pass, _)| *pass)
    }

    /// How many leases the batch could give now.
    pub(super) fn hungry(&mut self, batch: &BatchKey, appetite: usize) {
        let floor = self.lowest_pass();
        let Some(backlog) = self.batches.get_mut(batch) else { return };
        if backlog.appetite == 0 && appetite > 0 {
            // The time without hunger isn't saved up.
            backlog.pass = backlog.pass.max(floor);
            backlog.hungry_since = Instant::now();
            self.hungry.insert((backlog.pass, batch.clone()));
        } else if backlog.appetite > 0 && appetite == 0 {
            self.hungry.remove(&(backlog.pass, batch.clone()));
        }
        self.backlog = self.backlog - backlog.appetite + appetite;
        backlog.appetite = appetite;
    }

    /// How many leases all batches could give now.
    pub(super) fn backlog(&self) -> usize {
        self.backlog
    }

    fn next(&self) -> Option<&BatchKey> {
        self.hungry.first().map(|(_, batch)| batch)
    }

    /// Whether no other hungry batch comes before this one.
    pub(super) fn turn_of(&self, batch: &BatchKey) -> bool {
        self.next() == Some(batch)
    }

    /// The batch got a request.
    pub(super) fn served(&mut self, batch: &BatchKey) {
        let Some(backlog) = self.batches.get_mut(batch) else { return };
        let place = (backlog.pass, batch.clone());
        backlog.pass += backlog.stride;
        if backlog.appetite > 0 {
            self.hungry.remove(&place);
            backlog.appetite -= 1;
            self.backlog -= 1;
        }
        if backlog.appetite > 0 {
            self.hungry.insert((backlog.pass, place.1));
        }
    }

    pub(super) fn push_back(&mut self, session: SessionId) {
        if self.inside.insert(session) {
            self.line.push_back((session, Instant::now()));
        }
    }

    pub(super) fn push_front(&mut self, session: SessionId) {
        if self.inside.insert(session) {
            self.line.push_front((session, Instant::now()));
        }
    }

    /// The next worker that still has credit, and since when both it and somebody's hunger were there.
    pub(super) fn pop(
        &mut self,
        handler: &str,
        sessions: &BTreeMap<SessionId, Session>,
    ) -> Option<(SessionId, Instant)> {
        let hungry_since = self.next().and_then(|batch| self.batches.get(batch)).map(|b| b.hungry_since);
        loop {
            let (id, since) = self.line.pop_front()?;
            self.inside.remove(&id);
            if sessions.get(&id).is_some_and(|session| session.free(handler)) {
                return Some((id, hungry_since.map_or(since, |hungry| hungry.max(since))));
            }
        }
    }

    /// Wakes the batch whose turn it is, if there is a request for it.
    pub(super) fn wake_next(&mut self, sessions: &BTreeMap<SessionId, Session>) {
        while self.line.front().is_some_and(|(id, _)| !sessions.contains_key(id)) {
            if let Some((id, _)) = self.line.pop_front() {
                self.inside.remove(&id);
            }
        }
        if self.line.is_empty() {
            return;
        }
        if let Some(backlog) = self.next().and_then(|batch| self.batches.get(batch)) {
            backlog.wake.notify_one();
        }
    }
}
