//! TLS and credentials of Tranche's programs.
//!
//! All of it is in files, and files change while programs run: certificates are renewed, tokens are rotated.
//! A server looks at its files every second ([`Reloading`]); a client looks before each connection, and at its
//! token before each call ([`Credentials`]). What can't be used is said in the log, and what was there before
//! stays.
//!
//! TLS 1.3 alone, with rustls and ring. Sessions aren't resumed: a resumed session would live on a certificate
//! that was verified long ago.

mod certificate;
mod client;
mod files;
mod reload;
mod server;
mod token;

pub use certificate::{PeerCertificate, San};
pub use client::{Authorized, ClientFiles, Credentials, UrlError, endpoint};
pub use files::FileError;
pub use reload::{Loaded, Reloading};
pub use server::{HANDSHAKE_TIME, MAX_HANDSHAKES, ServerFiles, TlsConnection, TlsPeer, accept};

use std::sync::Arc;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};

/// The protocol of gRPC in ALPN.
const H2: &[u8] = b"h2";

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}
