//! Redis Streams: pipelined XADD; 4 consumers of one group, each with a connection of its own, that send
//! XACK for what they have together with the XREADGROUP for the next.

use std::hint::black_box;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Parser;
use futures::TryStreamExt as _;
use futures::stream::{self, StreamExt as _};
use redis::Value;
use redis::aio::MultiplexedConnection;
use tranche_peers::{Done, Job, Queue, Start, payload};

/// An answer may wait for fsync on a busy disk.
const ANSWER_WITHIN: Duration = Duration::from_mins(1);

/// How long a consumer that found nothing waits: XREADGROUP with BLOCK would hold back the XACK behind it.
const PAUSE: Duration = Duration::from_millis(1);

#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    job: Job,
    /// XADDs in one MULTI … EXEC, which is one append to the log and one fsync.
    #[arg(long, default_value_t = 1_000)]
    chunk: u64,
    /// Chunks in flight.
    #[arg(long, default_value_t = 4)]
    inflight: usize,
    /// Tasks that a consumer reads at a time.
    #[arg(long, default_value_t = 1_000)]
    batch: u64,
}

struct Streams {
    arguments: Arguments,
    client: MultiplexedConnection,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let job = arguments.job.clone();
    let mut client = connect(&job.url).await?;
    let mut create = redis::cmd("XGROUP");
    create.arg("CREATE").arg("tasks").arg("workers").arg("0").arg("MKSTREAM");
    create.query_async::<()>(&mut client).await?;
    tranche_peers::run(&job, &Streams { arguments, client }).await
}

async fn connect(url: &str) -> Result<MultiplexedConnection> {
    let config = redis::AsyncConnectionConfig::new().set_response_timeout(Some(ANSWER_WITHIN));
    Ok(redis::Client::open(url)?.get_multiplexed_async_connection_with_config(&config).await?)
}

impl Queue for Streams {
    async fn put(&self) -> Result<()> {
        let (tasks, chunk) = (self.arguments.job.tasks, self.arguments.chunk);
        let chunks = (0..tasks).step_by(usize::try_from(chunk)?).map(|first| {
            let mut connection = self.client.clone();
            async move {
                let mut pipe = redis::pipe();
                pipe.atomic();
                for number in first..(first + chunk).min(tasks) {
                    pipe.cmd("XADD").arg("tasks").arg("*").arg("p").arg(&payload(number)[..]).ignore();
                }
                pipe.query_async::<()>(&mut connection).await
            }
        });
        stream::iter(chunks).buffer_unordered(self.arguments.inflight).try_collect::<()>().await?;
        Ok(())
    }

    fn work(
        &self,
        worker: usize,
        start: Start,
        done: Done,
    ) -> impl Future<Output = Result<()>> + Send + 'static {
        consume(self.arguments.job.url.clone(), worker, self.arguments.batch, start, done)
    }

    async fn left(&self) -> Result<u64> {
        let mut client = self.client.clone();
        let groups: redis::streams::StreamInfoGroupsReply =
            redis::cmd("XINFO").arg("GROUPS").arg("tasks").query_async(&mut client).await?;
        let Some(group) = groups.groups.first() else { bail!("the group is gone") };
        let read = group.entries_read.unwrap_or_default() as u64;
        Ok(group.pending as u64 + self.arguments.job.tasks.abs_diff(read))
    }
}

async fn consume(url: String, worker: usize, batch: u64, start: Start, done: Done) -> Result<()> {
    let mut connection = connect(&url).await?;
    start.wait().await?;
    let mut taken: Vec<Value> = Vec::new();
    while !done.all() {
        let mut pipe = redis::pipe();
        if !taken.is_empty() {
            let acknowledge = pipe.cmd("XACK").arg("tasks").arg("workers");
            for id in &taken {
                if let Value::BulkString(id) = id {
                    acknowledge.arg(id.as_slice());
                }
            }
            acknowledge.ignore();
        }
        pipe.cmd("XREADGROUP").arg("GROUP").arg("workers").arg(worker);
        pipe.arg("COUNT").arg(batch).arg("STREAMS").arg("tasks").arg(">");
        let (reply,): (Value,) = pipe.query_async(&mut connection).await?;
        done.add(taken.len());
        taken = ids(reply);
        if taken.is_empty() {
            tokio::time::sleep(PAUSE).await;
        }
    }
    Ok(())
}

/// The ids in an answer to XREADGROUP: `[[stream, [[id, fields], …]]]`.
fn ids(reply: Value) -> Vec<Value> {
    let Value::Array(streams) = reply else { return Vec::new() };
    let entries = streams.into_iter().filter_map(|stream| match stream {
        Value::Array(mut parts) => parts.pop(),
        _ => None,
    });
    let entries =
        entries.flat_map(|entries| if let Value::Array(entries) = entries { entries } else { Vec::new() });
    entries
        .filter_map(|entry| match entry {
            Value::Array(mut parts) if !parts.is_empty() => {
                black_box(&parts);
                Some(parts.swap_remove(0))
            }
            _ => None,
        })
        .collect()
}
