//! The last events, in memory, and the watches that read them.
//!
//! A watch reads the history at its own speed; what it didn't read before it was dropped from the
//! history it has missed. So a slow reader holds up nobody and costs no memory of its own but its
//! channel.

use crate::store::{Revision, WatchEvent};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{mpsc, watch};

/// Events kept: several times [`crate::store::WATCH_BOUND`], so that a watch which was made right
/// after a listing finds all that came since.
const MAX_EVENTS: usize = 8192;
/// Bytes of keys and values kept.
const MAX_BYTES: usize = 16 * 1024 * 1024;
/// Events that a watch copies at a time.
const CHUNK: usize = 256;

/// The bounded history of events.
#[derive(Debug)]
pub(super) struct History {
    state: Mutex<State>,
    /// The revision of the last published transaction.
    latest: watch::Sender<Revision>,
}

#[derive(Debug)]
struct State {
    events: VecDeque<(Revision, WatchEvent)>,
    bytes: usize,
    /// All events after this revision are in `events`.
    floor: Revision,
    latest: Revision,
}

/// What a watch reads next.
#[derive(Debug, PartialEq, Eq)]
enum Read {
    /// The events after the position, whole revisions, and the new position.
    Events(Vec<WatchEvent>, Revision),
    /// The history doesn't reach back to the position. The new position.
    Missed(Revision),
}

impl History {
    /// An empty history of a store that is at this revision.
    pub(super) fn new(revision: Revision) -> Self {
        let state = State { events: VecDeque::new(), bytes: 0, floor: revision, latest: revision };
        Self { state: Mutex::new(state), latest: watch::Sender::new(revision) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing below panics between two changes that belong together.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the events of durable transactions, in order of revision, up to `latest`.
    pub(super) fn publish(&self, events: Vec<(Revision, WatchEvent)>, latest: Revision) {
        {
            let mut state = self.state();
            for (revision, event) in events {
                state.bytes += size(&event);
                state.events.push_back((revision, event));
            }
            state.latest = latest;
            while state.events.len() > MAX_EVENTS || state.bytes > MAX_BYTES {
                // A revision is dropped as a whole: the floor says that all of it may be missing.
                let Some((revision, event)) = state.events.pop_front() else { break };
                state.bytes -= size(&event);
                state.floor = revision;
            }
        }
        self.latest.send_replace(latest);
    }

    fn read(&self, prefix: &str, after: Revision) -> Read {
        let state = self.state();
        if after < state.floor {
            return Read::Missed(state.latest);
        }
        let mut found = Vec::new();
        let start = state.events.partition_point(|(revision, _)| *revision <= after);
        let mut position = after;
        for (revision, event) in state.events.range(start..) {
            if found.len() >= CHUNK && *revision != position {
                return Read::Events(found, position);
            }
            position = *revision;
            if key(event).starts_with(prefix) {
                found.push(event.clone());
            }
        }
        Read::Events(found, after.max(state.latest))
    }

    /// Feeds a watch until its reader is gone.
    pub(super) async fn feed(
        self: Arc<Self>,
        prefix: String,
        mut after: Revision,
        to: mpsc::Sender<WatchEvent>,
    ) {
        let mut latest = self.latest.subscribe();
        loop {
            latest.mark_unchanged();
            let events = match self.read(&prefix, after) {
                Read::Missed(revision) => {
                    after = revision;
                    vec![WatchEvent::Missed(revision)]
                }
                Read::Events(events, position) => {
                    after = position;
                    events
                }
            };
            if events.is_empty() {
                tokio::select! {
                    changed = latest.changed() => if changed.is_err() { return },
                    () = to.closed() => return,
                }
            }
            for event in events {
                if to.send(event).await.is_err() {
                    return;
                }
            }
        }
    }
}

fn key(event: &WatchEvent) -> &str {
    match event {
        WatchEvent::Put(entry) => &entry.key,
        WatchEvent::Deleted(key, _) => key,
        WatchEvent::Missed(_) => "",
    }
}

fn size(event: &WatchEvent) -> usize {
    match event {
        WatchEvent::Put(entry) => entry.key.len() + entry.value.len(),
        WatchEvent::Deleted(key, _) => key.len(),
        WatchEvent::Missed(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deleted(key: &str, revision: Revision) -> (Revision, WatchEvent) {
        (revision, WatchEvent::Deleted(key.into(), revision))
    }

    #[test]
    fn a_chunk_ends_at_a_revision() {
        let history = History::new(5);
        // 300 events of one revision: more than a chunk, but never torn.
        let events = (0..300).map(|_| deleted("a", 6)).chain([deleted("a", 7), deleted("b", 8)]).collect();
        history.publish(events, 8);
        let Read::Events(first, position) = history.read("a", 5) else { panic!("missed") };
        assert_eq!((first.len(), position), (300, 6));
        let Read::Events(second, position) = history.read("a", 6) else { panic!("missed") };
        assert_eq!((second.len(), position), (1, 8));
        assert_eq!(history.read("a", 8), Read::Events(vec![], 8));
        // A position in the future waits.
        assert_eq!(history.read("a", 20), Read::Events(vec![], 20));
    }

    #[test]
    fn what_was_dropped_is_missed() {
        let history = History::new(0);
        let last = MAX_EVENTS as Revision + 10;
        for revision in 1..=last {
            history.publish(vec![deleted("a", revision)], revision);
        }
        assert_eq!(history.read("a", 9), Read::Missed(last));
        let Read::Events(events, _) = history.read("a", 10) else { panic!("missed") };
        assert_eq!(events[0], WatchEvent::Deleted("a".into(), 11));
    }
}
