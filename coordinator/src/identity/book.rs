//! The file `identities`: whom a credential names.

use super::jwt::{self, Issuer, Rules};
use super::{Identity, Role, Roles, Scope};
use config::FileFormat;
use serde::Deserialize;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;
use subtle::ConstantTimeEq as _;
use tranche_tls::{FileError, Loaded, PeerCertificate, San};

/// The most identities in a file.
const MAX_IDENTITIES: usize = 10_000;

/// What a call brings to say who makes it.
#[derive(Clone, Copy, Debug)]
pub enum Credential<'a> {
    /// A bearer token.
    Token(&'a str),
    /// The certificate of its connection, verified.
    Certificate(&'a PeerCertificate),
}

/// Who it is.
#[derive(Clone, Debug)]
pub struct Granted {
    /// Who.
    pub identity: Arc<Identity>,
    /// Until when; `None`: as long as the file says so. A certificate's connection ends by itself.
    pub expires: Option<SystemTime>,
}

/// Nobody is named.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The token isn't in the file, and is no JWT.
    #[error("the token isn't known")]
    UnknownToken,
    /// The JWT isn't right.
    #[error("the token isn't taken: {0}")]
    Jwt(String),
    /// No name of the certificate is in the file.
    #[error("no name (SAN) of the client certificate is known")]
    UnknownCertificate,
    /// Several are, of different identities: which comes first must not matter.
    #[error("the client certificate's names (SANs) are those of several identities")]
    Ambiguous,
}

/// All identities.
#[derive(Debug, Default)]
pub struct Book {
    tokens: Vec<([u8; 32], Arc<Identity>)>,
    certificates: Vec<(San, Arc<Identity>)>,
    issuer: Option<Issuer>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    identity: Vec<Entry>,
    jwt: Option<JwtEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    token_sha256: Option<String>,
    certificate_san: Option<String>,
    namespace: String,
    roles: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JwtEntry {
    jwks: PathBuf,
    issuer: String,
    audience: String,
    #[serde(default = "namespace_claim")]
    namespace_claim: String,
    #[serde(default = "roles_claim")]
    roles_claim: String,
}

fn namespace_claim() -> String {
    "tranche_namespace".to_owned()
}

fn roles_claim() -> String {
    "tranche_roles".to_owned()
}

impl Book {
    /// Reads the file, and the JWKS that it names.
    ///
    /// # Errors
    /// One of them can't be used; says what is wrong with which identity, and never a token.
    pub fn load(path: &Path) -> Result<Loaded<Self>, FileError> {
        let text = std::fs::read_to_string(path).map_err(|error| FileError::new(path, error))?;
        let source = config::File::from_str(&text, FileFormat::Toml);
        let file =
            config::Config::builder().add_source(source).build().and_then(config::Config::try_deserialize);
        let File { identity, jwt } = file.map_err(|error| FileError::new(path, error))?;
        let mut files = vec![path.to_owned()];
        let mut book = Self::default();
        book.fill(identity).map_err(|message| FileError::new(path, message))?;
        if let Some(JwtEntry { jwks, issuer, audience, namespace_claim, roles_claim }) = jwt {
            if issuer.is_empty() || audience.is_empty() {
                return Err(FileError::new(path, "[jwt]: issuer and audience must not be empty"));
            }
            // Beside the file, unless it says where.
            let jwks = path.parent().map_or_else(|| jwks.clone(), |dir| dir.join(&jwks));
            let keys = std::fs::read_to_string(&jwks).map_err(|error| FileError::new(&jwks, error))?;
            let rules = Rules { issuer, audience, namespace_claim, roles_claim };
            book.issuer = Some(Issuer::new(&keys, rules).map_err(|message| FileError::new(&jwks, message))?);
            files.push(jwks);
        }
        if book.tokens.is_empty() && book.certificates.is_empty() && book.issuer.is_none() {
            return Err(FileError::new(path, "names nobody: it needs an [[identity]] or [jwt]"));
        }
        Ok(Loaded { value: book, files })
    }

