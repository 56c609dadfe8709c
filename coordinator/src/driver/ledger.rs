//! What the store holds of one batch: reads it whole, turns a write into a transaction, and remembers the
//! revisions that the next one compares.

mod made;

use super::records;
use crate::error::Error;
use crate::store::keys::{self, BatchKey};
use crate::store::{Entry, RangeOptions, Revision, Store, Txn};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tranche_engine::{Cutoff, Epoch, RangeRecord, Records, Segment, Write};
use tranche_guards::Guard;
use tranche_proto::stored::{Record, Stored};
use tranche_proto::v1;

/// Entries of one read while a batch is loaded: a few hundred KiB of range records.
const LOAD_PAGE: usize = 1000;

/// A record's revision, and its fields that this version doesn't know.
#[derive(Clone, Debug, Default)]
struct Kept {
    revision: Revision,
    unknown: Vec<u8>,
}

/// Ranges by their first number, and what is kept of each.
type Ranges = (BTreeMap<u64, RangeRecord>, HashMap<u64, Kept>);

/// The stored side of one owned batch.
#[derive(Debug)]
pub struct Ledger {
    key: BatchKey,
    epoch: Epoch,
    state: Kept,
    cutoff: Kept,
    ranges: HashMap<u64, Kept>,
    /// The state record's report, which the engine doesn't know of.
    pub report_uri: String,
    /// The decision as stored.
    pub decision: Option<v1::DecisionRecord>,
}

/// A batch as it was read.
pub struct Loaded {
    /// What was asked for.
    pub spec: Arc<v1::SpecRecord>,
    /// The records.
    pub records: Records,
    /// Their revisions.
    pub ledger: Ledger,
    /// Who holds the lock; its revision is the owner's epoch.
    pub lock_revision: Revision,
}

/// Decodes an entry.
pub fn decode<T: prost::Message + Default + Record>(entry: &Entry) -> Result<Stored<T>, Error> {
    Stored::decode(&entry.value)
        .map_err(|error| Error::Damaged { what: entry.key.clone(), message: error.to_string() })
}

fn damaged(key: &str) -> impl Fn(String) -> Error + '_ {
    move |message| Error::Damaged { what: key.to_owned(), message }
}

/// Reads everything of a batch. `None`: there is no such batch.
///
/// First the state, which every write of an owner changes: should a transaction that was lost sight of be carried
/// out while the rest is read, then the next one is refused for the state's revision, and all is read again. The
/// rest is read side by side: a batch of many ranges is without an owner for as long as this takes.
pub async fn load(store: &dyn Store, key: &BatchKey) -> Result<Option<Loaded>, Error> {
    let state_key = keys::state(key);
    let Some(state) = store.get(&state_key).await? else { return Ok(None) };
    let (spec_key, lock_key) = (keys::spec(key), keys::lock(key));
    let (decision_key, cutoff_key) = (keys::decision(key), keys::cutoff(key));
    let one = async |name: &str| Ok::<_, Error>(store.get(name).await?);
    let (spec, lock, decision, cutoff, segments, (ranges, kept)) = tokio::try_join!(
        one(&spec_key),
        one(&lock_key),
        one(&decision_key),
        one(&cutoff_key),
        load_segments(store, key),
        load_ranges(store, key),
    )?;
    let Some(spec) = spec else { return Ok(None) };
    let lock_revision = lock.map_or(0, |lock| lock.create_revision);
    let (stored, unknown) = decode::<v1::StateRecord>(&state)?.into_parts();
    let state_record = records::state_from(&stored).map_err(damaged(&state_key))?;
    let mut records = Records { state: state_record, segments, ranges, ..Records::default() };
    let mut ledger = Ledger {
        key: key.clone(),
        epoch: Epoch(lock_revision),
        state: Kept { revision: state.mod_revision, unknown },
        cutoff: Kept::default(),
        ranges: kept,
        report_uri: stored.report_uri,
        decision: None,
    };
    if let Some(entry) = decision {
        let record = decode::<v1::DecisionRecord>(&entry)?.value;
        records.decision = Some(records::decision_from(&record).map_err(damaged(&entry.key))?);
        ledger.decision = Some(record);
    }
    match cutoff {
        Some(entry) => {
            let (record, unknown) = decode::<v1::CutoffRecord>(&entry)?.into_parts();
            records.cutoff = Cutoff { cutoff: record.cutoff.cast_unsigned(), next_token: record.next_token };
            ledger.cutoff = Kept { revision: entry.mod_revision, unknown };
        }
        None => records.cutoff.cutoff = records.state.cutoff,
    }
    let spec = Arc::new(decode::<v1::SpecRecord>(&spec)?.value);
    Ok(Some(Loaded { spec, records, ledger, lock_revision }))
}

