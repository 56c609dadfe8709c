//! What a coordinator refuses on the lease stream: a worker in another language, and one that errs.

use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt as _;
use tranche_client::v1::{self, attach_request::Frame, attach_response::Frame as Answer, batch::State};
use tranche_proto::v1::worker_service_client::WorkerServiceClient;
use tranche_proto::{MAX_RECEIPT_BYTES, PROTOCOL_VERSION};
use tranche_tests::cluster::{batch_for, tasks};
use tranche_tests::{Cluster, Gate};

/// A worker by hand.
struct Raw {
    frames: mpsc::Sender<v1::AttachRequest>,
    answers: Streaming<v1::AttachResponse>,
}

impl Raw {
    async fn open(cluster: &Cluster) -> Self {
        let (frames, outbox) = mpsc::channel(64);
        let mut client = WorkerServiceClient::connect(cluster.url(0)).await.unwrap();
        let answers = client.attach(ReceiverStream::new(outbox)).await.unwrap().into_inner();
        Self { frames, answers }
    }

    async fn attached(cluster: &Cluster) -> Self {
        let mut raw = Self::open(cluster).await;
        raw.send(Some(Frame::Hello(hello()))).await;
        assert!(matches!(raw.next().await, Answer::Welcome(_)));
        raw
    }

    async fn send(&self, frame: Option<Frame>) {
        self.frames.send(v1::AttachRequest { frame }).await.expect("room");
    }

    async fn next(&mut self) -> Answer {
        let answer = self.answers.next().await.expect("goes on").expect("no error");
        answer.frame.expect("a frame")
    }

    /// The first frame that is wanted.
    async fn find<T>(&mut self, mut wanted: impl FnMut(Answer) -> Option<T>) -> T {
        loop {
            if let Some(found) = wanted(self.next().await) {
                return found;
            }
        }
    }

    async fn grant(&mut self) -> v1::Grant {
        self.send(Some(Frame::Credit(v1::Credit { leases: 1, bytes: 1 << 30 }))).await;
        self.find(|answer| if let Answer::Grant(grant) = answer { Some(grant) } else { None }).await
    }

    async fn report_ack(&mut self) -> v1::ReportAck {
        self.find(|answer| if let Answer::Ack(ack) = answer { ack.reports.into_iter().next() } else { None })
            .await
    }

    /// The error that ends the stream.
    async fn refused(mut self) -> Status {
        loop {
            match self.answers.next().await.expect("an error at the end") {
                Ok(_) => {}
                Err(status) => return status,
            }
        }
    }
}

/// Makes a report wrong.
type Change = Box<dyn Fn(&mut v1::Report)>;

fn hello() -> v1::Hello {
    v1::Hello {
        worker: "raw".into(),
        incarnation: "1".into(),
        handlers: vec!["raw".into()],
        slots: 1,
        protocol_versions: vec![PROTOCOL_VERSION],
        ..Default::default()
    }
}

