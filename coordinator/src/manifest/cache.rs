//! The segments that are in memory.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tranche_proto::{TaskList, v1};

/// Where a segment is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Place {
    object: String,
    offset: i64,
}

impl From<&v1::SegmentRecord> for Place {
    fn from(record: &v1::SegmentRecord) -> Self {
        Self { object: record.object.clone(), offset: record.offset }
    }
}

/// Segments that were checked or just written, bounded by bytes. One of which all tasks were taken is forgotten at
/// once: few are leased twice, and what is kept for them is memory that a large batch takes and a small one
/// doesn't. Of the others the least lately used is forgotten first.
#[derive(Debug)]
pub(super) struct Cache {
    limit: usize,
    bytes: usize,
    /// Counts uses; the largest is the latest.
    clock: u64,
    entries: HashMap<Place, Entry>,
    by_use: BTreeMap<u64, Place>,
}

#[derive(Debug)]
struct Entry {
    used: u64,
    segment: Arc<TaskList>,
    /// Tasks that nobody took yet.
    left: usize,
}

impl Cache {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, bytes: 0, clock: 0, entries: HashMap::new(), by_use: BTreeMap::new() }
    }

    /// The segment, of which so many tasks are taken.
    pub(super) fn take(&mut self, object: &Place, tasks: usize) -> Option<Arc<TaskList>> {
        let entry = self.entries.get_mut(object)?;
        entry.left = entry.left.saturating_sub(tasks);
        let segment = entry.segment.clone();
        if entry.left == 0 {
            self.remove(object);
        } else {
            self.clock += 1;
            let name = self.by_use.remove(&entry.used)?;
            self.by_use.insert(self.clock, name);
            entry.used = self.clock;
        }
        Some(segment)
    }

    pub(super) fn insert(&mut self, object: Place, segment: Arc<TaskList>) {
        self.remove(&object);
        if memory(&segment) > self.limit {
            return;
        }
        self.clock += 1;
        self.bytes += memory(&segment);
        self.by_use.insert(self.clock, object.clone());
        let left = segment.len();
        self.entries.insert(object, Entry { used: self.clock, segment, left });
        while self.bytes > self.limit {
            let Some((_, oldest)) = self.by_use.pop_first() else { break };
            self.remove(&oldest);
        }
    }

    pub(super) fn remove_folder(&mut self, folder: &str) {
        let gone: Vec<_> =
            self.entries.keys().filter(|object| object.object.starts_with(folder)).cloned().collect();
        for object in gone {
            self.remove(&object);
        }
    }

    fn remove(&mut self, object: &Place) {
        if let Some(entry) = self.entries.remove(object) {
            self.by_use.remove(&entry.used);
            self.bytes -= memory(&entry.segment);
        }
    }
}

/// What a segment takes in memory, in bytes.
fn memory(segment: &TaskList) -> usize {
    segment.bytes().len() + segment.index_memory() + size_of::<TaskList>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tranche_proto::v1::Task;

    fn segment(bytes: usize) -> Arc<TaskList> {
        let task = |bytes: usize| Task { key: String::new(), payload: vec![0; bytes].into() };
        Arc::new([task(bytes), task(0)].into_iter().collect())
    }

    fn place(object: &str) -> Place {
        Place { object: object.to_owned(), offset: 0 }
    }

    #[test]
    fn it_holds_exactly_its_limit_and_forgets_the_least_lately_used() {
        let size = memory(&segment(100));
        let mut cache = Cache::new(2 * size);
        cache.insert(place("a/1"), segment(100));
        cache.insert(place("a/2"), segment(100));
        assert!(
            cache.take(&place("a/1"), 0).is_some() && cache.take(&place("a/2"), 0).is_some(),
            "at its limit"
        );
        assert!(cache.take(&place("a/1"), 0).is_some());
        cache.insert(place("a/3"), segment(100));
        assert!(cache.take(&place("a/2"), 0).is_none(), "one over its limit");
        assert!(cache.take(&place("a/1"), 0).is_some() && cache.take(&place("a/3"), 0).is_some());
        assert_eq!(cache.bytes, 2 * size);
        cache.insert(place("b/1"), segment(2 * size));
        assert!(cache.take(&place("b/1"), 0).is_none(), "one segment over the limit is not kept");
        assert_eq!(cache.entries.len(), 2);
    }

    #[test]
    fn one_that_was_taken_whole_is_forgotten() {
        let mut cache = Cache::new(10_000);
        cache.insert(place("a"), segment(100));
        cache.insert(place("b"), segment(100));
        for name in ["a", "b"] {
            assert!(cache.take(&place(name), 1).is_some(), "one task of two");
        }
        assert!(cache.take(&place("a"), 1).is_some(), "the other");
        assert!(cache.take(&place("a"), 1).is_none());
        assert_eq!((cache.bytes, cache.entries.len(), cache.by_use.len()), (memory(&segment(100)), 1, 1));
        // Read again, it counts anew.
        cache.insert(place("a"), segment(100));
        assert!(cache.take(&place("a"), 3).is_some(), "more than there are");
        assert!(cache.take(&place("a"), 0).is_none());
    }

    #[test]
    fn a_segment_put_twice_counts_once() {
        let mut cache = Cache::new(1000);
        cache.insert(place("a"), segment(100));
        cache.insert(place("a"), segment(100));
        assert_eq!(cache.bytes, memory(&segment(100)));
        assert_eq!(cache.by_use.len(), 1);
    }

    #[test]
    fn a_folder_goes_alone() {
        let mut cache = Cache::new(10_000);
        for object in ["batches/n/a/1", "batches/n/a/2", "batches/n/ab/1"] {
            cache.insert(place(object), segment(10));
        }
        cache.remove_folder("batches/n/a/");
        assert_eq!(cache.entries.len(), 1);
        assert_eq!(cache.bytes, memory(&segment(10)));
        assert!(cache.take(&place("batches/n/ab/1"), 0).is_some());
    }
}
