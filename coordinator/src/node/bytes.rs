//! How many bytes of tasks a namespace may have in batches that haven't ended.
//!
//! What is driven here is known to the byte: what is durable, and what is on its way there. What is driven elsewhere is as
//! its owners wrote it to the batches' slots, with each append; it is looked up now and then, more often the less there
//! is left. So one coordinator keeps the limit exactly, and several may pass it by what they append between two looks.

use super::Shared;
use crate::config::StoreConfig;
use crate::error::Error;
use crate::store::keys::BatchKey;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// How old what was looked up may be.
const MAX_AGE: Duration = Duration::from_secs(1);
/// After this part of what was left, it is looked up again: what sixteen coordinators take of it is not more.
const PART: u64 = 16;
/// The most namespaces that something is remembered of without a batch of theirs being driven here.
const MAX_NAMESPACES: usize = 4096;

/// What the namespaces have, as far as is known here.
#[derive(Debug)]
pub struct Bytes {
    /// What one may have; 0: any number.
    limit: u64,
    /// Nobody else drives batches.
    alone: bool,
    namespaces: Mutex<HashMap<String, Usage>>,
    /// Told when there may be room.
    less: Notify,
    /// Held while somebody looks up what is driven elsewhere.
    looking: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Usage {
    /// Batches that are driven here.
    batches: usize,
    /// Their durable bytes.
    here: u64,
    /// Bytes that were let in and aren't durable yet.
    pending: u64,
    elsewhere: u64,
    /// When that was so.
    looked: Option<Instant>,
    /// Bytes that were let in since.
    since: u64,
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Admitted,
    /// What is driven elsewhere must be looked up first.
    Look,
    /// It depends on what becomes of that which was let in.
    Wait,
    Over,
}

impl Bytes {
    pub(super) fn new(limit: u64, store: &StoreConfig) -> Arc<Self> {
        Arc::new(Self {
            limit,
            alone: matches!(store, StoreConfig::Embedded { .. }),
            namespaces: Mutex::default(),
            less: Notify::new(),
            looking: tokio::sync::Mutex::default(),
        })
    }

    /// Whether the owners of batches write their bytes to the store.
    pub(crate) fn told(&self) -> bool {
        self.limit > 0 && !self.alone
    }

    /// A batch is driven here, until the value is dropped.
    pub(crate) fn drive(self: &Arc<Self>, namespace: &str, bytes: u64) -> Driven {
        self.change(namespace, |usage| {
            usage.batches += 1;
            usage.here += bytes;
        });
        Driven { all: self.clone(), namespace: namespace.to_owned(), bytes }
    }

