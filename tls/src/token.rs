//! A bearer token in a file.

use crate::FileError;
use crate::files::{Fingerprint, fingerprint, read};
use http::HeaderValue;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a token is used without a look at its file.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The longest token.
const MAX_BYTES: usize = 8 * 1024;

/// Its newest token; never printed.
pub(crate) struct TokenFile {
    path: PathBuf,
    cached: Mutex<Cached>,
}

struct Cached {
    header: HeaderValue,
    seen: Fingerprint,
    looked: Instant,
}

impl fmt::Debug for TokenFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TokenFile").field(&self.path).finish()
    }
}

impl TokenFile {
    pub(crate) fn load(path: PathBuf) -> Result<Self, FileError> {
        let seen = fingerprint([&path]);
        let cached = Cached { header: header(&path)?, seen, looked: Instant::now() };
        Ok(Self { path, cached: Mutex::new(cached) })
    }

    /// The value of `authorization`.
    pub(crate) fn header(&self) -> HeaderValue {
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        if cached.looked.elapsed() >= LOOK_EVERY {
            cached.looked = Instant::now();
            let now = fingerprint([&self.path]);
            if now != cached.seen {
                match header(&self.path) {
                    Ok(header) => cached.header = header,
                    Err(error) => {
                        tracing::warn!(%error, "the token changed and can't be used, the last one stays");
                    }
                }
                cached.seen = now;
            }
        }
        cached.header.clone()
    }
}

fn header(path: &Path) -> Result<HeaderValue, FileError> {
    let bytes = read(path)?;
    let token = bytes.trim_ascii();
    if token.is_empty() || token.len() > MAX_BYTES || !token.iter().all(u8::is_ascii_graphic) {
        return Err(FileError::new(
            path,
            format!("must have a token of 1 to {MAX_BYTES} visible ASCII characters"),
        ));
    }
    let mut header = HeaderValue::from_bytes(&[b"Bearer ", token].concat()).expect("visible ASCII");
    header.set_sensitive(true);
    Ok(header)
}
