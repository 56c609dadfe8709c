//! What etcd holds: keys with all their revisions, leases, and what is compacted away.

use super::pb;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tonic::Status;

/// One change: the key, and what was put; none: deleted.
pub type Change = (Vec<u8>, Option<Bytes>);

/// A handle on the data; it outlives the process that serves it.
#[derive(Clone, Debug)]
pub struct Data {
    inner: Arc<Mutex<Inner>>,
    /// The newest revision.
    revision: watch::Sender<i64>,
}

#[derive(Debug, Default)]
struct Inner {
    revision: i64,
    compacted: i64,
    /// By key, oldest version first. A version without a value is a deletion.
    keys: BTreeMap<Vec<u8>, Vec<(i64, Option<pb::KeyValue>)>>,
    /// Every change since the start, also the compacted ones: the tests look at them.
    log: BTreeMap<i64, Vec<pb::Event>>,
    leases: BTreeMap<i64, Lease>,
    granted: i64,
}

/// Changes that a watch is told of.
pub(super) struct Events {
    /// All of them up to this revision.
    pub(super) through: i64,
    /// Each revision's.
    pub(super) revisions: Vec<Vec<pb::Event>>,
}

#[derive(Debug)]
struct Lease {
    ttl: Duration,
    until: Duration,
    keys: BTreeSet<Vec<u8>>,
}

/// The transaction that is being carried out: all its changes have one revision.
struct Write<'a> {
    inner: &'a mut Inner,
    revision: i64,
    events: Vec<pb::Event>,
}

impl Default for Data {
    fn default() -> Self {
        // As etcd: the first change makes revision 2.
        let inner = Inner { revision: 1, ..Inner::default() };
        Self { inner: Arc::new(Mutex::new(inner)), revision: watch::Sender::new(1) }
    }
}

impl Data {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest revision.
    pub fn revision(&self) -> i64 {
        self.lock().revision
    }

    /// Forgets what was before the newest revision, as `etcdctl compact` does.
    pub fn compact(&self) {
        let inner = &mut *self.lock();
        inner.compacted = inner.revision;
        for versions in inner.keys.values_mut() {
            let newest = versions.pop();
            versions.clear();
            versions.extend(newest.filter(|(_, kv)| kv.is_some()));
        }
        inner.keys.retain(|_, versions| !versions.is_empty());
    }

    /// All changes under a prefix, by revision, the keys without the prefix.
    pub fn history(&self, prefix: &str) -> Vec<(i64, Vec<Change>)> {
        let inner = self.lock();
        let change = |event: &pb::Event| {
            let kv = event.kv.as_ref()?;
            let key = kv.key.strip_prefix(prefix.as_bytes())?.to_vec();
            let put = event.r#type() == pb::event::EventType::Put;
            Some((key, put.then(|| Bytes::from(kv.value.clone()))))
        };
        let changes = |events: &Vec<pb::Event>| events.iter().filter_map(change).collect();
        inner.log.iter().map(|(revision, events)| (*revision, changes(events))).collect()
    }

    /// The values of the keys with a prefix, as they are now.
    pub fn values(&self, prefix: &str) -> Vec<(String, Bytes)> {
        let inner = self.lock();
        let newest = inner.keys.iter().filter_map(|(key, versions)| {
            let name = key.strip_prefix(prefix.as_bytes())?;
            let kv = versions.last()?.1.as_ref()?;
            Some((String::from_utf8_lossy(name).into_owned(), Bytes::from(kv.value.clone())))
        });
        newest.collect()
    }

    pub(super) fn changes(&self) -> watch::Receiver<i64> {
        self.revision.subscribe()
    }

    pub(super) fn header(&self) -> pb::ResponseHeader {
        header(self.lock().revision)
    }

    pub(super) fn range(&self, request: &pb::RangeRequest) -> Result<pb::RangeResponse, Status> {
        let inner = self.lock();
        let at = if request.revision > 0 { request.revision } else { inner.revision };
        if at < inner.compacted {
            return Err(compacted());
        }
        if at > inner.revision {
            return Err(Status::out_of_range("etcdserver: mvcc: required revision is a future revision"));
        }
        let alive = |(_, versions): (&Vec<u8>, &Vec<(i64, Option<pb::KeyValue>)>)| {
            versions.iter().rev().find(|(revision, _)| *revision <= at)?.1.clone()
        };
        let mut kvs: Vec<_> =
            inner.keys.range(bounds(&request.key, &request.range_end)).filter_map(alive).collect();
        let count = kvs.len();
        if request.sort_order() == pb::range_request::SortOrder::Descend {
            kvs.reverse();
        }
        if request.limit > 0 {
            kvs.truncate(usize::try_from(request.limit).unwrap_or(usize::MAX));
        }
        let more = kvs.len() < count;
        if request.count_only {
            kvs.clear();
        }
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        Ok(pb::RangeResponse { header: Some(header(inner.revision)), kvs, more, count })
    }

