//! The process: answers calls, streams watches, lets leases run out.

use super::Data;
use super::pb;
use super::pb::kv_server::{Kv, KvServer};
use super::pb::lease_server::{Lease, LeaseServer};
use super::pb::watch_server::{Watch, WatchServer};
use crate::wire::{self, Cuts};
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{interval, sleep};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

/// Where it listens.
pub const PORT: u16 = 2379;
/// How often leases are looked at; etcd does it twice a second.
const LEASE_CHECK: Duration = Duration::from_millis(500);
/// How often a watch without events is told the revision. etcd: 10 minutes; here within the time of a run.
const PROGRESS: Duration = Duration::from_secs(5);
/// Responses that wait for a slow watcher.
const RESPONSES: usize = 64;

/// Serves the data until the host crashes.
///
/// # Errors
/// It can't listen.
pub async fn serve(data: Data, cuts: Cuts) -> turmoil::Result {
    data.lead(now());
    let incoming = wire::listen(PORT, cuts).await?;
    let leases = data.clone();
    tokio::spawn(async move {
        let mut ticks = interval(LEASE_CHECK);
        loop {
            ticks.tick().await;
            leases.expire(now());
        }
    });
    let member = Member { data };
    Server::builder()
        .add_service(KvServer::new(member.clone()))
        .add_service(WatchServer::new(member.clone()))
        .add_service(LeaseServer::new(member))
        .serve_with_incoming(incoming)
        .await?;
    Ok(())
}

/// Time since the simulation began: the same on every host, and before and after a crash.
fn now() -> Duration {
    turmoil::sim_elapsed().unwrap_or_default()
}

#[derive(Clone)]
struct Member {
    data: Data,
}

#[tonic::async_trait]
impl Kv for Member {
    async fn range(&self, request: Request<pb::RangeRequest>) -> Result<Response<pb::RangeResponse>, Status> {
        self.data.range(request.get_ref()).map(Response::new)
    }

    async fn txn(&self, request: Request<pb::TxnRequest>) -> Result<Response<pb::TxnResponse>, Status> {
        self.data.txn(request.get_ref()).map(Response::new)
    }
}

#[tonic::async_trait]
impl Lease for Member {
    async fn lease_grant(
        &self,
        request: Request<pb::LeaseGrantRequest>,
    ) -> Result<Response<pb::LeaseGrantResponse>, Status> {
        let seconds = request.get_ref().ttl;
        let ttl = Duration::from_secs(seconds.unsigned_abs());
        let id = self.data.grant(ttl, now());
        let header = Some(self.data.header());
        Ok(Response::new(pb::LeaseGrantResponse { header, id, ttl: seconds, error: String::new() }))
    }

    async fn lease_revoke(
        &self,
        request: Request<pb::LeaseRevokeRequest>,
    ) -> Result<Response<pb::LeaseRevokeResponse>, Status> {
        self.data.revoke(request.get_ref().id)?;
        Ok(Response::new(pb::LeaseRevokeResponse { header: Some(self.data.header()) }))
    }

    type LeaseKeepAliveStream = BoxStream<'static, Result<pb::LeaseKeepAliveResponse, Status>>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<pb::LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let data = self.data.clone();
        let answers = request.into_inner().map_ok(move |beat| {
            let ttl = data.keep_alive(beat.id, now()).map_or(0, |ttl| ttl.as_secs());
            pb::LeaseKeepAliveResponse { header: Some(data.header()), id: beat.id, ttl: ttl.cast_signed() }
        });
        Ok(Response::new(answers.boxed()))
    }
}

#[tonic::async_trait]
impl Watch for Member {
    type WatchStream = ReceiverStream<Result<pb::WatchResponse, Status>>;

    async fn watch(
        &self,
        request: Request<Streaming<pb::WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (to, stream) = mpsc::channel(RESPONSES);
        let (data, mut requests) = (self.data.clone(), request.into_inner());
        tokio::spawn(async move {
            let first = requests.try_next().await;
            let Ok(Some(pb::WatchRequest { request_union: Some(union) })) = first else { return };
            let pb::watch_request::RequestUnion::CreateRequest(create) = union else { return };
            let ended = to.clone();
            tokio::select! {
                () = follow(data, create, to) => {}
                () = ended.closed() => {}
                // The watch ends when its requests do.
                () = async { while let Ok(Some(_)) = requests.try_next().await {} } => {}
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

async fn follow(
    data: Data,
    create: pb::WatchCreateRequest,
    to: mpsc::Sender<Result<pb::WatchResponse, Status>>,
) {
    let mut changes = data.changes();
    let mut next = if create.start_revision > 0 { create.start_revision } else { data.revision() + 1 };
    let created = pb::WatchResponse { header: Some(data.header()), created: true, ..Default::default() };
    if to.send(Ok(created)).await.is_err() {
        return;
    }
    loop {
        changes.mark_unchanged();
        let found = match data.events(next, &create.key, &create.range_end) {
            Ok(found) => found,
            Err(compact_revision) => {
                let end = pb::WatchResponse {
                    header: Some(data.header()),
                    canceled: true,
                    compact_revision,
                    cancel_reason: "etcdserver: mvcc: required revision has been compacted".to_owned(),
                    ..Default::default()
                };
                let _ = to.send(Ok(end)).await;
                return;
            }
        };
        next = next.max(found.through + 1);
        let header = data.header();
        for events in found.revisions {
            let response = pb::WatchResponse { header: Some(header), events, ..Default::default() };
            if to.send(Ok(response)).await.is_err() {
                return;
            }
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = sleep(PROGRESS), if create.progress_notify => {
                // Only what was sent whole is told.
                if data.revision() + 1 == next {
                    let notice = pb::WatchResponse { header: Some(data.header()), ..Default::default() };
                    if to.send(Ok(notice)).await.is_err() {
                        return;
                    }
                }
            }
        }
    }
}
