//! A lease that this worker holds, and what becomes of it.

use super::state::{LinkId, Now};
use crate::handler::{Progress, TaskFailure};
use crate::lease::{Token, Work};
use bytes::Bytes;
use prost::Message as _;
use tranche_proto::{MAX_FAILURE_MESSAGE_BYTES, MAX_FRAME_BYTES, MAX_RECEIPT_BYTES, v1};

/// A lease to run in a slot.
#[derive(Clone, Debug)]
pub struct Job {
    /// The lease's token.
    pub token: Token,
    /// The handler to call.
    pub handler: String,
    /// What to do.
    pub work: Work,
    /// Where the handler counts; read for heartbeats.
    pub progress: Progress,
}

/// How a lease ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// STAGE: every task was tried.
    Staged {
        /// How many tasks are staged, durably.
        done: u64,
        /// The tasks that failed, with their keys.
        failures: Vec<(TaskFailure, String)>,
        /// The handler's receipt.
        receipt: Bytes,
    },
    /// COMMIT, ROLLBACK: how many were made final, removed. PUBLISH: 0.
    Done(u64),
    /// SWEEP: staged items that were found and removed.
    Swept(u64),
    /// It failed as a whole.
    Error(String),
}

/// Where a lease is.
#[derive(Debug)]
pub(super) enum Stage {
    /// Parts of its grant are still to come.
    Assembling(Box<v1::Grant>),
    /// It waits for a slot.
    Waiting(Box<Job>),
    /// It runs in a slot.
    Running {
        /// When it got the slot.
        since: Now,
    },
    /// It was cancelled and still holds its slot; nothing of it will be reported.
    Stopping,
    /// It is done; the report isn't acknowledged yet.
    Reported(Box<v1::Report>),
}

/// A lease that this worker holds.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) batch: String,
    pub(super) phase: i32,
    pub(super) link: LinkId,
    /// When it was last known to be ours: granted, or named in a frame that was acknowledged.
    pub(super) alive: Now,
    /// The first heartbeat of its link's stream that names it.
    pub(super) counts_from: u64,
    pub(super) progress: Progress,
    pub(super) stage: Stage,
}

impl Held {
    pub(super) fn takes_slot(&self) -> bool {
        matches!(self.stage, Stage::Running { .. } | Stage::Stopping)
    }

    /// Whether it lapses by itself: a report doesn't, the coordinator says whether it still counts.
    pub(super) fn lapses(&self) -> bool {
        match self.stage {
            Stage::Assembling(_) | Stage::Waiting(_) | Stage::Running { .. } => true,
            Stage::Stopping | Stage::Reported(_) => false,
        }
    }

    pub(super) fn stages(&self) -> bool {
        self.phase == v1::Phase::Stage as i32
    }
}

/// The report of an outcome.
pub(super) fn report(batch: &str, token: Token, phase: i32, outcome: Outcome, elapsed: Now) -> v1::Report {
    let mut report = v1::Report {
        batch: batch.to_owned(),
        token: Some(token.into()),
        phase,
        elapsed: prost_types::Duration::try_from(elapsed).ok(),
        ..Default::default()
    };
    match outcome {
        Outcome::Staged { receipt, .. } if receipt.len() > MAX_RECEIPT_BYTES => {
            report.error =
                format!("the handler's receipt has {} bytes, more than {MAX_RECEIPT_BYTES}", receipt.len());
        }
        Outcome::Staged { done, failures, receipt } => {
            report.done = done.cast_signed();
            report.receipt = receipt;
            report.failures = failures.into_iter().map(failure).collect();
        }
        Outcome::Done(done) => report.done = done.cast_signed(),
        Outcome::Swept(residue) => report.residue = residue.cast_signed(),
        Outcome::Error(error) if error.is_empty() => {
            "the handler failed and said nothing".clone_into(&mut report.error);
        }
        Outcome::Error(error) => report.error = cut(error, MAX_RECEIPT_BYTES),
    }
    // The frame's own few bytes are around it.
    if report.encoded_len() + 64 > MAX_FRAME_BYTES {
        report.error = format!("{} failures don't fit into one report", report.failures.len());
        report.failures.clear();
        report.done = 0;
    }
    report
}

fn failure((failure, key): (TaskFailure, String)) -> v1::TaskFailure {
    v1::TaskFailure {
        sequence: failure.sequence.cast_signed(),
        key,
        code: failure.code,
        message: cut(failure.message, MAX_FAILURE_MESSAGE_BYTES),
    }
}

fn cut(mut text: String, bytes: usize) -> String {
    text.truncate(text.floor_char_boundary(bytes));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(message: &str, receipt: usize) -> Outcome {
        let failures = vec![(TaskFailure::new(4, "BAD", message), "k".to_owned())];
        Outcome::Staged { done: 3, failures, receipt: Bytes::from(vec![0; receipt]) }
    }

    fn reported(outcome: Outcome) -> v1::Report {
        report("b", Token { epoch: 1, counter: 1 }, 1, outcome, Now::from_secs(2))
    }

    #[test]
    fn long_messages_are_cut_between_characters() {
        let report = reported(outcome(&"é".repeat(400), 0));
        assert_eq!(report.failures[0].message, "é".repeat(256));
        assert_eq!(report.failures[0].key, "k");
        assert_eq!((report.done, report.error.as_str()), (3, ""));
    }

    #[test]
    fn a_receipt_that_is_too_long_is_an_error() {
        let report = reported(outcome("", MAX_RECEIPT_BYTES + 1));
        assert!(report.error.contains("receipt"), "{}", report.error);
        assert_eq!((report.done, report.failures.len(), report.receipt.len()), (0, 0, 0));
    }

    #[test]
    fn an_error_is_never_an_empty_string() {
        assert!(!reported(Outcome::Error(String::new())).error.is_empty());
    }
}
