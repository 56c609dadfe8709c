use super::*;
use crate::identity::{Role, Scope};
use std::convert::Infallible;
use std::net::SocketAddr;
use tonic::{Code, Status};
use tonic_types::StatusExt;
use tower::service_fn;

const GET: &str = "/tranche.v1.BatchService/GetBatch";
const HEALTH: &str = "/grpc.health.v1.Health/Check";
const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";

fn layer(per_second: usize, burst: usize) -> RateLayer {
    RateLayer::new(Some(Rate { per_second, burst, fleet: 0 }))
}

fn request(path: &str) -> Request {
    http::Request::builder().uri(path).body(Body::empty()).expect("a request")
}

fn from(path: &str, address: &str) -> Request {
    let mut request = request(path);
    let address: SocketAddr = address.parse().expect("an address");
    request.extensions_mut().insert(TcpConnectInfo { local_addr: None, remote_addr: Some(address) });
    request
}

fn by(path: &str, name: &str) -> Request {
    // All over one connection, as behind a proxy.
    let mut request = from(path, "10.0.0.1:1");
    let roles = [Role::Reader].into_iter().collect();
    let identity = Identity::new(name, Scope::All, roles).expect("an identity");
    request.extensions_mut().insert(Arc::new(identity));
    request
}

/// `Err`: refused, and in this time there is room.
async fn call(layer: &RateLayer, request: Request) -> Result<(), (Status, Duration)> {
    let answer = service_fn(|_| async { Ok::<_, Infallible>(Response::new(Body::empty())) });
    let response = layer.layer(answer).call(request).await.expect("answered");
    let Some(status) = Status::from_header_map(response.headers()) else { return Ok(()) };
    let wait = status.get_details_retry_info().and_then(|info| info.retry_delay).expect("says when");
    Err((status, wait))
}

async fn taken(layer: &RateLayer, request: impl Fn() -> Request) -> usize {
    let mut taken = 0;
    while call(layer, request()).await.is_ok() {
        taken += 1;
    }
    taken
}

#[tokio::test(start_paused = true)]
async fn the_burst_is_let_in_and_the_next_call_is_told_when_to_come() {
    let layer = layer(10, 3);
    for _ in 0..3 {
        call(&layer, by(GET, "ci")).await.expect("let in");
    }
    let (status, wait) = call(&layer, by(GET, "ci")).await.expect_err("the fourth");
    assert_eq!((status.code(), wait), (Code::ResourceExhausted, Duration::from_millis(100)));
    let info = status.get_details_error_info().expect("there");
    assert_eq!(info.reason, "RATE_LIMITED");
    assert_eq!((info.metadata["caller"].as_str(), info.metadata["limit"].as_str()), ("ci", "10"));
    assert!(status.message().contains("max_calls_per_second"), "{}", status.message());
    // As it was told: not before, and then one.
    tokio::time::advance(Duration::from_millis(99)).await;
    let (_, wait) = call(&layer, by(GET, "ci")).await.expect_err("too early");
    assert_eq!(wait, Duration::from_millis(1));
    tokio::time::advance(wait).await;
    assert_eq!(taken(&layer, || by(GET, "ci")).await, 1);
    tokio::time::advance(Duration::from_hours(1)).await;
    assert_eq!(taken(&layer, || by(GET, "ci")).await, 3, "no more than the burst, however long the pause");
}

#[tokio::test(start_paused = true)]
async fn callers_take_nothing_from_each_other() {
    let layer = layer(1, 2);
    assert_eq!(taken(&layer, || by(GET, "ci")).await, 2);
    assert_eq!(taken(&layer, || by(GET, "other")).await, 2, "over the same connection");
    // Whom nobody asked: by address, not by connection.
    assert_eq!(taken(&layer, || from(GET, "10.0.0.1:1")).await, 2);
    assert_eq!(taken(&layer, || from(GET, "10.0.0.1:2")).await, 0);
    assert_eq!(taken(&layer, || from(GET, "[::ffff:10.0.0.1]:2")).await, 0, "the same, written otherwise");
    assert_eq!(taken(&layer, || from(GET, "10.0.0.2:1")).await, 2);
    assert_eq!(taken(&layer, || from(GET, "[2001:db8::1]:1")).await, 2);
    assert_eq!(taken(&layer, || from(GET, "[2001:db8::2]:1")).await, 0, "one machine has all of a /64");
    assert_eq!(taken(&layer, || from(GET, "[2001:db8:0:1::1]:1")).await, 2);
    assert_eq!(taken(&layer, || request(GET)).await, 2);
}

#[tokio::test(start_paused = true)]
async fn a_probe_is_answered_whatever_its_neighbours_do_and_floods_are_not() {
    let layer = layer(1, 2);
    assert_eq!(taken(&layer, || from(GET, "10.0.0.1:1")).await, 2);
    assert_eq!(taken(&layer, || from(HEALTH, "10.0.0.1:1")).await, 2);
    assert_eq!(taken(&layer, || from(REFLECTION, "10.0.0.1:1")).await, 0, "counted with health");
    let forwarded = |path| {
        let mut request = from(path, "10.0.0.1:1");
        request.headers_mut().insert(FORWARDED, http::HeaderValue::from_static("other"));
        request
    };
    call(&layer, forwarded(HEALTH)).await.expect_err("nobody passes on health");
    for _ in 0..10 {
        call(&layer, forwarded(GET)).await.expect("counted where it came from");
    }
}

#[tokio::test(start_paused = true)]
async fn a_whole_fleet_attaches_at_once() {
    const ATTACH: &str = "/tranche.v1.WorkerService/Attach";
    for (fleet, let_in) in [(50, 50), (0, 3)] {
        let layer = RateLayer::new(Some(Rate { per_second: 10, burst: 3, fleet }));
        assert_eq!(taken(&layer, || by(ATTACH, "workers")).await, let_in);
        assert_eq!(taken(&layer, || by(GET, "workers")).await, 3, "other calls are counted apart");
        tokio::time::advance(Duration::from_millis(100)).await;
        assert_eq!(taken(&layer, || by(ATTACH, "workers")).await, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_limit_nothing_is_counted() {
    let layer = RateLayer::new(None);
    for _ in 0..10_000 {
        call(&layer, by(GET, "ci")).await.expect("let in");
    }
}

#[test]
fn the_memory_is_bounded_and_those_without_a_bucket_of_their_own_share_one() {
    let start = Instant::now();
    let buckets = Buckets::new(Rate { per_second: 1, burst: 2, fleet: 0 }, start);
    let count = || buckets.kept.lock().expect("not poisoned").full_at.len();
    let caller = |n: usize| Caller::Identity(format!("jwt:{n}").into());
    for n in 0..MAX_BUCKETS {
        buckets.take(caller(n), Kind::Call, start).expect("let in");
    }
    assert_eq!(count(), MAX_BUCKETS);
    let others = (MAX_BUCKETS..MAX_BUCKETS + 5).map(|n| buckets.take(caller(n), Kind::Call, start));
    assert_eq!(others.flatten().count(), 2, "they share one bucket");
    assert_eq!(count(), MAX_BUCKETS + 1);
    buckets.take(caller(0), Kind::Call, start).expect("who has a bucket keeps it");
    buckets.take(caller(0), Kind::Call, start).expect_err("and it is empty");
    // One call takes a second to come back.
    let later = start + Duration::from_secs(1);
    buckets.take(caller(MAX_BUCKETS), Kind::Call, later).expect("let in");
    assert_eq!(count(), 3, "what is full isn't kept: caller 0, those who shared, and the new one");
}
