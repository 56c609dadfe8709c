//! Many runs, on all processors; and a panic anywhere in a run is a failure of that run.

use crate::plan::Plan;
use crate::run::run;
use crate::stats::Numbers;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, Once, PoisonError};
use tranche_guards::{Guard, without};

thread_local! {
    /// The panics of this thread's run, also those in tasks that nobody joins.
    static PANICS: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// A seed that failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Which.
    pub seed: u64,
    /// What isn't as it must be.
    pub what: String,
}

/// What came of many runs.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Of those that went well.
    pub numbers: Numbers,
    /// The others.
    pub failures: Vec<Failure>,
}

/// Runs one seed, perhaps without a guard. The panic hook keeps what is said of panics in runs to itself.
///
/// # Errors
/// What isn't as it must be.
pub fn run_seed(seed: u64, guard: Option<Guard>) -> Result<Numbers, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let kept = PANICS.with_borrow_mut(|panics| {
                panics.as_mut().map(|panics| panics.push(panic.to_string())).is_some()
            });
            if !kept {
                before(panic);
            }
        }));
    });
    PANICS.set(Some(Vec::new()));
    let result = catch_unwind(AssertUnwindSafe(|| without(guard, || run(&Plan::new(seed)))));
    let panics = PANICS.take().unwrap_or_default();
    match result {
        _ if !panics.is_empty() => Err(panics.join("; ")),
        Ok(result) => result,
        Err(_) => Err("a panic that said nothing".to_owned()),
    }
}

/// Runs the seeds from `first` on, on all processors, until this many failed.
pub fn run_seeds(first: u64, count: u64, most_failures: usize, guard: Option<Guard>) -> Report {
    let next = AtomicU64::new(first);
    let report = Mutex::new(Report::default());
    let lock = || report.lock().unwrap_or_else(PoisonError::into_inner);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let seed = next.fetch_add(1, Ordering::Relaxed)
                    && seed < first + count
                    && lock().failures.len() < most_failures
                {
                    match run_seed(seed, guard) {
                        Ok(numbers) => lock().numbers.add(&numbers),
                        Err(what) => lock().failures.push(Failure { seed, what }),
                    }
                }
            });
        }
    });
    report.into_inner().unwrap_or_else(PoisonError::into_inner)
}
