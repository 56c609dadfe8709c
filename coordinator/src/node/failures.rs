//! ListFailures: from the range records and the objects with their details.

use super::{Node, Shared};
use crate::driver::{ledger, records};
use crate::error::Error;
use crate::store::RangeOptions;
use crate::store::keys::{self, BatchKey};
use std::collections::BTreeMap;
use tranche_proto::{TaskList, v1};

/// Range records of one read.
const PAGE: usize = 200;

impl Node {
    /// The failures after a sequence number, at most `limit`; the second value is the sequence number to
    /// go on after, when there are more.
    pub async fn failures(
        &self,
        batch: &BatchKey,
        after: u64,
        limit: usize,
    ) -> Result<(Vec<v1::TaskFailure>, Option<u64>), Error> {
        self.shared.failures(batch, after, limit).await
    }
}

impl Shared {
    /// See [`Node::failures`].
    pub(crate) async fn failures(
        &self,
        batch: &BatchKey,
        after: u64,
        limit: usize,
    ) -> Result<(Vec<v1::TaskFailure>, Option<u64>), Error> {
        let store = &*self.store;
        if store.get(&keys::state(batch)).await?.is_none() {
            return Err(Error::NotFound(batch.clone()));
        }
        let prefix = keys::ranges(batch);
        // The range that holds the next number begins at or before it.
        let from = RangeOptions {
            limit: 1,
            after: Some(keys::range(batch, after.saturating_add(2))),
            descending: true,
        };
        let holder = store.range(&prefix, from).await?.entries.pop();
        let mut found = Vec::new();
        let mut entries: Vec<_> = holder.into_iter().collect();
        loop {
            for entry in &entries {
                let range = ledger::decode::<v1::RangeRecord>(entry)?.value;
                for failure in self.range_failures(batch, &range).await? {
                    if failure.sequence.cast_unsigned() <= after {
                        continue;
                    }
                    if found.len() == limit {
                        let last =
                            found.last().map_or(after, |f: &v1::TaskFailure| f.sequence.cast_unsigned());
                        return Ok((found, Some(last)));
                    }
                    found.push(failure);
                }
            }
            let last = entries.last().map(|entry| entry.key.clone());
            let options = RangeOptions { limit: PAGE, after: last, descending: false };
            entries = store.range(&prefix, options).await?.entries;
            if entries.is_empty() {
                return Ok((found, None));
            }
        }
    }

    /// The failures of one range, by sequence number.
    async fn range_failures(
        &self,
        batch: &BatchKey,
        range: &v1::RangeRecord,
    ) -> Result<Vec<v1::TaskFailure>, Error> {
        if range.failed == 0 {
            return Ok(Vec::new());
        }
        let failed = records::failed_runs(range);
        let mut all: BTreeMap<i64, v1::TaskFailure> = BTreeMap::new();
        for object in &range.failure_objects {
            for failure in self.objects.read_failures(object).await? {
                if failed.contains(failure.sequence.cast_unsigned()) {
                    all.insert(failure.sequence, failure);
                }
            }
        }
        for inline in &range.inline_failures {
            let runs = records::inline_runs(inline);
            for number in runs.iter().flat_map(|run| run.first..=run.last) {
                if !failed.contains(number) {
                    continue;
                }
                all.insert(
                    number.cast_signed(),
                    v1::TaskFailure {
                        sequence: number.cast_signed(),
                        key: String::new(),
                        code: inline.code.clone(),
                        message: inline.message.clone(),
                    },
                );
            }
        }
        let nameless: Vec<u64> =
            all.values().filter(|f| f.key.is_empty()).map(|f| f.sequence.cast_unsigned()).collect();
        let keys = match self.keys_of(batch, &nameless).await {
            Ok(keys) => keys,
            // Tasks that are lost are often the very ones that failed: they are listed without their keys.
            Err(error @ Error::Damaged { .. }) => {
                tracing::warn!(batch.id = %batch, %error, "keys of failed tasks can't be read");
                Vec::new()
            }
            Err(error) => return Err(error),
        };
        for (number, key) in keys {
            if let Some(failure) = all.get_mut(&number.cast_signed()) {
                failure.key = key;
            }
        }
        Ok(all.into_values().collect())
    }

    /// The keys of these tasks, from the manifest.
    async fn keys_of(&self, batch: &BatchKey, numbers: &[u64]) -> Result<Vec<(u64, String)>, Error> {
        let (Some(first), Some(last)) = (numbers.first(), numbers.last()) else { return Ok(Vec::new()) };
        let store = &*self.store;
        let prefix = keys::segments(batch);
        let from = RangeOptions { limit: 1, after: Some(keys::segment(batch, first + 1)), descending: true };
        let mut segments = Vec::new();
        let mut entries = store.range(&prefix, from).await?.entries;
        while let Some(entry) = entries.last() {
            let after = Some(entry.key.clone());
            for entry in &entries {
                segments.push(ledger::decode::<v1::SegmentRecord>(entry)?.value);
            }
            if segments.last().is_some_and(|segment| segment.last.cast_unsigned() >= *last) {
                break;
            }
            let options = RangeOptions { limit: PAGE, after, descending: false };
            entries = store.range(&prefix, options).await?.entries;
        }
        let runs: Vec<(u64, u64)> = numbers.iter().map(|number| (*number, *number)).collect();
        let tasks = self.objects.read_tasks(&segments, &runs).await?;
        let mut keys = Vec::with_capacity(numbers.len());
        for task in tasks.iter().flat_map(TaskList::iter) {
            let task = task.map_err(|error| Error::Damaged {
                what: format!("a task of {batch}"),
                message: error.to_string(),
            })?;
            keys.push(task.key.to_owned());
        }
        Ok(numbers.iter().copied().zip(keys).collect())
    }
}
