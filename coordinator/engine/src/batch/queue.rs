//! Ranges that wait to be committed or rolled back, in order, and by the worker that staged them.

use super::{Waiting, looks};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// A place in the queue: the lower the nearer. What goes back to the front gets one below zero.
pub(super) type Place = i64;

/// A range that waits.
#[derive(Debug)]
pub(super) struct Queued {
    pub(super) waiting: Waiting,
    /// The id of the worker that staged it, or tried to.
    pub(super) by: Option<Arc<str>>,
}

#[derive(Debug, Default)]
pub(super) struct Queue {
    all: BTreeMap<Place, Queued>,
    of: HashMap<Arc<str>, BTreeSet<Place>>,
}

impl Queue {
    pub(super) fn push_front(&mut self, queued: Queued) {
        self.put(self.all.first_key_value().map_or(0, |(place, _)| place - 1), queued);
    }

    pub(super) fn push_back(&mut self, queued: Queued) {
        self.put(self.all.last_key_value().map_or(0, |(place, _)| place + 1), queued);
    }

    fn put(&mut self, place: Place, queued: Queued) {
        if let Some(by) = &queued.by {
            self.of.entry(by.clone()).or_default().insert(place);
        }
        self.all.insert(place, queued);
    }

    pub(super) fn remove(&mut self, place: Place) -> Option<Waiting> {
        let Queued { waiting, by } = self.all.remove(&place)?;
        if let Some(by) = by
            && let Some(places) = self.of.get_mut(&by)
        {
            places.remove(&place);
            if places.is_empty() {
                self.of.remove(&by);
            }
        }
        Some(waiting)
    }

    /// In order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Place, &Queued)> {
        self.all.iter().map(|(place, queued)| (*place, looks::at(queued)))
    }

    /// Those that a worker staged, in order.
    pub(super) fn of(&self, id: &str) -> impl Iterator<Item = (Place, &Waiting)> {
        self.of.get(id).into_iter().flatten().map(|place| (*place, looks::at(&self.all[place].waiting)))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}
