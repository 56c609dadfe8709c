//! The workers of a batch, by id and then by life: what is asked is often whether any life of an id is here.

use super::workers::WorkerState;
use crate::ids::WorkerKey;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

#[derive(Debug, Default)]
pub(super) struct Crew {
    by_id: HashMap<Arc<str>, BTreeMap<Arc<str>, WorkerState>>,
}

impl Crew {
    /// A worker, seen now for the first time if it isn't known.
    pub(super) fn meet(&mut self, worker: &WorkerKey, seen: Duration) -> &mut WorkerState {
        let lives = self.by_id.entry(worker.id.clone()).or_default();
        lives.entry(worker.incarnation.clone()).or_insert_with(|| WorkerState::new(seen))
    }

    pub(super) fn get(&self, worker: &WorkerKey) -> Option<&WorkerState> {
        self.by_id.get(&worker.id)?.get(&worker.incarnation)
    }

    pub(super) fn get_mut(&mut self, worker: &WorkerKey) -> Option<&mut WorkerState> {
        self.by_id.get_mut(&worker.id)?.get_mut(&worker.incarnation)
    }

    pub(super) fn remove(&mut self, worker: &WorkerKey) {
        if let Some(lives) = self.by_id.get_mut(&worker.id) {
            lives.remove(&worker.incarnation);
            if lives.is_empty() {
                self.by_id.remove(&worker.id);
            }
        }
    }

    /// Other lives of the same worker, in order.
    pub(super) fn other_lives(&self, worker: &WorkerKey) -> Vec<WorkerKey> {
        let lives = self.by_id.get(&worker.id).into_iter().flat_map(BTreeMap::keys);
        let others = lives.filter(|incarnation| **incarnation != worker.incarnation);
        others.map(|other| WorkerKey { id: worker.id.clone(), incarnation: other.clone() }).collect()
    }

    /// Whether any life of it isn't over.
    pub(super) fn is_here(&self, id: &str) -> bool {
        self.by_id.get(id).is_some_and(|lives| lives.values().any(|state| !state.gone))
    }

    /// All, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (WorkerKey, &WorkerState)> {
        self.by_id.iter().flat_map(|(id, lives)| {
            lives.iter().map(|(incarnation, state)| {
                (WorkerKey { id: id.clone(), incarnation: incarnation.clone() }, state)
            })
        })
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut WorkerState> {
        self.by_id.values_mut().flat_map(BTreeMap::values_mut)
    }
}
