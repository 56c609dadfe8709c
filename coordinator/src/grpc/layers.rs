//! What every call goes through: a span, a limit of how many at once, a time limit; and the end, when the
//! process leaves.
//!
//! tonic's own `load_shed` and `concurrency_limit` count by connection, and its `timeout` answers CANCELLED;
//! here the limits are the process's, and what is refused says so with the details that all our errors
//! carry. Streams count only until they begin to answer; their services limit how many are open.

use super::ending::{Ending, Side};
use super::status;
use super::told::Told;
use crate::error::Error;
use crate::metrics::{CallMetrics, code_name};
use futures::future::BoxFuture;
use http::{HeaderMap, HeaderValue};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer, Service};
use tracing::{Instrument, field};
use tranche_ops::{TRACEPARENT, trace};
use uuid::Uuid;

type Request = http::Request<Body>;
type Response = http::Response<Body>;

/// Names a call in logs; taken from the caller or made, and sent back.
pub const REQUEST_ID: &str = "x-request-id";
/// The most bytes of a caller's request id.
const MAX_REQUEST_ID: usize = 128;

/// The services that the limits are for. Health, reflection and the workers' streams must answer when
/// clients are too many.
const LIMITED: [&str; 2] = ["/tranche.v1.BatchService/", "/tranche.v1.AdminService/"];

/// What takes nothing new once the process leaves. Health and reflection still answer.
const OURS: &str = "/tranche.v1.";

/// Wraps the services.
#[derive(Clone, Debug)]
pub struct CallLayer {
    free: Arc<Semaphore>,
    most: usize,
    timeout: Duration,
    shutdown: CancellationToken,
    metrics: CallMetrics,
}

impl CallLayer {
    /// At most `most` calls at once, each of at most `timeout`; none new after `shutdown`.
    pub(crate) fn new(most: usize, timeout: Duration, shutdown: CancellationToken) -> Self {
        Self {
            free: Arc::new(Semaphore::new(most)),
            most,
            timeout,
            shutdown,
            metrics: CallMetrics::default(),
        }
    }

    /// Counts what it lets through and what it refuses.
    pub(crate) fn counted(self, metrics: CallMetrics) -> Self {
        Self { metrics, ..self }
    }

    /// Waits until no call is in work.
    pub(crate) async fn idle(&self) {
        let all = u32::try_from(self.most).unwrap_or(u32::MAX);
        drop(self.free.acquire_many(all).await);
    }
}

impl<S> Layer<S> for CallLayer {
    type Service = Calls<S>;
    fn layer(&self, inner: S) -> Self::Service {
        Calls { inner, layer: self.clone() }
    }
}

/// The wrapped services.
#[derive(Clone, Debug)]
pub struct Calls<S> {
    inner: S,
    layer: CallLayer,
}

impl<S> Service<Request> for Calls<S>
where
    S: Service<Request, Response = Response> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
{
    type Response = Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request) -> Self::Future {
        let id = request_id(&request);
        // For calls that are passed on to another coordinator.
        request.headers_mut().insert(REQUEST_ID, id.clone());
        let path = request.uri().path();
        let ours = path.starts_with(OURS);
        let method = CallMetrics::method(path);
        let span = if ours {
            let span = tracing::info_span!(
                "call",
                rpc.method = path.trim_start_matches('/'),
                request.id = id.to_str().unwrap_or_default(),
                otel.name = field::Empty,
                otel.kind = field::Empty,
                identity = field::Empty,
            );
            let parent = request.headers().get(TRACEPARENT).and_then(|value| value.to_str().ok());
            let name = path.trim_start_matches('/');
            trace::follow(&span, name, "server", &[("rpc.system.name", "grpc")], parent.unwrap_or_default());
            span
        } else {
            // Probes come every few seconds, and are no part of anybody's trace.
            tracing::debug_span!("call", rpc.method = path, request.id = id.to_str().unwrap_or_default())
        };
        let limited = LIMITED.iter().any(|prefix| request.uri().path().starts_with(prefix));
        let layer = self.layer.clone();
        let timeout = asked_time(request.headers()).map_or(layer.timeout, |asked| asked.min(layer.timeout));
        // The one that was polled ready is the one to call.
        let waiting = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, waiting);
        let work = async move {
            let started = tokio::time::Instant::now();
            let mut response = if ours && layer.shutdown.is_cancelled() {
                refusal(Error::ShuttingDown.into())
            } else {
                let permit = if limited { Some(layer.free.clone().try_acquire_owned()) } else { None };
                if let Some(Err(_)) = permit {
                    refusal(Error::Busy { what: "calls", limit: layer.most }.into())
                } else {
                    // Also of what isn't ours: a request may never end.
                    match tokio::time::timeout(timeout, inner.call(request)).await {
                        Ok(response) => response?,
                        Err(_) => refusal(status::timed_out(timeout)),
                    }
                }
            };
            if !ours {
                response = response.map(|body| until_shutdown(body, layer.shutdown.clone()));
            }
            let status = Status::from_header_map(response.headers());
            let code = status.as_ref().map_or(Code::Ok, Status::code);
            let elapsed = started.elapsed();
            tracing::debug!(rpc.code = ?code, ?elapsed, "answered");
            if ours {
                trace::answered(code_name(code), is_failure(code));
                layer.metrics.answered(method, elapsed);
                match status {
                    Some(status) => layer.metrics.ended(method, Some(&status)),
                    // How it ends comes behind what it says.
                    None => response = response.map(|body| Told::wrap(body, layer.metrics.clone(), method)),
                }
            }
            response.headers_mut().insert(REQUEST_ID, id);
            Ok(response)
        };
        Box::pin(work.instrument(span))
    }
}

