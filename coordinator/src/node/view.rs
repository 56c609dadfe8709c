//! A batch as its readers see it.

use crate::store::keys::BatchKey;
use prost_types::Timestamp;
use std::sync::Arc;
use tranche_proto::v1;

/// A batch as of one revision, with what its owner knows beside.
#[derive(Clone, Debug)]
pub struct View {
    /// Which batch.
    pub key: BatchKey,
    /// What was asked for.
    pub spec: Arc<v1::SpecRecord>,
    /// Where it stands.
    pub state: v1::StateRecord,
    /// The decision, if made.
    pub decision: Option<v1::DecisionRecord>,
    /// The cut-off.
    pub cutoff: u64,
    /// What only the owner knows.
    pub live: Live,
}

/// What only a batch's owner knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Live {
    /// Leases out.
    pub leases: u32,
    /// Workers that hold them.
    pub workers: u32,
    /// The last error of a commit or rollback that is being retried.
    pub message: String,
}

impl View {
    /// True in COMMITTED and ROLLED_BACK.
    pub fn is_final(&self) -> bool {
        matches!(self.state.state(), v1::batch::State::Committed | v1::batch::State::RolledBack)
    }

    /// The resource.
    pub fn to_proto(&self) -> v1::Batch {
        let state = &self.state;
        v1::Batch {
            name: self.key.to_string(),
            state: state.state,
            sealed: state.sealed,
            counters: Some(v1::Counters {
                total: state.total,
                staged: state.staged,
                failed: state.failed,
                committed: state.committed,
                rolled_back: state.rolled_back,
                cutoff: self.cutoff.cast_signed(),
                residue_removed: state.residue_removed,
            }),
            decision: self.decision.as_ref().map(|decision| v1::Decision {
                outcome: decision.outcome,
                reason: decision.reason,
                actor: decision.actor.clone(),
                message: decision.message.clone(),
                cutoff: decision.cutoff,
                decide_time: timestamp(decision.decide_time_ms),
            }),
            create_time: timestamp(self.spec.create_time_ms),
            update_time: timestamp(state.update_time_ms),
            end_time: timestamp(state.end_time_ms),
            report_uri: state.report_uri.clone(),
            status_message: self.live.message.clone(),
            swept: state.swept,
            ..self.spec.batch.clone().unwrap_or_default()
        }
    }
}

/// Milliseconds since 1970 as a timestamp; 0 is none.
pub fn timestamp(ms: i64) -> Option<Timestamp> {
    (ms != 0).then(|| Timestamp {
        seconds: ms.div_euclid(1000),
        nanos: i32::try_from(ms.rem_euclid(1000)).expect("below 1000") * 1_000_000,
    })
}
