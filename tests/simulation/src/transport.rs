//! The worker's way to the network.

use crate::host::{HostId, Life};
use crate::net::{Item, StreamId, Way};
use crate::world::World;
use async_trait::async_trait;
use futures::StreamExt as _;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;
use tranche_proto::v1;
use tranche_worker::session::transport::{Connection, Inbound, Transport};

/// How long a connection may take to open.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// One life of a worker on the network.
pub(crate) struct SimTransport {
    world: World,
    worker: (HostId, Life),
}

impl SimTransport {
    /// The network, for one life of a worker.
    pub(crate) fn new(world: World, host: HostId, life: Life) -> Self {
        Self { world, worker: (host, life) }
    }
}

struct Dialled {
    world: World,
    worker: (HostId, Life),
    coordinator: HostId,
}

#[async_trait]
impl Transport for SimTransport {
    async fn connect(&self, url: &str) -> Result<Box<dyn Connection>, Status> {
        let (reply, answer) = oneshot::channel();
        self.world.lock().dial(self.worker, url, reply);
        let answer = tokio::time::timeout(CONNECT_TIMEOUT, answer).await;
        let coordinator = match answer {
            Ok(Ok(answer)) => answer?,
            Ok(Err(_)) | Err(_) => return Err(Status::unavailable("nobody answers")),
        };
        Ok(Box::new(Dialled { world: self.world.clone(), worker: self.worker, coordinator }))
    }
}

#[async_trait]
impl Connection for Dialled {
    async fn attach(
        self: Box<Self>,
        mut outbound: mpsc::Receiver<v1::AttachRequest>,
    ) -> Result<Inbound, Status> {
        let (down, mut frames) = mpsc::unbounded_channel();
        let world = self.world.clone();
        let id = world.lock().open(self.worker, self.coordinator, down);
        let pump = {
            let world = world.clone();
            tokio::spawn(async move {
                while let Some(frame) = outbound.recv().await {
                    world.lock().send(id, Way::Up, Item::Request(frame));
                }
                world.lock().send(id, Way::Up, Item::End);
            })
        };
        let hold = Hold { world, id, _pump: AbortOnDropHandle::new(pump) };
        match frames.recv().await {
            Some(Ok(_)) => Ok(Frames { frames, _hold: hold }.boxed()),
            Some(Err(status)) => Err(status),
            None => Err(Status::unavailable("the stream was refused")),
        }
    }
}

/// Hangs up when it is dropped.
struct Hold {
    world: World,
    id: StreamId,
    _pump: AbortOnDropHandle<()>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.world.lock().hang_up(self.id);
    }
}

struct Frames {
    frames: mpsc::UnboundedReceiver<Result<Option<v1::AttachResponse>, Status>>,
    _hold: Hold,
}

impl futures::Stream for Frames {
    type Item = Result<v1::AttachResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            return match self.frames.poll_recv(context) {
                Poll::Ready(Some(Ok(None))) => continue,
                Poll::Ready(Some(Ok(Some(frame)))) => Poll::Ready(Some(Ok(frame))),
                Poll::Ready(Some(Err(status))) => Poll::Ready(Some(Err(status))),
                Poll::Ready(None) => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            };
        }
    }
}
