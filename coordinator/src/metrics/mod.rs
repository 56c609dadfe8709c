//! What is counted as it happens; what is only looked at when somebody asks is in [`live`].
//!
//! Each coordinator has a set of its own, so that several live in one process. Nothing is counted a task: by
//! transaction, lease, call. No label says which batch or which worker: labels have few values, known beforehand.

mod calls;
mod connections;
mod disk;
mod live;
mod operator;
mod store;

pub use calls::CallMetrics;
pub(crate) use calls::code_name;
pub use connections::ConnectionMetrics;
pub use operator::Operator;
pub use store::{StoreMetrics, kind_of};

use std::time::Duration;
use tranche_engine::{Phase, ReportResult, StateRecord};
use tranche_ops::prometheus_client::metrics::counter::Counter;
use tranche_ops::prometheus_client::metrics::family::Family;
use tranche_ops::prometheus_client::metrics::histogram::Histogram;
use tranche_ops::prometheus_client::registry::{Registry, Unit};
use tranche_ops::seconds;
use tranche_proto::v1;

/// One label, with values that are known beforehand.
pub(crate) type One = [(&'static str, &'static str); 1];
/// Two of them.
pub(crate) type Two = [(&'static str, &'static str); 2];

/// A coordinator's counters.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Of the store.
    pub store: StoreMetrics,
    /// Of the clients' calls.
    pub calls: CallMetrics,
    /// Of the connections that they come on.
    pub connections: ConnectionMetrics,
    /// Of the batches.
    pub batches: BatchMetrics,
    /// Of ownership.
    pub ownership: OwnershipMetrics,
}

/// What becomes of batches and their tasks, as their owner writes it.
#[derive(Debug)]
pub struct BatchMetrics {
    /// Batches that were made here.
    pub created: Counter,
    decisions: Family<Two, Counter>,
    ended: Family<One, Counter>,
    outcomes: Family<One, Counter>,
    staged: Counter,
    failed: Counter,
    committed: Counter,
    rolled_back: Counter,
    appended_tasks: Counter,
    appended_bytes: Counter,
    residue: Counter,
    late_sweeps: Counter,
    reports: Family<One, Counter>,
    /// Leases that were taken from their workers.
    pub revoked: Counter,
}

impl Default for BatchMetrics {
    fn default() -> Self {
        let (outcomes, ended, reports) = (
            Family::<One, Counter>::default(),
            Family::<One, Counter>::default(),
            Family::<One, Counter>::default(),
        );
        let decisions = Family::<Two, Counter>::default();
        let of = |outcome| outcomes.get_or_create_owned(&[("outcome", outcome)]);
        let (staged, failed, committed, rolled_back) =
            (of("staged"), of("failed"), of("committed"), of("rolled_back"));
        // From the beginning there at 0: what appears as 1 never grew, for whoever asks by how much.
        for state in ["committed", "rolled_back"] {
            ended.get_or_create_owned(&[("state", state)]);
        }
        for result in [ReportResult::Durable, ReportResult::Stale, ReportResult::Decided] {
            reports.get_or_create_owned(&[("result", result_name(&result))]);
        }
        reports.get_or_create_owned(&[("result", "invalid")]);
        for reason in [
            v1::decision::Reason::AllAccounted,
            v1::decision::Reason::Approved,
            v1::decision::Reason::Cancelled,
            v1::decision::Reason::FailureLimit,
            v1::decision::Reason::Deadline,
        ] {
            decisions.get_or_create_owned(&decision_labels(reason));
        }
        Self {
            created: Counter::default(),
            decisions,
            ended,
            outcomes,
            staged,
            failed,
            committed,
            rolled_back,
            appended_tasks: Counter::default(),
            appended_bytes: Counter::default(),
            residue: Counter::default(),
            late_sweeps: Counter::default(),
            reports,
            revoked: Counter::default(),
        }
    }
}

