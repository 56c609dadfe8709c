//! The bounds.

use super::{Config, Problem, StoreConfig, security};
use std::collections::HashSet;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;
use tracing_subscriber::EnvFilter;
use tranche_ops::is_loopback;
use tranche_proto::MAX_APPEND_BYTES;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_mins(1);
/// The most handlers in the configuration.
const MAX_HANDLERS: usize = 64;

pub(super) fn problems(config: &Config) -> Vec<Problem> {
    let mut found = Vec::new();
    security::check(config, &mut found);
    addresses(config, &mut found);
    store(config, &mut found);
    let ms = Duration::from_millis;
    duration(&mut found, "start_timeout", config.start_timeout, ms(100)..=60 * MINUTE);
    duration(&mut found, "lease_ttl", config.lease_ttl, ms(200)..=10 * MINUTE);
    if let Some(interval) = config.heartbeat_interval {
        duration(&mut found, "heartbeat_interval", interval, ms(20)..=(config.lease_ttl / 3).max(ms(20)));
    }
    duration(&mut found, "request_timeout", config.request_timeout, ms(100)..=10 * MINUTE);
    duration(&mut found, "shutdown_grace", config.shutdown_grace, Duration::ZERO..=10 * MINUTE);
    duration(&mut found, "retry_pause", config.retry_pause, ms(10)..=super::MAX_RETRY_PAUSE);
    duration(&mut found, "backup_after", config.backup_after, ms(10)..=60 * MINUTE);
    duration(&mut found, "late_sweep_after", config.late_sweep_after, Duration::ZERO..=24 * 60 * MINUTE);
    number(&mut found, "max_concurrent_requests", config.max_concurrent_requests, 1..=1_000_000);
    number(&mut found, "max_calls_per_second", config.max_calls_per_second, 0..=1_000_000);
    if let Some(burst) = config.max_call_burst {
        number(&mut found, "max_call_burst", burst, 1..=1_000_000);
    }
    number(&mut found, "max_connections", config.max_connections, 1..=1_000_000);
    if let Some(most) = config.max_peer_connections {
        number(&mut found, "max_peer_connections", most, 1..=1_000_000);
    }
    duration(&mut found, "peer_timeout", config.peer_timeout, ms(100)..=10 * MINUTE);
    duration(&mut found, "append_idle_timeout", config.append_idle_timeout, ms(100)..=24 * 60 * MINUTE);
    number(&mut found, "max_watchers", config.max_watchers, 1..=100_000);
    number(&mut found, "max_append_streams", config.max_append_streams, 1..=10_000);
    number(&mut found, "max_workers", config.max_workers, 1..=100_000);
    for (field, value, most) in [
        ("max_watchers_per_namespace", config.max_watchers_per_namespace, 100_000),
        ("max_append_streams_per_namespace", config.max_append_streams_per_namespace, 10_000),
        ("max_workers_per_identity", config.max_workers_per_identity, 100_000),
    ] {
        if let Some(value) = value {
            number(&mut found, field, value, 1..=most);
        }
    }
    number(&mut found, "max_batches_per_namespace", config.max_batches_per_namespace, 0..=100_000);
    number(&mut found, "max_bytes_per_namespace", config.max_bytes_per_namespace, 0..=1 << 50);
    number(
        &mut found,
        "max_append_inflight_bytes",
        config.max_append_inflight_bytes,
        MAX_APPEND_BYTES..=1024 * 1024 * 1024,
    );
    handlers(config, &mut found);
    if let Err(error) = EnvFilter::try_new(&config.log) {
        found.push(Problem::new("log", &config.log, format!("is no log filter: {error}")));
    }
    found
}

