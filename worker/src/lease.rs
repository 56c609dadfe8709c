//! What a coordinator asks of a handler, checked once and turned into plain types.

use crate::tasks::StageTasks;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::fmt;
use tranche_proto::{TaskList, v1};

/// Fencing token of a lease: unique for ever.
///
/// Whatever a handler stages belongs under its token, because several attempts may have worked on the
/// same task and only the one that the coordinator names at commit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token {
    /// The epoch of the batch's owner that granted the lease.
    pub epoch: u64,
    /// Counts the leases of that owner.
    pub counter: u64,
}

impl fmt::Display for Token {
    /// `{epoch}-{counter}`: fit for a file name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch, self.counter)
    }
}

impl From<v1::Token> for Token {
    fn from(token: v1::Token) -> Self {
        Self { epoch: token.epoch, counter: token.counter }
    }
}

impl From<Token> for v1::Token {
    fn from(token: Token) -> Self {
        Self { epoch: token.epoch, counter: token.counter }
    }
}

/// Consecutive sequence numbers, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Range {
    /// The first, at least 1.
    pub first: u64,
    /// The last, at least `first`.
    pub last: u64,
}

impl Range {
    /// How many sequence numbers are in it.
    pub fn len(&self) -> u64 {
        self.last - self.first + 1
    }

    /// Never: a range holds at least one number.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Whether the number is in it.
    pub fn contains(&self, sequence: u64) -> bool {
        (self.first..=self.last).contains(&sequence)
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {}]", self.first, self.last)
    }
}

/// How many sequence numbers are in the runs.
pub fn count(runs: &[Range]) -> u64 {
    runs.iter().map(Range::len).sum()
}

/// Whether the number is in one of the runs, which are in order.
pub fn contains(runs: &[Range], sequence: u64) -> bool {
    let after = runs.partition_point(|run| run.first <= sequence);
    after > 0 && runs[after - 1].contains(sequence)
}

/// What every lease says of its batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BatchInfo {
    /// The batch's name as the coordinator gave it, for instance `namespaces/default/batches/{id}`.
    pub name: String,
    /// The parameters of the batch's target.
    pub params: BTreeMap<String, String>,
    /// When the batch was created, in milliseconds since 1970.
    pub create_time_ms: i64,
    /// At publish: how many tasks the batch staged. 0 at other phases.
    pub staged: u64,
}

impl BatchInfo {
    /// The batch's id: the last part of its name. Never used twice.
    pub fn id(&self) -> &str {
        self.name.rsplit('/').next().unwrap_or_default()
    }
}

/// A lease to stage tasks where no reader sees them.
#[derive(Clone, Debug, PartialEq)]
pub struct StageLease {
    /// The batch.
    pub batch: BatchInfo,
    /// The lease's token.
    pub token: Token,
    /// The range that the lease is cut from.
    pub range: Range,
    /// The sequence numbers to stage, in order, inside the range.
    pub runs: Vec<Range>,
    /// The tasks, in the order of the runs.
    pub tasks: StageTasks,
    /// How often this range was leased before in this phase.
    pub attempt: u32,
}

/// What one attempt staged.
#[derive(Clone, Debug, PartialEq)]
pub struct Attempt {
    /// The token under which the data was staged.
    pub token: Token,
    /// The sequence numbers that it staged, in order.
    pub runs: Vec<Range>,
    /// What the handler returned; empty for an attempt that never reported.
    pub receipt: Bytes,
}

/// A lease to make staged tasks final.
#[derive(Clone, Debug, PartialEq)]
pub struct CommitLease {
    /// The batch.
    pub batch: BatchInfo,
    /// This lease's own token (nothing was staged under it).
    pub token: Token,
    /// The range.
    pub range: Range,
    /// The attempts that won, with the numbers that each won.
    pub attempts: Vec<Attempt>,
    /// How often this range was leased before in this phase.
    pub attempt: u32,
}

