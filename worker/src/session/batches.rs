//! What is remembered of batches, whether leases of them are held or not.

use std::collections::BTreeMap;

/// The most batches that are remembered beside those of which leases are held. Of two owners only the
/// younger counts, and a grant of the older may be under way for as long as a stream can be: minutes. When
/// more are new in that time, a grant that should have been refused is run; its report doesn't count, and
/// what it staged is removed.
pub(super) const REMEMBERED: usize = 1024;

#[derive(Debug, Default)]
struct Known {
    /// The newest owner's epoch; 0: none was heard of.
    epoch: u64,
    /// Grants to stage it that are still under way are no grants.
    rolled_back: bool,
    /// When it was last heard of, counted.
    heard: u64,
}

/// Batches that were heard of, the last [`REMEMBERED`] and those that are held.
#[derive(Debug, Default)]
pub(super) struct Batches {
    known: BTreeMap<String, Known>,
    count: u64,
}

impl Batches {
    /// The epoch of the newest owner that was heard of; 0: none.
    pub(super) fn epoch(&self, batch: &str) -> u64 {
        self.known.get(batch).map_or(0, |known| known.epoch)
    }

    pub(super) fn is_rolled_back(&self, batch: &str) -> bool {
        self.known.get(batch).is_some_and(|known| known.rolled_back)
    }

    /// An owner spoke. `held` tells which batches can't be forgotten.
    pub(super) fn owned(&mut self, batch: &str, epoch: u64, held: impl Fn(&str) -> bool) {
        let known = self.hear(batch, held);
        known.epoch = known.epoch.max(epoch);
    }

    /// The batch's rollback is decided: that never changes.
    pub(super) fn rolled_back(&mut self, batch: &str, held: impl Fn(&str) -> bool) {
        self.hear(batch, held).rolled_back = true;
    }

    fn hear(&mut self, batch: &str, held: impl Fn(&str) -> bool) -> &mut Known {
        self.count += 1;
        if !self.known.contains_key(batch) && self.known.len() >= REMEMBERED {
            let free = self.known.iter().filter(|(batch, _)| !held(batch));
            let oldest = free.min_by_key(|(_, known)| known.heard).map(|(batch, _)| batch.clone());
            // None: all are held, and those are bounded by the credit.
            if let Some(oldest) = oldest {
                self.known.remove(&oldest);
            }
        }
        let known = self.known.entry(batch.to_owned()).or_default();
        known.heard = self.count;
        known
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_epoch_is_remembered() {
        let mut batches = Batches::default();
        for epoch in [3, 7, 5] {
            batches.owned("b", epoch, |_| false);
        }
        batches.rolled_back("b", |_| false);
        assert_eq!((batches.epoch("b"), batches.is_rolled_back("b")), (7, true));
        assert_eq!((batches.epoch("other"), batches.is_rolled_back("other")), (0, false));
    }

    #[test]
    fn the_oldest_are_forgotten_but_not_those_that_are_held() {
        let mut batches = Batches::default();
        for batch in 0..REMEMBERED {
            batches.owned(&format!("b{batch}"), 1, |_| false);
        }
        assert_eq!((batches.epoch("b0"), batches.known.len()), (1, REMEMBERED));
        // Heard of again.
        batches.owned("b1", 1, |_| false);
        batches.owned("one more", 1, |batch| batch == "b0");
        assert_eq!(["b0", "b1", "b2", "one more"].map(|batch| batches.epoch(batch)), [1, 1, 0, 1]);
        assert_eq!(batches.known.len(), REMEMBERED);
        batches.owned("and one", 1, |_| true);
        assert_eq!(batches.known.len(), REMEMBERED + 1);
    }
}
