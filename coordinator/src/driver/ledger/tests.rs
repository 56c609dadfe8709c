//! What loading a large batch costs: counts, not seconds.

use super::*;
use crate::store::embedded::Embedded;
use crate::store::{Page, Session, SessionId, StoreError, TxnOutcome, Watch};
use async_trait::async_trait;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tranche_engine::{RangePhase, Run, Runs, StateRecord, Token, Winner};

/// A store that counts what is read.
struct Counting {
    inner: Arc<Embedded>,
    gets: AtomicUsize,
    pages: AtomicUsize,
    largest: AtomicUsize,
}

#[async_trait]
impl Store for Counting {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.gets.fetch_add(1, Ordering::Relaxed);
        self.inner.get(key).await
    }

    async fn range(&self, prefix: &str, options: RangeOptions) -> Result<Page, StoreError> {
        let page = self.inner.range(prefix, options).await?;
        self.pages.fetch_add(1, Ordering::Relaxed);
        self.largest.fetch_max(page.entries.len(), Ordering::Relaxed);
        Ok(page)
    }

    async fn txn(&self, txn: &Txn) -> Result<TxnOutcome, StoreError> {
        self.inner.txn(txn).await
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        self.inner.watch(prefix, after).await
    }

    async fn session(&self, ttl: Duration) -> Result<Session, StoreError> {
        self.inner.session(ttl).await
    }

    async fn close_session(&self, id: SessionId) -> Result<(), StoreError> {
        self.inner.close_session(id).await
    }

    fn transactions(&self) -> u64 {
        self.inner.transactions()
    }
}

const RANGES: u64 = 5_000;
const TASKS: u64 = 16_384;
const SEGMENTS: u64 = 300;

fn range(number: u64) -> RangeRecord {
    let run = Run::new(number * TASKS + 1, (number + 1) * TASKS);
    let token = Token { epoch: Epoch(7), counter: number + 1 };
    RangeRecord {
        run,
        phase: RangePhase::Staged,
        lease: None,
        backup: None,
        winners: vec![Winner {
            token,
            worker: "worker-1".into(),
            runs: Runs::from(run),
            receipt: Vec::new(),
        }],
        losers: Vec::new(),
        stopping: Vec::new(),
        failed_runs: Runs::default(),
        failure_objects: Vec::new(),
        inline_failures: Vec::new(),
        losses: 0,
        errors: 0,
    }
}

/// A batch as its owner leaves it behind.
async fn fill(store: &dyn Store, key: &BatchKey) -> BTreeMap<u64, RangeRecord> {
    let all: BTreeMap<u64, RangeRecord> =
        (0..RANGES).map(range).map(|range| (range.run.first, range)).collect();
    let staged = RANGES * TASKS;
    let state = StateRecord { total: staged, staged, ..StateRecord::default() };
    let txn = Txn::new()
        .put(keys::state(key), Stored::new(records::state_record(&state, "")).encode())
        .put(keys::spec(key), Stored::new(v1::SpecRecord::default()).encode())
        .put(keys::lock(key), Stored::new(v1::LockRecord::default()).encode())
        .put(keys::cutoff(key), Stored::new(v1::CutoffRecord::default()).encode());
    let mut txns = vec![txn];
    let ranges = all
        .values()
        .map(|range| (keys::range(key, range.run.first), Stored::new(records::range_record(range)).encode()));
    let segments = (0..SEGMENTS).map(|number| {
        let first = number * (staged / SEGMENTS) + 1;
        let run = Run::new(first, first + staged / SEGMENTS - 1);
        let segment =
            Segment { run, object: format!("segments/{number}"), offset: 0, bytes: 4_000_000, crc32c: 1 };
        (keys::segment(key, first), Stored::new(records::segment_record(&segment)).encode())
    });
    let entries: Vec<_> = ranges.chain(segments).collect();
    txns.extend(
        entries.chunks(100).map(|some| {
            some.iter().fold(Txn::new(), |txn, (key, value)| txn.put(key.clone(), value.clone()))
        }),
    );
    for written in futures::future::join_all(txns.iter().map(|txn| store.txn(txn))).await {
        assert!(matches!(written.expect("written"), TxnOutcome::Applied(_)));
    }
    all
}

#[tokio::test]
async fn a_large_batch_is_loaded_page_by_page() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = Counting {
        inner: Embedded::open(dir.path()).await.expect("opened"),
        gets: AtomicUsize::new(0),
        pages: AtomicUsize::new(0),
        largest: AtomicUsize::new(0),
    };
    let key = BatchKey::new("default", "large");
    let written = fill(&store, &key).await;
    let loaded = load(&store, &key).await.expect("read").expect("there");
    assert_eq!(loaded.records.ranges, written);
    assert_eq!(loaded.records.segments.len() as u64, SEGMENTS);
    assert_eq!(loaded.ledger.ranges.len() as u64, RANGES);
    let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
    assert!(count(&store.gets) <= 5, "{} single reads", count(&store.gets));
    let pages = usize::try_from(RANGES).expect("small").div_ceil(LOAD_PAGE) + 1;
    assert!(count(&store.pages) <= pages, "{} pages", count(&store.pages));
    assert!(count(&store.largest) <= LOAD_PAGE, "{} records in a page", count(&store.largest));
}