fn decision_labels(reason: v1::decision::Reason) -> Two {
    use v1::decision::Reason;
    let (outcome, reason) = match reason {
        Reason::AllAccounted => ("commit", "all_accounted"),
        Reason::Approved => ("commit", "approved"),
        Reason::Cancelled => ("rollback", "cancelled"),
        Reason::FailureLimit => ("rollback", "failure_limit"),
        Reason::Deadline => ("rollback", "deadline"),
        Reason::Unspecified => ("unknown", "unknown"),
    };
    [("outcome", outcome), ("reason", reason)]
}

fn result_name(result: &ReportResult) -> &'static str {
    match result {
        ReportResult::Durable => "durable",
        ReportResult::Stale => "stale",
        ReportResult::Decided => "decided",
        ReportResult::Invalid(_) => "invalid",
    }
}

impl BatchMetrics {
    /// A batch's state was written. Says whether the batch came further by it.
    pub fn written(
        &self,
        before: &StateRecord,
        after: &StateRecord,
        decision: Option<&v1::DecisionRecord>,
    ) -> bool {
        let grown = |counter: &Counter, before: u64, after: u64| {
            if after > before {
                counter.inc_by(after - before);
            }
        };
        grown(&self.staged, before.staged, after.staged);
        grown(&self.failed, before.failed, after.failed);
        grown(&self.committed, before.committed, after.committed);
        grown(&self.rolled_back, before.rolled_back, after.rolled_back);
        grown(&self.residue, before.residue_removed, after.residue_removed);
        if before.late_sweep && !after.late_sweep {
            self.late_sweeps.inc();
        }
        let undecided = |state: &StateRecord| {
            matches!(state.state, tranche_engine::State::Importing | tranche_engine::State::Held)
        };
        if undecided(before) && !undecided(after) {
            let reason = decision.map_or(v1::decision::Reason::Unspecified, v1::DecisionRecord::reason);
            self.decisions.get_or_create(&decision_labels(reason)).inc();
        }
        if after.state.is_final() && !before.state.is_final() {
            self.ended.get_or_create(&[("state", live::state_name(after.state))]).inc();
        }
        let place = |s: &StateRecord| {
            (s.state, s.sealed, s.total, s.staged, s.failed, s.committed, s.rolled_back, s.published, s.swept)
        };
        place(before) != place(after)
    }

    /// A segment's record was written.
    pub fn appended(&self, tasks: u64, bytes: u64) {
        self.appended_tasks.inc_by(tasks);
        self.appended_bytes.inc_by(bytes);
    }

    /// A report was answered.
    pub fn report(&self, result: &ReportResult) {
        self.reports.get_or_create(&[("result", result_name(result))]).inc();
    }

    fn register(&self, registry: &mut Registry) {
        registry.register("batches_created", "Batches that were made here", self.created.clone());
        registry.register(
            "decisions",
            "Batches that were decided while owned here, by outcome and reason",
            self.decisions.clone(),
        );
        registry.register(
            "batches_ended",
            "Batches that became final while owned here, by final state",
            self.ended.clone(),
        );
        registry.register(
            "tasks",
            "Tasks by what became of them; one that failed and is staged later counts twice",
            self.outcomes.clone(),
        );
        registry.register("appended_tasks", "Tasks appended durably", self.appended_tasks.clone());
        registry.register_with_unit(
            "appended",
            "Bytes of tasks appended durably",
            Unit::Bytes,
            self.appended_bytes.clone(),
        );
        registry.register(
            "rollback_residue",
            "Things that sweeps of rolled back batches found and removed",
            self.residue.clone(),
        );
        registry.register(
            "late_sweeps",
            "Batches swept once more after their end, because a worker was lost",
            self.late_sweeps.clone(),
        );
        registry.register("reports", "Workers' reports answered, by result", self.reports.clone());
        registry.register("leases_revoked", "Leases taken from their workers", self.revoked.clone());
    }
}

