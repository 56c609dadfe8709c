//! The coordinators that a client knows, of which it uses one at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tonic::transport::{Channel, Endpoint};

use crate::{Error, Options};
use tranche_tls::{Authorized, UrlError};

/// The known coordinators. Clones share which of them is used.
#[derive(Clone)]
pub(crate) struct Coordinators {
    channels: Arc<[Authorized]>,
    /// Counts the moves: modulo the number of coordinators it is the one in use.
    moves: Arc<AtomicUsize>,
}

/// Which coordinator a call went to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Used(usize);

impl Coordinators {
    /// Those of a list, each connected at its first call by `dial`.
    pub(crate) fn lazy(
        urls: &str,
        options: &Options,
        mut dial: impl FnMut(&Endpoint) -> Channel,
    ) -> Result<Self, Error> {
        let mut channels = Vec::new();
        for url in split(urls) {
            let endpoint = endpoint(url, options)?;
            let channel = if url.starts_with("https://") {
                options.credentials.connect_lazy(url, &endpoint)
            } else {
                dial(&endpoint)
            };
            channels.push(options.credentials.authorized(channel));
        }
        Ok(Self { channels: channels.into(), moves: Arc::default() })
    }

    /// Those of a list, with a connection to the first that can be reached.
    pub(crate) async fn connected(urls: &str, options: &Options) -> Result<Self, Error> {
        let mut all = Self::lazy(urls, options, Endpoint::connect_lazy)?;
        let mut last = None;
        for (index, url) in split(urls).into_iter().enumerate() {
            match options.credentials.connect(url, &endpoint(url, options)?).await {
                Ok(channel) => {
                    let mut channels = all.channels.to_vec();
                    channels[index] = options.credentials.authorized(channel);
                    all.channels = channels.into();
                    all.moves.store(index, Ordering::Relaxed);
                    return Ok(all);
                }
                Err(source) => last = Some(Error::Connect { url: url.to_owned(), source }),
            }
        }
        Err(last.unwrap_or_else(|| unreachable!("a list has one URL at least")))
    }

    /// The one in use.
    pub(crate) fn used(&self) -> Used {
        Used(self.moves.load(Ordering::Relaxed))
    }

    /// Its channel.
    pub(crate) fn channel(&self) -> Authorized {
        self.channels[self.used().0 % self.channels.len()].clone()
    }

    /// Moves on from a coordinator that didn't do what it should; calls that failed together move on once.
    pub(crate) fn leave(&self, used: Used) {
        let next = used.0.wrapping_add(1);
        let _ = self.moves.compare_exchange(used.0, next, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// The URLs of a list that is separated by commas; one at least.
fn split(urls: &str) -> Vec<&str> {
    let given: Vec<&str> = urls.split(',').map(str::trim).filter(|url| !url.is_empty()).collect();
    if given.is_empty() { vec![""] } else { given }
}

fn endpoint(url: &str, options: &Options) -> Result<Endpoint, Error> {
    let invalid = |source| Error::Url { url: url.to_owned(), source };
    options.credentials.check(url).map_err(invalid)?;
    let endpoint = tranche_tls::endpoint(url).map_err(invalid)?;
    let endpoint = endpoint
        .user_agent(concat!("tranche-client/", env!("CARGO_PKG_VERSION")))
        .map_err(|error| invalid(UrlError::from(error)))?;
    Ok(endpoint
        .connect_timeout(options.connect_timeout)
        .tcp_nodelay(true)
        // Below the 60 s after which load balancers commonly cut an idle connection; the service
        // tolerates it. Without it a coordinator that vanished is never noticed by a watch.
        .http2_keep_alive_interval(std::time::Duration::from_secs(20))
        .keep_alive_timeout(std::time::Duration::from_secs(10))
        .keep_alive_while_idle(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn calls_that_fail_together_move_on_once_and_the_last_is_followed_by_the_first() {
        let urls = "http://a:1, http://b:1,,http://c:1";
        let all = Coordinators::lazy(urls, &Options::default(), Endpoint::connect_lazy).unwrap();
        assert_eq!(all.channels.len(), 3);
        let (one, two) = (all.used(), all.clone().used());
        all.leave(one);
        all.clone().leave(two);
        assert_eq!(all.used().0, 1);
        for _ in 0..2 {
            all.leave(all.used());
        }
        assert_eq!(all.used().0 % all.channels.len(), 0);
    }

    #[tokio::test]
    async fn a_list_with_one_wrong_url_is_wrong() {
        for urls in ["", "http://a:1,not a url", ","] {
            let error = Coordinators::lazy(urls, &Options::default(), Endpoint::connect_lazy).err();
            assert!(matches!(error, Some(Error::Url { .. })), "{urls}");
        }
    }
}
