//! Figures of the hub, in one look.

use super::{Dispatch, Inner, Session};
use std::collections::BTreeMap;

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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HandlerFigures {
    /// Workers that have it.
    pub workers: usize,
    /// Those of them that wait for a lease.
    pub waiting: usize,
    /// Leases that could be given now.
    pub backlog: usize,
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
                of.waiting += usize::from(Session::free(session, handler));
            }
        }
        for (handler, queue) in queues {
            figures.handlers.entry(handler.clone()).or_default().backlog = queue.backlog();
        }
        figures
    }
}
