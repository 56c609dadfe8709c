//! JSON of the service's messages: field and enum names as in proto JSON.
//!
//! Unlike proto JSON, every number is a JSON number (all are far below 2^53), and every field that is
//! not a message is always there; messages that are unset are left out.

use prost_types::{Duration, Timestamp};
use serde_json::{Map, Value, json};
use tranche_client::v1;
use v1::batch::{CommitMode, State};

/// `Batch`.
pub(crate) fn batch(batch: &v1::Batch) -> Value {
    let mut out = object(json!({
        "name": batch.name,
        "targets": batch.targets.iter().map(|t| json!({"handler": t.handler, "params": t.params})).collect::<Vec<_>>(),
        "labels": batch.labels,
        "displayName": batch.display_name,
        "priority": batch.priority,
        "commitMode": name(batch.commit_mode, CommitMode::as_str_name),
        "maxAttempts": batch.max_attempts,
        "state": name(batch.state, State::as_str_name),
        "sealed": batch.sealed,
        "counters": counters(batch.counters.unwrap_or_default()),
        "reportUri": batch.report_uri,
        "statusMessage": batch.status_message,
    }));
    if let Some(limit) = &batch.failure_limit {
        let mut fields = object(json!({"minSample": limit.min_sample}));
        optional(&mut fields, "maxFailedTasks", limit.max_failed_tasks.map(Value::from));
        optional(&mut fields, "maxFailedRatio", limit.max_failed_ratio.map(Value::from));
        out.insert("failureLimit".into(), fields.into());
    }
    if let Some(bounds) = &batch.range_bounds {
        let fields = json!({"minTasks": bounds.min_tasks, "maxTasks": bounds.max_tasks});
        out.insert("rangeBounds".into(), fields);
    }
    optional(&mut out, "deadline", batch.deadline.as_ref().map(duration));
    optional(&mut out, "decision", batch.decision.as_ref().map(decision));
    optional(&mut out, "createTime", batch.create_time.as_ref().map(time));
    optional(&mut out, "updateTime", batch.update_time.as_ref().map(time));
    optional(&mut out, "endTime", batch.end_time.as_ref().map(time));
    out.into()
}

fn counters(counters: v1::Counters) -> Value {
    json!({
        "total": counters.total,
        "staged": counters.staged,
        "failed": counters.failed,
        "committed": counters.committed,
        "rolledBack": counters.rolled_back,
        "cutoff": counters.cutoff,
        "residueRemoved": counters.residue_removed,
    })
}

fn decision(decision: &v1::Decision) -> Value {
    let mut out = object(json!({
        "outcome": name(decision.outcome, v1::decision::Outcome::as_str_name),
        "reason": name(decision.reason, v1::decision::Reason::as_str_name),
        "actor": decision.actor,
        "message": decision.message,
        "cutoff": decision.cutoff,
    }));
    optional(&mut out, "decideTime", decision.decide_time.as_ref().map(time));
    out.into()
}

/// `WatchBatchResponse`.
pub(crate) fn watch(update: &v1::WatchBatchResponse) -> Value {
    let phases = update.phases.iter().map(|phase| {
        let mut out = object(json!({
            "phase": name(phase.phase, v1::Phase::as_str_name),
            "done": phase.done,
            "total": phase.total,
            "rate": phase.rate,
        }));
        optional(&mut out, "eta", phase.eta.as_ref().map(duration));
        Value::from(out)
    });
    let phases = phases.collect::<Vec<_>>();
    let mut out = object(json!({"phases": phases, "workers": update.workers, "leases": update.leases}));
    optional(&mut out, "batch", update.batch.as_ref().map(batch));
    out.into()
}

/// `TaskFailure`.
pub(crate) fn failure(failure: &v1::TaskFailure) -> Value {
    json!({
        "sequence": failure.sequence,
        "key": failure.key,
        "code": failure.code,
        "message": failure.message,
    })
}

/// `Worker`.
pub(crate) fn worker(worker: &v1::Worker) -> Value {
    let mut out = object(json!({
        "worker": worker.worker,
        "incarnation": worker.incarnation,
        "handlers": worker.handlers,
        "slots": worker.slots,
        "labels": worker.labels,
        "leases": worker.leases,
        "freeCredit": worker.free_credit,
        "version": worker.version,
        "peer": worker.peer,
        "namespace": worker.namespace,
    }));
    optional(&mut out, "attachTime", worker.attach_time.as_ref().map(time));
    optional(&mut out, "lastSeenTime", worker.last_seen_time.as_ref().map(time));
    out.into()
}

/// `Coordinator`.
pub(crate) fn coordinator(coordinator: &v1::Coordinator) -> Value {
    let mut out = object(json!({
        "coordinator": coordinator.coordinator,
        "endpoint": coordinator.endpoint,
        "version": coordinator.version,
        "answering": coordinator.answering,
        "ownedBatches": coordinator.owned_batches,
        "storeTransactions": coordinator.store_transactions,
        "grantLatencyP50Us": coordinator.grant_latency_p50_us,
        "grantLatencyP99Us": coordinator.grant_latency_p99_us,
        "peakMemoryBytes": coordinator.peak_memory_bytes,
    }));
    optional(&mut out, "startTime", coordinator.start_time.as_ref().map(time));
    out.into()
}

