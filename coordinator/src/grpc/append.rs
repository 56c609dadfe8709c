//! AppendTasks: chunks in, acknowledgements out.
//!
//! Reading goes on in a task of its own, so that a client which sends all before it reads its first
//! acknowledgement isn't stuck; how much is in flight is the appender's to bound. Acknowledgements merge
//! when the client is slow to read them.

pub(crate) mod relay;

use super::{status, validate};
use crate::error::Error;
use crate::node::Open;
use crate::store::keys::BatchKey;
use async_trait::async_trait;
use futures::{Stream, StreamExt, stream};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tonic::{Code, Status};
use tranche_proto::{MAX_APPEND_BYTES, TaskList, v1};

/// Where appended tasks go.
#[async_trait]
pub(crate) trait Sink: Send + 'static {
    fn durable(&self) -> watch::Receiver<Result<u64, Error>>;
    async fn push(&mut self, first: u64, tasks: TaskList) -> Result<(), Error>;
    async fn finish(self) -> Result<u64, Error>;
}

/// What a stream shares with its service.
pub(crate) struct Context {
    pub(crate) shutdown: CancellationToken,
    pub(crate) tasks: TaskTracker,
    /// How long the client may bring nothing.
    pub(crate) idle: Duration,
    /// Given back when the stream is dropped.
    #[expect(dead_code, reason = "held")]
    pub(crate) place: Option<Arc<Open>>,
}

/// The acknowledgements of one stream; `open` gives the sink of the batch that the first message names.
pub(crate) fn responses<R, S, F>(
    requests: R,
    open: impl FnOnce(BatchKey) -> F + Send + 'static,
    context: Context,
) -> impl Stream<Item = Result<v1::AppendTasksResponse, Status>> + Send + 'static
where
    R: Stream<Item = Result<v1::AppendTasksRequest, Status>> + Send + Unpin + 'static,
    S: Sink,
    F: Future<Output = Result<S, Error>> + Send + 'static,
{
    let first = Some((requests, open));
    stream::unfold((first, None::<Acks>, context), |(first, acks, context)| async move {
        let (answer, acks) = match (first, acks) {
            (Some((requests, open)), _) => {
                let started = tokio::select! {
                    biased;
                    () = context.shutdown.cancelled() => Err(Error::ShuttingDown.into()),
                    started = start(requests, open, &context.tasks, context.idle) => started,
                };
                match started {
                    Ok(mut acks) => (acks.first(), Some(acks)),
                    Err(status) => (Err(status), None),
                }
            }
            (None, Some(mut acks)) => (acks.next(&context.shutdown).await?, Some(acks)),
            (None, None) => return None,
        };
        let acks = acks.filter(|_| answer.is_ok());
        let answer = answer.map(|through| v1::AppendTasksResponse { durable_through: through.cast_signed() });
        Some((answer, (None, acks, context)))
    })
}

/// Reads the first message and starts to read the others.
async fn start<R, S, F>(
    mut requests: R,
    open: impl FnOnce(BatchKey) -> F,
    tasks: &TaskTracker,
    idle: Duration,
) -> Result<Acks, Status>
where
    R: Stream<Item = Result<v1::AppendTasksRequest, Status>> + Send + Unpin + 'static,
    S: Sink,
    F: Future<Output = Result<S, Error>>,
{
    let first = next(&mut requests, idle).await?.unwrap_or_default();
    let batch = validate::batch_name("name", &first.name)?;
    validate::append(&batch, &first)?;
    let sink = open(batch.clone()).await?;
    let durable = sink.durable();
    // Ends with its stream: dropping the handle aborts it, and what was pushed by then is as durable as
    // the sink says.
    let pump = AbortOnDropHandle::new(tasks.spawn(pump(batch.clone(), first, requests, sink, idle)));
    Ok(Acks { batch, durable, pump: Some(pump), acked: 0, open: true })
}

/// Hands every message to the sink, in order, and waits until all of them are durable.
async fn pump<R, S>(
    batch: BatchKey,
    first: v1::AppendTasksRequest,
    mut requests: R,
    mut sink: S,
    idle: Duration,
) -> Result<u64, Status>
where
    R: Stream<Item = Result<v1::AppendTasksRequest, Status>> + Send + Unpin,
    S: Sink,
{
    let mut message = Some(first);
    while let Some(request) = message {
        let first = validate::append(&batch, &request)?;
        if !request.tasks.is_empty() {
            sink.push(first, request.tasks).await?;
        }
        message = next(&mut requests, idle).await?;
    }
    Ok(sink.finish().await?)
}

/// The client's next message, if it comes in time.
async fn next<R>(requests: &mut R, idle: Duration) -> Result<Option<v1::AppendTasksRequest>, Status>
where
    R: Stream<Item = Result<v1::AppendTasksRequest, Status>> + Unpin,
{
    let next = tokio::time::timeout(idle, requests.next()).await;
    next.map_err(|_| status::append_idle(idle))?.transpose().map_err(unreadable)
}

/// A message that is too large even to be read looks to tonic like one beyond the end of something.
fn unreadable(status: Status) -> Status {
    if status.code() == Code::OutOfRange {
        let text = format!("the message is larger than it may be, {MAX_APPEND_BYTES} bytes");
        return validate::invalid("tasks", text).into();
    }
    status
}

struct Acks {
    batch: BatchKey,
    durable: watch::Receiver<Result<u64, Error>>,
    pump: Option<AbortOnDropHandle<Result<u64, Status>>>,
    acked: u64,
    /// The sink still tells what is durable.
    open: bool,
}

impl Acks {
    /// What is durable at the start.
    fn first(&mut self) -> Result<u64, Status> {
        self.acked = self.durable.borrow_and_update().clone()?;
        Ok(self.acked)
    }

    /// What is durable once it grew; `None` when all was read, is durable and was said.
    async fn next(&mut self, shutdown: &CancellationToken) -> Option<Result<u64, Status>> {
        loop {
            let pump = self.pump.as_mut()?;
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Some(Err(Error::ShuttingDown.into())),
                changed = self.durable.changed(), if self.open => match changed {
                    Ok(()) => match self.durable.borrow_and_update().clone() {
                        Ok(through) if through > self.acked => {
                            self.acked = through;
                            return Some(Ok(through));
                        }
                        Ok(_) => {}
                        Err(error) => return Some(Err(error.into())),
                    },
                    Err(_) => self.open = false,
                },
                ended = pump => {
                    self.pump = None;
                    return match ended {
                        Ok(Ok(through)) if through > self.acked => Some(Ok(through)),
                        Ok(Ok(_)) => None,
                        Ok(Err(status)) => Some(Err(status)),
                        // It doesn't panic, and nobody else aborts it: the process is ending.
                        Err(_) => Some(Err(Error::NotOwned { batch: self.batch.clone() }.into())),
                    };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
