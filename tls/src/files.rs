//! PEM files, and whether they changed.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// A file can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {message}", path.display())]
pub struct FileError {
    /// The file.
    pub path: PathBuf,
    /// Why. Never what is in it: it may be secret.
    pub message: String,
}

impl FileError {
    /// This is wrong with the file.
    pub fn new(path: &Path, message: impl ToString) -> Self {
        Self { path: path.to_owned(), message: message.to_string() }
    }
}

/// What tells one state of a file from another: which one it is, when it was written, its size. Secrets that
/// Kubernetes mounts are links to a folder that is replaced, which makes them other files.
pub(crate) type Fingerprint = Vec<Option<(u64, u64, i64, i64, u64)>>;

pub(crate) fn fingerprint<'a>(paths: impl IntoIterator<Item = &'a PathBuf>) -> Fingerprint {
    let of = |path: &PathBuf| {
        let data = fs::metadata(path).ok()?;
        Some((data.dev(), data.ino(), data.mtime(), data.mtime_nsec(), data.len()))
    };
    paths.into_iter().map(of).collect()
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    fs::read(path).map_err(|error| FileError::new(path, error))
}

/// The certificates of a file, in order; one at least.
pub(crate) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let bytes = read(path)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        Ok(_) => Err(FileError::new(path, "has no certificate (PEM, BEGIN CERTIFICATE)")),
        Err(error) => Err(FileError::new(path, format!("is no PEM file of certificates: {error}"))),
    }
}

/// The first private key of a file.
pub(crate) fn key(path: &Path) -> Result<PrivateKeyDer<'static>, FileError> {
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|error| {
        FileError::new(path, format!("has no private key (PEM, PKCS#8, not encrypted): {error}"))
    })
}

/// Certificate authorities.
pub(crate) fn roots(path: &Path) -> Result<RootCertStore, FileError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        let added = roots.add(certificate);
        added.map_err(|error| FileError::new(path, format!("has a certificate that is no CA: {error}")))?;
    }
    Ok(roots)
}
