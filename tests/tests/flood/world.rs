//! A coordinator as a process, and somebody who uses it as it is meant.

use prost::Message as _;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tranche_client::{Client, Options, v1};
use tranche_tests::cluster::batch_for;
use tranche_tests::raw::{Frame, Raw};
use tranche_tests::{Cluster, eventually, scrape};

pub(crate) const GET: &str = "/tranche.v1.BatchService/GetBatch";
pub(crate) const WATCH: &str = "/tranche.v1.BatchService/WatchBatch";
pub(crate) const APPEND: &str = "/tranche.v1.BatchService/AppendTasks";
pub(crate) const ATTACH: &str = "/tranche.v1.WorkerService/Attach";

/// What an attack may add to a process's memory, at its most.
const MEMORY: u64 = 96 << 20;

pub(crate) struct World {
    pub(crate) cluster: Cluster,
    /// The address of its port for operators.
    pub(crate) ops: String,
    /// The address of its gRPC port.
    pub(crate) address: String,
    pub(crate) batch: String,
    memory: u64,
    others: Others,
}

impl World {
    /// With these flags.
    pub(crate) async fn start(flags: &[(&str, &str)]) -> Self {
        let mut builder = Cluster::builder().embedded().flag("ops-listen", "127.0.0.1:0").flag("log", "info");
        // Attackers and others come from one address here, and calls are limited by caller.
        builder = builder.flag("max-calls-per-second", "0");
        for (name, value) in flags {
            builder = builder.flag(name, value);
        }
        let mut cluster = builder.start().await;
        let ops = cluster.coordinator(0).said("ops port on").await.expect("an ops port");
        let address = cluster.url(0).trim_start_matches("http://").to_owned();
        let batch = cluster.create(batch_for("noop")).await;
        let others = Others::start(cluster.url(0), batch.clone());
        // What a first call needs is there before it is measured.
        others.go_on().await;
        let memory = cluster.coordinator(0).peak_memory().expect("running");
        Self { cluster, ops, address, batch, memory, others }
    }

    pub(crate) async fn open(&self) -> Raw {
        Raw::open(&self.address, &[]).await
    }

    /// A request that names the batch.
    pub(crate) fn named(&self) -> Vec<u8> {
        v1::GetBatchRequest { name: self.batch.clone() }.encode_to_vec()
    }

    /// What it tells of itself, in whole numbers.
    pub(crate) async fn samples(&self) -> BTreeMap<String, u64> {
        scrape::samples(&self.ops).await.into_iter().map(|(name, value)| (name, value as u64)).collect()
    }

    /// How many connections ended for this reason.
    pub(crate) async fn ended(&self, reason: &str) -> u64 {
        self.samples().await[&format!("tranche_connections_ended_total{{reason=\"{reason}\"}}")]
    }

    /// Waits until so many connections have ended for this reason, and the log says it.
    pub(crate) async fn told(&mut self, reason: &str, times: u32) {
        let (ops, name) =
            (self.ops.clone(), format!("tranche_connections_ended_total{{reason=\"{reason}\"}}"));
        let what = format!("{times} connections ended: {reason}");
        eventually(&what, async || (scrape::samples(&ops).await[&name] >= f64::from(times)).then_some(()))
            .await;
        let log = self.cluster.coordinator(0).log();
        assert!(log.contains("connection ended") && log.contains(&format!("reason=\"{reason}\"")), "{log}");
    }

    /// The attack is over: nobody else noticed, and it cost no memory to speak of.
    pub(crate) async fn unharmed(mut self) {
        self.others.go_on().await;
        let most = self.cluster.coordinator(0).peak_memory().expect("running");
        assert!(most - self.memory < MEMORY, "{} MiB more memory", (most - self.memory) >> 20);
        self.others.stop().await;
        self.cluster.client().get(&self.batch).await.expect("served");
    }
}

/// Calls one after the other, on a connection of their own, of which none may fail.
struct Others {
    done: Arc<AtomicU64>,
    stop: CancellationToken,
    running: JoinHandle<()>,
}

impl Others {
    fn start(url: String, batch: String) -> Self {
        let (done, stop) = (Arc::new(AtomicU64::new(0)), CancellationToken::new());
        let (counted, stopped) = (done.clone(), stop.clone());
        let running = tokio::spawn(async move {
            let options = Options { retry_for: Duration::ZERO, ..Options::default() };
            let client = Client::connect_lazy(url, options).expect("a URL");
            while !stopped.is_cancelled() {
                client.get(&batch).await.expect("a call of somebody else");
                counted.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        Self { done, stop, running }
    }

    /// Waits for some more calls.
    async fn go_on(&self) {
        let before = self.done.load(Ordering::Relaxed);
        eventually("calls of others", async || {
            assert!(!self.running.is_finished(), "a call of somebody else failed");
            (self.done.load(Ordering::Relaxed) > before + 5).then_some(())
        })
        .await;
    }

    async fn stop(self) {
        self.stop.cancel();
        self.running.await.expect("no call of anybody else failed");
    }
}

/// Asserts that it is told to calm down, with this word.
#[track_caller]
pub(crate) fn calm(goaway: Option<Frame>, said: &str) -> Frame {
    let goaway = goaway.expect("it is told why");
    assert_eq!(goaway.code(), tranche_tests::raw::ENHANCE_YOUR_CALM, "{goaway:?}");
    assert_eq!(goaway.said(), said);
    goaway
}
