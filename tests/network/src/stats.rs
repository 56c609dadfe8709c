//! What happened in the runs, in numbers: faults that never occur prove nothing.

use crate::plan::{KINDS, Plan};
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// The numbers of runs.
#[derive(Clone, Debug, Default)]
pub struct Numbers {
    /// Runs.
    pub runs: u64,
    /// Virtual time, of all runs.
    pub virtual_time: Duration,
    /// Faults, by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// Tasks that clients submitted.
    pub tasks: u64,
    /// Batches that committed.
    pub committed: u64,
    /// Batches that rolled back.
    pub rolled_back: u64,
    /// Sequence locks taken: one a batch, the others are take-overs.
    pub locks: u64,
    /// Revisions that etcd had.
    pub revisions: u64,
    /// Leases whose staging began.
    pub stages: u64,
    /// Leases whose staging was cancelled.
    pub cancelled_stages: u64,
    /// Tasks that failed since their workers were lost again and again.
    pub lost_tasks: u64,
    /// Staged items that sweeps found.
    pub residue: u64,
}

impl Numbers {
    /// One run's, as far as its plan says.
    pub fn new(plan: &Plan, virtual_time: Duration) -> Self {
        let mut faults = BTreeMap::new();
        for planned in &plan.faults {
            *faults.entry(planned.fault.kind()).or_default() += 1;
        }
        Self { runs: 1, virtual_time, faults, ..Self::default() }
    }

    /// Adds a run's.
    pub fn add(&mut self, other: &Self) {
        self.runs += other.runs;
        self.virtual_time += other.virtual_time;
        for (kind, count) in &other.faults {
            *self.faults.entry(kind).or_default() += count;
        }
        self.tasks += other.tasks;
        self.committed += other.committed;
        self.rolled_back += other.rolled_back;
        self.locks += other.locks;
        self.revisions += other.revisions;
        self.stages += other.stages;
        self.cancelled_stages += other.cancelled_stages;
        self.lost_tasks += other.lost_tasks;
        self.residue += other.residue;
    }

    /// Batches that a coordinator took from another.
    pub fn takeovers(&self) -> u64 {
        self.locks.saturating_sub(self.committed + self.rolled_back)
    }

    /// Kinds of faults that never occurred.
    pub fn missing(&self) -> Vec<&'static str> {
        KINDS.into_iter().filter(|kind| !self.faults.contains_key(kind)).collect()
    }
}

impl fmt::Display for Numbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} runs, {:.0} virtual minutes", self.runs, self.virtual_time.as_secs_f64() / 60.0)?;
        let faults: Vec<_> = self.faults.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        writeln!(f, "faults: {}", faults.join(", "))?;
        writeln!(
            f,
            "batches: {} committed, {} rolled back, {} tasks, {} take-overs",
            self.committed,
            self.rolled_back,
            self.tasks,
            self.takeovers()
        )?;
        write!(
            f,
            "leases: {} staged, {} of them cancelled; {} tasks lost with their workers, residue {}; {} revisions",
            self.stages, self.cancelled_stages, self.lost_tasks, self.residue, self.revisions
        )
    }
}
