//! The etcd store.
//!
//! The client crate is thin: it doesn't make a broken watch anew, doesn't look at later keep-alive
//! answers and has no time limits of its own. All of that is done here, in [`watch`] and [`session`];
//! what an error means for the caller is in [`error`]. Who we are is read again from files in
//! [`clients`].
//!
//! ```text
//! get, range, txn ──► one call with a time limit ──► answer, or what an error means
//! watch ──► task: stream, made anew from the last revision seen ──► channel
//! session ──► task: keep-alives, each answer checked ──► `lost`, before the lease can end
//! ```

mod clients;
mod dial;
mod error;
mod session;
mod watch;

use super::check::{check, prefix_range};
use super::{
    Compare, Entry, Op, Page, RangeOptions, Revision, Session, SessionId, Store, StoreError, Txn, TxnOutcome,
    WATCH_BOUND, Watch,
};
use async_trait::async_trait;
use bytes::Bytes;
use clients::{Clients, Connector};
pub use dial::Dial;
use error::Failure;
use etcd_client::{
    CompareOp, GetOptions, GetResponse, KeyValue, KvClient, PutOptions, SortOrder, SortTarget, TxnOp,
};
use session::{Keeper, Sessions};
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tranche_tls::Reloading;
use watch::Follower;

/// HTTP/2 pings to notice a dead server: without them a stopped etcd is never noticed. etcd answers a
/// ping more often than every 5 s by closing the connection.
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// Entries read at a time, when all are asked for.
const PAGE: i64 = 256;
/// The largest answer: a page of the largest values that etcd takes (1.5 MiB) with room to spare. The
/// client's own default, 4 MiB, is less than what a watch can get at once.
const MAX_ANSWER_BYTES: usize = 512 * 1024 * 1024;
/// How often a read is tried within its time limit: one member of three may be down.
const READ_ATTEMPTS: u32 = 3;
const READ_PAUSE: Duration = Duration::from_millis(50);

/// Where etcd is, and how long to wait for it.
#[derive(Clone, Debug)]
pub struct EtcdConfig {
    /// URLs of the members, like `http://127.0.0.1:2379`. At least one.
    pub endpoints: Vec<String>,
    /// In front of every key, default `/tranche/v1/`. Not empty: two installations in one etcd, or
    /// other users of it, must not see each other's keys.
    pub prefix: String,
    /// The time limit of every call, default 5 s.
    pub call_timeout: Duration,
    /// The time limit of making a connection, default 2 s.
    pub connect_timeout: Duration,
    /// Who we are, and whom we trust. Default: nobody, and clear text.
    pub files: EtcdFiles,
}

/// Who we are to etcd, and whom we trust: in files, which are read again when they change.
#[derive(Clone, Debug, Default)]
pub struct EtcdFiles {
    /// Certificate authorities of its members (PEM), for members at `https://`.
    pub ca: Option<PathBuf>,
    /// Our certificate, and its private key (PEM).
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// A user's name, and the file of the password.
    pub user: Option<(String, PathBuf)>,
}

impl EtcdConfig {
    /// The defaults, with these members.
    pub fn new(endpoints: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            prefix: "/tranche/v1/".into(),
            call_timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(2),
            files: EtcdFiles::default(),
        }
    }
}

/// A store in etcd. Dropping it ends its watches, and its sessions are kept alive no more.
pub struct Etcd {
    clients: Clients,
    prefix: String,
    call_timeout: Duration,
    sessions: Sessions,
    transactions: AtomicU64,
    /// Watches and sessions; aborted when the store is dropped.
    tasks: Mutex<JoinSet<()>>,
}

