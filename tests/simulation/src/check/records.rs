//! The mirror of the records, and the rules of those that a batch has once.

use super::{Mirror, Touched, Was, name_of, ranges};
use crate::stats::Count;
use crate::world::Inner;
use bytes::Bytes;
use prost::Message as _;
use std::collections::BTreeMap;
use tranche_coordinator::store::Revision;
use tranche_proto::v1;
use tranche_proto::v1::batch::State;

fn decoded<T: prost::Message + Default>(value: Option<&Bytes>) -> Result<Option<T>, String> {
    value.map(|value| T::decode(value.as_ref())).transpose().map_err(|error| error.to_string())
}

impl Inner {
    /// Takes one change over into the mirror, and keeps what was there before.
    pub(super) fn mirror(
        &mut self,
        revision: Revision,
        key: &str,
        value: Option<&Bytes>,
        touched: &mut BTreeMap<String, Touched>,
    ) -> Result<(), String> {
        let Some((kind, tail)) = key.split_once('/') else { return Ok(()) };
        let (now, printed) = (self.now, self.trace.printed());
        let batch = name_of(tail);
        let deleted = value.is_none();
        let mut normal: Vec<u8> = value.map(|value| value.to_vec()).unwrap_or_default();
        if matches!(kind, "coordinators" | "requests" | "deletions") {
            self.trace.hash(now, key, &normal);
            if kind == "requests" && deleted {
                self.check.requests.remove(key);
            }
            if kind == "requests"
                && let Some(record) = decoded::<v1::RequestRecord>(value)?
                && let Some(other) = self.check.requests.insert(key.to_owned(), record.batch.clone())
                && other != record.batch
            {
                self.violated(format!("I8 {key} made {other}, and then {}", record.batch));
            }
            return Ok(());
        }
        if kind == "slots" {
            self.trace.hash(now, key, &normal);
            let record = decoded::<v1::SlotRecord>(value)?;
            self.slot_changed(key, record);
            return Ok(());
        }
        let mirror = self.check.batches.entry(batch.clone()).or_default();
        if deleted && kind != "locks" && mirror.state.as_ref().is_some_and(|state| state.swept) {
            // It ended, and somebody deletes it, or its owner folds it: the mirror keeps what it was.
            mirror.deleted |= kind == "states";
            self.trace.hash(now, key, &normal);
            self.say(|| format!("r{revision} delete {key}"));
            return Ok(());
        }
        let touched = touched.entry(batch).or_default();
        let mut text = String::new();
        // Only where it is read: this is called for every record that is ever written.
        let mut said = |record: &dyn std::fmt::Debug| {
            if printed {
                text = format!("{record:?}");
            }
        };
        match kind {
            "specs" => {
                mirror.spec = decoded(value)?;
                touched.created = !deleted;
            }
            "states" => {
                let record = decoded::<v1::StateRecord>(value)?;
                said(&record);
                touched.state = Was::changed(std::mem::replace(&mut mirror.state, record));
                touched.owners = true;
            }
            "decisions" => {
                let mut record = decoded::<v1::DecisionRecord>(value)?;
                said(&record);
                if let Some(record) = &mut record {
                    record.nonce.clear();
                    normal = record.encode_to_vec();
                }
                touched.decision = Was::changed(std::mem::replace(&mut mirror.decision, record));
            }
            "cutoffs" => {
                let record = decoded::<v1::CutoffRecord>(value)?;
                said(&record);
                touched.cutoff = Was::changed(mirror.cutoff);
                // The record goes at the end; the mirror keeps what it was.
                if record.is_some() {
                    mirror.cutoff = record;
                }
                touched.owners = true;
            }
            "locks" => {
                let mut record = decoded::<v1::LockRecord>(value)?;
                if let Some(record) = &mut record {
                    record.nonce.clear();
                    normal = record.encode_to_vec();
                }
                said(&record);
                let before = mirror.lock.clone();
                mirror.lock = record.map(|record| (record, revision));
                if !deleted && mirror.epochs.insert(revision) && mirror.epochs.len() > 1 {
                    self.stats.add(Count::TakeOver, 1);
                }
                touched.lock = Was::changed(before);
            }
            "segments" => {
                if let Some(mut record) = decoded::<v1::SegmentRecord>(value)? {
                    mirror.segments.insert(record.first.cast_unsigned(), record.last.cast_unsigned());
                    said(&record);
                    // Its name is made of random digits.
                    record.object.clear();
                    normal = record.encode_to_vec();
                    self.stats.add(Count::Task, (record.last - record.first + 1).cast_unsigned());
                }
                touched.owners = true;
            }
            "ranges" => {
                let record = decoded::<v1::RangeRecord>(value)?;
                touched.owners = true;
                match record {
                    Some(record) => {
                        if printed {
                            text = ranges::text(&record);
                        }
                        let mut plain = record.clone();
                        let leases = [&mut plain.lease, &mut plain.backup].into_iter().flatten();
                        for lease in leases.chain(&mut plain.stopping) {
                            lease.incarnation.clear();
                        }
                        // Which process of a worker was lost is said in it.
                        for failure in &mut plain.inline_failures {
                            failure.message.clear();
                        }
                        normal = plain.encode_to_vec();
                        let before = mirror.ranges.insert(record.first.cast_unsigned(), record.clone());
                        touched.ranges.put(before, record);
                    }
                    // Folded at the end: the mirror keeps it.
                    None => touched.ranges.fold(tail.rsplit('/').next().and_then(|n| n.parse().ok())),
                }
            }
            other => return Err(format!("a key of an unknown kind, {other}")),
        }
        self.trace.hash(now, key, &normal);
        self.say(|| format!("r{revision} {}{key} {text}", if deleted { "delete " } else { "" }));
        Ok(())
    }
}

