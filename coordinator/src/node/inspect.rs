//! What operators ask.

use super::{Node, timestamp};
use crate::driver::{Handle, ledger, records};
use crate::error::Error;
use crate::identity::Scope;
use crate::store::keys::{self, BatchKey};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tranche_engine::Phase;
use tranche_proto::v1;

impl Node {
    /// The attached workers that work for the batches of this scope, by id. Of those that work for others, too, what
    /// they hold of others' isn't told.
    pub fn workers(&self, scope: &Scope) -> Vec<v1::Worker> {
        let workers = self.shared.dispatch.sessions(|session| {
            let (leases, free) = match (scope, &session.scope) {
                (Scope::Namespace(asked), Scope::All) => (session.leases_of(asked), 0),
                (Scope::Namespace(asked), Scope::Namespace(own)) if asked != own => return None,
                _ => (session.leases(), session.free_credit()),
            };
            let (attached, seen) = session.times();
            Some(v1::Worker {
                worker: session.worker.id.to_string(),
                incarnation: session.worker.incarnation.to_string(),
                handlers: session.handlers.clone(),
                slots: session.slots,
                labels: session.labels.clone(),
                leases: i32::try_from(leases).unwrap_or(i32::MAX),
                free_credit: i32::try_from(free).unwrap_or(i32::MAX),
                attach_time: timestamp(ms(attached)),
                last_seen_time: timestamp(ms(seen)),
                version: session.version.clone(),
                peer: session.peer.clone(),
                namespace: session.scope.to_string(),
            })
        });
        let mut workers: Vec<_> = workers.into_iter().flatten().collect();
        workers.sort_by(|a, b| a.worker.cmp(&b.worker));
        workers
    }

    /// The coordinators of this store. Figures are those of the batches of this scope; what can't be told apart by
    /// namespace is told to who sees all.
    pub async fn coordinators(&self, scope: &Scope) -> Result<Vec<v1::Coordinator>, Error> {
        let mut all = Vec::new();
        ledger::each(&*self.shared.store, keys::COORDINATORS, |entry| {
            let record = ledger::decode::<v1::CoordinatorRecord>(entry)?.value;
            let id = entry.key.strip_prefix(keys::COORDINATORS).unwrap_or_default();
            all.push(v1::Coordinator {
                coordinator: id.to_owned(),
                endpoint: record.endpoint,
                version: record.version,
                start_time: timestamp(record.start_time_ms),
                ..v1::Coordinator::default()
            });
            Ok(())
        })
        .await?;
        for one in all.iter_mut().filter(|one| one.coordinator == self.shared.id) {
            one.answering = true;
            let owned = self.shared.handles().into_iter().filter(|(key, _)| scope.sees(&key.namespace));
            one.owned_batches = i32::try_from(owned.count()).unwrap_or(i32::MAX);
            if *scope != Scope::All {
                continue;
            }
            let latency = self.shared.dispatch.grant_latency();
            one.store_transactions = self.shared.store.transactions().cast_signed();
            one.grant_latency_p50_us = latency.quantile_us(0.5).cast_signed();
            one.grant_latency_p99_us = latency.quantile_us(0.99).cast_signed();
            one.peak_memory_bytes = peak_memory_bytes();
        }
        Ok(all)
    }

    /// The leases out of one batch, or of all of this scope, by batch and range.
    pub async fn leases(&self, scope: &Scope, batch: Option<&BatchKey>) -> Result<Vec<v1::Lease>, Error> {
        let mut handles: Vec<(BatchKey, Handle)> = self.shared.handles();
        handles.retain(|(key, _)| scope.sees(&key.namespace));
        if let Some(batch) = batch {
            handles.retain(|(key, _)| key == batch);
            if handles.is_empty() {
                // An error if there is no such batch; one that isn't owned here has no leases here.
                self.stored_view(batch).await?;
            }
        }
        let now = self.shared.now();
        let wall = |at: Duration| {
            let from_now = i64::try_from(at.as_millis()).unwrap_or(i64::MAX)
                - i64::try_from(now.at.as_millis()).unwrap_or(i64::MAX);
            timestamp(now.wall_ms + from_now)
        };
        let mut leases = Vec::new();
        for (key, handle) in handles {
            let mut of_batch = handle.leases().await;
            of_batch.sort_by_key(|lease| (lease.run, lease.token));
            leases.extend(of_batch.into_iter().map(|lease| v1::Lease {
                batch: key.to_string(),
                token: Some(records::token_to_proto(lease.token)),
                worker: lease.worker.id.to_string(),
                phase: phase(lease.phase).into(),
                range: Some(records::run_to_proto(lease.run)),
                attempt: lease.attempt.cast_signed(),
                grant_time: wall(lease.granted_at),
                expire_time: wall(lease.expires_at),
            }));
        }
        Ok(leases)
    }
}

fn phase(phase: Phase) -> v1::Phase {
    crate::driver::phase_to_proto(phase)
}

fn ms(time: SystemTime) -> i64 {
    i64::try_from(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()).unwrap_or(i64::MAX)
}

/// Peak resident memory of this process, as Linux counts it; 0 where it isn't known.
fn peak_memory_bytes() -> i64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<i64>().ok());
    kib.unwrap_or(0) * 1024
}
