//! What a coordinator gets from the machine that it runs on, beside time that passes.

use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// The clock on the wall, and new ids. The machine's own by default; a simulation brings its own, so that
/// clocks may differ and a run can be repeated.
#[derive(Clone)]
pub struct Host {
    wall_ms: Arc<dyn Fn() -> i64 + Send + Sync>,
    new_id: Arc<dyn Fn() -> String + Send + Sync>,
}

impl Host {
    /// Another clock (milliseconds since 1970) and other ids (never twice the same, and of growing order, as
    /// newer batches come later).
    pub fn new(
        wall_ms: impl Fn() -> i64 + Send + Sync + 'static,
        new_id: impl Fn() -> String + Send + Sync + 'static,
    ) -> Self {
        Self { wall_ms: Arc::new(wall_ms), new_id: Arc::new(new_id) }
    }

    /// Milliseconds since 1970.
    pub fn wall_ms(&self) -> i64 {
        (self.wall_ms)()
    }

    /// A new id.
    pub fn new_id(&self) -> String {
        (self.new_id)()
    }
}

impl Default for Host {
    fn default() -> Self {
        let wall_ms = || {
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
        };
        Self::new(wall_ms, || uuid::Uuid::now_v7().to_string())
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").finish_non_exhaustive()
    }
}
