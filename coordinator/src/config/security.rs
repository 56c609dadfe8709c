//! Settings of TLS and of who may call.

use super::{Config, Problem, StoreConfig};
use std::path::PathBuf;
use std::str::FromStr;
use tranche_ops::is_loopback;

/// TLS, identities, and what this coordinator brings to others. All paths are of files that are read again
/// when they change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Security {
    /// The server's certificate, with those between it and its CA (PEM). It is the client certificate towards other
    /// coordinators, too. Default: none, calls are in clear text.
    pub tls_cert: Option<PathBuf>,
    /// Its private key (PEM).
    pub tls_key: Option<PathBuf>,
    /// Certificate authorities of clients (PEM). With `identities` a client may bring a certificate; without, it
    /// must. Default: clients aren't asked.
    pub tls_client_ca: Option<PathBuf>,
    /// Certificate authorities (PEM) of those who read `/metrics` on the ops port: it answers to their certificates alone.
    /// Default: to everybody.
    pub ops_client_ca: Option<PathBuf>,
    /// Who may do what (TOML, `docs/security.md`). Default: everybody may do all.
    pub identities: Option<PathBuf>,
    /// What answers to callers that nobody knows, when there are `identities`. Default: health.
    pub open_services: Vec<OpenService>,
    /// Certificate authorities (PEM) of the other coordinators. Default: those of the system.
    pub tls_ca: Option<PathBuf>,
    /// The bearer token that is shown to other coordinators. Default: none.
    pub token_file: Option<PathBuf>,
    /// Certificate authorities (PEM) of etcd; required with `https://`.
    pub etcd_ca: Option<PathBuf>,
    /// The client certificate towards etcd (PEM).
    pub etcd_cert: Option<PathBuf>,
    /// Its private key (PEM).
    pub etcd_key: Option<PathBuf>,
    /// The user in etcd.
    pub etcd_user: Option<String>,
    /// Its password, in a file.
    pub etcd_password_file: Option<PathBuf>,
}

impl Default for Security {
    fn default() -> Self {
        Self {
            tls_cert: None,
            tls_key: None,
            tls_client_ca: None,
            ops_client_ca: None,
            identities: None,
            open_services: vec![OpenService::Health],
            tls_ca: None,
            token_file: None,
            etcd_ca: None,
            etcd_cert: None,
            etcd_key: None,
            etcd_user: None,
            etcd_password_file: None,
        }
    }
}

/// A service beside our own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenService {
    /// `grpc.health.v1`.
    Health,
    /// `grpc.reflection.v1` and `v1alpha`.
    Reflection,
}

impl FromStr for OpenService {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "health" => Ok(Self::Health),
            "reflection" => Ok(Self::Reflection),
            _ => Err("must be of health and reflection, or empty"),
        }
    }
}

pub(super) fn check(config: &Config, found: &mut Vec<Problem>) {
    let security = &config.security;
    let mut both = |one: &'static str, other: &'static str, have: (bool, bool)| {
        if let (true, false) | (false, true) = have {
            let missing = if have.0 { other } else { one };
            found.push(Problem::new(missing, "", format!("is missing: {one} and {other} go together")));
        }
    };
    both("tls_cert", "tls_key", (security.tls_cert.is_some(), security.tls_key.is_some()));
    both("etcd_cert", "etcd_key", (security.etcd_cert.is_some(), security.etcd_key.is_some()));
    both(
        "etcd_user",
        "etcd_password_file",
        (security.etcd_user.is_some(), security.etcd_password_file.is_some()),
    );
    if let (Some(path), None) = (&security.tls_client_ca, &security.tls_cert) {
        let message = "does nothing without tls_cert and tls_key: certificates need TLS";
        found.push(Problem::new("tls_client_ca", path.display(), message));
    }
    if let Some(path) = &security.ops_client_ca
        && (security.tls_cert.is_none() || config.ops_listen.is_none())
    {
        let message = "does nothing without ops_listen, tls_cert and tls_key: certificates need TLS";
        found.push(Problem::new("ops_client_ca", path.display(), message));
    }
    exposed(config, found);
    if let Some(url) = config.advertise.as_ref().filter(|_| security.tls_cert.is_some())
        && url.starts_with("http://")
    {
        let message = "must begin with https://: tls_cert is given, and others would speak clear text";
        found.push(Problem::new("advertise", url, message));
    }
    etcd(config, found);
    if let StoreConfig::Etcd { endpoints, .. } = &config.store
        && security.etcd_ca.is_none()
        && let Some(url) = endpoints.iter().find(|url| url.starts_with("https://"))
    {
        let message = format!("is required: the CAs of the store at {url}");
        found.push(Problem::new("etcd_ca", "", message));
    }
}

fn exposed(config: &Config, found: &mut Vec<Problem>) {
    let security = &config.security;
    if is_loopback(config.listen.ip()) || config.insecure {
        return;
    }
    let missing = match (&security.tls_cert, &security.identities) {
        (Some(_), Some(_)) => return,
        (None, Some(_)) => "in clear text: give tls_cert and tls_key",
        (Some(_), None) => "and nobody is asked who they are: give identities",
        (None, None) => {
            "in clear text, and nobody is asked who they are: give tls_cert, tls_key and identities"
        }
    };
    let message = format!(
        "other machines could reach it {missing}; or listen on loopback, or set insecure = true (--insecure) in a \
         network you trust"
    );
    found.push(Problem::new("listen", config.listen, message));
}

fn etcd(config: &Config, found: &mut Vec<Problem>) {
    let security = &config.security;
    let paths = [
        ("etcd_ca", &security.etcd_ca),
        ("etcd_cert", &security.etcd_cert),
        ("etcd_key", &security.etcd_key),
        ("etcd_password_file", &security.etcd_password_file),
    ];
    let given = paths.iter().filter_map(|(name, path)| Some((*name, path.as_ref()?.display().to_string())));
    let given = given.chain(security.etcd_user.clone().map(|user| ("etcd_user", user)));
    for (name, value) in given {
        match &config.store {
            StoreConfig::Embedded { .. } => {
                found.push(Problem::new(name, value, "is only for an etcd store"));
            }
            // A password in clear text is one that others have.
            StoreConfig::Etcd { endpoints, .. } => {
                if let Some(url) =
                    endpoints.iter().find(|url| !url.starts_with("https://") && !config.insecure)
                {
                    let message =
                        format!("needs https://, and the store is at {url}; or set insecure = true");
                    found.push(Problem::new(name, value, message));
                }
            }
        }
    }
}