#[track_caller]
fn names(status: &Status, field: &str, text: &str) {
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    let details = status.get_error_details();
    assert_eq!(details.error_info().expect("a reason").reason, "INVALID_ARGUMENT");
    let violation = &details.bad_request().expect("a field").field_violations[0];
    assert_eq!(violation.field, field, "{status}");
    assert!(violation.description.contains(text), "{text:?}: {status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hello_that_is_none() {
    let cluster = Cluster::builder().embedded().start().await;
    let with = |change: fn(&mut v1::Hello)| {
        let mut hello = hello();
        change(&mut hello);
        Some(Frame::Hello(hello))
    };
    let lease = v1::HeldLease { batch: "x".into(), token: None };
    for (frame, field, text) in [
        (None, "frame", "must be hello"),
        (Some(Frame::Credit(v1::Credit::default())), "frame", "must be hello"),
        (with(|hello| hello.worker.clear()), "hello.worker", "1 to 128"),
        (with(|hello| hello.worker = "w".repeat(129)), "hello.worker", "1 to 128"),
        (with(|hello| hello.incarnation.clear()), "hello.incarnation", "1 to 128"),
        (with(|hello| hello.handlers.clear()), "hello.handlers", "at least one"),
        (with(|hello| hello.handlers.push("No Such".into())), "hello.handlers", "\"No Such\""),
        (with(|hello| hello.protocol_versions = vec![99]), "hello.protocol_versions", "[99]"),
        (Some(Frame::Hello(v1::Hello { held: vec![lease], ..hello() })), "hello.held", "a batch and a token"),
    ] {
        let raw = Raw::open(&cluster).await;
        raw.send(frame).await;
        names(&raw.refused().await, field, text);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_that_are_none() {
    let cluster = Cluster::builder().embedded().start().await;
    let token = Some(v1::Token { epoch: 1, counter: 1 });
    for (frame, field, text) in [
        (Frame::Hello(hello()), "hello", "twice"),
        (Frame::Report(v1::Report { token, batch: "b".into(), ..Default::default() }), "batch", "\"b\""),
        (
            Frame::Release(v1::Release { batch: "namespaces/a/batches/b".into(), token: None }),
            "token",
            "is required",
        ),
        (Frame::PhaseAck(v1::PhaseAck::default()), "batch", "is required"),
    ] {
        let raw = Raw::attached(&cluster).await;
        raw.send(Some(frame)).await;
        names(&raw.refused().await, field, text);
    }
    // A newer peer's frame is no success.
    let raw = Raw::attached(&cluster).await;
    raw.send(None).await;
    assert_eq!(raw.refused().await.code(), Code::Unimplemented);
}

#[tokio::test(flavor = "multi_thread")]
async fn i9_a_report_that_is_none_gives_its_lease_back() {
    let cluster = Cluster::start().await;
    let report = |batch: &str, grant: &v1::Grant| v1::Report {
        batch: batch.to_owned(),
        token: grant.token,
        phase: v1::Phase::Stage.into(),
        done: 5,
        ..Default::default()
    };
    let failure = |sequence| v1::TaskFailure { sequence, code: "X".into(), ..Default::default() };
    let changes: [(Change, &str); 6] = [
        (Box::new(|report| report.phase = 77), "77"),
        (Box::new(|report| report.done = -1), "-1"),
        (Box::new(|report| report.receipt = vec![0; MAX_RECEIPT_BYTES + 1].into()), "65537 bytes"),
        (Box::new(move |report| report.failures = vec![failure(2), failure(2)]), "twice"),
        (Box::new(|report| report.done = 4), "4 staged and 0 failed, of a lease of 5"),
        (Box::new(move |report| (report.done, report.failures) = (4, vec![failure(6)])), "of a lease of 5"),
    ];
    for (change, text) in changes {
        let mut raw = Raw::attached(&cluster).await;
        let spec = v1::Batch {
            range_bounds: Some(v1::RangeBounds { min_tasks: 5, max_tasks: 5 }),
            max_attempts: 100,
            ..batch_for("raw")
        };
        let batch = cluster.submit(spec, tasks(5)).await;
        let grant = raw.grant().await;
        let mut wrong = report(&batch, &grant);
        change(&mut wrong);
        raw.send(Some(Frame::Report(wrong))).await;
        let ack = raw.report_ack().await;
        assert_eq!(ack.result(), v1::report_ack::Result::Invalid, "{ack:?}");
        assert!(ack.message.contains(text), "{text:?}: {ack:?}");
        drop(raw);
        // Nothing counts, and another worker gets the range.
        let gate = Gate::new("raw");
        gate.open();
        let worker = cluster.attach("raw", 1, vec![gate]).await;
        let ended = cluster.wait_state(&batch, State::Committed).await;
        assert_eq!(ended.counters.unwrap().committed, 5, "{text}");
        cluster.assert_invariants(&batch).await;
        worker.drain().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn i9_a_worker_that_errs_and_stays_doesnt_hold_a_batch_up() {
    let cluster = Cluster::start().await;
    let mut raw = Raw::attached(&cluster).await;
    let batch = cluster.submit(batch_for("raw"), tasks(1)).await;
    let grant = raw.grant().await;
    let phase = i32::from(v1::Phase::Unspecified);
    let wrong = v1::Report { batch: batch.clone(), token: grant.token, phase, done: 1, ..Default::default() };
    raw.send(Some(Frame::Report(wrong))).await;
    assert_eq!(raw.report_ack().await.result(), v1::report_ack::Result::Invalid);
    names(&raw.refused().await, "report", "phase");
    // It attaches again, and holds nothing; it is heard all the time.
    let mut raw = Raw::attached(&cluster).await;
    let again = raw.grant().await;
    assert_ne!(again.token, grant.token);
    // Of another phase: the lease comes back as well.
    let commit = i32::from(v1::Phase::Commit);
    let wrong =
        v1::Report { batch: batch.clone(), token: again.token, phase: commit, done: 1, ..Default::default() };
    raw.send(Some(Frame::Report(wrong))).await;
    raw.report_ack().await;
    let again = raw.grant().await;
    let right = v1::Report {
        batch: batch.clone(),
        token: again.token,
        phase: again.phase,
        done: 1,
        ..Default::default()
    };
    raw.send(Some(Frame::Report(right.clone()))).await;
    assert_eq!(raw.report_ack().await.result(), v1::report_ack::Result::Durable);
    // A repeat is told the same; the first token counts no more.
    raw.send(Some(Frame::Report(right.clone()))).await;
    assert_eq!(raw.report_ack().await.result(), v1::report_ack::Result::Durable);
    raw.send(Some(Frame::Report(v1::Report { token: grant.token, ..right }))).await;
    let result = raw.report_ack().await.result();
    assert!(result != v1::report_ack::Result::Durable, "{result:?}");
    let unknown = "namespaces/default/batches/nobody";
    raw.send(Some(Frame::Report(v1::Report {
        batch: unknown.into(),
        token: grant.token,
        phase: again.phase,
        ..Default::default()
    })))
    .await;
    assert_eq!(raw.report_ack().await.result(), v1::report_ack::Result::UnknownBatch);
}