impl CommitLease {
    /// How many tasks it makes final.
    pub fn tasks(&self) -> u64 {
        self.attempts.iter().map(|attempt| count(&attempt.runs)).sum()
    }
}

/// A lease to remove what was staged.
#[derive(Clone, Debug, PartialEq)]
pub struct RollbackLease {
    /// The batch.
    pub batch: BatchInfo,
    /// This lease's own token: nothing was staged under it. When a worker removes a lost attempt of its own,
    /// that attempt's token.
    pub token: Token,
    /// The range.
    pub range: Range,
    /// Every attempt that there ever was, the ones that never reported too; or the one that was lost.
    pub attempts: Vec<Attempt>,
    /// How often this range was leased before in this phase.
    pub attempt: u32,
}

/// What a lease asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Work {
    /// Stage tasks.
    Stage(StageLease),
    /// Make them final.
    Commit(CommitLease),
    /// Remove them.
    Rollback(RollbackLease),
    /// Finish the batch in one step.
    Publish(BatchInfo),
    /// Remove whatever is left of it.
    Sweep(BatchInfo),
}

impl Work {
    /// What it asks, in a word.
    pub(crate) fn phase(&self) -> &'static str {
        match self {
            Self::Stage(_) => "stage",
            Self::Commit(_) => "commit",
            Self::Rollback(_) => "rollback",
            Self::Publish(_) => "publish",
            Self::Sweep(_) => "sweep",
        }
    }

    /// Its batch.
    pub(crate) fn batch(&self) -> &BatchInfo {
        match self {
            Self::Stage(lease) => &lease.batch,
            Self::Commit(lease) => &lease.batch,
            Self::Rollback(lease) => &lease.batch,
            Self::Publish(batch) | Self::Sweep(batch) => batch,
        }
    }

    /// Checks an assembled grant, whose tasks came in pieces.
    ///
    /// # Errors
    /// What is wrong with it, for people: an unknown phase, a range or runs that are none, tasks that
    /// don't fit the runs.
    pub fn from_grant(grant: v1::Grant, tasks: Vec<Bytes>) -> Result<Self, String> {
        let phase = v1::Phase::try_from(grant.phase).unwrap_or(v1::Phase::Unspecified);
        let token = grant.token.map(Token::from).ok_or("the grant has no token")?;
        let batch = BatchInfo {
            name: grant.batch,
            params: grant.params.into_iter().collect(),
            create_time_ms: grant.batch_create_time_ms,
            staged: u64::try_from(grant.staged).unwrap_or(0),
        };
        if matches!(phase, v1::Phase::Publish) {
            return Ok(Self::Publish(batch));
        }
        if matches!(phase, v1::Phase::Sweep) {
            return Ok(Self::Sweep(batch));
        }
        let attempt = u32::try_from(grant.attempt).unwrap_or(0);
        let range = || range(grant.range.ok_or("the grant has no range")?);
        match phase {
            v1::Phase::Stage => {
                let range = range()?;
                let runs = runs(grant.runs)?;
                let unreadable = |error: prost::DecodeError| format!("the tasks can't be read: {error}");
                let pieces =
                    tasks.into_iter().map(TaskList::decode).collect::<Result<_, _>>().map_err(unreadable)?;
                let tasks = StageTasks::new(runs.clone(), pieces)?;
                Ok(Self::Stage(StageLease { batch, token, range, runs, tasks, attempt }))
            }
            v1::Phase::Commit => {
                let attempts = attempts(grant.attempts)?;
                Ok(Self::Commit(CommitLease { batch, token, range: range()?, attempts, attempt }))
            }
            v1::Phase::Rollback => {
                let attempts = attempts(grant.attempts)?;
                Ok(Self::Rollback(RollbackLease { batch, token, range: range()?, attempts, attempt }))
            }
            v1::Phase::Unspecified | v1::Phase::Publish | v1::Phase::Sweep => {
                Err(format!("phase {} is not known to this worker", grant.phase))
            }
        }
    }
}

