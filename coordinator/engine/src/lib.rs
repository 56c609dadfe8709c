//! The engine decides; the shell acts.
//!
//! ```text
//!   events ──push──▶ ┌───────────┐ ──step──▶ commands that need no write
//!   now    ─────────▶│   Batch   │ ──step──▶ one Write ──▶ the store
//!                    │ (records) │ ◀─written── it is durable ──▶ the commands that waited for it
//!                    └───────────┘ ◀─reload─── it was refused: read everything again
//! ```
//!
//! One [`Batch`] is the whole truth of one batch at its owner. It has no clock, no I/O and no tasks:
//! the same events at the same times give the same writes and commands. Events gather while a write is
//! in flight; [`Batch::step`] works them into the records and hands out one [`Write`], and nothing that
//! depends on that write leaves before [`Batch::written`] says that it is durable.

mod batch;
mod event;
mod ids;
mod record;
mod runs;
mod size;
mod spec;

pub use batch::{Batch, LeaseView, Settings, Step};
pub use event::{
    Answer, Attempt, Command, Event, Grant, OpId, Refusal, Report, ReportError, ReportResult, Write,
};
pub use ids::{Epoch, Now, Token, WorkerKey};
pub use record::{
    Cutoff, Decision, InlineFailure, Lease, Outcome, RangePhase, RangeRecord, Reason, Records, Segment,
    State, StateRecord, Stopping, Winner,
};
pub use runs::{Run, Runs};
pub use size::{LEASE_BYTES, Pace};
pub use spec::{CommitMode, FailureLimit, Spec};

/// What a lease asks its worker to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// Stage the tasks where no reader sees them.
    Stage,
    /// Make the staged tasks of a range final.
    Commit,
    /// Remove what was staged of a range.
    Rollback,
    /// All ranges are committed: finish the batch in one step.
    Publish,
    /// The batch ended: remove and count what is left of it.
    Sweep,
}
