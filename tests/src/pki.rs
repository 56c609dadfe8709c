//! A certificate authority, and what it issues, as files.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType, date_time_ymd,
};
use std::fmt::Write as _;
use std::path::PathBuf;
use tempfile::TempDir;

/// A CA whose certificate is `ca.pem` in a folder of its own; what it issues is `NAME.pem` and `NAME.key` there.
#[derive(Debug)]
pub struct Pki {
    dir: TempDir,
    ca: CertifiedIssuer<'static, KeyPair>,
}

impl Default for Pki {
    fn default() -> Self {
        Self::new()
    }
}

impl Pki {
    /// A new CA, with a certificate `server` for this machine.
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "a CA of the tests");
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a CA");
        let pki = Self { dir: tempfile::tempdir().expect("a folder"), ca };
        pki.write("ca.pem", pki.ca.pem());
        pki.issue("server", &["dns:localhost", "ip:127.0.0.1"]);
        pki
    }

    /// Issues a certificate with these names: `dns:NAME`, `ip:ADDRESS` or URIs.
    pub fn issue(&self, name: &str, sans: &[&str]) {
        self.issue_until(name, sans, 2100);
    }

    /// The same, valid until this year.
    pub fn issue_until(&self, name: &str, sans: &[&str], year: i32) {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(year, 1, 1);
        params.subject_alt_names = sans.iter().map(|san| parsed(san)).collect();
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.ca).expect("signed");
        self.write(&format!("{name}.pem"), certificate.pem());
        self.write(&format!("{name}.key"), key.serialize_pem());
    }

    /// Writes a file beside them, at once: whoever reads it sees the old or the new. Returns its path.
    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let fresh = self.path(&format!("{name}.new"));
        std::fs::write(&fresh, text).expect("written");
        std::fs::rename(fresh, self.path(name)).expect("renamed");
        self.path(name)
    }

    /// The path of a file.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The same as text.
    pub fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }
}

fn parsed(san: &str) -> SanType {
    match san.split_once(':') {
        Some(("dns", name)) => SanType::DnsName(name.try_into().expect("ASCII")),
        Some(("ip", address)) => SanType::IpAddress(address.parse().expect("an address")),
        _ => SanType::URI(san.try_into().expect("ASCII")),
    }
}

/// The SHA-256 of a token, as the file of identities has it.
pub fn sha256_hex(token: &str) -> String {
    let hash = ring::digest::digest(&ring::digest::SHA256, token.as_bytes());
    let hex = |mut text: String, byte: &u8| {
        write!(text, "{byte:02x}").expect("memory");
        text
    };
    hash.as_ref().iter().fold(String::new(), hex)
}
