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

/// Segments that were checked or just written, the least lately used forgotten first, bounded by bytes.
#[derive(Debug)]
pub(super) struct Cache {
    limit: usize,
    bytes: usize,
    /// Counts uses; the largest is the latest.
    clock: u64,
    entries: HashMap<Place, (u64, Arc<TaskList>)>,
    by_use: BTreeMap<u64, Place>,
}

impl Cache {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, bytes: 0, clock: 0, entries: HashMap::new(), by_use: BTreeMap::new() }
    }

    pub(super) fn get(&mut self, object: &Place) -> Option<Arc<TaskList>> {
        let (used, segment) = self.entries.get_mut(object)?;
        self.clock += 1;
        let name = self.by_use.remove(used)?;
        self.by_use.insert(self.clock, name);
        *used = self.clock;
        Some(segment.clone())
    }

    pub(super) fn insert(&mut self, object: Place, segment: Arc<TaskList>) {
        self.remove(&object);
        if memory(&segment) > self.limit {
            return;
        }
        self.clock += 1;
        self.bytes += memory(&segment);
        self.by_use.insert(self.clock, object.clone());
        self.entries.insert(object, (self.clock, segment));
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
        if let Some((used, segment)) = self.entries.remove(object) {
            self.by_use.remove(&used);
            self.bytes -= memory(&segment);
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
        Arc::new([Task { key: String::new(), payload: vec![0; bytes].into() }].into_iter().collect())
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
        assert!(cache.get(&place("a/1")).is_some() && cache.get(&place("a/2")).is_some(), "at its limit");
        assert!(cache.get(&place("a/1")).is_some());
        cache.insert(place("a/3"), segment(100));
        assert!(cache.get(&place("a/2")).is_none(), "one over its limit");
        assert!(cache.get(&place("a/1")).is_some() && cache.get(&place("a/3")).is_some());
        assert_eq!(cache.bytes, 2 * size);
        cache.insert(place("b/1"), segment(2 * size));
        assert!(cache.get(&place("b/1")).is_none(), "one segment over the limit is not kept");
        assert_eq!(cache.entries.len(), 2);
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
        assert!(cache.get(&place("batches/n/ab/1")).is_some());
    }
}
