//! Everything at its largest, and one more.

use crate::world::{APPEND, GET, World};
use http_body::Body as _;
use prost::Message as _;
use std::future::poll_fn;
use std::pin::Pin;
use tonic::body::Body;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tower::{Service as _, ServiceExt as _};
use tranche_client::v1;
use tranche_proto::{MAX_APPEND_BYTES, MAX_APPEND_TASKS};
use tranche_tests::cluster::tasks;
use tranche_tests::raw::{END_HEADERS, block, call, frame, header, kind, message};

/// `coordinator/src/connections/mod.rs`.
const MAX_HEADER_BYTES: usize = 16 * 1024;
/// What HTTP/2 counts for a header beside its bytes.
const HEADER: usize = 32;

async fn channel(world: &World) -> Channel {
    Endpoint::from_shared(world.cluster.url(0)).expect("a URL").connect().await.expect("connected")
}

/// Sends these bytes as the body of a call, and returns how it ends.
async fn raw(channel: &mut Channel, path: &str, body: Vec<u8>) -> Status {
    let request =
        http::Request::post(path).header("content-type", "application/grpc").header("te", "trailers");
    let body = Body::new(http_body_util::Full::new(bytes::Bytes::from(body)));
    let response =
        channel.ready().await.expect("connected").call(request.body(body).expect("a request")).await;
    let (head, mut body) = response.expect("answered").into_parts();
    if let Some(status) = Status::from_header_map(&head.headers) {
        return status;
    }
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        if let Some(trailers) = frame.expect("whole").trailers_ref() {
            return Status::from_header_map(trailers).expect("a status");
        }
    }
    panic!("no status")
}

#[tokio::test(flavor = "multi_thread")]
async fn headers() {
    let world = World::start(&[]).await;
    let usual = call(GET);
    let used: usize = usual.iter().map(|(name, value)| name.len() + value.len() + HEADER).sum();
    let fill = MAX_HEADER_BYTES - used - "x-fill".len() - HEADER;
    for (more, taken) in [(0, true), (1, false)] {
        let mut raw = world.open().await;
        let headers = [block(&usual), header("x-fill", &"f".repeat(fill + more))].concat();
        raw.send(&frame(kind::HEADERS, END_HEADERS, 1, &headers)).await.expect("open");
        raw.send(&frame(kind::DATA, 1, 1, &message(&world.named()))).await.expect("open");
        let answer = raw.find(kind::HEADERS).await.expect("an answer");
        // `:status: 200` is one byte of HPACK; behind updates of the table's size.
        let status = answer.payload.iter().find(|byte| **byte & 0xe0 != 0x20);
        assert_eq!(*status.expect("a status") == 0x88, taken, "{more} more: {answer:?}");
    }
    // Very many small ones, and one that is larger than h2 reads on behind.
    for headers in [header("x", "y").repeat(15_000), header("x-fill", &"f".repeat(1_000_000))] {
        let mut raw = world.open().await;
        let headers = [block(&usual), headers].concat();
        let mut parts = headers.chunks(16 * 1024).peekable();
        let mut kind = kind::HEADERS;
        while let Some(part) = parts.next() {
            let flags = if parts.peek().is_none() { END_HEADERS | 1 } else { 0 };
            if raw.send(&frame(kind, flags, 1, part)).await.is_err() {
                break;
            }
            kind = tranche_tests::raw::kind::CONTINUATION;
        }
        while let Some(next) = raw.next().await {
            assert_ne!(next.payload.first(), Some(&0x88), "it isn't taken");
            if next.kind == tranche_tests::raw::kind::HEADERS {
                break;
            }
        }
    }
    world.unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_and_what_they_claim_to_be() {
    let world = World::start(&[]).await;
    let mut channel = channel(&world).await;
    // 4 GiB, and the first bytes of it.
    let mut claimed = vec![0, 0xff, 0xff, 0xff, 0xff];
    claimed.extend([7; 1000]);
    assert_eq!(raw(&mut channel, GET, claimed.clone()).await.code(), Code::OutOfRange);
    let status = raw(&mut channel, APPEND, claimed).await;
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    assert!(status.message().contains("larger than it may be"), "{status}");
    // A length that is more than what comes.
    let mut short = message(&world.named());
    short[4] += 1;
    assert_ne!(raw(&mut channel, GET, short).await.code(), Code::Ok);
    // What says that it is compressed, and isn't.
    let mut compressed = message(&world.named());
    compressed[0] = 1;
    assert_ne!(raw(&mut channel, GET, compressed).await.code(), Code::Ok);
    let mut two = message(&world.named());
    two.extend(message(&world.named()));
    raw(&mut channel, GET, two).await;
    assert_eq!(raw(&mut channel, GET, message(&world.named())).await.code(), Code::Ok);
    world.unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_that_nobody_knows() {
    let world = World::start(&[]).await;
    let mut channel = channel(&world).await;
    let name = world.named();
    // Field 99, a megabyte of it: later versions may have such.
    let mut huge = name.clone();
    prost::encoding::bytes::encode(99, &vec![7_u8; 1 << 20], &mut huge);
    assert_eq!(raw(&mut channel, GET, message(&huge)).await.code(), Code::Ok);
    let mut many = name.clone();
    for _ in 0..200_000 {
        prost::encoding::bool::encode(99, &true, &mut many);
    }
    assert_eq!(raw(&mut channel, GET, message(&many)).await.code(), Code::Ok);
    // Groups in groups, deeper than any stack.
    let groups =
        |count: usize| [name.clone(), [0x9b, 0x06].repeat(count), [0x9c, 0x06].repeat(count)].concat();
    assert_eq!(raw(&mut channel, GET, message(&groups(10))).await.code(), Code::Ok);
    for count in [1_000, 500_000] {
        let status = raw(&mut channel, GET, message(&groups(count))).await;
        assert_ne!(status.code(), Code::Ok, "{count}");
    }
    world.unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_of_one_append() {
    let world = World::start(&[]).await;
    let mut channel = channel(&world).await;
    let append = |tasks: Vec<v1::Task>| {
        let tasks = tasks.into_iter().collect();
        let request = v1::AppendTasksRequest { name: world.batch.clone(), first_sequence: 1, tasks };
        message(&request.encode_to_vec())
    };
    let status = raw(&mut channel, APPEND, append(tasks(MAX_APPEND_TASKS as u64 + 1))).await;
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    // To the byte: five tasks that are as large together as a message may be, and one byte more.
    let sized = |total: usize| {
        let task = |payload: usize| v1::Task { key: String::new(), payload: vec![1; payload].into() };
        let mut all = vec![task(1 << 20); 3];
        all.extend([task(500_000), task(500_000)]);
        let more = total + 5 - append(all.clone()).len();
        all[4] = task(500_000 + more);
        all
    };
    assert_eq!(append(sized(MAX_APPEND_BYTES)).len(), MAX_APPEND_BYTES + 5);
    let status = raw(&mut channel, APPEND, append(sized(MAX_APPEND_BYTES + 1))).await;
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    assert_eq!(raw(&mut channel, APPEND, append(sized(MAX_APPEND_BYTES))).await.code(), Code::Ok);
    assert_eq!(world.cluster.get(&world.batch).await.counters.expect("there").total, 5);
    let more: Vec<v1::Task> = tasks(MAX_APPEND_TASKS as u64);
    assert_eq!(raw(&mut channel, APPEND, append(more)).await.code(), Code::Ok);
    assert_eq!(
        world.cluster.get(&world.batch).await.counters.expect("there").total,
        MAX_APPEND_TASKS.cast_signed() as i64
    );
    world.unharmed().await;
}
