//! Who doesn't read, and who doesn't write on.

use crate::world::{APPEND, ATTACH, GET, WATCH, World};
use futures::StreamExt as _;
use prost::Message as _;
use std::time::Duration;
use tranche_client::v1::{self, attach_request};
use tranche_client::{Client, Options};
use tranche_proto::PROTOCOL_VERSION;
use tranche_tests::cluster::{batch_for, tasks};
use tranche_tests::raw::{
    ACK, CANCEL, END_HEADERS, INITIAL_WINDOW_SIZE, Raw, block, call, frame, kind, message, whole_call,
};
use tranche_tests::{eventually, scrape};

const LIST: &str = "/tranche.v1.BatchService/ListBatches";
const CHECK: &str = "/grpc.health.v1.Health/Check";

/// Everything that is sent to the connection has to wait for window; pings are answered.
async fn no_window(world: &World) -> Raw {
    Raw::open(&world.address, &[(INITIAL_WINDOW_SIZE, 0)]).await
}

/// The next frame of this type, while pings are answered: whoever does that isn't dead.
async fn alive_until(raw: &mut Raw, wanted: u8) -> tranche_tests::raw::Frame {
    loop {
        let next = raw.next().await.expect("the connection stays");
        if next.kind == wanted {
            return next;
        }
        if next.kind == kind::PING && next.flags & ACK == 0 {
            raw.send(&frame(kind::PING, ACK, 0, &next.payload)).await.expect("open");
        }
    }
}

async fn unread_streams(world: &World, wanted: f64) {
    let ops = world.ops.clone();
    eventually(&format!("{wanted} streams are reset"), async || {
        (scrape::samples(&ops).await["tranche_unread_streams_total"] >= wanted).then_some(())
    })
    .await;
}

fn hello() -> Vec<u8> {
    let hello = v1::Hello {
        worker: "never-reads".into(),
        incarnation: "1".into(),
        handlers: vec!["noop".into()],
        slots: 1,
        protocol_versions: vec![PROTOCOL_VERSION],
        ..Default::default()
    };
    v1::AttachRequest { frame: Some(attach_request::Frame::Hello(hello)) }.encode_to_vec()
}

