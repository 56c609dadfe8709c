//! Appending without loss and without doubles, over streams that may break at any point.

use std::error::Error as StdError;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::{Stream, StreamExt as _, TryStream, TryStreamExt as _};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use tranche_proto::v1::{AppendTasksRequest, AppendTasksResponse, Task};
use tranche_proto::{MAX_KEY_BYTES, MAX_PAYLOAD_BYTES, TaskList};

use crate::retry::Retry;
use crate::window::{Building, Chunk, Window};
use crate::{Client, Error, Options};

const CALL: &str = "AppendTasks";

/// Messages handed to the transport ahead of its flow control. Two keep it busy; more would only lie
/// beside the window, which holds them anyway. When it is full the window fills, then the source waits.
const OUTBOX: usize = 2;

/// How long the service has to end its side after the last acknowledgement. Nothing depends on it.
const FAREWELL: Duration = Duration::from_secs(2);

/// How far an append is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AppendProgress {
    /// Sequence number of the last task taken from the caller.
    pub taken: i64,
    /// Every task up to this sequence number is durable. More than `taken` while a resumed append skips
    /// what is there already.
    pub durable: i64,
}

/// Appends tasks to a batch, in chunks, several in flight.
///
/// A chunk holds at most [`Options::CHUNK_TASKS`] tasks and [`Options::CHUNK_BYTES`] bytes, or one larger
/// task, and is kept until the service has acknowledged it as durable. When the stream breaks, the client
/// connects again (with growing pauses, for at most [`Options::retry_for`] without progress), asks what is
/// durable and goes on exactly after it. So no task is lost, and none is appended twice.
///
/// The same holds for a client that was restarted: give it the same tasks from the same sequence number
/// on, and those that are durable are skipped.
///
/// A chunk is sent when it is full, when the source has ended, or when the source has nothing ready and
/// nothing else is in flight; so a slow source is not held back, and a fast one makes full chunks.
#[derive(Debug)]
pub struct Appender {
    client: Client,
    name: String,
    first: i64,
    progress: Option<watch::Sender<AppendProgress>>,
}

impl Appender {
    pub(crate) fn new(client: Client, name: String) -> Self {
        Self { client, name, first: 1, progress: None }
    }

    /// The sequence number of the first task of the source. Default: 1. All tasks before it must be
    /// durable.
    pub fn starting_at(mut self, first_sequence: i64) -> Self {
        self.first = first_sequence;
        self
    }

    /// Tells the progress there, after every chunk taken and every acknowledgement.
    pub fn report_to(mut self, progress: watch::Sender<AppendProgress>) -> Self {
        self.progress = Some(progress);
        self
    }

    /// Appends all tasks of an iterator. Returns how many it had; all are durable then.
    pub async fn run_iter<I>(self, tasks: I) -> Result<i64, Error>
    where
        I: IntoIterator<Item = Task>,
    {
        self.run(futures::stream::iter(tasks)).await
    }

    /// Appends all tasks of a stream. Returns how many it had; all are durable then.
    pub async fn run<S>(self, tasks: S) -> Result<i64, Error>
    where
        S: Stream<Item = Task>,
    {
        self.try_run(tasks.map(Ok::<_, std::convert::Infallible>)).await
    }

    /// Appends all tasks of a stream that may fail: its error comes back as [`Error::Source`]. Returns
    /// how many it had; all are durable then.
    pub async fn try_run<S>(self, tasks: S) -> Result<i64, Error>
    where
        S: TryStream<Ok = Task>,
        S::Error: Into<Box<dyn StdError + Send + Sync>>,
    {
        let tasks = tasks.map_err(Into::into);
        let source = Source {
            tasks: std::pin::pin!(tasks),
            next: self.first,
            building: Building::starting_at(self.first),
            carry: None,
            ended: false,
        };
        let mut run = Run {
            options: self.client.options().clone(),
            retry: Retry::new(self.client.options().retry_for),
            window: Window::new(self.first - 1),
            source,
            appender: &self,
        };
        loop {
            let used = self.client.used();
            let Err(broken) = run.stream().await else { break };
            // Nothing failed: the source had nothing to give for long.
            if broken.reason().as_deref() == Some("APPEND_IDLE") {
                run.retry.progressed();
            }
            self.client.failed(used, &broken);
            run.retry.pause(broken).await?;
        }
        Ok(run.source.next - self.first)
    }
}

type BoxError = Box<dyn StdError + Send + Sync>;

struct Run<'a, S> {
    appender: &'a Appender,
    options: Options,
    retry: Retry,
    window: Window,
    source: Source<'a, S>,
}

