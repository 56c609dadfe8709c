//! Figures of the hub, in one look.

use super::{Dispatch, Inner, Session};
use crate::identity::Scope;
use std::collections::{BTreeMap, BTreeSet};

/// Figures of the hub.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// Workers that are attached.
    pub workers: usize,
    /// Leases that they work on at once.
    pub slots: usize,
    /// Leases that they would take now.
    pub credit: usize,
    /// Leases given from here that they hold.
    pub leases: usize,
    /// By handler.
    pub handlers: BTreeMap<String, HandlerFigures>,
}

/// Figures of one handler.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HandlerFigures {
    /// Workers that have it.
    pub workers: usize,
    /// Those of them that wait for a lease.
    pub waiting: usize,
    /// Leases that could be given now.
    pub backlog: usize,
    /// Whose batches those workers work for.
    pub serves: Serves,
}

/// Namespaces whose batches somebody works for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Serves {
    all: bool,
    own: BTreeSet<String>,
}

impl Serves {
    /// Whether this one's are among them.
    pub fn namespace(&self, namespace: &str) -> bool {
        self.all || self.own.contains(namespace)
    }

    fn add(&mut self, scope: &Scope) {
        match scope {
            Scope::All => self.all = true,
            Scope::Namespace(own) if !self.own.contains(own) => drop(self.own.insert(own.clone())),
            Scope::Namespace(_) => {}
        }
    }
}

impl Dispatch {
    /// Looks at all of it.
    pub fn figures(&self) -> Figures {
        let inner = self.lock();
        let Inner { sessions, queues, .. } = &*inner;
        let mut figures = Figures { workers: sessions.len(), ..Figures::default() };
        for session in sessions.values() {
            figures.slots += usize::try_from(session.slots).unwrap_or(0);
            figures.credit += session.free_credit();
            figures.leases += session.leases();
            for handler in &session.handlers {
                if !figures.handlers.contains_key(handler) {
                    figures.handlers.insert(handler.clone(), HandlerFigures::default());
                }
                let of = figures.handlers.get_mut(handler).expect("it is there");
                of.workers += 1;
                of.serves.add(&session.scope);
                of.waiting += usize::from(Session::free(session, handler));
            }
        }
        for (handler, queue) in queues {
            figures.handlers.entry(handler.clone()).or_default().backlog = queue.backlog(&Scope::All);
        }
        figures
    }
}
