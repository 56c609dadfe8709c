//! A lease that this worker holds, and what becomes of it.

use super::state::{LinkId, Now};
use crate::handler::{Progress, TaskFailure};
use crate::lease::{Attempt, RollbackLease, Token, Work};
use bytes::Bytes;
use std::time::Duration;
use tranche_guards::Guard;
use tranche_proto::v1;

/// A lease to run in a slot.
#[derive(Clone, Debug)]
pub struct Job {
    /// The lease's token.
    pub token: Token,
    /// The handler to call.
    pub handler: String,
    /// What to do.
    pub work: Work,
    /// COMMIT: publish the batch after it.
    pub publish: bool,
    /// The trace that it is part of; may be empty.
    pub traceparent: String,
    /// Where the handler counts; read for heartbeats.
    pub progress: Progress,
}

/// What a lost attempt may have staged, to be removed.
#[derive(Clone, Debug, PartialEq)]
pub struct Removal {
    /// The handler to call.
    pub handler: String,
    /// Names this one attempt. Its own token is the attempt's.
    pub lease: RollbackLease,
}

impl Removal {
    /// None: it stages nothing.
    pub(super) fn of(job: &Job) -> Option<Self> {
        let Work::Stage(lease) = &job.work else { return None };
        let attempt = Attempt { token: lease.token, runs: Vec::new(), receipt: Bytes::new() };
        let lease = RollbackLease {
            batch: lease.batch.clone(),
            token: lease.token,
            range: lease.range,
            attempts: vec![attempt],
            attempt: 0,
        };
        Some(Self { handler: job.handler.clone(), lease })
    }

    /// What the handler returned when it had staged.
    pub(super) fn receipt(&mut self, receipt: Bytes) {
        for attempt in &mut self.lease.attempts {
            attempt.receipt = receipt.clone();
        }
    }
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
    /// COMMIT with `publish`: how many were made final; the batch is published.
    Published(u64),
    /// SWEEP: staged items that were found and removed.
    Swept(u64),
    /// It failed as a whole.
    Error(String),
}

/// Where a lease is.
#[derive(Debug)]
pub(super) enum Stage {
    /// Parts of its grant are still to come.
    Assembling {
        /// The first part, without its tasks.
        grant: Box<v1::Grant>,
        /// The tasks of every part.
        pieces: Vec<Bytes>,
    },
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
    Reported {
        /// The report.
        report: Box<v1::Report>,
        /// When it was last sent, or made.
        sent: Now,
    },
    /// It doesn't count, and what it staged is being removed. It holds its slot until then: so there are
    /// never more of these than slots and reports, however long a broken disk takes.
    Removing,
}

/// A lease that this worker holds.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) batch: String,
    pub(super) phase: i32,
    /// Nothing runs beside it.
    pub(super) alone: bool,
    /// Whose it is.
    pub(super) link: LinkId,
    /// When it was last known to be ours: granted, or named in a frame that was acknowledged.
    pub(super) alive: Now,
    /// How long it lives after that.
    pub(super) ttl: Duration,
    /// The first heartbeat of its link's stream that names it.
    pub(super) counts_from: u64,
    pub(super) progress: Progress,
    /// What removes it; there from when its handler was first called, if it stages.
    pub(super) removal: Option<Box<Removal>>,
    pub(super) stage: Stage,
}

impl Held {
    pub(super) fn takes_slot(&self) -> bool {
        matches!(self.stage, Stage::Running { .. } | Stage::Stopping | Stage::Removing)
    }

    /// Whether coordinators are told that it is held.
    pub(super) fn is_ours(&self) -> bool {
        !matches!(self.stage, Stage::Stopping | Stage::Removing)
    }

    /// When it lapses by itself. A report doesn't: the coordinator says whether it still counts.
    pub(super) fn lapses_at(&self) -> Option<Now> {
        match self.stage {
            Stage::Assembling { .. } | Stage::Waiting(_) | Stage::Running { .. } => {
                Guard::LeaseLapses.on().then(|| self.alive + self.ttl)
            }
            Stage::Stopping | Stage::Removing | Stage::Reported { .. } => None,
        }
    }

    pub(super) fn stages(&self) -> bool {
        self.phase == v1::Phase::Stage as i32
    }
}
