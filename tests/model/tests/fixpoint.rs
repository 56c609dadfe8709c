//! Every reachable state: nothing breaks, and everything ends.
//!
//! `TRANCHE_MODEL_FAULTS` is how many faults `three_ranges` has: 3, unless it says otherwise. 4 takes minutes.

use stateright::{Checker, Model};
use std::time::Instant;
use tranche_model::Batch;

const SMALL: Batch = Batch {
    ranges: 2,
    attempts: 2,
    cancel: true,
    backup: false,
    stopping_kept: true,
    deadline: false,
    faults: 2,
    off: None,
};

/// Visits every state, and says what it took.
fn explore(name: &str, model: Batch) {
    let start = Instant::now();
    let checker = model.checker().threads(2).spawn_dfs().join();
    assert!(checker.is_done());
    println!(
        "{name}: {} states, {} steps, at most {} deep, in {:.1?}",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        start.elapsed(),
    );
    checker.assert_properties();
}

#[test]
fn three_ranges() {
    let faults = match std::env::var("TRANCHE_MODEL_FAULTS") {
        Ok(faults) => faults.parse().expect("TRANCHE_MODEL_FAULTS is a number of faults"),
        Err(_) => 3,
    };
    explore(&format!("three ranges, {faults} faults"), Batch { ranges: 3, faults, ..SMALL });
}

#[test]
fn three_ranges_with_backups_and_a_deadline() {
    let model = Batch { ranges: 3, attempts: 3, backup: true, deadline: true, faults: 2, ..SMALL };
    explore("three ranges, backups, deadline, two faults", model);
}

#[test]
fn two_ranges_with_backups_and_a_deadline() {
    let model = Batch { attempts: 3, backup: true, deadline: true, faults: 3, ..SMALL };
    explore("two ranges, backups, deadline, three faults", model);
}

#[test]
fn one_range_and_six_faults() {
    let model = Batch { ranges: 1, attempts: 3, deadline: true, faults: 6, ..SMALL };
    explore("one range, deadline, six faults", model);
}
