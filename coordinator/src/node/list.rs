//! ListBatches.

use super::{Node, View, stored_view};
use crate::driver::ledger;
use crate::error::Error;
use crate::store::keys::{self, BatchKey};
use crate::store::{Entry, RangeOptions, StoreError};
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
                match self.listed(&batch, entry, &filter).await {
                    Ok(view) => found.extend(view),
                    // One damaged batch must not hide the others.
                    Err(error @ (Error::Damaged { .. } | Error::Store(StoreError::Corrupt { .. }))) => {
                        tracing::error!(batch.id = %batch, %error, "batch can't be read, left out of the list");
                    }
                    Err(error) => return Err(error),
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

    /// `None`: not asked for, or deleted meanwhile.
    async fn listed(
        &self,
        batch: &BatchKey,
        state: &Entry,
        filter: &ListFilter,
    ) -> Result<Option<View>, Error> {
        let stored = ledger::decode::<v1::StateRecord>(state)?.value.state();
        if !filter.states.is_empty() && !filter.states.contains(&stored) {
            return Ok(None);
        }
        let view = if let Some(handle) = self.shared.handle(batch) {
            View::clone(&handle.view().borrow())
        } else {
            let store = &*self.shared.store;
            let (spec, decision, cutoff) = (keys::spec(batch), keys::decision(batch), keys::cutoff(batch));
            let (spec, decision, cutoff) =
                tokio::try_join!(store.get(&spec), store.get(&decision), store.get(&cutoff))?;
            let Some(spec) = spec else { return Ok(None) };
            stored_view(batch, state, &spec, decision.as_ref(), cutoff.as_ref())?
        };
        Ok(has_labels(&view, &filter.labels).then_some(view))
    }
}

fn has_labels(view: &View, wanted: &HashMap<String, String>) -> bool {
    let labels = view.spec.batch.as_ref().map(|batch| &batch.labels);
    wanted.iter().all(|(key, value)| labels.is_some_and(|labels| labels.get(key) == Some(value)))
}
