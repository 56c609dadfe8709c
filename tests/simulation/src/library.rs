//! Where the data goes: staged items by attempt, the library that readers see, and what each batch's tasks do.
//!
//! It is shared storage: it survives every host. An item that was written and not synced is lost with the host
//! that wrote it, or not.

use crate::host::{HostId, Life};
use crate::plan::Plan;
use crate::stats::Count;
use crate::world::Inner;
use std::collections::BTreeMap;
use tranche_worker::{Attempt, Token};

/// A staged item.
#[derive(Clone, Copy, Debug)]
struct Item {
    durable: bool,
    by: (HostId, Life),
}

/// Everything of one batch.
#[derive(Default)]
struct Place {
    staged: BTreeMap<Token, BTreeMap<u64, Item>>,
    visible: BTreeMap<u64, Token>,
    published: bool,
    /// How often each task was tried.
    tries: BTreeMap<u64, u32>,
}

/// The storage.
#[derive(Default)]
pub(crate) struct Library {
    places: BTreeMap<String, Place>,
    /// What was planned, by the number in the batch's parameters.
    pub plans: Vec<Plan>,
}

/// What a task does when it is staged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Try {
    /// It is staged.
    Staged,
    /// It fails.
    Failed,
    /// It kills its worker.
    Kills,
}

impl Library {
    fn place(&mut self, batch: &str) -> &mut Place {
        self.places.entry(batch.to_owned()).or_default()
    }

    /// Everything that is visible of a batch, with the attempt that staged it.
    pub(crate) fn visible(&self, batch: &str) -> BTreeMap<u64, Token> {
        self.places.get(batch).map(|place| place.visible.clone()).unwrap_or_default()
    }

    /// Items staged of a batch, by attempt.
    pub(crate) fn staged(&self, batch: &str) -> Vec<(Token, usize)> {
        let place = self.places.get(batch);
        place.into_iter().flat_map(|p| &p.staged).map(|(token, items)| (*token, items.len())).collect()
    }

    /// Whether the batch was published.
    pub(crate) fn published(&self, batch: &str) -> bool {
        self.places.get(batch).is_some_and(|place| place.published)
    }
}

impl Inner {
    /// One task is tried.
    pub(crate) fn try_task(&mut self, batch: &str, plan: usize, sequence: u64) -> Try {
        let tries = self.library.place(batch).tries.entry(sequence).or_default();
        *tries += 1;
        let tries = *tries;
        let Some(plan) = self.library.plans.get(plan) else { return Try::Staged };
        if plan.poison.contains(&sequence) {
            return Try::Kills;
        }
        match plan.failing.get(&sequence) {
            Some(times) if tries <= *times => Try::Failed,
            Some(_) | None => Try::Staged,
        }
    }

    /// An item is written where no reader sees it.
    pub(crate) fn write_staged(&mut self, by: (HostId, Life), batch: &str, token: Token, sequence: u64) {
        let item = Item { durable: false, by };
        self.library.place(batch).staged.entry(token).or_default().insert(sequence, item);
        self.wrote(batch, token);
    }

    /// What an attempt wrote is durable from now on.
    pub(crate) fn sync_staged(&mut self, batch: &str, token: Token) {
        for item in
            self.library.place(batch).staged.get_mut(&token).into_iter().flat_map(BTreeMap::values_mut)
        {
            item.durable = true;
        }
    }

    /// Makes an attempt's items visible; says what isn't there to be made so.
    pub(crate) fn make_visible(
        &mut self,
        batch: &str,
        attempt: &Attempt,
        most: usize,
    ) -> Result<u64, String> {
        let mut done = 0;
        let numbers = attempt.runs.iter().flat_map(|run| run.first..=run.last);
        for sequence in numbers.take(most) {
            let place = self.library.place(batch);
            let staged = place.staged.get_mut(&attempt.token).and_then(|items| items.remove(&sequence));
            let before = place.visible.get(&sequence).copied();
            match (staged, before) {
                (Some(_), None) => {
                    place.visible.insert(sequence, attempt.token);
                    self.became_visible(batch, sequence, attempt.token);
                }
                (None, Some(token)) if token == attempt.token => {}
                (None, _) => {
                    return Err(format!("task {sequence} of {} isn't staged", attempt.token));
                }
                (Some(_), Some(token)) => {
                    self.violated(format!(
                        "I4 {batch}: task {sequence} committed under {} is visible under {token}",
                        attempt.token
                    ));
                }
            }
            done += 1;
        }
        let place = self.library.place(batch);
        if place.staged.get(&attempt.token).is_some_and(BTreeMap::is_empty) {
            place.staged.remove(&attempt.token);
        }
        Ok(done)
    }

    /// Removes what an attempt staged.
    pub(crate) fn remove_staged(&mut self, batch: &str, token: Token) {
        self.library.place(batch).staged.remove(&token);
    }

    /// Removes what is staged of a batch, or a part of it; says how much that was.
    pub(crate) fn sweep_staged(&mut self, batch: &str) -> u64 {
        // Large folders are removed in parts: it is called again until it finds nothing.
        let whole = self.rng.bool();
        let place = self.library.place(batch);
        let mut found = 0;
        while let Some((_, items)) = place.staged.pop_first() {
            found += items.len() as u64;
            if !whole {
                break;
            }
        }
        self.stats.add(Count::Residue, found);
        found
    }

    /// The batch is told to be complete.
    pub(crate) fn publish(&mut self, batch: &str, staged: u64) {
        let place = self.library.place(batch);
        place.published = true;
        let visible = place.visible.len() as u64;
        if visible != staged {
            self.violated(format!("I4 {batch}: published with {visible} of {staged} tasks visible"));
        }
    }

    /// A host was lost: what it hadn't synced is there or not.
    pub(crate) fn lose_unsynced(&mut self, host: HostId) {
        let mut lost = 0;
        let rng = &mut self.rng;
        for place in self.library.places.values_mut() {
            for items in place.staged.values_mut() {
                items.retain(|_, item| {
                    let goes = !item.durable && item.by.0 == host && rng.bool();
                    lost += u64::from(goes);
                    !goes
                });
            }
            place.staged.retain(|_, items| !items.is_empty());
        }
        self.stats.add(Count::UnsyncedLost, lost);
    }
}
