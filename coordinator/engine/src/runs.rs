//! Sets of sequence numbers, as sorted runs.

/// Consecutive sequence numbers, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Run {
    /// The first.
    pub first: u64,
    /// The last.
    pub last: u64,
}

impl Run {
    /// From first to last.
    ///
    /// # Panics
    /// When `first` is beyond `last`: an empty run doesn't exist.
    pub fn new(first: u64, last: u64) -> Self {
        assert!(first <= last, "run {first}..={last} is empty");
        Self { first, last }
    }

    /// How many numbers; never 0.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> u64 {
        self.last - self.first + 1
    }

    /// Some number is of both.
    pub(crate) fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// From the first number of both to the last.
    pub(crate) fn to(self, other: Self) -> Self {
        Self { first: self.first.min(other.first), last: self.last.max(other.last) }
    }
}

/// A set of sequence numbers: runs that are sorted, disjoint and not adjacent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Runs(Vec<Run>);

impl From<Run> for Runs {
    fn from(run: Run) -> Self {
        Self(vec![run])
    }
}

impl FromIterator<Run> for Runs {
    fn from_iter<I: IntoIterator<Item = Run>>(iter: I) -> Self {
        let mut all: Vec<Run> = iter.into_iter().collect();
        all.sort_unstable();
        let mut runs: Vec<Run> = Vec::with_capacity(all.len());
        for run in all {
            match runs.last_mut() {
                Some(end) if run.first <= end.last.saturating_add(1) => end.last = end.last.max(run.last),
                _ => runs.push(run),
            }
        }
        Self(runs)
    }
}

impl FromIterator<u64> for Runs {
    fn from_iter<I: IntoIterator<Item = u64>>(iter: I) -> Self {
        iter.into_iter().map(|number| Run::new(number, number)).collect()
    }
}

impl Runs {
    /// Nothing in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many numbers.
    pub fn count(&self) -> u64 {
        self.0.iter().map(Run::len).sum()
    }

    /// The runs, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Run> + '_ {
        self.0.iter().copied()
    }

    /// Whether the number is in it.
    pub fn contains(&self, number: u64) -> bool {
        let after = self.0.partition_point(|run| run.first <= number);
        after > 0 && self.0[after - 1].last >= number
    }

    /// All of `other` is in it.
    pub fn contains_all(&self, other: &Self) -> bool {
        other.minus(self).is_empty()
    }

    /// Both together.
    pub fn union(&self, other: &Self) -> Self {
        self.iter().chain(other.iter()).collect()
    }

    /// This without the other.
    pub fn minus(&self, other: &Self) -> Self {
        let mut left = Vec::with_capacity(self.0.len());
        let mut cuts = other.0.iter().copied().peekable();
        for run in &self.0 {
            let mut first = run.first;
            while let Some(cut) = cuts.peek() {
                if cut.last < first {
                    cuts.next();
                    continue;
                }
                if cut.first > run.last {
                    break;
                }
                if cut.first > first {
                    left.push(Run::new(first, cut.first - 1));
                }
                first = cut.last + 1;
                if cut.last > run.last {
                    break;
                }
                cuts.next();
            }
            if first <= run.last {
                left.push(Run::new(first, run.last));
            }
        }
        Self(left)
    }

    /// The part inside `run`.
    pub fn within(&self, run: Run) -> Self {
        Self(
            self.0
                .iter()
                .filter(|r| r.first <= run.last && r.last >= run.first)
                .map(|r| Run::new(r.first.max(run.first), r.last.min(run.last)))
                .collect(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn set(runs: &Runs) -> BTreeSet<u64> {
        runs.iter().flat_map(|run| run.first..=run.last).collect()
    }

    fn numbers() -> impl Strategy<Value = BTreeSet<u64>> {
        proptest::collection::btree_set(1u64..60, 0..40)
    }

    proptest! {
        #[test]
        fn runs_are_sets(a in numbers(), b in numbers(), first in 1u64..60, len in 0u64..20) {
            let (ra, rb): (Runs, Runs) = (a.iter().copied().collect(), b.iter().copied().collect());
            prop_assert_eq!(set(&ra), a.clone());
            prop_assert_eq!(ra.count(), a.len() as u64);
            prop_assert_eq!(set(&ra.union(&rb)), &a | &b);
            prop_assert_eq!(set(&ra.minus(&rb)), &a - &b);
            prop_assert_eq!(ra.contains_all(&rb), b.is_subset(&a));
            let window = Run::new(first, first + len);
            let inside: BTreeSet<u64> = a.range(first..=first + len).copied().collect();
            prop_assert_eq!(set(&ra.within(window)), inside);
            for number in 0..70 {
                prop_assert_eq!(ra.contains(number), a.contains(&number));
            }
            let runs: Vec<Run> = ra.iter().collect();
            prop_assert!(runs.windows(2).all(|pair| pair[0].last + 1 < pair[1].first));
        }
    }
}
