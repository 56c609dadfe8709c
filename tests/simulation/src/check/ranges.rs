//! The rules of range records.

use super::{Mirror, TokenKey, token_key};
use crate::stats::Count;
use std::collections::{BTreeMap, BTreeSet};
use tranche_coordinator::store::Revision;
use tranche_proto::stored::decode_runs;
use tranche_proto::v1;
use tranche_proto::v1::batch::State;
use tranche_proto::v1::range_record::Phase;

/// What a revision changed of a batch's ranges.
#[derive(Default)]
pub(super) struct Change {
    before: Vec<v1::RangeRecord>,
    after: Vec<v1::RangeRecord>,
    folded: Vec<u64>,
}

/// The tasks that are staged in a range, with the attempt that counts.
pub(super) fn won(range: &v1::RangeRecord) -> impl Iterator<Item = (u64, TokenKey)> {
    range.winners.iter().flat_map(|winner| {
        let token = token_key(winner.token.as_ref());
        decode_runs(&winner.runs).into_iter().flat_map(|(a, b)| a..=b).map(move |sequence| (sequence, token))
    })
}

pub(super) fn failed(range: &v1::RangeRecord) -> impl Iterator<Item = u64> {
    decode_runs(&range.failed_runs).into_iter().flat_map(|(a, b)| a..=b)
}

fn leases(range: &v1::RangeRecord) -> impl Iterator<Item = (TokenKey, &v1::StageLease)> {
    let both = range.lease.iter().chain(range.backup.iter());
    both.map(|lease| (token_key(lease.token.as_ref()), lease))
}

/// The tasks that a lease is about.
fn of_lease(range: &v1::RangeRecord, lease: &v1::StageLease) -> BTreeSet<u64> {
    if lease.runs.is_empty() {
        return (range.first.cast_unsigned()..=range.last.cast_unsigned()).collect();
    }
    decode_runs(&lease.runs).into_iter().flat_map(|(a, b)| a..=b).collect()
}

/// A range in a line.
pub(super) fn text(range: &v1::RangeRecord) -> String {
    let token = |t: Option<&v1::Token>| t.map_or_else(String::new, |t| format!("{}-{}", t.epoch, t.counter));
    let lease = |l: &Option<v1::StageLease>| {
        l.as_ref().map_or_else(String::new, |l| {
            format!("{} of {}{:?}", token(l.token.as_ref()), l.worker, decode_runs(&l.runs))
        })
    };
    let winners: Vec<String> = range
        .winners
        .iter()
        .map(|w| format!("{}{:?}", token(w.token.as_ref()), decode_runs(&w.runs)))
        .collect();
    let losers: Vec<String> = range.losers.iter().map(|l| token(Some(l))).collect();
    format!(
        "[{}, {}] {:?} lease {} backup {} won {winners:?} lost {losers:?} staged {} failed {}{:?} losses {} errors {}",
        range.first,
        range.last,
        range.phase(),
        lease(&range.lease),
        lease(&range.backup),
        range.staged,
        range.failed,
        decode_runs(&range.failed_runs),
        range.losses,
        range.errors
    )
}

impl Change {
    pub(super) fn put(&mut self, before: Option<v1::RangeRecord>, after: v1::RangeRecord) {
        self.before.extend(before);
        self.after.push(after);
    }

    pub(super) fn fold(&mut self, first: Option<u64>) {
        self.folded.extend(first);
    }

    /// Leases that were out and are no more, without any task accounted for by it.
    pub(super) fn taken_away(&self) -> Vec<TokenKey> {
        let still: BTreeSet<TokenKey> = self.after.iter().flat_map(|r| leases(r).map(|(t, _)| t)).collect();
        let lost: BTreeSet<TokenKey> =
            self.after.iter().flat_map(|r| &r.losers).map(|token| token_key(Some(token))).collect();
        let before = self.before.iter().flat_map(|r| leases(r).map(|(t, _)| t));
        before.filter(|token| !still.contains(token) && lost.contains(token)).collect()
    }

