//! The engine's rules under random events: a safety phase with faults, in which the invariants are
//! checked after every write, then a liveness phase without faults, in which the batch must end.

#[path = "../support/mod.rs"]
mod support;

mod action;
mod checks;
mod library;
#[cfg(feature = "planted")]
mod planted;
mod world;

use action::{a_spec, action, tuned};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use std::cell::Cell;
use std::time::{SystemTime, UNIX_EPOCH};
use tranche_engine::Spec;
use world::{Seen, World};

fn run(cases: u32, length: std::ops::Range<usize>, calm: u32, poisoned: bool) -> Seen {
    match lives(cases, length, calm, poisoned, 20_000) {
        Ok(seen) => seen,
        Err(text) => panic!("{text}"),
    }
}

/// What the lives saw; or how the first one that broke a rule did.
fn lives(
    cases: u32,
    length: std::ops::Range<usize>,
    calm: u32,
    poisoned: bool,
    shrinks: u32,
) -> Result<Seen, String> {
    // Another seed each time; `TRANCHE_SEED` repeats one.
    let seed = std::env::var("TRANCHE_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
    });
    let bytes: Vec<u8> = seed.to_le_bytes().repeat(4);
    let config = Config { cases, failure_persistence: None, max_shrink_iters: shrinks, ..Config::default() };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let poison = if poisoned { (1u64..60).prop_map(Some).boxed() } else { Just(None).boxed() };
    let input = (a_spec(), tuned(), poison, prop::collection::vec(action(calm), length));
    let seen = Cell::new(Seen::default());
    let verdict = runner.run(&input, |(spec, settings, poison, actions)| {
        let mut world = World::new(spec, settings, poison);
        if calm > 1 {
            // Without this most lives would end before there is much to lose.
            world.begin_with(120).map_err(TestCaseError::fail)?;
        }
        for action in &actions {
            world.act(action).map_err(TestCaseError::fail)?;
        }
        let ended = world.live().map_err(TestCaseError::fail);
        seen.set(seen.get() + world.seen);
        ended
    });
    verdict.map(|()| seen.get()).map_err(|failure| format!("TRANCHE_SEED={seed}: {failure}"))
}

#[test]
fn the_rules_hold_whatever_happens_and_every_batch_ends() {
    run(500, 20..200, 1, false);
}

#[test]
fn the_rules_hold_with_a_task_that_kills_its_worker() {
    run(300, 50..250, 3, true);
}

#[test]
fn the_rules_hold_in_short_lives() {
    run(1000, 1..40, 1, false);
}

#[test]
fn the_rules_hold_in_long_lives_with_few_faults() {
    let seen = run(250, 150..400, 5, false);
    assert!(seen.backups > 0 && seen.late_sweeps > 0, "they are no test of either: {seen:?}");
}

/// A life that once seemed to break a rule: the write that makes a batch COMMITTED gets no answer and is applied
/// late, when its range is already leased again. That is no lease too many: a commit may be repeated.
#[test]
fn a_commit_that_is_leased_again_while_it_becomes_durable_is_no_mistake() {
    use action::{Action::*, How};
    let spec = Spec { min_range: 1, max_range: 9, max_attempts: 1, ..support::spec() };
    let mut world = World::new(spec, support::settings(), None);
    let append = || Append { tasks: 1, again: false, gap: false };
    let well = |worker| Work { worker, lease: 0, how: How::Well };
    let (ask, start) = (|worker| Ask { worker }, |worker| Start { worker });
    let crash = Crash { applied: false, silent: false };
    let life = [append(), Turn, crash, ask(0), Turn, Seal, ask(1), Land, well(0), Turn];
    let late = [start(0), start(0), well(1), Step, Doubt, ApplyLate, append()];
    let end = [Pass { ms: 1, heartbeats: false }, append(), append()];
    for action in life.iter().chain(&late).chain(&end) {
        world.act(action).expect("no rule is broken");
    }
    world.live().expect("it ends");
}
