//! The invariants I1 to I8, checked on the decoded records after every store revision.
//!
//! The mirror here is kept from what the store was told, not from what anybody believes.

mod frames;
mod ranges;
mod records;

use crate::host::{HostId, Life};
use crate::stats::Count;
use crate::world::{At, Inner};
use frames::Frames;
use ranges::Change;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use tranche_coordinator::store::keys::BatchKey;
use tranche_coordinator::store::{Revision, WatchEvent};
use tranche_proto::v1;
use tranche_proto::v1::batch::State;

/// Who changed the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Writer {
    /// A coordinator in one of its lives.
    Coordinator(HostId, Life),
    /// The store itself: a session ended.
    Store,
}

impl fmt::Display for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Coordinator(host, life) => write!(f, "host {host} life {life}"),
            Self::Store => f.write_str("store"),
        }
    }
}

/// A token, to compare.
pub(crate) type TokenKey = (u64, u64);

/// The token of a record.
pub(crate) fn token_key(token: Option<&v1::Token>) -> TokenKey {
    token.map_or((0, 0), |token| (token.epoch, token.counter))
}

/// One batch's records.
#[derive(Default)]
pub(crate) struct Mirror {
    /// What was asked for.
    pub spec: Option<v1::SpecRecord>,
    /// Where it stands.
    pub state: Option<v1::StateRecord>,
    /// The decision.
    pub decision: Option<v1::DecisionRecord>,
    /// The cut-off.
    pub cutoff: Option<v1::CutoffRecord>,
    /// The lock, and when it was taken.
    pub lock: Option<(v1::LockRecord, Revision)>,
    /// The epochs there were.
    pub epochs: BTreeSet<Revision>,
    /// The ranges; those that were folded stay here.
    pub ranges: BTreeMap<u64, v1::RangeRecord>,
    /// The segments: first to last.
    pub segments: BTreeMap<u64, u64>,
    /// Tokens that were ever out for staging, with the first and the last task of their range.
    pub leased: BTreeMap<TokenKey, (u64, u64)>,
    /// Tokens whose reports count.
    pub counted: BTreeSet<TokenKey>,
    /// Its records were deleted; what is here is what they were.
    pub deleted: bool,
    /// It ended at this time.
    pub ended: Option<At>,
}

impl Mirror {
    /// Where it stands.
    pub(crate) fn at(&self) -> State {
        self.state.as_ref().map_or(State::Unspecified, v1::StateRecord::state)
    }

    /// The tasks that are staged, each with the attempt that counts.
    pub(crate) fn winners(&self) -> BTreeMap<u64, TokenKey> {
        self.ranges.values().flat_map(ranges::won).collect()
    }
}

/// Everything that is checked.
#[derive(Default)]
pub(crate) struct Checker {
    frames: Frames,
    /// The batches, by name.
    pub batches: BTreeMap<String, Mirror>,
    /// Which batch each request made.
    requests: BTreeMap<String, String>,
    /// Whose each slot is.
    slots: BTreeMap<String, String>,
    /// The first violation, with its time.
    pub violation: Option<(At, String)>,
}

impl Checker {
    /// The tasks of a batch that failed.
    pub(crate) fn failed(&self, batch: &str) -> Vec<u64> {
        let ranges = self.batches.get(batch).into_iter().flat_map(|mirror| mirror.ranges.values());
        ranges.flat_map(ranges::failed).collect()
    }

    /// An invariant doesn't hold. The first counts: the others follow from it.
    pub(crate) fn violated(&mut self, at: At, text: String) {
        self.violation.get_or_insert((at, text));
    }
}

/// Whether a record changed, and what it was before.
struct Was<T> {
    changed: bool,
    before: Option<T>,
}

impl<T> Default for Was<T> {
    fn default() -> Self {
        Self { changed: false, before: None }
    }
}

impl<T> Was<T> {
    fn changed(before: Option<T>) -> Self {
        Self { changed: true, before }
    }
}

/// What one revision changed of one batch.
#[derive(Default)]
struct Touched {
    created: bool,
    owners: bool,
    state: Was<v1::StateRecord>,
    decision: Was<v1::DecisionRecord>,
    cutoff: Was<v1::CutoffRecord>,
    lock: Was<(v1::LockRecord, Revision)>,
    ranges: Change,
}

