//! Watches of the simulated store.

use crate::host::{HostId, Life};
use crate::stats::Count;
use crate::world::{At, Inner};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tranche_coordinator::store::{Revision, WATCH_BOUND, Watch, WatchEvent};

/// A watch, at the store's end.
pub(crate) struct Watched {
    host: HostId,
    life: Life,
    prefix: String,
    /// All up to here was sent.
    cursor: Revision,
    sender: mpsc::Sender<WatchEvent>,
    /// It will be looked at.
    scheduled: bool,
    /// It fell behind.
    missed: bool,
}

impl Inner {
    /// Begins a watch.
    pub(crate) fn watch(&mut self, host: HostId, life: Life, prefix: String, after: Revision) -> Watch {
        let (sender, watch) = mpsc::channel(WATCH_BOUND);
        self.store.next_watch += 1;
        let id = self.store.next_watch;
        let watched = Watched { host, life, prefix, cursor: after, sender, scheduled: true, missed: false };
        self.store.watches.insert(id, watched);
        self.after(At::ZERO, move |inner| inner.feed(id));
        watch
    }

    /// A key changed.
    pub(super) fn wake_watches(&mut self, key: &str) {
        let idle = self.store.watches.iter_mut().filter(|(_, w)| !w.scheduled && key.starts_with(&w.prefix));
        let ids: Vec<u64> = idle
            .map(|(id, watched)| {
                watched.scheduled = true;
                *id
            })
            .collect();
        for id in ids {
            let lags = self.chance(self.knobs.watch_lag);
            let pause = if lags { self.ms(300, 3000) } else { self.ms(1, 30) };
            if lags {
                self.count(Count::WatchLag);
            }
            self.after(pause, move |inner| inner.feed(id));
        }
    }

    /// Sends what a watch hasn't seen.
    fn feed(&mut self, id: u64) {
        let Some(watched) = self.store.watches.get(&id) else { return };
        let (host, life) = (watched.host, watched.life);
        if !self.hosts.lives(host, life) {
            self.store.watches.remove(&id);
            return;
        }
        if let Some(until) = self.cut_off.get(&host).copied().filter(|until| *until > self.now) {
            let pause = self.ms(1, 50);
            return self.at(until + pause, move |inner| inner.feed(id));
        }
        let misses = self.chance(self.knobs.watch_missed);
        let revision = self.store.revision;
        let history = &self.store.history;
        let Some(watched) = self.store.watches.get_mut(&id) else { return };
        watched.scheduled = false;
        let start = history.partition_point(|(at, _)| *at <= watched.cursor);
        let ours = |event: &WatchEvent| match event {
            WatchEvent::Put(entry) => entry.key.starts_with(&watched.prefix),
            WatchEvent::Deleted(key, _) => key.starts_with(&watched.prefix),
            WatchEvent::Missed(_) => false,
        };
        let new: Vec<WatchEvent> =
            history[start..].iter().map(|(_, event)| event).filter(|event| ours(event)).cloned().collect();
        watched.cursor = watched.cursor.max(revision);
        let behind = misses && !new.is_empty() || watched.missed;
        let events = if behind { vec![WatchEvent::Missed(revision)] } else { new };
        if events.is_empty() {
            return;
        }
        watched.missed = false;
        for event in events {
            match watched.sender.try_send(event) {
                Ok(()) => {}
                Err(TrySendError::Full(_)) => {
                    watched.missed = true;
                    watched.scheduled = true;
                    break;
                }
                Err(TrySendError::Closed(_)) => {
                    self.store.watches.remove(&id);
                    return;
                }
            }
        }
        let again = watched.missed;
        self.hosts.touch(host);
        if behind {
            self.count(Count::WatchMissed);
        }
        if again {
            let pause = self.ms(50, 100);
            self.after(pause, move |inner| inner.feed(id));
        }
    }
}
