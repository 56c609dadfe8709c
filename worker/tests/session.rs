//! A real worker against a scripted coordinator over loopback TCP.

mod common;

use bytes::Bytes;
use common::running::{Running, TTL, config};
use common::{Coordinator, LIMIT, stage, tasks_of, token};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tranche_proto::v1;
use tranche_proto::v1::attach_request::Frame as Said;
use tranche_proto::v1::attach_response::Frame as Say;
use tranche_worker::handlers::Noop;
use tranche_worker::{Config, Worker, WorkerError};

#[tokio::test]
async fn says_hello_and_opens_its_window() {
    let mut coordinator = Coordinator::start().await;
    let worker = Running::start(config(&[&coordinator], 3));
    let (mut stream, hello) = coordinator.attached(TTL).await;
    assert_eq!((hello.worker.as_str(), hello.slots), ("w1", 3));
    assert_eq!((hello.handlers, hello.protocol_versions), (vec!["held".into(), "noop".into()], vec![1]));
    assert!(hello.held.is_empty() && uuid::Uuid::parse_str(&hello.incarnation).is_ok());
    assert_eq!(stream.credit().await, v1::Credit { leases: 4, bytes: 64 << 20 });
    worker.shutdown.cancel();
    assert_eq!(stream.credit().await, v1::Credit { leases: 0, bytes: 0 });
    assert!(stream.next_or_end().await.is_none());
    drop(stream);
    worker.ended().await;
}

#[tokio::test]
async fn two_coordinators_share_the_window_and_the_slots() {
    let (mut one, mut two) = (Coordinator::start().await, Coordinator::start().await);
    let worker = Running::start(config(&[&one, &two], 1));
    let (mut first, _) = one.attached(TTL).await;
    let (mut second, _) = two.attached(TTL).await;
    // The one that attaches first has the whole window until the other does.
    let half = v1::Credit { leases: 1, bytes: 32 << 20 };
    first.find(|frame| (frame == Said::Credit(half)).then_some(())).await;
    second.find(|frame| (frame == Said::Credit(half)).then_some(())).await;
    first.grant(stage("held", 1, 2)).await;
    worker.held.started().await;
    second.grant(stage("noop", 2, 2)).await;
    worker.held.go.add_permits(1);
    assert_eq!(first.report().await.token, Some(token(1)));
    assert_eq!(second.report().await.token, Some(token(2)));
}

#[tokio::test]
async fn a_report_says_what_was_staged_and_is_sent_again_on_a_new_stream() {
    let mut coordinator = Coordinator::start().await;
    let worker = Running::start(config(&[&coordinator], 1));
    let (mut stream, first_hello) = coordinator.attached(TTL).await;
    stream.grant(stage("held", 1, 3)).await;
    worker.held.go.add_permits(1);
    let report = stream.report().await;
    assert_eq!((report.done, report.receipt.as_ref(), report.error.as_str()), (2, b"r".as_slice(), ""));
    let failure =
        v1::TaskFailure { sequence: 2, key: "k2".into(), code: "BAD".into(), message: "is bad".into() };
    assert_eq!(report.failures, [failure]);
    // The stream breaks before the answer.
    drop(stream);
    let (mut stream, hello) = coordinator.attached(TTL).await;
    assert_eq!(hello.incarnation, first_hello.incarnation);
    assert_eq!(hello.held.iter().map(|held| held.token).collect::<Vec<_>>(), [Some(token(1))]);
    assert_eq!(stream.report().await, report);
    stream.ack(1).await;
    // Settled: it isn't held on the next stream.
    stream.grant(stage("noop", 2, 1)).await;
    stream.report().await;
    drop(stream);
    let (_stream, hello) = coordinator.attached(TTL).await;
    assert_eq!(hello.held.iter().map(|held| held.token).collect::<Vec<_>>(), [Some(token(2))]);
}

#[tokio::test]
async fn a_running_lease_survives_a_broken_stream() {
    let mut coordinator = Coordinator::start().await;
    let worker = Running::start(config(&[&coordinator], 1));
    let (mut stream, _) = coordinator.attached(TTL).await;
    stream.grant(stage("held", 1, 2)).await;
    worker.held.started().await;
    drop(stream);
    let (mut stream, hello) = coordinator.attached(TTL).await;
    assert_eq!(hello.held.len(), 1);
    worker.held.go.add_permits(1);
    assert_eq!(stream.report().await.token, Some(token(1)));
}

