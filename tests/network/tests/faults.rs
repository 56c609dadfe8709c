//! Thousands of seeds: random faults over the real bytes, and everything ends as it must.
//!
//! `TRANCHE_NETWORK_SEEDS` says how many (default 2,000), `TRANCHE_NETWORK_FIRST` from which on,
//! `TRANCHE_NETWORK_SEED` runs one alone, and `TRANCHE_NETWORK_LOG` is what it logs, as `tracing` directives.

use std::time::Instant;
use tranche_network::log;
use tranche_network::plan::Plan;
use tranche_network::seeds::run_seeds;

const SEEDS: u64 = 2000;
/// Failures that are told; more than a few say no more.
const TOLD: usize = 5;
/// From so many on every kind of fault occurs.
const MANY: u64 = 200;

fn env(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value:?} is no number")))
}

#[test]
fn every_batch_ends_right_under_random_faults() {
    log::init();
    let (first, count) = match env("TRANCHE_NETWORK_SEED") {
        Some(seed) => {
            println!("{:#?}", Plan::new(seed));
            (seed, 1)
        }
        None => (env("TRANCHE_NETWORK_FIRST").unwrap_or(0), env("TRANCHE_NETWORK_SEEDS").unwrap_or(SEEDS)),
    };
    let began = Instant::now();
    let report = run_seeds(first, count, TOLD, None);
    let each = began.elapsed().as_millis() / u128::from(count.max(1));
    println!("{}\n{:?}, {each} ms a seed", report.numbers, began.elapsed());
    for failure in &report.failures {
        let seed = failure.seed;
        println!(
            "seed {seed} failed, TRANCHE_NETWORK_SEED={seed} cargo test -p tranche-network --test faults: {}",
            failure.what
        );
    }
    assert!(report.failures.is_empty(), "{} seeds failed", report.failures.len());
    if count >= MANY {
        let numbers = report.numbers;
        assert!(numbers.missing().is_empty(), "never occurred: {:?}", numbers.missing());
        assert!(numbers.committed > 0 && numbers.rolled_back > 0 && numbers.takeovers() > 0, "{numbers}");
    }
}
