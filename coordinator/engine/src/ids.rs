//! Names of things, and time.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Which ownership of a batch: the create revision of its sequence lock. Grows with every owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Epoch(pub u64);

/// Fencing token of a lease: unique for ever, since an epoch is never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token {
    /// The owner's epoch.
    pub epoch: Epoch,
    /// Counts that owner's leases.
    pub counter: u64,
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch.0, self.counter)
    }
}

/// One life of one worker.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerKey {
    /// The worker's id: the same after a restart.
    pub id: Arc<str>,
    /// New at each start.
    pub incarnation: Arc<str>,
}

impl WorkerKey {
    /// A worker.
    pub fn new(id: impl Into<Arc<str>>, incarnation: impl Into<Arc<str>>) -> Self {
        Self { id: id.into(), incarnation: incarnation.into() }
    }
}

/// The time of an event, as the shell saw it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// A monotonic clock, from any origin. Leases and pauses are measured with it.
    pub at: Duration,
    /// Milliseconds since 1970. Deadlines and records use it.
    pub wall_ms: i64,
}
