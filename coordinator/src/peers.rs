//! Connections to the other coordinators.
//!
//! One place opens them all, with the TLS and the credentials that they need.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};
use tranche_tls::{Authorized, Credentials, UrlError};

/// How long a connection may take to open: peers are near.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How often a connection is pinged. A coordinator that is stopped, not gone, is noticed so.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// How long a peer may take to answer a ping.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections kept at most, unless more are in use: a few for each of the replicas that one cluster has.
/// Above it those that nobody uses are closed, the longest unused first.
const MOST: usize = 64;
/// Calls on one connection at most, a little below what our server takes: one more would wait unseen.
const CALLS: usize = 1000;

/// What a connection carries. Each has its own: a stream that nobody reads fills its connection's window and
/// would hold up everything else on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Carries {
    /// Short calls.
    Calls,
    /// WatchBatch streams.
    Watches,
    /// AppendTasks streams.
    Appends,
}

type Dial = Arc<dyn Fn(&Endpoint) -> Channel + Send + Sync>;

/// Connections to other coordinators, opened when first used and kept.
pub struct Peers {
    dial: Dial,
    credentials: Credentials,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    lines: BTreeMap<(String, Carries), Vec<Line>>,
    /// Counts uses, to tell the longest unused.
    uses: u64,
}

struct Line {
    channel: Authorized,
    /// One for us, one for each user.
    users: Arc<()>,
    used: u64,
}

/// A connection, in use until this is dropped.
#[derive(Clone, Debug)]
pub struct Peer {
    channel: Authorized,
    _user: Arc<()>,
}

impl Peer {
    /// What calls go over. It connects by itself, again and again.
    pub fn channel(&self) -> Authorized {
        self.channel.clone()
    }
}

impl Default for Peers {
    fn default() -> Self {
        Self::over(Endpoint::connect_lazy)
    }
}

impl Peers {
    /// Connections by another way than TCP: `dial` makes the channel of an endpoint, which brings all
    /// settings; the channel must connect at its first call and again by itself.
    pub fn over(dial: impl Fn(&Endpoint) -> Channel + Send + Sync + 'static) -> Self {
        Self { dial: Arc::new(dial), credentials: Credentials::default(), kept: Mutex::default() }
    }

    /// Connections by TCP and TLS, on which these credentials say who we are.
    pub fn with(credentials: Credentials) -> Self {
        Self { credentials, ..Self::default() }
    }

    /// A connection to the coordinator at this URL. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// The URL is none, or must not be used with our credentials.
    pub fn get(&self, url: &str, carries: Carries) -> Result<Peer, UrlError> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.uses += 1;
        let used = kept.uses;
        let lines = kept.lines.entry((url.to_owned(), carries)).or_default();
        if !lines.iter().any(Line::has_room) {
            self.credentials.check(url)?;
            let endpoint = endpoint(url)?;
            let channel = if url.starts_with("https://") {
                self.credentials.connect_lazy(url, &endpoint)
            } else {
                (self.dial)(&endpoint)
            };
            let channel = self.credentials.authorized(channel);
            lines.push(Line { channel, users: Arc::new(()), used });
        }
        let line = lines.iter_mut().find(|line| line.has_room()).expect("one was made");
        line.used = used;
        let peer = Peer { channel: line.channel.clone(), _user: line.users.clone() };
        kept.close_unused();
        Ok(peer)
    }
}

impl Line {
    fn has_room(&self) -> bool {
        Arc::strong_count(&self.users) <= CALLS
    }

    fn in_use(&self) -> bool {
        Arc::strong_count(&self.users) > 1
    }
}

impl Kept {
    fn close_unused(&mut self) {
        let count = self.lines.values().map(Vec::len).sum::<usize>();
        let mut unused: Vec<u64> =
            self.lines.values().flatten().filter(|line| !line.in_use()).map(|line| line.used).collect();
        unused.sort_unstable();
        unused.truncate(count.saturating_sub(MOST));
        if let Some(&newest) = unused.last() {
            self.lines.retain(|_, lines| {
                lines.retain(|line| line.in_use() || line.used > newest);
                !lines.is_empty()
            });
        }
    }
}

fn endpoint(url: &str) -> Result<Endpoint, UrlError> {
    Ok(tranche_tls::endpoint(url)?
        .user_agent(concat!("tranche-coordinator/", env!("CARGO_PKG_VERSION")))?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true))
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peers").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn counted() -> (Peers, Arc<AtomicUsize>) {
        let dialled = Arc::new(AtomicUsize::new(0));
        let counter = dialled.clone();
        let peers = Peers::over(move |endpoint| {
            counter.fetch_add(1, Ordering::Relaxed);
            endpoint.connect_lazy()
        });
        (peers, dialled)
    }

    fn kept(peers: &Peers) -> usize {
        peers.kept.lock().expect("held by nobody").lines.values().map(Vec::len).sum()
    }

    #[tokio::test]
    async fn a_connection_is_opened_once_for_all_calls_of_a_kind() {
        let (peers, dialled) = counted();
        for _ in 0..3 {
            peers.get("http://a:1", Carries::Calls).expect("a URL");
        }
        assert_eq!(dialled.load(Ordering::Relaxed), 1);
        peers.get("http://a:1", Carries::Appends).expect("a URL");
        peers.get("http://b:1", Carries::Calls).expect("a URL");
        assert_eq!(dialled.load(Ordering::Relaxed), 3);
        peers.get("no url at all", Carries::Calls).expect_err("no URL");
    }

    #[tokio::test]
    async fn a_connection_takes_a_thousand_calls_and_then_there_is_a_second() {
        let (peers, dialled) = counted();
        let mut open: Vec<_> =
            (0..CALLS).map(|_| peers.get("http://a:1", Carries::Watches).expect("a URL")).collect();
        assert_eq!(dialled.load(Ordering::Relaxed), 1);
        open.push(peers.get("http://a:1", Carries::Watches).expect("a URL"));
        assert_eq!(dialled.load(Ordering::Relaxed), 2);
        open.clear();
        peers.get("http://a:1", Carries::Watches).expect("a URL");
        assert_eq!(dialled.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn above_the_bound_the_longest_unused_go_and_those_in_use_stay() {
        let (peers, dialled) = counted();
        let url = |n: usize| format!("http://peer{n}:1");
        let held = peers.get(&url(0), Carries::Calls).expect("a URL");
        for n in 1..MOST + 10 {
            peers.get(&url(n), Carries::Calls).expect("a URL");
        }
        // The one that was just asked for is in use while it is handed out.
        assert!(kept(&peers) <= MOST + 1, "{}", kept(&peers));
        let before = dialled.load(Ordering::Relaxed);
        peers.get(&url(0), Carries::Calls).expect("a URL");
        peers.get(&url(MOST), Carries::Calls).expect("a URL");
        assert_eq!(dialled.load(Ordering::Relaxed), before, "both are there");
        peers.get(&url(1), Carries::Calls).expect("a URL");
        assert_eq!(dialled.load(Ordering::Relaxed), before + 1, "it was closed");
        drop(held);
    }
}
