//! One task a link: dials, carries frames, dials again.

use crate::config::Config;
use crate::session::LinkId;
use crate::session::transport::{Inbound, Transport};
use backon::{BackoffBuilder as _, ExponentialBuilder};
use futures::StreamExt as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tracing::{info, warn};
use tranche_proto::v1;

/// What a link tells the worker.
pub(crate) enum LinkEvent {
    /// A connection is open.
    Opened {
        link: LinkId,
        /// Frames to send.
        outbox: mpsc::Sender<v1::AttachRequest>,
        /// Ends this connection.
        close: CancellationToken,
    },
    /// A frame came.
    Frame(LinkId, Box<v1::AttachResponse>),
    /// The stream of the last `Opened` ended.
    Closed(LinkId),
}

/// Keeps a stream to one URL until `stop`.
pub(crate) struct Link {
    pub(crate) id: LinkId,
    pub(crate) url: String,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) events: mpsc::Sender<LinkEvent>,
    pub(crate) stop: CancellationToken,
    /// Whether to dial. Its sender lives as long as the worker.
    pub(crate) dials: watch::Receiver<bool>,
    /// Frames the outbox holds.
    pub(crate) outbox: usize,
}

/// How long the coordinator may take to end the stream after the worker did, at the worker's end.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How long a stream must live to count as a working one.
const WORKED: Duration = Duration::from_secs(1);

impl Link {
    pub(crate) async fn run(mut self, config: Config) {
        let pauses = || {
            ExponentialBuilder::new()
                .with_jitter()
                .with_min_delay(config.reconnect_min)
                .with_max_delay(config.reconnect_max)
                .without_max_times()
                .build()
        };
        let mut backoff = pauses();
        loop {
            let stop = self.stop.clone();
            if !matches!(stop.run_until_cancelled(self.dials.wait_for(|dials| *dials)).await, Some(Ok(_))) {
                return;
            }
            let began = Instant::now();
            match self.once().await {
                // It was a working stream: the next one is dialled soon. One that ends at once, again and
                // again, is dialled ever slower.
                Ok(()) if began.elapsed() >= WORKED => backoff = pauses(),
                Ok(()) => {}
                Err(status) => {
                    warn!(coordinator = self.url, code = ?status.code(), error = status.message(), "no stream");
                }
            }
            let pause = backoff.next().unwrap_or(config.reconnect_max);
            self.stop.run_until_cancelled(tokio::time::sleep(pause)).await;
        }
    }

    /// One connection, from dialling to its end. Ok if the coordinator said something on it, or if it
    /// isn't wanted any more.
    async fn once(&mut self) -> Result<(), Status> {
        let connection = tokio::select! {
            biased;
            () = self.stop.cancelled() => return Ok(()),
            // Once the connection is open the worker is told, and says itself what becomes of it.
            _ = self.dials.wait_for(|dials| !*dials) => return Ok(()),
            connection = self.transport.connect(&self.url) => connection?,
        };
        let (outbox, outbound) = mpsc::channel(self.outbox);
        let close = CancellationToken::new();
        let opened = LinkEvent::Opened { link: self.id, outbox, close: close.clone() };
        if self.events.send(opened).await.is_err() {
            return Ok(());
        }
        let attach = self.stop.run_until_cancelled(connection.attach(outbound));
        let result = match close.run_until_cancelled(attach).await {
            Some(Some(Ok(inbound))) => self.carry(inbound, &close).await,
            Some(Some(Err(status))) => Err(status),
            Some(None) => Ok(()),
            None => Err(Status::deadline_exceeded("the coordinator doesn't answer")),
        };
        // Fails only if the worker has ended.
        self.events.send(LinkEvent::Closed(self.id)).await.ok();
        result
    }

    async fn carry(&self, mut inbound: Inbound, close: &CancellationToken) -> Result<(), Status> {
        let mut heard = false;
        let last_words = async {
            self.stop.cancelled().await;
            tokio::time::sleep(LAST_WORDS).await;
        };
        tokio::pin!(last_words);
        loop {
            let frame = tokio::select! {
                biased;
                () = close.cancelled() => break,
                () = &mut last_words => break,
                frame = inbound.next() => frame,
            };
            match frame {
                Some(Ok(frame)) => {
                    heard = true;
                    // Fails only if the worker has ended; then the stream is read to its end, so that
                    // what was sent last isn't cut off by a reset.
                    self.events.send(LinkEvent::Frame(self.id, Box::new(frame))).await.ok();
                }
                Some(Err(status)) if heard => {
                    info!(coordinator = self.url, code = ?status.code(), error = status.message(), "stream broke");
                    break;
                }
                Some(Err(status)) => return Err(status),
                None => break,
            }
        }
        if heard { Ok(()) } else { Err(Status::unavailable("the stream ended without a word")) }
    }
}
