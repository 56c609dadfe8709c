//! `tranche`: import, submit, watch, cancel, from the command line.

mod args;
mod commands;
mod error;
mod exit;
mod follow;
mod output;
mod signals;
mod source;

use std::io::Write as _;

use clap::Parser as _;
use tracing_subscriber::EnvFilter;

fn main() {
    let cli = args::Cli::parse();
    log_to_stderr();
    let output = cli.global.output;
    let code = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => match runtime.block_on(commands::run(cli)) {
            Ok(code) => code,
            Err(error) => {
                error.print(output);
                error.exit
            }
        },
        Err(error) => {
            eprintln!("error: cannot start: {error}");
            exit::ERROR
        }
    };
    let _ = std::io::stdout().flush();
    // Not by leaving `main`: a thread that still reads standard input would be waited for.
    std::process::exit(code);
}

/// What the libraries log, on request: `TRANCHE_LOG=info tranche import …`.
fn log_to_stderr() {
    if let Ok(filter) = EnvFilter::try_from_env("TRANCHE_LOG") {
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    }
}