/// How a batch came to be owned here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Nobody owned it when this coordinator's session began.
    Start,
    /// Its owner had signed off.
    Handover,
    /// Its owner was lost, or gave it up.
    Loss,
}

/// What becomes of ownership.
#[derive(Debug)]
pub struct OwnershipMetrics {
    takeovers: Family<One, Counter>,
    /// Drivers that panicked, and gave their batch up.
    pub panics: Counter,
    /// Sessions with the store that began.
    pub sessions: Counter,
    /// Sessions with the store that were lost.
    pub lost: Counter,
}

impl Default for OwnershipMetrics {
    fn default() -> Self {
        let takeovers = Family::<One, Counter>::default();
        for cause in [Cause::Start, Cause::Handover, Cause::Loss] {
            takeovers.get_or_create_owned(&cause.labels());
        }
        let (panics, sessions, lost) = (Counter::default(), Counter::default(), Counter::default());
        Self { takeovers, panics, sessions, lost }
    }
}

impl Cause {
    fn labels(self) -> One {
        let name = match self {
            Self::Start => "start",
            Self::Handover => "handover",
            Self::Loss => "loss",
        };
        [("cause", name)]
    }
}

impl OwnershipMetrics {
    /// A lock was taken.
    pub fn taken(&self, cause: Cause) {
        self.takeovers.get_or_create(&cause.labels()).inc();
    }

    fn register(&self, registry: &mut Registry) {
        registry.register(
            "takeovers",
            "Batches of others that were taken: free at the start, handed over, or after a loss",
            self.takeovers.clone(),
        );
        registry.register("driver_panics", "Drivers that failed by a mistake of ours", self.panics.clone());
        registry.register("store_sessions", "Sessions with the store that began", self.sessions.clone());
        registry.register("store_sessions_lost", "Sessions with the store that were lost", self.lost.clone());
    }
}

/// What the dispatch counts.
#[derive(Debug)]
pub struct Dealt {
    /// From a worker's credit and a batch's backlog both being there to the lease being sent.
    pub grant: Histogram,
    /// From a report's coming to its being durable, or refused.
    pub report: Histogram,
    granted: Family<One, Counter>,
    /// Workers that were dropped because they didn't read.
    pub dropped: Counter,
}

impl Default for Dealt {
    fn default() -> Self {
        let granted = Family::<One, Counter>::default();
        for phase in [Phase::Stage, Phase::Commit, Phase::Rollback, Phase::Publish, Phase::Sweep] {
            granted.get_or_create_owned(&phase_label(phase));
        }
        Self { grant: seconds(), report: seconds(), granted, dropped: Counter::default() }
    }
}

fn phase_label(phase: Phase) -> One {
    let name = match phase {
        Phase::Stage => "stage",
        Phase::Commit => "commit",
        Phase::Rollback => "rollback",
        Phase::Publish => "publish",
        Phase::Sweep => "sweep",
    };
    [("phase", name)]
}

impl Dealt {
    /// A lease was sent; `waited` if its request was taken from the queue.
    pub fn granted(&self, phase: Phase, waited: Option<Duration>) {
        self.granted.get_or_create(&phase_label(phase)).inc();
        if let Some(waited) = waited {
            self.grant.observe(waited.as_secs_f64());
        }
    }

    fn register(&self, registry: &mut Registry) {
        registry.register("leases_granted", "Leases sent to workers, by phase", self.granted.clone());
        registry.register_with_unit(
            "grant",
            "Time from a worker's credit and a batch's backlog both being there to the lease being sent",
            Unit::Seconds,
            self.grant.clone(),
        );
        registry.register_with_unit(
            "report",
            "Time from a worker's report coming in to its acknowledgement, which is sent when it is durable",
            Unit::Seconds,
            self.report.clone(),
        );
        registry.register(
            "workers_dropped",
            "Workers whose stream was ended because they didn't read it",
            self.dropped.clone(),
        );
    }
}