impl fmt::Debug for Etcd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Etcd").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl Etcd {
    /// Connects, and makes sure that etcd answers.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when it doesn't within the time limit of a call,
    /// [`StoreError::Rejected`] when the configuration is wrong or etcd doesn't let us in.
    pub async fn connect(config: EtcdConfig) -> Result<Arc<Self>, StoreError> {
        Self::open(config, None).await
    }

    /// Connects another way than by TCP, for simulations; to the first endpoint alone.
    ///
    /// # Errors
    /// As [`Etcd::connect`].
    pub async fn connect_with(config: EtcdConfig, dial: Dial) -> Result<Arc<Self>, StoreError> {
        Self::open(config, Some(dial)).await
    }

    async fn open(config: EtcdConfig, dial: Option<Dial>) -> Result<Arc<Self>, StoreError> {
        if config.prefix.is_empty() {
            return Err(StoreError::Rejected("the prefix of the keys in etcd is empty".into()));
        }
        let (prefix, call_timeout) = (config.prefix.clone(), config.call_timeout);
        let files = config.files.start().map_err(|error| StoreError::Rejected(error.to_string()))?;
        let connector = Connector { config, dial };
        let mut changes = files.as_ref().map(Reloading::watch);
        let secrets = changes.as_mut().map(|newest| newest.borrow_and_update().clone()).unwrap_or_default();
        let first = connector.connect(&secrets).await.map_err(|failure| match failure {
            // Whoever starts it finds out at once.
            Failure::Denied(message) => StoreError::Rejected(message),
            failure => failure.of_read(),
        })?;
        let (newest, clients) = Clients::new(first);
        let store = Self {
            clients,
            prefix,
            call_timeout,
            sessions: Sessions::default(),
            transactions: AtomicU64::new(0),
            tasks: Mutex::new(JoinSet::new()),
        };
        if let Some(changes) = changes {
            store.spawn(async move {
                // They are looked at for as long as it is held.
                let _files = files;
                connector.renew(changes, newest).await;
            });
        }
        Ok(Arc::new(store))
    }

    fn key(&self, key: &str) -> Vec<u8> {
        [self.prefix.as_bytes(), key.as_bytes()].concat()
    }

    async fn read(&self, key: Vec<u8>, options: Option<GetOptions>) -> Result<GetResponse, Failure> {
        read(&self.clients.kv(), self.call_timeout, key, options).await
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    /// All pages of one revision.
    async fn pages(&self, prefix: &str, options: &RangeOptions) -> Result<Page, Failure> {
        let (mut start, end) = prefix_range(&self.key(prefix));
        // No end: all keys, which etcd writes like this.
        let mut end = end.unwrap_or_else(|| vec![0]);
        let mut page = Page { entries: Vec::new(), more: false, revision: 0 };
        if let Some(after) = &options.after {
            narrow(&mut start, &mut end, self.key(after), options.descending);
        }
        if start >= end && end != [0] {
            // Nothing lies there, but the caller wants the revision.
            let answer = self.read(start, Some(GetOptions::new().with_count_only())).await?;
            page.revision = revision(answer.header());
            return Ok(page);
        }
        loop {
            let left = if options.limit == 0 { usize::MAX } else { options.limit - page.entries.len() };
            let wanted = i64::try_from(left).map_or(PAGE, |left| left.min(PAGE));
            let mut get = GetOptions::new()
                .with_range(end.clone())
                .with_limit(wanted)
                .with_revision(page.revision.cast_signed());
            if options.descending {
                get = get.with_sort(SortTarget::Key, SortOrder::Descend);
            }
            let mut answer = self.read(start.clone(), Some(get)).await?;
            if page.revision == 0 {
                page.revision = revision(answer.header());
            }
            page.more = answer.more();
            let found = answer.take_kvs();
            let Some(last) = found.last().map(|kv| kv.key().to_vec()) else { return Ok(page) };
            for kv in found {
                page.entries.push(entry(&self.prefix, kv)?);
            }
            if !page.more || page.entries.len() == options.limit {
                return Ok(page);
            }
            narrow(&mut start, &mut end, last, options.descending);
        }
    }
}

/// Leaves of a key range what lies beyond a key.
fn narrow(start: &mut Vec<u8>, end: &mut Vec<u8>, mut after: Vec<u8>, descending: bool) {
    if descending {
        if after < *end || *end == [0] {
            *end = after;
        }
    } else if after >= *start {
        after.push(0);
        *start = after;
    }
}

/// Gives a call its time limit.
async fn limited<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, etcd_client::Error>>,
) -> Result<T, Failure> {
    match timeout(limit, call).await {
        Ok(answer) => answer.map_err(Failure::from),
        Err(_) => Err(Failure::Lost(format!("no answer from etcd in {limit:?}"))),
    }
}

/// Reads, trying again within the time limit.
async fn read(
    kv: &KvClient,
    limit: Duration,
    key: Vec<u8>,
    options: Option<GetOptions>,
) -> Result<GetResponse, Failure> {
    let deadline = Instant::now() + limit;
    let mut attempt = 1;
    loop {
        let mut kv = kv.clone();
        let left = deadline.saturating_duration_since(Instant::now());
        let failure = match limited(left, kv.get(key.clone(), options.clone())).await {
            Ok(answer) => return Ok(answer),
            Err(failure @ (Failure::NotSent(_) | Failure::Lost(_))) => failure,
            Err(failure) => return Err(failure),
        };
        let pause = READ_PAUSE * attempt;
        if attempt == READ_ATTEMPTS || Instant::now() + pause >= deadline {
            return Err(failure);
        }
        attempt += 1;
        sleep(pause).await;
    }
}

fn revision(header: Option<&etcd_client::ResponseHeader>) -> Revision {
    header.map_or(0, |header| header.revision() as Revision)
}

