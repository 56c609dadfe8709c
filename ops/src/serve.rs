//! A small HTTP/1 server.

use crate::{OPENMETRICS, Operated, PLAIN, plain};
use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use http::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Connections at once: a few scrapers, a few probes. One more is closed as it comes.
pub const MAX_CONNECTIONS: usize = 32;
/// How long a request's head may take, and a connection may rest between two.
pub const HEAD_LIMIT: Duration = Duration::from_secs(5);
/// How long a connection lives, whatever is done on it: one that doesn't read its answer holds its place no longer.
pub const CONNECTION_LIMIT: Duration = Duration::from_secs(30);
/// The most bytes of a request's head.
const MAX_HEAD_BYTES: usize = 16 * 1024;
/// Pause after a connection couldn't be accepted: it is most often for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `stop`; what is open then is cut. `/metrics` answers to connections that are `known` alone; a probe
/// shows nothing of itself.
pub async fn serve<C>(
    mut incoming: impl Stream<Item = io::Result<C>> + Send + Unpin,
    operated: Arc<dyn Operated>,
    known: impl Fn(&C) -> bool,
    stop: CancellationToken,
) where
    C: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let free = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let open = TaskTracker::new();
    loop {
        let connection = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            connection = incoming.next() => connection,
        };
        match connection {
            None => break,
            Some(Err(error)) => {
                tracing::warn!(%error, "no connection to the ops port");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
            Some(Ok(stream)) => {
                let Ok(permit) = free.clone().try_acquire_owned() else {
                    tracing::warn!(
                        limit = MAX_CONNECTIONS,
                        "too many connections to the ops port: one closed"
                    );
                    continue;
                };
                let (operated, known, stop) = (operated.clone(), known(&stream), stop.clone());
                open.spawn(async move {
                    let _permit = permit;
                    let carried = tokio::time::timeout(CONNECTION_LIMIT, carry(stream, operated, known));
                    let _ = stop.run_until_cancelled(carried).await;
                });
            }
        }
    }
    open.close();
    open.wait().await;
}

async fn carry<C>(stream: C, operated: Arc<dyn Operated>, known: bool)
where
    C: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = answer(&request, &*operated, known);
        async move { Ok::<_, Infallible>(answer) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "connection to the ops port broke");
    }
}

fn answer<B>(request: &Request<B>, operated: &dyn Operated, known: bool) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut refused = said(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n".to_owned());
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    match request.uri().path() {
        "/livez" => said(StatusCode::OK, "alive\n".to_owned()),
        "/readyz" => match operated.ready() {
            Ok(()) => said(StatusCode::OK, "ready\n".to_owned()),
            Err(why) => said(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")),
        },
        "/metrics" if !known => {
            said(StatusCode::FORBIDDEN, "a client certificate is needed here\n".to_owned())
        }
        "/metrics" => {
            let text = operated.metrics();
            let accepts = request.headers().get_all(ACCEPT).iter();
            let openmetrics = accepts
                .filter_map(|accept| accept.to_str().ok())
                .any(|a| a.contains("application/openmetrics-text"));
            let (kind, text) = if openmetrics { (OPENMETRICS, text) } else { (PLAIN, plain(&text)) };
            let mut answer = said(StatusCode::OK, text);
            answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
            answer
        }
        _ => said(StatusCode::NOT_FOUND, "there are /livez, /readyz and /metrics\n".to_owned()),
    }
}

fn said(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
