//! The coordinator as a process.
//!
//! It prints one line on stdout once it serves, `listening on ADDRESS`, and a second, `ops port on ADDRESS`, if it
//! has one; all else goes to stderr. The first
//! SIGTERM or SIGINT lets it finish what is open, the second ends it at once. It exits with 0 after a
//! shutdown, 1 when it can't start or go on, 2 when its configuration is wrong.

use clap::{Arg, ArgMatches, Command};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;
use tranche_coordinator::config::{Config, ConfigError, FIELDS, LogFormat, Texts};
use tranche_coordinator::{Server, most_connections};
use tranche_ops::trace::Traces;

const FAILED: u8 = 1;
const WRONG_CONFIG: u8 = 2;

fn main() -> ExitCode {
    let config = match config(&command().get_matches()) {
        Ok(config) => config,
        Err(error) => {
            for problem in &error.0 {
                eprintln!("tranche-coordinator: {problem}");
            }
            return ExitCode::from(WRONG_CONFIG);
        }
    };
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("tranche-coordinator: no runtime: {error}");
            return ExitCode::from(FAILED);
        }
    };
    let traces = {
        let _in = runtime.enter();
        let endpoint = config.otlp_endpoint.as_deref();
        endpoint.map(|url| Traces::to(url, "tranche-coordinator", env!("CARGO_PKG_VERSION"))).transpose()
    };
    let traces = match traces {
        Ok(traces) => traces,
        Err(error) => {
            eprintln!("tranche-coordinator: {error}");
            return ExitCode::from(WRONG_CONFIG);
        }
    };
    tranche_ops::logs::start(
        EnvFilter::new(&config.log),
        config.log_format == LogFormat::Json,
        traces.as_ref(),
    );
    let ended = runtime.block_on(run(config));
    if let Err(error) = &ended {
        tracing::error!(error, "coordinator ended");
    }
    if let Some(traces) = traces {
        traces.end();
    }
    // What still blocks on a disk after all has ended, or was cut, isn't waited for.
    runtime.shutdown_background();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(FAILED),
    }
}

/// One flag for each field of the configuration, with the field's text.
fn command() -> Command {
    let command = Command::new("tranche-coordinator")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Keeps batches, deals their tasks to workers, decides once")
        .after_help(
            "Every flag but --config can be set in the file (with _ for -) and in the environment \
             (TRANCHE_COORDINATOR_LEASE_TTL); a flag wins over the environment, that over the file.",
        )
        .arg(
            Arg::new("config")
                .long("config")
                .value_name("FILE.toml")
                .env("TRANCHE_COORDINATOR_CONFIG")
                .value_parser(clap::value_parser!(PathBuf))
                .help("File to read the configuration from"),
        );
    FIELDS.iter().fold(command, |command, field| {
        // clap wants names that live as long as the process; so they do.
        let flag: &'static str = field.name.replace('_', "-").leak();
        let arg = Arg::new(field.name).long(flag).value_name(field.value).help(field.help);
        let switch = field.value == "BOOL";
        command.arg(if switch {
            arg.num_args(0..=1).require_equals(true).default_missing_value("true")
        } else {
            arg
        })
    })
}

fn config(matches: &ArgMatches) -> Result<Config, ConfigError> {
    let file = matches.get_one::<PathBuf>("config");
    let flags: Texts = FIELDS
        .iter()
        .filter_map(|field| Some((field.name, matches.get_one::<String>(field.name)?.clone())))
        .collect();
    // What isn't text can't be ours, or is refused as a value would be.
    let env = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.to_string_lossy().into_owned())));
    Config::load(file.map(PathBuf::as_path), env, flags)
}

async fn run(config: Config) -> Result<(), String> {
    let shutdown = CancellationToken::new();
    let handlers = [SignalKind::terminate(), SignalKind::interrupt()].map(signal);
    let [Ok(terminate), Ok(interrupt)] = handlers else {
        return Err("signals can't be received".to_owned());
    };
    let serve = serve(config, shutdown.clone());
    tokio::select! {
        ended = serve => ended,
        () = watch_signals(terminate, interrupt, &shutdown) => Err("ended at once by a second signal".to_owned()),
    }
}

async fn serve(config: Config, shutdown: CancellationToken) -> Result<(), String> {
    allow_files(&config);
    let server = tokio::select! {
        biased;
        // Nothing is open yet: a coordinator that waits for its store may go at once.
        () = shutdown.cancelled() => return Ok(()),
        server = Server::start(config) => server.map_err(|error| with_causes(&error))?,
    };
    let address = server.local_addr();
    // Who closed our stdout doesn't want to know; the log has it too.
    let _ = writeln!(std::io::stdout(), "listening on {address}");
    tracing::info!(%address, "listening");
    if let Some(address) = server.ops_addr() {
        let _ = writeln!(std::io::stdout(), "ops port on {address}");
        tracing::info!(%address, "ops port");
    }
    server.run(shutdown).await;
    Ok(())
}

/// A connection is a file. What a process may open at first is low for the sake of others than us.
fn allow_files(config: &Config) {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })
    {
        tracing::debug!(%error, "the limit of open files stays");
    }
    let most = most_connections(config);
    if most < config.max_connections {
        let files = limit.maximum;
        tracing::warn!(
            files,
            most,
            "max_connections = {}, and fewer fit the limit of open files (ulimit -n)",
            config.max_connections
        );
    }
}

/// Returns at the second signal; the first one asks for the shutdown.
async fn watch_signals(mut terminate: Signal, mut interrupt: Signal, shutdown: &CancellationToken) {
    loop {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        if shutdown.is_cancelled() {
            return;
        }
        tracing::info!("shutting down; a second signal ends it at once");
        shutdown.cancel();
    }
}

/// An error with its causes, each once.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_right_and_every_field_has_one() {
        command().debug_assert();
        let given = ["tranche-coordinator", "--lease-ttl", "3s", "--insecure", "--handlers", "a,b"];
        let matches = command().try_get_matches_from(given).expect("right");
        let config = config(&matches).expect("right");
        assert_eq!((config.lease_ttl.as_secs(), config.insecure), (3, true));
        assert_eq!(config.handlers, ["a", "b"]);
        command().try_get_matches_from(["tranche-coordinator", "--lease-tll", "3s"]).expect_err("unknown");
    }
}
