//! ListBatches.

use super::{Node, View, stored_view};
use crate::error::Error;
use crate::store::RangeOptions;
use crate::store::keys::{self, BatchKey};
use std::collections::HashMap;
use tranche_proto::v1;

/// What ListBatches asks.
#[derive(Clone, Debug, Default)]
pub struct ListFilter {
    /// Only these states; empty: all.
    pub states: Vec<v1::batch::State>,
    /// Only with all these labels.
    pub labels: HashMap<String, String>,
    /// The most in a page.
    pub page_size: usize,
    /// The id after which (towards the older) the page begins.
    pub after: Option<String>,
}

/// States read at most for one page, so that a filter that few batches pass doesn't read the whole
/// namespace in one call; the page is short then, and not the last.
const SCAN: usize = 2000;

impl Node {
    /// Lists batches, newest first; the second value is the id to go on after.
    pub async fn list(
        &self,
        namespace: &str,
        filter: ListFilter,
    ) -> Result<(Vec<View>, Option<String>), Error> {
        let mut found = Vec::new();
        let mut after = filter.after.clone().map(|id| keys::state(&BatchKey::new(namespace, id)));
        let mut scanned = 0;
        loop {
            let limit = filter.page_size.clamp(1, 1000);
            let options = RangeOptions { limit, after: after.take(), descending: true };
            let page = self.shared.store.range(&keys::states_of(namespace), options).await?;
            for entry in &page.entries {
                let tail = entry.key.strip_prefix(keys::STATES).unwrap_or(&entry.key);
                let Some(batch) = BatchKey::from_tail(tail) else { continue };
                let state = crate::driver::ledger::decode::<v1::StateRecord>(entry)?.value.state();
                if (filter.states.is_empty() || filter.states.contains(&state))
                    && let Some(view) = self.listed(&batch, entry).await?
                    && has_labels(&view, &filter.labels)
                {
                    found.push(view);
                }
                scanned += 1;
                if found.len() >= filter.page_size || scanned >= SCAN {
                    let last = page.entries.last().is_some_and(|last| last.key == entry.key);
                    let more = page.more || !last;
                    return Ok((found, more.then_some(batch.id)));
                }
            }
            match page.entries.last() {
                Some(last) if page.more => after = Some(last.key.clone()),
                _ => return Ok((found, None)),
            }
        }
    }

    /// `None`: deleted meanwhile.
    async fn listed(&self, batch: &BatchKey, state: &crate::store::Entry) -> Result<Option<View>, Error> {
        if let Some(handle) = self.shared.handle(batch) {
            return Ok(Some(View::clone(&handle.view().borrow())));
        }
        let store = &*self.shared.store;
        let Some(spec) = store.get(&keys::spec(batch)).await? else { return Ok(None) };
        let decision = store.get(&keys::decision(batch)).await?;
        Ok(Some(stored_view(batch, state, &spec, decision.as_ref(), None)?))
    }
}

fn has_labels(view: &View, wanted: &HashMap<String, String>) -> bool {
    let labels = view.spec.batch.as_ref().map(|batch| &batch.labels);
    wanted.iter().all(|(key, value)| labels.is_some_and(|labels| labels.get(key) == Some(value)))
}
