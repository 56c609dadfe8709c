//! The completion report: `report.json` in the batch's folder of the object storage.

use crate::store::keys::BatchKey;
use serde_json::{Value, json};
use tranche_engine::StateRecord;
use tranche_proto::v1;

/// Failures in a report, at most; ListFailures has them all.
pub(super) const FAILURES: usize = 1000;

/// Builds the report of a batch that becomes final. Counts are of tasks, times in milliseconds since 1970.
pub(super) fn build(
    key: &BatchKey,
    spec: &v1::SpecRecord,
    state: &StateRecord,
    decision: Option<&v1::DecisionRecord>,
    coordinator: &str,
    failures: &[v1::TaskFailure],
) -> Value {
    let batch = spec.batch.clone().unwrap_or_default();
    let target = batch.targets.first().cloned().unwrap_or_default();
    json!({
        "batch": key.to_string(),
        "displayName": batch.display_name,
        "labels": batch.labels,
        "target": { "handler": target.handler, "params": target.params },
        "state": super::records::state_to_proto(state.state).as_str_name(),
        "counters": {
            "total": state.total,
            "staged": state.staged,
            "failed": state.failed,
            "committed": state.committed,
            "rolledBack": state.rolled_back,
            "residueRemoved": state.residue_removed,
            "cutoff": state.cutoff,
        },
        "decision": decision.map(|decision| json!({
            "outcome": decision.outcome().as_str_name(),
            "reason": decision.reason().as_str_name(),
            "actor": decision.actor,
            "message": decision.message,
            "decideTimeMs": decision.decide_time_ms,
        })),
        "createTimeMs": spec.create_time_ms,
        "decideTimeMs": state.decide_time_ms,
        "endTimeMs": state.end_time_ms,
        "coordinator": coordinator,
        // The first ones; `counters.failed` says how many there are.
        "failures": failures
            .iter()
            .map(|failure| json!({
                "sequence": failure.sequence,
                "key": failure.key,
                "code": failure.code,
                "message": failure.message,
            }))
            .collect::<Vec<_>>(),
    })
}
