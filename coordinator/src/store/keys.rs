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
