//! What a state of the model is made of.
//!
//! Identities are kept small: a revision is one bit (is this view still what the store holds?), an epoch is one
//! bit (is this the lock that is held?), a token is a place in its range's list of attempts.

use std::ops::{Index, IndexMut};

/// Ranges, at most. One task each.
pub const RANGES: usize = 3;
/// Attempts of one range, at most.
pub const ATTEMPTS: usize = 3;
/// Coordinators.
pub const COORDINATORS: usize = 2;
/// Workers. Each holds at most one lease, so that a worker is known by the attempt that it works on.
pub const WORKERS: usize = 3;

/// Attempts of one range, one bit each.
pub type Mask = u8;

/// Where the batch stands: `StateRecord.state`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// Ranges are leased for staging.
    #[default]
    Importing,
    /// Decided: winners are made final.
    Committing,
    /// Decided: everything staged is removed.
    RollingBack,
    /// The end.
    Committed,
    /// The end.
    RolledBack,
}

/// What was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Outcome {
    /// All is made final.
    Commit,
    /// Nothing is left.
    Rollback,
}

/// The decision's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Decision {
    /// What.
    pub outcome: Outcome,
    /// The cut-off that it froze.
    pub cutoff: u8,
}

/// The state record: it is in every write of an owner, whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StateRecord {
    /// Where the batch stands.
    pub phase: Phase,
    /// Ranges counted as staged.
    pub staged: u8,
    /// Ranges counted as failed.
    pub failed: u8,
    /// Ranges counted as made final.
    pub committed: u8,
    /// Ranges counted as rolled back.
    pub rolled_back: u8,
    /// A worker was lost that never said that it stopped.
    pub late_sweep: bool,
    /// Folded: the batch needs no owner.
    pub swept: bool,
}

/// How far a range is: `RangeRecord.phase`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RangePhase {
    /// After the cut-off: there is no record.
    #[default]
    Undealt,
    /// Leased for staging, or to be leased again.
    Leased,
    /// Accounted for.
    Staged,
    /// Its winners are final.
    Committed,
    /// Nothing of it is left.
    RolledBack,
}

/// A range's record. Losers are the attempts that are neither leased nor winners.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RangeRecord {
    /// How far it is.
    pub phase: RangePhase,
    /// It was counted as failed.
    pub failed: bool,
    /// The lease that is out; two, if one of them is the backup.
    pub lease: Mask,
    /// The attempts that count.
    pub winners: Mask,
}

/// An attempt at its worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Side {
    /// The worker is done with it, and knows that it doesn't count; or it died; or never heard of it.
    #[default]
    Over,
    /// The worker was told that it counts.
    Counted,
    /// Granted durably; the first coordinator is about to send it.
    SendingA,
    /// Granted durably; the second coordinator is about to send it.
    SendingB,
    /// Being staged.
    Held,
    /// Staged; the report is kept until it is settled.
    Done,
    /// Being staged by a worker that is paused.
    Dozing,
    /// Being staged by a worker that was paused, and may not have noticed that its time is over.
    Late,
    /// Staged by such a worker; the report is kept.
    LateDone,
    /// Such a worker died after it had staged.
    LateOver,
}

impl Side {
    /// In delivery by this coordinator.
    pub fn sending(coordinator: usize) -> Self {
        if coordinator == 0 { Self::SendingA } else { Self::SendingB }
    }

    /// A worker is busy with it.
    pub fn busy(self) -> bool {
        !matches!(self, Self::Over | Self::Counted | Self::LateOver)
    }

    /// It is being staged, or will be once it is delivered.
    pub fn staging(self) -> bool {
        matches!(self, Self::SendingA | Self::SendingB | Self::Held | Self::Dozing | Self::Late)
    }

    /// Its worker was paused while it staged.
    pub fn late(self) -> bool {
        matches!(self, Self::Dozing | Self::Late | Self::LateDone | Self::LateOver)
    }
}

/// What is there under an attempt's token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Data {
    /// Nothing.
    #[default]
    None,
    /// Staged: no reader sees it.
    Staged,
    /// In the library.
    Public,
}

/// One lease for staging, from its grant on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Attempt {
    /// At its worker.
    pub side: Side,
    /// In the target.
    pub data: Data,
    /// It isn't the lease any more, and its worker was told to stop: the owner waits for that.
    pub awaited: bool,
}

/// A range: its record, and its attempts in the world.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Range {
    /// As stored.
    pub record: RangeRecord,
    /// How many attempts there were.
    pub len: u8,
    /// The attempts. A token is a place in this list.
    pub attempts: [Attempt; ATTEMPTS],
}

/// What a write does, for what follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A lease for staging.
    Grant,
    /// A report counts.
    Count,
    /// A lease is lost.
    Lose,
    /// The state follows another's decision.
    Enter,
    /// A range is rolled back, or final.
    Finish,
    /// The batch is at its end.
    End,
    /// The batch is folded, and its lock is given back.
    Fold,
    /// A second copy of a write that was carried out.
    Echo,
}

