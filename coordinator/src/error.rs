//! What a call can be told instead of its answer.
//!
//! `grpc/status.rs` has the one table from here to `tonic::Status`.

use crate::store::StoreError;
use crate::store::keys::BatchKey;
use tranche_proto::v1::batch::State;
use tranche_proto::v1::decision::{Outcome, Reason};

/// A field that isn't right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Path of the field, as in the request: `batch.targets[0].handler`.
    pub field: String,
    /// What is wrong, with the value.
    pub description: String,
}

impl Violation {
    /// A violation.
    pub fn new(field: impl Into<String>, description: impl Into<String>) -> Self {
        Self { field: field.into(), description: description.into() }
    }
}

/// Why a call was not done.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// Fields of the request are wrong.
    #[error("invalid argument: {}", .0.iter().map(|v| format!("{}: {}", v.field, v.description)).collect::<Vec<_>>().join("; "))]
    Invalid(Vec<Violation>),
    /// There is no such batch.
    #[error("{0} not found")]
    NotFound(BatchKey),
    /// The decision was made, and it is another.
    #[error("{batch} is already decided: {outcome:?} ({reason:?})")]
    AlreadyDecided {
        /// The batch.
        batch: BatchKey,
        /// What was decided.
        outcome: Outcome,
        /// Why.
        reason: Reason,
    },
    /// The call isn't allowed in this state.
    #[error("{batch} is {state:?}: {wanted}")]
    WrongState {
        /// The batch.
        batch: BatchKey,
        /// Where it stands.
        state: State,
        /// What the call needs, and what to do.
        wanted: &'static str,
    },
    /// The request id was used for another batch spec.
    #[error("request id {request_id:?} was used for {batch} with another spec")]
    RequestReused {
        /// The request id.
        request_id: String,
        /// The batch that it made.
        batch: BatchKey,
    },
    /// The total at seal isn't what is durable.
    #[error("{batch}: total is {said}, but {durable} tasks are durable")]
    TotalMismatch {
        /// The batch.
        batch: BatchKey,
        /// What the client said.
        said: i64,
        /// What is there.
        durable: u64,
    },
    /// An append leaves a gap.
    #[error("{batch}: first_sequence {got} leaves a gap, the next is {expected}")]
    Gap {
        /// The batch.
        batch: BatchKey,
        /// The next sequence number.
        expected: u64,
        /// What came.
        got: u64,
    },
    /// Another stream appended in between; this one has to begin again after what is durable.
    #[error("{batch}: another stream appended meanwhile, {durable} tasks are durable; open a new stream")]
    Overtaken {
        /// The batch.
        batch: BatchKey,
        /// Tasks that are durable.
        durable: u64,
    },
    /// An append to a sealed batch.
    #[error("{batch} is sealed at {total} tasks")]
    Sealed {
        /// The batch.
        batch: BatchKey,
        /// Its tasks.
        total: u64,
    },
    /// This coordinator doesn't own the batch now; the call can be repeated.
    #[error("{batch} has no owner here now")]
    NotOwned {
        /// The batch.
        batch: BatchKey,
    },
    /// There is too much of it at once, of all callers together.
    #[error("too many {what} at once, the limit is {limit}")]
    Busy {
        /// What.
        what: &'static str,
        /// How many may be.
        limit: usize,
    },
    /// Somebody has too much of something.
    #[error("{of} has too many {what}, the limit is {limit} ({setting}): end some, or have it raised")]
    Quota {
        /// Who: a resource name.
        of: String,
        /// What.
        what: &'static str,
        /// How many they may have.
        limit: u64,
        /// The field of the configuration that says so.
        setting: &'static str,
        /// Whether it is soon otherwise by itself.
        passes: bool,
    },
    /// The coordinator is leaving.
    #[error("coordinator is shutting down")]
    ShuttingDown,
    /// What another coordinator answered, which owns the batch; it goes on to the client as it is.
    #[error("{0}")]
    Answered(Box<tonic::Status>),
    /// The store didn't do it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The object storage didn't do it.
    #[error("object storage: {0}")]
    Objects(String),
    /// Stored bytes are not what they should be.
    #[error("{what} is damaged: {message}")]
    Damaged {
        /// The record or object.
        what: String,
        /// What is wrong.
        message: String,
    },
}
