//! What a client asked for, checked and with its defaults filled in.

use std::time::Duration;

/// Who decides to commit once all tasks are accounted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitMode {
    /// The batch itself.
    Auto,
    /// Somebody, by CommitBatch.
    Manual,
}

/// When failed tasks revoke a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct FailureLimit {
    /// The most tasks that may fail.
    pub max_failed: Option<u64>,
    /// The highest share of the processed tasks that may fail.
    pub max_ratio: Option<f64>,
    /// How many tasks must be processed before the share counts; at the end it always counts.
    pub min_sample: u64,
}

impl FailureLimit {
    /// Says which limit these counts cross, if one. `complete`: no more tasks will be processed.
    pub fn crossed(&self, staged: u64, failed: u64, complete: bool) -> Option<String> {
        if let Some(max) = self.max_failed
            && failed > max
        {
            return Some(format!("{failed} tasks failed, at most {max} may"));
        }
        let processed = staged + failed;
        if let Some(max) = self.max_ratio
            && processed > 0
            && (complete || processed >= self.min_sample)
            && failed as f64 > max * processed as f64
        {
            return Some(format!("{failed} of {processed} tasks failed, at most a share of {max} may"));
        }
        None
    }
}

/// What the engine needs to know of a batch's spec.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// When the batch was created, in milliseconds since 1970.
    pub create_time_ms: i64,
    /// Who decides to commit.
    pub commit_mode: CommitMode,
    /// When failed tasks revoke it.
    pub failure_limit: FailureLimit,
    /// How long after its creation it is rolled back if undecided.
    pub deadline: Option<Duration>,
    /// The fewest tasks of a lease; at least 1.
    pub min_range: u64,
    /// The most tasks of a lease.
    pub max_range: u64,
    /// How many workers a range may lose before it is split; at least 1.
    pub max_attempts: u32,
}

impl Spec {
    /// When the deadline is, in milliseconds since 1970.
    pub fn deadline_ms(&self) -> Option<i64> {
        let after = i64::try_from(self.deadline?.as_millis()).unwrap_or(i64::MAX);
        Some(self.create_time_ms.saturating_add(after))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_by_number_at_n_and_n_plus_1() {
        let limit = FailureLimit { max_failed: Some(3), ..FailureLimit::default() };
        assert_eq!(limit.crossed(0, 3, true), None);
        assert!(limit.crossed(0, 4, false).is_some());
    }

    #[test]
    fn limit_by_share_waits_for_its_sample_but_not_at_the_end() {
        let limit = FailureLimit { max_failed: None, max_ratio: Some(0.1), min_sample: 20 };
        assert_eq!(limit.crossed(9, 10, false), None, "19 processed: too few to tell");
        assert!(limit.crossed(10, 10, false).is_some(), "20 processed");
        assert!(limit.crossed(1, 1, true).is_some(), "complete");
        assert_eq!(limit.crossed(18, 2, true), None, "exactly the share is allowed");
        assert!(limit.crossed(17, 3, true).is_some());
        assert_eq!(limit.crossed(0, 0, true), None, "nothing processed, nothing failed");
    }
}
