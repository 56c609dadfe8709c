//! From file, environment and flags to fields.
//!
//! All three are brought to the same shape first, text by field name: so each value has one parser,
//! wherever it came from, and the error can say where that was.

use super::{
    Config, ConfigError, DEFAULT_CALL_TIMEOUT, DEFAULT_PREFIX, DEFAULT_SESSION_TTL, Problem, StoreConfig,
};
use config::FileFormat;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// What the names of our environment variables begin with.
pub const ENV_PREFIX: &str = "TRANCHE_COORDINATOR_";

/// The variable that names the file; no field.
const CONFIG_ENV: &str = "TRANCHE_COORDINATOR_CONFIG";

/// Values as text, by field name. A list's elements are separated by commas.
pub type Texts = BTreeMap<&'static str, String>;

/// A field of the configuration.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Its name in the file.
    pub name: &'static str,
    /// What its value is, for `--help`.
    pub value: &'static str,
    /// What it does, with unit and default, for `--help`.
    pub help: &'static str,
}

const fn field(name: &'static str, value: &'static str, help: &'static str) -> Field {
    Field { name, value, help }
}

/// All fields.
pub const FIELDS: &[Field] = &[
    field("listen", "IP:PORT", "Address to listen on; port 0 takes a free one [default: 127.0.0.1:7070]"),
    field(
        "ops_listen",
        "IP:PORT",
        "Address of /metrics, /livez and /readyz; port 0 takes a free one [default: none]",
    ),
    field(
        "otlp_endpoint",
        "URL",
        "OpenTelemetry collector that traces are sent to, by OTLP over gRPC [default: none]",
    ),
    field("advertise", "URL", "URL at which others reach this coordinator [default: the listen address]"),
    field(
        "insecure",
        "BOOL",
        "Lets --listen be another than loopback, in clear text, open to all [default: false]",
    ),
    field(
        "tls_cert",
        "FILE",
        "Certificate of the gRPC port (PEM); with --tls-key, read again when it changes",
    ),
    field("tls_key", "FILE", "Its private key (PEM)"),
    field("tls_client_ca", "FILE", "CAs of clients (PEM) [default: no certificates of clients]"),
    field("ops_client_ca", "FILE", "CAs of those who read /metrics (PEM) [default: everybody may]"),
    field("identities", "FILE", "Who may do what (TOML), read again when it changes [default: all may all]"),
    field("open_services", "NAMES", "Answer without a credential: health, reflection [default: health]"),
    field("tls_ca", "FILE", "CAs of the other coordinators (PEM) [default: the system's]"),
    field("token_file", "FILE", "Bearer token towards the other coordinators [default: none]"),
    field("store", "STORE", "embedded:PATH or etcd:URL[,URL...] [default: embedded:tranche-data]"),
    field("prefix", "PREFIX", "Prefix of all keys in etcd [default: /tranche/v1/]"),
    field("session_ttl", "TIME", "etcd: how long a lost coordinator's locks stay, 1s to 10m [default: 5s]"),
    field("call_timeout", "TIME", "etcd: how long one call may take, 100ms to 1m [default: 5s]"),
    field("etcd_ca", "FILE", "etcd: its CAs (PEM); required with https://"),
    field("etcd_cert", "FILE", "etcd: client certificate (PEM); with --etcd-key [default: none]"),
    field("etcd_key", "FILE", "etcd: its private key (PEM)"),
    field("etcd_user", "NAME", "etcd: user; with --etcd-password-file [default: none]"),
    field("etcd_password_file", "FILE", "etcd: the user's password"),
    field(
        "objects",
        "DIR",
        "Directory of segments, failures, reports [default: objects in the embedded store]",
    ),
    field("start_timeout", "TIME", "How long to wait for the store at start, 100ms to 1h [default: 30s]"),
    field(
        "lease_ttl",
        "TIME",
        "How long a lease lives after a heartbeat, 200ms to 10m; with etcd at least session_ttl and two heartbeats [default: 10s]",
    ),
    field(
        "heartbeat_interval",
        "TIME",
        "How often workers that hold leases send heartbeats; idle ones half as often [default: a quarter of --lease-ttl]",
    ),
    field("handlers", "NAMES", "Handlers known before a worker announced them [default: object,noop]"),
    field("request_timeout", "TIME", "How long a unary call may take, 100ms to 10m [default: 30s]"),
    field("max_concurrent_requests", "N", "Calls at once; more are refused, 1 to 1000000 [default: 1024]"),
    field(
        "max_calls_per_second",
        "N",
        "Calls a second of one identity or address, 0 (any number) to 1000000 [default: 2000]",
    ),
    field(
        "max_call_burst",
        "N",
        "How many of them at once, 1 to 1000000 [default: twice --max-calls-per-second]",
    ),
    field(
        "max_connections",
        "N",
        "Connections at once; the oldest without a call makes room, or one more is refused, 1 to 1000000 [default: 16384]",
    ),
    field(
        "max_peer_connections",
        "N",
        "Connections of one address at once; more are refused, 1 to 1000000 [default: no limit]",
    ),
    field(
        "peer_timeout",
        "TIME",
        "How long a peer may be silent at first, or leave unread what is sent to it, 100ms to 10m [default: 30s]",
    ),
    field("max_watchers", "N", "WatchBatch streams at once; more are refused, 1 to 100000 [default: 1024]"),
    field(
        "max_append_streams",
        "N",
        "AppendTasks streams at once; more are refused, 1 to 10000 [default: 256]",
    ),
    field(
        "max_watchers_per_namespace",
        "N",
        "Those of one namespace, 1 to 100000 [default: half of them with --identities, else all]",
    ),
    field(
        "max_append_streams_per_namespace",
        "N",
        "Those of one namespace, 1 to 10000 [default: half of them with --identities, else all]",
    ),
    field("max_workers", "N", "Streams of workers at once; more are refused, 1 to 100000 [default: 16384]"),
    field(
        "max_workers_per_identity",
        "N",
        "Those of one identity, 1 to 100000 [default: half of them with --identities, else all]",
    ),
    field(
        "max_batches_per_namespace",
        "N",
        "Batches of one namespace that haven't ended, 0 (any number) to 100000 [default: 10000]",
    ),
    field(
        "max_bytes_per_namespace",
        "SIZE",
        "Bytes of tasks in them, 0 (any number) to 1048576GiB [default: 0]",
    ),
    field(
        "append_idle_timeout",
        "TIME",
        "How long an AppendTasks stream may bring nothing, 100ms to 24h [default: 10m]",
    ),
    field(
        "max_append_inflight_bytes",
        "SIZE",
        "Tasks not durable yet, in bytes, 4MiB to 1GiB [default: 32MiB]",
    ),
    field("shutdown_grace", "TIME", "How long a shutdown may take, 0s to 10m [default: 10s]"),
    field("retry_pause", "TIME", "Pause before a failed commit is tried again, 10ms to 30s [default: 1s]"),
    field(
        "backup_after",
        "TIME",
        "Age of a lease before an idle worker doubles it, 10ms to 1h [default: 3s]",
    ),
    field("late_sweep_after", "TIME", "Second sweep after a worker was lost, 0s to 24h [default: 10m]"),
    field("log", "FILTER", "What is logged, as tracing directives [default: info]"),
    field("log_format", "FORMAT", "text or json [default: text]"),
];