/// An entry as the store's callers see it.
fn entry(prefix: &str, kv: KeyValue) -> Result<Entry, Failure> {
    let (create_revision, mod_revision) = (kv.create_revision() as Revision, kv.mod_revision() as Revision);
    let (key, value) = kv.into_key_value();
    let key = plain_key(prefix, &key)?;
    Ok(Entry { key, value: Bytes::from(value), create_revision, mod_revision })
}

/// A key without the store's prefix.
fn plain_key(prefix: &str, key: &[u8]) -> Result<String, Failure> {
    let corrupt = |message: &str| Failure::Corrupt {
        key: String::from_utf8_lossy(key).into_owned(),
        message: message.into(),
    };
    let tail = key.strip_prefix(prefix.as_bytes()).ok_or_else(|| corrupt("key lies outside the prefix"))?;
    String::from_utf8(tail.to_vec()).map_err(|_| corrupt("key is not text"))
}

#[async_trait]
impl Store for Etcd {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let mut answer = self.read(self.key(key), None).await.map_err(Failure::of_read)?;
        let found = answer.take_kvs().pop();
        found.map(|kv| entry(&self.prefix, kv)).transpose().map_err(Failure::of_read)
    }

    async fn range(&self, prefix: &str, options: RangeOptions) -> Result<Page, StoreError> {
        let mut attempts = 0;
        loop {
            match self.pages(prefix, &options).await {
                // The revision was compacted away between two pages: read all at a newer one.
                Err(Failure::Compacted(_)) if attempts < READ_ATTEMPTS => attempts += 1,
                done => return done.map_err(Failure::of_read),
            }
        }
    }

    async fn txn(&self, txn: &Txn) -> Result<TxnOutcome, StoreError> {
        check(txn)?;
        let compares: Vec<_> = txn
            .compares
            .iter()
            .map(|compare| match compare {
                Compare::Created(key, revision) => etcd_client::Compare::create_revision(
                    self.key(key),
                    CompareOp::Equal,
                    revision.cast_signed(),
                ),
                Compare::Modified(key, revision) => etcd_client::Compare::mod_revision(
                    self.key(key),
                    CompareOp::Equal,
                    revision.cast_signed(),
                ),
            })
            .collect();
        let ops: Vec<_> = txn
            .ops
            .iter()
            .map(|op| match op {
                Op::Put { key, value, session } => {
                    let options = session.map(|session| PutOptions::new().with_lease(session.0));
                    TxnOp::put(self.key(key), value.to_vec(), options)
                }
                Op::Delete { key } => TxnOp::delete(self.key(key), None),
            })
            .collect();
        let request = etcd_client::Txn::new().when(compares).and_then(ops);
        let mut kv = self.clients.kv();
        let answer = limited(self.call_timeout, kv.txn(request)).await.map_err(|failure| {
            if matches!(failure, Failure::NoLease(_)) {
                // Known here before the next keep-alive finds out.
                for op in &txn.ops {
                    if let Op::Put { session: Some(session), .. } = op {
                        self.sessions.close(*session);
                    }
                }
            }
            failure.of_change()
        })?;
        self.transactions.fetch_add(1, Ordering::Relaxed);
        if answer.succeeded() {
            Ok(TxnOutcome::Applied(revision(answer.header())))
        } else {
            Ok(TxnOutcome::Refused)
        }
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        let (to, watch) = mpsc::channel(WATCH_BOUND);
        let follower =
            Follower::new(self.clients.clone(), self.call_timeout, self.prefix.clone(), self.key(prefix), to);
        self.spawn(follower.run(after));
        Ok(watch)
    }

    async fn session(&self, ttl: Duration) -> Result<Session, StoreError> {
        let sent = Instant::now();
        let mut lease = self.clients.lease();
        let seconds = ttl.as_secs_f64().ceil().max(1.0) as i64;
        // A lease whose answer was lost holds no keys, and runs out: nothing that matters was changed.
        let grant = limited(self.call_timeout, lease.grant(seconds, None)).await.map_err(Failure::of_read)?;
        // etcd may give more than was asked, never less.
        let granted = Duration::from_secs(grant.ttl().unsigned_abs());
        let (keeper, session) =
            Keeper::new(self.clients.clone(), SessionId(grant.id()), granted, sent, self.sessions.clone());
        self.spawn(keeper.run(sent));
        Ok(session)
    }

    async fn close_session(&self, id: SessionId) -> Result<(), StoreError> {
        // Whoever acts on it stops before the keys go.
        self.sessions.close(id);
        let mut lease = self.clients.lease();
        match limited(self.call_timeout, lease.revoke(id.0)).await {
            Ok(_) | Err(Failure::NoLease(_)) => Ok(()),
            Err(failure) => Err(failure.of_change()),
        }
    }

    fn session_lives(&self, id: SessionId) -> bool {
        self.sessions.lives(id)
    }

    fn transactions(&self) -> u64 {
        self.transactions.load(Ordering::Relaxed)
    }
}