#[tokio::test]
async fn rollback_is_acknowledged_only_when_staging_has_really_stopped() {
    let mut coordinator = Coordinator::start().await;
    let worker = Running::start(config(&[&coordinator], 1));
    let (mut stream, _) = coordinator.attached(TTL).await;
    let batch = stage("held", 1, 2).batch;
    stream.grant(stage("held", 1, 2)).await;
    stream.grant(stage("held", 2, 2)).await;
    worker.held.started().await;
    let rollback = v1::Phase::Rollback as i32;
    stream.say(Say::PhaseChanged(v1::PhaseChanged { batch: batch.clone(), phase: rollback })).await;
    worker.held.cancelled.notified().await;
    // Another batch is answered meanwhile; this one isn't.
    stream.say(Say::PhaseChanged(v1::PhaseChanged { batch: "other".into(), phase: rollback })).await;
    let phase_ack = |frame| if let Said::PhaseAck(ack) = frame { Some(ack) } else { None };
    assert_eq!(stream.find(phase_ack).await.batch, "other");
    assert!(!worker.held.stopped.load(Ordering::SeqCst));
    worker.held.stop.add_permits(1);
    // Neither lease reports: the next frame about this batch is the answer.
    let next = stream.find(|frame| if let Said::Heartbeat(_) = frame { None } else { Some(frame) }).await;
    assert_eq!(next, Said::PhaseAck(v1::PhaseAck { batch, phase: rollback }));
    assert!(worker.held.stopped.load(Ordering::SeqCst));
    // Then what was staged is removed here, by a lease.
    let mut grant = stage("held", 3, 2);
    (grant.phase, grant.runs, grant.tasks) = (rollback, Vec::new(), Bytes::new());
    stream.grant(grant).await;
    let report = stream.report().await;
    assert_eq!((report.token, report.phase, report.done), (Some(token(3)), rollback, 2));
}

#[tokio::test]
async fn a_worker_that_hears_nothing_stops_its_leases_itself() {
    let mut coordinator = Coordinator::start().await;
    let worker = Running::start(config(&[&coordinator], 1));
    let (mut stream, _) = coordinator.attached(Duration::from_millis(600)).await;
    stream.grant(stage("held", 1, 2)).await;
    worker.held.started().await;
    let beat = stream.heartbeat().await;
    assert_eq!((beat.number, beat.leases.len()), (1, 1));
    assert_eq!((beat.leases[0].token, beat.leases[0].done), (Some(token(1)), 1));
    // Heartbeats are never answered: the stream is given up, new ones get no Welcome.
    tokio::time::timeout(LIMIT, worker.held.cancelled.notified()).await.expect("the lease is stopped");
    worker.held.stop.add_permits(1);
}

#[tokio::test]
async fn a_silent_stream_is_given_up_and_dialled_anew() {
    let mut coordinator = Coordinator::start().await;
    let _worker = Running::start(config(&[&coordinator], 1));
    let (_silent, _) = coordinator.attached(Duration::from_millis(600)).await;
    coordinator.attached(TTL).await;
}

#[tokio::test]
async fn a_lease_in_parts_is_run_whole() {
    let mut coordinator = Coordinator::start().await;
    let _worker = Running::start(config(&[&coordinator], 1));
    let (mut stream, _) = coordinator.attached(TTL).await;
    let mut first = stage("noop", 1, 7);
    (first.tasks, first.more) = (stage("noop", 1, 3).tasks, true);
    let mut last = stage("noop", 1, 7);
    (last.tasks, last.runs) = (stage("noop", 1, 4).tasks, Vec::new());
    stream.grant(first).await;
    stream.grant(last).await;
    assert_eq!(stream.report().await.done, 7);
}