    fn fill(&mut self, entries: Vec<Entry>) -> Result<(), String> {
        if entries.len() > MAX_IDENTITIES {
            return Err(format!("has {} identities, at most {MAX_IDENTITIES}", entries.len()));
        }
        let (mut names, mut tokens, mut sans) = (HashSet::new(), HashSet::new(), HashSet::new());
        for (index, entry) in entries.into_iter().enumerate() {
            let Entry { name, token_sha256, certificate_san, namespace, roles } = entry;
            let at = |message: String| format!("identity {} ({name}): {message}", index + 1);
            let scope: Scope = namespace.parse().map_err(at)?;
            let roles: Roles =
                roles.iter().map(|role| role.parse::<Role>()).collect::<Result<_, _>>().map_err(at)?;
            let identity = Arc::new(Identity::new(&name, scope, roles).map_err(at)?);
            if name.starts_with(jwt::PREFIX) {
                return Err(at(format!("names that begin with {} are those of JWTs", jwt::PREFIX)));
            }
            if !names.insert(name.clone()) {
                return Err(at("the name is there twice".to_owned()));
            }
            match (token_sha256, certificate_san) {
                (Some(hex), None) => {
                    let hash = sha256(&hex).ok_or_else(|| {
                        at("token_sha256 must be the 64 hex digits of the token's SHA-256".to_owned())
                    })?;
                    if !tokens.insert(hash) {
                        return Err(at("the token is another identity's, too".to_owned()));
                    }
                    self.tokens.push((hash, identity));
                }
                (None, Some(text)) => {
                    let san = san(&text).ok_or_else(|| {
                        at(format!("certificate_san = {text:?}: must be a URI with :// or dns:NAME"))
                    })?;
                    if !sans.insert(san.clone()) {
                        return Err(at("certificate_san is another identity's, too".to_owned()));
                    }
                    self.certificates.push((san, identity));
                }
                _ => return Err(at("needs one of token_sha256 and certificate_san".to_owned())),
            }
        }
        Ok(())
    }

    /// Whom this names.
    ///
    /// # Errors
    /// Nobody.
    pub fn who(&self, credential: Credential<'_>, now: SystemTime) -> Result<Granted, Refused> {
        match credential {
            Credential::Token(token) => self.bearer(token, now),
            Credential::Certificate(certificate) => self.certified(certificate),
        }
    }

    fn bearer(&self, token: &str, now: SystemTime) -> Result<Granted, Refused> {
        let hash = ring::digest::digest(&ring::digest::SHA256, token.as_bytes());
        // All are compared, and each wholly: how long it takes says nothing.
        let mut found = None;
        for (known, identity) in &self.tokens {
            if bool::from(known.as_slice().ct_eq(hash.as_ref())) {
                found = Some(identity);
            }
        }
        if let Some(identity) = found {
            return Ok(Granted { identity: identity.clone(), expires: None });
        }
        match &self.issuer {
            Some(issuer) if token.bytes().filter(|b| *b == b'.').count() == 2 => {
                let told = issuer.verify(token, now).map_err(Refused::Jwt)?;
                Ok(Granted { identity: Arc::new(told.identity), expires: Some(told.expires) })
            }
            _ => Err(Refused::UnknownToken),
        }
    }

    fn certified(&self, certificate: &PeerCertificate) -> Result<Granted, Refused> {
        let mut named = self
            .certificates
            .iter()
            .filter(|(san, _)| certificate.sans.contains(san))
            .map(|(_, identity)| identity);
        let identity = named.next().ok_or(Refused::UnknownCertificate)?.clone();
        if named.next().is_some() {
            return Err(Refused::Ambiguous);
        }
        Ok(Granted { identity, expires: None })
    }
}

fn sha256(hex: &str) -> Option<[u8; 32]> {
    if hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let mut hash = [0; 32];
    for (byte, digits) in hash.iter_mut().zip(hex.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(hash)
}

fn san(text: &str) -> Option<San> {
    match text.strip_prefix("dns:") {
        Some("") => None,
        Some(name) => Some(San::Dns(name.to_ascii_lowercase())),
        None if text.contains("://") => Some(San::Uri(text.to_owned())),
        None => None,
    }
}
