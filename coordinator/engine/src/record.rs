//! What the store holds of a batch, as the engine sees it.

use crate::Phase;
use crate::ids::{Token, WorkerKey};
use crate::runs::{Run, Runs};
use std::collections::BTreeMap;

/// Where a batch stands. Leaves only along this table:
///
/// | from | to | when |
/// | --- | --- | --- |
/// | Importing | Committing | all accounted for, decision COMMIT |
/// | Importing | Held | all accounted for, the spec asks for approval |
/// | Importing, Held | RollingBack | decision ROLLBACK |
/// | Held | Committing | decision COMMIT |
/// | Held | Importing | failed tasks are retried |
/// | Committing | Committed | every range committed, and published |
/// | RollingBack | RolledBack | every range rolled back, no residue |
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum State {
    /// Tasks are being appended, leased and staged.
    #[default]
    Importing,
    /// Decided COMMIT: ranges are being made final.
    Committing,
    /// Decided ROLLBACK: staged data is being removed.
    RollingBack,
    /// Final.
    Committed,
    /// Final.
    RolledBack,
    /// All staged; waits for an approval.
    Held,
}

impl State {
    /// Nothing follows.
    pub fn is_final(self) -> bool {
        match self {
            Self::Committed | Self::RolledBack => true,
            Self::Importing | Self::Committing | Self::RollingBack | Self::Held => false,
        }
    }
}

/// What was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Staged data becomes final.
    Commit,
    /// Staged data is removed.
    Rollback,
}

impl Outcome {
    /// What the batch's ranges are leased for then.
    pub fn phase(self) -> Phase {
        match self {
            Self::Commit => Phase::Commit,
            Self::Rollback => Phase::Rollback,
        }
    }
}

/// Why it was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// All tasks are accounted for.
    AllAccounted,
    /// Somebody approved.
    Approved,
    /// Somebody cancelled.
    Cancelled,
    /// Too many tasks failed.
    FailureLimit,
    /// The deadline passed.
    Deadline,
}

/// The decision: written once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What.
    pub outcome: Outcome,
    /// Why.
    pub reason: Reason,
    /// Who; empty: the owner itself.
    pub actor: String,
    /// A line for people.
    pub message: String,
    /// The cut-off, frozen.
    pub cutoff: u64,
    /// When, in milliseconds since 1970.
    pub decide_time_ms: i64,
}

/// The state record. Its counts change in the same write as the ranges they count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StateRecord {
    /// Where the batch stands.
    pub state: State,
    /// No more tasks come.
    pub sealed: bool,
    /// Tasks appended.
    pub total: u64,
    /// Tasks staged.
    pub staged: u64,
    /// Tasks failed.
    pub failed: u64,
    /// Tasks made final.
    pub committed: u64,
    /// Tasks of ranges that were rolled back.
    pub rolled_back: u64,
    /// The target was told that all is committed.
    pub published: bool,
    /// Swept and folded: the batch needs no owner any more.
    pub swept: bool,
    /// What sweeps found and removed.
    pub residue_removed: u64,
    /// When the state last changed, in milliseconds since 1970.
    pub update_time_ms: i64,
    /// When it became final; 0: it isn't.
    pub end_time_ms: i64,
    /// When it was decided; 0: it isn't.
    pub decide_time_ms: i64,
    /// The cut-off, once final.
    pub cutoff: u64,
    /// A worker was lost while it staged, and never said that it stopped: some time after the end it is
    /// swept once more.
    pub late_sweep: bool,
}

/// How far the sequence was dealt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cutoff {
    /// The highest number ever leased for staging.
    pub cutoff: u64,
    /// Counter of the next token.
    pub next_token: u64,
}

/// Where consecutive tasks are in object storage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The tasks.
    pub run: Run,
    /// The object's path.
    pub object: String,
    /// Where in it they begin.
    pub offset: u64,
    /// How many bytes they are.
    pub bytes: u64,
    /// Their CRC-32C.
    pub crc32c: u32,
}

/// How far a range is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangePhase {
    /// Leased for staging, or to be leased again.
    Leased,
    /// All its tasks are accounted for.
    Staged,
    /// Its staged tasks are final.
    Committed,
    /// Nothing of it is left.
    RolledBack,
}

/// A lease for staging, as recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Its token.
    pub token: Token,
    /// Who holds it.
    pub worker: WorkerKey,
    /// The tasks.
    pub runs: Runs,
}

/// An attempt that doesn't count, and may be staging yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stopping {
    /// Its token; among the losers, too.
    pub token: Token,
    /// Who was told to stop.
    pub worker: WorkerKey,
}

/// An attempt that counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Winner {
    /// Its token.
    pub token: Token,
    /// The worker's id.
    pub worker: String,
    /// What it staged; empty: all its tasks failed.
    pub runs: Runs,
    /// What the handler returned.
    pub receipt: Vec<u8>,
}

/// Failures that the engine itself found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InlineFailure {
    /// The tasks.
    pub runs: Runs,
    /// A word that programs match.
    pub code: String,
    /// What happened.
    pub message: String,
}

/// Lost attempts that a range remembers. What older ones left is found by the sweep, which asks for no
/// tokens.
const MAX_LOSERS: usize = 256;

