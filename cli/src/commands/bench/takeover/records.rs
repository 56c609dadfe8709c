//! What the bench reads in etcd by itself: the batch's records, and etcd's own counters.
//!
//! By hand: the command line is built without etcd's client, whose build needs a `protoc`.

use std::time::{Duration, Instant};

use prost::Message;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

use crate::error::{CliError, Result};

/// Pause before a key is read again: what a time may be too long by.
const PAUSE: Duration = Duration::from_millis(1);
/// How long what is waited for may take: the end of the old owner's session, the take-over.
const WITHIN: Duration = Duration::from_mins(1);

/// `etcdserverpb.RangeRequest`.
#[derive(Clone, PartialEq, Message)]
struct RangeRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    range_end: Vec<u8>,
    #[prost(bool, tag = "9")]
    count_only: bool,
}

/// `etcdserverpb.RangeResponse`.
#[derive(Clone, PartialEq, Message)]
struct RangeResponse {
    #[prost(message, repeated, tag = "2")]
    kvs: Vec<KeyValue>,
    #[prost(int64, tag = "4")]
    count: i64,
}

/// `mvccpb.KeyValue`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct KeyValue {
    #[prost(int64, tag = "2")]
    pub(super) create_revision: i64,
    #[prost(int64, tag = "3")]
    pub(super) mod_revision: i64,
    #[prost(bytes = "vec", tag = "5")]
    pub(super) value: Vec<u8>,
}

/// A connection of the bench's own.
pub(super) struct Records {
    grpc: Grpc<Channel>,
    url: String,
    prefix: String,
    /// What was read through it, which isn't the coordinator's.
    own: Counters,
}

impl Records {
    /// `prefix` is in front of every key.
    pub(super) async fn connect(url: &str, prefix: &str) -> Result<Self> {
        let unreachable = |e: tonic::transport::Error| CliError::caused("cannot reach etcd", &e);
        let endpoint = Endpoint::from_shared(url.to_owned()).map_err(unreachable)?.tcp_nodelay(true);
        let grpc = Grpc::new(endpoint.connect().await.map_err(unreachable)?);
        Ok(Self { grpc, url: url.to_owned(), prefix: prefix.to_owned(), own: Counters::default() })
    }

    async fn range(&mut self, request: RangeRequest) -> Result<RangeResponse> {
        let failed = |text: String| CliError::new(format!("etcd can't be read: {text}"));
        let codec = ProstCodec::<RangeRequest, RangeResponse>::default();
        let path = PathAndQuery::from_static("/etcdserverpb.KV/Range");
        self.grpc.ready().await.map_err(|e| failed(e.to_string()))?;
        let answer = self.grpc.unary(tonic::Request::new(request), path, codec).await;
        let answer = answer.map_err(|status| failed(status.to_string()))?.into_inner();
        self.own.reads += 1;
        self.own.sent_bytes += answer.encoded_len().cast_signed() as i64;
        Ok(answer)
    }

    pub(super) async fn get(&mut self, key: &str) -> Result<Option<KeyValue>> {
        let key = format!("{}{key}", self.prefix).into_bytes();
        Ok(self.range(RangeRequest { key, ..Default::default() }).await?.kvs.pop())
    }

    /// Reads a key until it is so.
    pub(super) async fn until<T>(
        &mut self,
        key: &str,
        so: impl Fn(Option<KeyValue>) -> Option<T>,
    ) -> Result<T> {
        let begin = Instant::now();
        while begin.elapsed() < WITHIN {
            if let Some(found) = so(self.get(key).await?) {
                return Ok(found);
            }
            tokio::time::sleep(PAUSE).await;
        }
        Err(CliError::new(format!("{key} stayed as it was for {WITHIN:?}")))
    }

    /// How many keys there are with this prefix, which ends with `/`.
    pub(super) async fn count(&mut self, prefix: &str) -> Result<i64> {
        let key = format!("{}{prefix}", self.prefix).into_bytes();
        let mut range_end = key.clone();
        range_end.pop();
        range_end.push(b'/' + 1);
        Ok(self.range(RangeRequest { key, range_end, count_only: true }).await?.count)
    }

    /// What etcd did since it started, beside this connection's reads.
    pub(super) async fn counters(&self) -> Result<Counters> {
        let address = self.url.trim_start_matches("http://");
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET /metrics HTTP/1.0\r\nHost: {address}\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        let all = Counters {
            reads: counter(&text, "etcd_mvcc_range_total"),
            sent_bytes: counter(&text, "etcd_network_client_grpc_sent_bytes_total"),
        };
        Ok(all.since(self.own))
    }
}

/// Reads that an etcd answered, and bytes that it sent.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counters {
    pub(super) reads: i64,
    pub(super) sent_bytes: i64,
}

impl Counters {
    pub(super) fn since(self, before: Self) -> Self {
        Self { reads: self.reads - before.reads, sent_bytes: self.sent_bytes - before.sent_bytes }
    }
}

/// A counter's value in what Prometheus reads; 0 if it isn't there.
fn counter(text: &str, name: &str) -> i64 {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.and_then(|value| value.parse::<f64>().ok()).map_or(0, |value| value as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_found_by_its_whole_name() {
        let text = "# TYPE a_total counter\na_total_more 7\na_total 1.5e+06\nb_total 3\n";
        assert_eq!(counter(text, "a_total"), 1_500_000);
        assert_eq!(counter(text, "c_total"), 0);
    }
}
