//! One helper for each call.

use std::collections::VecDeque;
use std::future::Future;

use futures::{Stream, StreamExt as _, stream};
use tonic::Code;
use tranche_proto::v1;
use uuid::Uuid;

use crate::retry::Retry;
use crate::{Appender, Client, Error};

/// The page size that streams over pages ask for: the most that the service gives.
const PAGE: i32 = 1_000;

impl Client {
    /// Creates a batch.
    ///
    /// An empty `request_id` is filled with a fresh one, so that a repetition after a lost answer makes
    /// no second batch.
    pub async fn create(&self, mut request: v1::CreateBatchRequest) -> Result<v1::Batch, Error> {
        if request.request_id.is_empty() {
            request.request_id = Uuid::now_v7().to_string();
        }
        self.repeated("CreateBatch", || {
            let (mut batches, request) = (self.batches(), self.request(request.clone()));
            async move { batches.create_batch(request).await }
        })
        .await
    }

    /// Appends tasks from sequence number 1 on; see [`Appender`]. Returns how many the stream had.
    pub async fn append<S>(&self, name: &str, tasks: S) -> Result<i64, Error>
    where
        S: Stream<Item = v1::Task>,
    {
        self.appender(name).run(tasks).await
    }

    /// Appends to a batch, with progress or from another sequence number than 1.
    pub fn appender(&self, name: &str) -> Appender {
        Appender::new(self.clone(), name.to_owned())
    }

    /// Says that no more tasks come; `total`, if given, must be the number that is durable.
    pub async fn seal(&self, name: &str, total: Option<i64>) -> Result<v1::Batch, Error> {
        self.repeated("SealBatch", || {
            let request = v1::SealBatchRequest { name: name.to_owned(), total };
            let mut batches = self.batches();
            async move { batches.seal_batch(self.request(request)).await }
        })
        .await
    }

    /// Creates a batch, appends all tasks and seals it. Returns the batch: sealed, or revoked.
    ///
    /// A batch may be revoked while its tasks are appended, by its failure limit, its deadline or a cancel. It takes no
    /// more tasks then, and comes back as it is, ROLLING_BACK or ROLLED_BACK, its decision with the reason, as it would
    /// have after its seal. So look at how it ended, with [`Client::wait`], whatever this returns.
    ///
    /// If it fails, the batch stays as far as it came, and the same request with the same `request_id`
    /// and the same tasks goes on from there.
    pub async fn submit<S>(&self, request: v1::CreateBatchRequest, tasks: S) -> Result<v1::Batch, Error>
    where
        S: Stream<Item = v1::Task>,
    {
        let batch = self.create(request).await?;
        let filled = async {
            let total = self.append(&batch.name, tasks).await?;
            self.seal(&batch.name, Some(total)).await
        };
        match filled.await {
            Err(error) if error.is_too_late() => {
                let batch = self.get(&batch.name).await;
                batch.ok().filter(is_revoked).ok_or(error)
            }
            sealed => sealed,
        }
    }

    /// Reads a batch.
    pub async fn get(&self, name: &str) -> Result<v1::Batch, Error> {
        self.repeated("GetBatch", || {
            let request = v1::GetBatchRequest { name: name.to_owned() };
            let mut batches = self.batches();
            async move { batches.get_batch(self.request(request)).await }
        })
        .await
    }

    /// One page of batches, the newest first.
    pub async fn list_page(&self, request: v1::ListBatchesRequest) -> Result<v1::ListBatchesResponse, Error> {
        self.repeated("ListBatches", || {
            let (mut batches, request) = (self.batches(), self.request(request.clone()));
            async move { batches.list_batches(request).await }
        })
        .await
    }

    /// All batches that the request asks for, the newest first, page by page as they are taken.
    pub fn list(
        &self,
        request: v1::ListBatchesRequest,
    ) -> impl Stream<Item = Result<v1::Batch, Error>> + Send {
        let client = self.clone();
        pages(move |page_token| {
            let (client, mut request) = (client.clone(), request.clone());
            request.page_token = page_token;
            async move { client.list_page(request).await.map(|page| (page.batches, page.next_page_token)) }
        })
    }

    /// Approves a batch that is HELD.
    pub async fn commit(&self, name: &str, actor: &str) -> Result<v1::Batch, Error> {
        self.repeated("CommitBatch", || {
            let request = v1::CommitBatchRequest { name: name.to_owned(), actor: actor.to_owned() };
            let mut batches = self.batches();
            async move { batches.commit_batch(self.request(request)).await }
        })
        .await
    }

    /// Revokes a batch: it rolls back.
    pub async fn cancel(&self, name: &str, actor: &str, message: &str) -> Result<v1::Batch, Error> {
        self.repeated("CancelBatch", || {
            let request = v1::CancelBatchRequest {
                name: name.to_owned(),
                actor: actor.to_owned(),
                message: message.to_owned(),
            };
            let mut batches = self.batches();
            async move { batches.cancel_batch(self.request(request)).await }
        })
        .await
    }

