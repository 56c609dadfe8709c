//! The invariants of `docs/architecture.md`, by name, over the records before and after a write.

use super::store::{Counts, Store, manifest};
use tranche_engine::{Lease, Outcome, RangePhase, RangeRecord, Runs, State};

pub(crate) fn counts_of(range: &RangeRecord) -> Counts {
    Counts {
        staged: range.staged(),
        failed: range.failed(),
        committed: if range.phase == RangePhase::Committed { range.staged() } else { 0 },
        rolled_back: if range.phase == RangePhase::RolledBack { range.run.len() } else { 0 },
    }
}

pub(crate) fn plus(a: Counts, b: Counts) -> Counts {
    Counts {
        staged: a.staged + b.staged,
        failed: a.failed + b.failed,
        committed: a.committed + b.committed,
        rolled_back: a.rolled_back + b.rolled_back,
    }
}

/// All that can be told from one write.
pub(crate) fn check(before: &Store, after: &Store) -> Result<(), String> {
    counted_once(after)?;
    dealt_in_order(before, after)?;
    along_the_table(before, after)?;
    decided_once(before, after)?;
    sums_are_exact(after)?;
    only_the_holder_counts(before, after)?;
    nothing_is_forgotten(before, after)?;
    manifest_is_the_total(before, after)
}

/// I1: no number is counted twice; staged, failed and missing together are the range.
fn counted_once(after: &Store) -> Result<(), String> {
    for range in after.records.ranges.values() {
        let mut seen = Runs::default();
        for part in range.winners.iter().map(|winner| &winner.runs).chain([&range.failed_runs]) {
            if seen.union(part).count() != seen.count() + part.count() {
                return Err(format!("I1: a task of {:?} is counted twice", range.run));
            }
            seen = seen.union(part);
        }
        if seen.within(range.run) != seen {
            return Err(format!("I1: {:?} counts tasks that aren't its own", range.run));
        }
        if seen.count() + range.missing().count() != range.run.len() {
            return Err(format!("I1: the parts of {:?} don't add up", range.run));
        }
        if matches!(range.phase, RangePhase::Staged | RangePhase::Committed) && !range.missing().is_empty() {
            return Err(format!("I1: {:?} is {:?} with tasks missing", range.run, range.phase));
        }
    }
    Ok(())
}

/// I2: the cut-off never goes back; ranges follow each other from 1 to the cut-off.
fn dealt_in_order(before: &Store, after: &Store) -> Result<(), String> {
    let (old, new) = (&before.records, &after.records);
    if new.cutoff.cutoff < old.cutoff.cutoff || new.cutoff.cutoff > new.state.total {
        return Err(format!("I2: cut-off {} after {}", new.cutoff.cutoff, old.cutoff.cutoff));
    }
    if new.state.state.is_final() {
        // Folding takes ranges away.
        return Ok(());
    }
    let mut next = 1;
    for (first, range) in &new.ranges {
        if *first != next || range.run.first != next {
            return Err(format!("I2: range {:?} doesn't follow {}", range.run, next - 1));
        }
        next = range.run.last + 1;
    }
    if next - 1 != new.cutoff.cutoff {
        return Err(format!("I2: ranges end at {}, the cut-off is {}", next - 1, new.cutoff.cutoff));
    }
    Ok(())
}

/// I3: a state leaves only along the table.
fn along_the_table(before: &Store, after: &Store) -> Result<(), String> {
    let (old, new) = (&before.records.state, &after.records.state);
    let allowed = matches!(
        (old.state, new.state),
        (State::Importing, State::Committing | State::Held | State::RollingBack)
            | (State::Held, State::Committing | State::RollingBack | State::Importing)
            | (State::Committing, State::Committed)
            | (State::RollingBack, State::RolledBack)
    );
    if old.state != new.state && !allowed {
        return Err(format!("I3: {:?} to {:?}", old.state, new.state));
    }
    if old.sealed && (!new.sealed || old.total != new.total) {
        return Err("I3: a sealed batch changes its total".into());
    }
    let outcome = after.records.decision.as_ref().map(|decision| decision.outcome);
    let fits = match new.state {
        State::Importing | State::Held => true,
        State::Committing | State::Committed => outcome == Some(Outcome::Commit),
        State::RollingBack | State::RolledBack => outcome == Some(Outcome::Rollback),
    };
    if !fits {
        return Err(format!("I3: {:?} with the decision {outcome:?}", new.state));
    }
    let ranges = after.records.ranges.values();
    match new.state {
        State::Held | State::Committing if old.state != new.state => {
            if !new.sealed || new.staged + new.failed != new.total {
                return Err(format!("I3: {:?} with tasks open", new.state));
            }
        }
        State::Committed => {
            if !new.published || new.committed != new.staged || new.staged + new.failed != new.total {
                return Err(format!("I3: COMMITTED too early: {new:?}"));
            }
        }
        State::RolledBack => {
            if ranges.clone().any(|range| range.phase != RangePhase::RolledBack) {
                return Err("I3: ROLLED_BACK before every range is".into());
            }
        }
        State::Importing | State::Held | State::Committing | State::RollingBack => {}
    }
    Ok(())
}