/// The start of a call whose request goes on.
fn begin_call(stream: u32, path: &str, first: &[u8]) -> Vec<u8> {
    let open = frame(kind::HEADERS, END_HEADERS, stream, &block(&call(path)));
    [open, frame(kind::DATA, 0, stream, &message(first))].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_watches_acknowledgements_and_leases_that_are_not_read() {
    let mut world = World::start(&[("peer-timeout", "1s"), ("lease-ttl", "10m")]).await;
    let tasks = v1::AppendTasksRequest {
        name: world.batch.clone(),
        first_sequence: 1,
        tasks: tasks(3).into_iter().collect(),
    };
    let calls = [
        ("GetBatch", whole_call(1, GET, &world.named())),
        ("WatchBatch", whole_call(1, WATCH, &world.named())),
        ("AppendTasks", begin_call(1, APPEND, &tasks.encode_to_vec())),
        ("Attach", begin_call(1, ATTACH, &hello())),
    ];
    for (number, (method, bytes)) in (1_u32..).zip(calls) {
        let mut raw = no_window(&world).await;
        raw.send(&bytes).await.expect("open");
        let reset = alive_until(&mut raw, kind::RST_STREAM).await;
        assert_eq!((reset.stream, reset.code()), (1, CANCEL), "{method}");
        unread_streams(&world, number.into()).await;
        let log = world.cluster.coordinator(0).log();
        let line = log.lines().find(|line| line.contains("its answer isn't read") && line.contains(method));
        assert!(line.is_some(), "{method}: {log}");
        // The connection goes on: another call on it gets its answer, which it makes room for.
        raw.send(&whole_call(3, GET, &world.named())).await.expect("open");
        raw.send(&frame(kind::WINDOW_UPDATE, 0, 3, &65_535_u32.to_be_bytes())).await.expect("open");
        assert_eq!(raw.find(kind::DATA).await.expect("an answer").stream, 3);
    }
    // All that they held is free again; the worker's silence would be noticed after minutes.
    for gauge in ["tranche_watchers", "tranche_append_streams", "tranche_attached_workers"] {
        let ops = world.ops.clone();
        eventually(gauge, async || (scrape::samples(&ops).await[gauge] < 1.0).then_some(())).await;
    }
    world.unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_reads_slowly_and_reads_is_not_dropped() {
    let world = World::start(&[("peer-timeout", "1s")]).await;
    let mut raw = no_window(&world).await;
    raw.send(&whole_call(1, LIST, &[])).await.expect("open");
    raw.find(kind::HEADERS).await.expect("answered");
    let mut read = 0;
    // A byte at a time would take too long for a test; a part every 300 ms takes longer than the limit in all.
    for _ in 0..8 {
        raw.send(&frame(kind::WINDOW_UPDATE, 0, 1, &8_u32.to_be_bytes())).await.expect("open");
        read += alive_until(&mut raw, kind::DATA).await.payload.len();
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert!(read >= 64, "{read}");
    raw.send(&frame(kind::WINDOW_UPDATE, 0, 1, &65_535_u32.to_be_bytes())).await.expect("open");
    // To its end, by trailers.
    let end = loop {
        let next = raw.next().await.expect("the connection stays");
        assert!(next.kind != kind::RST_STREAM && next.kind != kind::GOAWAY, "{next:?}");
        if next.stream == 1 && next.flags & 1 == 1 {
            break next;
        }
    };
    assert_eq!(end.kind, kind::HEADERS);
    assert_eq!(world.samples().await["tranche_unread_streams_total"], 0);
    world.unharmed().await;
}

/// Many large answers at once, none of them read: what waits is bounded, and freed.
#[tokio::test(flavor = "multi_thread")]
async fn large_answers_that_are_not_read_take_no_memory() {
    let world = World::start(&[("peer-timeout", "2s")]).await;
    // A page of more than a megabyte.
    let params: std::collections::HashMap<_, _> =
        [("library".to_owned(), format!("/{}", "l".repeat(3_000))), ("source".to_owned(), "/s".to_owned())]
            .into();
    for _ in 0..400 {
        let target = v1::Target { handler: "object".into(), params: params.clone() };
        world.cluster.create(v1::Batch { targets: vec![target], ..batch_for("object") }).await;
    }
    let request = v1::ListBatchesRequest { page_size: 1000, ..Default::default() }.encode_to_vec();
    for window in [0, 1] {
        let mut raw = Raw::open(&world.address, &[(INITIAL_WINDOW_SIZE, window)]).await;
        // 300 MiB, if they were all there.
        for n in 0..250_u32 {
            raw.send(&whole_call(2 * n + 1, LIST, &request)).await.expect("open");
        }
        let (mut reset, mut ended) = (0, 0);
        while reset + ended < 250 {
            let next = raw.next().await.expect("the connection stays");
            match next.kind {
                kind::RST_STREAM => reset += 1,
                // Trailers: more than may wait on a connection.
                kind::HEADERS if next.flags & 1 == 1 => ended += 1,
                kind::PING if next.flags & ACK == 0 => {
                    raw.send(&frame(kind::PING, ACK, 0, &next.payload)).await.expect("open");
                }
                _ => {}
            }
        }
        assert!(reset > 0 && ended > 0, "window {window}: {reset} reset, {ended} refused");
    }
    world.unharmed().await;
}

/// It gives all the window there is, and doesn't read from its socket.
#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_is_not_read() {
    let mut world = World::start(&[("peer-timeout", "1s")]).await;
    let mut raw = Raw::connect_from(&world.address, [127, 0, 0, 1]).await;
    raw.begin(&[(INITIAL_WINDOW_SIZE, i32::MAX.cast_unsigned())]).await;
    let room = frame(kind::WINDOW_UPDATE, 0, 0, &(i32::MAX - 65_535).cast_unsigned().to_be_bytes());
    raw.send(&room).await.expect("open");
    // Answers to these fill every buffer between here and there, until it stops reading, too.
    let call = |n: u32| whole_call(2 * n + 1, GET, &world.named());
    let mut n = 0;
    while let Ok(sent) = tokio::time::timeout(
        Duration::from_secs(20),
        raw.send(&(n..n + 50).flat_map(call).collect::<Vec<_>>()),
    )
    .await
    {
        n += 50;
        if sent.is_err() || world.ended("unread").await >= 1 {
            break;
        }
    }
    world.told("unread", 1).await;
    world.unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_append_stream_that_says_nothing() {
    let mut world = World::start(&[("append-idle-timeout", "500ms")]).await;
    let mut batches = world.cluster.client().batches();
    let first = v1::AppendTasksRequest {
        name: world.batch.clone(),
        first_sequence: 1,
        tasks: tasks(3).into_iter().collect(),
    };
    // From the start, and after a message.
    for said in [vec![], vec![first]] {
        let count = said.len();
        let requests = futures::stream::iter(said).chain(futures::stream::pending());
        let mut acks = batches.append_tasks(requests).await.expect("open").into_inner();
        let mut durable = 0;
        let status = loop {
            match acks.message().await {
                Ok(Some(ack)) => durable = ack.durable_through,
                Ok(None) => panic!("ended without a reason"),
                Err(status) => break status,
            }
        };
        assert_eq!((status.code(), durable > 0), (tonic::Code::Aborted, count > 0), "{status}");
        assert!(status.message().contains("append_idle_timeout"), "{status}");
    }
    let samples = world.samples().await;
    assert_eq!(samples["tranche_refused_calls_total{reason=\"APPEND_IDLE\"}"], 2);
    assert!(world.cluster.coordinator(0).has_ended().is_none());

    // Our own client goes on, however often that happens.
    let options = Options { retry_for: Duration::from_millis(700), ..Options::default() };
    let client = Client::connect(world.cluster.url(0)).await.expect("connected");
    drop(client);
    let client = Client::connect_lazy(world.cluster.url(0), options).expect("a URL");
    let batch = world.cluster.create(batch_for("noop")).await;
    let slowly = futures::stream::iter(tasks(4)).then(|task| async {
        if task.key == "k3" {
            tokio::time::sleep(Duration::from_millis(2_500)).await;
        }
        task
    });
    assert_eq!(client.append(&batch, slowly).await.expect("appended"), 4);
    assert!(world.samples().await["tranche_refused_calls_total{reason=\"APPEND_IDLE\"}"] > 3);
    world.unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_never_ends() {
    let world = World::start(&[("request-timeout", "700ms")]).await;
    for path in [GET, WATCH, CHECK] {
        let mut raw = world.open().await;
        // A part of the message, and no end.
        let mut bytes = frame(kind::HEADERS, END_HEADERS, 1, &block(&call(path)));
        bytes.extend(frame(kind::DATA, 0, 1, &message(&world.named())[..7]));
        raw.send(&bytes).await.expect("open");
        let answer = raw.find(kind::HEADERS).await.expect("an answer");
        assert_eq!(answer.flags & 1, 1, "{path}: at its end");
    }
    let samples = world.samples().await;
    assert_eq!(samples["tranche_refused_calls_total{reason=\"REQUEST_TIMEOUT\"}"], 2);
    world.unharmed().await;
}

/// Streams of all kinds that say nothing more, on a connection that lives: none of them keeps a process that leaves.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_says_nothing_is_let_go() {
    let world = World::start(&[("lease-ttl", "1s")]).await;
    let mut raw = world.open().await;
    raw.send(&begin_call(1, ATTACH, &hello())).await.expect("open");
    raw.find(kind::DATA).await.expect("welcome");
    let end = loop {
        let next = raw.next().await.expect("the connection stays");
        if next.kind == kind::HEADERS {
            break next;
        }
    };
    assert_eq!((end.stream, end.flags & 1), (1, 1));
    world.unharmed().await;
}
