//! Where the binary's configuration comes from: flags, else environment, else file, else defaults.

use clap::{Parser, ValueEnum};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use tranche_tls::{ClientFiles, Credentials, ServerFiles};
use tranche_worker::Config;

/// The handlers that are built in.
const HANDLERS: [&str; 2] = ["object", "noop"];

/// Checked settings.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) worker: Config,
    pub(crate) handlers: Vec<String>,
    pub(crate) allow_roots: Vec<PathBuf>,
    pub(crate) ops_listen: Option<SocketAddr>,
    /// Of the ops port; none: it speaks clear text.
    pub(crate) ops_tls: Option<ServerFiles>,
    pub(crate) otlp_endpoint: Option<String>,
    pub(crate) log: String,
    pub(crate) log_format: LogFormat,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One object a line.
    Json,
}

/// Stages, commits and rolls back batches that coordinators lease to it.
///
/// Exit codes: 0 ended by a signal, all reports acknowledged or the time to drain over; 1 failure;
/// 2 wrong configuration.
#[derive(Debug, Parser)]
#[command(name = "tranche-worker", version)]
struct Flags {
    /// Configuration file (TOML, the same names as the flags, with `_`, lists in the plural).
    #[arg(long, env = "TRANCHE_WORKER_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// A coordinator's URL; may be given several times. One that can be reached is enough: it tells of the
    /// others [default: http://127.0.0.1:7070].
    #[arg(long, env = "TRANCHE_WORKER_COORDINATOR", value_name = "URL", value_delimiter = ',')]
    coordinator: Option<Vec<String>>,
    /// CAs of coordinators at https:// (PEM) [default: the system's].
    #[arg(long, env = "TRANCHE_WORKER_TLS_CA", value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// Client certificate (PEM); with --tls-key [default: none].
    #[arg(long, env = "TRANCHE_WORKER_TLS_CERT", value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// Its private key (PEM).
    #[arg(long, env = "TRANCHE_WORKER_TLS_KEY", value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// File of the bearer token [default: none].
    #[arg(long, env = "TRANCHE_WORKER_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// This worker's id; no other may have it [default: host name and random digits].
    #[arg(long, env = "TRANCHE_WORKER_ID")]
    id: Option<String>,
    /// Leases to work on at once [default: processors].
    #[arg(long, env = "TRANCHE_WORKER_SLOTS", value_name = "N")]
    slots: Option<usize>,
    /// A folder that `object` may read and write; may be given several times, `:` between them
    /// [default: none, everything is refused].
    #[arg(long, env = "TRANCHE_WORKER_ALLOW_ROOT", value_name = "PATH", value_delimiter = ':')]
    allow_root: Option<Vec<PathBuf>>,
    /// How long running leases may go on after a signal [default: 10s].
    #[arg(long, env = "TRANCHE_WORKER_DRAIN_TIMEOUT", value_name = "TIME", value_parser = duration)]
    drain_timeout: Option<Duration>,
    /// Handlers to offer [default: object,noop].
    #[arg(long, env = "TRANCHE_WORKER_HANDLERS", value_name = "NAMES", value_delimiter = ',')]
    handlers: Option<Vec<String>>,
    /// Address of /metrics, /livez and /readyz; port 0 takes a free one [default: none].
    #[arg(long, env = "TRANCHE_WORKER_OPS_LISTEN", value_name = "IP:PORT")]
    ops_listen: Option<SocketAddr>,
    /// Server certificate of --ops-listen (PEM); with --ops-tls-key. Not --tls-cert, which is a client's
    /// [default: none, it speaks clear text].
    #[arg(long, env = "TRANCHE_WORKER_OPS_TLS_CERT", value_name = "FILE")]
    ops_tls_cert: Option<PathBuf>,
    /// Its private key (PEM).
    #[arg(long, env = "TRANCHE_WORKER_OPS_TLS_KEY", value_name = "FILE")]
    ops_tls_key: Option<PathBuf>,
    /// CAs of those who read /metrics (PEM): it answers to their certificates alone [default: to everybody].
    #[arg(long, env = "TRANCHE_WORKER_OPS_CLIENT_CA", value_name = "FILE")]
    ops_client_ca: Option<PathBuf>,
    /// URL of an OpenTelemetry collector that traces are sent to, by OTLP over gRPC [default: none].
    #[arg(long, env = "TRANCHE_WORKER_OTLP_ENDPOINT", value_name = "URL")]
    otlp_endpoint: Option<String>,
    /// Lets --ops-listen be another than loopback, in clear text, open to all [default: false].
    #[arg(long, env = "TRANCHE_WORKER_INSECURE", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    insecure: Option<bool>,
    /// Level or filter of the log on stderr [default: info].
    #[arg(long, env = "TRANCHE_WORKER_LOG", value_name = "LEVEL")]
    log: Option<String>,
    /// How log lines look [default: text].
    #[arg(long, env = "TRANCHE_WORKER_LOG_FORMAT", value_name = "FORMAT")]
    log_format: Option<LogFormat>,
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime_serde::re::humantime::parse_duration(text).map_err(|error| error.to_string())
}

