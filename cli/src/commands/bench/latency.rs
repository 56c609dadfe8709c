//! `tranche bench latency`: how long a batch of one task takes on an idle system.
//!
//! In turn, one at a time: a put into etcd, and a batch from CreateBatch to the client's hearing of COMMITTED, both
//! as a client makes them, over one connection. Before each, everything that the batch before left to do is done.

use std::time::{Duration, Instant};

use clap::Args;
use futures::stream;
use serde_json::json;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;
use tranche_client::v1::{self, batch::State};
use tranche_client::{Client, Error};

use super::cluster::{Cluster, ClusterArgs, Store, StoreArgs};
use super::etcd;
use super::figure::{Figure, percentile};
use super::report::Measured;
use super::runs::{Context, Row};
use super::usage;
use crate::error::{CliError, Result};
use crate::output::{count, state};

/// Batches before the clock counts: connections are made, files of the store have their size.
const WARM_UP: u32 = 30;
/// Pause before it is looked again whether the system is idle.
const PAUSE: Duration = Duration::from_millis(1);
/// What a batch may take, in puts: the median, and the 99th percentile.
const TARGETS: (f64, f64) = (12.0, 30.0);
/// Bytes of the value that is put, and of the task's payload.
const BYTES: usize = 100;

#[derive(Clone, Debug, Args)]
pub(crate) struct LatencyArgs {
    /// How many batches, one after the other.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    batches: u32,
    /// How many worker processes.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    workers: u32,
    /// Slots of each worker.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=1_024))]
    slots: u32,
    /// An etcd that runs already, such as <http://127.0.0.1:2379>; the bench uses a prefix of its own.
    #[arg(long, value_name = "URL")]
    etcd: Option<String>,
}

impl Row for LatencyArgs {
    async fn run(&self, context: &Context) -> Result<Measured> {
        let (etcd, url) = if let Some(url) = &self.etcd {
            (None, url.clone())
        } else {
            let (process, url) = etcd::start(context.folder())?;
            (Some(process), url)
        };
        let store = StoreArgs { store: Store::Etcd, etcd: Some(url.clone()) };
        let args = ClusterArgs { workers: self.workers, slots: self.slots, store };
        // Waits for etcd, too.
        let mut cluster = Cluster::start(context, &args).await?;
        let client = cluster.client().await?;
        let mut puts = Puts::connect(url).await?;
        let mut times = Times::default();
        cluster.while_alive(turns(WARM_UP, &client, &mut puts, &mut Times::default())).await?;
        let before = (cluster.coordinator_report(&client).await?.store_transactions, cluster.usage());
        cluster.while_alive(turns(self.batches, &client, &mut puts, &mut times)).await?;
        let spent = usage::between(&before.1, &cluster.usage());
        let transactions = cluster.coordinator_report(&client).await?.store_transactions - before.0;
        cluster.stop().await;
        if let Some(etcd) = etcd {
            etcd.stop().await;
        }
        context.tell(&format!(
            "{} batches of one task, {} workers",
            count(self.batches.into()),
            self.workers
        ));
        let usual = self.batches >= 300;
        let mut figures = times.figures(usual);
        let each = transactions as f64 / f64::from(self.batches);
        figures.push(Figure::ratio("etcd transactions for a batch, and its end", each));
        figures.extend(usage::figures(&spent));
        let details = json!({
            "batches": self.batches,
            "workers": self.workers,
            "slots": self.slots,
            "etcd_transactions": transactions,
            "processes": usage::json(&spent),
        });
        Ok(Measured::from(figures).detail(details))
    }
}

/// Seconds that each took.
#[derive(Debug, Default)]
struct Times {
    put: Vec<f64>,
    /// From the call of CreateBatch to the client's hearing of COMMITTED.
    batch: Vec<f64>,
    create: Vec<f64>,
    append: Vec<f64>,
    seal: Vec<f64>,
    /// From the answer to SealBatch.
    rest: Vec<f64>,
}

impl Times {
    fn figures(&self, usual: bool) -> Vec<Figure> {
        let put = percentile(&self.put, 0.5);
        let ratio = |share: f64| percentile(&self.batch, share) / put;
        let mut figures = vec![
            Figure::ratio("create → COMMITTED, p50, in puts", ratio(0.5)).at_most(TARGETS.0).judged_if(usual),
            Figure::ratio("create → COMMITTED, p99, in puts", ratio(0.99))
                .at_most(TARGETS.1)
                .judged_if(usual),
        ];
        for (name, values) in [("create → COMMITTED", &self.batch), ("put into etcd", &self.put)] {
            for (share, text) in [(0.5, "p50"), (0.99, "p99"), (1.0, "max")] {
                figures.push(Figure::seconds(format!("{name}, {text}"), percentile(values, share)));
            }
        }
        let steps = [
            ("CreateBatch", &self.create),
            ("AppendTasks", &self.append),
            ("SealBatch", &self.seal),
            ("sealed → COMMITTED", &self.rest),
        ];
        figures
            .extend(steps.map(|(name, values)| {
                Figure::seconds(format!("of it {name}, p50"), percentile(values, 0.5))
            }));
        figures
    }
}

