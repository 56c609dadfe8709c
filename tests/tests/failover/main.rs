//! Owners and workers that are killed, stopped and asked to leave: the work goes on, nothing is done twice
//! that was done, and nothing that is late counts.

mod fencing;
mod handover;
mod late;
mod slow;
mod takeover;

use std::time::Duration;
use tranche_client::v1::{self, batch::State};
use tranche_tests::cluster::{batch_into, in_ranges_of};
use tranche_tests::{BatchHistory, Cluster, Control, Library};

/// Coordinators' session TTL in these tests; etcd itself makes 2 s of less.
const SESSION_TTL: Duration = Duration::from_secs(2);
/// Leases' TTL in these tests, unless they say otherwise.
const LEASE_TTL: &str = "3s";

/// Two coordinators on etcd with short times to live.
async fn two_coordinators() -> Cluster {
    Cluster::builder().coordinators(2).flag("session-ttl", "2s").flag("lease-ttl", LEASE_TTL).start().await
}

/// A batch into the library, in ranges of so many tasks.
fn spec(library: &Library, range: i32) -> v1::Batch {
    in_ranges_of(range, v1::Batch { max_attempts: 10, ..batch_into(library.target()) })
}

fn control(cluster: &Cluster) -> Control {
    Control::new(cluster.dir().join("control"))
}

/// The batch ended as it should, every file is there or none is, and nothing is left over.
async fn assert_ended(cluster: &Cluster, library: &Library, batch: &str, state: State) -> BatchHistory {
    let ended = cluster.wait_swept(batch).await;
    assert_eq!(ended.state(), state, "{ended:#?}");
    match state {
        State::Committed => library.assert_exactly(library.keys()),
        _ => library.assert_untouched(),
    }
    library.assert_no_staging_left();
    cluster.assert_invariants(batch).await
}

/// How many staging leases there ever were of each range, at most.
fn most_attempts(history: &BatchHistory) -> usize {
    let mut tokens = std::collections::BTreeMap::<i64, std::collections::BTreeSet<(u64, u64)>>::new();
    for range in history.snapshots.iter().flat_map(|snapshot| snapshot.ranges.values()) {
        if let Some(token) = range.lease.as_ref().and_then(|lease| lease.token) {
            tokens.entry(range.first).or_default().insert((token.epoch, token.counter));
        }
    }
    tokens.values().map(std::collections::BTreeSet::len).max().unwrap_or(0)
}
