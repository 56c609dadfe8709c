//! Who else is there, and who owns what, as the store's watches tell it.

use super::Shared;
use crate::driver::ledger;
use crate::error::Error;
use crate::store::keys::{self, BatchKey};
use crate::store::{Entry, Revision};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use tokio::sync::watch;
use tranche_proto::v1;

/// A coordinator, as others find it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    /// Its id.
    pub id: String,
    /// The URL at which it is reached.
    pub endpoint: String,
}

impl Member {
    /// From its record. `None`: nobody can reach one whose record can't be read.
    pub(super) fn decode(entry: &Entry) -> Option<Self> {
        let id = entry.key.strip_prefix(keys::COORDINATORS)?;
        match ledger::decode::<v1::CoordinatorRecord>(entry) {
            Ok(record) => Some(Self { id: id.to_owned(), endpoint: record.value.endpoint }),
            Err(error) => {
                tracing::error!(%error, "coordinator passed over");
                None
            }
        }
    }

    /// The owner that a lock names.
    pub(super) fn owner(entry: &Entry) -> Result<Self, Error> {
        let record = ledger::decode::<v1::LockRecord>(entry)?.value;
        Ok(Self { id: record.coordinator, endpoint: record.endpoint })
    }
}

/// The coordinators that are there, and the owners of batches. Behind the store by the time that a watch
/// takes; one task writes it, the one that owns batches.
#[derive(Debug, Default)]
pub struct Members {
    list: watch::Sender<Arc<Vec<Member>>>,
    owners: RwLock<Owners>,
    /// Those that went last, and when: at most [`GONE`].
    gone: Mutex<VecDeque<(String, Revision)>>,
}

/// How many coordinators that went are remembered: until what they owned is taken, which is seconds.
const GONE: usize = 64;

#[derive(Debug, Default)]
struct Owners {
    by_batch: BTreeMap<BatchKey, (Member, Revision)>,
    /// How many batches each coordinator owns, by id.
    counts: BTreeMap<String, usize>,
}

impl Owners {
    fn remove(&mut self, batch: &BatchKey) -> Option<Member> {
        let (owner, _) = self.by_batch.remove(batch)?;
        if let Some(count) = self.counts.get_mut(&owner.id) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&owner.id);
            }
        }
        Some(owner)
    }

    fn insert(&mut self, batch: BatchKey, owner: Member, epoch: Revision) {
        self.remove(&batch);
        *self.counts.entry(owner.id.clone()).or_default() += 1;
        self.by_batch.insert(batch, (owner, epoch));
    }
}

impl Members {
    /// The coordinators that are there, by id, and changes of that.
    pub fn list(&self) -> watch::Receiver<Arc<Vec<Member>>> {
        self.list.subscribe()
    }

    /// Changes the list; says whether it is another one then.
    pub(super) fn change(&self, change: impl FnOnce(&mut BTreeMap<String, Member>)) -> bool {
        self.list.send_if_modified(|list| {
            let mut members = list.iter().map(|member| (member.id.clone(), member.clone())).collect();
            change(&mut members);
            let new: Vec<Member> = members.into_values().collect();
            let changed = **list != new;
            if changed {
                *list = Arc::new(new);
            }
            changed
        })
    }

    fn owners(&self) -> std::sync::RwLockReadGuard<'_, Owners> {
        self.owners.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// A coordinator's record was deleted.
    pub(super) fn went(&self, id: &str, revision: Revision) {
        let mut gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        if gone.len() == GONE {
            gone.pop_front();
        }
        gone.push_back((id.to_owned(), revision));
    }

    /// Whether a coordinator had signed off before what happened at this revision. One that is lost goes together
    /// with its locks.
    pub(super) fn signed_off(&self, id: &str, before: Revision) -> bool {
        let gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        gone.iter().any(|(of, revision)| of == id && *revision < before)
    }

    /// Who holds a batch's lock, and its epoch.
    pub(super) fn owner(&self, batch: &BatchKey) -> Option<(Member, Revision)> {
        self.owners().by_batch.get(batch).cloned()
    }

    /// How many batches a coordinator owns.
    pub(super) fn owned_by(&self, id: &str) -> usize {
        self.owners().counts.get(id).copied().unwrap_or(0)
    }

    /// A lock was put. An event that is older than what is known changes nothing.
    pub(super) fn locked(&self, batch: BatchKey, owner: Member, epoch: Revision) {
        let mut owners = self.owners.write().unwrap_or_else(PoisonError::into_inner);
        if owners.by_batch.get(&batch).is_none_or(|(_, known)| *known < epoch) {
            owners.insert(batch, owner, epoch);
        }
    }

    /// A lock was deleted at this revision; gives who held it. `None`: that isn't known, or it was taken again
    /// since.
    pub(super) fn unlocked(&self, batch: &BatchKey, revision: Revision) -> Option<Member> {
        let mut owners = self.owners.write().unwrap_or_else(PoisonError::into_inner);
        owners
            .by_batch
            .get(batch)
            .is_some_and(|(_, epoch)| *epoch < revision)
            .then(|| owners.remove(batch))?
    }

