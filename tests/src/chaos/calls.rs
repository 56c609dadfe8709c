//! Calls of a client that knows all coordinators, and asks another one when one is away.

use super::journal::Journal;
use super::plan;
use rand::Rng as _;
use rand::rngs::StdRng;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tranche_client::{Client, Error, Options};

/// The longest pause before another coordinator is asked.
const PAUSE_MS: u64 = 200;

/// Why there is no answer.
#[derive(Debug)]
pub enum CallError {
    /// A coordinator refused.
    Refused(Error),
    /// The time for all batches to end is over; the last error.
    Overdue(String),
}

/// Clients of all coordinators.
#[derive(Debug)]
pub struct Calls {
    clients: Vec<Client>,
    random: Mutex<StdRng>,
    journal: Arc<Journal>,
    overdue: CancellationToken,
}

impl Calls {
    /// Clients of the coordinators at these URLs. Calls are given up when `overdue` is cancelled.
    pub fn new(urls: &[String], seed: u64, journal: Arc<Journal>, overdue: CancellationToken) -> Self {
        let options = Options {
            connect_timeout: Duration::from_secs(1),
            call_timeout: Duration::from_secs(4),
            // Another coordinator is asked instead.
            retry_for: Duration::from_millis(200),
            append_stall: Duration::from_secs(3),
            // Several messages for each batch.
            chunk_tasks: 64,
            ..Options::default()
        };
        let client = |url: &String| Client::connect_lazy(url, options.clone()).expect("a URL");
        let random = Mutex::new(plan::random(seed, "calls", 0));
        Self { clients: urls.iter().map(client).collect(), random, journal, overdue }
    }

    /// Any coordinator.
    pub fn any(&self) -> &Client {
        &self.clients[self.draw(self.clients.len() as u64) as usize]
    }

    /// Every coordinator, in order.
    pub fn all(&self) -> &[Client] {
        &self.clients
    }

    /// Whether the time for all batches to end is over.
    pub fn overdue(&self) -> bool {
        self.overdue.is_cancelled()
    }

    /// Asks one coordinator after the other until one answers.
    pub async fn ask<T>(
        &self,
        what: &str,
        mut call: impl AsyncFnMut(&Client) -> Result<T, Error>,
    ) -> Result<T, CallError> {
        loop {
            let client = self.any();
            let error = match call(client).await {
                Ok(answer) => return Ok(answer),
                Err(error) if !error.retryable() => return Err(CallError::Refused(error)),
                Err(error) => format!("{what} at {}: {:?}: {error}", client.url(), error.code()),
            };
            self.journal.note(&error);
            if self.overdue.is_cancelled() {
                return Err(CallError::Overdue(error));
            }
            sleep(Duration::from_millis(self.draw(PAUSE_MS))).await;
        }
    }

    fn draw(&self, below: u64) -> u64 {
        self.random.lock().expect("not poisoned").random_range(0..below)
    }
}
