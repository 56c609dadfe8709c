//! A new batch.

use super::{Problems, is_handler_name, namespace, object, quoted};
use crate::error::Error;
use std::collections::BTreeMap;
use tranche_proto::v1;
use tranche_proto::v1::batch::CommitMode;

const DEFAULT_PRIORITY: i32 = 10;
const MAX_PRIORITY: i32 = 100;
const DEFAULT_ATTEMPTS: i32 = 3;
const MAX_ATTEMPTS: i32 = 100;
const DEFAULT_MIN_TASKS: i32 = 1;
const DEFAULT_MAX_TASKS: i32 = 16_384;
const MAX_RANGE_TASKS: i32 = 65_536;
const DEFAULT_MIN_SAMPLE: i64 = 100;
const MAX_DEADLINE_SECONDS: i64 = 30 * 24 * 60 * 60;
const MAX_LABELS: usize = 32;
const MAX_PARAMS: usize = 64;

/// A validated CreateBatch.
#[derive(Debug)]
pub(crate) struct Create {
    pub(crate) namespace: String,
    /// With its defaults filled in and no output fields.
    pub(crate) spec: v1::Batch,
    pub(crate) request_id: String,
}

/// Checks a CreateBatch; `known` are the handlers that it may ask for.
pub(crate) fn create(request: v1::CreateBatchRequest, known: &[String]) -> Result<Create, Error> {
    let mut problems = Problems::default();
    let namespace = match namespace("parent", &request.parent) {
        Ok(namespace) => namespace.unwrap_or_else(|| super::DEFAULT_NAMESPACE.to_owned()),
        Err(Error::Invalid(found)) => {
            problems.0.extend(found);
            String::new()
        }
        Err(other) => return Err(other),
    };
    problems.chars("request_id", &request.request_id, 0, 128);
    let Some(batch) = request.batch else {
        problems.add("batch", "is required");
        return Err(Error::Invalid(problems.0));
    };
    let spec = spec(batch, known, &mut problems);
    problems.finish(Create { namespace, spec, request_id: request.request_id })
}

fn spec(batch: v1::Batch, known: &[String], problems: &mut Problems) -> v1::Batch {
    // Named one by one: a field that is added is an error here until it is dealt with.
    let v1::Batch {
        targets,
        labels,
        display_name,
        priority,
        commit_mode,
        failure_limit,
        deadline,
        range_bounds,
        max_attempts,
        // Set by the service, ignored on input (AIP-203).
        name: _,
        state: _,
        sealed: _,
        counters: _,
        decision: _,
        create_time: _,
        update_time: _,
        end_time: _,
        report_uri: _,
        status_message: _,
        swept: _,
    } = batch;
    match targets.as_slice() {
        [one] => target(one, known, problems),
        [] => problems.add("batch.targets", "is required: exactly one target"),
        more => problems.add("batch.targets", format!("has {} targets, exactly one is accepted", more.len())),
    }
    if labels.len() > MAX_LABELS {
        problems.add("batch.labels", format!("has {} labels, may have {MAX_LABELS}", labels.len()));
    }
    for (key, value) in BTreeMap::from_iter(&labels) {
        let field = format!("batch.labels[{}]", quoted(key));
        problems.chars(format!("{field} (key)"), key, 1, 63);
        problems.chars(field, value, 0, 255);
    }
    problems.chars("batch.display_name", &display_name, 0, 200);
    let commit_mode = match CommitMode::try_from(commit_mode) {
        Ok(CommitMode::Unspecified | CommitMode::Auto) => CommitMode::Auto,
        Ok(CommitMode::Manual) => CommitMode::Manual,
        Err(_) => {
            problems.add("batch.commit_mode", format!("{commit_mode} is no commit mode"));
            CommitMode::Auto
        }
    };
    v1::Batch {
        targets,
        labels,
        display_name,
        priority: number("batch.priority", priority, DEFAULT_PRIORITY, MAX_PRIORITY, problems),
        commit_mode: commit_mode.into(),
        failure_limit: failure_limit.map(|limit| failures(limit, problems)),
        deadline: deadline.inspect(|deadline| check_deadline(deadline, problems)),
        range_bounds: Some(bounds(range_bounds.unwrap_or_default(), problems)),
        max_attempts: number("batch.max_attempts", max_attempts, DEFAULT_ATTEMPTS, MAX_ATTEMPTS, problems),
        ..v1::Batch::default()
    }
}

