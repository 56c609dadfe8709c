//! The published method of dealing jobs by a read-sequence lock, point by point (2.1 to 2.4 of it).

use std::collections::BTreeMap;
use tranche_client::v1;
use tranche_client::v1::batch::State;
use tranche_tests::cluster::{batch_for, batch_into, in_ranges_of, tasks};
use tranche_tests::history::FirstLease;
use tranche_tests::{Cluster, Gate};

fn dealt(leases: &[FirstLease]) -> Vec<(u64, u64, &str)> {
    leases.iter().map(|lease| (lease.first, lease.last, lease.worker.as_str())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn origin_2_1_each_task_has_a_number_whatever_gaps_its_own_has() {
    let cluster = Cluster::start().await;
    let gate = Gate::new("gate");
    let _worker = cluster.attach("w1", 1, vec![gate.clone()]).await;
    // The bank's own job numbers: with gaps, unordered, one twice.
    let keys = ["70", "10", "11", "5000000", "", "70", "12"];
    let jobs = keys.map(|key| v1::Task { key: key.into(), payload: format!("job {key}").into() });
    let batch = cluster.submit(in_ranges_of(100, batch_for("gate")), jobs).await;
    let lease = gate.wait_staging(1).await.remove(0);
    let seen: Vec<_> = lease.tasks.iter().map(|task| (task.sequence, task.key)).collect();
    let expected: Vec<_> = (1..).zip(keys).collect();
    assert_eq!(seen, expected, "dense, in the order of appending");
    assert!(lease.tasks.iter().all(|task| task.payload == format!("job {}", task.key).as_bytes()));
    gate.open();
    assert_eq!(cluster.wait_state(&batch, State::Committed).await.counters.unwrap().committed, 7);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn origin_2_2_workers_queue_and_queue_again_after_each_range() {
    let cluster = Cluster::start().await;
    let batch = cluster.create(in_ranges_of(10, batch_for("noop"))).await;
    cluster.append(&batch, 1, tasks(60)).await;
    let mut gates = Vec::new();
    let mut workers = Vec::new();
    for name in ["a", "b", "c"] {
        let gate = Gate::new("noop");
        workers.push(cluster.attach(name, 1, vec![gate.clone()]).await);
        gate.wait_staging(1).await;
        gates.push(gate);
    }
    // Whoever is done stands in line again: the third, the first, the second.
    for (index, done) in [(2, 2), (0, 2), (1, 2)] {
        gates[index].pass(1);
        gates[index]
            .until("the next range is here", |g| (g.seen_of("stage").len() == done).then_some(()))
            .await;
        gates[index].wait_staging(1).await;
    }
    let history = cluster.assert_invariants(&batch).await;
    assert_eq!(
        dealt(&history.first_leases()),
        [(1, 10, "a"), (11, 20, "b"), (21, 30, "c"), (31, 40, "c"), (41, 50, "a"), (51, 60, "b")]
    );
    for gate in &gates {
        gate.open();
    }
    cluster.seal(&batch).await;
    cluster.wait_state(&batch, State::Committed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn origin_2_3_each_range_starts_right_after_the_cut_off_none_twice_none_skipped() {
    let mut cluster = Cluster::start().await;
    cluster.workers(4, 2).await;
    let noop = batch_into(v1::Target {
        handler: "noop".into(),
        params: [("delay_per_task".into(), "200us".into())].into(),
    });
    let bounds = v1::RangeBounds { min_tasks: 1, max_tasks: 50 };
    let batch = cluster.submit(v1::Batch { range_bounds: Some(bounds), ..noop }, tasks(3000)).await;
    cluster.wait_state(&batch, State::Committed).await;
    let history = cluster.assert_invariants(&batch).await;

    let leases = history.first_leases();
    let mut cutoff = 0;
    for lease in &leases {
        assert_eq!(lease.first, cutoff + 1, "right after the cut-off");
        cutoff = lease.last;
    }
    assert_eq!(cutoff, 3000);
    let workers: std::collections::BTreeSet<_> = leases.iter().map(|lease| &lease.worker).collect();
    assert_eq!(workers.len(), 4, "all of them worked");
    for (before, at) in history.snapshots.iter().zip(history.snapshots.iter().skip(1)) {
        if at.cutoff.is_some() && at.cutoff() > before.cutoff() {
            // The cut-off and the records of what it dealt are one transaction, under the lock.
            let new = leases.iter().filter(|lease| lease.revision == at.revision).count();
            assert!(new > 0, "at {}", at.revision);
            assert!(at.lock.is_some(), "at {}", at.revision);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn origin_2_4_nothing_is_assigned_before_it_is_asked_for_and_the_fast_get_more() {
    let cluster = Cluster::start().await;
    let (fast, slow) = (Gate::new("gate"), Gate::new("gate"));
    let _slow = cluster.attach("slow", 1, vec![slow.clone()]).await;
    let batch = cluster.submit(in_ranges_of(5, batch_for("gate")), tasks(200)).await;
    slow.wait_staging(1).await;
    let history = cluster.assert_invariants(&batch).await;
    assert_eq!(dealt(&history.first_leases()), [(1, 5, "slow")], "one asked, one range is there");
    assert_eq!(cluster.get(&batch).await.counters.unwrap().cutoff, 5);

    let _fast = cluster.attach("fast", 2, vec![fast.clone()]).await;
    fast.wait_staging(2).await;
    let history = cluster.assert_invariants(&batch).await;
    assert_eq!(dealt(&history.first_leases()), [(1, 5, "slow"), (6, 10, "fast"), (11, 15, "fast")]);

    // The fast one never waits for the slow one, who still has its first range at the end.
    fast.open();
    fast.until("the fast worker has done the rest", |g| {
        (g.seen_of("stage").len() == 39 && g.waiting().is_empty()).then_some(())
    })
    .await;
    slow.open();
    cluster.wait_state(&batch, State::Committed).await;
    let mut shares: BTreeMap<String, usize> = BTreeMap::new();
    for lease in cluster.assert_invariants(&batch).await.first_leases() {
        *shares.entry(lease.worker).or_default() += 1;
    }
    assert_eq!(shares, BTreeMap::from([("fast".into(), 39), ("slow".into(), 1)]));
}