impl Inner {
    /// A revision was made.
    pub(crate) fn observe(&mut self, by: &Writer, revision: Revision, events: &[WatchEvent]) {
        let mut touched: BTreeMap<String, Touched> = BTreeMap::new();
        for event in events {
            let (key, value) = match event {
                WatchEvent::Put(entry) => (entry.key.as_str(), Some(&entry.value)),
                WatchEvent::Deleted(key, _) => (key.as_str(), None),
                WatchEvent::Missed(_) => continue,
            };
            if let Err(error) = self.mirror(revision, key, value, &mut touched) {
                self.violated(format!("{key} can't be read: {error}"));
            }
        }
        for (batch, touched) in touched {
            self.check_batch(by, revision, &batch, touched);
        }
    }

    fn check_batch(&mut self, by: &Writer, revision: Revision, batch: &str, touched: Touched) {
        let mut wrong: Vec<String> = Vec::new();
        let Some(mirror) = self.check.batches.get_mut(batch) else { return };
        if touched.owners && !touched.created {
            let holder = if touched.lock.changed { &touched.lock.before } else { &mirror.lock };
            let holder = holder.as_ref();
            match (by, holder.and_then(|(lock, _)| place_of(&lock.coordinator))) {
                (Writer::Coordinator(host, life), Some(holder)) if holder == (*host, *life) => {}
                (by, holder) => wrong.push(format!("I6 written by {by} while the lock is of {holder:?}")),
            }
        }
        if touched.state.changed {
            wrong.extend(records::state_moved(touched.state.before.as_ref(), mirror));
        }
        if touched.decision.changed {
            wrong.extend(records::decided(touched.decision.before.as_ref(), mirror, touched.cutoff.changed));
        }
        if let Some(before) = &touched.cutoff.before {
            wrong.extend(records::cutoff_moved(before, mirror));
        }
        // What a write brings that decides as well was there before the decision.
        let decided_before = if touched.decision.changed {
            touched.decision.before.is_some()
        } else {
            mirror.decision.is_some()
        };
        let lock = if touched.lock.changed { &touched.lock.before } else { &mirror.lock };
        let epoch = lock.as_ref().map(|(_, epoch)| *epoch);
        let (texts, counts) = touched.ranges.check(mirror, decided_before, epoch);
        wrong.extend(texts);
        if touched.owners {
            wrong.extend(records::sums(mirror));
        }
        let was = touched.state.before.as_ref().map(v1::StateRecord::state);
        let now = self.now;
        let state = mirror.at();
        let late_again =
            !mirror.late_sweep() && touched.state.before.as_ref().is_some_and(|before| before.late_sweep);
        let decided = touched.decision.changed && touched.decision.before.is_none();
        let ends = matches!(state, State::Committed | State::RolledBack) && was != Some(state);
        if ends {
            mirror.ended = Some(now);
        }
        let outcome = mirror.decision.as_ref().map(v1::DecisionRecord::outcome);
        let rolled_back = ends && state == State::RolledBack && !mirror.late_sweep();
        for (count, times) in counts {
            self.stats.add(count, times);
        }
        if touched.created {
            self.count(Count::Batch);
        }
        if late_again {
            self.count(Count::LateSweep);
        }
        if decided {
            match outcome {
                Some(v1::decision::Outcome::Commit) => self.count(Count::Commit),
                _ => self.count(Count::Rollback),
            }
        }
        if rolled_back {
            let left = self.library.staged(batch);
            if !left.is_empty() {
                wrong.push(format!("I4 ROLLED_BACK with {left:?} still staged"));
            }
        }
        for token in &touched.ranges.taken_away() {
            wrong.extend(self.lost_by_living(*token));
        }
        for text in wrong {
            self.violated(format!("{text}; {batch} at revision {revision}"));
        }
    }
}

impl Mirror {
    fn late_sweep(&self) -> bool {
        self.state.as_ref().is_some_and(|state| state.late_sweep)
    }
}

/// Which host and life made an id.
pub(crate) fn place_of(id: &str) -> Option<(HostId, Life)> {
    let mut parts = id.split('-').skip(1);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// The name of the batch that a key is of.
fn name_of(tail: &str) -> String {
    let mut parts = tail.splitn(3, '/');
    let (namespace, id) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    BatchKey::new(namespace, id).to_string()
}
