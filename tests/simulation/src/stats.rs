//! What was injected and what came of it: a run that never injects a fault proves nothing.

use std::fmt;

/// Makes an enum of things that are counted, with their names.
macro_rules! counted {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal,)+) => {
        /// Something that is counted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Count {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Count {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// In words.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)+
                }
            }
        }
    };
}

counted! {
    /// A coordinator's host was lost at once.
    CoordinatorCrash = "coordinator crashes",
    /// A coordinator was asked to leave.
    CoordinatorLeaves = "coordinators asked to leave",
    /// A coordinator's host stood still for less than its session lives.
    CoordinatorPause = "coordinator pauses",
    /// A coordinator's host stood still for longer than its session lives.
    CoordinatorLongPause = "coordinator pauses beyond its session",
    /// A worker's host was lost at once.
    WorkerCrash = "worker crashes",
    /// A worker was asked to end.
    WorkerLeaves = "workers asked to end",
    /// A worker's host stood still for less than its leases live.
    WorkerPause = "worker pauses",
    /// A worker's host stood still for longer than its leases live.
    WorkerLongPause = "worker pauses beyond its leases",
    /// A task killed its worker.
    Poison = "workers killed by a task",
    /// A coordinator couldn't reach the store for a while.
    StorePartition = "partitions from the store",
    /// The store refused a call, unchanged.
    StoreUnavailable = "store calls unavailable",
    /// A transaction was carried out and its answer lost.
    AnswerLost = "answers lost, carried out",
    /// A transaction was lost with its answer.
    AnswerNever = "answers lost, never carried out",
    /// A transaction came to the store long after its caller gave up.
    AnswerLate = "answers lost, carried out late",
    /// A read's answer was lost.
    ReadLost = "reads lost",
    /// The object storage was slow.
    ObjectsSlow = "object storage calls slow",
    /// The object storage was away.
    ObjectsAway = "object storage calls failed",
    /// A watch brought events late.
    WatchLag = "watches late",
    /// A watch missed events.
    WatchMissed = "watches that missed events",
    /// The store ended a session although it was kept alive.
    SessionTaken = "sessions ended by the store",
    /// No coordinator could reach the store for a while.
    StoreOutage = "store outages",
    /// All coordinators were lost at once.
    AllCrash = "crashes of all coordinators",
    /// A clock on the wall was set.
    ClockSet = "clocks set",
    /// A session ended before its holder knew.
    SessionExpired = "sessions expired",
    /// A stream was cut, with what was in flight.
    StreamCut = "streams cut",
    /// One direction of a link was silent for a while.
    LinkSilent = "links silent in one direction",
    /// A worker and a coordinator couldn't reach each other for a while.
    LinkPartition = "partitions of a worker and a coordinator",
    /// A worker couldn't reach any coordinator for a while.
    WorkerAlone = "workers apart from all coordinators",
    /// A worker was lost just after it stood still.
    PausedThenLost = "workers lost just after a pause",
    /// A coordinator refused to be dialled.
    DialRefused = "dials refused",
    /// A frame came twice.
    FrameTwice = "frames that came twice",
    /// A frame came long after it was sent.
    FrameLate = "frames late",
    /// An old stream's frame came after the next stream's first.
    FrameReordered = "frames of an old stream after the new one's",
    /// A handler failed as a whole.
    HandlerError = "handler errors",
    /// A handler hung while it wrote.
    StuckWrite = "writes that hung",
    /// What wasn't synced was lost with its worker.
    UnsyncedLost = "unsynced items lost",
    /// A worker was much slower than the others.
    SlowWorker = "slow workers",
    /// Hosts' clocks differed.
    ClockSkew = "hosts with skewed clocks",
    /// A client's call got no answer.
    CallLost = "client calls without an answer",
    /// A client repeated a call that was done.
    CallTwice = "client calls repeated",
    /// A batch was made.
    Batch = "batches",
    /// A task was appended.
    Task = "tasks",
    /// A batch got another owner.
    TakeOver = "take-overs",
    /// A range was split.
    Split = "splits",
    /// A backup lease was given.
    Backup = "backup leases",
    /// A range was leased again.
    Again = "ranges leased again",
    /// A batch was decided: commit.
    Commit = "commits",
    /// A batch was decided: rollback.
    Rollback = "rollbacks",
    /// Failed tasks were retried.
    Retry = "retries of failed tasks",
    /// A batch's records were deleted.
    Delete = "deleted batches",
    /// A batch was swept once more.
    LateSweep = "late sweeps",
    /// Residue was found by a sweep.
    Residue = "residue swept",
    /// Something was staged of a batch that had ended.
    LateWrite = "writes after their batch's end",
    /// Something changed in the store.
    Revision = "store revisions",
    /// A frame travelled.
    Frame = "frames",
}

/// How often each happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stats(Vec<u64>);

impl Default for Stats {
    fn default() -> Self {
        Self(vec![0; Count::ALL.len()])
    }
}

impl Stats {
    /// It happened `times` more.
    pub fn add(&mut self, count: Count, times: u64) {
        self.0[count as usize] += times;
    }

    /// How often.
    pub fn of(&self, count: Count) -> u64 {
        self.0[count as usize]
    }

    /// Adds another run's.
    pub fn join(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(&other.0) {
            *mine += theirs;
        }
    }

    /// What never happened.
    pub fn never(&self) -> Vec<Count> {
        Count::ALL.iter().copied().filter(|count| self.of(*count) == 0).collect()
    }
}

impl fmt::Display for Stats {
    /// A line each.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for count in Count::ALL {
            writeln!(f, "{:>12}  {}", self.of(*count), count.name())?;
        }
        Ok(())
    }
}
