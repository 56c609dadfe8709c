//! What an operator's programs ask a process.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// One GET over HTTP/1.1: the status and the body.
///
/// # Panics
/// When there is no answer.
pub async fn get(address: &str, path: &str) -> (u16, String) {
    try_get(address, path).await.unwrap_or_else(|| panic!("no answer from {address}{path}"))
}

/// The same; `None`: there is no answer.
pub async fn try_get(address: &str, path: &str) -> Option<(u16, String)> {
    asked(TcpStream::connect(address).await.ok()?, address, path).await
}

/// The same by TLS, with a server whose certificate is of this CA (PEM) and for the address.
pub async fn try_get_tls(address: &str, path: &str, ca: &Path) -> Option<(u16, String)> {
    try_get_tls_as(address, path, ca, None).await
}

/// The same with a client certificate and its key (PEM).
///
/// # Panics
/// When there is no CA, certificate or key in the files.
pub async fn try_get_tls_as(
    address: &str,
    path: &str,
    ca: &Path,
    client: Option<(&Path, &Path)>,
) -> Option<(u16, String)> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca).expect("a CA") {
        roots.add(certificate.expect("a certificate")).expect("a CA");
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_protocol_versions(&[&TLS13]).expect("ring has TLS 1.3");
    let config = config.with_root_certificates(roots);
    let config = match client {
        None => config.with_no_client_auth(),
        Some((cert, key)) => {
            let certificates = CertificateDer::pem_file_iter(cert).expect("a certificate");
            let certificates = certificates.collect::<Result<_, _>>().expect("a certificate");
            let key = PrivateKeyDer::from_pem_file(key).expect("a key");
            config.with_client_auth_cert(certificates, key).expect("a pair")
        }
    };
    let connector = TlsConnector::from(Arc::new(config));
    let (host, _) = address.rsplit_once(':')?;
    let name = ServerName::try_from(host.to_owned()).expect("a name");
    let stream = connector.connect(name, TcpStream::connect(address).await.ok()?).await.ok()?;
    asked(stream, address, path).await
}

async fn asked(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    address: &str,
    path: &str,
) -> Option<(u16, String)> {
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}

/// The samples of `/metrics`, by name with labels in their order, `tasks_total{outcome="staged"}`.
///
/// # Panics
/// When there are none.
pub async fn samples(address: &str) -> BTreeMap<String, f64> {
    let (status, text) = get(address, "/metrics").await;
    assert_eq!(status, 200);
    let samples = text.lines().filter(|line| !line.starts_with('#')).map(|line| {
        let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no sample: {line}"));
        (name.to_owned(), value.parse().unwrap_or_else(|error| panic!("{line}: {error}")))
    });
    samples.collect()
}
