//! What goes in and what comes out.

use crate::Phase;
use crate::ids::{Token, WorkerKey};
use crate::record::{Cutoff, Decision, RangeRecord, Segment, State, StateRecord};
use crate::runs::{Run, Runs};
use std::time::Duration;

/// A client's call that waits for an answer; the shell's own number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OpId(pub u64);

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A segment of tasks is durable in object storage.
    Appended {
        /// Whom to answer.
        op: OpId,
        /// The segment.
        segment: Segment,
    },
    /// No more tasks come.
    Seal {
        /// Whom to answer.
        op: OpId,
        /// How many the client says there are.
        total: Option<u64>,
    },
    /// The failed tasks are to be tried again.
    RetryFailed {
        /// Whom to answer.
        op: OpId,
    },
    /// A worker at the head of the queue asks for one lease.
    Request {
        /// The worker.
        worker: WorkerKey,
    },
    /// A worker is done with a lease.
    Report(Report),
    /// A worker gives a lease back, not started.
    Release {
        /// The worker.
        worker: WorkerKey,
        /// The lease.
        token: Token,
    },
    /// A worker stages nothing of this batch any more.
    PhaseAck {
        /// The worker.
        worker: WorkerKey,
    },
    /// A worker attached (again), or answered a new owner: it holds these leases of this batch, no others.
    /// Its time is that of what it answers: what was sent to it since isn't among them.
    Attached {
        /// The worker.
        worker: WorkerKey,
        /// The leases.
        held: Vec<Token>,
    },
    /// This life of a worker is over.
    Gone {
        /// The worker.
        worker: WorkerKey,
    },
    /// A decision by somebody else is durable.
    Decided(Decision),
}

/// A worker's report about a lease.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// The worker.
    pub worker: WorkerKey,
    /// The lease.
    pub token: Token,
    /// What was asked.
    pub phase: Phase,
    /// Tasks done.
    pub done: u64,
    /// STAGE: the tasks that failed.
    pub failed: Runs,
    /// STAGE: the object with their details, durable already.
    pub failure_object: Option<String>,
    /// STAGE: for commit and rollback.
    pub receipt: Vec<u8>,
    /// The lease failed as a whole.
    pub error: Option<ReportError>,
    /// COMMIT: the worker published, too, as the lease asked.
    pub published: bool,
    /// SWEEP: items found and removed.
    pub residue: u64,
    /// How long the worker worked on it.
    pub elapsed: Duration,
}

/// Why a lease failed as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportError(pub String);

/// What became of a report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReportResult {
    /// It counts, durably.
    Durable,
    /// The lease was another's by then.
    Stale,
    /// The batch was decided before.
    Decided,
    /// It contradicts its lease.
    Invalid(String),
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Send a lease.
    Grant(Grant),
    /// Tell a worker what became of its report; the lease is no longer its own.
    Ack {
        /// The worker.
        worker: WorkerKey,
        /// The lease.
        token: Token,
        /// What became of it.
        result: ReportResult,
    },
    /// Tell every worker that the batch was decided.
    Broadcast {
        /// Commit or Rollback.
        phase: Phase,
    },
    /// Tell one worker, which wasn't there, that the batch was decided.
    Tell {
        /// The worker.
        worker: WorkerKey,
        /// Commit or Rollback.
        phase: Phase,
    },
    /// Tell a worker to stop a lease.
    Revoke {
        /// The worker.
        worker: WorkerKey,
        /// The lease.
        token: Token,
        /// Why.
        reason: &'static str,
    },
    /// The lease is no longer counted against the worker's credit; it needs no word about it.
    Freed {
        /// The worker.
        worker: WorkerKey,
        /// The lease.
        token: Token,
    },
    /// Tell a worker that the batch has nothing more for it.
    Leave {
        /// The worker.
        worker: WorkerKey,
        /// Where the batch stands.
        state: State,
    },
    /// There is nothing for this request.
    Return {
        /// The worker.
        worker: WorkerKey,
        /// Whether it keeps its place in the queue. Otherwise it goes to the end: there may be something
        /// for the others.
        keep: bool,
    },
    /// Answer a client.
    Answer {
        /// Whom.
        op: OpId,
        /// What.
        answer: Result<Answer, Refusal>,
    },
    /// All is done, swept and folded; the lock is released. The batch needs no owner any more.
    Ended,
}

/// What a client's call brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Every task up to this number is durable.
    Appended(u64),
    /// It is sealed.
    Sealed,
    /// So many failed tasks will be leased again.
    Retried(u64),
}

/// Why a client's call was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A gap: this is the next number.
    Gap(u64),
    /// It is sealed at this total.
    Sealed(u64),
    /// The total is another.
    TotalMismatch(u64),
    /// It was decided.
    Decided,
}

/// A lease to send.
#[derive(Clone, Debug, PartialEq)]
pub struct Grant {
    /// To whom.
    pub worker: WorkerKey,
    /// Its token.
    pub token: Token,
    /// What to do.
    pub phase: Phase,
    /// The range; PUBLISH and SWEEP: 1 to the cut-off.
    pub run: Run,
    /// STAGE: the tasks.
    pub runs: Runs,
    /// COMMIT: the winners. ROLLBACK: all attempts there were.
    pub attempts: Vec<Attempt>,
    /// How often it was leased before, in this phase.
    pub attempt: u32,
    /// PUBLISH, and COMMIT with `publish`: tasks staged.
    pub staged: u64,
    /// COMMIT: it is the last, the worker publishes after it.
    pub publish: bool,
    /// STAGE: the task is suspected of killing its workers, and is to run with nothing beside it.
    pub alone: bool,
}

/// What one attempt staged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Its token.
    pub token: Token,
    /// What it staged; empty: unknown.
    pub runs: Runs,
    /// What the handler returned.
    pub receipt: Vec<u8>,
}

/// One transaction: all of it or nothing, and only while the sequence lock is held and nobody else
/// changed these records.
#[derive(Clone, Debug, PartialEq)]
pub struct Write {
    /// The state record; always written.
    pub state: StateRecord,
    /// The cut-off, when it moved.
    pub cutoff: Option<Cutoff>,
    /// The decision, when made here: its record must not exist.
    pub decision: Option<Decision>,
    /// Nobody must have decided.
    pub undecided: bool,
    /// New segments.
    pub segments: Vec<Segment>,
    /// New and changed ranges.
    pub ranges: Vec<RangeRecord>,
    /// Ranges that are folded away, by first number.
    pub folded: Vec<u64>,
    /// This makes the batch final: its completion report must be durable before.
    pub report: bool,
    /// Release the sequence lock and drop the cut-off's record with it.
    pub release: bool,
}
