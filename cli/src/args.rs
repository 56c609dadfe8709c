//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use tranche_client::{ClientFiles, v1};

use crate::commands;
use crate::exit;

/// Imports items into a library, all or nothing.
///
/// `tranche import SRC --into LIB` needs nothing else; the other commands speak to the coordinator of a
/// cluster.
#[derive(Debug, Parser)]
#[command(name = "tranche", version, after_help = exit::HELP, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Global {
    /// Any coordinator of the cluster, or several, separated by commas: the first that answers is used, and
    /// another when it is gone.
    #[arg(
        long,
        global = true,
        env = "TRANCHE_COORDINATOR",
        value_name = "URL",
        default_value = "http://127.0.0.1:7070"
    )]
    pub(crate) coordinator: String,
    /// Namespace of batches that are given by bare id, of new ones and of listings [default: the
    /// credential's; `default` for one that sees all].
    #[arg(long, global = true, env = "TRANCHE_NAMESPACE", value_name = "NAMESPACE")]
    pub(crate) namespace: Option<String>,
    /// CAs of coordinators at https:// (PEM) [default: the system's].
    #[arg(long, global = true, env = "TRANCHE_TLS_CA", value_name = "FILE", help_heading = "TLS")]
    pub(crate) tls_ca: Option<PathBuf>,
    /// Client certificate (PEM).
    #[arg(long, global = true, env = "TRANCHE_TLS_CERT", value_name = "FILE", help_heading = "TLS")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// Its private key (PEM).
    #[arg(long, global = true, env = "TRANCHE_TLS_KEY", value_name = "FILE", help_heading = "TLS")]
    pub(crate) tls_key: Option<PathBuf>,
    /// File of the bearer token; never given as an argument, where others could see it.
    #[arg(long, global = true, env = "TRANCHE_TOKEN_FILE", value_name = "FILE", help_heading = "TLS")]
    pub(crate) token_file: Option<PathBuf>,
    /// How results are printed.
    #[arg(long, short, global = true, env = "TRANCHE_OUTPUT", value_enum, default_value_t = Output::Table)]
    pub(crate) output: Output,
}

impl Global {
    /// The full name of a batch given by name or bare id.
    pub(crate) fn batch(&self, name_or_id: &str) -> String {
        if name_or_id.contains('/') {
            name_or_id.to_owned()
        } else {
            format!("{}/batches/{name_or_id}", self.parent())
        }
    }

    /// Where the credentials are.
    pub(crate) fn files(&self) -> ClientFiles {
        ClientFiles {
            ca: self.tls_ca.clone(),
            cert: self.tls_cert.clone(),
            key: self.tls_key.clone(),
            token: self.token_file.clone(),
        }
    }