/// The configuration file.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct File {
    coordinators: Option<Vec<String>>,
    tls_ca: Option<PathBuf>,
    tls_cert: Option<PathBuf>,
    tls_key: Option<PathBuf>,
    #[serde(rename = "token_file")]
    token: Option<PathBuf>,
    id: Option<String>,
    slots: Option<usize>,
    prefetch: Option<usize>,
    window_bytes: Option<u64>,
    allow_roots: Option<Vec<PathBuf>>,
    #[serde(with = "humantime_serde")]
    drain_timeout: Option<Duration>,
    handlers: Option<Vec<String>>,
    labels: Option<BTreeMap<String, String>>,
    ops_listen: Option<SocketAddr>,
    ops_tls_cert: Option<PathBuf>,
    ops_tls_key: Option<PathBuf>,
    ops_client_ca: Option<PathBuf>,
    otlp_endpoint: Option<String>,
    insecure: Option<bool>,
    log: Option<String>,
    log_format: Option<LogFormat>,
}

impl Settings {
    /// Reads flags, environment and file.
    ///
    /// # Errors
    /// Says which field or key is wrong.
    pub(crate) fn load() -> Result<Self, String> {
        Self::from_flags(Flags::parse())
    }

    fn from_flags(flags: Flags) -> Result<Self, String> {
        let file = match &flags.config {
            Some(path) => read(path)?,
            None => File::default(),
        };
        let coordinators = flags.coordinator.or(file.coordinators);
        let mut worker = Config::new(coordinators.unwrap_or_else(|| vec!["http://127.0.0.1:7070".into()]));
        if let Some(id) = flags.id.or(file.id) {
            worker.id = id;
        }
        worker.slots = flags.slots.or(file.slots).unwrap_or(worker.slots);
        worker.prefetch = file.prefetch.unwrap_or(worker.prefetch);
        worker.window_bytes = file.window_bytes.unwrap_or(worker.window_bytes);
        worker.drain_timeout = flags.drain_timeout.or(file.drain_timeout).unwrap_or(worker.drain_timeout);
        worker.labels = file.labels.unwrap_or_default();
        let files = ClientFiles {
            ca: flags.tls_ca.or(file.tls_ca),
            cert: flags.tls_cert.or(file.tls_cert),
            key: flags.tls_key.or(file.tls_key),
            token: flags.token_file.or(file.token),
        };
        worker.credentials = Credentials::load(files).map_err(|error| error.to_string())?;
        worker.check().map_err(|error| error.to_string())?;
        let handlers = flags.handlers.or(file.handlers);
        let handlers = handlers.unwrap_or_else(|| HANDLERS.map(str::to_owned).to_vec());
        if let Some(unknown) = handlers.iter().find(|handler| !HANDLERS.contains(&handler.as_str())) {
            return Err(format!("handlers = {unknown:?}: known are {}", HANDLERS.join(", ")));
        }
        if handlers.is_empty() {
            return Err("handlers = []: at least one is needed".into());
        }
        let ops_listen = flags.ops_listen.or(file.ops_listen);
        let pair = (flags.ops_tls_cert.or(file.ops_tls_cert), flags.ops_tls_key.or(file.ops_tls_key));
        let client_ca = flags.ops_client_ca.or(file.ops_client_ca);
        let ops_tls = match pair {
            (Some(cert), Some(key)) => {
                Some(ServerFiles { cert, key, client_ca: client_ca.clone(), client_required: false })
            }
            (None, None) => None,
            (Some(_), None) => return Err("ops_tls_key is required with ops_tls_cert".into()),
            (None, Some(_)) => return Err("ops_tls_cert is required with ops_tls_key".into()),
        };
        if client_ca.is_some() && ops_tls.is_none() {
            return Err("ops_client_ca does nothing without ops_tls_cert: certificates need TLS".into());
        }
        if ops_tls.is_some() && ops_listen.is_none() {
            return Err("ops_tls_cert is for the port of ops_listen, and there is none".into());
        }
        let insecure = flags.insecure.or(file.insecure).unwrap_or(false);
        if let Some(ops) = ops_listen
            && !tranche_ops::is_loopback(ops.ip())
            && ops_tls.is_none()
            && !insecure
        {
            return Err(format!(
                "ops_listen = \"{ops}\": other machines could read the metrics in clear text; listen on loopback, set \
                 ops_tls_cert and ops_tls_key, or set insecure = true (--insecure) in a network you trust"
            ));
        }
        Ok(Self {
            ops_listen,
            ops_tls,
            otlp_endpoint: flags.otlp_endpoint.or(file.otlp_endpoint),
            worker,
            handlers,
            allow_roots: flags.allow_root.or(file.allow_roots).unwrap_or_default(),
            log: flags.log.or(file.log).unwrap_or_else(|| "info".into()),
            log_format: flags.log_format.or(file.log_format).unwrap_or_default(),
        })
    }
}

fn read(path: &std::path::Path) -> Result<File, String> {
    let wrong = |error: config::ConfigError| format!("{}: {error}", path.display());
    let source = config::File::from(path).format(config::FileFormat::Toml);
    config::Config::builder().add_source(source).build().map_err(wrong)?.try_deserialize().map_err(wrong)
}
