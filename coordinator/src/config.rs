//! What a coordinator is told: a TOML file, then the environment, then flags; the later wins.
//!
//! [`FIELDS`] is the one list of names: in the file as they are, in the environment as
//! `TRANCHE_COORDINATOR_` with the name in capitals, as flags with `-` for `_`. A name that isn't there is
//! refused, wherever it is. Nothing is opened before [`Config::check`] said yes.

mod check;
mod limits;
mod security;
mod sources;

pub use limits::{Rate, Share};
pub use security::{OpenService, Security};
pub use sources::{ENV_PREFIX, FIELDS, Field, Texts};

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;
use tranche_proto::MAX_APPEND_BYTES;

/// A coordinator's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Address to listen on; port 0 takes a free one. Default: `127.0.0.1:7070`.
    pub listen: SocketAddr,
    /// Address of the port for operators: `/metrics`, `/livez`, `/readyz`; port 0 takes a free one. With
    /// `tls_cert` it is TLS, without asking who comes; without, another than loopback needs `insecure`. Default: none, there is no such port.
    pub ops_listen: Option<SocketAddr>,
    /// URL of an OpenTelemetry collector that traces are sent to by OTLP over gRPC, `http://host:port`. Default: none.
    pub otlp_endpoint: Option<String>,
    /// URL at which clients, workers and other coordinators reach this one, `http://host:port` or, with TLS,
    /// `https://host:port`.
    /// Default: the address it listens on; required when that is all interfaces (`0.0.0.0`).
    pub advertise: Option<String>,
    /// Lets `listen` be another than loopback although calls are in clear text or nobody is asked who
    /// they are. Default: false.
    pub insecure: bool,
    /// TLS and identities. In the file its fields are beside the others.
    pub security: Security,
    /// Where batches are kept. Default: embedded, in `tranche-data` of the working directory.
    pub store: StoreConfig,
    /// Directory of task segments, failure details and reports. Default: `objects` in the embedded store's
    /// directory; with etcd it is required, and all coordinators must share it.
    pub objects: Option<PathBuf>,
    /// How long to wait for the store at start before giving up. 100 ms to 1 h, default 30 s.
    pub start_timeout: Duration,
    /// How long a lease lives after its worker's last heartbeat: the time until a lost worker's ranges go
    /// to others. 200 ms to 10 min, default 10 s. With several coordinators at least `session_ttl` and two
    /// heartbeats: else leases may end between the loss of a coordinator and the take-over of its batches,
    /// and their tasks are staged again.
    pub lease_ttl: Duration,
    /// How often workers that hold leases send heartbeats; at most a third of `lease_ttl`, so that one may be
    /// lost. Those that hold none send fewer. At least 20 ms. Default: a quarter of `lease_ttl`.
    pub heartbeat_interval: Option<Duration>,
    /// Handlers that a batch may ask for before any worker announced them; at most 64. Default: `object`,
    /// `noop`.
    pub handlers: Vec<String>,
    /// How long a unary call may take. 100 ms to 10 min, default 30 s.
    pub request_timeout: Duration,
    /// Calls that are worked on at once; one more is refused (`OVERLOADED`). 1 to 1,000,000, default 1,024:
    /// each holds at most one message.
    pub max_concurrent_requests: usize,
    /// Calls a second that one identity may make, or one address where nobody is asked who they are; more are told
    /// when to come again. 0 to 1,000,000, default 2,000, some tens of times what a busy client makes. 0: any number.
    /// Workers that attach are counted apart, and as many as may be there may come at once.
    pub max_calls_per_second: usize,
    /// How many of them at once, after a pause. 1 to 1,000,000. Default: those of two seconds.
    pub max_call_burst: Option<usize>,
    /// Connections of the gRPC port at once. When there are so many, the oldest on which no call was let in yet makes
    /// room for the next; if there is none, that is refused. 1 to 1,000,000, default 16,384; never more than the
    /// process may open files, less 256.
    pub max_connections: usize,
    /// Connections of one address (of a /64 network of IPv6) at once; one more is refused. 1 to 1,000,000. Default: no such
    /// limit, since behind a load balancer all may come from one.
    pub max_peer_connections: Option<usize>,
    /// How long a peer may hold things up: with the first frame of its connection, by not reading what is sent to it, by
    /// not answering a ping. 100 ms to 10 min, default 30 s.
    pub peer_timeout: Duration,
    /// WatchBatch streams at once; one more is refused. 1 to 100,000, default 1,024.
    pub max_watchers: usize,
    /// AppendTasks streams at once; one more is refused. 1 to 10,000, default 256.
    pub max_append_streams: usize,
    /// Those of one namespace; one more is refused. 1 to 100,000. Default: with `identities` half of `max_watchers`, so
    /// that one namespace leaves some to the others, and else all.
    pub max_watchers_per_namespace: Option<usize>,
    /// The same of `max_append_streams`. 1 to 10,000.
    pub max_append_streams_per_namespace: Option<usize>,
    /// Streams of workers at once; one more is refused. 1 to 100,000, default 16,384.
    pub max_workers: usize,
    /// Those of one identity; one more is refused. 1 to 100,000. Default: with `identities` half of `max_workers`, and
    /// else all.
    pub max_workers_per_identity: Option<usize>,
    /// Batches of a namespace that haven't ended and been swept, at all coordinators together; one more is refused. 0 to
    /// 100,000, default 10,000. 0: any number.
    pub max_batches_per_namespace: usize,
    /// Bytes of tasks in those, encoded as they were appended; more are refused. With several coordinators about: see
    /// `docs/security.md`. Default: 0, any number, since how much there may be is the volume's to say.
    pub max_bytes_per_namespace: usize,
    /// How long an AppendTasks stream may bring nothing before it is ended (`APPEND_IDLE`); our clients go on with
    /// another. 100 ms to 24 h, default 10 min.
    pub append_idle_timeout: Duration,
    /// Bytes of tasks, of all append streams together, that are not durable yet; more wait. 4 MiB (one
    /// message) to 1 GiB, default 32 MiB.
    pub max_append_inflight_bytes: usize,
    /// How long a shutdown may take before what is still open is cut. 0 to 10 min, default 10 s.
    pub shutdown_grace: Duration,
    /// How long a commit or rollback lease that failed waits before it is given again; doubles with each
    /// failure up to [`MAX_RETRY_PAUSE`]. 10 ms to 30 s, default 1 s.
    pub retry_pause: Duration,
    /// How long a staging lease must be out, at least, before an idle worker gets a second one for the same
    /// tasks, when there is nothing else left to stage. 10 ms to 1 h, default 3 s.
    pub backup_after: Duration,
    /// How long after its end a batch that lost a worker is swept once more, for what that worker may have
    /// staged after waking up. 0 to 24 h, default 10 min.
    pub late_sweep_after: Duration,
    /// What is logged, as `tracing` filter directives. Default: `info`.
    pub log: String,
    /// How it is logged. Default: text.
    pub log_format: LogFormat,
}