#[tokio::test]
async fn what_goes_wrong_is_an_error_never_success() {
    let mut coordinator = Coordinator::start().await;
    let _worker = Running::start(config(&[&coordinator], 1));
    let (mut stream, _) = coordinator.attached(TTL).await;
    let mut phase = stage("noop", 1, 1);
    phase.phase = 42;
    let handler = stage("teleport", 2, 1);
    let mut panics = stage("held", 3, 1);
    panics.tasks = tasks_of(["panic".into()]);
    let mut wrong = stage("held", 4, 1);
    wrong.tasks = tasks_of(["wrong".into()]);
    let mut commit = stage("held", 5, 1);
    commit.phase = v1::Phase::Commit as i32;
    for (grant, error) in [
        (phase, "phase 42 is not known to this worker"),
        (handler, "handler `teleport` is not known to this worker"),
        (panics, "the handler panicked: the cat is on the keyboard"),
        (wrong, "task 99"),
        (commit, "not yet"),
    ] {
        let counter = grant.token.unwrap().counter;
        stream.grant(grant).await;
        let report = stream.report().await;
        assert_eq!((report.token, report.done, report.failures.len()), (Some(token(counter)), 0, 0));
        assert!(report.error.contains(error), "{} isn't {error}", report.error);
        stream.ack(counter).await;
    }
}

#[tokio::test]
async fn every_phase_reports_its_own_figure() {
    let mut coordinator = Coordinator::start().await;
    let _worker = Running::start(config(&[&coordinator], 1));
    let (mut stream, _) = coordinator.attached(TTL).await;
    let figures = [
        (v1::Phase::Commit, 7, 0),
        (v1::Phase::Rollback, 4, 0),
        (v1::Phase::Publish, 0, 0),
        (v1::Phase::Sweep, 0, 3),
    ];
    for (counter, (phase, done, residue)) in (1..).zip(figures) {
        let mut grant = stage("held", counter, 4);
        (grant.phase, grant.attempt) = (phase as i32, 1);
        stream.grant(grant).await;
        let report = stream.report().await;
        assert_eq!((report.phase, report.done, report.residue), (phase as i32, done, residue));
        assert!(report.error.is_empty() && report.elapsed.is_some());
    }
}

#[tokio::test]
async fn a_drain_gives_back_what_waits_and_finishes_what_runs() {
    let mut coordinator = Coordinator::start().await;
    let worker = Running::start(config(&[&coordinator], 1));
    let (mut stream, _) = coordinator.attached(TTL).await;
    stream.credit().await;
    stream.grant(stage("held", 1, 2)).await;
    stream.grant(stage("held", 2, 2)).await;
    // The second has arrived when what was granted after it is answered.
    stream.grant(stage("teleport", 3, 1)).await;
    stream.report().await;
    stream.ack(3).await;
    worker.held.started().await;
    worker.shutdown.cancel();
    assert_eq!(stream.next().await, Said::Credit(v1::Credit { leases: 0, bytes: 0 }));
    let Said::Release(release) = stream.next().await else { panic!("a release") };
    assert_eq!(release.token, Some(token(2)));
    worker.held.go.add_permits(1);
    assert_eq!(stream.report().await.token, Some(token(1)));
    assert!(!worker.worker.is_finished(), "the report isn't acknowledged yet");
    stream.ack(1).await;
    assert!(stream.next_or_end().await.is_none());
    drop(stream);
    worker.ended().await;
}

#[tokio::test]
async fn a_drain_ends_though_a_lease_doesnt() {
    let mut coordinator = Coordinator::start().await;
    let config = Config { drain_timeout: Duration::from_millis(50), ..config(&[&coordinator], 1) };
    let worker = Running::start(config);
    let (mut stream, _) = coordinator.attached(TTL).await;
    stream.grant(stage("held", 1, 2)).await;
    worker.held.started().await;
    worker.held.stop.add_permits(1);
    worker.shutdown.cancel();
    // Not released and not reported: the lease lapses.
    while let Some(frame) = stream.next_or_end().await {
        assert!(matches!(frame, Said::Credit(_) | Said::Heartbeat(_)), "{frame:?}");
    }
    drop(stream);
    let held = Arc::clone(&worker.held);
    worker.ended().await;
    assert!(held.stopped.load(Ordering::SeqCst));
}

#[tokio::test]
async fn a_worker_waits_for_a_coordinator_that_isnt_there_and_ends_when_told() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let worker = Running::start(Config::new([format!("http://{address}")]));
    worker.shutdown.cancel();
    worker.ended().await;
}

#[tokio::test]
async fn a_wrong_configuration_is_refused() {
    let worker = Worker::new(Config::new([""; 0]), vec![Arc::new(Noop::new())]);
    assert!(matches!(worker.run(CancellationToken::new()).await, Err(WorkerError::Config(_))));
    let worker = Worker::new(Config::new(["http://127.0.0.1:1"]), Vec::new());
    assert!(matches!(worker.run(CancellationToken::new()).await, Err(WorkerError::NoHandler)));
}