impl<S> Run<'_, S>
where
    S: Stream<Item = Result<Task, BoxError>>,
{
    /// Goes as far as one stream goes: to the end, or to an error.
    async fn stream(&mut self) -> Result<(), Error> {
        let (outbox, requests) = mpsc::channel(OUTBOX);
        let mut acks = self.open(&outbox, requests).await?;
        self.window.rewind();
        let mut closed = false;
        let mut heard = Instant::now();
        while !(self.source.ended && self.window.is_empty()) {
            let eager = self.window.is_empty();
            tokio::select! {
                // In this order: each of them is bounded by the window, and acknowledgements make room in it.
                biased;
                ack = acks.message() => {
                    self.acknowledge(ack)?;
                    heard = Instant::now();
                }
                slot = outbox.reserve(), if self.window.has_unsent() && !closed => match slot {
                    Ok(slot) => {
                        if let Some(request) = self.window.next_unsent() {
                            slot.send(request);
                        }
                    }
                    // The service has stopped listening; its answer says why.
                    Err(_) => closed = true,
                },
                chunk = std::future::poll_fn(|cx| self.source.poll(cx, eager, self.window.durable(), &self.options)),
                    if self.window.has_room(&self.options) && !self.source.ended =>
                {
                    // The silence counts from the time that there is something to wait for.
                    if self.window.is_empty() {
                        heard = Instant::now();
                    }
                    if let Some(chunk) = chunk? {
                        self.window.push(chunk);
                    }
                    self.report();
                }
                () = tokio::time::sleep_until(heard + self.options.append_stall), if !self.window.is_empty() => {
                    return Err(Error::call(CALL, crate::client::too_late(self.options.append_stall)));
                }
            }
        }
        drop(outbox);
        // Ends in good order, so that the service sees no reset; all is durable whatever comes.
        let _ =
            tokio::time::timeout(FAREWELL, async { while let Ok(Some(_)) = acks.message().await {} }).await;
        Ok(())
    }

    /// Opens a stream and learns what is durable. An empty message asks for it: its place is always one
    /// that the service takes, since nothing that was acknowledged is lost.
    async fn open(
        &mut self,
        outbox: &mpsc::Sender<AppendTasksRequest>,
        requests: mpsc::Receiver<AppendTasksRequest>,
    ) -> Result<Streaming<AppendTasksResponse>, Error> {
        let opening = AppendTasksRequest {
            name: self.appender.name.clone(),
            first_sequence: self.window.durable() + 1,
            tasks: TaskList::default(),
        };
        // Never full here: the channel is new.
        let _ = outbox.try_send(opening);
        let client = &self.appender.client;
        let mut batches = client.batches();
        let mut acks =
            client.once(CALL, batches.append_tasks(client.request(ReceiverStream::new(requests)))).await?;
        let limit = self.options.call_timeout;
        let first = tokio::time::timeout(limit, acks.message()).await;
        self.acknowledge(first.unwrap_or_else(|_| Err(crate::client::too_late(limit))))?;
        Ok(acks)
    }

    fn acknowledge(&mut self, ack: Result<Option<AppendTasksResponse>, Status>) -> Result<(), Error> {
        match ack {
            Ok(Some(ack)) => {
                if self.window.acknowledge(&self.appender.name, ack.durable_through)? {
                    self.retry.progressed();
                }
                self.report();
                Ok(())
            }
            // A coordinator that leaves ends its streams; another one goes on.
            Ok(None) => {
                Err(Error::call(CALL, Status::unavailable("the stream ended before all was durable")))
            }
            Err(status) => Err(Error::call(CALL, status)),
        }
    }

    fn report(&self) {
        if let Some(progress) = &self.appender.progress {
            progress
                .send_replace(AppendProgress { taken: self.source.next - 1, durable: self.window.durable() });
        }
    }
}

/// The caller's tasks, gathered into chunks. Keeps what it has gathered when a poll is given up.
struct Source<'a, S> {
    tasks: Pin<&'a mut S>,
    /// Sequence number of the next task of `tasks`.
    next: i64,
    building: Building,
    /// A task that did not fit into the chunk before.
    carry: Option<Task>,
    ended: bool,
}

impl<S> Source<'_, S>
where
    S: Stream<Item = Result<Task, BoxError>>,
{
    /// Gathers a chunk. `eager` says to be content with less when the source has nothing ready. None:
    /// the source has ended.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        eager: bool,
        durable: i64,
        options: &Options,
    ) -> Poll<Result<Option<Chunk>, Error>> {
        if let Some(task) = self.carry.take() {
            // Never back: a chunk takes its first task whatever its size.
            self.carry = self.building.add(task, options).err();
        }
        loop {
            if self.building.is_full(options) {
                return Poll::Ready(Ok(Some(self.building.take())));
            }
            match self.tasks.as_mut().poll_next(cx) {
                Poll::Ready(Some(Ok(task))) => {
                    let sequence = self.next;
                    check(sequence, &task)?;
                    self.next += 1;
                    // A resumed append passes over what is durable.
                    if self.building.is_empty() && sequence <= durable {
                        self.building.restart_at(self.next);
                    } else if let Err(task) = self.building.add(task, options) {
                        self.carry = Some(task);
                        return Poll::Ready(Ok(Some(self.building.take())));
                    }
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(Error::Source(error))),
                Poll::Ready(None) => {
                    self.ended = true;
                    let rest = (!self.building.is_empty()).then(|| self.building.take());
                    return Poll::Ready(Ok(rest));
                }
                Poll::Pending if eager && !self.building.is_empty() => {
                    return Poll::Ready(Ok(Some(self.building.take())));
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

fn check(sequence: i64, task: &Task) -> Result<(), Error> {
    let too_large = |field, size, limit| {
        let key = task.key.chars().take(80).collect();
        Err(Error::TaskTooLarge { sequence, key, field, size, limit })
    };
    if task.key.len() > MAX_KEY_BYTES {
        return too_large("key", task.key.len(), MAX_KEY_BYTES);
    }
    if task.payload.len() > MAX_PAYLOAD_BYTES {
        return too_large("payload", task.payload.len(), MAX_PAYLOAD_BYTES);
    }
    Ok(())
}