/// The longest pause before a failed commit or rollback lease is given again: a library that comes back is
/// noticed within half a minute.
pub const MAX_RETRY_PAUSE: Duration = Duration::from_secs(30);

/// Where batches are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreConfig {
    /// In a directory, by this process alone. As text: `embedded:PATH`.
    Embedded {
        /// The directory.
        path: PathBuf,
    },
    /// In etcd. As text: `etcd:URL,URL`. Only in builds with the feature `etcd`.
    Etcd {
        /// URLs of its members, `http://host:port` or `https://host:port`.
        endpoints: Vec<String>,
        /// Prefix of every key; begins and ends with `/`. Default: `/tranche/v1/`.
        prefix: String,
        /// How long what a lost coordinator held stays locked. 1 s to 10 min, default 5 s.
        session_ttl: Duration,
        /// How long one call may take. 100 ms to 1 min, default 5 s.
        call_timeout: Duration,
    },
}

impl fmt::Display for StoreConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded { path } => write!(f, "embedded:{}", path.display()),
            Self::Etcd { endpoints, .. } => write!(f, "etcd:{}", endpoints.join(",")),
        }
    }
}

/// How logs are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// A JSON object a line.
    Json,
}

impl FromStr for LogFormat {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("must be text or json"),
        }
    }
}

/// Default of [`StoreConfig::Etcd`]'s prefix.
pub const DEFAULT_PREFIX: &str = "/tranche/v1/";
/// Default of [`StoreConfig::Etcd`]'s session TTL.
pub const DEFAULT_SESSION_TTL: Duration = Duration::from_secs(5);
/// Default of [`StoreConfig::Etcd`]'s call timeout.
pub const DEFAULT_CALL_TIMEOUT: Duration = Duration::from_secs(5);

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7070)),
            ops_listen: None,
            otlp_endpoint: None,
            advertise: None,
            insecure: false,
            security: Security::default(),
            store: StoreConfig::Embedded { path: PathBuf::from("tranche-data") },
            objects: None,
            start_timeout: Duration::from_secs(30),
            lease_ttl: Duration::from_secs(10),
            heartbeat_interval: None,
            handlers: vec!["object".to_owned(), "noop".to_owned()],
            request_timeout: Duration::from_secs(30),
            max_concurrent_requests: 1024,
            max_calls_per_second: 2000,
            max_call_burst: None,
            max_watchers: 1024,
            max_append_streams: 256,
            max_watchers_per_namespace: None,
            max_append_streams_per_namespace: None,
            max_workers: 16_384,
            max_workers_per_identity: None,
            max_batches_per_namespace: 10_000,
            max_bytes_per_namespace: 0,
            max_connections: 16_384,
            max_peer_connections: None,
            peer_timeout: Duration::from_secs(30),
            append_idle_timeout: Duration::from_mins(10),
            max_append_inflight_bytes: 8 * MAX_APPEND_BYTES,
            shutdown_grace: Duration::from_secs(10),
            retry_pause: Duration::from_secs(1),
            backup_after: Duration::from_secs(3),
            late_sweep_after: Duration::from_mins(10),
            log: "info".to_owned(),
            log_format: LogFormat::Text,
        }
    }
}

