//! Many seeds, on several threads.

use crate::run::{Options, run};
use crate::stats::Stats;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tranche_guards::Guard;

/// A seed that failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Which.
    pub seed: u64,
    /// What didn't hold, and when.
    pub text: String,
    /// The guard that was switched off.
    pub without: Option<Guard>,
}

impl std::fmt::Display for Failure {
    /// The line that replays it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cargo run -p tranche-sim -- --seed {}", self.seed)?;
        if let Some(guard) = self.without {
            write!(f, " --without {}", guard.name())?;
        }
        write!(f, "  # {}", self.text)
    }
}

/// What many seeds brought.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Seeds that were run.
    pub seeds: u64,
    /// Those that failed, by seed.
    pub failures: BTreeMap<u64, Failure>,
    /// How often things happened.
    pub stats: Stats,
    /// Virtual time of all.
    pub virtual_time: std::time::Duration,
}

/// Runs seeds on some threads; stops after `most` failures.
pub fn run_seeds(seeds: Range<u64>, jobs: usize, without: Option<Guard>, most: usize) -> Report {
    let next = AtomicU64::new(seeds.start);
    let enough = AtomicBool::new(false);
    let report = Mutex::new(Report::default());
    let work = || {
        tranche_guards::without(without, || {
            while !enough.load(Ordering::Relaxed) {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= seeds.end {
                    return;
                }
                let outcome = run(seed, Options::default());
                let mut report = report.lock().unwrap_or_else(PoisonError::into_inner);
                report.seeds += 1;
                report.stats.join(&outcome.stats);
                report.virtual_time += outcome.virtual_time;
                if let Some((at, text)) = outcome.violation {
                    let text = format!("at {:.3} s: {text}", at.as_secs_f64());
                    report.failures.insert(seed, Failure { seed, text, without });
                    enough.fetch_or(report.failures.len() >= most, Ordering::Relaxed);
                }
            }
        });
    };
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(work);
        }
    });
    report.into_inner().unwrap_or_else(PoisonError::into_inner)
}
