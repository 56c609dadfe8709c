//! Thousands of seeds: random faults over the real bytes, and everything ends as it must.
//!
//! `TRANCHE_NETWORK_SEEDS` says how many (default 2,000), `TRANCHE_NETWORK_SEED` runs one alone, and
//! `TRANCHE_NETWORK_LOG` is what it logs, as `tracing` directives.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use tranche_network::plan::Plan;
use tranche_network::run::run;
use tranche_network::stats::Numbers;

const SEEDS: u64 = 2000;
/// Failures that are told; more than a few say no more.
const TOLD: usize = 5;

thread_local! {
    /// The panics of this thread's run, also those in tasks that nobody joins.
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

fn env(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value:?} is no number")))
}

fn checked(plan: &Plan) -> Result<Numbers, String> {
    PANICS.take();
    let result = catch_unwind(AssertUnwindSafe(|| run(plan))).unwrap_or_else(|_| Err(String::new()));
    let panics = PANICS.take();
    match result {
        Ok(_) | Err(_) if !panics.is_empty() => Err(panics.join("; ")),
        result => result,
    }
}

#[test]
fn every_batch_ends_right_under_random_faults() {
    tranche_network::log::init();
    std::panic::set_hook(Box::new(|panic| PANICS.with_borrow_mut(|panics| panics.push(panic.to_string()))));
    let (first, count) = match env("TRANCHE_NETWORK_SEED") {
        Some(seed) => (seed, 1),
        None => (0, env("TRANCHE_NETWORK_SEEDS").unwrap_or(SEEDS)),
    };
    let next = AtomicU64::new(first);
    let (numbers, failures) = (Mutex::new(Numbers::default()), Mutex::new(Vec::new()));
    let began = Instant::now();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let seed = next.fetch_add(1, Ordering::Relaxed)
                    && seed < first + count
                    && failures.lock().unwrap().len() < TOLD
                {
                    let plan = Plan::new(seed);
                    if count == 1 {
                        eprintln!("{plan:#?}");
                    }
                    match checked(&plan) {
                        Ok(run) => numbers.lock().unwrap().add(&run),
                        Err(what) => {
                            eprintln!(
                                "seed {seed} failed, TRANCHE_NETWORK_SEED={seed} cargo test -p tranche-network \
                                 --test faults: {what}"
                            );
                            failures.lock().unwrap().push(seed);
                        }
                    }
                }
            });
        }
    });
    let numbers = numbers.into_inner().unwrap();
    let each = began.elapsed().as_millis() / u128::from(count);
    println!("{numbers}\n{:?}, {each} ms a seed on {threads} threads", began.elapsed());
    let failures = failures.into_inner().unwrap();
    drop(std::panic::take_hook());
    assert!(failures.is_empty(), "failed seeds: {failures:?}");
    if count >= 200 {
        assert!(numbers.missing().is_empty(), "never occurred: {:?}", numbers.missing());
        assert!(numbers.committed > 0 && numbers.rolled_back > 0 && numbers.takeovers() > 0, "{numbers}");
    }
}
