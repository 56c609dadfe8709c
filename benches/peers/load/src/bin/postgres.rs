//! PostgreSQL, written by hand: COPY in chunks; 4 connections that take tasks in batches with
//! FOR UPDATE SKIP LOCKED.

use std::time::Duration;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use futures::pin_mut;
use tokio_postgres::binary_copy::BinaryCopyInWriter;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, NoTls};
use tranche_peers::{Done, Job, Queue, Start, payload};

/// How long a worker that found nothing waits.
const PAUSE: Duration = Duration::from_millis(1);

const TABLE: &str = "CREATE TABLE tasks(id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    state smallint NOT NULL DEFAULT 0, leased_until timestamptz, payload bytea NOT NULL)";
/// Only leases need it: without them a task that was taken is gone from the table.
const INDEX: &str = "CREATE INDEX ready ON tasks(id) WHERE state = 0";
const DELETE: &str = "DELETE FROM tasks WHERE id = ANY(ARRAY(
    SELECT id FROM tasks WHERE state = 0 ORDER BY id FOR UPDATE SKIP LOCKED LIMIT $1)) RETURNING id, payload";
const LEASE: &str = "UPDATE tasks SET state = 1, leased_until = now() + interval '60 s' WHERE id = ANY(ARRAY(
    SELECT id FROM tasks WHERE state = 0 ORDER BY id FOR UPDATE SKIP LOCKED LIMIT $1)) RETURNING id, payload";
const ACKNOWLEDGE: &str = "DELETE FROM tasks WHERE id = ANY($1)";

#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    job: Job,
    /// How a worker holds its tasks.
    #[arg(long, value_enum, default_value_t = Hold::Transaction)]
    hold: Hold,
    /// Tasks that a worker takes at a time.
    #[arg(long, default_value_t = 500)]
    batch: i64,
    /// Tasks in one COPY.
    #[arg(long, default_value_t = 10_000)]
    chunk: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Hold {
    /// In an open transaction, which rolls back when the worker is lost.
    Transaction,
    /// By a lease that is committed first and deleted by a second transaction, as a worker needs
    /// that isn't next to its database or works for long.
    Lease,
}

struct Table {
    arguments: Arguments,
    client: Client,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let job = arguments.job.clone();
    let client = connect(&job.url).await?;
    client.batch_execute(TABLE).await?;
    if arguments.hold == Hold::Lease {
        client.batch_execute(INDEX).await?;
    }
    tranche_peers::run(&job, &Table { arguments, client }).await
}

async fn connect(url: &str) -> Result<Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    // It ends by itself when the client is dropped.
    tokio::spawn(connection);
    Ok(client)
}

impl Queue for Table {
    async fn put(&self) -> Result<()> {
        let (tasks, chunk) = (self.arguments.job.tasks, self.arguments.chunk);
        for first in (0..tasks).step_by(usize::try_from(chunk)?) {
            let sink = self.client.copy_in("COPY tasks(payload) FROM STDIN BINARY").await?;
            let writer = BinaryCopyInWriter::new(sink, &[Type::BYTEA]);
            pin_mut!(writer);
            for number in first..(first + chunk).min(tasks) {
                writer.as_mut().write(&[&&payload(number)[..]]).await?;
            }
            writer.finish().await?;
        }
        Ok(())
    }

    fn work(
        &self,
        _worker: usize,
        start: Start,
        done: Done,
    ) -> impl Future<Output = Result<()>> + Send + 'static {
        work(self.arguments.job.url.clone(), self.arguments.hold, self.arguments.batch, start, done)
    }

    async fn left(&self) -> Result<u64> {
        let left: i64 = self.client.query_one("SELECT count(*) FROM tasks", &[]).await?.get(0);
        Ok(u64::try_from(left)?)
    }
}

async fn work(url: String, hold: Hold, batch: i64, start: Start, done: Done) -> Result<()> {
    let client = connect(&url).await?;
    let take = client.prepare(if hold == Hold::Lease { LEASE } else { DELETE }).await?;
    let acknowledge = client.prepare(ACKNOWLEDGE).await?;
    start.wait().await?;
    while !done.all() {
        let params: [&(dyn tokio_postgres::types::ToSql + Sync); 1] = [&batch];
        let taken = match hold {
            Hold::Transaction => {
                // Both go out together: one round trip.
                let (begun, rows) =
                    futures::join!(client.batch_execute("BEGIN"), client.query(&take, &params));
                begun?;
                let rows = rows?;
                client.batch_execute("COMMIT").await?;
                rows.len()
            }
            Hold::Lease => {
                let rows = client.query(&take, &params).await?;
                if !rows.is_empty() {
                    let ids: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
                    client.execute(&acknowledge, &[&ids]).await?;
                }
                rows.len()
            }
        };
        if taken == 0 {
            tokio::time::sleep(PAUSE).await;
        } else {
            done.add(taken);
        }
    }
    Ok(())
}