impl Inner {
    /// I8: a slot is of one batch, until that is swept.
    fn slot_changed(&mut self, key: &str, record: Option<v1::SlotRecord>) {
        let (before, slots) = (self.check.slots.remove(key), &mut self.check.slots);
        let wrong = match (before, record) {
            (before, Some(record)) => {
                slots.insert(key.to_owned(), record.batch.clone());
                before.filter(|before| *before != record.batch).map(|before| format!("was that of {before}"))
            }
            (Some(before), None) => {
                let state = self.check.batches.get(&before).and_then(|mirror| mirror.state.as_ref());
                let needed = state.is_some_and(|state| !state.swept);
                needed.then(|| format!("is freed, and {before} isn't swept"))
            }
            (None, None) => None,
        };
        if let Some(wrong) = wrong {
            self.violated(format!("I8 {key} {wrong}"));
        }
    }
}

/// I3: a state leaves only along the table, and as it was decided; I7: nothing that was acknowledged goes.
pub(super) fn state_moved(before: Option<&v1::StateRecord>, mirror: &Mirror) -> Vec<String> {
    let Some(after) = &mirror.state else { return vec!["I7 the state record is gone".to_owned()] };
    let mut wrong = Vec::new();
    let Some(before) = before else { return wrong };
    let allowed = match before.state() {
        State::Importing => {
            matches!(after.state(), State::Importing | State::Held | State::Committing | State::RollingBack)
        }
        State::Held => {
            matches!(after.state(), State::Held | State::Importing | State::Committing | State::RollingBack)
        }
        State::Committing => matches!(after.state(), State::Committing | State::Committed),
        State::RollingBack => matches!(after.state(), State::RollingBack | State::RolledBack),
        final_state @ (State::Committed | State::RolledBack) => after.state() == final_state,
        State::Unspecified => false,
    };
    if !allowed {
        wrong.push(format!("I3 from {:?} to {:?}", before.state(), after.state()));
    }
    let outcome = mirror.decision.as_ref().map(v1::DecisionRecord::outcome);
    let fits = match after.state() {
        State::Importing | State::Held | State::Unspecified => true,
        State::Committing | State::Committed => outcome == Some(v1::decision::Outcome::Commit),
        State::RollingBack | State::RolledBack => outcome == Some(v1::decision::Outcome::Rollback),
    };
    if !fits {
        wrong.push(format!("I3 {:?} with the decision {outcome:?}", after.state()));
    }
    if after.total < before.total || before.sealed && (!after.sealed || after.total != before.total) {
        wrong.push(format!(
            "I7 total {} (sealed {}) became {} (sealed {})",
            before.total, before.sealed, after.total, after.sealed
        ));
    }
    if before.swept && !after.swept {
        wrong.push("I3 swept, and then not".to_owned());
    }
    wrong
}