async fn load_segments(store: &dyn Store, key: &BatchKey) -> Result<BTreeMap<u64, Segment>, Error> {
    let mut segments = BTreeMap::new();
    each(store, &keys::segments(key), |entry| {
        let record = decode::<v1::SegmentRecord>(entry)?.value;
        let segment = records::segment_from(&record).map_err(damaged(&entry.key))?;
        segments.insert(segment.run.first, segment);
        Ok(())
    })
    .await?;
    Ok(segments)
}

async fn load_ranges(store: &dyn Store, key: &BatchKey) -> Result<Ranges, Error> {
    let (mut ranges, mut kept) = (BTreeMap::new(), HashMap::new());
    each(store, &keys::ranges(key), |entry| {
        let (record, unknown) = decode::<v1::RangeRecord>(entry)?.into_parts();
        let range = records::range_from(&record).map_err(damaged(&entry.key))?;
        kept.insert(range.run.first, Kept { revision: entry.mod_revision, unknown });
        ranges.insert(range.run.first, range);
        Ok(())
    })
    .await?;
    Ok((ranges, kept))
}

/// Reads all entries with a prefix, page by page.
pub async fn each(
    store: &dyn Store,
    prefix: &str,
    mut visit: impl FnMut(&Entry) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut after = None;
    loop {
        let options = RangeOptions { limit: LOAD_PAGE, after, ..RangeOptions::default() };
        let page = store.range(prefix, options).await?;
        for entry in &page.entries {
            visit(entry)?;
        }
        match page.entries.last() {
            Some(last) if page.more => after = Some(last.key.clone()),
            _ => return Ok(()),
        }
    }
}

/// Nobody changed the record since it was seen at this revision.
fn unchanged(txn: Txn, key: String, revision: Revision) -> Txn {
    if Guard::RecordCompare.on() { txn.modified(key, revision) } else { txn }
}

impl Ledger {
    /// The transaction of a write: every record that it changes is compared with the revision last seen,
    /// the lock with the epoch; and where the write says so, nobody may have decided.
    pub fn transaction(&self, write: &Write, decision: Option<&v1::DecisionRecord>) -> Txn {
        let key = &self.key;
        let state = records::state_record(&write.state, &self.report_uri);
        let mut txn = Txn::new();
        if Guard::EpochCompare.on() {
            txn = txn.created(keys::lock(key), self.epoch.0);
        }
        txn = unchanged(txn, keys::state(key), self.state.revision)
            .put(keys::state(key), Stored::with_unknown(state, self.state.unknown.clone()).encode());
        let decides = decision.is_some() && Guard::DecisionOnce.on();
        if decides || (write.undecided && decision.is_none() && Guard::UndecidedCompare.on()) {
            txn = txn.absent(keys::decision(key));
        }
        if let Some(decision) = decision {
            txn = txn.put(keys::decision(key), Stored::new(decision.clone()).encode());
        }
        if let Some(cutoff) = write.cutoff {
            let record =
                v1::CutoffRecord { cutoff: cutoff.cutoff.cast_signed(), next_token: cutoff.next_token };
            txn = unchanged(txn, keys::cutoff(key), self.cutoff.revision)
                .put(keys::cutoff(key), Stored::with_unknown(record, self.cutoff.unknown.clone()).encode());
        }
        for segment in &write.segments {
            let name = keys::segment(key, segment.run.first);
            let record = records::segment_record(segment);
            txn = txn.absent(name.clone()).put(name, Stored::new(record).encode());
        }
        for range in &write.ranges {
            let name = keys::range(key, range.run.first);
            let kept = self.ranges.get(&range.run.first).cloned().unwrap_or_default();
            let record = records::range_record(range);
            txn = unchanged(txn, name.clone(), kept.revision)
                .put(name, Stored::with_unknown(record, kept.unknown).encode());
        }
        for first in &write.folded {
            let name = keys::range(key, *first);
            let kept = self.ranges.get(first).cloned().unwrap_or_default();
            txn = unchanged(txn, name.clone(), kept.revision).delete(name);
        }
        if write.release {
            txn = txn.delete(keys::cutoff(key)).delete(keys::lock(key));
        }
        txn
    }

    /// The write was carried out at this revision.
    pub fn applied(&mut self, write: &Write, decision: Option<v1::DecisionRecord>, revision: Revision) {
        self.state.revision = revision;
        if write.cutoff.is_some() {
            self.cutoff.revision = revision;
        }
        if decision.is_some() {
            self.decision = decision;
        }
        for range in &write.ranges {
            self.ranges.entry(range.run.first).or_default().revision = revision;
        }
        for first in &write.folded {
            self.ranges.remove(first);
        }
    }
}

#[cfg(test)]
mod tests;
