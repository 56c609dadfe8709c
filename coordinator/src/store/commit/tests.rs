//! The store below loses answers, delays transactions and delivers them twice.

use super::*;
use crate::store::embedded::Embedded;
use crate::store::{Page, Session, SessionId, Watch};
use async_trait::async_trait;
use bytes::Bytes;
use std::sync::{Arc, Mutex};

/// Pauses too short to matter.
const QUICK: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_micros(1))
    .with_max_delay(Duration::from_micros(50))
    .without_max_times();
const LIMIT: Duration = Duration::from_mins(1);

/// A small generator of the test's own (xorshift64*), so that a seed is a run.
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % sides
    }
}

/// A store behind a bad network.
struct Faulty {
    inner: Arc<Embedded>,
    state: Mutex<(Dice, Vec<Txn>)>,
    /// Of ten calls, so many go well.
    good: u64,
}

impl Faulty {
    fn new(inner: &Arc<Embedded>, seed: u64, good: u64) -> Self {
        Self { inner: Arc::clone(inner), state: Mutex::new((Dice::new(seed), Vec::new())), good }
    }
    fn roll(&self, sides: u64) -> u64 {
        self.state.lock().unwrap().0.roll(sides)
    }
    /// Something that was under way may arrive now.
    async fn deliver(&self) {
        let late = {
            let mut state = self.state.lock().unwrap();
            let count = state.1.len() as u64;
            if count == 0 || state.0.roll(2) == 0 {
                return;
            }
            let which = state.0.roll(count) as usize;
            state.1.swap_remove(which)
        };
        self.inner.txn(&late).await.unwrap();
    }
    fn unreachable(&self) -> Result<(), StoreError> {
        if self.roll(10) < self.good { Ok(()) } else { Err(StoreError::Unavailable("refused".into())) }
    }
}

