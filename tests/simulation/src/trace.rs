//! What happened, as a hash that two runs of one seed share, and as lines for people.

use crate::world::At;
use std::hash::{DefaultHasher, Hash, Hasher};

/// A run's trace.
pub(crate) struct Trace {
    hash: DefaultHasher,
    lines: bool,
}

impl Trace {
    /// A trace; `lines`: it is printed too.
    pub(crate) fn new(lines: bool) -> Self {
        // Without keys: the same in every process.
        Self { hash: DefaultHasher::new(), lines }
    }

    /// Adds to the hash what two runs must have in common.
    pub(crate) fn hash(&mut self, now: At, what: &str, value: &[u8]) {
        now.hash(&mut self.hash);
        what.hash(&mut self.hash);
        value.hash(&mut self.hash);
    }

    /// A line for people, if they asked.
    pub(crate) fn say(&self, now: At, line: impl FnOnce() -> String) {
        if self.lines {
            println!("{:>10.3}  {}", now.as_secs_f64(), line());
        }
    }

    /// Whether lines are printed.
    pub(crate) fn printed(&self) -> bool {
        self.lines
    }

    /// The hash so far.
    pub(crate) fn digest(&self) -> u64 {
        self.hash.finish()
    }
}
