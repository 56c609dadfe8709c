//! A task that kills its worker, and a worker that is much slower than the others.

use crate::{assert_ended, control, most_attempts, spec};
use std::time::{Duration, Instant};
use tranche_client::v1::{self, batch::State};
use tranche_tests::cluster::batch_into;
use tranche_tests::{Cluster, Library, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_kills_its_worker_is_found_among_its_neighbours() {
    let mut cluster =
        Cluster::builder().flag("lease-ttl", "500ms").flag("late-sweep-after", "0s").start().await;
    let library = Library::with_files(&cluster.data(), "lib", 32);
    let control = control(&cluster);
    let keys = library.keys();
    let poison = keys[13].clone();
    control.poison(&poison);
    for worker in ["w1", "w2"] {
        cluster.held_worker(worker, 1, &control).await;
    }
    let spec = v1::Batch {
        range_bounds: Some(v1::RangeBounds { min_tasks: 16, max_tasks: 16 }),
        max_attempts: 2,
        ..batch_into(library.target())
    };
    let batch = cluster.submit(spec, library.tasks()).await;
    // As Kubernetes does: a worker that died is started again.
    let mut deaths = 0;
    eventually("the batch ends", async || {
        let ended_already = cluster.get(&batch).await.end_time.is_some();
        for worker in ["w1", "w2"] {
            if cluster.worker_process(worker).has_ended().is_some() {
                deaths += 1;
                cluster.begin_held_worker(worker, 1, &control);
            }
        }
        Some(()).filter(|()| ended_already)
    })
    .await;
    let ended = cluster.wait_swept(&batch).await;
    assert_eq!(ended.state(), State::Committed);
    let failures = cluster.failures(&batch).await;
    let failed: Vec<_> = failures.iter().map(|f| (f.key.as_str(), f.code.as_str())).collect();
    assert_eq!(failed, [(poison.as_str(), "WORKER_LOST")]);
    library.assert_exactly(keys.iter().filter(|key| **key != poison));
    library.assert_no_staging_left();
    // max_attempts + log2 of the range: 2 for the range of 16, then one for each halving.
    assert!((3..=7).contains(&deaths), "{deaths} workers died");
    cluster.assert_invariants(&batch).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_fifty_times_slower_doesnt_hold_the_batch_up() {
    let mut cluster = Cluster::builder()
        .coordinators(2)
        .flag("session-ttl", "2s")
        .flag("lease-ttl", "10s")
        .flag("backup-after", "500ms")
        .flag("late-sweep-after", "0s")
        .start()
        .await;
    let library = Library::with_files(&cluster.data(), "lib", 60);
    let control = control(&cluster);
    let (fast, slow) = (Duration::from_millis(20), Duration::from_secs(1));
    for worker in ["fast-1", "fast-2", "slow"] {
        control.slow(worker, if worker == "slow" { slow } else { fast });
        cluster.held_worker(worker, 1, &control).await;
    }
    let begun = Instant::now();
    // The slow one would need 20 s for one range.
    let batch = cluster.submit(spec(&library, 20), library.tasks()).await;
    cluster.wait_state(&batch, State::Committed).await;
    let took = begun.elapsed();
    eprintln!("60 tasks, one of three workers 50 times slower: {took:?}");
    assert!(took < slow * 20, "{took:?}: it was waited for");
    let history = assert_ended(&cluster, &library, &batch, State::Committed).await;
    let backups = history.snapshots.iter().flat_map(|s| s.ranges.values()).filter(|r| r.backup.is_some());
    let workers: std::collections::BTreeSet<_> =
        backups.map(|range| range.backup.clone().expect("filtered").worker).collect();
    assert!(!workers.is_empty() && !workers.contains("slow"), "backups at {workers:?}");
    let staged_by: Vec<_> = history
        .snapshots
        .iter()
        .flat_map(|s| s.ranges.values())
        .flat_map(|range| range.winners.iter().map(|winner| winner.worker.clone()))
        .collect();
    assert!(!staged_by.contains(&"slow".to_owned()), "the first report counts");
    assert_eq!(most_attempts(&history), 1, "the first lease was no loss");
}