    /// Namespaces with batches that are driven here, with the number of those, and their bytes.
    pub fn usage(&self) -> Vec<(String, usize, u64)> {
        let all = self.lock();
        let used = all.iter().filter(|(_, usage)| usage.batches > 0);
        used.map(|(namespace, usage)| (namespace.clone(), usage.batches, usage.here)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Usage>> {
        self.namespaces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, namespace: &str, change: impl FnOnce(&mut Usage) -> T) -> T {
        let mut all = self.lock();
        if !all.contains_key(namespace) {
            if all.len() >= MAX_NAMESPACES {
                all.retain(|_, usage| usage.batches > 0 || usage.pending > 0);
            }
            all.insert(namespace.to_owned(), Usage::default());
        }
        change(all.get_mut(namespace).expect("it was put there"))
    }

    fn admit(&self, namespace: &str, bytes: u64, looked: bool, now: Instant) -> Verdict {
        self.change(namespace, |usage| {
            let settled = usage.here + usage.elsewhere;
            let old = usage.looked.is_none_or(|at| now > at + MAX_AGE)
                || usage.since > self.limit.saturating_sub(settled) / PART;
            if !looked && old {
                return Verdict::Look;
            }
            if settled + usage.pending + bytes <= self.limit {
                usage.pending += bytes;
                usage.since += bytes;
                Verdict::Admitted
            } else if settled + bytes <= self.limit {
                Verdict::Wait
            } else if looked {
                Verdict::Over
            } else {
                Verdict::Look
            }
        })
    }
}

/// A batch that is driven here.
#[derive(Debug)]
pub(crate) struct Driven {
    all: Arc<Bytes>,
    namespace: String,
    bytes: u64,
}

impl Driven {
    /// Its durable bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Its durable bytes are these now.
    pub(crate) fn set(&mut self, bytes: u64) {
        if bytes != self.bytes {
            self.all.change(&self.namespace, |usage| usage.here = usage.here - self.bytes + bytes);
            self.bytes = bytes;
            self.all.less.notify_waiters();
        }
    }
}

impl Drop for Driven {
    fn drop(&mut self) {
        let mut all = self.all.lock();
        if let Some(usage) = all.get_mut(&self.namespace) {
            usage.batches -= 1;
            usage.here -= self.bytes;
            // A namespace with nothing here is known again when it has something.
            if usage.batches == 0 && usage.pending == 0 && !self.all.told() {
                all.remove(&self.namespace);
            }
        }
        drop(all);
        self.all.less.notify_waiters();
    }
}

/// Bytes that were let in, until they are durable and counted as that, or lost.
#[derive(Debug)]
pub(super) struct Admitted(Option<(Arc<Bytes>, String, u64)>);

impl Drop for Admitted {
    fn drop(&mut self) {
        if let Some((all, namespace, bytes)) = self.0.take() {
            all.change(&namespace, |usage| usage.pending -= bytes);
            all.less.notify_waiters();
        }
    }
}

impl Shared {
    /// Lets bytes into a batch that is driven here. Waits while it depends on what becomes of others.
    ///
    /// # Errors
    /// [`Error::Quota`]: the namespace has no room for them. As the store, when that must be asked.
    pub(super) async fn admit(&self, batch: &BatchKey, bytes: u64) -> Result<Admitted, Error> {
        let (all, namespace) = (&self.bytes, batch.namespace.as_str());
        if all.limit == 0 {
            return Ok(Admitted(None));
        }
        let mut looked = all.alone;
        loop {
            let less = all.less.notified();
            tokio::pin!(less);
            // What is told from here on is heard.
            less.as_mut().enable();
            match all.admit(namespace, bytes, looked, Instant::now()) {
                Verdict::Admitted => {
                    return Ok(Admitted(Some((all.clone(), namespace.to_owned(), bytes))));
                }
                Verdict::Look => {
                    self.look_elsewhere(namespace).await?;
                    looked = true;
                }
                Verdict::Wait => tokio::select! {
                    biased;
                    () = self.stop.cancelled() => return Err(Error::ShuttingDown),
                    () = less => {}
                },
                Verdict::Over => {
                    return Err(Error::Quota {
                        of: format!("namespaces/{namespace}"),
                        what: "bytes of tasks in batches that haven't ended",
                        limit: all.limit,
                        setting: "max_bytes_per_namespace",
                        passes: false,
                    });
                }
            }
        }
    }

    async fn look_elsewhere(&self, namespace: &str) -> Result<(), Error> {
        let asked = Instant::now();
        let _looking = self.bytes.looking.lock().await;
        // Whoever looked meanwhile looked for all.
        if self.bytes.change(namespace, |usage| usage.looked.is_some_and(|at| at > asked)) {
            return Ok(());
        }
        let at = Instant::now();
        let before = self.bytes.change(namespace, |usage| usage.since);
        let elsewhere = self.bytes_elsewhere(namespace).await?;
        self.bytes.change(namespace, |usage| {
            usage.elsewhere = elsewhere;
            usage.looked = Some(at);
            usage.since -= before;
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn alone(limit: u64) -> Arc<Bytes> {
        Bytes::new(limit, &StoreConfig::Embedded { path: PathBuf::new() })
    }

    fn admitted(all: &Arc<Bytes>, bytes: u64) -> Admitted {
        assert_eq!(all.admit("a", bytes, true, Instant::now()), Verdict::Admitted);
        Admitted(Some((all.clone(), "a".to_owned(), bytes)))
    }

    #[test]
    fn the_last_byte_is_let_in_and_the_next_one_waits_for_those_that_are_on_their_way() {
        let all = alone(10);
        let verdict = |bytes| all.admit("a", bytes, true, Instant::now());
        let mut batch = all.drive("a", 4);
        assert_eq!(verdict(7), Verdict::Over);
        let on_its_way = admitted(&all, 6);
        // They may be lost, and then there is room.
        assert_eq!((verdict(1), verdict(6), verdict(7)), (Verdict::Wait, Verdict::Wait, Verdict::Over));
        drop(on_its_way);
        let on_its_way = admitted(&all, 6);
        batch.set(10);
        drop(on_its_way);
        assert_eq!(verdict(1), Verdict::Over);
        assert_eq!(all.usage(), [("a".to_owned(), 1, 10)]);
        drop(batch);
        assert_eq!((all.usage(), all.lock().len()), (vec![], 0));
        drop(admitted(&all, 10));
    }

    #[test]
    fn the_less_is_left_the_more_often_the_others_are_looked_at() {
        let all = Bytes::new(1600, &"etcd:http://e:1".parse().expect("a store"));
        let now = Instant::now();
        let looked = |elsewhere| {
            all.change("a", |usage| {
                (usage.elsewhere, usage.looked) = (elsewhere, Some(now));
                (usage.since, usage.pending) = (0, 0);
            });
        };
        let ask = |bytes, at| all.admit("a", bytes, false, at);
        assert_eq!(ask(1, now), Verdict::Look, "nothing is known");
        looked(0);
        assert_eq!(ask(101, now), Verdict::Admitted);
        assert_eq!(ask(1, now), Verdict::Look, "more than a sixteenth of 1,600 since");
        looked(1584);
        assert_eq!(ask(1, now), Verdict::Admitted);
        assert_eq!((ask(1, now), ask(1, now)), (Verdict::Admitted, Verdict::Look), "of 16");
        looked(0);
        assert_eq!(ask(1, now + MAX_AGE), Verdict::Admitted);
        assert_eq!(ask(1, now + MAX_AGE + Duration::from_millis(1)), Verdict::Look, "that is long ago");
    }

    #[test]
    fn the_memory_is_bounded() {
        let all = Bytes::new(9, &"etcd:http://e:1".parse().expect("a store"));
        for n in 0..=MAX_NAMESPACES {
            drop(all.drive(&format!("n{n}"), 1));
        }
        assert!(all.lock().len() <= MAX_NAMESPACES);
    }
}
