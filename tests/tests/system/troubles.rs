//! Handlers that fail, workers that are lost or paused, and a coordinator's memory.

use std::sync::Arc;
use std::time::Duration;
use tranche_client::v1;
use tranche_client::v1::batch::State;
use tranche_tests::cluster::{batch_for, batch_into, in_ranges_of, tasks};
use tranche_tests::{Cluster, Gate, Library, eventually};
use tranche_worker::handlers::Object;

fn noop(delay_per_task: &str) -> v1::Batch {
    let params = [("delay_per_task".to_owned(), delay_per_task.to_owned())].into();
    batch_into(v1::Target { handler: "noop".into(), params })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_fails_is_tried_until_it_succeeds() {
    let mut cluster = Cluster::start().await;
    let library = Library::with_files(&cluster.data(), "library", 20);
    let gate = Gate::behind(Arc::new(Object::new([cluster.data()])));
    gate.open();
    gate.err(usize::MAX);
    let _worker = cluster.attach("w1", 2, vec![gate.clone()]).await;
    let batch = cluster.submit(in_ranges_of(10, batch_into(library.target())), library.tasks()).await;
    let stuck = eventually("the batch says why it doesn't move", async || {
        Some(cluster.get(&batch).await).filter(|seen| !seen.status_message.is_empty())
    })
    .await;
    assert_eq!(stuck.state(), State::Committing);
    assert!(stuck.status_message.contains("the test wants it so"), "{}", stuck.status_message);
    // The decision stands.
    cluster.client().cancel(&batch, "", "").await.unwrap_err();
    let tries = gate.seen_of("commit").len();
    gate.until("more tries", |g| (g.seen_of("commit").len() > tries + 4).then_some(())).await;
    library.assert_untouched();

    // It outlives the coordinator, too.
    cluster.restart(0).await;
    gate.err(1);
    let done = cluster.wait_state(&batch, State::Committed).await;
    assert_eq!(done.counters.unwrap().committed, 20);
    assert!(done.status_message.is_empty(), "{}", done.status_message);
    library.assert_exactly(library.keys());
    cluster.assert_invariants(&batch).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollback_that_fails_is_tried_until_nothing_is_left() {
    let cluster = Cluster::start().await;
    let library = Library::with_files(&cluster.data(), "library", 20);
    let gate = Gate::behind(Arc::new(Object::new([cluster.data()])));
    let _worker = cluster.attach("w1", 2, vec![gate.clone()]).await;
    let batch = cluster.submit(in_ranges_of(5, batch_into(library.target())), library.tasks()).await;
    gate.wait_staging(2).await;
    gate.err(5);
    cluster.client().cancel(&batch, "", "").await.unwrap();
    cluster.wait_state(&batch, State::RolledBack).await;
    assert_eq!(
        gate.seen_of("rollback").len(),
        9,
        "five failed, two ranges, and two leases that were stopped"
    );
    library.assert_untouched();
    library.assert_no_staging_left();
    cluster.assert_invariants(&batch).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_kills_its_workers_fails_alone() {
    let cluster = Cluster::builder().flag("lease-ttl", "400ms").flag("handlers", "gate").start().await;
    let batch = v1::Batch { max_attempts: 2, ..in_ranges_of(8, batch_for("gate")) };
    let batch = cluster.submit(batch, tasks(16)).await;
    // Worker after worker, each with an id of its own; task 6 is the end of whoever has it.
    for number in 0.. {
        let gate = Gate::new("gate");
        let worker = cluster.attach(&format!("w{number}"), 1, vec![gate.clone()]).await;
        let lost = loop {
            let next = eventually("a lease, or the end", async || {
                let ended = cluster.get(&batch).await.state() == State::Committed;
                gate.waiting().pop().map(Some).or(ended.then_some(None))
            })
            .await;
            match next {
                None => break false,
                Some(lease) if lease.tasks.iter().any(|task| task.sequence == 6) => break true,
                Some(lease) => {
                    gate.pass(1);
                    let gone = |g: &Gate| g.waiting().iter().all(|w| w.token != lease.token).then_some(());
                    gate.until("it passes", gone).await;
                }
            }
        };
        worker.vanish().await;
        if !lost {
            break;
        }
    }
    let failures = cluster.failures(&batch).await;
    let failed: Vec<_> = failures.iter().map(|f| (f.sequence, f.key.as_str(), f.code.as_str())).collect();
    assert_eq!(failed, [(6, "k6", "WORKER_LOST")]);
    let history = cluster.assert_invariants(&batch).await;
    assert_eq!(history.snapshots.last().unwrap().state.as_ref().unwrap().staged, 15);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i6_a_paused_workers_range_goes_to_another_and_its_late_report_counts_nothing() {
    let mut cluster = Cluster::builder().flag("lease-ttl", "500ms").start().await;
    cluster.worker("paused", 1).await;
    let batch = cluster.create(in_ranges_of(10, noop("50ms"))).await;
    cluster.append(&batch, 1, tasks(10)).await;
    eventually("the worker has a lease", async || {
        (cluster.get(&batch).await.counters?.cutoff == 10).then_some(())
    })
    .await;
    cluster.worker_process("paused").stop();
    cluster.seal(&batch).await;
    cluster.worker("other", 1).await;
    let done = cluster.wait_state(&batch, State::Committed).await;
    assert_eq!(done.counters.unwrap().committed, 10);
    cluster.worker_process("paused").cont();
    // It is back when it takes the next batch alone.
    cluster.worker_process("other").kill9();
    let next = cluster.submit(noop("0s"), tasks(5)).await;
    cluster.wait_state(&next, State::Committed).await;
    let history = cluster.assert_invariants(&batch).await;
    let range = &history.decided().unwrap().ranges[&1];
    assert_eq!((range.winners.len(), range.losers.len(), range.losses), (1, 1, 1));
    assert_eq!(range.winners[0].worker, "other");
    assert_eq!(cluster.get(&batch).await.counters, done.counters);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i4_a_worker_that_was_paused_over_a_rollback_leaves_nothing_behind() {
    let mut cluster = Cluster::builder().flag("lease-ttl", "500ms").start().await;
    let library = Library::with_files(&cluster.data(), "library", 600);
    cluster.workers(2, 1).await;
    let batch = cluster.create(in_ranges_of(300, batch_into(library.target()))).await;
    cluster.append(&batch, 1, library.tasks()).await;
    eventually("staging is under way", async || (library.staged().len() > 20).then_some(())).await;
    cluster.worker_process("w1").stop();
    cluster.client().cancel(&batch, "", "").await.unwrap();
    cluster.wait_state(&batch, State::RolledBack).await;
    library.assert_untouched();
    library.assert_no_staging_left();
    cluster.worker_process("w1").cont();
    cluster.worker_process("w2").kill9();
    // What it still did when it woke up is over once it works on the next batch.
    let next = cluster.submit(batch_into(library.target()), library.tasks()).await;
    cluster.wait_state(&next, State::Committed).await;
    cluster.wait_swept(&next).await;
    library.assert_exactly(library.keys());
    library.assert_no_staging_left();
    cluster.assert_invariants(&batch).await;
    cluster.assert_invariants(&next).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_cannot_work_at_all_fails_the_tasks_and_says_why() {
    let mut cluster = Cluster::start().await;
    let library = Library::with_files(&cluster.data(), "library", 10);
    // This worker may not read there: every task fails, with the parameter's name and value.
    cluster.worker_with("w1", 1, &[]).await;
    let elsewhere = tempfile::tempdir().unwrap();
    let library_path = library.library.display().to_string();
    let mut target = library.target();
    target.params.insert("source".into(), elsewhere.path().display().to_string());
    let batch = cluster.submit(batch_into(target), library.tasks()).await;
    let done = cluster.wait_state(&batch, State::Committed).await;
    assert_eq!((done.counters.unwrap().failed, done.counters.unwrap().committed), (10, 0));
    let failures = cluster.failures(&batch).await;
    let named = |f: &v1::TaskFailure| {
        f.code == "INVALID_TARGET"
            && f.message.contains("source")
            && f.message.contains(&elsewhere.path().display().to_string())
    };
    assert!(failures.len() == 10 && failures.iter().all(named), "{failures:#?}");
    library.assert_exactly(Vec::<String>::new());
    assert!(std::fs::exists(library_path).unwrap());
    cluster.assert_invariants(&batch).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i10_a_coordinators_memory_is_bounded_by_leases_not_by_tasks() {
    let mut cluster = Cluster::start().await;
    cluster.workers(4, 2).await;
    let total: i64 = 400_000;
    let tasks = (1..=total).map(|n| v1::Task { key: format!("k{n}"), payload: vec![b'x'; 64].into() });
    let request = v1::CreateBatchRequest { batch: Some(batch_for("noop")), ..Default::default() };
    let submitted = cluster.client().submit(request, tokio_stream::iter(tasks)).await.unwrap();
    let done = cluster.wait_state(&submitted.name, State::Committed).await;
    let counters = done.counters.unwrap();
    assert_eq!((counters.staged, counters.failed, counters.committed), (total, 0, total));
    cluster.wait_swept(&submitted.name).await;
    let peak = cluster.coordinator(0).peak_memory().expect("it runs");
    assert!(peak < 200 * 1024 * 1024, "{peak} bytes");
    eprintln!("peak memory of the coordinator: {} MiB", peak / 1024 / 1024);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_store_does_the_same_and_goes_on_after_a_restart() {
    let mut cluster = Cluster::builder().embedded().start().await;
    let library = Library::with_files(&cluster.data(), "library", 60);
    let gate = Gate::behind(Arc::new(Object::new([cluster.data()])));
    let _worker = cluster.attach("w1", 2, vec![gate.clone()]).await;
    let batch = cluster.submit(in_ranges_of(10, batch_into(library.target())), library.tasks()).await;
    gate.wait_staging(2).await;
    gate.pass(1);
    gate.until("a third range", |g| (g.seen_of("stage").len() == 3).then_some(())).await;
    cluster.restart(0).await;
    gate.open();
    let done = cluster.wait_state(&batch, State::Committed).await;
    assert_eq!(done.counters.unwrap().committed, 60);
    library.assert_exactly(library.keys());
    cluster.wait_swept(&batch).await;
    library.assert_no_staging_left();
    // The worker named its leases when it was back: none was given twice.
    assert_eq!(gate.seen_of("stage").len(), 6);

    gate.close();
    let batch = cluster.submit(in_ranges_of(10, batch_into(library.target())), library.tasks()).await;
    gate.wait_staging(2).await;
    cluster.client().cancel(&batch, "me", "").await.unwrap();
    cluster.restart(0).await;
    cluster.wait_state(&batch, State::RolledBack).await;
    library.assert_exactly(library.keys());
    library.assert_no_staging_left();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_waits_for_workers_and_its_watch_tells_all_that_happens() {
    use futures::StreamExt as _;
    let mut cluster = Cluster::start().await;
    let batch = cluster.submit(in_ranges_of(10, noop("1ms")), tasks(200)).await;
    let watching = tokio::spawn(cluster.client().watch(&batch).map(Result::unwrap).collect::<Vec<_>>());
    cluster.worker("w1", 2).await;
    let seen = tokio::time::timeout(Duration::from_mins(1), watching).await.unwrap().unwrap();
    let mut states: Vec<_> = seen.iter().map(|update| update.batch.as_ref().unwrap().state()).collect();
    states.dedup();
    assert_eq!(states, [State::Importing, State::Committing, State::Committed]);
    let staged: Vec<_> = seen.iter().map(|u| u.batch.as_ref().unwrap().counters.unwrap().staged).collect();
    assert!(staged.is_sorted(), "{staged:?}");
    assert_eq!(staged.last(), Some(&200));
    assert!(seen.iter().any(|update| update.workers == 1 && update.leases > 0));
    let last = seen.last().unwrap();
    assert!(!last.batch.as_ref().unwrap().report_uri.is_empty());
    let phases: Vec<_> = last.phases.iter().map(|p| (p.phase(), p.done, p.total)).collect();
    assert_eq!(phases, [(v1::Phase::Stage, 200, 200), (v1::Phase::Commit, 200, 200)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_worker_gets_no_lease_again_until_it_is_heard() {
    let mut cluster = Cluster::builder().flag("lease-ttl", "500ms").start().await;
    cluster.worker("w1", 4).await;
    let batch = cluster.create(in_ranges_of(1, noop("30ms"))).await;
    cluster.append(&batch, 1, tasks(40)).await;
    eventually("it works", async || (cluster.get(&batch).await.counters?.staged > 3).then_some(())).await;
    // It is the only one. What it held is lost once, and waits.
    cluster.worker_process("w1").stop();
    cluster.seal(&batch).await;
    let history = eventually("its leases are lost", async || {
        let history = cluster.history().await.batch(&tranche_tests::cluster::key(&batch));
        let now = history.snapshots.last()?;
        let lost = now.ranges.values().filter(|range| range.losses > 0).count();
        (lost > 0 && now.ranges.values().all(|range| range.lease.is_none())).then_some(history)
    })
    .await;
    assert!(history.snapshots.last().unwrap().ranges.values().all(|range| range.losses <= 1));
    cluster.worker_process("w1").cont();
    let done = cluster.wait_state(&batch, State::Committed).await;
    assert_eq!((done.counters.unwrap().staged, done.counters.unwrap().failed), (40, 0));
    cluster.assert_invariants(&batch).await;
}