fn range(range: v1::Range) -> Result<Range, String> {
    match (u64::try_from(range.first), u64::try_from(range.last)) {
        (Ok(first), Ok(last)) if first >= 1 && last >= first => Ok(Range { first, last }),
        _ => Err(format!("[{}, {}] is no range", range.first, range.last)),
    }
}

fn runs(runs: Vec<v1::Range>) -> Result<Vec<Range>, String> {
    let runs: Vec<Range> = runs.into_iter().map(range).collect::<Result<_, _>>()?;
    match runs.windows(2).find(|pair| pair[1].first <= pair[0].last) {
        Some(pair) => Err(format!("run {} is not after run {}", pair[1], pair[0])),
        None => Ok(runs),
    }
}

fn attempts(attempts: Vec<v1::StagedAttempt>) -> Result<Vec<Attempt>, String> {
    let attempt = |attempt: v1::StagedAttempt| {
        Ok(Attempt {
            token: attempt.token.ok_or("an attempt has no token")?.into(),
            runs: runs(attempt.runs)?,
            receipt: attempt.receipt,
        })
    };
    attempts.into_iter().map(attempt).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(phase: i32) -> v1::Grant {
        v1::Grant {
            batch: "namespaces/default/batches/b1".into(),
            token: Some(v1::Token { epoch: 3, counter: 9 }),
            phase,
            range: Some(v1::Range { first: 1, last: 9 }),
            ..Default::default()
        }
    }

    #[test]
    fn tasks_get_the_sequence_numbers_of_the_runs() {
        let mut grant = grant(v1::Phase::Stage as i32);
        grant.runs = vec![v1::Range { first: 2, last: 3 }, v1::Range { first: 7, last: 7 }];
        let tasks = |keys: &[&str]| -> Bytes {
            let task = |key: &&str| v1::Task { key: (*key).into(), payload: Bytes::new() };
            keys.iter().map(task).collect::<TaskList>().bytes().clone()
        };
        let pieces = vec![tasks(&["a", "b"]), tasks(&["c"])];
        let Ok(Work::Stage(lease)) = Work::from_grant(grant, pieces) else { panic!("a stage lease") };
        let numbers: Vec<_> = lease.tasks.iter().map(|t| (t.sequence, t.key)).collect();
        assert_eq!(numbers, [(2, "a"), (3, "b"), (7, "c")]);
        assert_eq!(lease.batch.id(), "b1");
        assert_eq!(lease.token.to_string(), "3-9");
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        let mut short = grant(v1::Phase::Stage as i32);
        short.runs = vec![v1::Range { first: 1, last: 2 }];
        assert_eq!(Work::from_grant(short, vec![]).unwrap_err(), "0 tasks came for 2 sequence numbers");

        let mut overlap = grant(v1::Phase::Stage as i32);
        overlap.runs = vec![v1::Range { first: 1, last: 2 }, v1::Range { first: 2, last: 3 }];
        assert_eq!(Work::from_grant(overlap, vec![]).unwrap_err(), "run [2, 3] is not after run [1, 2]");

        let mut backwards = grant(v1::Phase::Commit as i32);
        backwards.range = Some(v1::Range { first: 5, last: 4 });
        assert_eq!(Work::from_grant(backwards, vec![]).unwrap_err(), "[5, 4] is no range");
    }

    #[test]
    fn an_unknown_phase_is_refused() {
        assert_eq!(Work::from_grant(grant(77), vec![]).unwrap_err(), "phase 77 is not known to this worker");
        assert_eq!(Work::from_grant(grant(0), vec![]).unwrap_err(), "phase 0 is not known to this worker");
    }

    #[test]
    fn numbers_are_found_in_runs() {
        let runs = [Range { first: 2, last: 3 }, Range { first: 7, last: 9 }];
        let found: Vec<u64> = (0..12).filter(|n| contains(&runs, *n)).collect();
        assert_eq!(found, [2, 3, 7, 8, 9]);
        assert_eq!(count(&runs), 5);
    }
}
