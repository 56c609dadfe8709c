//! The client, made anew when the files change that say who we are and whom we trust.
//!
//! Whoever makes a call or a stream asks for the newest one; streams that are open stay where they are. A new client
//! must have read something before it takes the old one's place: of a password that etcd doesn't have yet, or a
//! certificate that it doesn't trust yet, nothing is noticed but a line in the log.

use super::dial::Dial;
use super::error::Failure;
use super::{EtcdConfig, EtcdFiles, MAX_ANSWER_BYTES, PING_EVERY, PING_TIMEOUT, limited, read};
use etcd_client::{
    Certificate, Client, ConnectOptions, Identity, KvClient, LeaseClient, TlsOptions, WatchClient,
};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tranche_tls::{FileError, Loaded, Reloading};

/// Pause before new files are tried again that etcd doesn't take yet: what they belong to may be changed a little
/// later there.
const AGAIN: Duration = Duration::from_secs(1);

/// What the files hold. Never printed.
#[derive(Default)]
pub(super) struct Secrets {
    ca: Option<Vec<u8>>,
    certificate: Option<(Vec<u8>, Vec<u8>)>,
    user: Option<(String, String)>,
}

impl EtcdFiles {
    fn paths(&self) -> impl Iterator<Item = &Path> {
        let pair = self.certificate.iter().flat_map(|(certificate, key)| [certificate, key]);
        let password = self.user.iter().map(|(_, password)| password);
        self.ca.iter().chain(pair).chain(password).map(AsRef::as_ref)
    }

    fn load(&self) -> Result<Loaded<Secrets>, FileError> {
        let read = |path: &Path| std::fs::read(path).map_err(|error| FileError::new(path, error));
        let pair = self.certificate.as_ref();
        let certificate = pair.map(|(certificate, key)| Ok((read(certificate)?, read(key)?))).transpose()?;
        let user = self.user.as_ref().map(|(name, path)| {
            let password = String::from_utf8(read(path)?).map_err(|_| FileError::new(path, "is no text"))?;
            Ok((name.clone(), password.trim_end().to_owned()))
        });
        let value =
            Secrets { ca: self.ca.as_deref().map(read).transpose()?, certificate, user: user.transpose()? };
        Ok(Loaded { value, files: self.paths().map(Path::to_owned).collect() })
    }

    /// The newest of them; `None`: there are none.
    pub(super) fn start(&self) -> Result<Option<Reloading<Secrets>>, FileError> {
        if self.paths().next().is_none() {
            return Ok(None);
        }
        let files = self.clone();
        Reloading::start("who we are to etcd", move || files.load()).map(Some)
    }
}

/// Makes clients.
pub(super) struct Connector {
    pub(super) config: EtcdConfig,
    pub(super) dial: Option<Dial>,
}

impl Connector {
    /// A client that etcd has answered.
    pub(super) async fn connect(&self, secrets: &Secrets) -> Result<Connected, Failure> {
        let EtcdConfig { endpoints, prefix, call_timeout, connect_timeout, .. } = &self.config;
        let mut options = ConnectOptions::new()
            .with_keep_alive(PING_EVERY, PING_TIMEOUT)
            .with_keep_alive_while_idle(true)
            .with_connect_timeout(*connect_timeout)
            // A member that is cut off from the others ends its streams and refuses calls, instead of
            // letting us wait.
            .with_require_leader(true);
        if let Some((name, password)) = &secrets.user {
            options = options.with_user(name, password).with_auto_token_refresh(true);
        }
        if let Some(ca) = &secrets.ca {
            let mut tls = TlsOptions::new().ca_certificate(Certificate::from_pem(ca));
            if let Some((certificate, key)) = &secrets.certificate {
                tls = tls.identity(Identity::from_pem(certificate, key));
            }
            options = options.with_tls(tls);
        }
        let options = Some(options);
        let client = match self.dial.clone() {
            None => limited(*call_timeout, Client::connect(endpoints, options)).await,
            Some(dial) => {
                let connecting = Client::connect_with_balanced_channel(endpoints, options, dial);
                limited(*call_timeout, connecting).await
            }
        }?;
        let connected = Connected {
            kv: client.kv_client().max_decoding_message_size(MAX_ANSWER_BYTES),
            lease: client.lease_client(),
            watch: client.watch_client().max_decoding_message_size(MAX_ANSWER_BYTES),
        };
        read(&connected.kv, *call_timeout, prefix.clone().into_bytes(), None).await?;
        Ok(connected)
    }

    /// Puts a new client into the place of the old one whenever the files change.
    pub(super) async fn renew(
        self,
        mut changes: watch::Receiver<Arc<Secrets>>,
        newest: watch::Sender<Arc<Connected>>,
    ) {
        while changes.changed().await.is_ok() {
            let mut said = false;
            loop {
                let secrets = changes.borrow_and_update().clone();
                match self.connect(&secrets).await {
                    Ok(connected) => {
                        newest.send_replace(Arc::new(connected));
                        tracing::info!("etcd is called with what the files hold now");
                        break;
                    }
                    Err(failure) if said => tracing::debug!(?failure, "etcd is still called as before"),
                    Err(failure) => {
                        said = true;
                        tracing::warn!(
                            ?failure,
                            "etcd can't be called with what the files hold now; it is called as before, and this is tried again"
                        );
                    }
                }
                tokio::select! {
                    () = tokio::time::sleep(AGAIN) => {}
                    changed = changes.changed() => match changed {
                        Ok(()) => changes.mark_changed(),
                        Err(_) => return,
                    },
                }
            }
        }
    }
}

/// Clients of one connection.
pub(super) struct Connected {
    kv: KvClient,
    lease: LeaseClient,
    watch: WatchClient,
}

/// The newest.
#[derive(Clone)]
pub(super) struct Clients(watch::Receiver<Arc<Connected>>);

impl Clients {
    pub(super) fn new(first: Connected) -> (watch::Sender<Arc<Connected>>, Self) {
        let (sender, newest) = watch::channel(Arc::new(first));
        (sender, Self(newest))
    }

    pub(super) fn kv(&self) -> KvClient {
        self.0.borrow().kv.clone()
    }

    pub(super) fn lease(&self) -> LeaseClient {
        self.0.borrow().lease.clone()
    }

    pub(super) fn watch(&self) -> WatchClient {
        self.0.borrow().watch.clone()
    }
}