impl Config {
    /// A coordinator of its own in this process: all in `dir`, on a free port of loopback.
    pub fn embedded(dir: PathBuf) -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            store: StoreConfig::Embedded { path: dir },
            ..Self::default()
        }
    }

    /// Reads the file, lays the environment's and then the flags' values over it, and checks it all.
    ///
    /// `env` is all of the environment; what doesn't begin with [`ENV_PREFIX`] is passed over.
    ///
    /// # Errors
    /// Every problem there is, each with its field, its value and where that came from.
    pub fn load(
        file: Option<&Path>,
        env: impl IntoIterator<Item = (String, String)>,
        flags: Texts,
    ) -> Result<Self, ConfigError> {
        let config = sources::load(file, env, flags)?;
        config.check()?;
        Ok(config)
    }

    /// Checks the values against their bounds and each other; opens nothing.
    ///
    /// # Errors
    /// Every problem there is, each with its field and value.
    pub fn check(&self) -> Result<(), ConfigError> {
        ConfigError::of(check::problems(self))
    }

    /// Directory of the object storage.
    pub fn objects_dir(&self) -> PathBuf {
        match (&self.objects, &self.store) {
            (Some(dir), _) => dir.clone(),
            (None, StoreConfig::Embedded { path }) => path.join("objects"),
            // `check` refuses this.
            (None, StoreConfig::Etcd { .. }) => PathBuf::from("objects"),
        }
    }

    /// What is allowed, but may not be meant.
    pub fn hint(&self) -> Option<String> {
        let StoreConfig::Etcd { session_ttl, .. } = &self.store else { return None };
        let needed = *session_ttl + 2 * self.heartbeat();
        (self.lease_ttl < needed).then(|| {
            format!(
                "lease_ttl is {:?}, less than session_ttl and two heartbeats ({needed:?}): when a coordinator is \
                 lost, leases may end before another one takes its batches, and their tasks are staged again",
                self.lease_ttl
            )
        })
    }

    /// How often workers that hold leases send heartbeats.
    pub fn heartbeat(&self) -> Duration {
        self.heartbeat_interval.unwrap_or(self.lease_ttl / 4)
    }

    /// How often workers send heartbeats that hold no lease: a third as often, and often enough that one may be
    /// late by a quarter of `lease_ttl` before its stream is taken for [silent](Self::silence).
    pub fn idle_heartbeat(&self) -> Duration {
        (3 * self.heartbeat()).min(self.lease_ttl * 13 / 20)
    }

    /// How long a worker's stream may bring nothing: two heartbeats may be missing, or one of a worker that holds no
    /// lease be late. The stream ends before the leases of its worker do, since what a silent worker lost
    /// must not be leased to it again. One that was only slow attaches anew, and keeps its leases.
    pub fn silence(&self) -> Duration {
        self.lease_ttl * 9 / 10
    }

    /// The URL to tell others, given the address that was bound.
    pub fn endpoint(&self, bound: SocketAddr) -> String {
        let scheme = if self.security.tls_cert.is_some() { "https" } else { "http" };
        self.advertise.clone().unwrap_or_else(|| format!("{scheme}://{bound}"))
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The field, as in the file; for what came from elsewhere, its name there.
    pub field: String,
    /// Its value, as text; empty when there is none.
    pub value: String,
    /// What is wrong with it.
    pub message: String,
}

impl Problem {
    fn new(field: impl Into<String>, value: impl fmt::Display, message: impl Into<String>) -> Self {
        Self { field: field.into(), value: value.to_string(), message: message.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.value.is_empty() {
            write!(f, "{}: {}", self.field, self.message)
        } else {
            write!(f, "{} = {:?}: {}", self.field, self.value, self.message)
        }
    }
}

/// The configuration isn't right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("wrong configuration: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct ConfigError(
    /// All that is wrong; never empty.
    pub Vec<Problem>,
);

impl ConfigError {
    fn of(problems: Vec<Problem>) -> Result<(), Self> {
        if problems.is_empty() { Ok(()) } else { Err(Self(problems)) }
    }
}

#[cfg(test)]
mod tests;