    /// All locks, as they were listed.
    pub(super) fn relist(&self, locks: Vec<(BatchKey, Member, Revision)>) {
        let mut all = Owners::default();
        for (batch, owner, epoch) in locks {
            all.insert(batch, owner, epoch);
        }
        *self.owners.write().unwrap_or_else(PoisonError::into_inner) = all;
    }

    /// How many coordinators come before this one for a batch whose owner left. Each computes the same order
    /// of its own (rendezvous hashing, Thaler and Ravishankar, 1998), so that the batches of a lost owner
    /// spread evenly and few try for one lock. The last owner comes behind all: it just left.
    pub(super) fn rank(&self, batch: &BatchKey, me: &str, last: Option<&str>) -> usize {
        let mine = weight(batch, me);
        let before = |member: &&Member| {
            member.id != me && Some(member.id.as_str()) != last && weight(batch, &member.id) > mine
        };
        self.list.borrow().iter().filter(before).count()
    }
}

/// A stable hash: FNV-1a, and a mix of its bits (the finalizer of SplitMix64), without which ids that differ
/// in one place would be in the same order for most batches.
fn weight(batch: &BatchKey, coordinator: &str) -> u64 {
    let parts = [batch.namespace.as_bytes(), b"/", batch.id.as_bytes(), b"/", coordinator.as_bytes()];
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in parts.iter().copied().flatten() {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

impl Shared {
    /// Whether a batch still needs an owner, as the store has it: it is there, and not swept.
    pub(crate) async fn needs_owner(&self, batch: &BatchKey) -> Result<bool, Error> {
        let Some(state) = self.store.get(&keys::state(batch)).await? else { return Ok(false) };
        Ok(!ledger::decode::<v1::StateRecord>(&state)?.value.swept)
    }

    /// Who holds a batch's sequence lock; `None`: nobody does. May be behind the store by the time that a
    /// watch takes.
    pub async fn owner_of(&self, batch: &BatchKey) -> Result<Option<Member>, Error> {
        if let Some((owner, _)) = self.members.owner(batch) {
            return Ok(Some(owner));
        }
        // A batch that was just made, or whose owner just left: the watch may not have told of it.
        self.store.get(&keys::lock(batch)).await?.as_ref().map(Member::owner).transpose()
    }

    /// Another coordinator that owns fewer batches than this one and should get the next; `None`: this one.
    pub fn less_loaded(&self) -> Option<Member> {
        let mine = self.handles().len();
        let list = self.members.list.borrow().clone();
        let others = list.iter().filter(|member| member.id != self.id);
        let loads = others.map(|member| (self.members.owned_by(&member.id), member));
        let (least, member) = loads.min_by_key(|(load, _)| *load)?;
        (least < mine).then(|| member.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: &str) -> Member {
        Member { id: id.to_owned(), endpoint: format!("http://{id}") }
    }

    fn members(ids: &[&str]) -> Members {
        let members = Members::default();
        members.change(|list| list.extend(ids.iter().map(|id| ((*id).to_owned(), member(id)))));
        members
    }

    fn batch(number: usize) -> BatchKey {
        BatchKey::new("default", format!("0198-{number:08}"))
    }

    #[test]
    fn each_batch_has_one_order_and_firsts_spread_evenly() {
        let ids = ["0198-aaaa-1", "0198-aaaa-2", "0198-aaaa-3"];
        let members = members(&ids);
        let mut firsts = [0; 3];
        for number in 0..3000 {
            let mut ranks: Vec<_> = ids.iter().map(|id| members.rank(&batch(number), id, None)).collect();
            firsts[ranks.iter().position(|rank| *rank == 0).expect("one is first")] += 1;
            ranks.sort_unstable();
            assert_eq!(ranks, [0, 1, 2]);
        }
        assert!(firsts.iter().all(|first| (900..1100).contains(first)), "{firsts:?}");
    }

    #[test]
    fn the_owner_that_left_keeps_nobody_waiting() {
        let members = members(&["a", "b", "c"]);
        for number in 0..100 {
            let ranks = ["a", "b"].map(|id| members.rank(&batch(number), id, Some("c")));
            assert!(ranks == [0, 1] || ranks == [1, 0], "{ranks:?}");
        }
    }

    #[test]
    fn late_events_change_nothing() {
        let members = members(&["a", "b"]);
        members.locked(batch(1), member("a"), 10);
        members.locked(batch(1), member("b"), 5);
        assert_eq!(members.unlocked(&batch(1), 9), None);
        assert_eq!(members.owner(&batch(1)), Some((member("a"), 10)));
        assert_eq!((members.owned_by("a"), members.owned_by("b")), (1, 0));
        members.locked(batch(1), member("b"), 20);
        assert_eq!((members.owned_by("a"), members.owned_by("b")), (0, 1));
        assert_eq!(members.unlocked(&batch(1), 21), Some(member("b")));
        assert_eq!((members.owner(&batch(1)), members.owned_by("b")), (None, 0));
    }

    #[test]
    fn a_list_takes_the_place_of_what_was_known() {
        let members = members(&["a"]);
        members.locked(batch(1), member("a"), 10);
        members.relist(vec![(batch(2), member("a"), 12), (batch(3), member("a"), 13)]);
        assert_eq!((members.owner(&batch(1)), members.owned_by("a")), (None, 2));
    }
}
