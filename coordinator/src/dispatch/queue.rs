//! One handler's queue of requests, and whose turn it is.
//!
//! Workers with free credit stand in line, each once; one that takes a lease and has credit left queues
//! again at the end, so leases go round. Among hungry batches the turn is by stride scheduling
//! (Waldspurger and Weihl, 1995): each lease moves a batch's pass on by the inverse of its priority, and
//! the lowest pass is next. A lease is about a second of work whatever its tasks cost, so equal leases are
//! equal shares of the workers.
//!
//! Workers of one namespace stand in a line of their own, where only its batches take turns. A batch has one pass
//! in both: what its namespace's own workers do for it counts against its share of the others.

use super::session::{Session, SessionId};
use crate::identity::Scope;
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
    batches: BTreeMap<Arc<BatchKey>, Backlog>,
    /// Workers of every namespace, and all batches.
    all: Line,
    /// Workers of one namespace, and its batches; while there are any.
    own: BTreeMap<String, Line>,
}

struct Backlog {
    stride: u64,
    pass: u64,
    appetite: usize,
    hungry_since: Instant,
    wake: Arc<Notify>,
}

/// Those who may work for the same batches.
#[derive(Default)]
struct Line {
    waiting: VecDeque<(SessionId, Instant)>,
    inside: BTreeSet<SessionId>,
    /// The batches that are hungry, by whose turn it is: an owner with nothing to give costs nothing here.
    hungry: BTreeSet<(u64, Arc<BatchKey>)>,
    /// The appetites of all of them: it is asked for with every frame.
    backlog: usize,
    /// Batches that are registered, hungry or not.
    batches: usize,
}

impl Line {
    fn next(&self) -> Option<&BatchKey> {
        self.hungry.first().map(|(_, batch)| &**batch)
    }

    fn lowest_pass(&self) -> u64 {
        self.hungry.first().map_or(0, |(pass, _)| *pass)
    }

    /// The next worker that still has credit, and since when it waits.
    fn pop(
        &mut self,
        handler: &str,
        sessions: &BTreeMap<SessionId, Session>,
    ) -> Option<(SessionId, Instant)> {
        loop {
            let (id, since) = self.waiting.pop_front()?;
            self.inside.remove(&id);
            if sessions.get(&id).is_some_and(|session| session.free(handler)) {
                return Some((id, since));
            }
        }
    }

    /// Wakes the batch whose turn it is, if there is a request for it.
    fn wake(&mut self, batches: &BTreeMap<Arc<BatchKey>, Backlog>, sessions: &BTreeMap<SessionId, Session>) {
        while let Some((id, _)) = self.waiting.front()
            && !sessions.contains_key(id)
        {
            self.inside.remove(id);
            self.waiting.pop_front();
        }
        if self.waiting.is_empty() {
            return;
        }
        if let Some(backlog) = self.next().and_then(|batch| batches.get(batch)) {
            backlog.wake.notify_one();
        }
    }
}

impl Queue {
    pub(super) fn register(&mut self, batch: &BatchKey, priority: u32, wake: Arc<Notify>) {
        // A newcomer starts with the others: it neither owes nor is owed.
        let pass = self.lowest_pass(&batch.namespace);
        let stride = STRIDE / u64::from(priority.max(1));
        let newcomer = Backlog { stride, pass, appetite: 0, hungry_since: Instant::now(), wake };
        if let Some((key, before)) = self.batches.remove_entry(batch) {
            self.gone(&key, &before);
        }
        self.own.entry(batch.namespace.clone()).or_default();
        self.lines(&batch.namespace, |line| line.batches += 1);
        self.batches.insert(Arc::new(batch.clone()), newcomer);
    }

    /// False: it wasn't registered with this `wake`.
    pub(super) fn unregister(&mut self, batch: &BatchKey, wake: &Arc<Notify>) -> bool {
        let registered = self.batches.get(batch).is_some_and(|backlog| Arc::ptr_eq(&backlog.wake, wake));
        if registered && let Some((key, gone)) = self.batches.remove_entry(batch) {
            self.gone(&key, &gone);
        }
        registered
    }

    fn gone(&mut self, batch: &Arc<BatchKey>, gone: &Backlog) {
        let place = (gone.pass, batch.clone());
        self.lines(&batch.namespace, |line| {
            line.batches -= 1;
            line.backlog -= gone.appetite;
            line.hungry.remove(&place);
        });
        self.close(&batch.namespace);
    }

    /// Both lines in which the batches of a namespace take turns.
    fn lines(&mut self, namespace: &str, mut with: impl FnMut(&mut Line)) {
        with(&mut self.all);
        if let Some(own) = self.own.get_mut(namespace) {
            with(own);
        }
    }

    /// A namespace without batches and workers has no line.
    fn close(&mut self, namespace: &str) {
        if self.own.get(namespace).is_some_and(|line| line.batches == 0 && line.waiting.is_empty()) {
            self.own.remove(namespace);
        }
    }

