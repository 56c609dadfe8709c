//! What a user's program does: submits a batch, perhaps cancels it, waits for its end; at any coordinator.

use crate::hosts::url;
use crate::library::{FAILS, HANDLER};
use crate::plan::BatchPlan;
use crate::wire;
use futures::TryStreamExt as _;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::sleep;
use tonic::Code;
use tranche_client::v1::batch::State;
use tranche_client::{Client, Error, Options, v1};

/// How a batch ended, as its client sees it.
#[derive(Clone, Debug)]
pub struct Ended {
    /// The batch, at its end.
    pub batch: v1::Batch,
    /// Tasks that failed, by the failure list, with the reason.
    pub failed: Vec<v1::TaskFailure>,
    /// Whether it was cancelled, and the cancel was told to have decided.
    pub cancelled: bool,
    /// Whether all tasks were appended and the batch sealed.
    pub sealed: bool,
}

/// Limits that fit the times of a run.
pub fn options() -> Options {
    Options {
        connect_timeout: Duration::from_secs(2),
        call_timeout: Duration::from_secs(4),
        // A run is over before.
        retry_for: Duration::from_hours(1),
        append_stall: Duration::from_secs(4),
        ..Options::default()
    }
}

/// A user's program that knows all coordinators.
#[derive(Clone, Debug)]
pub struct User {
    client: Client,
}

impl User {
    /// Asks the coordinators in this order.
    ///
    /// # Errors
    /// Their names don't make URLs.
    pub fn new(coordinators: &[String]) -> Result<Self, Error> {
        let urls: Vec<_> = coordinators.iter().map(|host| url(host)).collect();
        Ok(Self { client: Client::connect_over(urls.join(","), options(), wire::lazy)? })
    }

    /// One batch, from its submission to its end.
    ///
    /// # Errors
    /// A coordinator refused what it must not refuse.
    pub async fn import(&self, plan: &BatchPlan, request_id: String) -> Result<Ended, Error> {
        let batch = v1::Batch {
            targets: vec![v1::Target { handler: HANDLER.to_owned(), ..Default::default() }],
            range_bounds: Some(v1::RangeBounds { min_tasks: 2, max_tasks: 16 }),
            max_attempts: 10,
            ..Default::default()
        };
        let request = v1::CreateBatchRequest { batch: Some(batch), request_id, ..Default::default() };
        let name = self.client.create(request).await?.name;
        let (sealed, cancelled) = tokio::join!(self.fill(&name, plan), self.cancel(&name, plan));
        let (sealed, cancelled) = (sealed?, cancelled?);
        let batch = self.client.wait(&name).await?;
        let failed = match batch.state() {
            State::Committed => self.client.failures(&name).try_collect().await?,
            _ => Vec::new(),
        };
        Ok(Ended { batch, failed, cancelled, sealed })
    }

    /// Appends and seals; false: it was cancelled before.
    async fn fill(&self, name: &str, plan: &BatchPlan) -> Result<bool, Error> {
        let total = i64::try_from(plan.tasks).unwrap_or(i64::MAX);
        let tasks = futures::stream::iter((1..=plan.tasks).map(|n| task(n, plan)));
        let filled = async {
            self.client.append(name, tasks).await?;
            self.client.seal(name, Some(total)).await
        };
        match filled.await {
            Ok(_) => Ok(true),
            Err(error) if plan.cancel.is_some() && error.code() == Code::FailedPrecondition => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Cancels when it is planned; true: that decided the batch.
    async fn cancel(&self, name: &str, plan: &BatchPlan) -> Result<bool, Error> {
        let Some(after) = plan.cancel else { return Ok(false) };
        sleep(after).await;
        match self.client.cancel(name, "a user", "changed my mind").await {
            Ok(_) => Ok(true),
            Err(error) if error.code() == Code::FailedPrecondition => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn task(sequence: u64, plan: &BatchPlan) -> v1::Task {
    let payload = if plan.fails(sequence) { FAILS } else { b"" };
    v1::Task { key: format!("item-{sequence}"), payload: payload.into() }
}

impl BatchPlan {
    /// Whether the task is one that fails.
    pub fn fails(&self, sequence: u64) -> bool {
        self.fail_every > 0 && sequence.is_multiple_of(self.fail_every)
    }

    /// The tasks that don't.
    pub fn good(&self) -> BTreeSet<u64> {
        (1..=self.tasks).filter(|sequence| !self.fails(*sequence)).collect()
    }
}
