//! A real worker and several scripted coordinators over loopback TCP.

mod common;

use common::running::{Running, TTL, config};
use common::{Coordinator, stage, token};
use std::sync::atomic::Ordering;
use std::time::Duration;
use tranche_proto::v1;
use tranche_proto::v1::attach_request::Frame as Said;
use tranche_proto::v1::attach_response::Frame as Say;
use v1::report_ack::Result;

/// Heartbeats come soon.
const SHORT: Duration = Duration::from_millis(600);

fn counters(hello: &v1::Hello) -> Vec<u64> {
    hello.held.iter().map(|held| held.token.unwrap().counter).collect()
}

#[tokio::test]
async fn a_lease_outlives_its_coordinator() {
    let (mut one, mut two) = (Coordinator::start().await, Coordinator::start().await);
    let worker = Running::start(config(&[&one, &two], 2));
    let (mut first, _) = one.attached(TTL).await;
    let (mut second, _) = two.attached(TTL).await;
    let lease = stage("held", 1, 2);
    let batch = lease.batch.clone();
    first.grant(lease).await;
    worker.held.started().await;
    drop(first);
    assert_eq!(second.own(&batch, 7).await, [1]);
    worker.held.go.add_permits(1);
    assert_eq!(second.report().await.token, Some(token(1)));
    second.ack(1).await;
    assert_eq!(second.own(&batch, 7).await, [0; 0]);
    // The first one comes back, and hasn't heard yet that it was replaced.
    let (mut first, hello) = one.attached(TTL).await;
    assert_eq!(counters(&hello), [0; 0]);
    first.say(Say::Owner(v1::Owner { batch, epoch: 5 })).await;
    first.grant(stage("held", 2, 2)).await;
    let frame = first.find(|f| if matches!(f, Said::Credit(_)) { None } else { Some(f) }).await;
    assert!(matches!(&frame, Said::Release(release) if release.token == Some(token(2))), "{frame:?}");
}

#[tokio::test]
async fn a_report_finds_whoever_knows_of_its_batch_and_what_doesnt_count_is_removed() {
    let (mut one, mut two) = (Coordinator::start().await, Coordinator::start().await);
    let mut worker = Running::start(config(&[&one, &two], 1));
    let (mut first, _) = one.attached(TTL).await;
    let (mut second, _) = two.attached(SHORT).await;
    first.grant(stage("held", 1, 2)).await;
    worker.held.started().await;
    drop(first);
    // Dialled again, and not answered.
    let (_silent, hello) = one.stream().await;
    assert_eq!(counters(&hello), [1]);
    worker.held.go.add_permits(1);
    assert_eq!(second.report().await.token, Some(token(1)));
    worker.held.failing.store(2, Ordering::SeqCst);
    second.answer(1, Result::UnknownBatch).await;
    assert_eq!(worker.removed().await, [1]);
}

#[tokio::test]
async fn a_rollback_waits_until_what_was_staged_here_is_removed() {
    let mut coordinator = Coordinator::start().await;
    let mut worker = Running::start(config(&[&coordinator], 1));
    let (mut stream, _) = coordinator.attached(TTL).await;
    let lease = stage("held", 1, 2);
    let batch = lease.batch.clone();
    stream.grant(lease).await;
    worker.held.started().await;
    worker.held.failing.store(1, Ordering::SeqCst);
    worker.held.stop.add_permits(1);
    let phase = v1::Phase::Rollback as i32;
    stream.say(Say::PhaseChanged(v1::PhaseChanged { batch, phase })).await;
    stream.find(|frame| if let Said::PhaseAck(ack) = frame { Some(ack) } else { None }).await;
    assert_eq!(worker.removed.try_recv().map(|tokens| tokens.len()), Ok(1), "before it was acknowledged");
}

#[tokio::test]
async fn one_coordinator_leads_to_the_others() {
    let (mut one, mut two) = (Coordinator::start().await, Coordinator::start().await);
    let worker = Running::start(config(&[&one], 1));
    let (mut first, _) = one.attached(TTL).await;
    first.grant(stage("held", 1, 2)).await;
    worker.held.started().await;
    first.replicas(&[&one, &two]).await;
    let (mut second, hello) = two.attached(TTL).await;
    assert_eq!(counters(&hello), [1], "it names what others granted, too");
    second.replicas(&[&one, &two]).await;
    second.grant(stage("noop", 2, 1)).await;
    worker.held.go.add_permits(1);
    assert_eq!(first.report().await.token, Some(token(1)));
    assert_eq!(second.report().await.token, Some(token(2)));
    // A broken stream is dialled again.
    drop(second);
    two.attached(TTL).await;
}

#[tokio::test]
async fn a_coordinator_with_two_urls_is_attached_once() {
    let listener = || async { tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap() };
    let mut one = Coordinator::start_on(listener().await, "same".into());
    let mut other = Coordinator::start_on(listener().await, "same".into());
    let _worker = Running::start(config(&[&one, &other], 1));
    let (mut first, _) = one.attached(TTL).await;
    first.credit().await;
    let (mut second, _) = other.attached(TTL).await;
    second.credit().await;
    // The worker ends the older stream, and dials there only when the newer is lost.
    while first.next_or_end().await.is_some() {}
    drop(first);
    drop(second);
    let (mut again, _) = tokio::select! {
        biased;
        again = one.attached(TTL) => again,
        again = other.attached(TTL) => again,
    };
    again.credit().await;
}

#[tokio::test]
async fn a_report_is_brought_to_a_new_owner_while_the_worker_drains() {
    let (mut one, mut two) = (Coordinator::start().await, Coordinator::start().await);
    let worker = Running::start(config(&[&one, &two], 1));
    let (mut first, _) = one.attached(TTL).await;
    let (mut second, _) = two.attached(TTL).await;
    second.credit().await;
    let lease = stage("held", 1, 2);
    let batch = lease.batch.clone();
    first.grant(lease).await;
    worker.held.started().await;
    worker.shutdown.cancel();
    second.find(|frame| matches!(frame, Said::Credit(credit) if credit.leases == 0).then_some(())).await;
    worker.held.go.add_permits(1);
    first.report().await;
    drop(first);
    drop(one);
    assert_eq!(second.own(&batch, 7).await, [1]);
    assert_eq!(second.report().await.token, Some(token(1)));
    second.ack(1).await;
    while second.next_or_end().await.is_some() {}
    drop(second);
    worker.ended().await;
}
