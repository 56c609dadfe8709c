//! The time of one session with the store: what is owned is owned in it.

use crate::store::{Session, SessionId, Store};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The time of one session: what is driven in it.
#[derive(Clone)]
pub struct Term {
    session: Session,
    store: Arc<dyn Store>,
    /// Ends every driver after its write in flight.
    pub(super) stop: CancellationToken,
    /// Ends every driver as it is, as the death of the process would.
    pub(super) cut: CancellationToken,
    pub(super) drivers: TaskTracker,
}

impl Term {
    /// Begins; ends with these tokens at the latest.
    pub(crate) fn new(
        session: Session,
        store: Arc<dyn Store>,
        stop: &CancellationToken,
        cut: &CancellationToken,
    ) -> Self {
        let (stop, cut) = (stop.child_token(), cut.child_token());
        Self { session, store, stop, cut, drivers: TaskTracker::new() }
    }

    /// Whose time it is.
    pub(super) fn session(&self) -> SessionId {
        self.session.id
    }

    /// Whether nobody else can own now what is owned in it. Looks at the clock itself: a process that was paused
    /// must not answer from its memory before one of its tasks ran that ends the session.
    pub fn lives(&self) -> bool {
        !self.stop.is_cancelled() && !*self.session.lost.borrow() && self.store.session_lives(self.session.id)
    }

    /// Waits until its end is noticed.
    pub async fn over(&self) {
        let mut lost = self.session.lost.clone();
        tokio::select! {
            biased;
            () = self.stop.cancelled() => {}
            // A sender that is gone means that the session is, too.
            _ = lost.wait_for(|lost| *lost) => {}
        }
    }
}
