//! Who else is there, and who owns what.

use super::Shared;
use crate::driver::ledger;
use crate::error::Error;
use crate::store::keys::{self, BatchKey};
use tranche_proto::v1;

/// A coordinator, as others find it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    /// Its id.
    pub id: String,
    /// The URL at which it is reached.
    pub endpoint: String,
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
        let Some(entry) = self.store.get(&keys::lock(batch)).await? else { return Ok(None) };
        let record = ledger::decode::<v1::LockRecord>(&entry)?.value;
        Ok(Some(Member { id: record.coordinator, endpoint: record.endpoint }))
    }

    /// Another coordinator that owns fewer batches than this one and should get the next; `None`: this one.
    pub fn less_loaded(&self) -> Option<Member> {
        None
    }
}
