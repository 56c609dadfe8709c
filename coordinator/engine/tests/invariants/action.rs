//! What may happen to a batch, and how often.

use super::world::WORKERS;
use crate::support;
use proptest::prelude::*;
use std::time::Duration;
use tranche_engine::{CommitMode, FailureLimit, Settings, Spec};

/// What happens next. Numbers are taken modulo what there is.
#[derive(Clone, Debug)]
pub(crate) enum Action {
    /// Tasks are appended; with `again`, what was appended last is appended once more.
    Append {
        tasks: u64,
        again: bool,
        gap: bool,
    },
    Seal,
    Retry,
    /// The worker asks for a lease.
    Ask {
        worker: usize,
    },
    /// The worker ends one of its leases.
    Work {
        worker: usize,
        lease: usize,
        how: How,
    },
    /// The worker sends an old report once more.
    Repeat {
        worker: usize,
        report: usize,
    },
    Release {
        worker: usize,
        lease: usize,
    },
    /// The worker dies; if not `noticed`, only its leases' end tells.
    Die {
        worker: usize,
        noticed: bool,
    },
    /// The worker's process is paused. It wakes up when the batch has ended, and goes on with what it did.
    Freeze {
        worker: usize,
    },
    /// The worker starts again, as a new life.
    Start {
        worker: usize,
    },
    /// The stream breaks: what is sent to the worker is lost until it attaches again.
    Break {
        worker: usize,
    },
    Attach {
        worker: usize,
    },
    /// Somebody else decides. Unless `told`, the owner finds out by a refused write, or later.
    Decide {
        commit: bool,
        told: bool,
    },
    /// The owner hears of the decision.
    Hear,
    /// A moment passes, and the owner does all that there is to do.
    Turn,
    Step,
    Land,
    /// The store couldn't say what became of the write, and it wasn't applied.
    Refuse,
    /// The same, but it may be applied yet.
    Doubt,
    /// A write without an answer is applied after all.
    ApplyLate,
    /// It was applied, but the owner only sees it in the records.
    LoseAnswer,
    /// The owner crashes; another takes over.
    Crash {
        applied: bool,
        silent: bool,
    },
    /// Time passes; attached workers' heartbeats arrive, if they do.
    Pass {
        ms: u64,
        heartbeats: bool,
    },
}

#[derive(Clone, Debug)]
pub(crate) enum How {
    Well,
    /// Of the tasks, those whose number has this remainder by 3 fail.
    Partly(u64),
    AllFail,
    Error,
    Nonsense,
    /// It is done and reported, but the report is lost.
    Unheard,
}

fn how() -> impl Strategy<Value = How> {
    prop_oneof![
        6 => Just(How::Well),
        4 => (0u64..3).prop_map(How::Partly),
        1 => Just(How::AllFail),
        1 => Just(How::Error),
        1 => Just(How::Nonsense),
        1 => Just(How::Unheard),
    ]
}

/// `calm`: how many times as often as faults ordinary work happens.
pub(crate) fn action(calm: u32) -> impl Strategy<Value = Action> {
    let worker = 0..WORKERS;
    prop_oneof![
        2 + calm => (1u64..30, prop::bool::weighted(0.15), prop::bool::weighted(0.1))
            .prop_map(|(tasks, again, gap)| Action::Append { tasks, again, gap }),
        1 => Just(Action::Seal),
        2 * calm => Just(Action::Retry),
        8 * calm => worker.clone().prop_map(|worker| Action::Ask { worker }),
        12 * calm => (worker.clone(), 0usize..8, how())
            .prop_map(|(worker, lease, how)| Action::Work { worker, lease, how }),
        2 => (worker.clone(), 0usize..8).prop_map(|(worker, report)| Action::Repeat { worker, report }),
        1 => (worker.clone(), 0usize..8).prop_map(|(worker, lease)| Action::Release { worker, lease }),
        2 => (worker.clone(), any::<bool>()).prop_map(|(worker, noticed)| Action::Die { worker, noticed }),
        1 => (1..WORKERS).prop_map(|worker| Action::Freeze { worker }),
        2 => worker.clone().prop_map(|worker| Action::Start { worker }),
        1 => worker.clone().prop_map(|worker| Action::Break { worker }),
        2 => worker.prop_map(|worker| Action::Attach { worker }),
        1 => (prop::bool::weighted(0.8), any::<bool>())
            .prop_map(|(commit, told)| Action::Decide { commit, told }),
        1 => Just(Action::Hear),
        8 * calm => Just(Action::Turn),
        10 => Just(Action::Step),
        10 => Just(Action::Land),
        1 => Just(Action::Refuse),
        1 => Just(Action::LoseAnswer),
        1 => Just(Action::Doubt),
        2 => Just(Action::ApplyLate),
        1 => (any::<bool>(), any::<bool>()).prop_map(|(applied, silent)| Action::Crash { applied, silent }),
        4 => (prop_oneof![3 => 1u64..50, 1 => 500u64..6000], prop::bool::weighted(0.8))
            .prop_map(|(ms, heartbeats)| Action::Pass { ms, heartbeats }),
    ]
}

pub(crate) fn a_spec() -> impl Strategy<Value = Spec> {
    (
        any::<bool>(),
        prop_oneof![3 => Just(None), 1 => (0u64..12).prop_map(Some)],
        prop_oneof![4 => Just(None), 1 => (5u64..60).prop_map(|s| Some(Duration::from_secs(s)))],
        1u64..8,
        0u64..20,
        1u32..4,
    )
        .prop_map(|(manual, max_failed, deadline, min_range, more, max_attempts)| Spec {
            commit_mode: if manual { CommitMode::Manual } else { CommitMode::Auto },
            failure_limit: FailureLimit { max_failed, ..FailureLimit::default() },
            deadline,
            min_range,
            max_range: min_range + more,
            max_attempts,
            ..support::spec()
        })
}

pub(crate) fn tuned() -> impl Strategy<Value = Settings> {
    (100u64..2000, 1u64..20).prop_map(|(backup_ms, late)| Settings {
        backup_after: Duration::from_millis(backup_ms),
        late_sweep_after: Duration::from_secs(late),
        ..support::settings()
    })
}
