//! The simulated network notices a missing guard: these are switched off, one by one.
//!
//! The others are no matter of the network: the simulation, the model and the tests of processes catch them
//! (`docs/reliability.md` has the table). `TRANCHE_NETWORK_GUARDS=all` tries every one and says what it found.

use std::time::Instant;
use tranche_guards::Guard;
use tranche_network::seeds::run_seeds;

/// Without any of these a few seeds fail.
const CAUGHT: [Guard; 3] = [Guard::GrantAfterDurable, Guard::TokenCheck, Guard::WinnersOnly];
/// Enough for each of them, several times over.
const SEEDS: u64 = 300;

#[test]
fn missing_guards_are_noticed() {
    let all = std::env::var("TRANCHE_NETWORK_GUARDS").is_ok_and(|which| which == "all");
    let mut missed = Vec::new();
    for &guard in if all { Guard::ALL } else { &CAUGHT } {
        let began = Instant::now();
        let report = run_seeds(0, SEEDS, 1, Some(guard));
        let name = guard.name();
        let (runs, took) = (report.numbers.runs, began.elapsed());
        if let Some(failure) = report.failures.first() {
            println!("{name}: seed {} after {runs} runs, {took:.1?}: {:.200}", failure.seed, failure.what);
        } else {
            println!("{name}: not noticed in {runs} runs, {took:.1?}");
            missed.push(guard);
        }
    }
    missed.retain(|guard| CAUGHT.contains(guard));
    assert!(missed.is_empty(), "not noticed: {missed:?}");
}
