//! `noop`: stages nothing, for benches and tests of everything around it.

use super::params::{INVALID_TARGET, ParamError, refuse_unknown};
use crate::handler::{Handler, HandlerError, Progress, Staged, TaskFailure};
use crate::lease::{BatchInfo, CommitLease, RollbackLease, StageLease};
use async_trait::async_trait;
use bytes::Bytes;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Counts tasks. Parameters:
///
/// | parameter | default | meaning |
/// | --- | --- | --- |
/// | `delay_per_task` | `0s` | how long a task takes: a number and `ns`, `us`, `ms` or `s` |
/// | `fail_every` | `0` (never) | every Nth sequence number fails with `NOOP_FAILED` |
/// | `fail_attempts` | `0` (always) | those fail only the first N times that this process tries them |
#[derive(Debug, Default)]
pub struct Noop {
    /// How often failing tasks were tried, by batch; dropped on leave.
    tried: Mutex<HashMap<String, HashMap<u64, u64>>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Params {
    delay_per_task: Duration,
    fail_every: u64,
    fail_attempts: u64,
}

impl Params {
    fn parse(params: &BTreeMap<String, String>) -> Result<Self, ParamError> {
        refuse_unknown(params, &["delay_per_task", "fail_every", "fail_attempts"])?;
        let number = |name: &str| match params.get(name) {
            None => Ok(0),
            Some(value) => value.parse().map_err(|_| ParamError::new(name, value, "must be a number from 0")),
        };
        let delay_per_task = match params.get("delay_per_task") {
            None => Duration::ZERO,
            Some(value) => duration(value).ok_or_else(|| {
                ParamError::new("delay_per_task", value, "must be a duration like 5us, 1ms or 2s")
            })?,
        };
        Ok(Self {
            delay_per_task,
            fail_every: number("fail_every")?,
            fail_attempts: number("fail_attempts")?,
        })
    }
}

/// A whole number and its unit.
fn duration(text: &str) -> Option<Duration> {
    let unit = text.find(|c: char| !c.is_ascii_digit())?;
    let number = text[..unit].parse().ok()?;
    match &text[unit..] {
        "ns" => Some(Duration::from_nanos(number)),
        "us" | "µs" => Some(Duration::from_micros(number)),
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        _ => None,
    }
}

impl Noop {
    /// The handler.
    pub fn new() -> Self {
        Self::default()
    }

    fn failures(&self, lease: &StageLease, params: Params) -> Vec<TaskFailure> {
        if params.fail_every == 0 {
            return Vec::new();
        }
        let mut tried = self.tried.lock().unwrap_or_else(PoisonError::into_inner);
        let failing = lease.tasks.iter().filter(|task| task.sequence.is_multiple_of(params.fail_every));
        failing
            .filter(|task| {
                if params.fail_attempts == 0 {
                    return true;
                }
                // No entry is made for a batch whose tasks always fail.
                let tries = tried.entry(lease.batch.name.clone()).or_default().entry(task.sequence);
                let tries = tries.and_modify(|tries| *tries += 1).or_insert(1);
                *tries <= params.fail_attempts
            })
            .map(|task| {
                let message = format!("every {}. task fails, as fail_every asks", params.fail_every);
                TaskFailure::new(task.sequence, "NOOP_FAILED", message)
            })
            .collect()
    }
}

#[async_trait]
impl Handler for Noop {
    fn name(&self) -> &'static str {
        "noop"
    }

    async fn stage(
        &self,
        lease: &StageLease,
        cancel: &CancellationToken,
        progress: &Progress,
    ) -> Result<Staged, HandlerError> {
        let params = match Params::parse(&lease.batch.params) {
            Ok(params) => params,
            Err(error) => return Ok(all_failed(lease, &error)),
        };
        let tasks = lease.tasks.len() as u64;
        let delay = params.delay_per_task.saturating_mul(u32::try_from(tasks).unwrap_or(u32::MAX));
        if !delay.is_zero() && cancel.run_until_cancelled(tokio::time::sleep(delay)).await.is_none() {
            return Err(HandlerError::Cancelled);
        }
        progress.add(tasks);
        Ok(Staged { failures: self.failures(lease, params), receipt: Bytes::new() })
    }