/// `Lease`.
pub(crate) fn lease(lease: &v1::Lease) -> Value {
    let mut out = object(json!({
        "batch": lease.batch,
        "worker": lease.worker,
        "phase": name(lease.phase, v1::Phase::as_str_name),
        "attempt": lease.attempt,
    }));
    let token = lease.token.as_ref().map(|t| json!({"epoch": t.epoch, "counter": t.counter}));
    let range = lease.range.as_ref().map(|r| json!({"first": r.first, "last": r.last}));
    optional(&mut out, "token", token);
    optional(&mut out, "range", range);
    optional(&mut out, "grantTime", lease.grant_time.as_ref().map(time));
    optional(&mut out, "expireTime", lease.expire_time.as_ref().map(time));
    out.into()
}

/// An enum's name; the number itself if a newer service has one that is not known here.
fn name<E: TryFrom<i32>>(number: i32, name: impl Fn(&E) -> &'static str) -> Value {
    E::try_from(number).map_or_else(|_| number.into(), |value| name(&value).into())
}

fn time(time: &Timestamp) -> Value {
    time.to_string().into()
}

fn duration(duration: &Duration) -> Value {
    duration.to_string().into()
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

fn optional(fields: &mut Map<String, Value>, name: &str, value: Option<Value>) {
    if let Some(value) = value {
        fields.insert(name.to_owned(), value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_batch() {
        let made = v1::Batch {
            name: "namespaces/default/batches/b1".into(),
            targets: vec![v1::Target {
                handler: "object".into(),
                params: [("library".to_owned(), "/l".to_owned())].into(),
            }],
            state: State::Importing.into(),
            commit_mode: CommitMode::Auto.into(),
            create_time: Some(Timestamp { seconds: 1_700_000_000, nanos: 250_000_000 }),
            ..Default::default()
        };
        let expected = r#"{"commitMode":"COMMIT_MODE_AUTO","counters":{"committed":0,"cutoff":0,"failed":0,"residueRemoved":0,"rolledBack":0,"staged":0,"total":0},"createTime":"2023-11-14T22:13:20.250Z","displayName":"","labels":{},"maxAttempts":0,"name":"namespaces/default/batches/b1","priority":0,"reportUri":"","sealed":false,"state":"STATE_IMPORTING","statusMessage":"","targets":[{"handler":"object","params":{"library":"/l"}}]}"#;
        assert_eq!(batch(&made).to_string(), expected);
    }

    #[test]
    fn a_decided_batch_with_limits() {
        let made = v1::Batch {
            state: State::RolledBack.into(),
            failure_limit: Some(v1::FailureLimit {
                max_failed_tasks: Some(0),
                max_failed_ratio: None,
                min_sample: 100,
            }),
            deadline: Some(Duration { seconds: 90, nanos: 0 }),
            decision: Some(v1::Decision {
                outcome: v1::decision::Outcome::Rollback.into(),
                reason: v1::decision::Reason::FailureLimit.into(),
                actor: "coordinator/c1".into(),
                message: "1 of 3 failed".into(),
                cutoff: 3,
                decide_time: None,
            }),
            ..Default::default()
        };
        let made = batch(&made);
        let limit = r#"{"maxFailedTasks":0,"minSample":100}"#;
        assert_eq!(made["failureLimit"].to_string(), limit);
        assert_eq!(made["deadline"], "90s");
        let decision = r#"{"actor":"coordinator/c1","cutoff":3,"message":"1 of 3 failed","outcome":"OUTCOME_ROLLBACK","reason":"REASON_FAILURE_LIMIT"}"#;
        assert_eq!(made["decision"].to_string(), decision);
        assert!(made.get("endTime").is_none());
    }

    #[test]
    fn an_update() {
        let update = v1::WatchBatchResponse {
            batch: None,
            phases: vec![v1::PhaseProgress {
                phase: v1::Phase::Stage.into(),
                done: 5,
                total: 10,
                rate: 2.5,
                eta: Some(Duration { seconds: 2, nanos: 0 }),
            }],
            workers: 2,
            leases: 3,
        };
        let expected = r#"{"leases":3,"phases":[{"done":5,"eta":"2s","phase":"PHASE_STAGE","rate":2.5,"total":10}],"workers":2}"#;
        assert_eq!(watch(&update).to_string(), expected);
    }

    #[test]
    fn a_failure_and_a_lease() {
        let made = v1::TaskFailure {
            sequence: 7,
            key: "a/b".into(),
            code: "NOT_FOUND".into(),
            message: "gone".into(),
        };
        let expected = r#"{"code":"NOT_FOUND","key":"a/b","message":"gone","sequence":7}"#;
        assert_eq!(failure(&made).to_string(), expected);
        let made = v1::Lease {
            batch: "namespaces/default/batches/b1".into(),
            token: Some(v1::Token { epoch: 9, counter: 2 }),
            range: Some(v1::Range { first: 1, last: 8 }),
            phase: v1::Phase::Commit.into(),
            ..Default::default()
        };
        let expected = r#"{"attempt":0,"batch":"namespaces/default/batches/b1","phase":"PHASE_COMMIT","range":{"first":1,"last":8},"token":{"counter":2,"epoch":9},"worker":""}"#;
        assert_eq!(lease(&made).to_string(), expected);
    }

    #[test]
    fn an_enum_value_of_a_newer_service_is_its_number() {
        assert_eq!(batch(&v1::Batch { state: 99, ..Default::default() })["state"], 99);
    }
}