/// I3: a decision is made once; its cut-off is the one of that moment.
pub(super) fn decided(before: Option<&v1::DecisionRecord>, mirror: &Mirror, cutoff_too: bool) -> Vec<String> {
    let Some(after) = &mirror.decision else { return vec!["I3 the decision is gone".to_owned()] };
    match before {
        Some(before) if before.outcome != after.outcome || before.cutoff != after.cutoff => {
            vec![format!("I3 the decision {:?} became {:?}", before.outcome(), after.outcome())]
        }
        Some(_) => Vec::new(),
        None => {
            let cutoff = mirror.cutoff.map_or(0, |cutoff| cutoff.cutoff);
            let mut wrong = Vec::new();
            if cutoff != after.cutoff {
                let with = if cutoff_too { ", which moved with it" } else { "" };
                wrong.push(format!("I3 decided at the cut-off {} while it is {cutoff}{with}", after.cutoff));
            }
            wrong
        }
    }
}

/// I2: the cut-off never goes back, and not on once the batch is decided.
pub(super) fn cutoff_moved(before: &v1::CutoffRecord, mirror: &Mirror) -> Vec<String> {
    let Some(after) = &mirror.cutoff else { return Vec::new() };
    let mut wrong = Vec::new();
    if after.cutoff < before.cutoff || after.next_token < before.next_token {
        wrong.push(format!("I2 the cut-off {before:?} became {after:?}"));
    }
    if let Some(decision) = &mirror.decision
        && after.cutoff != decision.cutoff
    {
        wrong.push(format!("I3 the cut-off is {} after it was frozen at {}", after.cutoff, decision.cutoff));
    }
    wrong
}

/// I5 and I1: the counters are the sums over the ranges, the ranges are all that was ever leased, and all is
/// accounted for when the batch goes on.
pub(super) fn sums(mirror: &Mirror) -> Vec<String> {
    use v1::range_record::Phase;
    let Some(state) = &mirror.state else { return Vec::new() };
    let mut wrong = Vec::new();
    let (mut staged, mut failed, mut committed, mut rolled_back) = (0, 0, 0, 0);
    let mut next = 1;
    for range in mirror.ranges.values() {
        if range.first != next {
            wrong.push(format!("I1 range [{}, {}] begins after {}", range.first, range.last, next - 1));
        }
        next = range.last + 1;
        staged += range.staged;
        failed += range.failed;
        match range.phase() {
            Phase::Committed => committed += range.staged,
            Phase::RolledBack => rolled_back += range.last - range.first + 1,
            Phase::Unspecified | Phase::Leased | Phase::Staged => {}
        }
    }
    let cutoff = mirror.cutoff.map_or(0, |cutoff| cutoff.cutoff);
    if next != cutoff + 1 {
        wrong.push(format!("I1 the ranges end at {}, the cut-off is {cutoff}", next - 1));
    }
    let (counted, sum) = (
        (state.staged, state.failed, state.committed, state.rolled_back),
        (staged, failed, committed, rolled_back),
    );
    if counted != sum {
        wrong.push(format!(
            "I5 counted (staged, failed, committed, rolled back) {counted:?}, the ranges have {sum:?}"
        ));
    }
    let mut end = 0;
    for (first, last) in &mirror.segments {
        if *first != end + 1 {
            wrong.push(format!("I8 segment [{first}, {last}] begins after {end}"));
        }
        end = *last;
    }
    if end.cast_signed() != state.total {
        wrong.push(format!("I8 total is {}, the segments have {end}", state.total));
    }
    let all = state.sealed && state.staged + state.failed == state.total && cutoff == state.total;
    if matches!(state.state(), State::Held | State::Committing | State::Committed) && !all {
        wrong.push(format!(
            "I1 {:?} with {} staged and {} failed of {} (sealed {}), cut-off {cutoff}",
            state.state(),
            state.staged,
            state.failed,
            state.total,
            state.sealed
        ));
    }
    if state.state() == State::Committed && (state.committed != state.staged || !state.published) {
        wrong.push(format!("I4 COMMITTED with {} of {} committed", state.committed, state.staged));
    }
    if state.state() == State::RolledBack && state.rolled_back != cutoff {
        wrong.push(format!("I4 ROLLED_BACK with {} of {cutoff} rolled back", state.rolled_back));
    }
    wrong
}