fn addresses(config: &Config, found: &mut Vec<Problem>) {
    let listen = config.listen;
    if let Some(ops) = config.ops_listen.filter(|ops| !is_loopback(ops.ip()))
        && !config.insecure
        && config.security.tls_cert.is_none()
    {
        found.push(Problem::new(
            "ops_listen",
            ops,
            "other machines could read the metrics in clear text; listen on loopback, set tls_cert and tls_key, or set \
             insecure = true (--insecure) in a network you trust",
        ));
    }
    if let Some(url) = &config.otlp_endpoint
        && let Err(message) = check_url(url)
    {
        found.push(Problem::new("otlp_endpoint", url, message));
    }
    match &config.advertise {
        Some(url) => {
            if let Err(message) = check_url(url) {
                found.push(Problem::new("advertise", url, message));
            }
        }
        None if listen.ip().is_unspecified() => found.push(Problem::new(
            "advertise",
            "",
            format!("is required with listen = {listen}, which is no address that others can connect to"),
        )),
        None => {}
    }
}

fn store(config: &Config, found: &mut Vec<Problem>) {
    match &config.store {
        StoreConfig::Embedded { path } => {
            if path.as_os_str().is_empty() {
                found.push(Problem::new("store", "embedded:", "the path is missing"));
            }
        }
        StoreConfig::Etcd { endpoints, prefix, session_ttl, call_timeout } => {
            if cfg!(not(feature = "etcd")) {
                found.push(Problem::new(
                    "store",
                    format!("etcd:{}", endpoints.join(",")),
                    "this build has no etcd store (feature `etcd`); use embedded:PATH",
                ));
            }
            if endpoints.is_empty() {
                found.push(Problem::new("store", "etcd:", "the URLs are missing"));
            }
            for url in endpoints {
                if let Err(message) = check_url(url) {
                    found.push(Problem::new("store", url, message));
                }
            }
            if prefix.len() < 3 || !prefix.starts_with('/') || !prefix.ends_with('/') {
                found.push(Problem::new(
                    "prefix",
                    prefix,
                    "must begin and end with / and have a name between",
                ));
            }
            duration(found, "session_ttl", *session_ttl, SECOND..=10 * MINUTE);
            duration(found, "call_timeout", *call_timeout, Duration::from_millis(100)..=MINUTE);
            if config.objects.is_none() {
                found.push(Problem::new(
                    "objects",
                    "",
                    "is required with etcd: a directory that all coordinators share",
                ));
            }
        }
    }
    if config.objects.as_ref().is_some_and(|dir| dir.as_os_str().is_empty()) {
        found.push(Problem::new("objects", "", "must not be empty"));
    }
}

fn handlers(config: &Config, found: &mut Vec<Problem>) {
    number(found, "handlers", config.handlers.len(), 0..=MAX_HANDLERS);
    let mut seen = HashSet::new();
    for handler in &config.handlers {
        if !crate::grpc::validate::is_handler_name(handler) {
            let message = "a handler's name is 1 to 63 of a-z, 0-9, - and _";
            found.push(Problem::new("handlers", handler, message));
        } else if !seen.insert(handler) {
            found.push(Problem::new("handlers", handler, "is there twice"));
        }
    }
}

fn check_url(url: &str) -> Result<(), String> {
    let uri: http::Uri = url.parse().map_err(|error| format!("is no URL: {error}"))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err("must begin with http:// or https://".to_owned());
    }
    if uri.host().is_none_or(str::is_empty) || uri.port().is_none() {
        return Err("must name a host and a port".to_owned());
    }
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return Err("must have no path".to_owned());
    }
    Ok(())
}

fn duration(found: &mut Vec<Problem>, field: &str, value: Duration, bounds: RangeInclusive<Duration>) {
    if !bounds.contains(&value) {
        let message = format!("must be {:?} to {:?}", bounds.start(), bounds.end());
        found.push(Problem::new(field, format!("{value:?}"), message));
    }
}

fn number<T: PartialOrd + Display>(
    found: &mut Vec<Problem>,
    field: &str,
    value: T,
    bounds: RangeInclusive<T>,
) {
    if !bounds.contains(&value) {
        found.push(Problem::new(field, &value, format!("must be {} to {}", bounds.start(), bounds.end())));
    }
}
