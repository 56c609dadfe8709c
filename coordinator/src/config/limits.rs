//! What one caller, one namespace, one identity may have of what all share.

use super::Config;

/// Slots of namespaces that only have a limit of bytes: those are counted by slots, too.
const MAX_SLOTS: u32 = 100_000;

/// How many calls one caller may make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// On the average.
    pub per_second: usize,
    /// At once, after a pause.
    pub burst: usize,
    /// Workers that attach at once, if that is more.
    pub fleet: usize,
}

/// How many of something one may have.
#[derive(Clone, Copy, Debug)]
pub struct Share {
    /// The number.
    pub most: usize,
    /// The field of the configuration that says so.
    pub setting: &'static str,
}

impl Config {
    /// How many calls one caller may make; `None`: any number.
    pub fn rate(&self) -> Option<Rate> {
        let per_second = self.max_calls_per_second;
        let burst = self.max_call_burst.unwrap_or(2 * per_second);
        let fleet = self.share(self.max_workers_per_identity, self.max_workers);
        (per_second > 0).then_some(Rate { per_second, burst, fleet })
    }

    /// How many slots a namespace has for its batches; 0: they hold none.
    pub fn slots(&self) -> u32 {
        match (
            u32::try_from(self.max_batches_per_namespace).unwrap_or(MAX_SLOTS),
            self.max_bytes_per_namespace,
        ) {
            (0, 0) => 0,
            // Bytes are counted by slots.
            (0, _) => MAX_SLOTS,
            (batches, _) => batches,
        }
    }

    /// How many WatchBatch streams a namespace may have.
    pub fn watchers_share(&self) -> Share {
        let most = self.share(self.max_watchers_per_namespace, self.max_watchers);
        Share { most, setting: "max_watchers_per_namespace" }
    }

    /// How many AppendTasks streams a namespace may have.
    pub fn appenders_share(&self) -> Share {
        let most = self.share(self.max_append_streams_per_namespace, self.max_append_streams);
        Share { most, setting: "max_append_streams_per_namespace" }
    }

    /// How many streams of workers an identity may have.
    pub fn workers_share(&self) -> Share {
        let most = self.share(self.max_workers_per_identity, self.max_workers);
        Share { most, setting: "max_workers_per_identity" }
    }

    fn share(&self, given: Option<usize>, all: usize) -> usize {
        // Without identities there is nobody to be fair to.
        let default = if self.security.identities.is_some() { all.div_ceil(2) } else { all };
        given.unwrap_or(default)
    }
}