    async fn commit(&self, lease: &CommitLease) -> Result<u64, HandlerError> {
        Ok(lease.tasks())
    }

    async fn rollback(&self, lease: &RollbackLease) -> Result<u64, HandlerError> {
        Ok(lease.range.len())
    }

    async fn publish(&self, _batch: &BatchInfo) -> Result<(), HandlerError> {
        Ok(())
    }

    fn leave(&self, batch: &str) {
        self.tried.lock().unwrap_or_else(PoisonError::into_inner).remove(batch);
    }
}

/// A lease whose target is wrong: nothing of it can be staged by anybody.
pub(super) fn all_failed(lease: &StageLease, error: &ParamError) -> Staged {
    let failure = |sequence| TaskFailure::new(sequence, INVALID_TARGET, error.to_string());
    let failures = lease.tasks.iter().map(|task| failure(task.sequence)).collect();
    Staged { failures, receipt: Bytes::new() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::{Range, Token};
    use crate::tasks::StageTask;

    fn lease(params: &[(&str, &str)], tasks: u64) -> StageLease {
        let range = Range { first: 1, last: tasks };
        let params = params.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        StageLease {
            batch: BatchInfo { name: "b".into(), params, ..Default::default() },
            token: Token { epoch: 1, counter: 1 },
            range,
            runs: vec![range],
            tasks: (1..=tasks).map(|sequence| StageTask { sequence, key: "", payload: b"" }).collect(),
            attempt: 0,
        }
    }

    async fn stage(noop: &Noop, lease: &StageLease) -> Vec<u64> {
        let staged = noop.stage(lease, &CancellationToken::new(), &Progress::default()).await.unwrap();
        staged.failures.into_iter().map(|failure| failure.sequence).collect()
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("5us"), Some(Duration::from_micros(5)));
        assert_eq!(duration("12ms"), Some(Duration::from_millis(12)));
        for wrong in ["", "5", "ms", "5 ms", "-1s", "5h"] {
            assert_eq!(duration(wrong), None, "{wrong}");
        }
    }

    #[tokio::test]
    async fn every_nth_task_fails_until_it_was_tried_often_enough() {
        let noop = Noop::new();
        let always = lease(&[("fail_every", "3")], 10);
        assert_eq!(stage(&noop, &always).await, [3, 6, 9]);
        assert_eq!(stage(&noop, &always).await, [3, 6, 9]);
        let twice = lease(&[("fail_every", "3"), ("fail_attempts", "2")], 10);
        assert_eq!(stage(&noop, &twice).await, [3, 6, 9]);
        assert_eq!(stage(&noop, &twice).await, [3, 6, 9]);
        assert!(stage(&noop, &twice).await.is_empty());
        noop.leave("b");
        assert_eq!(stage(&noop, &twice).await, [3, 6, 9]);
    }

    #[tokio::test]
    async fn wrong_parameters_fail_every_task_and_are_named() {
        let noop = Noop::new();
        for (param, value) in [("delay_per_task", "soon"), ("fail_every", "-1"), ("colour", "blue")] {
            let lease = lease(&[(param, value)], 2);
            let staged = noop.stage(&lease, &CancellationToken::new(), &Progress::default()).await.unwrap();
            assert_eq!(staged.failures.len(), 2);
            assert_eq!(staged.failures[0].code, INVALID_TARGET);
            let message = &staged.failures[0].message;
            assert!(message.contains(param) && message.contains(value), "{message}");
        }
    }

    #[tokio::test]
    async fn a_delay_can_be_cancelled() {
        let cancel = CancellationToken::new();
        cancel.cancel();
        let lease = lease(&[("delay_per_task", "1000s")], 1000);
        let result = Noop::new().stage(&lease, &cancel, &Progress::default()).await;
        assert_eq!(result, Err(HandlerError::Cancelled));
    }
}
