//! What must hold at the end of a run.

use crate::client::Ended;
use crate::cluster::Cluster;
use crate::hosts::{PREFIX, World};
use crate::plan::{BatchPlan, Plan};
use crate::stats::Numbers;
use bytes::Bytes;
use prost::Message as _;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::PoisonError;
use tranche_coordinator::store::keys::{self, BatchKey};
use tranche_proto::v1;
use tranche_proto::v1::batch::State;
use tranche_tests::{History, invariants};

/// The states of all batches, as etcd has them.
pub fn states(world: &World) -> Vec<(String, v1::StateRecord)> {
    let values = world.data.values(&format!("{PREFIX}{}", keys::STATES));
    values
        .into_iter()
        .map(|(tail, value)| (tail, v1::StateRecord::decode(value).unwrap_or_default()))
        .collect()
}

/// Whether every batch ended and was swept, and nothing is staged.
pub fn settled(world: &World) -> bool {
    states(world).iter().all(|(_, state)| state.swept) && world.library.staged() == 0
}

/// The hosts that own batches.
pub fn owners(world: &World) -> Vec<String> {
    let locks = world.data.values(&format!("{PREFIX}{}", keys::LOCKS));
    let host = |value: Bytes| {
        let id = v1::LockRecord::decode(value).ok()?.coordinator;
        Some(id.split_once('-')?.1.to_owned())
    };
    locks.into_iter().filter_map(|(_, value)| host(value)).collect()
}

/// The decisions of all batches.
pub fn decided(world: &World) -> Vec<v1::DecisionRecord> {
    let decisions = world.data.values(&format!("{PREFIX}{}", keys::DECISIONS));
    decisions.into_iter().filter_map(|(_, value)| v1::DecisionRecord::decode(value).ok()).collect()
}

/// Checks all that a run left.
///
/// # Errors
/// What isn't right.
///
/// # Panics
/// When an invariant doesn't hold.
pub fn run(plan: &Plan, cluster: &Cluster) -> Result<Numbers, String> {
    let mut numbers = Numbers::new(plan, cluster.sim.elapsed());
    let ends = cluster.ends.lock().unwrap_or_else(PoisonError::into_inner);
    for (place, end) in ends.iter() {
        batch(&cluster.world, &plan.batches[*place], end.as_ref().map_err(Clone::clone)?, &mut numbers)?;
    }
    all(&cluster.world, &mut numbers)?;
    Ok(numbers)
}

/// What isn't, for people.
pub fn unsettled(world: &World) -> String {
    let open: Vec<_> = states(world).into_iter().filter(|(_, state)| !state.swept).collect();
    let ranges: usize = open
        .iter()
        .filter_map(|(tail, _)| BatchKey::from_tail(tail))
        .map(|batch| world.data.values(&format!("{PREFIX}{}", keys::ranges(&batch))).len())
        .sum();
    let owners = owners(world);
    format!("staged {}, owners {owners:?}, {ranges} ranges, open {open:?}", world.library.staged())
}

/// Checks one batch: I3, I4, the counters.
///
/// # Errors
/// What isn't right.
pub fn batch(world: &World, plan: &BatchPlan, ended: &Ended, numbers: &mut Numbers) -> Result<(), String> {
    let name = &ended.batch.name;
    let wrong = |what: String| Err(format!("{name}: {what}"));
    let Some(key) = BatchKey::parse(name) else { return wrong("no name".to_owned()) };
    let tail = format!("{}/{}", key.namespace, key.id);
    let Some((_, state)) = states(world).into_iter().find(|(found, _)| *found == tail) else {
        return wrong("etcd doesn't know it".to_owned());
    };
    if state.state() != ended.batch.state() {
        return wrong(format!(
            "etcd says {:?}, the client was told {:?}",
            state.state(),
            ended.batch.state()
        ));
    }
    let seen = world.library.seen(name);
    numbers.tasks += plan.tasks;
    match state.state() {
        State::Committed => {
            numbers.committed += 1;
            if ended.cancelled || !ended.sealed {
                return wrong(format!("committed, cancelled {}, sealed {}", ended.cancelled, ended.sealed));
            }
            let failed: BTreeMap<u64, &str> =
                ended.failed.iter().map(|f| (f.sequence.cast_unsigned(), f.code.as_str())).collect();
            let lost: BTreeSet<u64> =
                failed.iter().filter(|(_, code)| **code == "WORKER_LOST").map(|(n, _)| *n).collect();
            numbers.lost_tasks += lost.len() as u64;
            let expected: BTreeSet<u64> = plan.good().difference(&lost).copied().collect();
            if seen != expected {
                let missing: Vec<_> = expected.difference(&seen).collect();
                let surplus: Vec<_> = seen.difference(&expected).collect();
                return wrong(format!("I4: missing {missing:?}, surplus {surplus:?}"));
            }
            let counted = (state.total, state.staged, state.failed, state.committed);
            let right = (plan.tasks, seen.len() as u64, failed.len() as u64, seen.len() as u64);
            let right =
                (right.0.cast_signed(), right.1.cast_signed(), right.2.cast_signed(), right.3.cast_signed());
            if counted != right || right.1 + right.2 != right.0 {
                return wrong(format!(
                    "counters (total, staged, failed, committed): {counted:?}, not {right:?}"
                ));
            }
            if !world.library.published(name) {
                return wrong("not published".to_owned());
            }
        }
        State::RolledBack => {
            numbers.rolled_back += 1;
            if plan.cancel.is_none() {
                return wrong("rolled back, and nobody cancelled it".to_owned());
            }
            if !seen.is_empty() || world.library.published(name) {
                return wrong(format!("I4: rolled back, and readers see {seen:?}"));
            }
            let committed = state.committed;
            if committed != 0 {
                return wrong(format!("rolled back, and {committed} tasks count as committed"));
            }
        }
        other => return wrong(format!("ended in {other:?}")),
    }
    if ended.cancelled && state.state() != State::RolledBack {
        return wrong("its cancel was acknowledged".to_owned());
    }
    numbers.residue += state.residue_removed.cast_unsigned();
    Ok(())
}

/// Checks the library, and the invariants at every revision that etcd ever had.
///
/// # Errors
/// What isn't right.
///
/// # Panics
/// When an invariant doesn't hold.
pub fn all(world: &World, numbers: &mut Numbers) -> Result<(), String> {
    let breaches = world.library.breaches();
    if !breaches.is_empty() {
        return Err(format!("I4: {}", breaches.join("; ")));
    }
    let staged = world.library.staged();
    if staged > 0 {
        return Err(format!("I4: {staged} tasks are still staged"));
    }
    let mut history = History::default();
    for (revision, changes) in world.data.history(PREFIX) {
        let named = changes.into_iter().map(|(key, value)| {
            (String::from_utf8_lossy(&key).into_owned(), value.map(|value| value.to_vec()))
        });
        let named: Vec<_> = named.collect();
        numbers.revisions += 1;
        let taken = named.iter().filter(|(key, value)| key.starts_with(keys::LOCKS) && value.is_some());
        numbers.locks += taken.count() as u64;
        if !named.is_empty() {
            history.changes.insert(revision.cast_unsigned(), named);
        }
    }
    for (tail, _) in states(world) {
        if let Some(key) = BatchKey::from_tail(&tail) {
            invariants::check(&history.batch(&key));
        }
    }
    let counts = world.library.counts();
    numbers.stages += counts.stages;
    numbers.cancelled_stages += counts.cancelled;
    Ok(())
}