    /// The namespace's full name.
    pub(crate) fn parent(&self) -> String {
        tranche_client::names::namespace(self.namespace.as_deref().unwrap_or_default())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// JSON on standard output, nothing else there.
    Json,
    /// For people.
    Table,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Import a folder, all or nothing, with no server: coordinator and worker run in this process.
    Import(Box<commands::import::ImportArgs>),
    /// Submit a batch to the cluster: a folder, or a manifest file.
    Submit(Box<commands::submit::SubmitArgs>),
    /// List batches, the newest first.
    List(commands::list::ListArgs),
    /// Show one batch.
    Get(commands::get::GetArgs),
    /// Follow a batch until it has ended.
    Watch(commands::watch::WatchArgs),
    /// Approve a batch that is HELD.
    Commit(commands::commit::CommitArgs),
    /// Revoke a batch: it rolls back.
    Cancel(commands::cancel::CancelArgs),
    /// List the tasks of a batch that failed, and why.
    Failures(commands::failures::FailuresArgs),
    /// Lease the failed tasks of an undecided batch once more.
    Retry(commands::retry::RetryArgs),
    /// Delete the records of a batch that has ended. The library is not touched.
    Delete(commands::delete::DeleteArgs),
    /// List the workers.
    Workers,
    /// List the coordinators of the cluster.
    Coordinators,
    /// List the leases that are out.
    Leases(commands::leases::LeasesArgs),
    /// Measure the system with real processes.
    Bench(commands::bench::BenchArgs),
    /// Print a completion script for a shell.
    Completions(commands::completions::CompletionsArgs),
}

/// What `import` and `submit` say about a new batch.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Batch")]
pub(crate) struct BatchArgs {
    /// A label, for `tranche list --label`; may be repeated.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = pair)]
    pub(crate) labels: Vec<(String, String)>,
    /// A line for people.
    #[arg(long, value_name = "TEXT")]
    pub(crate) display_name: Option<String>,
    /// Share of the workers when batches compete, 1 to 100 [default: 10].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..=100))]
    pub(crate) priority: Option<i32>,
    /// The most tasks that may fail; one more rolls the batch back [default: no limit].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(0..))]
    pub(crate) max_failed: Option<i64>,
    /// The highest share of tasks that may fail, 0.0 to 1.0 [default: no limit].
    #[arg(long, value_name = "RATIO", value_parser = ratio)]
    pub(crate) max_failed_ratio: Option<f64>,
    /// How many tasks must be processed before the share counts [default: 100].
    #[arg(long, value_name = "N", requires = "max_failed_ratio", value_parser = clap::value_parser!(i64).range(1..))]
    pub(crate) min_sample: Option<i64>,
    /// Roll back if undecided after this time, such as 90s, 10m, 1h30m, 2d [default: never].
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) deadline: Option<Duration>,
    /// The most tasks in a lease, 1 to 65536 [default: 16384].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..=65_536))]
    pub(crate) range_max: Option<i32>,
    /// How many workers a range may lose before it is split [default: 3].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..=100))]
    pub(crate) max_attempts: Option<i32>,
}

impl BatchArgs {
    /// The batch that these arguments describe.
    pub(crate) fn batch(&self, target: v1::Target, mode: v1::batch::CommitMode) -> v1::Batch {
        let limited = self.max_failed.is_some() || self.max_failed_ratio.is_some();
        v1::Batch {
            targets: vec![target],
            labels: self.labels.iter().cloned().collect(),
            display_name: self.display_name.clone().unwrap_or_default(),
            priority: self.priority.unwrap_or_default(),
            commit_mode: mode.into(),
            failure_limit: limited.then(|| v1::FailureLimit {
                max_failed_tasks: self.max_failed,
                max_failed_ratio: self.max_failed_ratio,
                min_sample: self.min_sample.unwrap_or_default(),
            }),
            deadline: self.deadline.map(|deadline| prost_types::Duration {
                seconds: deadline.as_secs().cast_signed(),
                nanos: deadline.subsec_nanos().cast_signed(),
            }),
            range_bounds: self.range_max.map(|max_tasks| v1::RangeBounds { min_tasks: 0, max_tasks }),
            max_attempts: self.max_attempts.unwrap_or_default(),
            ..Default::default()
        }
    }
}

/// What the `object` handler is told.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Objects")]
pub(crate) struct ObjectArgs {
    /// What each file must be [default: none].
    #[arg(long, value_enum)]
    pub(crate) check: Option<Check>,
    /// What happens to a file that the library has already [default: overwrite].
    #[arg(long, value_enum)]
    pub(crate) if_exists: Option<IfExists>,
    /// Where files are staged; must be on the library's file system [default: beside the library].
    #[arg(long, value_name = "DIR")]
    pub(crate) staging: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Check {
    /// Anything.
    None,
    /// A picture that decodes.
    Image,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum IfExists {
    /// It is replaced at commit.
    Overwrite,
    /// The task fails.
    Fail,
}

/// A value's name on the command line, which is also its name as a parameter.
pub(crate) fn word(value: impl ValueEnum) -> String {
    value.to_possible_value().map(|v| v.get_name().to_owned()).unwrap_or_default()
}

/// `KEY=VALUE`.
pub(crate) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE".to_owned()),
    }
}

fn ratio(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(ratio),
        _ => Err("expected a number from 0.0 to 1.0".to_owned()),
    }
}