/// A value and where it came from.
struct Given {
    origin: String,
    text: String,
}

pub(super) fn load(
    file: Option<&Path>,
    env: impl IntoIterator<Item = (String, String)>,
    flags: Texts,
) -> Result<Config, ConfigError> {
    let mut reader = Reader { given: BTreeMap::new(), problems: Vec::new() };
    if let Some(path) = file {
        reader.add_file(path);
    }
    for (name, text) in env {
        // The binary's own: where the file is.
        if name == CONFIG_ENV {
            continue;
        }
        if let Some(tail) = name.strip_prefix(ENV_PREFIX) {
            let known = FIELDS.iter().find(|field| field.name.to_ascii_uppercase() == tail);
            reader.add(known, name, text);
        }
    }
    for (name, text) in flags {
        let known = FIELDS.iter().find(|field| field.name == name);
        reader.add(known, format!("--{}", name.replace('_', "-")), text);
    }
    let config = reader.config();
    ConfigError::of(reader.problems)?;
    Ok(config)
}

struct Reader {
    given: BTreeMap<&'static str, Given>,
    problems: Vec<Problem>,
}

impl Reader {
    fn add(&mut self, field: Option<&Field>, origin: String, text: String) {
        if let Some(field) = field {
            self.given.insert(field.name, Given { origin, text });
        } else {
            let known = FIELDS.iter().map(|field| field.name).collect::<Vec<_>>().join(", ");
            self.problems.push(Problem::new(origin, text, format!("is unknown; there are {known}")));
        }
    }