/// I3: a decision is never changed.
fn decided_once(before: &Store, after: &Store) -> Result<(), String> {
    match (&before.records.decision, &after.records.decision) {
        (Some(old), new) if new.as_ref() != Some(old) => Err(format!("I3: the decision changes: {new:?}")),
        (None, Some(new)) if new.cutoff != after.records.cutoff.cutoff => {
            Err("I3: the decision freezes another cut-off".into())
        }
        _ => Ok(()),
    }
}

/// I5: the counters are the sums over the ranges.
fn sums_are_exact(after: &Store) -> Result<(), String> {
    let sum = after.records.ranges.values().map(counts_of).fold(after.folded, plus);
    let state = &after.records.state;
    let said = Counts {
        staged: state.staged,
        failed: state.failed,
        committed: state.committed,
        rolled_back: state.rolled_back,
    };
    if sum == said { Ok(()) } else { Err(format!("I5: the state says {said:?}, the ranges {sum:?}")) }
}

/// I6: an attempt that begins to count held the lease until this very write.
fn only_the_holder_counts(before: &Store, after: &Store) -> Result<(), String> {
    let mut leased = std::collections::BTreeSet::new();
    for range in after.records.ranges.values() {
        let old = before.records.ranges.range(..=range.run.first).next_back().map(|(_, old)| old);
        for winner in &range.winners {
            let counted = old.is_some_and(|old| {
                old.winners.iter().any(|was| was.token == winner.token && was.runs.contains_all(&winner.runs))
            });
            let held = old
                .into_iter()
                .flat_map(|old| old.lease.iter().chain(&old.backup))
                .any(|lease| lease.token == winner.token && lease.runs.contains_all(&winner.runs));
            if !counted && !held {
                return Err(format!("I6: {} counts for {:?} without its lease", winner.token, range.run));
            }
            if !counted && before.records.decision.is_some() {
                return Err(format!("I6: {} counts after the decision", winner.token));
            }
        }
        if let Some(backup) = &range.backup {
            let beside = |lease: &Lease| lease.runs == backup.runs && lease.worker.id != backup.worker.id;
            if !range.lease.as_ref().is_some_and(beside) {
                return Err(format!("I6: {} is a backup of nothing: {:?}", backup.token, range.lease));
            }
        }
        for lease in range.lease.iter().chain(&range.backup) {
            let is_old = range.losers.contains(&lease.token)
                || range.winners.iter().any(|winner| winner.token == lease.token);
            if is_old || !leased.insert(lease.token) {
                return Err(format!("I6: token {} is used again", lease.token));
            }
        }
        for stopping in &range.stopping {
            let counts = range.winners.iter().any(|winner| winner.token == stopping.token);
            let is_out = range.lease.iter().chain(&range.backup).any(|lease| lease.token == stopping.token);
            if counts || is_out {
                return Err(format!("I6: {} was told to stop, and isn't lost", stopping.token));
            }
        }
    }
    Ok(())
}

/// I7: what counted once counts for ever, until a retry asks for failed tasks again.
fn nothing_is_forgotten(before: &Store, after: &Store) -> Result<(), String> {
    if after.records.state.state.is_final() {
        return Ok(());
    }
    for old in before.records.ranges.values() {
        let staged = |range: &RangeRecord| {
            range.winners.iter().fold(Runs::default(), |all, winner| all.union(&winner.runs))
        };
        let now = after
            .records
            .ranges
            .range(old.run.first..=old.run.last)
            .fold(Runs::default(), |all, (_, range)| all.union(&staged(range)));
        if !now.contains_all(&staged(old)) {
            return Err(format!("I7: tasks of {:?} that were staged are forgotten", old.run));
        }
    }
    Ok(())
}

/// I8: the manifest's segments follow each other up to the total.
fn manifest_is_the_total(before: &Store, after: &Store) -> Result<(), String> {
    let last = manifest(&after.records.segments)?;
    if last != after.records.state.total || last < before.records.state.total {
        return Err(format!("I8: the manifest ends at {last}, the total is {}", after.records.state.total));
    }
    Ok(())
}
