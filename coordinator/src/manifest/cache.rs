//! The segments that are in memory.

use super::segment::Verified;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Verified segments, the least lately used forgotten first, bounded by bytes.
#[derive(Debug)]
pub(super) struct Cache {
    limit: usize,
    bytes: usize,
    /// Counts uses; the largest is the latest.
    clock: u64,
    entries: HashMap<String, (u64, Arc<Verified>)>,
    by_use: BTreeMap<u64, String>,
}

impl Cache {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, bytes: 0, clock: 0, entries: HashMap::new(), by_use: BTreeMap::new() }
    }

    pub(super) fn get(&mut self, object: &str) -> Option<Arc<Verified>> {
        let (used, segment) = self.entries.get_mut(object)?;
        self.clock += 1;
        let name = self.by_use.remove(used)?;
        self.by_use.insert(self.clock, name);
        *used = self.clock;
        Some(segment.clone())
    }

    pub(super) fn insert(&mut self, object: String, segment: Arc<Verified>) {
        self.remove(&object);
        if segment.memory() > self.limit {
            return;
        }
        self.clock += 1;
        self.bytes += segment.memory();
        self.by_use.insert(self.clock, object.clone());
        self.entries.insert(object, (self.clock, segment));
        while self.bytes > self.limit {
            let Some((_, oldest)) = self.by_use.pop_first() else { break };
            self.remove(&oldest);
        }
    }

    pub(super) fn remove_folder(&mut self, folder: &str) {
        let gone: Vec<_> = self.entries.keys().filter(|object| object.starts_with(folder)).cloned().collect();
        for object in gone {
            self.remove(&object);
        }
    }

    fn remove(&mut self, object: &str) {
        if let Some((used, segment)) = self.entries.remove(object) {
            self.by_use.remove(&used);
            self.bytes -= segment.memory();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tranche_proto::v1::Task;

    fn segment(bytes: usize) -> Arc<Verified> {
        Arc::new(Verified::encode(&[Task { key: String::new(), payload: vec![0; bytes].into() }]))
    }

    #[test]
    fn it_holds_exactly_its_limit_and_forgets_the_least_lately_used() {
        let size = segment(100).memory();
        let mut cache = Cache::new(2 * size);
        cache.insert("a/1".into(), segment(100));
        cache.insert("a/2".into(), segment(100));
        assert!(cache.get("a/1").is_some() && cache.get("a/2").is_some(), "at its limit");
        assert!(cache.get("a/1").is_some());
        cache.insert("a/3".into(), segment(100));
        assert!(cache.get("a/2").is_none(), "one over its limit");
        assert!(cache.get("a/1").is_some() && cache.get("a/3").is_some());
        assert_eq!(cache.bytes, 2 * size);
        cache.insert("b/1".into(), segment(2 * size));
        assert!(cache.get("b/1").is_none(), "one segment over the limit is not kept");
        assert_eq!(cache.entries.len(), 2);
    }

    #[test]
    fn a_segment_put_twice_counts_once() {
        let mut cache = Cache::new(1000);
        cache.insert("a".into(), segment(100));
        cache.insert("a".into(), segment(100));
        assert_eq!(cache.bytes, segment(100).memory());
        assert_eq!(cache.by_use.len(), 1);
    }

    #[test]
    fn a_folder_goes_alone() {
        let mut cache = Cache::new(10_000);
        for object in ["batches/n/a/1", "batches/n/a/2", "batches/n/ab/1"] {
            cache.insert(object.into(), segment(10));
        }
        cache.remove_folder("batches/n/a/");
        assert_eq!(cache.entries.len(), 1);
        assert_eq!(cache.bytes, segment(10).memory());
        assert!(cache.get("batches/n/ab/1").is_some());
    }
}