    fn add_file(&mut self, path: &Path) {
        let origin = path.display();
        // Not through the crate's own file source: it guesses other names when the file isn't there.
        let read = std::fs::read_to_string(path).map_err(|error| error.to_string()).and_then(|text| {
            let source = config::File::from_str(&text, FileFormat::Toml);
            let file = config::Config::builder().add_source(source).build();
            file.map_err(|error| error.to_string())
        });
        let table = match read.map(|file| file.cache.into_table()) {
            Ok(Ok(table)) => table.into_iter().collect::<BTreeMap<_, _>>(),
            Ok(Err(error)) => return self.problems.push(Problem::new("config", origin, error.to_string())),
            Err(error) => return self.problems.push(Problem::new("config", origin, error)),
        };
        for (name, value) in table {
            let text = match value.clone().into_array() {
                Ok(list) => {
                    let list =
                        list.into_iter().map(config::Value::into_string).collect::<Result<Vec<_>, _>>();
                    list.map(|list| list.join(","))
                }
                Err(_) => value.into_string(),
            };
            let field = FIELDS.iter().find(|field| field.name == name);
            let origin = format!("{name} in {origin}");
            match text {
                Ok(text) => self.add(field, origin, text),
                Err(_) if field.is_none() => self.add(None, origin, String::new()),
                Err(error) => self.problems.push(Problem::new(origin, "", error.to_string())),
            }
        }
    }

    /// Takes a field's value, if it was given and can be read.
    fn take<T, E: Display>(&mut self, name: &str, parse: impl Fn(&str) -> Result<T, E>) -> Option<T> {
        let given = self.given.remove(name)?;
        match parse(given.text.trim()) {
            Ok(value) => Some(value),
            Err(error) => {
                self.problems.push(Problem::new(given.origin, given.text, error.to_string()));
                None
            }
        }
    }

    fn set<T, E: Display>(&mut self, slot: &mut T, name: &str, parse: impl Fn(&str) -> Result<T, E>) {
        if let Some(value) = self.take(name, parse) {
            *slot = value;
        }
    }

    fn config(&mut self) -> Config {
        let mut config = Config::default();
        self.set(&mut config.listen, "listen", |text| {
            text.parse().map_err(|_| "must be an IP address and a port, as 127.0.0.1:7070")
        });
        self.set(&mut config.ops_listen, "ops_listen", |text| {
            text.parse().map(Some).map_err(|_| "must be an IP address and a port, as 127.0.0.1:7071")
        });
        self.set(&mut config.otlp_endpoint, "otlp_endpoint", |text| some(text.to_owned()));
        self.set(&mut config.advertise, "advertise", |text| some(text.to_owned()));
        self.set(&mut config.insecure, "insecure", |text| text.parse().map_err(|_| "must be true or false"));
        self.security(&mut config);
        self.store(&mut config);
        self.set(&mut config.objects, "objects", |text| some(PathBuf::from(text)));
        self.set(&mut config.start_timeout, "start_timeout", time);
        self.set(&mut config.lease_ttl, "lease_ttl", time);
        self.set(&mut config.heartbeat_interval, "heartbeat_interval", |text| time(text).map(Some));
        self.set(&mut config.handlers, "handlers", |text| {
            let names = text.split(',').map(|name| name.trim().to_owned());
            Ok::<_, String>(if text.is_empty() { Vec::new() } else { names.collect() })
        });
        self.set(&mut config.request_timeout, "request_timeout", time);
        self.set(&mut config.max_concurrent_requests, "max_concurrent_requests", number);
        self.set(&mut config.max_calls_per_second, "max_calls_per_second", number);
        self.set(&mut config.max_call_burst, "max_call_burst", |text| number(text).map(Some));
        self.set(&mut config.max_watchers, "max_watchers", number);
        self.set(&mut config.max_append_streams, "max_append_streams", number);
        for (name, slot) in [
            ("max_watchers_per_namespace", &mut config.max_watchers_per_namespace),
            ("max_append_streams_per_namespace", &mut config.max_append_streams_per_namespace),
            ("max_workers_per_identity", &mut config.max_workers_per_identity),
        ] {
            self.set(slot, name, |text| number(text).map(Some));
        }
        self.set(&mut config.max_workers, "max_workers", number);
        self.set(&mut config.max_batches_per_namespace, "max_batches_per_namespace", number);
        self.set(&mut config.max_bytes_per_namespace, "max_bytes_per_namespace", size);
        self.set(&mut config.max_connections, "max_connections", number);
        self.set(&mut config.max_peer_connections, "max_peer_connections", |text| number(text).map(Some));
        self.set(&mut config.peer_timeout, "peer_timeout", time);
        self.set(&mut config.append_idle_timeout, "append_idle_timeout", time);
        self.set(&mut config.max_append_inflight_bytes, "max_append_inflight_bytes", size);
        self.set(&mut config.shutdown_grace, "shutdown_grace", time);
        self.set(&mut config.retry_pause, "retry_pause", time);
        self.set(&mut config.backup_after, "backup_after", time);
        self.set(&mut config.late_sweep_after, "late_sweep_after", time);
        self.set(&mut config.log, "log", |text| Ok::<_, String>(text.to_owned()));
        self.set(&mut config.log_format, "log_format", str::parse);
        config
    }

