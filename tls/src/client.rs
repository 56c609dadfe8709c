//! The side that connects.

use crate::files::{Fingerprint, certificates, fingerprint, key, roots};
use crate::token::TokenFile;
use crate::{FileError, H2, provider};
use futures::future::BoxFuture;
use http::header::AUTHORIZATION;
use http::{Request, Uri};
use hyper_util::rt::TokioIo;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tonic::body::Body;
use tonic::transport::{Channel, Endpoint};
use tower::Service;

/// Where a client's credentials are. All are optional.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientFiles {
    /// Certificate authorities (PEM) of servers at `https://`. Default: those of the system.
    pub ca: Option<PathBuf>,
    /// Our certificate, with those between it and its CA (PEM); only together with `key`.
    pub cert: Option<PathBuf>,
    /// Its private key (PEM).
    pub key: Option<PathBuf>,
    /// A bearer token.
    pub token: Option<PathBuf>,
}

/// A URL can't be used.
#[derive(Debug, thiserror::Error)]
pub enum UrlError {
    /// It is none.
    #[error("is no URL: {0}")]
    Invalid(#[from] tonic::transport::Error),
    /// It is one that nothing is known to speak at.
    #[error("must begin with http:// or https:// and have a host")]
    Scheme,
    /// Our credentials would be in clear text on the network.
    #[error("is http://, where anybody could read the token (token_file); use https://")]
    ClearText,
}

/// Opens connections with what these files say, and says who we are. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    tls: Arc<Tls>,
    token: Option<Arc<TokenFile>>,
}

#[derive(Debug, Default)]
struct Tls {
    files: ClientFiles,
    /// Made at the first connection, and again when the files changed.
    made: Mutex<Option<(Fingerprint, Arc<ClientConfig>)>>,
}

impl Credentials {
    /// Reads the files once, so that what is wrong is told at the start.
    ///
    /// # Errors
    /// One of them can't be used.
    pub fn load(files: ClientFiles) -> Result<Self, FileError> {
        match (&files.cert, &files.key) {
            (Some(cert), None) => {
                return Err(FileError::new(cert, "is a certificate without a key (tls_key)"));
            }
            (None, Some(key)) => {
                return Err(FileError::new(key, "is a key without a certificate (tls_cert)"));
            }
            _ => {}
        }
        let token = files.token.clone().map(TokenFile::load).transpose()?.map(Arc::new);
        if files.ca.is_some() || files.cert.is_some() {
            config(&files)?;
        }
        Ok(Self { tls: Arc::new(Tls { files, made: Mutex::default() }), token })
    }

    /// Whether this URL may be used with these credentials: a token isn't sent in clear text, but to this
    /// machine.
    ///
    /// # Errors
    /// It may not.
    pub fn check(&self, url: &str) -> Result<(), UrlError> {
        let uri = endpoint(url)?.uri().clone();
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let near = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        if self.token.is_some() && !is_tls(url) && !near { Err(UrlError::ClearText) } else { Ok(()) }
    }

    /// A channel that connects at its first call, and again by itself. The endpoint is [`endpoint`]'s of this URL.
    pub fn connect_lazy(&self, url: &str, endpoint: &Endpoint) -> Channel {
        if is_tls(url) {
            endpoint.connect_with_connector_lazy(Connector { tls: self.tls.clone() })
        } else {
            endpoint.connect_lazy()
        }
    }

    /// A channel that is connected.
    ///
    /// # Errors
    /// Nobody is there, or isn't who they should be.
    pub async fn connect(&self, url: &str, endpoint: &Endpoint) -> Result<Channel, tonic::transport::Error> {
        if is_tls(url) {
            endpoint.connect_with_connector(Connector { tls: self.tls.clone() }).await
        } else {
            endpoint.connect().await
        }
    }

    /// The channel, whose calls bring our token.
    pub fn authorized(&self, channel: Channel) -> Authorized {
        Authorized { channel, token: self.token.clone() }
    }
}

#[cfg(test)]
impl Credentials {
    pub(crate) fn config(&self) -> Result<Arc<ClientConfig>, FileError> {
        self.tls.config()
    }

