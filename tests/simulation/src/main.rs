//! `tranche-sim`: runs seeds, and says which failed and how to run them again.

use clap::Parser;
use std::process::ExitCode;
use std::time::Instant;
use tranche_guards::Guard;
use tranche_sim::{Failure, Options, run, run_seeds};

/// The whole system under simulated faults.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// How many seeds to run.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Threads; by default one a processor.
    #[arg(long)]
    jobs: Option<usize>,
    /// Runs this seed alone.
    #[arg(long)]
    seed: Option<u64>,
    /// Prints what happens. With --seed.
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Switches a guard off: see crate tranche-guards for their names.
    #[arg(long, value_parser = guard)]
    without: Option<Guard>,
    /// Stops after so many failures.
    #[arg(long, default_value_t = 20)]
    most: usize,
}

fn guard(name: &str) -> Result<Guard, String> {
    let found = Guard::ALL.iter().find(|guard| guard.name() == name);
    found.copied().ok_or_else(|| {
        let names: Vec<&str> = Guard::ALL.iter().map(|guard| guard.name()).collect();
        format!("no such guard; there are {}", names.join(", "))
    })
}

fn main() -> ExitCode {
    let args = Args::parse();
    let begun = Instant::now();
    if let Some(seed) = args.seed {
        if args.trace {
            tranche_sim::log::print();
        }
        let outcome = tranche_guards::without(args.without, || run(seed, Options { trace: args.trace }));
        println!("{}", outcome.stats);
        println!(
            "digest {:016x}, {:?} virtual, {:?} real",
            outcome.digest,
            outcome.virtual_time,
            begun.elapsed()
        );
        return match outcome.violation {
            Some((at, text)) => {
                let text = format!("at {:.3} s: {text}", at.as_secs_f64());
                println!("{}", Failure { seed, text, without: args.without });
                ExitCode::FAILURE
            }
            None => ExitCode::SUCCESS,
        };
    }
    let jobs = args.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let report = run_seeds(args.from..args.from + args.seeds, jobs, args.without, args.most);
    println!("{}", report.stats);
    let took = begun.elapsed();
    println!(
        "{} seeds in {took:?}, {:?} virtual, {:.1} ms a seed on one thread, {} failed",
        report.seeds,
        report.virtual_time,
        took.as_secs_f64() * 1000.0 * jobs as f64 / report.seeds.max(1) as f64,
        report.failures.len()
    );
    for failure in report.failures.values() {
        println!("{failure}");
    }
    if report.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