    fn security(&mut self, config: &mut Config) {
        let security = &mut config.security;
        for (name, slot) in [
            ("tls_cert", &mut security.tls_cert),
            ("tls_key", &mut security.tls_key),
            ("tls_client_ca", &mut security.tls_client_ca),
            ("ops_client_ca", &mut security.ops_client_ca),
            ("identities", &mut security.identities),
            ("tls_ca", &mut security.tls_ca),
            ("token_file", &mut security.token_file),
            ("etcd_ca", &mut security.etcd_ca),
            ("etcd_cert", &mut security.etcd_cert),
            ("etcd_key", &mut security.etcd_key),
            ("etcd_password_file", &mut security.etcd_password_file),
        ] {
            self.set(slot, name, path);
        }
        self.set(&mut security.etcd_user, "etcd_user", |text| some(text.to_owned()));
        self.set(&mut security.open_services, "open_services", |text| {
            text.split(',')
                .map(str::trim)
                .filter(|name| !name.is_empty())
                .map(str::parse)
                .collect::<Result<_, _>>()
        });
    }

    fn store(&mut self, config: &mut Config) {
        self.set(&mut config.store, "store", str::parse);
        if let StoreConfig::Etcd { prefix, session_ttl, call_timeout, .. } = &mut config.store {
            self.set(prefix, "prefix", |text| Ok::<_, String>(text.to_owned()));
            self.set(session_ttl, "session_ttl", time);
            self.set(call_timeout, "call_timeout", time);
        }
        // A setting that does nothing is a mistake that its author should hear about.
        for name in ["prefix", "session_ttl", "call_timeout"] {
            if let Some(given) = self.given.remove(name) {
                self.problems.push(Problem::new(given.origin, given.text, "is only for an etcd store"));
            }
        }
    }
}

impl FromStr for StoreConfig {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            Some(("embedded", path)) => Ok(Self::Embedded { path: PathBuf::from(path) }),
            Some(("etcd", urls)) => Ok(Self::Etcd {
                endpoints: urls
                    .split(',')
                    .map(|url| url.trim().to_owned())
                    .filter(|url| !url.is_empty())
                    .collect(),
                prefix: DEFAULT_PREFIX.to_owned(),
                session_ttl: DEFAULT_SESSION_TTL,
                call_timeout: DEFAULT_CALL_TIMEOUT,
            }),
            _ => Err("must be embedded:PATH or etcd:URL[,URL...]"),
        }
    }
}

#[allow(clippy::unnecessary_wraps, reason = "a parser")]
fn some<T>(value: T) -> Result<Option<T>, String> {
    Ok(Some(value))
}

fn path(text: &str) -> Result<Option<PathBuf>, &'static str> {
    if text.is_empty() { Err("must be the path of a file") } else { Ok(Some(PathBuf::from(text))) }
}

fn time(text: &str) -> Result<Duration, String> {
    let parsed = humantime_serde::re::humantime::parse_duration(text);
    parsed.map_err(|error| format!("is no time (as 500ms, 10s, 2m): {error}"))
}

fn number(text: &str) -> Result<usize, String> {
    text.parse().map_err(|error| format!("is no number: {error}"))
}

/// A number of bytes, or of `KiB`, `MiB`, `GiB`.
fn size(text: &str) -> Result<usize, String> {
    let (digits, shift) = [("KiB", 10), ("MiB", 20), ("GiB", 30)]
        .into_iter()
        .find_map(|(unit, shift)| Some((text.strip_suffix(unit)?.trim_end(), shift)))
        .unwrap_or((text, 0));
    let count: usize = digits.parse().map_err(|_| "is no size (as 33554432, 32MiB)".to_owned())?;
    count.checked_mul(1 << shift).ok_or_else(|| "is too large".to_owned())
}