    /// I1, I2, I6: what is wrong, and what is to be counted.
    pub(super) fn check(
        &self,
        mirror: &mut Mirror,
        decided: bool,
        epoch: Option<Revision>,
    ) -> (Vec<String>, Vec<(Count, u64)>) {
        let mut wrong = Vec::new();
        let mut counts = Vec::new();
        for range in &self.after {
            wrong.extend(whole(range));
        }
        let old: BTreeMap<u64, TokenKey> = self.before.iter().flat_map(won).collect();
        let new: BTreeMap<u64, TokenKey> = self.after.iter().flat_map(won).collect();
        for (sequence, token) in &old {
            if new.get(sequence) != Some(token) {
                wrong.push(format!(
                    "I7 task {sequence}, staged under {token:?}, is now under {:?}",
                    new.get(sequence)
                ));
            }
        }
        let out: BTreeMap<TokenKey, BTreeSet<u64>> = self
            .before
            .iter()
            .flat_map(|r| leases(r).map(|(token, lease)| (token, of_lease(r, lease))))
            .collect();
        for (sequence, token) in new.iter().filter(|(sequence, _)| !old.contains_key(sequence)) {
            match out.get(token) {
                Some(tasks) if tasks.contains(sequence) => {}
                Some(_) => wrong.push(format!("I6 task {sequence} isn't of the lease {token:?}")),
                None => wrong.push(format!("I6 task {sequence} counts under {token:?}, which isn't out")),
            }
            if decided {
                wrong.push(format!("I3 task {sequence} counts after the decision"));
            }
            mirror.counted.insert(*token);
        }
        // One whose tasks all failed is there without tasks, even when they are retried by the same write.
        let winners = self.after.iter().flat_map(|range| &range.winners);
        mirror.counted.extend(winners.map(|winner| token_key(winner.token.as_ref())));
        let accounted = |ranges: &[v1::RangeRecord]| -> BTreeSet<u64> {
            ranges.iter().flat_map(|r| failed(r).chain(won(r).map(|(s, _)| s)).collect::<Vec<_>>()).collect()
        };
        let still: BTreeSet<TokenKey> = self.after.iter().flat_map(|r| leases(r).map(|(t, _)| t)).collect();
        let newly: BTreeSet<u64> = &accounted(&self.after) - &accounted(&self.before);
        for (token, tasks) in &out {
            if !still.contains(token) && tasks.iter().any(|task| newly.contains(task)) {
                mirror.counted.insert(*token);
            }
        }
        for range in &self.after {
            for (token, _) in leases(range).filter(|(token, _)| !out.contains_key(token)) {
                if mirror
                    .leased
                    .insert(token, (range.first.cast_unsigned(), range.last.cast_unsigned()))
                    .is_some()
                {
                    wrong.push(format!("I6 the token {token:?} is out a second time"));
                }
                if epoch != Some(token.0) {
                    wrong.push(format!("I6 the token {token:?} is out in the epoch {epoch:?}"));
                }
                if decided {
                    wrong.push(format!("I3 the token {token:?} is out after the decision"));
                }
            }
        }
        if self.after.len() > self.before.len() && !self.before.is_empty() {
            let firsts: BTreeSet<i64> = self.before.iter().map(|r| r.first).collect();
            let inside = |range: &v1::RangeRecord| {
                !firsts.contains(&range.first)
                    && self.before.iter().any(|b| b.first < range.first && range.last <= b.last)
            };
            counts.push((Count::Split, self.after.iter().filter(|r| inside(r)).count() as u64));
        }
        let backups = self.after.iter().filter_map(|r| r.backup.as_ref());
        let backups = backups.filter(|b| !out.contains_key(&token_key(b.token.as_ref()))).count();
        counts.push((Count::Backup, backups as u64));
        let again = self.after.iter().filter(|range| {
            let before = self.before.iter().find(|b| b.first == range.first);
            let token = |r: &v1::RangeRecord| r.lease.as_ref().map(|l| token_key(l.token.as_ref()));
            before.is_some_and(|b| token(range).is_some() && token(b) != token(range))
        });
        counts.push((Count::Again, again.count() as u64));
        if !self.folded.is_empty() && !matches!(mirror.at(), State::Committed | State::RolledBack) {
            wrong.push(format!("I1 ranges {:?} are gone before the end", self.folded));
        }
        (wrong, counts)
    }
}

/// I1 of one range: each task once, and the counts are those of the tasks.
fn whole(range: &v1::RangeRecord) -> Vec<String> {
    let mut wrong = Vec::new();
    let at = format!("range [{}, {}]", range.first, range.last);
    let mut seen = BTreeSet::new();
    for sequence in won(range).map(|(sequence, _)| sequence).chain(failed(range)) {
        if !seen.insert(sequence) {
            wrong.push(format!("I1 task {sequence} counts twice in {at}"));
        }
        if !(range.first.cast_unsigned()..=range.last.cast_unsigned()).contains(&sequence) {
            wrong.push(format!("I1 task {sequence} is outside of {at}"));
        }
    }
    let count = |count: usize| count as u64;
    let (staged, failed) =
        (count(won(range).count()).cast_signed(), count(failed(range).count()).cast_signed());
    if (staged, failed) != (range.staged, range.failed) {
        wrong
            .push(format!("I5 {at} counts {} and {}, has {staged} and {failed}", range.staged, range.failed));
    }
    let len = range.last - range.first + 1;
    if range.phase() == Phase::Staged && staged + failed != len {
        wrong.push(format!("I1 {at} is STAGED with {staged} and {failed} of {len}"));
    }
    wrong
}