async fn turns(turns: u32, client: &Client, puts: &mut Puts, times: &mut Times) -> Result<()> {
    for turn in 0..turns {
        times.put.push(puts.put(turn).await?);
        batch(client, times).await?;
    }
    Ok(())
}

/// One batch, and what is left to do after its end.
async fn batch(client: &Client, times: &mut Times) -> Result<()> {
    let request = v1::CreateBatchRequest {
        batch: Some(v1::Batch {
            targets: vec![v1::Target { handler: "noop".into(), ..Default::default() }],
            display_name: "bench latency".into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let start = Instant::now();
    let name = client.create(request).await?.name;
    let created = Instant::now();
    let submit = async {
        let task = v1::Task { key: "1".into(), payload: vec![b'x'; BYTES].into() };
        let total = client.append(&name, stream::iter([task])).await?;
        let appended = Instant::now();
        client.seal(&name, Some(total)).await?;
        Ok((appended, Instant::now()))
    };
    let end = async { Ok((client.wait(&name).await?, Instant::now())) };
    let ended = tokio::try_join!(submit, end);
    let ((appended, sealed), (batch, end)) = ended.map_err(|e: Error| CliError::of_batch(&name, e))?;
    if batch.state() != State::Committed {
        return Err(CliError::new(format!("{name} is {}", state(batch.state()))));
    }
    for (times, from, to) in [
        (&mut times.batch, start, end),
        (&mut times.create, start, created),
        (&mut times.append, created, appended),
        (&mut times.seal, appended, sealed),
        (&mut times.rest, sealed, end),
    ] {
        times.push(to.saturating_duration_since(from).as_secs_f64());
    }
    while !client.get(&name).await?.swept {
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

/// Puts into etcd, over a connection of their own. By hand: the command line is built without etcd's client, whose
/// build needs a `protoc`.
struct Puts(Grpc<Channel>);

/// `etcdserverpb.PutRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// `etcdserverpb.PutResponse`, of which nothing is read.
#[derive(Clone, PartialEq, prost::Message)]
struct PutResponse {}

impl Puts {
    async fn connect(url: String) -> Result<Self> {
        let unreachable = |e: tonic::transport::Error| CliError::caused("cannot reach etcd".to_owned(), &e);
        let endpoint = Endpoint::from_shared(url).map_err(unreachable)?.tcp_nodelay(true);
        Ok(Self(Grpc::new(endpoint.connect().await.map_err(unreachable)?)))
    }

    /// Seconds that one took: etcd answers when it is synced to disk.
    async fn put(&mut self, number: u32) -> Result<f64> {
        let failed = |text: String| CliError::new(format!("etcd took no put: {text}"));
        let key = format!("/tranche-bench/put/{number}").into_bytes();
        let request = tonic::Request::new(PutRequest { key, value: vec![b'x'; BYTES] });
        let codec = ProstCodec::<PutRequest, PutResponse>::default();
        let path = PathAndQuery::from_static("/etcdserverpb.KV/Put");
        let start = Instant::now();
        self.0.ready().await.map_err(|e| failed(e.to_string()))?;
        self.0.unary(request, path, codec).await.map_err(|status| failed(status.to_string()))?;
        Ok(start.elapsed().as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_batch_is_measured_in_puts() {
        let some = |seconds: f64| vec![seconds; 100];
        let mut times = Times {
            put: some(0.0005),
            batch: some(0.005),
            create: some(0.001),
            append: some(0.001),
            seal: some(0.001),
            rest: some(0.002),
        };
        times.batch[7] = 1.0;
        let figures = times.figures(true);
        let value = |name: &str| figures.iter().find(|f| f.name == name).expect("there").value;
        assert!((value("create → COMMITTED, p50, in puts") - 10.0).abs() < 1e-9);
        assert!((value("create → COMMITTED, p99, in puts") - 10.0).abs() < 1e-9);
        assert!((value("create → COMMITTED, max") - 1.0).abs() < 1e-9);
        assert_eq!(figures.iter().filter(|figure| figure.target.is_some()).count(), 2);
        assert!(times.figures(false).iter().all(|figure| figure.target.is_none()));
    }
}