    /// Leases the failed tasks once more. Not repeated after a lost answer, only when it was surely not done: by
    /// then some may have failed again, and the number returned would be that of another retry.
    pub async fn retry_failed(&self, name: &str) -> Result<v1::RetryFailedResponse, Error> {
        let mut retry = Retry::new(self.options().retry_for);
        loop {
            let request = v1::RetryFailedRequest { name: name.to_owned() };
            let mut batches = self.batches();
            match self.once("RetryFailed", batches.retry_failed(self.request(request))).await {
                Err(error) if error.not_done() => retry.pause(error).await?,
                answer => return answer,
            }
        }
    }

    /// One page of the tasks that failed, by sequence number.
    pub async fn failures_page(
        &self,
        request: v1::ListFailuresRequest,
    ) -> Result<v1::ListFailuresResponse, Error> {
        self.repeated("ListFailures", || {
            let (mut batches, request) = (self.batches(), self.request(request.clone()));
            async move { batches.list_failures(request).await }
        })
        .await
    }

    /// All tasks that failed, by sequence number, page by page as they are taken.
    pub fn failures(&self, name: &str) -> impl Stream<Item = Result<v1::TaskFailure, Error>> + Send + use<> {
        let (client, parent) = (self.clone(), name.to_owned());
        pages(move |page_token| {
            let client = client.clone();
            let request = v1::ListFailuresRequest { parent: parent.clone(), page_size: PAGE, page_token };
            async move { client.failures_page(request).await.map(|page| (page.failures, page.next_page_token)) }
        })
    }

    /// Deletes the records of a batch that ended. The library is not touched.
    pub async fn delete(&self, name: &str) -> Result<(), Error> {
        let first = std::sync::atomic::AtomicBool::new(true);
        self.repeated("DeleteBatch", || {
            let request = v1::DeleteBatchRequest { name: name.to_owned() };
            let mut batches = self.batches();
            let again = !first.swap(false, std::sync::atomic::Ordering::Relaxed);
            async move {
                match batches.delete_batch(self.request(request)).await {
                    // The answer of the attempt before was lost, not its effect.
                    Err(status) if again && status.code() == Code::NotFound => Ok(tonic::Response::new(())),
                    answer => answer.map(|_| tonic::Response::new(())),
                }
            }
        })
        .await
    }

    /// The workers attached to any coordinator.
    pub fn workers(&self) -> impl Stream<Item = Result<v1::Worker, Error>> + Send + use<> {
        let client = self.clone();
        pages(move |page_token| {
            let client = client.clone();
            async move {
                let request = v1::ListWorkersRequest { page_size: PAGE, page_token };
                let page = client.repeated("ListWorkers", || {
                    let (mut admin, request) = (client.admin(), client.request(request.clone()));
                    async move { admin.list_workers(request).await }
                });
                page.await.map(|page| (page.workers, page.next_page_token))
            }
        })
    }

    /// The coordinators that share the store.
    pub fn coordinators(&self) -> impl Stream<Item = Result<v1::Coordinator, Error>> + Send + use<> {
        let client = self.clone();
        pages(move |page_token| {
            let client = client.clone();
            async move {
                let request = v1::ListCoordinatorsRequest { page_size: PAGE, page_token };
                let page = client.repeated("ListCoordinators", || {
                    let (mut admin, request) = (client.admin(), client.request(request.clone()));
                    async move { admin.list_coordinators(request).await }
                });
                page.await.map(|page| (page.coordinators, page.next_page_token))
            }
        })
    }

    /// The leases out of a batch, or (`None`) of all batches.
    pub fn leases(&self, batch: Option<&str>) -> impl Stream<Item = Result<v1::Lease, Error>> + Send + use<> {
        let (client, parent) = (self.clone(), batch.unwrap_or_default().to_owned());
        pages(move |page_token| {
            let client = client.clone();
            let request = v1::ListLeasesRequest { parent: parent.clone(), page_size: PAGE, page_token };
            async move {
                let page = client.repeated("ListLeases", || {
                    let (mut admin, request) = (client.admin(), client.request(request.clone()));
                    async move { admin.list_leases(request).await }
                });
                page.await.map(|page| (page.leases, page.next_page_token))
            }
        })
    }
}

fn is_revoked(batch: &v1::Batch) -> bool {
    batch.decision.as_ref().is_some_and(|decision| decision.outcome() == v1::decision::Outcome::Rollback)
}

/// A stream over pages; the next page is asked for when the one before is used up.
fn pages<T, F, Fut>(page: F) -> impl Stream<Item = Result<T, Error>> + Send
where
    T: Send + 'static,
    F: Fn(String) -> Fut + Send + 'static,
    Fut: Future<Output = Result<(Vec<T>, String), Error>> + Send + 'static,
{
    struct State<T, F> {
        page: F,
        items: VecDeque<T>,
        next: Option<String>,
    }
    let start = State { page, items: VecDeque::new(), next: Some(String::new()) };
    stream::unfold(start, async |mut state| {
        loop {
            if let Some(item) = state.items.pop_front() {
                return Some((Ok(item), state));
            }
            let token = state.next.take()?;
            match (state.page)(token).await {
                Ok((items, next)) => {
                    state.items = items.into();
                    state.next = (!next.is_empty()).then_some(next);
                }
                Err(error) => return Some((Err(error), state)),
            }
        }
    })
    .boxed()
}
