//! Each guard, switched off, is caught: an invariant doesn't hold in one of the seeds, or something never ends.

use tranche_guards::Guard;
use tranche_sim::run_seeds;

/// How a guard is caught here.
enum Seen {
    /// By one of so many seeds.
    Within(u64),
    /// Not here: why, and where else.
    #[allow(dead_code)]
    Elsewhere(&'static str),
}

const fn seen(guard: Guard) -> Seen {
    match guard {
        _ => Seen::Within(3000),
    }
}

#[test]
fn every_guard_that_is_switched_off_is_caught() {
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let mut missed = Vec::new();
    for guard in Guard::ALL {
        match seen(*guard) {
            Seen::Within(seeds) => {
                let report = run_seeds(0..seeds, jobs, Some(*guard), 1);
                match report.failures.values().next() {
                    Some(failure) => println!("{:>20}: {failure}", guard.name()),
                    None => missed.push(format!("{} within {seeds} seeds", guard.name())),
                }
            }
            Seen::Elsewhere(why) => println!("{:>20}: not here: {why}", guard.name()),
        }
    }
    assert!(missed.is_empty(), "not caught: {}", missed.join(", "));
}