/// `1h30m`, `90s`, `500ms`, `2d`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    const EXPECTED: &str = "expected a time such as 90s, 10m, 1h30m or 2d";
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or(EXPECTED)?;
        let number: u64 = rest[..digits].parse().map_err(|_| EXPECTED)?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
        let unit_ms: u64 = match &rest[..letters] {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(EXPECTED.to_owned()),
        };
        rest = &rest[letters..];
        let part = number.checked_mul(unit_ms).ok_or("the time is too long")?;
        total = total.checked_add(Duration::from_millis(part)).ok_or("the time is too long")?;
    }
    if total.is_zero() { Err(EXPECTED.to_owned()) } else { Ok(total) }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once("tranche").chain(line.split_whitespace()))
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_tells_the_exit_codes() {
        let help = Cli::command().render_long_help().to_string();
        for text in ["ROLLED_BACK", "  5    the batch is HELD", "130", "TRANCHE_COORDINATOR"] {
            assert!(help.contains(text), "{text}");
        }
    }

    #[test]
    fn durations() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("1h30m"), Ok(Duration::from_mins(90)));
        assert_eq!(duration("2d"), Ok(Duration::from_hours(48)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        for bad in ["", "0s", "10", "m", "10x", "-1s", "1 h", "99999999999999999999s", "999999999999999999d"]
        {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn global_flags_go_anywhere_and_names_are_completed() {
        let cli = parse("get b1 --output json --namespace photos").unwrap();
        assert_eq!(cli.global.output, Output::Json);
        assert_eq!(cli.global.batch("b1"), "namespaces/photos/batches/b1");
        assert_eq!(cli.global.batch("namespaces/x/batches/y"), "namespaces/x/batches/y");
        let cli = parse("get b1").unwrap();
        assert_eq!(cli.global.batch("b1"), "namespaces/-/batches/b1");
        assert_eq!(cli.global.parent(), "namespaces/-");
        assert!(parse("--coordinator http://h:1,http://i:1 list").is_ok());
    }

    #[test]
    fn submit_describes_the_batch() {
        let line = "submit /s --into /l --label a=1 --label b= --priority 20 --max-failed 3 --max-failed-ratio 0.5 \
                    --min-sample 10 --deadline 10m --range-max 64 --max-attempts 2 --approve";
        let Command::Submit(args) = parse(line).unwrap().command else { panic!() };
        let batch = args.batch.batch(v1::Target::default(), args.commit_mode());
        assert_eq!(batch.labels["a"], "1");
        assert_eq!(batch.labels["b"], "");
        assert_eq!((batch.priority, batch.max_attempts), (20, 2));
        assert_eq!(batch.commit_mode(), v1::batch::CommitMode::Manual);
        let limit = batch.failure_limit.unwrap();
        assert_eq!(
            (limit.max_failed_tasks, limit.max_failed_ratio, limit.min_sample),
            (Some(3), Some(0.5), 10)
        );
        assert_eq!(batch.deadline.unwrap().seconds, 600);
        assert_eq!(batch.range_bounds.unwrap().max_tasks, 64);
    }

    #[test]
    fn no_limit_given_is_no_limit() {
        let batch = BatchArgs::default().batch(v1::Target::default(), v1::batch::CommitMode::Auto);
        assert_eq!((batch.failure_limit, batch.deadline, batch.range_bounds), (None, None, None));
    }

    #[test]
    fn wrong_lines_are_refused() {
        for line in [
            "",
            "submit",
            "submit /s --into /l --label x",
            "submit /s --into /l --priority 0",
            "submit /s --into /l --max-failed -1",
            "submit /s --into /l --max-failed-ratio 1.5",
            "submit /s --into /l --min-sample 5",
            "submit /s --into /l --deadline soon",
            "submit /s --into /l --range-max 70000",
            "submit /s --into /l --wait --watch",
            "submit /s --into /l --approve --commit auto",
            "submit --manifest m.csv --format xml --into /l",
            "list --state DONE",
            "get",
            "bench noop --store redis",
        ] {
            assert_eq!(parse(line).unwrap_err().exit_code(), exit::USAGE, "{line}");
        }
    }
}