/// One range, from its first lease on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeRecord {
    /// Its numbers.
    pub run: Run,
    /// How far it is.
    pub phase: RangePhase,
    /// The lease for staging that is out, or was lost.
    pub lease: Option<Lease>,
    /// A second lease for the tasks of `lease`, which is slow: the first report counts. Never there without
    /// `lease`, whose place it takes when that one ends without counting.
    pub backup: Option<Lease>,
    /// The attempts that count.
    pub winners: Vec<Winner>,
    /// Tokens of attempts that don't, the newest 256; something may be staged under them.
    pub losers: Vec<Token>,
    /// Attempts whose workers were told to stop, and hadn't said that they have when this was written: the
    /// next owner waits for them as this one does.
    pub stopping: Vec<Stopping>,
    /// The tasks that failed.
    pub failed_runs: Runs,
    /// Objects with the failures that workers reported, oldest first.
    pub failure_objects: Vec<String>,
    /// Failures that the engine found.
    pub inline_failures: Vec<InlineFailure>,
    /// Workers lost while they held a lease of it.
    pub losses: u32,
    /// Leases that failed as a whole, in a row.
    pub errors: u32,
}

impl RangeRecord {
    pub(crate) fn new(run: Run) -> Self {
        Self {
            run,
            phase: RangePhase::Leased,
            lease: None,
            backup: None,
            winners: Vec::new(),
            losers: Vec::new(),
            stopping: Vec::new(),
            failed_runs: Runs::default(),
            failure_objects: Vec::new(),
            inline_failures: Vec::new(),
            losses: 0,
            errors: 0,
        }
    }

    /// Tasks staged.
    pub fn staged(&self) -> u64 {
        self.winners.iter().map(|winner| winner.runs.count()).sum()
    }

    /// Tasks failed.
    pub fn failed(&self) -> u64 {
        self.failed_runs.count()
    }

    /// The tasks that are neither staged nor failed.
    pub fn missing(&self) -> Runs {
        let mut missing = Runs::from(self.run).minus(&self.failed_runs);
        for winner in &self.winners {
            missing = missing.minus(&winner.runs);
        }
        missing
    }

    /// Its leases for staging.
    pub(crate) fn leases(&self) -> impl Iterator<Item = &Lease> {
        self.lease.iter().chain(&self.backup)
    }

    /// Their tokens.
    pub(crate) fn tokens(&self) -> Vec<Token> {
        self.leases().map(|lease| lease.token).collect()
    }

    /// The lease ended; its backup takes its place. False: it isn't one of this range's.
    pub(crate) fn end_lease(&mut self, token: Token) -> bool {
        let is = |lease: &Option<Lease>| lease.as_ref().is_some_and(|lease| lease.token == token);
        if is(&self.lease) {
            self.lease = self.backup.take();
            return true;
        }
        self.backup.take_if(|backup| backup.token == token).is_some()
    }

    /// The lease was lost, or didn't count: something may be staged under its token.
    pub(crate) fn drop_lease(&mut self, token: Token) {
        if self.end_lease(token) {
            self.lose(token);
        }
    }

    /// Counts an attempt. One that staged nothing is kept too, to know a repeat of its report; the newest
    /// is enough.
    pub(crate) fn win(&mut self, winner: Winner) {
        if winner.runs.is_empty() {
            for older in self.winners.extract_if(.., |winner| winner.runs.is_empty()).collect::<Vec<_>>() {
                self.lose(older.token);
            }
        }
        // One is the rule, and a large batch has thousands of ranges: no room for more is kept.
        self.winners.reserve_exact(1);
        self.winners.push(winner);
    }

    /// Something may be staged under this token, and it doesn't count.
    pub(crate) fn lose(&mut self, token: Token) {
        if self.losers.len() >= MAX_LOSERS {
            self.losers.remove(0);
        }
        self.losers.push(token);
    }

    /// About how many bytes the record takes.
    pub(crate) fn weight(&self) -> usize {
        let runs = |runs: &Runs| runs.iter().len() * 6;
        let winners: usize = self.winners.iter().map(|w| 64 + w.receipt.len() + runs(&w.runs)).sum();
        let objects: usize = self.failure_objects.iter().map(|o| o.len() + 4).sum();
        let inline: usize = self.inline_failures.iter().map(|f| 32 + f.message.len() + runs(&f.runs)).sum();
        let leases: usize = self.leases().map(|lease| 96 + runs(&lease.runs)).sum();
        let lost = self.losers.len() * 16 + self.stopping.len() * 96;
        128 + winners + objects + inline + leases + lost + runs(&self.failed_runs)
    }
}

/// Everything the store holds of a batch that the engine needs.
#[derive(Clone, Debug, Default)]
pub struct Records {
    /// Where it stands.
    pub state: StateRecord,
    /// The decision.
    pub decision: Option<Decision>,
    /// The cut-off.
    pub cutoff: Cutoff,
    /// The manifest, by first number.
    pub segments: BTreeMap<u64, Segment>,
    /// The ranges, by first number.
    pub ranges: BTreeMap<u64, RangeRecord>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Epoch;

    /// What an owner keeps of every range until the batch's end: the part of its memory that grows with a batch.
    #[test]
    fn a_staged_range_takes_less_than_half_a_kilobyte() {
        let run = Run::new(1, 16_384);
        let (token, worker) = (Token { epoch: Epoch(7), counter: 1 }, WorkerKey::new("worker-1", "life-1"));
        let mut range = RangeRecord::new(run);
        range.lease = Some(Lease { token, worker: worker.clone(), runs: run.into() });
        range.end_lease(token);
        range.win(Winner { token, worker: worker.id.to_string(), runs: run.into(), receipt: Vec::new() });
        let winner = size_of::<Winner>() + worker.id.len() + size_of::<Run>();
        let heap = range.winners.capacity() * winner;
        assert!(size_of::<RangeRecord>() + heap < 512, "{} + {heap} bytes", size_of::<RangeRecord>());
    }
}
