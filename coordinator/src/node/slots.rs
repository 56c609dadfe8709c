//! How many batches that haven't ended a namespace may have, of all coordinators together, and not one more.
//!
//! Each holds a slot, one of as many numbered keys as the namespace may have batches: the transaction that makes the batch
//! compares that nobody has the key and puts it, and the one that frees the batch's lock deletes it. So it takes no
//! transaction of its own, and no two batches try for one key while there are others. Which slots are free is guessed from
//! what was seen here; only who guesses wrong, or thinks that all are taken, asks the store.

use super::Shared;
use crate::driver::ledger;
use crate::error::Error;
use crate::store::keys::{self, BatchKey};
use crate::store::{Entry, Txn, commit};
use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tranche_proto::v1;

/// The most namespaces whose slots are remembered. What is forgotten is only guessed worse.
const MAX_NAMESPACES: usize = 4096;
/// Of the slots of batches that nobody seems to own, this many are looked at when none is free.
const LOOK_AT: usize = 16;

/// Which slots are taken, as far as was seen here.
#[derive(Debug)]
pub struct Slots {
    /// How many a namespace has; 0: batches hold none.
    most: u32,
    taken: Mutex<HashMap<String, BTreeSet<u32>>>,
}

impl Slots {
    pub(super) fn new(most: u32) -> Self {
        Self { most, taken: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, BTreeSet<u32>>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes one that seems to be free, for this batch.
    fn choose(&self, batch: &BatchKey) -> Option<u32> {
        let mut all = self.lock();
        let taken = all.get(&batch.namespace);
        let free = |slot: &u32| taken.is_none_or(|taken| !taken.contains(slot));
        if taken.is_some_and(|taken| taken.len() >= self.most as usize) {
            return None;
        }
        // Each begins elsewhere, so that two coordinators seldom try for the same.
        let begin = crc32c::crc32c(batch.id.as_bytes()) % self.most;
        let slot = (begin..self.most).chain(0..begin).find(free)?;
        if all.len() >= MAX_NAMESPACES && taken.is_none() {
            all.clear();
        }
        all.entry(batch.namespace.clone()).or_default().insert(slot);
        Some(slot)
    }

    /// A batch that is driven here has this one.
    pub(crate) fn taken(&self, namespace: &str, slot: u32) {
        self.lock().entry(namespace.to_owned()).or_default().insert(slot);
    }

    /// Nobody has it any more.
    pub(crate) fn freed(&self, namespace: &str, slot: u32) {
        let mut all = self.lock();
        if let Some(taken) = all.get_mut(namespace) {
            taken.remove(&slot);
            if taken.is_empty() {
                all.remove(namespace);
            }
        }
    }
}

/// Which slot, and whose.
fn read(entry: &Entry) -> Result<(u32, v1::SlotRecord), Error> {
    let number = entry.key.rsplit('/').next().and_then(|number| number.parse().ok());
    let number = number.ok_or_else(|| Error::Damaged {
        what: entry.key.clone(),
        message: "its name ends in no number".to_owned(),
    })?;
    Ok((number, ledger::decode::<v1::SlotRecord>(entry)?.value))
}

impl Shared {
    /// A slot for a batch that is to be made; `None`: it needs none.
    ///
    /// # Errors
    /// [`Error::Quota`]: the namespace has none free.
    pub(super) async fn slot_for(&self, batch: &BatchKey) -> Result<Option<u32>, Error> {
        let most = self.slots.most;
        if most == 0 {
            return Ok(None);
        }
        if let Some(slot) = self.slots.choose(batch) {
            return Ok(Some(slot));
        }
        // Those of other coordinators' batches may have been freed since.
        self.list_slots(&batch.namespace).await?;
        self.slots.choose(batch).map(Some).ok_or_else(|| Error::Quota {
            of: format!("namespaces/{}", batch.namespace),
            what: "batches that haven't ended",
            limit: most.into(),
            setting: "max_batches_per_namespace",
            passes: false,
        })
    }

    /// Learns which slots of a namespace are taken, and frees those whose batches need none.
    pub(super) async fn list_slots(&self, namespace: &str) -> Result<(), Error> {
        let (mut taken, mut lone) = (BTreeSet::new(), Vec::new());
        ledger::each(&*self.store, &keys::slots_of(namespace), |entry| {
            let (slot, record) = read(entry)?;
            taken.insert(slot);
            if let Some(batch) = BatchKey::parse(&record.batch).filter(|_| lone.len() < LOOK_AT)
                && self.members.owner(&batch).is_none()
            {
                lone.push((slot, batch, entry.mod_revision));
            }
            Ok(())
        })
        .await?;
        for (slot, batch, revision) in lone {
            // A coordinator of a version without slots has ended it.
            if !self.needs_owner(&batch).await? {
                let key = keys::slot(namespace, slot);
                commit::commit(&*self.store, &Txn::new().modified(key.clone(), revision).delete(key)).await?;
                taken.remove(&slot);
            }
        }
        let mut all = self.slots.lock();
        if taken.is_empty() {
            all.remove(namespace);
        } else {
            all.insert(namespace.to_owned(), taken);
        }
        Ok(())
    }

    /// The bytes of a namespace's batches that are driven elsewhere, or by nobody now, as the store has them.
    pub(super) async fn bytes_elsewhere(&self, namespace: &str) -> Result<u64, Error> {
        let mut bytes = 0;
        ledger::each(&*self.store, &keys::slots_of(namespace), |entry| {
            let (_, record) = read(entry)?;
            let here = BatchKey::parse(&record.batch).is_some_and(|batch| self.handle(&batch).is_some());
            bytes += if here { 0 } else { record.bytes.max(0).cast_unsigned() };
            Ok(())
        })
        .await?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_slot_is_chosen_once_until_it_is_freed() {
        let slots = Slots::new(3);
        let choose = |id: &str| slots.choose(&BatchKey::new("a", id));
        let chosen: BTreeSet<_> = ["x", "y", "z"].into_iter().map(|id| choose(id).expect("free")).collect();
        assert_eq!(chosen, BTreeSet::from([0, 1, 2]));
        assert_eq!(choose("w"), None);
        assert!(slots.choose(&BatchKey::new("b", "x")).is_some(), "another namespace has its own");
        slots.freed("a", 1);
        assert_eq!(choose("w"), Some(1));
        // Made under a higher limit.
        slots.taken("c", 7);
        assert!(slots.choose(&BatchKey::new("c", "x")).is_some());
        for slot in 0..3 {
            slots.freed("a", slot);
        }
        assert!(!slots.lock().contains_key("a"), "nothing is kept of those that have none");
    }

    #[test]
    fn the_memory_is_bounded() {
        let slots = Slots::new(1);
        for n in 0..=MAX_NAMESPACES {
            slots.choose(&BatchKey::new(format!("n{n}"), "x")).expect("free");
        }
        assert!(slots.lock().len() <= MAX_NAMESPACES);
    }
}
