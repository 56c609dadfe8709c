//! What an operator's programs ask a process.

use std::collections::BTreeMap;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// One GET over HTTP/1.1: the status and the body.
///
/// # Panics
/// When there is no answer.
pub async fn get(address: &str, path: &str) -> (u16, String) {
    try_get(address, path).await.unwrap_or_else(|| panic!("no answer from {address}{path}"))
}

/// The same; `None`: there is no answer.
pub async fn try_get(address: &str, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}

/// The samples of `/metrics`, by name with labels in their order, `tasks_total{outcome="staged"}`.
///
/// # Panics
/// When there are none.
pub async fn samples(address: &str) -> BTreeMap<String, f64> {
    let (status, text) = get(address, "/metrics").await;
    assert_eq!(status, 200);
    let samples = text.lines().filter(|line| !line.starts_with('#')).map(|line| {
        let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no sample: {line}"));
        (name.to_owned(), value.parse().unwrap_or_else(|error| panic!("{line}: {error}")))
    });
    samples.collect()
}
