//! The port over real sockets.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tranche_ops::{MAX_CONNECTIONS, OPENMETRICS, Operated, PLAIN, incoming, serve};

#[derive(Default)]
struct Told {
    drains: AtomicBool,
}

impl Operated for Told {
    fn ready(&self) -> Result<(), String> {
        if self.drains.load(Ordering::Relaxed) { Err("draining".to_owned()) } else { Ok(()) }
    }

    fn metrics(&self) -> String {
        "# HELP a_things Things.\n# TYPE a_things counter\na_things_total 1\n# EOF\n".to_owned()
    }
}

struct Port {
    address: SocketAddr,
    told: Arc<Told>,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

async fn port() -> Port {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let (address, told, stop) =
        (listener.local_addr().expect("bound"), Arc::new(Told::default()), CancellationToken::new());
    let serving = tokio::spawn(serve(incoming(listener), told.clone(), |_| true, stop.clone()));
    Port { address, told, stop, serving }
}

impl Port {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.expect("connected")
    }

    /// The whole answer to one request.
    async fn asked(&self, method: &str, path: &str, header: &str) -> String {
        let mut stream = self.connect().await;
        let request = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{header}\r\n");
        stream.write_all(request.as_bytes()).await.expect("written");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("read");
        answer
    }
}

#[tokio::test]
async fn it_says_whether_it_lives_is_ready_and_what_it_counts() {
    let port = port().await;
    assert!(port.asked("GET", "/livez", "").await.starts_with("HTTP/1.1 200 "));
    assert!(port.asked("GET", "/readyz", "").await.ends_with("\r\n\r\nready\n"));
    port.told.drains.store(true, Ordering::Relaxed);
    let not = port.asked("GET", "/readyz", "").await;
    assert!(not.starts_with("HTTP/1.1 503 ") && not.ends_with("not ready: draining\n"), "{not}");
    assert!(port.asked("GET", "/livez", "").await.starts_with("HTTP/1.1 200 "), "a probe must not kill it");
    let plain = port.asked("GET", "/metrics", "").await;
    assert!(plain.contains(PLAIN) && plain.contains("# TYPE a_things_total counter\n"), "{plain}");
    let open = port
        .asked("GET", "/metrics", "accept: application/openmetrics-text; version=1.0.0,text/plain;q=0.5\r\n")
        .await;
    assert!(open.contains(OPENMETRICS) && open.ends_with("# EOF\n"), "{open}");
    let head = port.asked("HEAD", "/metrics", "").await;
    assert!(head.starts_with("HTTP/1.1 200 ") && head.ends_with("\r\n\r\n"), "{head}");
    assert!(port.asked("GET", "/metrics/", "").await.starts_with("HTTP/1.1 404 "));
    let post = port.asked("POST", "/metrics", "content-length: 0\r\n").await;
    assert!(post.starts_with("HTTP/1.1 405 ") && post.contains("allow: GET, HEAD"), "{post}");
}

#[tokio::test]
async fn one_connection_too_many_is_closed_and_a_place_is_free_again_after_one() {
    let port = port().await;
    let mut held = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        let mut stream = port.connect().await;
        // Answered: so it has its place.
        stream.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("written");
        let mut some = [0; 12];
        stream.read_exact(&mut some).await.expect("read");
        assert_eq!(&some, b"HTTP/1.1 200");
        held.push(stream);
    }
    let mut one_more = port.connect().await;
    assert_eq!(one_more.read(&mut [0; 1]).await.unwrap_or(0), 0, "it is closed without a word");
    held.pop();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        let mut stream = port.connect().await;
        let written = stream.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await;
        if written.is_ok() && stream.read(&mut [0; 1]).await.is_ok_and(|read| read == 1) {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "no place became free");
    }
}

#[tokio::test]
async fn who_says_nothing_or_too_much_is_hung_up_on() {
    let port = port().await;
    let mut silent = port.connect().await;
    silent.write_all(b"GET /livez HT").await.expect("written");
    let mut answer = Vec::new();
    // Ends by itself: with an answer or without, but it ends.
    let _ =
        tokio::time::timeout(Duration::from_mins(1), silent.read_to_end(&mut answer)).await.expect("it ends");
    assert!(!answer.starts_with(b"HTTP/1.1 200"), "{answer:?}");
    let header = |bytes: usize| format!("x: {}\r\n", "x".repeat(bytes));
    assert!(port.asked("GET", "/livez", &header(8 * 1024)).await.starts_with("HTTP/1.1 200 "));
    let mut stream = port.connect().await;
    let _ = stream.write_all(format!("GET /livez HTTP/1.1\r\n{}\r\n", header(64 * 1024)).as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(
        answer.is_empty() || answer.starts_with(b"HTTP/1.1 431 "),
        "{}",
        String::from_utf8_lossy(&answer)
    );
}

#[tokio::test]
async fn it_ends_when_it_shall_whatever_is_open() {
    let port = port().await;
    let mut open = port.connect().await;
    open.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("written");
    open.read_exact(&mut [0; 12]).await.expect("answered");
    port.stop.cancel();
    port.serving.await.expect("ended");
}
