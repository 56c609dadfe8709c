//! Who decides, and when: approval, limits, deadlines, retries.

use std::sync::Arc;
use tonic::Code;
use tranche_client::v1;
use tranche_client::v1::batch::{CommitMode, State};
use tranche_client::v1::decision::{Outcome, Reason};
use tranche_tests::cluster::{batch_for, batch_into, in_ranges_of, tasks};
use tranche_tests::{Cluster, Gate, Library, eventually};
use tranche_worker::handlers::Object;

fn manual(batch: v1::Batch) -> v1::Batch {
    v1::Batch { commit_mode: CommitMode::Manual.into(), ..batch }
}

fn limited(batch: v1::Batch, limit: v1::FailureLimit) -> v1::Batch {
    v1::Batch { failure_limit: Some(limit), ..batch }
}

fn ends_after(batch: v1::Batch, seconds: i64) -> v1::Batch {
    v1::Batch { deadline: Some(prost_types::Duration { seconds, nanos: 0 }), ..batch }
}

fn noop(fail_every: u64) -> v1::Batch {
    let params = [("fail_every".to_owned(), fail_every.to_string())].into();
    batch_into(v1::Target { handler: "noop".into(), params })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_held_batch_waits_for_its_approval_and_commits() {
    let mut cluster = Cluster::start().await;
    let library = Library::with_files(&cluster.data(), "library", 30);
    cluster.workers(2, 2).await;
    let batch = cluster.submit(manual(batch_into(library.target())), library.tasks()).await;
    let held = cluster.wait_state(&batch, State::Held).await;
    assert_eq!(held.counters.unwrap().staged, 30);
    assert!(held.decision.is_none());
    library.assert_untouched();
    assert!(library.staged().len() >= 30);

    cluster.client().commit(&batch, "the editor").await.unwrap();
    let done = cluster.wait_state(&batch, State::Committed).await;
    let decision = done.decision.unwrap();
    assert_eq!((decision.outcome(), decision.reason()), (Outcome::Commit, Reason::Approved));
    assert_eq!(decision.actor, "the editor");
    library.assert_exactly(library.keys());
    cluster.wait_swept(&batch).await;
    library.assert_no_staging_left();
    let history = cluster.assert_invariants(&batch).await;
    assert_eq!(history.states(), [State::Importing, State::Held, State::Committing, State::Committed]);

    // Decided is decided: once more is no error, the contrary is.
    cluster.client().commit(&batch, "another").await.unwrap();
    let error = cluster.client().cancel(&batch, "another", "").await.unwrap_err();
    assert_eq!(
        (error.code(), error.reason().as_deref()),
        (Code::FailedPrecondition, Some("ALREADY_DECIDED"))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_held_batch_is_cancelled_and_leaves_nothing() {
    let mut cluster = Cluster::start().await;
    let library = Library::with_files(&cluster.data(), "library", 30);
    cluster.workers(2, 2).await;
    let batch = cluster.submit(manual(batch_into(library.target())), library.tasks()).await;
    cluster.wait_state(&batch, State::Held).await;
    cluster.client().cancel(&batch, "the editor", "not these").await.unwrap();
    let done = cluster.wait_state(&batch, State::RolledBack).await;
    assert_eq!(done.decision.unwrap().reason(), Reason::Cancelled);
    assert_eq!(done.counters.unwrap().rolled_back, 30);
    library.assert_untouched();
    library.assert_no_staging_left();
    let history = cluster.assert_invariants(&batch).await;
    assert_eq!(history.states(), [State::Importing, State::Held, State::RollingBack, State::RolledBack]);
    let error = cluster.client().commit(&batch, "another").await.unwrap_err();
    assert_eq!(
        (error.code(), error.reason().as_deref()),
        (Code::FailedPrecondition, Some("ALREADY_DECIDED"))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_needs_approval_cannot_be_approved_before_it_is_held() {
    let cluster = Cluster::start().await;
    let gate = Gate::new("gate");
    let _worker = cluster.attach("w1", 1, vec![gate.clone()]).await;
    let batch = cluster.submit(manual(batch_for("gate")), tasks(3)).await;
    gate.wait_staging(1).await;
    let error = cluster.client().commit(&batch, "too early").await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    assert!(cluster.get(&batch).await.decision.is_none());
    gate.open();
    cluster.wait_state(&batch, State::Held).await;
    cluster.client().commit(&batch, "now").await.unwrap();
    cluster.wait_state(&batch, State::Committed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_failed_task_more_than_allowed_revokes_the_batch() {
    let mut cluster = Cluster::start().await;
    let limit = v1::FailureLimit { max_failed_tasks: Some(4), ..Default::default() };
    let within = cluster.submit(limited(in_ranges_of(10, noop(25)), limit), tasks(100)).await;
    let over = cluster.submit(limited(in_ranges_of(10, noop(20)), limit), tasks(100)).await;
    // Only now, so that none is revoked before it is sealed.
    cluster.workers(2, 2).await;
    let within = cluster.wait_state(&within, State::Committed).await;
    assert_eq!(within.counters.unwrap().failed, 4);
    let ended = cluster.wait_state(&over, State::RolledBack).await;
    let decision = ended.decision.unwrap();
    assert_eq!((decision.outcome(), decision.reason()), (Outcome::Rollback, Reason::FailureLimit));
    assert!(decision.message.contains('5') && decision.message.contains('4'), "{}", decision.message);
    assert_eq!(ended.counters.unwrap().failed, 5);
    let failures = cluster.failures(&over).await;
    assert_eq!(failures.iter().map(|f| f.sequence).collect::<Vec<_>>(), [20, 40, 60, 80, 100]);
    cluster.assert_invariants(&over).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ratio_of_failed_tasks_counts_from_the_minimum_sample_on() {
    let cluster = Cluster::start().await;
    let gate = Gate::new("gate");
    let _worker = cluster.attach("w1", 1, vec![gate.clone()]).await;
    let limit = v1::FailureLimit { max_failed_ratio: Some(0.5), min_sample: 20, ..Default::default() };
    let spec = || limited(in_ranges_of(10, batch_for("gate")), limit);
    let processed = async |batch: &str, tasks: i64| {
        eventually("the tasks are processed", async || {
            let seen = cluster.get(batch).await;
            let counters = seen.counters?;
            (counters.staged + counters.failed >= tasks).then_some(seen)
        })
        .await
    };

    // Ten of ten, which is too small a sample; then ten of twenty, which is just allowed.
    gate.fail(1..=10, "BROKEN");
    let allowed = cluster.submit(spec(), tasks(40)).await;
    gate.pass(1);
    assert_eq!(processed(&allowed, 10).await.state(), State::Importing);
    gate.pass(1);
    assert_eq!(processed(&allowed, 20).await.state(), State::Importing);
    gate.open();
    assert_eq!(cluster.wait_state(&allowed, State::Committed).await.counters.unwrap().failed, 10);

    // Eleven of twenty: revoked, the rest is never handed out.
    gate.close();
    gate.fail(11..=11, "BROKEN");
    let over = cluster.submit(spec(), tasks(400)).await;
    gate.pass(1);
    assert_eq!(processed(&over, 10).await.state(), State::Importing);
    gate.pass(1);
    let ended = cluster.wait_state(&over, State::RolledBack).await;
    assert_eq!(ended.decision.as_ref().unwrap().reason(), Reason::FailureLimit);
    assert!(ended.counters.unwrap().cutoff <= 30, "{ended:#?}");
    cluster.assert_invariants(&over).await;

    // When all are accounted for the share counts, however few there are.
    gate.open();
    let small = cluster.submit(spec(), tasks(11)).await;
    cluster.wait_state(&small, State::RolledBack).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_revokes_what_is_importing_and_what_is_held() {
    let cluster = Cluster::start().await;
    let (gate, open) = (Gate::new("gate"), Gate::new("noop"));
    open.open();
    let _worker = cluster.attach("w1", 1, vec![gate.clone()]).await;
    let _other = cluster.attach("w2", 1, vec![open.clone()]).await;
    let importing = cluster.submit(ends_after(batch_for("gate"), 1), tasks(10)).await;
    let held = cluster.submit(ends_after(manual(batch_for("noop")), 1), tasks(10)).await;
    let empty = cluster.create(ends_after(batch_for("noop"), 1)).await;
    cluster.wait_state(&held, State::Held).await;
    for batch in [&importing, &held, &empty] {
        let ended = cluster.wait_state(batch, State::RolledBack).await;
        assert_eq!(ended.decision.as_ref().unwrap().reason(), Reason::Deadline, "{ended:#?}");
        assert!(ended.decision.unwrap().actor.starts_with("coordinator/"));
        cluster.assert_invariants(batch).await;
    }
    assert_eq!(gate.cancelled(), 1);
    let error = cluster.client().commit(&held, "too late").await.unwrap_err();
    assert_eq!(error.reason().as_deref(), Some("ALREADY_DECIDED"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failed_tasks_of_a_held_batch_are_retried_and_committed() {
    let mut cluster = Cluster::start().await;
    let library = Library::with_files(&cluster.data(), "library", 30);
    let (all, submitted) = (library.keys(), library.tasks());
    let late = library.source.join(&all[17]);
    let bytes = std::fs::read(&late).unwrap();
    std::fs::remove_file(&late).unwrap();
    cluster.workers(2, 2).await;
    let batch = cluster.submit(manual(in_ranges_of(10, batch_into(library.target()))), submitted).await;
    let held = cluster.wait_state(&batch, State::Held).await;
    assert_eq!((held.counters.unwrap().staged, held.counters.unwrap().failed), (29, 1));
    let failure = &cluster.failures(&batch).await[0];
    assert_eq!((failure.sequence, failure.key.as_str(), failure.code.as_str()), (18, &*all[17], "NOT_FOUND"));

    // Nothing has changed: it fails again.
    assert_eq!(cluster.client().retry_failed(&batch).await.unwrap().retried, 1);
    let held = wait_held_again(&cluster, &batch).await;
    assert_eq!(held.counters.unwrap().failed, 1);
    assert_eq!(cluster.failures(&batch).await.len(), 1);

    std::fs::write(&late, bytes).unwrap();
    assert_eq!(cluster.client().retry_failed(&batch).await.unwrap().retried, 1);
    let held = wait_held_again(&cluster, &batch).await;
    assert_eq!((held.counters.unwrap().staged, held.counters.unwrap().failed), (30, 0));
    assert!(cluster.failures(&batch).await.is_empty());
    assert_eq!(cluster.client().retry_failed(&batch).await.unwrap().retried, 0, "there is none any more");

    cluster.client().commit(&batch, "the editor").await.unwrap();
    cluster.wait_state(&batch, State::Committed).await;
    library.assert_exactly(&all);
    let history = cluster.assert_invariants(&batch).await;
    let round = [State::Importing, State::Held];
    let expected = [round, round, round].concat();
    assert_eq!(history.states()[..6], expected);
    let error = cluster.client().retry_failed(&batch).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
}

/// HELD, with nothing leased: a watch that began late could still see the HELD before the retry.
async fn wait_held_again(cluster: &Cluster, batch: &str) -> v1::Batch {
    eventually("the batch is held again", async || {
        let seen = cluster.get(batch).await;
        let counters = seen.counters?;
        (seen.state() == State::Held && counters.staged + counters.failed == counters.total).then_some(seen)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failed_tasks_are_retried_while_others_are_still_importing() {
    let cluster = Cluster::start().await;
    let gate = Gate::new("gate");
    let _worker = cluster.attach("w1", 1, vec![gate.clone()]).await;
    gate.fail([2, 3, 9], "BROKEN");
    let batch = cluster.submit(in_ranges_of(5, batch_for("gate")), tasks(10)).await;
    gate.pass(1);
    gate.until("the second range", |g| (g.seen_of("stage").len() == 2).then_some(())).await;
    gate.wait_staging(1).await;
    assert_eq!(cluster.client().retry_failed(&batch).await.unwrap().retried, 2);
    gate.fail_none();
    gate.open();
    let done = cluster.wait_state(&batch, State::Committed).await;
    assert_eq!((done.counters.unwrap().staged, done.counters.unwrap().failed), (10, 0));
    // Their numbers alone were leased again, under a token of their own.
    let history = cluster.assert_invariants(&batch).await;
    let first = &history.decided().unwrap().ranges[&1];
    let runs: Vec<_> =
        first.winners.iter().map(|winner| tranche_proto::stored::decode_runs(&winner.runs)).collect();
    assert_eq!(runs, [vec![(1, 1), (4, 5)], vec![(2, 3)]]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_are_appended_while_workers_already_stage() {
    let mut cluster = Cluster::start().await;
    let library = Library::with_files(&cluster.data(), "library", 50);
    let gate = Gate::behind(Arc::new(Object::new([cluster.data()])));
    let _worker = cluster.attach("w1", 2, vec![gate.clone()]).await;
    let all = library.tasks();
    let batch = cluster.create(in_ranges_of(5, batch_into(library.target()))).await;
    cluster.append(&batch, 1, all[..10].to_vec()).await;
    gate.wait_staging(2).await;
    cluster.append(&batch, 11, all[10..30].to_vec()).await;
    gate.open();
    let staged = async |number: i64| {
        eventually("all that is there is staged", async || {
            (cluster.get(&batch).await.counters?.staged == number).then_some(())
        })
        .await;
    };
    staged(30).await;
    assert_eq!(cluster.get(&batch).await.state(), State::Importing, "more may come");
    library.assert_untouched();
    cluster.append(&batch, 31, all[30..].to_vec()).await;
    staged(50).await;
    assert_eq!(cluster.get(&batch).await.state(), State::Importing);
    cluster.seal(&batch).await;
    cluster.wait_state(&batch, State::Committed).await;
    library.assert_exactly(library.keys());
    let error = cluster.client().append(&batch, tokio_stream::iter(tasks(51))).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    cluster.worker("w2", 1).await;
    cluster.assert_invariants(&batch).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_batch_commits_without_a_worker() {
    let cluster = Cluster::start().await;
    let batch = cluster.submit(batch_for("noop"), []).await;
    let done = cluster.wait_state(&batch, State::Committed).await;
    assert_eq!(done.counters.unwrap().total, 0);
    cluster.wait_swept(&batch).await;
    cluster.assert_invariants(&batch).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_batches_share_the_same_worker_by_their_priorities() {
    let cluster = Cluster::builder().flag("handlers", "gate").start().await;
    let spec = |priority| v1::Batch { priority, ..in_ranges_of(1, batch_for("gate")) };
    let important = cluster.submit(spec(30), tasks(150)).await;
    let other = cluster.submit(spec(10), tasks(150)).await;
    let gate = Gate::new("gate");
    gate.open();
    let _worker = cluster.attach("w1", 2, vec![gate.clone()]).await;
    cluster.wait_state(&important, State::Committed).await;
    cluster.wait_state(&other, State::Committed).await;

    // While both are hungry: of the first 100 leases about 75 are the important one's.
    let first: Vec<_> = gate.seen_of("stage").into_iter().take(100).collect();
    let share = first.iter().filter(|seen| seen.batch == important).count();
    assert!((65..=85).contains(&share), "{share} of 100 for priority 30 beside 10");
    // Neither starves in between.
    for some in first.chunks(20) {
        let share = some.iter().filter(|seen| seen.batch == important).count();
        assert!((10..20).contains(&share), "{share} of 20");
    }
    cluster.assert_invariants(&important).await;
    cluster.assert_invariants(&other).await;
}
