//! Frames without end.

use crate::world::{GET, World, calm};
use std::time::{Duration, Instant};
use tranche_tests::raw::{ACK, END_HEADERS, Raw, block, call, frame, kind, whole_call};

/// The most of other frames at once, and a second (`coordinator/src/connections/frames.rs`).
const OTHERS: (u32, u32) = (4096, 400);
const PINGS: (u32, u32) = (100, 10);

/// Sends until the other side closes; at most so many times.
async fn until_closed(raw: &mut Raw, most: usize, mut bytes: impl FnMut(usize) -> Vec<u8>) {
    for n in 0..most {
        if raw.send(&bytes(n)).await.is_err() {
            return;
        }
    }
}

fn allowed((at_once, a_second): (u32, u32), took: Duration) -> u64 {
    u64::from(at_once) + (f64::from(a_second) * took.as_secs_f64()).ceil() as u64 + 1
}

#[tokio::test(flavor = "multi_thread")]
async fn rapid_reset() {
    let mut world = World::start(&[]).await;
    let headers = block(&call(GET));
    for _ in 0..3 {
        let mut raw = world.open().await;
        until_closed(&mut raw, 2000, |n| {
            let streams = (0..100).map(|m| 2 * (100 * n as u32 + m) + 1);
            let pair = |stream| {
                let open = frame(kind::HEADERS, END_HEADERS, stream, &headers);
                [open, frame(kind::RST_STREAM, 0, stream, &8_u32.to_be_bytes())].concat()
            };
            streams.flat_map(pair).collect()
        })
        .await;
        let goaway = raw.ended().await;
        // By either of two counters: h2's of those that it hadn't taken up yet, or ours of all.
        let goaway = goaway.expect("it is told why");
        assert_eq!(goaway.code(), tranche_tests::raw::ENHANCE_YOUR_CALM, "{goaway:?}");
        assert!(
            ["too_many_resets", "too_many_frames"].contains(&goaway.said().as_str()),
            "{}",
            goaway.said()
        );
        assert!(goaway.last_stream() / 2 <= 2 * OTHERS.0, "taken up: {}", goaway.last_stream() / 2);
    }
    assert!(world.ended("flood").await + world.ended("frames").await >= 3);
    assert!(world.cluster.coordinator(0).log().contains("connection ended"));
    world.unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn resets_of_calls_that_were_taken_up() {
    let mut world = World::start(&[]).await;
    let headers = block(&call(GET));
    let mut raw = world.open().await;
    let began = Instant::now();
    let mut sent: u64 = 0;
    // No message comes with them, so that nothing is answered; a call behind them is, once they are taken up.
    for round in 0.. {
        let streams = (0..100).map(|n| 2 * (101 * round + n) + 1);
        let answered = whole_call(2 * (101 * round + 100) + 1, GET, &world.named());
        let opened: Vec<u8> =
            streams.clone().flat_map(|stream| frame(kind::HEADERS, END_HEADERS, stream, &headers)).collect();
        let reset: Vec<u8> =
            streams.flat_map(|stream| frame(kind::RST_STREAM, 0, stream, &8_u32.to_be_bytes())).collect();
        if raw.send(&[opened, answered].concat()).await.is_err()
            || raw.find(kind::DATA).await.is_none()
            || raw.send(&reset).await.is_err()
        {
            break;
        }
        sent += 200;
        // The answer earns nine.
        let earned = 9 * (u64::from(round) + 1);
        let most = allowed(OTHERS, began.elapsed()) + earned + 200;
        assert!(sent <= most, "{sent} frames in {:?}", began.elapsed());
    }
    assert!(sent + 200 >= OTHERS.0.into(), "{sent} frames may come at once");
    world.told("frames", 1).await;
    world.unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn continuation_without_an_end() {
    let mut world = World::start(&[]).await;
    let fill = tranche_tests::raw::header("x-fill", &"f".repeat(4000));
    // Large ones, and empty ones.
    for part in [fill.as_slice(), &[]] {
        let mut raw = world.open().await;
        raw.send(&frame(kind::HEADERS, 0, 1, &block(&call(GET)))).await.expect("open");
        until_closed(&mut raw, 20_000, |_| frame(kind::CONTINUATION, 0, 1, part).repeat(50)).await;
        let goaway = raw.ended().await.expect("it is told why");
        assert!([1, 11].contains(&goaway.code()), "PROTOCOL_ERROR or ENHANCE_YOUR_CALM: {goaway:?}");
    }
    let ended = world.ended("flood").await + world.ended("protocol").await + world.ended("frames").await;
    assert!(ended >= 2, "{ended}");
    assert!(world.cluster.coordinator(0).log().contains("connection ended"));
    world.unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pings_at_the_limit_and_one_more() {
    let mut world = World::start(&[]).await;
    let mut raw = world.open().await;
    let began = Instant::now();
    let mut answered: u64 = 0;
    // One after the other, so that they can be counted.
    let goaway = loop {
        raw.send(&frame(kind::PING, 0, 0, b"are you?")).await.expect("it is told why");
        let next = loop {
            let next = raw.next().await.expect("it is told why");
            if next.kind == kind::GOAWAY || (next.kind == kind::PING && next.flags == ACK) {
                break next;
            }
        };
        if next.kind == kind::GOAWAY {
            break next;
        }
        answered += 1;
        assert!(answered <= allowed(PINGS, began.elapsed()), "{answered} in {:?}", began.elapsed());
    };
    assert!(answered >= PINGS.0.into(), "{answered} may come at once");
    calm(Some(goaway), "too_many_pings");
    assert_eq!(raw.ended().await, None);
    world.told("pings", 1).await;
    world.unharmed().await;
}

/// gRPC's own rule: clients measure the line with a PING for what they are sent.
#[tokio::test(flavor = "multi_thread")]
async fn pings_beside_calls_are_no_flood() {
    let world = World::start(&[]).await;
    let mut raw = world.open().await;
    for n in 0..3 * PINGS.0 {
        raw.send(&whole_call(2 * n + 1, GET, &world.named())).await.expect("open");
        assert!(raw.settled().await, "after {n} calls");
    }
    world.unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_that_bring_nothing() {
    let mut world = World::start(&[]).await;
    let update = 1_u32.to_be_bytes();
    for (name, frame, said) in [
        ("PING", frame(kind::PING, 0, 0, b"are you?"), "too_many_pings"),
        ("SETTINGS", frame(kind::SETTINGS, 0, 0, &[]), "too_many_settings"),
        ("PRIORITY", frame(kind::PRIORITY, 0, 1, &[0, 0, 0, 3, 9]), "too_many_frames"),
        ("WINDOW_UPDATE", frame(kind::WINDOW_UPDATE, 0, 0, &update), "too_many_frames"),
        ("PING ACK", frame(kind::PING, ACK, 0, b"I am, I!"), "too_many_frames"),
        ("unknown", frame(77, 0, 1, b"?"), "too_many_frames"),
        ("large unknown", frame(77, 0, 1, &[0; 10_000]), "too_many_frames"),
    ] {
        let mut raw = world.open().await;
        until_closed(&mut raw, 10_000, |_| frame.repeat(20)).await;
        let goaway = raw.ended().await;
        assert!(goaway.is_some(), "{name}: it is told why");
        calm(goaway, said);
    }
    world.told("pings", 1).await;
    world.told("settings", 1).await;
    world.told("frames", 5).await;
    world.unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn data_in_tiny_parts() {
    let mut world = World::start(&[]).await;
    let mut raw = world.open().await;
    raw.send(&frame(kind::HEADERS, END_HEADERS, 1, &block(&call(crate::world::APPEND)))).await.expect("open");
    until_closed(&mut raw, 10_000, |_| frame(kind::DATA, 0, 1, &[]).repeat(20)).await;
    calm(raw.ended().await, "too_many_data_frames");
    world.told("flood", 1).await;
    world.unharmed().await;
}

/// What isn't HTTP/2 at all.
#[tokio::test(flavor = "multi_thread")]
async fn another_protocol() {
    let mut world = World::start(&[]).await;
    for bytes in
        [b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".as_slice(), &[0x16, 3, 1, 2, 0, 1, 0, 1, 252], &[0xff; 4096]]
    {
        let mut raw = Raw::connect(&world.address).await;
        // It may be closed before all is sent.
        let _ = raw.send(&bytes.repeat(10)).await;
        raw.ended().await;
    }
    world.told("protocol", 3).await;
    world.unharmed().await;
}
