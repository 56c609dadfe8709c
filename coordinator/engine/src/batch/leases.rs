//! The leases that are out, in order of their tokens, and found by worker too: what one worker says costs what
//! it holds, however many others there are.

use super::lease::LiveLease;
use super::looks;
use crate::Phase;
use crate::ids::{Token, WorkerKey};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Index;

#[derive(Debug, Default)]
pub(super) struct Leases {
    all: BTreeMap<Token, LiveLease>,
    by_worker: HashMap<WorkerKey, BTreeSet<Token>>,
    staging: usize,
    finishing: usize,
    closing: usize,
}

impl Index<&Token> for Leases {
    type Output = LiveLease;

    fn index(&self, token: &Token) -> &LiveLease {
        &self.all[token]
    }
}

impl Leases {
    pub(super) fn get(&self, token: &Token) -> Option<&LiveLease> {
        self.all.get(token)
    }

    pub(super) fn contains_key(&self, token: &Token) -> bool {
        self.all.contains_key(token)
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// All, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Token, &LiveLease)> {
        self.all.iter().map(|(token, lease)| (*token, looks::at(lease)))
    }

    pub(super) fn insert(&mut self, token: Token, lease: LiveLease) {
        self.remove(&token);
        *self.count(lease.phase) += 1;
        self.by_worker.entry(lease.worker.clone()).or_default().insert(token);
        self.all.insert(token, lease);
    }

    pub(super) fn remove(&mut self, token: &Token) -> Option<LiveLease> {
        let lease = self.all.remove(token)?;
        *self.count(lease.phase) -= 1;
        if let Some(held) = self.by_worker.get_mut(&lease.worker) {
            held.remove(token);
            if held.is_empty() {
                self.by_worker.remove(&lease.worker);
            }
        }
        Some(lease)
    }

    /// Of a lease that is out its times may change; whose it is, and what it asks, never do.
    pub(super) fn times(&mut self, token: &Token) -> Option<&mut LiveLease> {
        self.all.get_mut(token)
    }

    /// What a worker holds, in order.
    pub(super) fn of(&self, worker: &WorkerKey) -> impl Iterator<Item = (Token, &LiveLease)> {
        self.by_worker.get(worker).into_iter().flatten().map(|token| (*token, looks::at(&self.all[token])))
    }

    /// Who holds any, in no order.
    pub(super) fn holders(&self) -> impl Iterator<Item = &WorkerKey> {
        self.by_worker.keys()
    }

    /// How many workers hold any.
    pub(super) fn holders_len(&self) -> usize {
        self.by_worker.len()
    }

    pub(super) fn holds_any(&self, worker: &WorkerKey) -> bool {
        self.by_worker.contains_key(worker)
    }

    /// How many are out for STAGE.
    pub(super) fn staging(&self) -> usize {
        self.staging
    }

    /// How many are out for COMMIT and ROLLBACK.
    pub(super) fn finishing(&self) -> usize {
        self.finishing
    }

    fn count(&mut self, phase: Phase) -> &mut usize {
        match phase {
            Phase::Stage => &mut self.staging,
            Phase::Commit | Phase::Rollback => &mut self.finishing,
            Phase::Publish | Phase::Sweep => &mut self.closing,
        }
    }
}