/// The body of a stream that would go on for ever, like a watch of the health: ended once the process leaves,
/// when all that was there by then is said. Our own streams end by themselves.
fn until_shutdown(body: Body, shutdown: CancellationToken) -> Body {
    let over = async move {
        shutdown.cancelled_owned().await;
        Error::ShuttingDown.into()
    };
    Ending::wrap(body, Side::Response, || None, over)
}

/// What OpenTelemetry's conventions take for a failure of a server: not what a caller did wrong.
fn is_failure(code: Code) -> bool {
    matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    )
}

fn refusal(status: Status) -> Response {
    status.into_http()
}

/// How long the caller waits (`grpc-timeout`: up to eight digits and a unit).
pub(super) fn asked_time(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_hours(number),
        "M" => Duration::from_mins(number),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

fn request_id(request: &Request) -> HeaderValue {
    let given = request.headers().get(REQUEST_ID);
    given
        .filter(|id| (1..=MAX_REQUEST_ID).contains(&id.len()) && id.to_str().is_ok())
        .cloned()
        .unwrap_or_else(|| HeaderValue::try_from(Uuid::new_v4().simple().to_string()).expect("is ASCII"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use std::convert::Infallible;
    use std::pin::Pin;
    use tonic_types::StatusExt;
    use tower::service_fn;

    const GET: &str = "/tranche.v1.BatchService/GetBatch";

    fn layer(most: usize) -> CallLayer {
        CallLayer::new(most, Duration::from_secs(3), CancellationToken::new())
    }

    fn request(path: &str) -> Request {
        http::Request::builder().uri(path).body(Body::empty()).expect("a request")
    }

    fn reason(response: &Response) -> (Code, String) {
        let status = Status::from_header_map(response.headers()).expect("a status");
        (status.code(), status.get_error_details().error_info().expect("there").reason.clone())
    }

    async fn never(_: Request) -> Result<Response, Infallible> {
        std::future::pending().await
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_takes_too_long_is_told_so() {
        let mut calls = layer(1).layer(service_fn(never));
        let response = calls.call(request(GET)).await.expect("answered");
        assert_eq!(reason(&response), (Code::DeadlineExceeded, "REQUEST_TIMEOUT".to_owned()));
        let response = calls.call(request("/grpc.health.v1.Health/Check")).await.expect("answered");
        assert_eq!(reason(&response).0, Code::DeadlineExceeded, "a request that never ends");
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_may_ask_for_less_time_and_not_for_more() {
        let mut calls = layer(1).layer(service_fn(never));
        for (asked, waited) in [
            ("250m", Duration::from_millis(250)),
            ("2S", Duration::from_secs(2)),
            ("900000u", Duration::from_millis(900)),
            ("500000n", Duration::from_micros(500)),
            ("4S", Duration::from_secs(3)),
            ("99999999H", Duration::from_secs(3)),
            ("123456789m", Duration::from_secs(3)),
            ("S", Duration::from_secs(3)),
            ("1x", Duration::from_secs(3)),
            ("", Duration::from_secs(3)),
        ] {
            let mut request = request(GET);
            request.headers_mut().insert("grpc-timeout", asked.parse().expect("a value"));
            let began = tokio::time::Instant::now();
            let response = calls.call(request).await.expect("answered");
            assert_eq!(reason(&response), (Code::DeadlineExceeded, "REQUEST_TIMEOUT".to_owned()), "{asked}");
            // The clock of timers has milliseconds.
            assert_eq!(began.elapsed().as_millis(), waited.as_millis().max(1), "{asked}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_call_too_many_is_refused_at_once_and_others_are_not() {
        let mut calls = layer(2).layer(service_fn(never));
        let (one, two) = (tokio::spawn(calls.call(request(GET))), tokio::spawn(calls.call(request(GET))));
        tokio::task::yield_now().await;
        let response = calls.call(request(GET)).await.expect("answered");
        assert_eq!(reason(&response), (Code::ResourceExhausted, "OVERLOADED".to_owned()));
        let health = tokio::spawn(calls.call(request("/grpc.health.v1.Health/Check")));
        tokio::task::yield_now().await;
        assert!(!health.is_finished(), "it was let in");
        health.abort();
        for call in [one, two] {
            let response = call.await.expect("joined").expect("answered");
            assert_eq!(reason(&response).0, Code::DeadlineExceeded);
        }
        let third = tokio::spawn(calls.call(request(GET)));
        tokio::task::yield_now().await;
        assert!(!third.is_finished(), "there is room again");
        third.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_new_is_begun_while_the_process_leaves_and_what_is_in_work_is_waited_for() {
        let layer = layer(2);
        let mut calls = layer.layer(service_fn(never));
        let working = tokio::spawn(calls.call(request(GET)));
        tokio::task::yield_now().await;
        layer.shutdown.cancel();
        for path in [GET, "/tranche.v1.WorkerService/Attach"] {
            let response = calls.call(request(path)).await.expect("answered");
            assert_eq!(reason(&response), (Code::Unavailable, "SHUTTING_DOWN".to_owned()));
        }
        let health = tokio::spawn(calls.call(request("/grpc.health.v1.Health/Check")));
        let idle = tokio::time::timeout(Duration::from_secs(1), layer.idle()).await;
        assert!(idle.is_err(), "one is in work");
        assert!(!health.is_finished(), "it was let in");
        health.abort();
        let response = working.await.expect("joined").expect("answered");
        assert_eq!(reason(&response).0, Code::DeadlineExceeded);
        layer.idle().await;
    }

    struct Said(tokio::sync::mpsc::Receiver<Result<http_body::Frame<Bytes>, Status>>);

    impl http_body::Body for Said {
        type Data = Bytes;
        type Error = Status;
        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<http_body::Frame<Bytes>, Status>>> {
            self.0.poll_recv(cx)
        }
    }

    #[tokio::test]
    async fn a_stream_without_an_end_is_ended_after_what_it_had_to_say() {
        let (say, said) = tokio::sync::mpsc::channel::<Result<http_body::Frame<Bytes>, Status>>(2);
        let shutdown = CancellationToken::new();
        let mut body = Box::pin(until_shutdown(Body::new(Said(said)), shutdown.clone()));
        say.send(Ok(http_body::Frame::data(Bytes::from_static(b"not serving")))).await.expect("open");
        shutdown.cancel();
        let mut next =
            async || std::future::poll_fn(|cx| http_body::Body::poll_frame(body.as_mut(), cx)).await;
        let first = next().await.expect("said").expect("no error");
        assert_eq!(first.data_ref().expect("data").as_ref(), b"not serving");
        let last = next().await.expect("told").expect("no error").into_trailers().expect("trailers");
        assert_eq!(Status::from_header_map(&last).expect("a status").code(), Code::Unavailable);
        assert!(next().await.is_none());
    }

    #[tokio::test]
    async fn the_request_id_comes_back() {
        let answer = service_fn(|_| async { Ok::<_, Infallible>(Response::new(Body::empty())) });
        let mut calls = layer(1).layer(answer);
        let mut sent = async |id: Option<&str>| {
            let mut request = request(GET);
            if let Some(id) = id {
                request.headers_mut().insert(REQUEST_ID, id.parse().expect("a value"));
            }
            let response = calls.call(request).await.expect("answered");
            response.headers()[REQUEST_ID].to_str().expect("text").to_owned()
        };
        assert_eq!(sent(Some("mine")).await, "mine");
        assert_eq!(sent(Some(&"x".repeat(128))).await.len(), 128);
        assert_eq!(sent(Some(&"x".repeat(129))).await.len(), 32);
        assert_ne!(sent(None).await, sent(None).await);
    }
}
