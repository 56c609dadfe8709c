//! Who a client's certificate names.

use std::time::{Duration, SystemTime, UNIX_EPOCH};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// A subject alternative name. The subject itself (CN) names nobody.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum San {
    /// A URI, as `spiffe://corp/ns/a/importer`.
    Uri(String),
    /// A DNS name, in small letters.
    Dns(String),
}

/// What was verified of a client at its handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerCertificate {
    /// All its URIs and DNS names.
    pub sans: Vec<San>,
    /// When it ends to be valid.
    pub expires: SystemTime,
}

impl PeerCertificate {
    /// Reads a certificate that was verified. `None`: it can't be read, and so names nobody.
    pub fn read(der: &[u8]) -> Option<Self> {
        let (rest, certificate) = X509Certificate::from_der(der).ok()?;
        if !rest.is_empty() {
            return None;
        }
        let names = certificate.subject_alternative_name().ok()?;
        let names = names.map(|names| names.value.general_names.as_slice()).unwrap_or_default();
        let sans = names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => Some(San::Uri((*uri).to_owned())),
            GeneralName::DNSName(name) => Some(San::Dns(name.to_ascii_lowercase())),
            _ => None,
        });
        let expires = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
        Some(Self { sans: sans.collect(), expires: UNIX_EPOCH + Duration::from_secs(expires) })
    }

    /// How long it is still valid.
    pub fn remaining(&self) -> Duration {
        self.expires.duration_since(SystemTime::now()).unwrap_or_default()
    }
}
