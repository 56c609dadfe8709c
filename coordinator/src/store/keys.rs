//! Names of the keys, under the store's prefix.
//!
//! The kind comes first, so that a listing reads only what it needs and one narrow watch sees all
//! decisions. `{ns}/{id}` is a [`BatchKey`].

use std::fmt;

/// Which batch: namespace and id.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BatchKey {
    /// The namespace.
    pub namespace: String,
    /// The id.
    pub id: String,
}

impl BatchKey {
    /// A key from its parts.
    pub fn new(namespace: impl Into<String>, id: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), id: id.into() }
    }

    /// From a resource name, `namespaces/{ns}/batches/{id}`; `None` when it is no such name.
    pub fn parse(name: &str) -> Option<Self> {
        let (namespace, id) = name.strip_prefix("namespaces/")?.split_once("/batches/")?;
        let word = |s: &str| {
            !s.is_empty()
                && s.len() <= 63
                && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        };
        (word(namespace) && word(id)).then(|| Self::new(namespace, id))
    }

    /// From the tail of a store key, `{ns}/{id}`.
    pub fn from_tail(tail: &str) -> Option<Self> {
        let (namespace, id) = tail.split_once('/')?;
        Some(Self::new(namespace, id))
    }
}

impl fmt::Display for BatchKey {
    /// The resource name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "namespaces/{}/batches/{}", self.namespace, self.id)
    }
}

/// Prefix of the coordinators.
pub const COORDINATORS: &str = "coordinators/";
/// Prefix of the states of all batches.
pub const STATES: &str = "states/";
/// Prefix of the locks of all batches.
pub const LOCKS: &str = "locks/";
/// Prefix of the decisions of all batches.
pub const DECISIONS: &str = "decisions/";

/// Prefix of the last deletions. They stay: there are few, however many batches there were.
pub const DELETIONS: &str = "deletions/";

/// Records of deletions that there are at most. Few enough to stay for ever, and so many that a create seldom meets
/// the deletion of a batch that it has nothing to do with.
const DELETION_RECORDS: u32 = 256;

/// A coordinator.
pub fn coordinator(id: &str) -> String {
    format!("{COORDINATORS}{id}")
}
/// What the client asked for.
pub fn spec(batch: &BatchKey) -> String {
    format!("specs/{}/{}", batch.namespace, batch.id)
}
/// Where the batch stands.
pub fn state(batch: &BatchKey) -> String {
    format!("{STATES}{}/{}", batch.namespace, batch.id)
}
/// Prefix of the states of a namespace.
pub fn states_of(namespace: &str) -> String {
    format!("{STATES}{namespace}/")
}
/// Prefix of the slots of a namespace.
pub fn slots_of(namespace: &str) -> String {
    format!("slots/{namespace}/")
}
/// One of a namespace's slots.
pub fn slot(namespace: &str, number: u32) -> String {
    format!("slots/{namespace}/{number:06}")
}
/// The sequence lock.
pub fn lock(batch: &BatchKey) -> String {
    format!("{LOCKS}{}/{}", batch.namespace, batch.id)
}
/// The decision.
pub fn decision(batch: &BatchKey) -> String {
    format!("{DECISIONS}{}/{}", batch.namespace, batch.id)
}
/// The cut-off.
pub fn cutoff(batch: &BatchKey) -> String {
    format!("cutoffs/{}/{}", batch.namespace, batch.id)
}
/// Prefix of the manifest's segments.
pub fn segments(batch: &BatchKey) -> String {
    format!("segments/{}/{}/", batch.namespace, batch.id)
}
/// A segment; numbers are padded, so that they sort.
pub fn segment(batch: &BatchKey, first: u64) -> String {
    format!("{}{first:020}", segments(batch))
}
/// Prefix of the ranges.
pub fn ranges(batch: &BatchKey) -> String {
    format!("ranges/{}/{}/", batch.namespace, batch.id)
}
/// A range; numbers are padded, so that they sort.
pub fn range(batch: &BatchKey, first: u64) -> String {
    format!("{}{first:020}", ranges(batch))
}
/// Which batch a request made.
pub fn request(namespace: &str, request_id: &str) -> String {
    format!("requests/{namespace}/{request_id}")
}

/// Changes with the deletion of this batch, of every other one that its request made, and of some that have nothing
/// to do with it. `request_id` may be empty.
pub fn deletion(batch: &BatchKey, request_id: &str) -> String {
    let name = if request_id.is_empty() { format!("{batch}") } else { request(&batch.namespace, request_id) };
    // All versions must come to the same: it never changes.
    format!("{DELETIONS}{:02x}", crc32c::crc32c(name.as_bytes()) % DELETION_RECORDS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn all_versions_name_the_same_deletion() {
        let batch = BatchKey::new("default", "one");
        assert_eq!(deletion(&batch, ""), "deletions/b4");
        assert_eq!(deletion(&batch, "nightly"), "deletions/83");
        assert_eq!(deletion(&BatchKey::new("default", "two"), "nightly"), "deletions/83");
    }

    #[test]
    fn batches_without_a_request_are_spread_over_all_deletions() {
        let names = (0..10_000).map(|n| deletion(&BatchKey::new("default", format!("{n:08x}")), ""));
        assert_eq!(names.collect::<BTreeSet<_>>().len(), DELETION_RECORDS as usize);
    }
}
