//! The completion report: `report.json` in the batch's folder of the object storage.

use crate::error::Error;
use crate::node::Shared;
use crate::store::keys::BatchKey;
use serde_json::{Value, json};
use std::sync::Arc;
use tokio_util::task::AbortOnDropHandle;
use tranche_engine::StateRecord;
use tranche_proto::v1;

/// Failures in a report, at most; ListFailures has them all.
const FAILURES: usize = 1000;

/// A report that is being written while the batch's last lease is out: by then nothing that it says can become
/// otherwise, and nobody waits for it.
pub(super) struct Early {
    /// Without the failures.
    says: Value,
    writing: AbortOnDropHandle<Result<String, Error>>,
}

impl Early {
    pub(super) fn begin(shared: Arc<Shared>, key: BatchKey, report: Value) -> Self {
        let says = report.clone();
        let writing = AbortOnDropHandle::new(tokio::spawn(async move { write(&shared, &key, report).await }));
        Self { says, writing }
    }

    /// Where it is, if it was written and says this. Waits also for one that says something else: it must not come
    /// after the right one.
    pub(super) async fn written(self, report: &Value) -> Option<String> {
        let written = self.writing.await;
        written.ok()?.ok().filter(|_| self.says == *report)
    }
}

/// Writes a report, with the first failures.
pub(super) async fn write(shared: &Shared, key: &BatchKey, mut report: Value) -> Result<String, Error> {
    // Nothing is read of a batch without any: that would be the records of all its ranges.
    if report["counters"]["failed"] != 0 {
        report["failures"] = first_failures(shared, key).await?;
    }
    report["reportTimeMs"] = shared.host.wall_ms().into();
    shared.objects.write_report(key, &report).await
}

async fn first_failures(shared: &Shared, key: &BatchKey) -> Result<Value, Error> {
    let failures = match shared.failures(key, 0, FAILURES).await {
        Ok((failures, _)) => failures,
        // They won't come back, and the batch must end; ListFailures says what is wrong.
        Err(error @ Error::Damaged { .. }) => {
            tracing::error!(batch.id = %key, %error, "completion report is without the failures");
            Vec::new()
        }
        Err(error) => return Err(error),
    };
    let failure = |failure: v1::TaskFailure| {
        json!({
            "sequence": failure.sequence,
            "key": failure.key,
            "code": failure.code,
            "message": failure.message,
        })
    };
    Ok(failures.into_iter().map(failure).collect())
}

/// Builds the report of a batch that becomes final, but for the failures. Counts are of tasks, times in milliseconds
/// since 1970. When it ended is in the batch.
pub(super) fn build(
    key: &BatchKey,
    spec: &v1::SpecRecord,
    state: &StateRecord,
    decision: Option<&v1::DecisionRecord>,
    coordinator: &str,
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
        "coordinator": coordinator,
        // The first ones; `counters.failed` says how many there are.
        "failures": [],
    })
}
