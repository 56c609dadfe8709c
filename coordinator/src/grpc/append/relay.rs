//! Appends into a batch that another coordinator drives: its stream, behind this one.
//!
//! What the owner doesn't take waits here, bounded in messages and in bytes, and then the client waits.

use super::Sink;
use crate::error::Error;
use crate::grpc::peers::{Caller, Owners, Trouble, absent, batches};
use crate::node::{Appender, Member, Place};
use crate::peers::{Carries, Peer};
use crate::store::keys::BatchKey;
use async_trait::async_trait;
use futures::StreamExt;
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::time::{Instant, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tonic::{Status, Streaming};
use tranche_proto::{TaskList, v1};

/// Messages handed to the transport ahead of its flow control. Two keep it busy; the bytes are bounded beside.
const OUTBOX: usize = 2;

/// Where the tasks of one stream go.
pub(crate) enum Destination {
    /// Into a batch that is driven here.
    Here(Appender),
    /// On to its owner.
    There(Relay),
}

/// A stream to the owner.
pub(crate) struct Relay {
    batch: BatchKey,
    owners: Owners,
    out: mpsc::Sender<(v1::AppendTasksRequest, Option<OwnedSemaphorePermit>)>,
    durable: watch::Receiver<Result<u64, Error>>,
    /// After the last task that was handed over.
    next: u64,
    /// Ends with the stream.
    _reader: AbortOnDropHandle<()>,
}

/// Finds out where the batch is driven, and opens the way there.
pub(crate) async fn open(
    owners: Owners,
    caller: Caller,
    batch: BatchKey,
    tasks: TaskTracker,
) -> Result<Destination, Error> {
    if caller.forwarded {
        return Ok(Destination::Here(owners.node.append(&batch).await?));
    }
    let until = caller.patience();
    loop {
        match owners.node.placed(&batch, until).await? {
            Place::Here => match owners.node.append(&batch).await {
                Err(error @ Error::NotOwned { .. }) => owners.pause(until, error).await?,
                appender => return Ok(Destination::Here(appender?)),
            },
            Place::There(owner) => {
                let opened = Relay::open(&owners, &caller, &batch, &owner, until, &tasks);
                match opened.await {
                    Ok(relay) => return Ok(Destination::There(relay)),
                    Err(status) if Trouble::of(&status) == Trouble::Answered => {
                        return Err(Error::Answered(Box::new(status)));
                    }
                    // Nothing was appended yet.
                    Err(status) => {
                        absent(&batch, &owner, &status);
                        owners.pause(until, Error::NotOwned { batch: batch.clone() }).await?;
                    }
                }
            }
        }
    }
}

impl Relay {
    async fn open(
        owners: &Owners,
        caller: &Caller,
        batch: &BatchKey,
        owner: &Member,
        until: Instant,
        tasks: &TaskTracker,
    ) -> Result<Self, Status> {
        let peer = owners.peer(owner, Carries::Appends)?;
        let (out, requests) = mpsc::channel(OUTBOX);
        // Without tasks: asks where to go on.
        let opening = v1::AppendTasksRequest { name: batch.to_string(), ..Default::default() };
        let _ = out.try_send((opening, None));
        let requests =
            ReceiverStream::new(requests).map(|(message, _): (_, Option<OwnedSemaphorePermit>)| message);
        let request = owners.stream_request(caller).map(|()| requests);
        let opening = async {
            let mut acks = batches(&peer).append_tasks(request).await?.into_inner();
            let first = acks.message().await?;
            Ok::<_, Status>((acks, first))
        };
        let opened = tokio::select! {
            biased;
            opened = timeout_at(until, opening) => opened,
            () = owners.moved(batch, owner) => return Err(gone(batch).into()),
        };
        let (acks, first) = opened.unwrap_or_else(|_| Err(gone(batch).into()))?;
        let first = first.ok_or_else(|| Status::from(gone(batch)))?.durable_through.cast_unsigned();
        let (told, durable) = watch::channel(Ok(first));
        let reader =
            Reader { owners: owners.clone(), batch: batch.clone(), owner: owner.clone(), told, _peer: peer };
        Ok(Self {
            batch: batch.clone(),
            owners: owners.clone(),
            out,
            durable,
            next: first + 1,
            _reader: AbortOnDropHandle::new(tasks.spawn(reader.run(acks))),
        })
    }

    fn failure(&self) -> Result<(), Error> {
        self.durable.borrow().as_ref().map(|_| ()).map_err(Clone::clone)
    }
}

fn gone(batch: &BatchKey) -> Error {
    Error::NotOwned { batch: batch.clone() }
}

/// Reads the owner's acknowledgements.
struct Reader {
    owners: Owners,
    batch: BatchKey,
    owner: Member,
    told: watch::Sender<Result<u64, Error>>,
    _peer: Peer,
}

impl Reader {
    async fn run(self, mut acks: Streaming<v1::AppendTasksResponse>) {
        loop {
            let heard = tokio::select! {
                biased;
                heard = acks.message() => heard,
                () = self.owners.moved(&self.batch, &self.owner) => Err(gone(&self.batch).into()),
            };
            match heard {
                Ok(Some(ack)) => drop(self.told.send_replace(Ok(ack.durable_through.cast_unsigned()))),
                Ok(None) => return,
                Err(status) => {
                    let error = match Trouble::of(&status) {
                        Trouble::Answered => Error::Answered(Box::new(status)),
                        // The client opens a new stream, and that finds the owner.
                        Trouble::NotDone | Trouble::Unknown => {
                            absent(&self.batch, &self.owner, &status);
                            gone(&self.batch)
                        }
                    };
                    drop(self.told.send_replace(Err(error)));
                    return;
                }
            }
        }
    }
}

#[async_trait]
impl Sink for Relay {
    fn durable(&self) -> watch::Receiver<Result<u64, Error>> {
        self.durable.clone()
    }

    async fn push(&mut self, first: u64, tasks: TaskList) -> Result<(), Error> {
        self.failure()?;
        self.next = self.next.max(first.saturating_add(tasks.len() as u64));
        let message =
            v1::AppendTasksRequest { name: String::new(), first_sequence: first.cast_signed(), tasks };
        let bytes = message.encoded_len().min(self.owners.most_relayed);
        let permits = u32::try_from(bytes).unwrap_or(u32::MAX);
        let permit = self.owners.relayed.clone().acquire_many_owned(permits).await;
        let permit = permit.map_err(|_| Error::ShuttingDown)?;
        if self.out.send((message, Some(permit))).await.is_err() {
            // Its reader may hear why a moment later, and tells that.
            let mut durable = self.durable.clone();
            while durable.changed().await.is_ok() {
                self.failure()?;
            }
            self.failure()?;
            return Err(gone(&self.batch));
        }
        Ok(())
    }

    async fn finish(self) -> Result<u64, Error> {
        let Self { batch, out, mut durable, next, _reader, .. } = self;
        drop(out);
        // The owner ends its side when all is durable.
        while durable.changed().await.is_ok() {
            if let Err(error) = &*durable.borrow_and_update() {
                return Err(error.clone());
            }
        }
        let through = durable.borrow().clone()?;
        if through + 1 < next { Err(gone(&batch)) } else { Ok(through) }
    }
}

#[async_trait]
impl Sink for Destination {
    fn durable(&self) -> watch::Receiver<Result<u64, Error>> {
        match self {
            Self::Here(appender) => appender.durable(),
            Self::There(relay) => relay.durable(),
        }
    }

    async fn push(&mut self, first: u64, tasks: TaskList) -> Result<(), Error> {
        match self {
            Self::Here(appender) => appender.push(first, tasks).await,
            Self::There(relay) => relay.push(first, tasks).await,
        }
    }

    async fn finish(self) -> Result<u64, Error> {
        match self {
            Self::Here(appender) => appender.finish().await,
            Self::There(relay) => relay.finish().await,
        }
    }
}