/// A transaction of an owner on its way to the store: what it compares, and what it puts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Write {
    /// What it does.
    pub kind: Kind,
    /// Compare: the lock's create revision is still the writer's epoch.
    pub epoch_holds: bool,
    /// Compare: the records are still those that the writer saw.
    pub records_hold: bool,
    /// Compare: nobody has decided.
    pub undecided: bool,
    /// Put: the state record.
    pub state: StateRecord,
    /// Put: the decision.
    pub decision: Option<Decision>,
    /// Put: the cut-off.
    pub cutoff: Option<u8>,
    /// Put: the record of this range (of none, if it is [`RANGES`]).
    pub range: u8,
    /// The range's record.
    pub record: RangeRecord,
    /// The attempt that it is about; none for a grant, whose token is named when it is carried out.
    pub attempt: Mask,
}

/// One coordinator, as far as the batch goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Coordinator {
    /// It believes to own the batch: it drives it.
    pub owner: bool,
    /// Its epoch is the lock's.
    pub epoch_holds: bool,
    /// A younger owner came after it.
    pub overtaken: bool,
    /// It knows of the decision.
    pub heard: bool,
    /// Its write in flight.
    pub write: Option<Write>,
}

/// A client's CancelBatch, at any coordinator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cancel {
    /// It may come, or has to read again.
    #[default]
    Open,
    /// Read; its transaction is on its way.
    Sent {
        /// The cut-off as it was read.
        cutoff: u8,
        /// Compare: the cut-off's record is still that one.
        cutoff_holds: bool,
    },
    /// Answered, or lost.
    Over,
}

/// What a step did that no step may do. A state can't show it any more afterwards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Broken {
    /// A write of an older epoch was carried out.
    pub fence: bool,
    /// A decision was written where one was.
    pub decided_twice: bool,
    /// A report counted under a token that wasn't the lease's.
    pub stale_report: bool,
    /// The state, or a range's, left along no line of the table.
    pub state_order: bool,
    /// The cut-off went back.
    pub cutoff_back: bool,
    /// ROLLED_BACK was said after a sweep that had found something.
    pub unclean_end: bool,
    /// A winner's data was gone when it was to be made final.
    pub winner_lost: bool,
}

/// A state of the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct State {
    /// The state record.
    pub record: StateRecord,
    /// The decision's key.
    pub decision: Option<Decision>,
    /// The cut-off's record.
    pub cutoff: u8,
    /// The lock's key is there.
    pub locked: bool,
    /// The ranges.
    pub ranges: [Range; RANGES],
    /// The coordinators.
    pub coordinators: [Coordinator; COORDINATORS],
    /// A write that the network kept: its sender has given it up.
    pub stray: Option<Write>,
    /// The client.
    pub cancel: Cancel,
    /// Faults so far, of any kind.
    pub faults: u8,
    /// What must not happen.
    pub broken: Broken,
}

impl Index<(usize, usize)> for State {
    type Output = Attempt;

    fn index(&self, (range, attempt): (usize, usize)) -> &Attempt {
        &self.ranges[range].attempts[attempt]
    }
}

impl IndexMut<(usize, usize)> for State {
    fn index_mut(&mut self, (range, attempt): (usize, usize)) -> &mut Attempt {
        &mut self.ranges[range].attempts[attempt]
    }
}

impl State {
    /// The writes that are on their way.
    pub fn writes_mut(&mut self) -> impl Iterator<Item = &mut Option<Write>> {
        self.coordinators.iter_mut().map(|c| &mut c.write).chain(std::iter::once(&mut self.stray))
    }

    /// The writes that are on their way.
    pub fn writes(&self) -> impl Iterator<Item = &Write> {
        self.coordinators.iter().filter_map(|c| c.write.as_ref()).chain(&self.stray)
    }

    /// Every attempt: its range, its place, itself.
    pub fn attempts(&self) -> impl Iterator<Item = (usize, usize, Attempt)> {
        self.ranges.iter().enumerate().flat_map(|(r, range)| {
            range.attempts[..usize::from(range.len)]
                .iter()
                .enumerate()
                .map(move |(a, attempt)| (r, a, *attempt))
        })
    }

    /// The outcome, if decided.
    pub fn outcome(&self) -> Option<Outcome> {
        self.decision.map(|decision| decision.outcome)
    }

    /// The batch has ended.
    pub fn ended(&self) -> bool {
        matches!(self.record.phase, Phase::Committed | Phase::RolledBack)
    }

    /// The attempt isn't the lease that is out, doesn't count, or the batch was decided against it.
    pub fn lost(&self, range: usize, attempt: usize) -> bool {
        let record = &self.ranges[range].record;
        let bit = 1 << attempt;
        record.winners & bit == 0
            && (record.lease & bit == 0 || self.outcome().is_some() || self.record.swept)
    }
}
