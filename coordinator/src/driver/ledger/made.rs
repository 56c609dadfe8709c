//! A batch that was just made: nothing of it need be read.

use super::{Kept, Ledger, Loaded, damaged};
use crate::driver::records;
use crate::error::Error;
use crate::store::Revision;
use crate::store::keys::{self, BatchKey};
use std::collections::HashMap;
use std::sync::Arc;
use tranche_engine::{Epoch, Records};
use tranche_proto::v1;

impl Loaded {
    /// The batch that one transaction made at this revision, of these records and an empty cut-off's, with the
    /// lock. Nobody can have changed them but whoever holds the lock; whether somebody has decided since is to be
    /// looked up.
    ///
    /// # Errors
    /// [`Error::Damaged`]: the state is none of this version's.
    pub fn made(
        key: &BatchKey,
        spec: v1::SpecRecord,
        state: &v1::StateRecord,
        revision: Revision,
    ) -> Result<Self, Error> {
        let kept = || Kept { revision, unknown: Vec::new() };
        let state_record = records::state_from(state).map_err(damaged(&keys::state(key)))?;
        let ledger = Ledger {
            key: key.clone(),
            epoch: Epoch(revision),
            state: kept(),
            cutoff: kept(),
            ranges: HashMap::new(),
            report_uri: String::new(),
            decision: None,
        };
        let records = Records { state: state_record, ..Records::default() };
        Ok(Self { spec: Arc::new(spec), records, ledger, lock_revision: revision })
    }
}
