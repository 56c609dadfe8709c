//! A worker in the test's own process.

use crate::wait::PATIENCE;
use std::sync::Arc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tranche_worker::{Handler, Worker};

/// A worker in the test's own process.
#[derive(Debug)]
pub struct InProcess {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl InProcess {
    /// Starts a worker, and waits until it is attached.
    pub async fn start(config: tranche_worker::Config, handlers: Vec<Arc<dyn Handler>>) -> Self {
        let worker = Worker::new(config, handlers);
        let mut attached = worker.attached();
        let stop = CancellationToken::new();
        let run = worker.run(stop.clone());
        let task = tokio::spawn(async move { run.await.expect("a right configuration") });
        let attach = attached.wait_for(Option::is_some);
        tokio::time::timeout(PATIENCE, attach)
            .await
            .expect("a coordinator that takes it in")
            .expect("it runs");
        Self { stop, task }
    }

    /// Lets it drain and end.
    pub async fn drain(mut self) {
        self.stop.cancel();
        (&mut self.task).await.expect("a worker that ends");
    }

    /// Makes it vanish: nothing more is said or done, and its connection breaks.
    pub async fn vanish(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }
}

impl Drop for InProcess {
    fn drop(&mut self) {
        self.task.abort();
    }
}
