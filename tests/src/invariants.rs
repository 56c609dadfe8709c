//! The design's invariants, asserted at every revision of a batch's history.

use crate::history::{BatchHistory, Snapshot};
use std::collections::BTreeMap;
use tranche_proto::stored::decode_runs;
use tranche_proto::v1;
use tranche_proto::v1::batch::State;
use tranche_proto::v1::range_record::Phase;

/// Asserts I1, I2, I3 and I5, and that every lease's token carries its owner's epoch (a part of I6).
///
/// # Panics
/// When one doesn't hold: with its name and the revision.
pub fn check(history: &BatchHistory) {
    let mut before = Snapshot::default();
    for now in &history.snapshots {
        if now.state.is_none() {
            // Deleted.
            break;
        }
        i2_the_sequence_is_dealt_in_order(&before, now);
        i3_states_leave_along_the_table(&before, now);
        i5_counters_are_the_sums(now);
        i6_tokens_carry_the_epoch(&before, now);
        before = now.clone();
    }
    if let Some(decided) = history.decided()
        && outcome(decided) == Some(v1::decision::Outcome::Commit)
    {
        i1_every_number_counts_once(decided);
        i1_every_number_counts_once(&before);
    }
}

fn outcome(snapshot: &Snapshot) -> Option<v1::decision::Outcome> {
    snapshot.decision.as_ref().map(v1::DecisionRecord::outcome)
}

/// I1: every sequence number 1..N is staged or failed, none twice.
pub fn i1_every_number_counts_once(at: &Snapshot) {
    let state = at.state.as_ref().expect("a batch");
    let mut counted: BTreeMap<u64, u64> = BTreeMap::new();
    for range in at.ranges.values() {
        let runs =
            range.winners.iter().map(|winner| winner.runs.as_slice()).chain([range.failed_runs.as_slice()]);
        for (first, last) in runs.flat_map(decode_runs) {
            let inside = range.first.cast_unsigned() <= first && last <= range.last.cast_unsigned();
            assert!(inside, "I1 at {}: run {first}-{last} outside of {range:?}", at.revision);
            assert!(counted.insert(first, last).is_none(), "I1 at {}: {first} counts twice", at.revision);
        }
    }
    let mut end = 0;
    for (first, last) in counted {
        assert_eq!(first, end + 1, "I1 at {}: after {end} comes {first}", at.revision);
        end = last;
    }
    assert_eq!(end, state.total.cast_unsigned(), "I1 at {}: not all are counted", at.revision);
    assert_eq!(state.staged + state.failed, state.total, "I1 at {}: {state:?}", at.revision);
}

/// I2: the cut-off never goes back, and ranges that are recorded first follow it without gap or overlap.
fn i2_the_sequence_is_dealt_in_order(before: &Snapshot, now: &Snapshot) {
    // The fold deletes the cut-off's record; the state keeps the number.
    let cutoff =
        now.cutoff.as_ref().map_or_else(|| before.cutoff().max(kept(now)), |c| c.cutoff.cast_unsigned());
    assert!(cutoff >= before.cutoff(), "I2 at {}: from {} to {cutoff}", now.revision, before.cutoff());
    let mut next = before.cutoff() + 1;
    for range in now.ranges.values().filter(|range| range.first.cast_unsigned() > before.cutoff()) {
        assert_eq!(range.first.cast_unsigned(), next, "I2 at {}: a gap or an overlap", now.revision);
        next = range.last.cast_unsigned() + 1;
    }
    assert_eq!(next, cutoff + 1, "I2 at {}: the cut-off isn't the last range's end", now.revision);
    let mut end = 0;
    for range in now.ranges.values() {
        assert_eq!(
            range.first.cast_unsigned(),
            end + 1,
            "I2 at {}: ranges overlap or leave a gap",
            now.revision
        );
        end = range.last.cast_unsigned();
    }
}

fn kept(snapshot: &Snapshot) -> u64 {
    snapshot.state.as_ref().map_or(0, |state| state.cutoff.cast_unsigned())
}

/// I3: a state leaves along the table, and only as the decision says; that never changes.
fn i3_states_leave_along_the_table(before: &Snapshot, now: &Snapshot) {
    let table: &[State] = match before.state() {
        State::Unspecified => &[State::Importing],
        State::Importing => {
            &[State::Held, State::Committing, State::RollingBack, State::RolledBack, State::Committed]
        }
        State::Held => &[State::Importing, State::Committing, State::RollingBack],
        State::Committing => &[State::Committed],
        State::RollingBack => &[State::RolledBack],
        State::Committed | State::RolledBack => &[],
    };
    let (from, to) = (before.state(), now.state());
    assert!(from == to || table.contains(&to), "I3 at {}: {from:?} to {to:?}", now.revision);
    if before.decision.is_some() {
        assert_eq!(before.decision, now.decision, "I3 at {}: the decision changed", now.revision);
    }
    let needs = match to {
        State::Unspecified | State::Importing | State::Held => return,
        State::Committing | State::Committed => v1::decision::Outcome::Commit,
        State::RollingBack | State::RolledBack => v1::decision::Outcome::Rollback,
    };
    assert_eq!(outcome(now), Some(needs), "I3 at {}: {to:?} without its decision", now.revision);
}

/// I5: the counters of the state are the sums over the range records, at every revision.
fn i5_counters_are_the_sums(now: &Snapshot) {
    let state = now.state.as_ref().expect("a batch");
    let sum = |of: &dyn Fn(&v1::RangeRecord) -> i64| now.ranges.values().map(of).sum::<i64>();
    let in_phase = |phase: Phase, number: fn(&v1::RangeRecord) -> i64| {
        sum(&|range| if range.phase() == phase { number(range) } else { 0 })
    };
    let found = (state.staged, state.failed, state.committed, state.rolled_back);
    let expected = (
        sum(&|range| range.staged),
        sum(&|range| range.failed),
        in_phase(Phase::Committed, |range| range.staged),
        in_phase(Phase::RolledBack, |range| range.last - range.first + 1),
    );
    assert_eq!(found, expected, "I5 at {}: staged, failed, committed, rolled back", now.revision);
    for range in now.ranges.values() {
        let staged: u64 =
            range.winners.iter().flat_map(|w| decode_runs(&w.runs)).map(|(a, b)| b - a + 1).sum();
        let failed: u64 = decode_runs(&range.failed_runs).iter().map(|(a, b)| b - a + 1).sum();
        let counted = (range.staged.cast_unsigned(), range.failed.cast_unsigned());
        assert_eq!(counted, (staged, failed), "I5 at {}: {range:?}", now.revision);
    }
}

/// I6, the part that records show: a lease is granted under the epoch of who holds the lock.
fn i6_tokens_carry_the_epoch(before: &Snapshot, now: &Snapshot) {
    for (first, range) in &now.ranges {
        let token = |range: &v1::RangeRecord| range.lease.as_ref().and_then(|lease| lease.token);
        let Some(new) = token(range) else { continue };
        if before.ranges.get(first).and_then(token) == Some(new) {
            continue;
        }
        let epoch = now.lock.as_ref().map(|(_, epoch)| *epoch);
        // A split moves a lease's range to another first number without a new token; a backup lease stays
        // alone when the first one is lost.
        let backup = |range: &v1::RangeRecord| range.backup.as_ref().and_then(|lease| lease.token);
        let known =
            before.ranges.values().any(|range| token(range) == Some(new) || backup(range) == Some(new));
        assert!(known || epoch == Some(new.epoch), "I6 at {}: {new:?} under {epoch:?}", now.revision);
    }
}
