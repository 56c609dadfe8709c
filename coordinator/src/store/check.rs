//! What both stores refuse before they do anything, so that they refuse the same.

use super::{Compare, MAX_TXN_OPS, StoreError, Txn};
use std::collections::HashSet;

/// The most bytes of keys and values in one transaction: etcd's default request limit, 1.5 MiB. What
/// etcd adds around them can make it refuse a little less; callers stay below
/// [`super::MAX_TXN_BYTES`].
const MAX_REQUEST_BYTES: usize = 1536 * 1024;

/// Refuses a transaction that can't ever work.
pub(super) fn check(txn: &Txn) -> Result<(), StoreError> {
    let rejected = |message: String| Err(StoreError::Rejected(message));
    if txn.compares.len() > MAX_TXN_OPS || txn.ops.len() > MAX_TXN_OPS {
        return rejected(format!(
            "transaction with {} compares and {} ops: at most {MAX_TXN_OPS} of each",
            txn.compares.len(),
            txn.ops.len()
        ));
    }
    let mut bytes = 0;
    for compare in &txn.compares {
        let (Compare::Created(key, _) | Compare::Modified(key, _)) = compare;
        if key.is_empty() {
            return rejected("empty key in a compare".into());
        }
        bytes += key.len();
    }
    let mut keys = HashSet::with_capacity(txn.ops.len());
    for op in &txn.ops {
        if op.key().is_empty() {
            return rejected("empty key in an op".into());
        }
        if !keys.insert(op.key()) {
            return rejected(format!("key {} is changed twice in one transaction", op.key()));
        }
        bytes += op.key().len();
        if let super::Op::Put { value, .. } = op {
            bytes += value.len();
        }
    }
    if bytes > MAX_REQUEST_BYTES {
        return rejected(format!("transaction of {bytes} bytes: at most {MAX_REQUEST_BYTES}"));
    }
    Ok(())
}

/// The key range `[start, end)` of the keys with a prefix; no end: all keys from the start.
pub(super) fn prefix_range(prefix: &[u8]) -> (Vec<u8>, Option<Vec<u8>>) {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return (prefix.to_vec(), Some(end));
        }
    }
    (prefix.to_vec(), None)
}
