//! A model of the store: applies each write as one, or refuses it.

use std::collections::BTreeMap;
use tranche_engine::{Decision, Records, Write};

/// Most operations of an etcd transaction.
const MAX_OPERATIONS: usize = 128;
/// Most bytes of an etcd request.
const MAX_BYTES: usize = 3 * 512 * 1024;

/// Why a write wasn't applied.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refused;

/// What the ranges that were folded away had counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) staged: u64,
    pub(crate) failed: u64,
    pub(crate) committed: u64,
    pub(crate) rolled_back: u64,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Store {
    pub(crate) records: Records,
    pub(crate) folded: Counts,
    pub(crate) released: bool,
    pub(crate) reports: u32,
    pub(crate) writes: u64,
}

impl Store {
    /// Somebody else decides; false: it was decided.
    pub(crate) fn decide(&mut self, decision: Decision) -> bool {
        if self.records.decision.is_some() || self.records.state.state.is_final() {
            return false;
        }
        self.records.decision = Some(decision);
        true
    }

    /// The records that this write makes of them, or `Refused`; `Err` text: it breaks a rule of the store.
    pub(crate) fn apply(&self, write: &Write) -> Result<Result<Store, Refused>, String> {
        let before = &self.records;
        if self.released {
            return Err("store: a write after the lock was released".into());
        }
        if write.undecided && before.decision.is_some() {
            return Ok(Err(Refused));
        }
        let mut after = self.clone();
        after.writes += 1;
        if let Some(decision) = &write.decision {
            if !write.undecided {
                return Err("store: a decision that doesn't compare that there is none".into());
            }
            after.records.decision = Some(decision.clone());
        }
        if let Some(cutoff) = write.cutoff {
            if !write.undecided {
                return Err("store: the cut-off moves after a decision".into());
            }
            if cutoff.cutoff < before.cutoff.cutoff || cutoff.next_token < before.cutoff.next_token {
                return Err(format!("I2: the cut-off goes back: {:?} to {cutoff:?}", before.cutoff));
            }
            after.records.cutoff = cutoff;
        }
        for segment in &write.segments {
            if after.records.segments.insert(segment.run.first, segment.clone()).is_some() {
                return Err(format!("I8: segment {} is overwritten", segment.run.first));
            }
        }
        for range in &write.ranges {
            after.records.ranges.insert(range.run.first, range.clone());
        }
        for first in &write.folded {
            let Some(range) = after.records.ranges.remove(first) else {
                return Err(format!("store: range {first} is folded, and isn't there"));
            };
            let counts = super::invariants::counts_of(&range);
            after.folded = super::invariants::plus(after.folded, counts);
        }
        after.records.state = write.state.clone();
        after.reports += u32::from(write.report);
        after.released |= write.release;
        within_bounds(write)?;
        Ok(Ok(after))
    }
}

fn within_bounds(write: &Write) -> Result<(), String> {
    let operations = 1
        + usize::from(write.cutoff.is_some())
        + usize::from(write.decision.is_some())
        + write.segments.len()
        + write.ranges.len()
        + write.folded.len()
        + 2 * usize::from(write.release);
    if operations > MAX_OPERATIONS {
        return Err(format!("bounds: a write of {operations} operations"));
    }
    let bytes = bytes(write);
    if bytes > MAX_BYTES {
        return Err(format!("bounds: a write of {bytes} bytes"));
    }
    Ok(())
}

/// About what the write takes encoded, counted apart from the engine's own estimate.
pub(crate) fn bytes(write: &Write) -> usize {
    let runs = |runs: &tranche_engine::Runs| runs.iter().len() * 6;
    let mut bytes = 256;
    for range in &write.ranges {
        bytes += 64 + runs(&range.failed_runs) + 12 * range.losers.len() + 48 * range.stopping.len();
        bytes += range.winners.iter().map(|w| 24 + w.receipt.len() + runs(&w.runs)).sum::<usize>();
        bytes += range.failure_objects.iter().map(String::len).sum::<usize>();
        bytes += range
            .inline_failures
            .iter()
            .map(|f| f.message.len() + f.code.len() + runs(&f.runs))
            .sum::<usize>();
        bytes += range.lease.iter().chain(&range.backup).map(|lease| 48 + runs(&lease.runs)).sum::<usize>();
    }
    bytes + write.segments.iter().map(|s| 48 + s.object.len()).sum::<usize>()
}

/// Every number of the manifest's segments, as `(first, last)` if they follow each other from 1.
pub(crate) fn manifest(segments: &BTreeMap<u64, tranche_engine::Segment>) -> Result<u64, String> {
    let mut next = 1;
    for (first, segment) in segments {
        if *first != next || segment.run.first != next {
            return Err(format!("I8: segment {first} doesn't follow {}", next - 1));
        }
        next = segment.run.last + 1;
    }
    Ok(next - 1)
}
