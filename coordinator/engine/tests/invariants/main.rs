//! The engine's rules under random events: a safety phase with faults, in which the invariants are
//! checked after every write, then a liveness phase without faults, in which the batch must end.

#[path = "../support/mod.rs"]
mod support;

mod checks;
mod library;
mod world;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::time::Duration;
use tranche_engine::{CommitMode, FailureLimit, Spec};
use world::{Action, How, WORKERS, World};

fn how() -> impl Strategy<Value = How> {
    prop_oneof![
        6 => Just(How::Well),
        2 => (0u64..3).prop_map(How::Partly),
        1 => Just(How::AllFail),
        1 => Just(How::Error),
        1 => Just(How::Nonsense),
        1 => Just(How::Unheard),
    ]
}

fn action() -> impl Strategy<Value = Action> {
    let worker = 0..WORKERS;
    prop_oneof![
        5 => (1u64..30, prop::bool::weighted(0.15), prop::bool::weighted(0.1))
            .prop_map(|(tasks, again, gap)| Action::Append { tasks, again, gap }),
        1 => Just(Action::Seal),
        1 => Just(Action::Retry),
        12 => worker.clone().prop_map(|worker| Action::Ask { worker }),
        16 => (worker.clone(), 0usize..8, how())
            .prop_map(|(worker, lease, how)| Action::Work { worker, lease, how }),
        2 => (worker.clone(), 0usize..8).prop_map(|(worker, report)| Action::Repeat { worker, report }),
        1 => (worker.clone(), 0usize..8).prop_map(|(worker, lease)| Action::Release { worker, lease }),
        2 => (worker.clone(), any::<bool>()).prop_map(|(worker, noticed)| Action::Die { worker, noticed }),
        2 => worker.clone().prop_map(|worker| Action::Start { worker }),
        1 => worker.clone().prop_map(|worker| Action::Break { worker }),
        2 => worker.prop_map(|worker| Action::Attach { worker }),
        1 => (prop::bool::weighted(0.7), any::<bool>())
            .prop_map(|(commit, told)| Action::Decide { commit, told }),
        1 => Just(Action::Hear),
        14 => Just(Action::Step),
        14 => Just(Action::Land),
        1 => Just(Action::Refuse),
        1 => Just(Action::LoseAnswer),
        1 => (any::<bool>(), any::<bool>()).prop_map(|(applied, silent)| Action::Crash { applied, silent }),
        4 => (prop_oneof![3 => 1u64..50, 1 => 500u64..6000], prop::bool::weighted(0.8))
            .prop_map(|(ms, heartbeats)| Action::Pass { ms, heartbeats }),
    ]
}

fn a_spec() -> impl Strategy<Value = Spec> {
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

fn run(cases: u32, length: std::ops::Range<usize>, poisoned: bool) {
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let poison = if poisoned { (1u64..60).prop_map(Some).boxed() } else { Just(None).boxed() };
    let input = (a_spec(), poison, prop::collection::vec(action(), length));
    let verdict = runner.run(&input, |(spec, poison, actions)| {
        let mut world = World::new(spec, poison);
        for action in &actions {
            world.act(action).map_err(TestCaseError::fail)?;
        }
        world.live().map_err(TestCaseError::fail)
    });
    if let Err(failure) = verdict {
        panic!("{failure}");
    }
}

#[test]
fn the_rules_hold_whatever_happens_and_every_batch_ends() {
    run(600, 20..200, false);
}

#[test]
fn the_rules_hold_with_a_task_that_kills_its_worker() {
    run(300, 20..150, true);
}

#[test]
fn the_rules_hold_in_short_lives() {
    run(1500, 1..40, false);
}
