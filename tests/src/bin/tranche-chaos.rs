//! Chaos with real processes; see [`tranche_tests::chaos`].

use std::process::ExitCode;
use tranche_tests::chaos::{Options, Sandbox, run, table::table};

const WRONG_FLAGS: u8 = 2;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--help" || argument == "-h") {
        println!("{}", Options::usage());
        return ExitCode::SUCCESS;
    }
    let options = match Options::parse(arguments) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("tranche-chaos: {error}\n{}", Options::usage());
            return ExitCode::from(WRONG_FLAGS);
        }
    };
    // Before there are threads: from here on this is another process image, in namespaces of its own.
    let sandbox = Sandbox::enter();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let report = runtime.block_on(run(&options, &sandbox));
    println!("{}", table(report.seed, report.minutes, &report.counts, report.violations.len()));
    if !sandbox.is_own() {
        println!("in {sandbox}");
    }
    for violation in &report.violations {
        println!("VIOLATION: {violation}");
    }
    if let Some(folder) = &report.folder {
        println!("logs: {}\nreplay: {}", folder.display(), report.replay);
    }
    if report.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
