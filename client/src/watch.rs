//! A batch as it changes.

use futures::{Stream, StreamExt as _, stream};
use tonic::{Status, Streaming};
use tranche_proto::v1::batch::State;
use tranche_proto::v1::{Batch, WatchBatchRequest, WatchBatchResponse};

use crate::coordinators::Used;
use crate::retry::Retry;
use crate::{Client, Error};

const CALL: &str = "WatchBatch";

/// Whether the batch has ended: nothing of it changes any more.
pub fn is_final(batch: &Batch) -> bool {
    matches!(batch.state(), State::Committed | State::RolledBack)
}

impl Client {
    /// The batch as it is now and at every change, until it has ended.
    ///
    /// A stream that breaks is made again, so a state may be told twice. The stream ends after the
    /// final state, or after an error.
    pub fn watch(&self, name: &str) -> impl Stream<Item = Result<WatchBatchResponse, Error>> + Send + use<> {
        let start = Watch {
            client: self.clone(),
            name: name.to_owned(),
            updates: None,
            used: self.used(),
            retry: Retry::new(self.options().retry_for),
            ended: false,
        };
        stream::unfold(start, async |mut watch| {
            if watch.ended {
                return None;
            }
            let update = watch.next().await;
            watch.ended = match &update {
                Ok(update) => update.batch.as_ref().is_some_and(is_final),
                Err(_) => true,
            };
            Some((update, watch))
        })
        .boxed()
    }

    /// Waits until the batch has ended, and returns it.
    pub async fn wait(&self, name: &str) -> Result<Batch, Error> {
        self.wait_until(name, is_final).await
    }

    /// Waits until `reached` says so of the batch, or until it has ended, and returns it.
    pub async fn wait_until(&self, name: &str, reached: impl Fn(&Batch) -> bool) -> Result<Batch, Error> {
        let mut updates = std::pin::pin!(self.watch(name));
        while let Some(update) = updates.next().await {
            if let Some(batch) = update?.batch
                && (is_final(&batch) || reached(&batch))
            {
                return Ok(batch);
            }
        }
        Err(Error::call(CALL, Status::internal("the watch ended before the batch")))
    }
}

struct Watch {
    client: Client,
    name: String,
    updates: Option<Streaming<WatchBatchResponse>>,
    used: Used,
    retry: Retry,
    ended: bool,
}

impl Watch {
    async fn next(&mut self) -> Result<WatchBatchResponse, Error> {
        loop {
            match self.attempt().await {
                Ok(update) => {
                    self.retry.progressed();
                    return Ok(update);
                }
                Err(error) => {
                    self.client.failed(self.used, &error);
                    self.updates = None;
                    self.retry.pause(error).await?;
                }
            }
        }
    }

    async fn attempt(&mut self) -> Result<WatchBatchResponse, Error> {
        if self.updates.is_none() {
            let request = WatchBatchRequest { name: self.name.clone() };
            self.used = self.client.used();
            let mut batches = self.client.batches();
            let call = batches.watch_batch(self.client.request(request));
            self.updates = Some(self.client.once(CALL, call).await?);
        }
        let Some(updates) = &mut self.updates else {
            return Err(Error::call(CALL, Status::unavailable("no stream")));
        };
        match updates.message().await {
            Ok(Some(update)) => Ok(update),
            // A coordinator that leaves ends its streams; another one goes on.
            Ok(None) => Err(Error::call(CALL, Status::unavailable("the stream ended before the batch"))),
            Err(status) => Err(Error::call(CALL, status)),
        }
    }
}