#[async_trait]
impl Store for Faulty {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.deliver().await;
        self.unreachable()?;
        self.inner.get(key).await
    }
    async fn range(&self, prefix: &str, options: RangeOptions) -> Result<Page, StoreError> {
        self.deliver().await;
        self.unreachable()?;
        self.inner.range(prefix, options).await
    }
    async fn txn(&self, txn: &Txn) -> Result<TxnOutcome, StoreError> {
        self.deliver().await;
        if self.roll(10) < self.good {
            return self.inner.txn(txn).await;
        }
        let lost = Err(StoreError::Unknown("answer lost".into()));
        match self.roll(5) {
            0 => Err(StoreError::Unavailable("refused".into())),
            // Lost before it was carried out.
            1 => lost,
            // Carried out, and the answer lost.
            2 => {
                self.inner.txn(txn).await?;
                lost
            }
            // Still under way.
            3 => {
                self.state.lock().unwrap().1.push(txn.clone());
                lost
            }
            // Carried out, with a copy still under way.
            _ => {
                self.state.lock().unwrap().1.push(txn.clone());
                self.inner.txn(txn).await?;
                lost
            }
        }
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

async fn embedded() -> (tempfile::TempDir, Arc<Embedded>) {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(dir.path()).await.unwrap();
    (dir, store)
}

async fn settled(store: &Faulty, txn: &Txn) -> TxnOutcome {
    settle(store, txn, LIMIT, QUICK, &mut None).await.unwrap()
}

/// One owner moves two records on, makes and deletes a third: the outcome told is always the truth.
#[tokio::test]
async fn an_owner_is_told_the_truth() {
    let (_dir, inner) = embedded().await;
    for seed in 0..60 {
        let store = Faulty::new(&inner, seed, 3 + seed % 7);
        let key = |name: &str| format!("{seed}/{name}");
        let (mut counter, mut range, mut summary) = (0, 0, 0);
        for step in 0..12_u64 {
            let value = step.to_string();
            let mut txn = Txn::new()
                .modified(key("counter"), counter)
                .modified(key("range"), range)
                .put(key("counter"), value.clone())
                // This one stays the same: its bytes alone tell nothing.
                .put(key("range"), "same");
            txn = if summary == 0 {
                txn.absent(key("summary")).put(key("summary"), value.clone())
            } else {
                txn.modified(key("summary"), summary).delete(key("summary"))
            };
            let TxnOutcome::Applied(revision) = settled(&store, &txn).await else {
                panic!("seed {seed} step {step}: refused, with nobody else writing");
            };
            let found = inner.get(&key("counter")).await.unwrap().unwrap();
            assert_eq!((found.value, found.mod_revision), (Bytes::from(value), revision), "seed {seed}");
            assert_eq!(inner.get(&key("range")).await.unwrap().unwrap().mod_revision, revision);
            assert_eq!(inner.get(&key("summary")).await.unwrap().is_some(), summary == 0, "seed {seed}");
            (counter, range) = (revision, revision);
            summary = if summary == 0 { revision } else { 0 };
        }
        // An owner that lost its place is refused, whatever happens on the way.
        inner.txn(&Txn::new().put(key("counter"), "another's")).await.unwrap();
        let late = Txn::new().modified(key("counter"), counter).put(key("counter"), "late");
        assert_eq!(settled(&store, &late).await, TxnOutcome::Refused, "seed {seed}");
        assert_eq!(inner.get(&key("counter")).await.unwrap().unwrap().value, "another's");
    }
}

/// A record that is written again with the same bytes: what was there before isn't taken for ours.
#[tokio::test]
async fn the_same_bytes_again() {
    let (_dir, inner) = embedded().await;
    for seed in 0..40 {
        let store = Faulty::new(&inner, seed, 2 + seed % 8);
        let key = format!("same/{seed}");
        let mut seen = 0;
        for step in 0..8 {
            let txn = Txn::new().modified(&key, seen).put(&key, "same");
            let TxnOutcome::Applied(revision) = settled(&store, &txn).await else {
                panic!("seed {seed} step {step}: refused, with nobody else writing");
            };
            assert!(revision > seen, "seed {seed} step {step}");
            assert_eq!(inner.get(&key).await.unwrap().unwrap().mod_revision, revision);
            seen = revision;
        }
    }
}

/// Of several that decide at once, exactly one is told that it won, and it is the one recorded.
#[tokio::test]
async fn one_decision_wins() {
    let (_dir, inner) = embedded().await;
    for seed in 0..60 {
        let key = format!("decisions/{seed}");
        let contenders = (0..5_u64).map(|nonce| {
            let store = Faulty::new(&inner, seed * 5 + nonce, 3);
            let txn = Txn::new().absent(&key).put(&key, nonce.to_string());
            async move { (nonce, settled(&store, &txn).await) }
        });
        let outcomes = futures::future::join_all(contenders).await;
        let winners: Vec<_> = outcomes.iter().filter(|(_, o)| *o != TxnOutcome::Refused).collect();
        let decided = inner.get(&key).await.unwrap().unwrap();
        let [(nonce, TxnOutcome::Applied(revision))] = winners.as_slice() else {
            panic!("seed {seed}: {winners:?}");
        };
        assert_eq!((decided.value, decided.mod_revision), (Bytes::from(nonce.to_string()), *revision));
    }
}

/// A lock is released once; whoever lost it isn't told that it released it.
#[tokio::test]
async fn deletes_alone() {
    let (_dir, inner) = embedded().await;
    for seed in 0..40 {
        let store = Faulty::new(&inner, seed, 3 + seed % 7);
        let lock = format!("locks/{seed}");
        let guard = format!("guard/{seed}");
        inner.txn(&Txn::new().put(&lock, "mine").put(&guard, "1")).await.unwrap();
        let epoch = inner.get(&lock).await.unwrap().unwrap().create_revision;
        let release = Txn::new().created(&lock, epoch).created(&guard, epoch).delete(&lock);
        assert!(matches!(settled(&store, &release).await, TxnOutcome::Applied(_)), "seed {seed}");
        assert_eq!(inner.get(&lock).await.unwrap(), None);

        inner.txn(&Txn::new().put(&lock, "mine")).await.unwrap();
        let epoch = inner.get(&lock).await.unwrap().unwrap().create_revision;
        inner.txn(&Txn::new().delete(&lock)).await.unwrap();
        inner.txn(&Txn::new().put(&lock, "another's")).await.unwrap();
        let stale = Txn::new().created(&lock, epoch).delete(&lock);
        assert_eq!(settled(&store, &stale).await, TxnOutcome::Refused, "seed {seed}");
        assert_eq!(inner.get(&lock).await.unwrap().unwrap().value, "another's");
    }
}

#[tokio::test]
async fn the_limit_is_kept_and_told() {
    let (_dir, inner) = embedded().await;
    // Nothing ever gets through.
    let dead = Faulty::new(&inner, 1, 0);
    let txn = Txn::new().absent("x").put("x", "1");
    let limit = Duration::from_millis(20);
    for seed in 0..20 {
        dead.state.lock().unwrap().0 = Dice::new(seed);
        let before = inner.get("x").await.unwrap();
        match settle(&dead, &txn, limit, QUICK, &mut None).await {
            Err(StoreError::Unknown(_)) => {}
            Err(StoreError::Unavailable(_)) => assert_eq!(inner.get("x").await.unwrap(), before),
            other => panic!("seed {seed}: {other:?}"),
        }
    }
    // What can't work isn't tried again.
    let held = Txn::new().put_held("y", "1", SessionId(99));
    assert!(matches!(commit(inner.as_ref(), &held).await, Err(StoreError::Rejected(_))));
    // A check alone is never in doubt.
    let store = Faulty::new(&inner, 3, 2);
    assert!(matches!(settled(&store, &Txn::new().absent("z")).await, TxnOutcome::Applied(_)));
}