    pub(super) fn txn(&self, request: &pb::TxnRequest) -> Result<pb::TxnResponse, Status> {
        use pb::request_op::Request;
        use pb::response_op::Response;
        let inner = &mut *self.lock();
        let succeeded =
            request.compare.iter().map(|compare| inner.holds(compare)).collect::<Result<Vec<_>, _>>()?;
        let succeeded = succeeded.into_iter().all(|holds| holds);
        let ops = if succeeded { &request.success } else { &request.failure };
        for op in ops {
            if let Some(Request::RequestPut(put)) = &op.request
                && put.lease != 0
                && !inner.leases.contains_key(&put.lease)
            {
                return Err(no_lease());
            }
        }
        let mut write = Write::begin(inner);
        let mut responses = Vec::new();
        for op in ops {
            let response = match &op.request {
                Some(Request::RequestPut(put)) => {
                    write.put(put);
                    Response::ResponsePut(pb::PutResponse { header: None })
                }
                Some(Request::RequestDeleteRange(delete)) => {
                    let deleted = write.delete_range(&delete.key, &delete.range_end);
                    Response::ResponseDeleteRange(pb::DeleteRangeResponse { header: None, deleted })
                }
                Some(Request::RequestRange(_)) | None => {
                    return Err(Status::unimplemented("the fake etcd reads in no transaction"));
                }
            };
            responses.push(pb::ResponseOp { response: Some(response) });
        }
        let revision = write.end();
        self.revision.send_replace(revision);
        Ok(pb::TxnResponse { header: Some(header(revision)), succeeded, responses })
    }

    /// The changes from a revision on, each revision whole.
    ///
    /// # Errors
    /// Where it is compacted to, when the revision is older than that.
    pub(super) fn events(&self, from: i64, key: &[u8], end: &[u8]) -> Result<Events, i64> {
        let inner = self.lock();
        // The revision of the compaction itself is still there, older ones are not.
        if from > 0 && from < inner.compacted {
            return Err(inner.compacted);
        }
        let inside = |event: &&pb::Event| {
            let name = event.kv.as_ref().map_or(&[][..], |kv| &kv.key);
            if end.is_empty() { name == key } else { name >= key && (end == [0] || name < end) }
        };
        let revisions = inner.log.range(from.max(1)..).filter_map(|(_, events)| {
            let events: Vec<_> = events.iter().filter(inside).cloned().collect();
            (!events.is_empty()).then_some(events)
        });
        Ok(Events { through: inner.revision, revisions: revisions.collect() })
    }

    pub(super) fn grant(&self, ttl: Duration, now: Duration) -> i64 {
        let mut inner = self.lock();
        inner.granted += 1;
        let id = 0x6000_0000 + inner.granted;
        inner.leases.insert(id, Lease { ttl, until: now + ttl, keys: BTreeSet::new() });
        id
    }

    /// The lease's time to live, from now on again; none: there is no such lease.
    pub(super) fn keep_alive(&self, id: i64, now: Duration) -> Option<Duration> {
        let mut inner = self.lock();
        let lease = inner.leases.get_mut(&id)?;
        lease.until = now + lease.ttl;
        Some(lease.ttl)
    }

    pub(super) fn revoke(&self, id: i64) -> Result<(), Status> {
        let inner = &mut *self.lock();
        let lease = inner.leases.remove(&id).ok_or_else(no_lease)?;
        let mut write = Write::begin(inner);
        for key in &lease.keys {
            write.delete(key);
        }
        let revision = write.end();
        self.revision.send_replace(revision);
        Ok(())
    }

    /// Ends the leases whose time is over.
    pub(super) fn expire(&self, now: Duration) {
        let over: Vec<i64> = {
            let inner = self.lock();
            inner.leases.iter().filter(|(_, lease)| lease.until <= now).map(|(id, _)| *id).collect()
        };
        for id in over {
            tracing::debug!(lease = id, "lease ran out");
            // Nobody else is there who could have revoked it.
            let _ = self.revoke(id);
        }
    }

