//! How many connections, and what becomes of those that don't begin, or don't live.

use crate::world::{GET, World};
use std::time::{Duration, Instant};
use tranche_client::Client;
use tranche_tests::process::{Process, program};
use tranche_tests::raw::{Raw, frame, kind, whole_call};
use tranche_tests::{eventually, scrape};

const HEALTH_WATCH: &str = "/grpc.health.v1.Health/Watch";
/// `coordinator/src/connections/mod.rs`.
const MAX_STREAMS: u32 = 1024;

/// A connection that has made a call.
async fn guest(world: &World) -> Raw {
    let mut raw = world.open().await;
    raw.send(&whole_call(1, GET, &world.named())).await.expect("open");
    raw.find(kind::DATA).await.expect("answered");
    raw
}

/// Whether the other side takes it.
async fn is_taken(raw: &mut Raw) -> bool {
    raw.find(kind::SETTINGS).await.is_some()
}

async fn open_now(ops: &str, wanted: f64) {
    let what = format!("{wanted} connections are open");
    eventually(&what, async || (scrape::samples(ops).await["tranche_connections"] <= wanted).then_some(()))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn as_many_as_may_be_and_one_more() {
    let mut world = World::start(&[("max-connections", "6")]).await;
    // The cluster's own client and the others have one each.
    let mut guests = Vec::new();
    for _ in 0..4 {
        guests.push(guest(&world).await);
    }
    assert_eq!(world.samples().await["tranche_connections"], 6);
    assert_eq!(world.samples().await["tranche_connections_limit"], 6);
    for _ in 0..3 {
        let mut late = Raw::connect(&world.address).await;
        assert_eq!(late.next().await, None, "refused");
    }
    assert_eq!(world.samples().await["tranche_connections_refused_total{limit=\"all\"}"], 3);
    let log = world.cluster.coordinator(0).log();
    assert!(log.contains("connection refused: max_connections = 6"), "{log}");
    guests.pop();
    open_now(&world.ops, 5.0).await;
    assert!(is_taken(&mut world.open().await).await, "there is room again");
    for raw in &mut guests {
        assert!(raw.settled().await, "the others stay");
    }
    world.unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn those_that_say_nothing_keep_nobody_out() {
    let mut world = World::start(&[("max-connections", "6")]).await;
    let mut guest = guest(&world).await;
    let mut idle = Vec::new();
    for n in 0..30 {
        let mut raw = if n % 2 == 0 { world.open().await } else { Raw::connect(&world.address).await };
        assert!(is_taken(&mut raw).await, "{n}");
        idle.push(raw);
    }
    for raw in &mut idle[..27] {
        raw.ended().await;
    }
    world.told("displaced", 27).await;
    // Somebody new comes in all the same, and whoever has called before stays.
    let client = Client::connect(world.cluster.url(0)).await.expect("connected");
    client.get(&world.batch).await.expect("served");
    assert!(guest.settled().await);
    world.unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn as_many_of_one_address_as_may_be_and_one_more() {
    let mut world = World::start(&[("max-peer-connections", "4")]).await;
    let mut mine = Vec::new();
    for _ in 0..4 {
        let mut raw = Raw::connect_from(&world.address, [127, 0, 0, 9]).await;
        raw.begin(&[]).await;
        assert!(is_taken(&mut raw).await);
        mine.push(raw);
    }
    let mut late = Raw::connect_from(&world.address, [127, 0, 0, 9]).await;
    assert_eq!(late.next().await, None, "refused");
    assert!(is_taken(&mut Raw::connect_from(&world.address, [127, 0, 0, 10]).await).await, "another address");
    assert_eq!(world.samples().await["tranche_connections_refused_total{limit=\"peer\"}"], 1);
    let log = world.cluster.coordinator(0).log();
    assert!(log.contains("connection refused: max_peer_connections = 4"), "{log}");
    world.unharmed().await;
}

/// Without a limit of ours a process would run out of files, and could take no connection nor write a segment.
#[tokio::test(flavor = "multi_thread")]
async fn there_are_never_more_connections_than_files() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = format!("embedded:{}", dir.path().join("state").display());
    let line = format!(
        "ulimit -n 300; exec {} --listen 127.0.0.1:0 --ops-listen 127.0.0.1:0 --store {store}",
        program("tranche-coordinator").display()
    );
    let shell = std::path::Path::new("/bin/sh");
    let mut coordinator = Process::spawn("coordinator", shell, &["-c".to_owned(), line], dir.path());
    let address = coordinator.said("listening on").await.expect("it starts");
    let ops = coordinator.said("ops port on").await.expect("an ops port");
    eventually("its limit is told", async || {
        (scrape::samples(&ops).await["tranche_connections_limit"] as u64 == 44).then_some(())
    })
    .await;
    let log = coordinator.log();
    assert!(log.contains("max_connections = 16384, and fewer fit the limit of open files"), "{log}");
    let client = Client::connect(format!("http://{address}")).await.expect("connected");
    let listed = async || client.list_page(Default::default()).await.expect("served");
    listed().await;
    let mut idle = Vec::new();
    for _ in 0..250 {
        idle.push(Raw::connect(&address).await);
    }
    listed().await;
    idle.last_mut().expect("there").begin(&[]).await;
    assert!(is_taken(idle.last_mut().expect("there")).await);
    assert!(scrape::samples(&ops).await["process_open_fds"] < 200.0);
}

/// Or whoever begins anew each time that a connection is ended would cost more than with the first.
#[tokio::test(flavor = "multi_thread")]
async fn an_address_whose_connections_end_badly_is_let_in_slowly() {
    let mut world = World::start(&[]).await;
    let came = |ip: [u8; 4]| {
        let address = world.address.clone();
        async move {
            let began = Instant::now();
            let mut raw = Raw::connect_from(&address, ip).await;
            raw.begin(&[]).await;
            // False: refused.
            raw.settled().await.then(|| began.elapsed())
        }
    };
    // They say nothing but a PING, and go; beside each other, so that those that wait do so together.
    let began = Instant::now();
    let mut times = Vec::new();
    for _ in 0..4 {
        let all = (0..50).map(|_| tokio::spawn(came([127, 0, 0, 9])));
        for one in all.collect::<Vec<_>>() {
            times.push(one.await.expect("no panic"));
        }
    }
    let took = began.elapsed();
    let samples = world.samples().await;
    let held = samples["tranche_connections_held_total"];
    assert!(held > 20, "{held} of {} in {took:?}", times.len());
    // However slow the machine is: those that were held came one after the other.
    assert!(took >= Duration::from_millis(20) * (held as u32 / 8), "{held} in {took:?}");
    assert!(came([127, 0, 0, 10]).await.is_some(), "another address");
    assert_eq!(world.samples().await["tranche_connections_held_total"], held, "which doesn't wait");
    assert!(world.cluster.coordinator(0).has_ended().is_none());
    world.unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_of_one_connection_at_the_limit_and_one_more() {
    let mut world = World::start(&[]).await;
    let mut raw = world.open().await;
    for n in 0..MAX_STREAMS {
        raw.send(&whole_call(2 * n + 1, HEALTH_WATCH, &[])).await.expect("open");
    }
    let mut answered = 0;
    while answered < MAX_STREAMS {
        let next = raw.next().await.expect("open");
        assert_ne!(next.kind, kind::RST_STREAM, "{next:?}");
        answered += u32::from(next.kind == kind::HEADERS);
    }
    raw.send(&whole_call(2 * MAX_STREAMS + 1, HEALTH_WATCH, &[])).await.expect("open");
    let reset = raw.find(kind::RST_STREAM).await.expect("open");
    assert_eq!((reset.stream, reset.code()), (2 * MAX_STREAMS + 1, tranche_tests::raw::REFUSED_STREAM));
    // One is given back, and another one may come.
    raw.send(&frame(kind::RST_STREAM, 0, 1, &8_u32.to_be_bytes())).await.expect("open");
    raw.send(&whole_call(2 * MAX_STREAMS + 3, HEALTH_WATCH, &[])).await.expect("open");
    let headers = raw.find(kind::HEADERS).await.expect("open");
    assert_eq!(headers.stream, 2 * MAX_STREAMS + 3);
    assert!(world.cluster.coordinator(0).has_ended().is_none());
    world.unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_does_not_begin() {
    let mut world = World::start(&[("peer-timeout", "500ms")]).await;
    let silent = Raw::connect(&world.address).await;
    let mut half = Raw::connect(&world.address).await;
    half.send(b"PRI * HTTP/2.0\r\n").await.expect("open");
    let mut preface = Raw::connect(&world.address).await;
    preface.preface().await;
    let mut head = Raw::connect(&world.address).await;
    head.preface().await;
    head.send(&frame(kind::SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 9])[..12]).await.expect("open");
    for mut raw in [silent, half, preface, head] {
        raw.ended().await;
    }
    world.told("silent", 4).await;
    world.unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_answers_no_ping_is_dead() {
    let mut world = World::start(&[("peer-timeout", "500ms")]).await;
    let mut dead = guest(&world).await;
    dead.find(kind::PING).await.expect("asked whether it lives");
    dead.ended().await;
    world.told("dead", 1).await;
    // One that answers lives on.
    let mut raw = guest(&world).await;
    for _ in 0..4 {
        let ping = raw.find(kind::PING).await.expect("asked whether it lives");
        raw.send(&frame(kind::PING, tranche_tests::raw::ACK, 0, &ping.payload)).await.expect("open");
    }
    assert_eq!(world.ended("dead").await, 1);
    world.unharmed().await;
}