fn target(target: &v1::Target, known: &[String], problems: &mut Problems) {
    let field = "batch.targets[0].handler";
    let handler = &target.handler;
    if handler.is_empty() {
        problems.add(field, format!("is required; known are {}", known.join(", ")));
    } else if !is_handler_name(handler) || !known.contains(handler) {
        problems.add(field, format!("{} is unknown; known are {}", quoted(handler), known.join(", ")));
    }
    let field = "batch.targets[0].params";
    if target.params.len() > MAX_PARAMS {
        problems.add(field, format!("has {} parameters, may have {MAX_PARAMS}", target.params.len()));
    }
    for (name, value) in BTreeMap::from_iter(&target.params) {
        let field = format!("{field}[{}]", quoted(name));
        problems.chars(format!("{field} (key)"), name, 1, 63);
        problems.chars(field, value, 0, 4096);
    }
    if handler == "object" {
        object::check(field, &target.params, problems);
    }
}

/// A number from 1, where 0 is the default.
fn number(field: &str, value: i32, default: i32, most: i32, problems: &mut Problems) -> i32 {
    if value == 0 {
        return default;
    }
    if !(1..=most).contains(&value) {
        problems.add(field, format!("is {value}, must be 1 to {most} (0: the default, {default})"));
    }
    value
}

fn failures(limit: v1::FailureLimit, problems: &mut Problems) -> v1::FailureLimit {
    if let Some(tasks) = limit.max_failed_tasks.filter(|&tasks| tasks < 0) {
        problems.add("batch.failure_limit.max_failed_tasks", format!("is {tasks}, must not be negative"));
    }
    if let Some(ratio) = limit.max_failed_ratio.filter(|ratio| !(0.0..=1.0).contains(ratio)) {
        problems.add("batch.failure_limit.max_failed_ratio", format!("is {ratio}, must be 0.0 to 1.0"));
    }
    if limit.min_sample < 0 {
        let value = limit.min_sample;
        problems.add("batch.failure_limit.min_sample", format!("is {value}, must not be negative"));
    }
    let min_sample = if limit.min_sample == 0 { DEFAULT_MIN_SAMPLE } else { limit.min_sample };
    v1::FailureLimit { min_sample, ..limit }
}

fn check_deadline(deadline: &prost_types::Duration, problems: &mut Problems) {
    let (seconds, nanos) = (deadline.seconds, deadline.nanos);
    let right = (0..1_000_000_000).contains(&nanos)
        && seconds >= 1
        && (seconds < MAX_DEADLINE_SECONDS || (seconds == MAX_DEADLINE_SECONDS && nanos == 0));
    if !right {
        let description = format!("is {seconds} s and {nanos} ns, must be 1 s to 30 days");
        problems.add("batch.deadline", description);
    }
}

fn bounds(bounds: v1::RangeBounds, problems: &mut Problems) -> v1::RangeBounds {
    let field = "batch.range_bounds";
    let min_tasks =
        number(&format!("{field}.min_tasks"), bounds.min_tasks, DEFAULT_MIN_TASKS, MAX_RANGE_TASKS, problems);
    let max_tasks =
        number(&format!("{field}.max_tasks"), bounds.max_tasks, DEFAULT_MAX_TASKS, MAX_RANGE_TASKS, problems);
    if min_tasks > max_tasks {
        problems
            .add(format!("{field}.min_tasks"), format!("is {min_tasks}, more than max_tasks, {max_tasks}"));
    }
    v1::RangeBounds { min_tasks, max_tasks }
}