    /// A new leader gives every lease its whole time once more.
    pub(super) fn lead(&self, now: Duration) {
        for lease in self.lock().leases.values_mut() {
            lease.until = now + lease.ttl;
        }
    }
}

impl Inner {
    fn newest(&self, key: &[u8]) -> Option<&pb::KeyValue> {
        self.keys.get(key)?.last()?.1.as_ref()
    }

    fn holds(&self, compare: &pb::Compare) -> Result<bool, Status> {
        use pb::compare::{CompareResult, TargetUnion};
        let found = self.newest(&compare.key);
        let (found, wanted) = match &compare.target_union {
            Some(TargetUnion::CreateRevision(wanted)) => (found.map_or(0, |kv| kv.create_revision), *wanted),
            Some(TargetUnion::ModRevision(wanted)) => (found.map_or(0, |kv| kv.mod_revision), *wanted),
            Some(TargetUnion::Version(wanted)) => (found.map_or(0, |kv| kv.version), *wanted),
            None => return Err(Status::unimplemented("the fake etcd doesn't compare that")),
        };
        Ok(match compare.result() {
            CompareResult::Equal => found == wanted,
            CompareResult::NotEqual => found != wanted,
            CompareResult::Greater => found > wanted,
            CompareResult::Less => found < wanted,
        })
    }
}

impl<'a> Write<'a> {
    fn begin(inner: &'a mut Inner) -> Self {
        Self { revision: inner.revision + 1, inner, events: Vec::new() }
    }

    fn put(&mut self, put: &pb::PutRequest) {
        let before = self.inner.newest(&put.key);
        let kv = pb::KeyValue {
            key: put.key.clone(),
            create_revision: before.map_or(self.revision, |kv| kv.create_revision),
            mod_revision: self.revision,
            version: before.map_or(1, |kv| kv.version + 1),
            value: put.value.clone(),
            lease: put.lease,
        };
        let held_by = before.map_or(0, |kv| kv.lease);
        self.release(held_by, &put.key);
        if let Some(lease) = self.inner.leases.get_mut(&put.lease) {
            lease.keys.insert(put.key.clone());
        }
        self.record(pb::event::EventType::Put, kv);
    }

    fn delete_range(&mut self, key: &[u8], end: &[u8]) -> i64 {
        let keys: Vec<_> = self.inner.keys.range(bounds(key, end)).map(|(key, _)| key.clone()).collect();
        keys.into_iter().map(|key| i64::from(self.delete(&key))).sum()
    }

    fn delete(&mut self, key: &[u8]) -> bool {
        let Some(lease) = self.inner.newest(key).map(|kv| kv.lease) else { return false };
        self.release(lease, key);
        let kv = pb::KeyValue { key: key.to_vec(), mod_revision: self.revision, ..Default::default() };
        self.record(pb::event::EventType::Delete, kv);
        true
    }

    fn release(&mut self, lease: i64, key: &[u8]) {
        if let Some(lease) = self.inner.leases.get_mut(&lease) {
            lease.keys.remove(key);
        }
    }

    fn record(&mut self, kind: pb::event::EventType, kv: pb::KeyValue) {
        let put = kind == pb::event::EventType::Put;
        let versions = self.inner.keys.entry(kv.key.clone()).or_default();
        versions.push((self.revision, put.then(|| kv.clone())));
        self.events.push(pb::Event { r#type: kind.into(), kv: Some(kv) });
    }

    /// The newest revision; the one before, if nothing was changed.
    fn end(self) -> i64 {
        if !self.events.is_empty() {
            self.inner.revision = self.revision;
            self.inner.log.insert(self.revision, self.events);
        }
        self.inner.revision
    }
}

fn bounds(key: &[u8], end: &[u8]) -> (Bound<Vec<u8>>, Bound<Vec<u8>>) {
    let start = Bound::Included(key.to_vec());
    match end {
        [] => (start, Bound::Included(key.to_vec())),
        [0] => (start, Bound::Unbounded),
        end if end <= key => (Bound::Included(key.to_vec()), Bound::Excluded(key.to_vec())),
        end => (start, Bound::Excluded(end.to_vec())),
    }
}

fn header(revision: i64) -> pb::ResponseHeader {
    pb::ResponseHeader { cluster_id: 1, member_id: 1, revision, raft_term: 1 }
}

fn compacted() -> Status {
    Status::out_of_range("etcdserver: mvcc: required revision has been compacted")
}

fn no_lease() -> Status {
    Status::not_found("etcdserver: requested lease not found")
}
