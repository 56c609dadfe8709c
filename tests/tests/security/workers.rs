//! A lease belongs to the identity that it was given to.

use crate::world::World;
use futures::StreamExt as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tranche_client::v1;
use tranche_proto::PROTOCOL_VERSION;
use tranche_proto::v1::attach_request::Frame;
use tranche_proto::v1::attach_response::Frame as Answer;
use tranche_proto::v1::report_ack::Result as Outcome;
use tranche_proto::v1::worker_service_client::WorkerServiceClient;
use tranche_tests::cluster::{batch_for, tasks};
use tranche_tests::eventually;
use tranche_tests::wait::PATIENCE;

/// A worker's stream, by hand.
pub(crate) struct Attached {
    frames: mpsc::Sender<v1::AttachRequest>,
    pub(crate) answers: Streaming<v1::AttachResponse>,
}

impl Attached {
    pub(crate) async fn new(world: &World, token: &str, held: Vec<v1::HeldLease>) -> Self {
        let (frames, requests) = mpsc::channel(16);
        let hello = v1::Hello {
            worker: "w".into(),
            incarnation: "life".into(),
            handlers: vec!["noop".into()],
            slots: 1,
            protocol_versions: vec![PROTOCOL_VERSION],
            held,
            ..Default::default()
        };
        frames.send(v1::AttachRequest { frame: Some(Frame::Hello(hello)) }).await.expect("room");
        let mut client = WorkerServiceClient::new(world.channel(token).await);
        let answers = client.attach(ReceiverStream::new(requests)).await.expect("let in").into_inner();
        let mut attached = Self { frames, answers };
        attached.until(|answer| matches!(answer, Answer::Welcome(_)).then_some(())).await;
        attached
    }

    pub(crate) async fn send(&self, frame: Frame) {
        self.frames.send(v1::AttachRequest { frame: Some(frame) }).await.expect("open");
    }

    /// Would take so many leases.
    pub(crate) async fn takes(&self, leases: i32) {
        self.send(Frame::Credit(v1::Credit { leases, bytes: 64 << 20 })).await;
    }

    /// The next lease that it is given: of which batch, and its token.
    pub(crate) async fn granted(&mut self) -> (String, v1::Token) {
        self.until(|answer| match answer {
            Answer::Grant(grant) => grant.token.map(|token| (grant.batch, token)),
            _ => None,
        })
        .await
    }

    /// Reads, and stays alive, until it is told this.
    pub(crate) async fn until<T>(&mut self, wanted: impl Fn(Answer) -> Option<T>) -> T {
        let read = async {
            loop {
                let next =
                    tokio::time::timeout(std::time::Duration::from_millis(500), self.answers.next()).await;
                let Ok(next) = next else {
                    self.send(Frame::Heartbeat(v1::Heartbeat { number: 1, ..Default::default() })).await;
                    continue;
                };
                let answer = next.expect("open").expect("open").frame.expect("a known frame");
                if let Some(found) = wanted(answer) {
                    return found;
                }
            }
        };
        tokio::time::timeout(PATIENCE, read).await.expect("told in time")
    }

    /// Reports the lease as staged, and returns what is said to that.
    pub(crate) async fn report(&mut self, batch: &str, token: v1::Token) -> Outcome {
        let report = v1::Report {
            batch: batch.to_owned(),
            token: Some(token),
            phase: v1::Phase::Stage.into(),
            done: 1,
            ..Default::default()
        };
        self.send(Frame::Report(report)).await;
        self.until(|answer| match answer {
            Answer::Ack(ack) => {
                ack.reports.into_iter().find(|ack| ack.token == Some(token)).map(|ack| ack.result())
            }
            _ => None,
        })
        .await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_identity_s_worker_of_the_same_id_can_do_nothing_to_a_lease() {
    let world = World::start().await;
    let client = world.client("token-of-a");
    let request = v1::CreateBatchRequest { batch: Some(batch_for("noop")), ..Default::default() };
    let batch = client.submit(request, tokio_stream::iter(tasks(1))).await.expect("submitted").name;
    let mut owner = Attached::new(&world, "worker-1", Vec::new()).await;
    owner.takes(1).await;
    let (_, token) = owner.granted().await;
    // It has the same id and the same life, and says that it holds the lease.
    let held = vec![v1::HeldLease { batch: batch.clone(), token: Some(token) }];
    let mut thief = Attached::new(&world, "worker-2", held).await;
    assert_eq!(thief.report(&batch, token).await, Outcome::Stale);
    let (name, taken) = (batch.clone(), Some(token));
    thief.send(Frame::Release(v1::Release { batch: name, token: taken })).await;
    thief.send(Frame::PhaseAck(v1::PhaseAck { batch: batch.clone(), ..Default::default() })).await;
    thief.takes(8).await;
    assert_eq!(thief.report(&batch, token).await, Outcome::Stale);
    let counters = client.get(&batch).await.expect("there").counters.unwrap_or_default();
    assert_eq!((counters.staged, counters.failed), (0, 0), "{counters:?}");
    let workers: Vec<_> = world.client("token-of-admin").workers().collect::<Vec<_>>().await;
    let workers: Vec<_> = workers.into_iter().map(|worker| worker.expect("listed").worker).collect();
    assert_eq!(workers, ["worker-1/w", "worker-2/w"]);
    assert_eq!(owner.report(&batch, token).await, Outcome::Durable);
    eventually("the lease counts", async || {
        let counters = client.get(&batch).await.expect("there").counters.unwrap_or_default();
        (counters.staged == 1).then_some(())
    })
    .await;
}