    pub(crate) fn bearer(&self) -> Option<http::HeaderValue> {
        self.token.as_ref().map(|token| token.header())
    }
}

/// The endpoint of a URL, `http://` or `https://`, without any settings.
///
/// # Errors
/// The URL can't be used.
pub fn endpoint(url: &str) -> Result<Endpoint, UrlError> {
    let Some(rest) = url.strip_prefix("https://") else {
        let endpoint = Endpoint::from_shared(url.to_owned())?;
        let uri = endpoint.uri();
        let right = uri.scheme_str() == Some("http") && uri.host().is_some_and(|host| !host.is_empty());
        return if right { Ok(endpoint) } else { Err(UrlError::Scheme) };
    };
    let origin = Endpoint::from_shared(url.to_owned())?.uri().clone();
    // The connector brings the TLS: for tonic it is a connection as any other.
    Ok(Endpoint::from_shared(format!("http://{rest}"))?.origin(origin))
}

fn is_tls(url: &str) -> bool {
    url.starts_with("https://")
}

impl Tls {
    /// What connections are made with now.
    fn config(&self) -> Result<Arc<ClientConfig>, FileError> {
        let files = &self.files;
        let now = fingerprint([&files.ca, &files.cert, &files.key].into_iter().flatten());
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((seen, config)) = &mut *made {
            if *seen != now {
                match self::config(files) {
                    Ok(fresh) => (*seen, *config) = (now, fresh),
                    Err(error) => {
                        tracing::warn!(%error, "TLS files changed and can't be used, the last ones stay");
                    }
                }
            }
            return Ok(config.clone());
        }
        let config = self::config(files)?;
        *made = Some((now, config.clone()));
        Ok(config)
    }
}

fn config(files: &ClientFiles) -> Result<Arc<ClientConfig>, FileError> {
    let roots = match &files.ca {
        Some(ca) => roots(ca)?,
        None => system_roots()?,
    };
    let builder = ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13]);
    let builder = builder.expect("ring has TLS 1.3").with_root_certificates(roots);
    let mut config = match (&files.cert, &files.key) {
        (Some(cert), Some(key_file)) => {
            builder.with_client_auth_cert(certificates(cert)?, key(key_file)?).map_err(|error| {
                FileError::new(cert, format!("doesn't go with {}: {error}", key_file.display()))
            })?
        }
        _ => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![H2.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

fn system_roots() -> Result<RootCertStore, FileError> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let message = "no CA is known: this system has none; name one (tls_ca)";
        return Err(FileError::new(Path::new("CA certificates"), message));
    }
    Ok(roots)
}

/// TCP, and TLS over it.
#[derive(Clone, Debug)]
struct Connector {
    tls: Arc<Tls>,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<tokio_rustls::client::TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let tls = self.tls.clone();
        Box::pin(async move {
            let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
            let name = ServerName::try_from(host.clone()).map_err(io::Error::other)?;
            let config = tls.config().map_err(io::Error::other)?;
            let stream = TcpStream::connect((host.as_str(), uri.port_u16().unwrap_or(443))).await?;
            stream.set_nodelay(true)?;
            let stream = TlsConnector::from(config).connect(name, stream).await?;
            if stream.get_ref().1.alpn_protocol() != Some(H2) {
                return Err(io::Error::other("the server doesn't speak HTTP/2 (ALPN h2)"));
            }
            Ok(TokioIo::new(stream))
        })
    }
}

/// A channel whose calls bring a token, if there is one.
#[derive(Clone, Debug)]
pub struct Authorized {
    channel: Channel,
    token: Option<Arc<TokenFile>>,
}

impl From<Channel> for Authorized {
    /// Without a token.
    fn from(channel: Channel) -> Self {
        Self { channel, token: None }
    }
}

impl Service<Request<Body>> for Authorized {
    type Response = <Channel as Service<Request<Body>>>::Response;
    type Error = <Channel as Service<Request<Body>>>::Error;
    type Future = <Channel as Service<Request<Body>>>::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.channel.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        if let Some(token) = &self.token {
            request.headers_mut().insert(AUTHORIZATION, token.header());
        }
        self.channel.call(request)
    }
}
