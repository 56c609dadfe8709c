//! What a [`Worker`](crate::Worker) needs to know.

use std::collections::BTreeMap;
use std::time::Duration;
use tranche_tls::{Credentials, UrlError};

/// A worker's configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// URLs of coordinators, `http://host:port` or `https://host:port`, at least one. The worker keeps a stream to each, and to the
    /// other coordinators of which they tell it.
    pub coordinators: Vec<String>,
    /// The worker's id, 1 to 128 bytes; no other worker of the cluster may have it. Default: the
    /// host's name and some random digits.
    pub id: String,
    /// How many leases run at once. Default: the number of processors.
    pub slots: usize,
    /// How many leases more are asked for, so that a slot never waits for the network. Default: 1.
    pub prefetch: usize,
    /// The most payload bytes held at once. Default: 64 MiB.
    pub window_bytes: u64,
    /// How long running leases may go on after a shutdown began. Default: 10 s.
    pub drain_timeout: Duration,
    /// Labels for people. Default: none.
    pub labels: BTreeMap<String, String>,
    /// The first pause before a coordinator is dialled again; pauses double, with jitter.
    /// Default: 100 ms.
    pub reconnect_min: Duration,
    /// The longest such pause. Default: 5 s.
    pub reconnect_max: Duration,
    /// CA, client certificate and token towards coordinators. Default: the system's CAs, nothing of our own.
    pub credentials: Credentials,
}

impl Config {
    /// The defaults, for these coordinators.
    pub fn new(coordinators: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            coordinators: coordinators.into_iter().map(Into::into).collect(),
            id: default_id(),
            slots: std::thread::available_parallelism().map_or(1, usize::from),
            prefetch: 1,
            window_bytes: 64 * 1024 * 1024,
            drain_timeout: Duration::from_secs(10),
            labels: BTreeMap::new(),
            reconnect_min: Duration::from_millis(100),
            reconnect_max: Duration::from_secs(5),
            credentials: Credentials::default(),
        }
    }

    /// Checks it.
    ///
    /// # Errors
    /// Names the field and the value that is wrong.
    pub fn check(&self) -> Result<(), ConfigError> {
        let wrong = |field, value: String, rule| Err(ConfigError { field, value, rule });
        if self.coordinators.is_empty() {
            return wrong("coordinators", "[]".into(), "at least one URL is needed");
        }
        for url in &self.coordinators {
            if self.credentials.check(url).is_err_and(|error| matches!(error, UrlError::ClearText)) {
                return wrong(
                    "coordinators",
                    url.clone(),
                    "must begin with https://: a token isn't sent in clear text",
                );
            }
            if tranche_tls::endpoint(url).is_err() {
                return wrong("coordinators", url.clone(), "must be a URL like http://host:port");
            }
        }
        if self.id.is_empty() || self.id.len() > 128 {
            return wrong("id", self.id.clone(), "must have 1 to 128 bytes");
        }
        if !(1..=1024).contains(&self.slots) {
            return wrong("slots", self.slots.to_string(), "must be 1 to 1024");
        }
        if self.prefetch > 1024 {
            return wrong("prefetch", self.prefetch.to_string(), "must be 0 to 1024");
        }
        if self.window_bytes < 8 * 1024 * 1024 {
            return wrong("window_bytes", self.window_bytes.to_string(), "must be at least 8388608 (8 MiB)");
        }
        Ok(())
    }
}

/// A field of the configuration is wrong.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{field} = {value:?}: {rule}")]
pub struct ConfigError {
    /// The field.
    pub field: &'static str,
    /// Its value.
    pub value: String,
    /// What it must be.
    pub rule: &'static str,
}

/// Two workers on one host must not share an id: each would take the other for its own restart.
fn default_id() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host: String = host.trim().chars().take(64).collect();
    let random = uuid::Uuid::new_v4().simple().to_string();
    format!("{}-{}", if host.is_empty() { "worker" } else { &host }, &random[..8])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_right() {
        Config::new(["http://127.0.0.1:7070"]).check().unwrap();
    }

    #[test]
    fn errors_name_the_field_and_the_value() {
        let good = Config::new(["http://127.0.0.1:7070"]);
        let error = |config: Config| config.check().unwrap_err().to_string();
        assert!(error(Config::new([""; 0])).starts_with("coordinators"));
        assert_eq!(
            error(Config::new(["ftp://x"])),
            r#"coordinators = "ftp://x": must be a URL like http://host:port"#
        );
        assert_eq!(error(Config { slots: 0, ..good.clone() }), r#"slots = "0": must be 1 to 1024"#);
        assert!(error(Config { id: String::new(), ..good }).starts_with("id = "));
    }
}
