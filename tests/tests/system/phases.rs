//! The published method of staged import by batch state, point by point (1.1 to 1.7 of it).

use std::sync::Arc;
use tranche_client::v1;
use tranche_client::v1::batch::State;
use tranche_client::v1::decision::{Outcome, Reason};
use tranche_proto::v1::range_record::Phase;
use tranche_tests::cluster::{batch_for, batch_into, in_ranges_of, key, tasks};
use tranche_tests::{Cluster, Gate, Library, Seen, eventually};
use tranche_worker::handlers::Object;

fn phases(seen: &[Seen], batch: &str) -> Vec<&'static str> {
    let mut phases: Vec<_> = seen.iter().filter(|seen| seen.batch == batch).map(|seen| seen.phase).collect();
    phases.dedup();
    phases
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn origin_1_1_phase_by_state_the_same_worker_stages_commits_and_rolls_back() {
    let cluster = Cluster::start().await;
    let gate = Gate::new("gate");
    let _worker = cluster.attach("w1", 1, vec![gate.clone()]).await;

    let committed = cluster.submit(in_ranges_of(5, batch_for("gate")), tasks(15)).await;
    gate.wait_staging(1).await;
    assert_eq!(cluster.get(&committed).await.state(), State::Importing);
    gate.open();
    cluster.wait_state(&committed, State::Committed).await;
    cluster.wait_swept(&committed).await;
    assert_eq!(gate.seen_of("stage").len(), 3);
    assert_eq!(gate.seen_of("commit").len(), 3);
    let asked = phases(&gate.seen(), &committed);
    let work: Vec<_> = asked.into_iter().filter(|phase| *phase != "leave").collect();
    assert_eq!(work, ["stage", "commit", "publish", "sweep"]);

    gate.close();
    let revoked = cluster.submit(in_ranges_of(5, batch_for("gate")), tasks(15)).await;
    gate.wait_staging(1).await;
    gate.pass(1);
    gate.until("the second range is staged", |gate| (gate.seen_of("stage").len() == 5).then_some(())).await;
    cluster.client().cancel(&revoked, "me", "").await.unwrap();
    let ended = cluster.wait_state(&revoked, State::RolledBack).await;
    let asked = phases(&gate.seen(), &revoked);
    let work: Vec<_> = asked.into_iter().filter(|phase| *phase != "leave").collect();
    assert_eq!(work, ["stage", "rollback", "sweep"]);
    let (staged, rolled_back) = (gate.seen_of("stage"), gate.seen_of("rollback"));
    let own = |seen: &&Seen| staged.iter().any(|stage| stage.token == seen.token);
    assert_eq!(
        rolled_back.iter().filter(|seen| !own(seen)).count(),
        2,
        "what was staged, and what was leased"
    );
    assert_eq!(
        rolled_back.iter().filter(own).count(),
        1,
        "the worker removes what it was stopped at by itself"
    );
    assert_eq!(ended.counters.unwrap().rolled_back, 10);
    assert_eq!(
        cluster.assert_invariants(&committed).await.states(),
        [State::Importing, State::Committing, State::Committed]
    );
    assert_eq!(
        cluster.assert_invariants(&revoked).await.states(),
        [State::Importing, State::RollingBack, State::RolledBack]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn origin_1_2_second_look_a_worker_with_nothing_more_to_see_leaves_while_others_still_work() {
    let cluster = Cluster::start().await;
    let (slow, free) = (Gate::new("gate"), Gate::new("gate"));
    let _slow = cluster.attach("slow", 1, vec![slow.clone()]).await;
    let batch = cluster.create(in_ranges_of(1, batch_for("gate"))).await;
    cluster.append(&batch, 1, tasks(2)).await;
    slow.wait_staging(1).await;
    let _free = cluster.attach("free", 1, vec![free.clone()]).await;
    let lease = free.wait_staging(1).await.remove(0);
    assert_eq!((lease.range.first, lease.range.last), (2, 2));
    cluster.seal(&batch).await;
    free.pass(1);

    let left = |gate: &Gate| (!gate.seen_of("leave").is_empty()).then_some(());
    free.until("all tasks are handed out: the free worker leaves", left).await;
    assert_eq!(cluster.get(&batch).await.state(), State::Importing, "the other one still works");
    assert!(left(&slow).is_none());

    // It is free for others.
    let other = cluster.submit(batch_for("gate"), tasks(1)).await;
    free.open();
    cluster.wait_state(&other, State::Committed).await;
    assert_eq!(slow.seen_of("stage").len(), 1, "the slow worker still has nothing but its first lease");
    slow.open();
    cluster.wait_state(&batch, State::Committed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn origin_1_3_only_what_was_imported_successfully_becomes_final() {
    let mut cluster = Cluster::start().await;
    let library = Library::with_files(&cluster.data(), "library", 40);
    let all = library.keys();
    let (missing, present): (Vec<_>, Vec<_>) = all.iter().cloned().enumerate().partition(|(n, _)| n % 9 == 4);
    let tasks = library.tasks();
    for (_, key) in &missing {
        std::fs::remove_file(library.source.join(key)).unwrap();
    }
    let gate = Gate::behind(Arc::new(Object::new([cluster.data()])));
    let worker = cluster.attach("w1", 2, vec![gate.clone()]).await;
    let batch = cluster.submit(in_ranges_of(20, batch_into(library.target())), tasks).await;

    gate.wait_staging(2).await;
    library.assert_untouched();
    assert!(library.staged().len() > present.len(), "each file, and an index for each range");
    gate.open();
    let done = cluster.wait_state(&batch, State::Committed).await;
    let counters = done.counters.unwrap();
    assert_eq!((present.len(), missing.len()), (36, 4));
    let expected = (36, 4, 36);
    assert_eq!((counters.staged, counters.failed, counters.committed), expected);
    library.assert_exactly(present.iter().map(|(_, key)| key));
    let failures = cluster.failures(&batch).await;
    let failed: Vec<_> = failures.iter().map(|f| (f.key.as_str(), f.code.as_str())).collect();
    let expected: Vec<_> = missing.iter().map(|(_, key)| (key.as_str(), "NOT_FOUND")).collect();
    assert_eq!(failed, expected);
    assert!(
        failures.iter().zip(&missing).all(|(f, (index, _))| f.sequence.cast_unsigned() as usize == index + 1)
    );
    cluster.wait_swept(&batch).await;
    library.assert_no_staging_left();
    cluster.assert_invariants(&batch).await;
    worker.drain().await;
    // The list outlives the workers and the coordinator.
    cluster.restart(0).await;
    assert_eq!(cluster.failures(&batch).await, failures);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn origin_1_4_revoke_during_import_tells_workers_at_once_and_clears() {
    let mut cluster = Cluster::start().await;
    let library = Library::with_files(&cluster.data(), "library", 60);
    let gates = [0, 1].map(|_| Gate::behind(Arc::new(Object::new([cluster.data()]))));
    let _w1 = cluster.attach("w1", 2, vec![gates[0].clone()]).await;
    let _w2 = cluster.attach("w2", 2, vec![gates[1].clone()]).await;
    let batch = cluster.submit(in_ranges_of(5, batch_into(library.target())), library.tasks()).await;
    for gate in &gates {
        gate.wait_staging(2).await;
    }
    // One is reported, four more are staged and not reported, the rest was never handed out.
    gates[0].pass(1);
    let again = |gate: &Gate| (gate.seen_of("stage").len() == 3 && gate.waiting().len() == 2).then_some(());
    gates[0].until("the next range is staged", again).await;
    eventually("the first range is counted", async || {
        (cluster.get(&batch).await.counters?.staged == 5).then_some(())
    })
    .await;
    assert_eq!(library.staged().keys().filter(|path| path.contains("/tree/")).count(), 25);
    library.assert_untouched();

    cluster.client().cancel(&batch, "the operator", "wrong folder").await.unwrap();

    // Nobody opened the gates: the notice alone ends the staging.
    for gate in &gates {
        gate.until("both leases are cancelled", |gate| (gate.cancelled() == 2).then_some(())).await;
    }
    let ended = cluster.wait_state(&batch, State::RolledBack).await;
    library.assert_untouched();
    library.assert_no_staging_left();
    let decision = ended.decision.unwrap();
    assert_eq!((decision.outcome(), decision.reason()), (Outcome::Rollback, Reason::Cancelled));
    assert_eq!((decision.actor.as_str(), decision.message.as_str()), ("the operator", "wrong folder"));
    assert_eq!(decision.cutoff, 25);
    assert_eq!(ended.counters.unwrap().rolled_back, 25);
    assert_eq!(
        gates.iter().map(|gate| gate.seen_of("stage").len()).sum::<usize>(),
        5,
        "none was begun after"
    );
    assert!(gates.iter().all(|gate| gate.seen_of("commit").is_empty()));
    cluster.assert_invariants(&batch).await;

    // The same folder can be imported after all, by a process.
    cluster.worker("w3", 2).await;
    for gate in &gates {
        gate.open();
    }
    let batch = cluster.submit(batch_into(library.target()), library.tasks()).await;
    cluster.wait_state(&batch, State::Committed).await;
    library.assert_exactly(library.keys());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn origin_1_5_workers_end_with_the_batch_and_hold_nothing_of_it() {
    let cluster = Cluster::start().await;
    let gates = [Gate::new("gate"), Gate::new("gate")];
    let _w1 = cluster.attach("w1", 2, vec![gates[0].clone()]).await;
    let _w2 = cluster.attach("w2", 2, vec![gates[1].clone()]).await;
    let batch = || cluster.submit(in_ranges_of(3, batch_for("gate")), tasks(12));
    for end in [State::Committed, State::RolledBack] {
        for gate in &gates {
            gate.close();
        }
        let batch = batch().await;
        for gate in &gates {
            gate.wait_staging(2).await;
        }
        if end == State::Committed {
            for gate in &gates {
                gate.open();
            }
        } else {
            cluster.client().cancel(&batch, "", "").await.unwrap();
        }
        cluster.wait_state(&batch, end).await;
        cluster.wait_swept(&batch).await;
        for gate in &gates {
            let left = |gate: &Gate| {
                gate.seen().iter().any(|s| s.batch == batch && s.phase == "leave").then_some(())
            };
            gate.until("the worker leaves", left).await;
        }
        eventually("no worker holds a lease", async || {
            use futures::TryStreamExt as _;
            let workers: Vec<v1::Worker> = cluster.client().workers().try_collect().await.unwrap();
            let idle = workers.len() == 2 && workers.iter().all(|w| w.leases == 0 && w.free_credit == 2);
            idle.then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn origin_1_6_counters_drive_the_state_in_the_transaction_that_completes_them() {
    let mut cluster = Cluster::start().await;
    cluster.workers(3, 2).await;
    let noop = |params: &[(&str, &str)]| {
        let params = params.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        in_ranges_of(20, batch_into(v1::Target { handler: "noop".into(), params }))
    };
    let committed = cluster.submit(noop(&[("fail_every", "7")]), tasks(500)).await;
    cluster.wait_state(&committed, State::Committed).await;
    cluster.wait_swept(&committed).await;
    let history = cluster.assert_invariants(&committed).await;

    // First to second: with the very report that completes the count, and not before.
    let decided = history.snapshots.iter().position(|s| s.decision.is_some()).unwrap();
    let (before, at) = (&history.snapshots[decided - 1], &history.snapshots[decided]);
    let processed = |s: &tranche_tests::Snapshot| s.state.as_ref().map_or(0, |s| s.staged + s.failed);
    assert!(processed(before) < 500, "not all were processed before");
    assert_eq!(processed(at), 500);
    assert_eq!(at.state(), State::Committing);
    let changed = |part: &str| at.changed.iter().any(|name| name.starts_with(part));
    assert!(changed("decisions/") && changed("states/") && changed("ranges/"), "{:?}", at.changed);
    assert_eq!(at.decision.as_ref().unwrap().reason(), Reason::AllAccounted);

    // Second to fourth: once every range is final.
    let ended = history.snapshots.iter().find(|s| s.state() == State::Committed).unwrap();
    let final_now = |range: &v1::RangeRecord| range.phase() == Phase::Committed || range.winners.is_empty();
    assert!(ended.ranges.values().all(final_now));
    assert_eq!(ended.state.as_ref().unwrap().committed, 500 - 500 / 7);
    assert!(ended.state.as_ref().unwrap().published);

    // Third to fifth: once every range is rolled back.
    let gate = Gate::new("gate");
    let _worker = cluster.attach("gate", 3, vec![gate.clone()]).await;
    let revoked = cluster.submit(in_ranges_of(20, batch_for("gate")), tasks(500)).await;
    gate.wait_staging(3).await;
    cluster.client().cancel(&revoked, "", "").await.unwrap();
    cluster.wait_state(&revoked, State::RolledBack).await;
    let history = cluster.history().await.batch(&key(&revoked));
    tranche_tests::invariants::check(&history);
    let ended = history.snapshots.iter().find(|s| s.state() == State::RolledBack).unwrap();
    assert!(ended.ranges.values().all(|range| range.phase() == Phase::RolledBack));
    assert_eq!(ended.state.as_ref().unwrap().rolled_back, 60);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn origin_1_7_tasks_made_from_files_are_queued_and_taken_by_a_pool_of_workers() {
    let mut cluster = Cluster::start().await;
    let library = Library::with_files(&cluster.data(), "library", 120);
    cluster.workers(3, 2).await;
    let batch = cluster.submit(in_ranges_of(4, batch_into(library.target())), library.tasks()).await;
    let done = cluster.wait_state(&batch, State::Committed).await;
    assert_eq!(done.counters.unwrap().committed, 120);
    library.assert_exactly(library.keys());
    cluster.wait_swept(&batch).await;
    library.assert_no_staging_left();
    let history = cluster.assert_invariants(&batch).await;
    let workers: std::collections::BTreeSet<_> =
        history.first_leases().into_iter().map(|lease| lease.worker).collect();
    assert_eq!(workers.len(), 3, "{workers:?}");
}
