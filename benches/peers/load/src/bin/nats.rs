//! NATS JetStream: a work-queue stream in files, one durable pull consumer with explicit acknowledgement,
//! shared by 4 workers with connections of their own.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::jetstream::{self, AckKind, stream as js};
use bytes::Bytes;
use clap::{Parser, ValueEnum};
use futures::pin_mut;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use jetstream_extra::batch_publish::BatchPublishExt as _;
use jetstream_extra::batch_publish_fast::FastPublishExt as _;
use tranche_peers::{Done, Job, Queue, Start, payload};

const SUBJECT: &str = "tasks.a";

/// An answer may wait for fsync on a busy disk.
const ANSWER_WITHIN: Duration = Duration::from_mins(1);

/// Publishes whose answers are waited for together.
const WINDOW: usize = 4_096;

/// Messages of an atomic batch: the server takes no more.
const ATOMIC_BATCH: u64 = 1_000;

/// Atomic batches in flight.
const ATOMIC_INFLIGHT: usize = 8;

#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    job: Job,
    /// How tasks are put in.
    #[arg(long, value_enum, default_value_t = Publish::Async)]
    publish: Publish,
    /// Tasks that a worker asks for at a time.
    #[arg(long, default_value_t = 1_000)]
    batch: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Publish {
    /// One by one, each answered, a window of them in flight.
    Async,
    /// In atomic batches.
    Atomic,
    /// As one stream with few answers (server 2.14 or newer).
    Fast,
}

struct JetStream {
    arguments: Arguments,
    context: jetstream::Context,
    stream: js::Stream,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let job = arguments.job.clone();
    let (_client, context) = connect(&job.url).await?;
    let stream = context
        .create_stream(js::Config {
            name: "TASKS".into(),
            subjects: vec!["tasks.>".into()],
            retention: js::RetentionPolicy::WorkQueue,
            storage: js::StorageType::File,
            duplicate_window: Duration::from_secs(1),
            allow_atomic_publish: arguments.publish == Publish::Atomic,
            allow_batch_publish: arguments.publish == Publish::Fast,
            ..Default::default()
        })
        .await?;
    stream
        .create_consumer(pull::Config {
            durable_name: Some("workers".into()),
            ack_policy: AckPolicy::Explicit,
            ack_wait: Duration::from_mins(1),
            max_ack_pending: 50_000,
            ..Default::default()
        })
        .await?;
    tranche_peers::run(&job, &JetStream { arguments, context, stream }).await
}

async fn connect(url: &str) -> Result<(async_nats::Client, jetstream::Context)> {
    let client = async_nats::connect(url).await?;
    let mut context = jetstream::new(client.clone());
    context.set_timeout(ANSWER_WITHIN);
    Ok((client, context))
}

fn message(number: u64) -> Bytes {
    Bytes::copy_from_slice(&payload(number))
}

impl JetStream {
    async fn put_async(&self) -> Result<()> {
        let answers = stream::iter(0..self.arguments.job.tasks)
            .then(|number| self.context.publish(SUBJECT, message(number)))
            .map_ok(|answer| async move { answer.await.map(|_| ()) });
        answers.try_buffered(WINDOW).try_collect::<()>().await?;
        Ok(())
    }

    async fn put_atomic(&self) -> Result<()> {
        let tasks = self.arguments.job.tasks;
        let batches = (0..tasks).step_by(ATOMIC_BATCH as usize).map(|first| {
            let context = self.context.clone();
            let last = (first + ATOMIC_BATCH).min(tasks) - 1;
            async move {
                let mut batch = context.batch_publish().ack_first(false).build();
                for number in first..last {
                    batch.add(SUBJECT, message(number)).await?;
                }
                batch.commit(SUBJECT, message(last)).await?;
                anyhow::Ok(())
            }
        });
        stream::iter(batches).buffer_unordered(ATOMIC_INFLIGHT).try_collect().await
    }

    async fn put_fast(&self) -> Result<()> {
        let last = self.arguments.job.tasks - 1;
        let mut batch = self
            .context
            .fast_publish()
            .flow(1_000)
            .max_outstanding_acks(3)
            .ack_timeout(ANSWER_WITHIN)
            .build()?;
        for number in 0..last {
            batch.add(SUBJECT, message(number)).await?;
        }
        batch.commit(SUBJECT, message(last)).await?;
        Ok(())
    }
}

impl Queue for JetStream {
    async fn put(&self) -> Result<()> {
        match self.arguments.publish {
            Publish::Async => self.put_async().await,
            Publish::Atomic => self.put_atomic().await,
            Publish::Fast => self.put_fast().await,
        }
    }

    fn work(
        &self,
        _worker: usize,
        start: Start,
        done: Done,
    ) -> impl Future<Output = Result<()>> + Send + 'static {
        work(self.arguments.job.url.clone(), self.arguments.batch, start, done)
    }

    /// Acknowledgements are one-way: all have arrived when the work queue is empty.
    async fn settle(&self) -> Result<()> {
        let limit = Instant::now() + ANSWER_WITHIN;
        loop {
            let left = self.left().await?;
            if left == 0 {
                return Ok(());
            }
            ensure!(Instant::now() < limit, "{left} tasks are left unacknowledged");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn left(&self) -> Result<u64> {
        Ok(self.stream.get_info().await?.state.messages)
    }
}

async fn work(url: String, batch: usize, start: Start, done: Done) -> Result<()> {
    let (client, context) = connect(&url).await?;
    let consumer: PullConsumer =
        context.get_consumer_from_stream("workers", "TASKS").await.map_err(|error| anyhow!("{error}"))?;
    start.wait().await?;
    let mut messages = consumer.stream().max_messages_per_batch(batch).messages().await?;
    let all = done.wait();
    pin_mut!(all);
    loop {
        let message = tokio::select! {
            message = messages.next() => message,
            () = &mut all => break,
        };
        let Some(message) = message else { break };
        message?.ack_with(AckKind::Ack).await.map_err(|error| anyhow!("{error}"))?;
        done.add(1);
    }
    client.flush().await?;
    Ok(())
}