    /// Where a newcomer of this namespace begins. Its own line is never before the one of all, and may be far ahead
    /// of it, where batches wait for which nobody is there.
    fn lowest_pass(&self, namespace: &str) -> u64 {
        self.all.lowest_pass().max(self.own.get(namespace).map_or(0, Line::lowest_pass))
    }

    /// How many leases the batch could give now.
    pub(super) fn hungry(&mut self, batch: &BatchKey, appetite: usize) {
        let floor = self.lowest_pass(&batch.namespace);
        let Some((key, _)) = self.batches.get_key_value(batch) else { return };
        let key = key.clone();
        let Some(backlog) = self.batches.get_mut(batch) else { return };
        let before = std::mem::replace(&mut backlog.appetite, appetite);
        if before == 0 && appetite > 0 {
            // The time without hunger isn't saved up.
            backlog.pass = backlog.pass.max(floor);
            backlog.hungry_since = Instant::now();
        }
        let place = (backlog.pass, key);
        self.lines(&batch.namespace, |line| {
            line.backlog = line.backlog - before + appetite;
            if before == 0 && appetite > 0 {
                line.hungry.insert(place.clone());
            } else if before > 0 && appetite == 0 {
                line.hungry.remove(&place);
            }
        });
    }

    /// How many leases the batches could give now that workers of this scope may work for.
    pub(super) fn backlog(&self, scope: &Scope) -> usize {
        match scope {
            Scope::All => self.all.backlog,
            Scope::Namespace(namespace) => self.own.get(namespace).map_or(0, |line| line.backlog),
        }
    }

    /// A request for the batch, if it is its turn, and since when both the request and its hunger were there. Those
    /// who can work for nobody else come first.
    pub(super) fn deal(
        &mut self,
        batch: &BatchKey,
        handler: &str,
        sessions: &BTreeMap<SessionId, Session>,
    ) -> Option<(SessionId, Instant)> {
        let hungry_since = self.batches.get(batch)?.hungry_since;
        let turn = |line: &mut Line| {
            if line.next() == Some(batch) { line.pop(handler, sessions) } else { None }
        };
        let own = self.own.get_mut(&batch.namespace).and_then(turn);
        let (session, since) = own.or_else(|| turn(&mut self.all))?;
        self.served(batch);
        Some((session, hungry_since.max(since)))
    }

    /// The batch got a request.
    fn served(&mut self, batch: &BatchKey) {
        let Some((key, _)) = self.batches.get_key_value(batch) else { return };
        let key = key.clone();
        let Some(backlog) = self.batches.get_mut(batch) else { return };
        let before = (backlog.pass, key.clone());
        backlog.pass += backlog.stride;
        if backlog.appetite == 0 {
            return;
        }
        backlog.appetite -= 1;
        let after = (backlog.appetite > 0).then_some((backlog.pass, key));
        self.lines(&batch.namespace, |line| {
            line.backlog -= 1;
            line.hungry.remove(&before);
            line.hungry.extend(after.clone());
        });
    }

    #[cfg(test)]
    pub(super) fn namespaces(&self) -> usize {
        self.own.len()
    }

    fn line(&mut self, scope: &Scope) -> &mut Line {
        match scope {
            Scope::All => &mut self.all,
            // Looked up first: most often it is there, and its name needn't be copied.
            Scope::Namespace(namespace) => {
                if !self.own.contains_key(namespace) {
                    self.own.insert(namespace.clone(), Line::default());
                }
                self.own.get_mut(namespace).expect("it is there")
            }
        }
    }

    pub(super) fn push_back(&mut self, session: &Session) {
        let line = self.line(&session.scope);
        if line.inside.insert(session.id) {
            line.waiting.push_back((session.id, Instant::now()));
        }
    }

    pub(super) fn push_front(&mut self, session: &Session) {
        let line = self.line(&session.scope);
        if line.inside.insert(session.id) {
            line.waiting.push_front((session.id, Instant::now()));
        }
    }

    /// Wakes the batch whose turn it is among those of this scope, if there is a request for it.
    pub(super) fn wake_next(&mut self, scope: &Scope, sessions: &BTreeMap<SessionId, Session>) {
        match scope {
            Scope::All => self.all.wake(&self.batches, sessions),
            Scope::Namespace(namespace) => {
                if let Some(own) = self.own.get_mut(namespace) {
                    own.wake(&self.batches, sessions);
                    self.close(namespace);
                }
            }
        }
    }

    /// The same wherever this batch, or one that comes behind it, may be next.
    pub(super) fn wake_beside(&mut self, batch: &BatchKey, sessions: &BTreeMap<SessionId, Session>) {
        self.all.wake(&self.batches, sessions);
        if let Some(own) = self.own.get_mut(&batch.namespace) {
            own.wake(&self.batches, sessions);
        }
    }
}
