use super::*;
use crate::config::Config;
use crate::manifest::Objects;
use crate::node::Host;
use crate::store::embedded::Embedded;
use tonic::Code;
use tonic_types::StatusExt as _;

async fn node(dir: &std::path::Path) -> Arc<Node> {
    let config = Config::embedded(dir.to_owned());
    let store = Embedded::open(dir).await.expect("opened");
    let objects = Objects::local(&config.objects_dir()).expect("opened");
    let stop = CancellationToken::new();
    let node = Node::start(config, String::new(), store, objects, Host::default(), stop).await;
    Arc::new(node.expect("started"))
}

fn hello() -> v1::Hello {
    v1::Hello {
        worker: "w".to_owned(),
        incarnation: "life-1".to_owned(),
        handlers: vec!["noop".to_owned()],
        protocol_versions: vec![PROTOCOL_VERSION],
        ..v1::Hello::default()
    }
}

fn report(counter: u64) -> Frame {
    Frame::Report(v1::Report {
        batch: "namespaces/default/batches/none".to_owned(),
        token: Some(v1::Token { epoch: 1, counter }),
        phase: v1::Phase::Stage.into(),
        ..v1::Report::default()
    })
}

#[tokio::test]
async fn one_frame_in_work_too_many_ends_the_stream() {
    let dir = tempfile::tempdir().expect("a directory");
    let node = node(dir.path()).await;
    let worker = WorkerKey::new("w", "life-1");
    let (out, mut answers) = mpsc::channel(2 * WORK_BOUND);
    let hello = checked(hello(), String::new()).expect("right");
    let id = node.shared().dispatch.attach(hello, v1::Welcome::default(), out).id;
    let mut session = Attached::new(node.clone(), worker, Scope::All, id);
    // Nothing of it is done before this test waits.
    for counter in 0..WORK_BOUND as u64 {
        session.frame(Some(report(counter))).expect("as many as may be");
    }
    session.frame(Some(Frame::Heartbeat(v1::Heartbeat::default()))).expect("this makes no work");
    let status = session.frame(Some(report(WORK_BOUND as u64))).expect_err("one more");
    let reason = status.get_error_details().error_info().expect("there").reason.clone();
    assert_eq!((status.code(), reason.as_str()), (Code::ResourceExhausted, "OVERLOADED"));
    while session.work.join_next().await.is_some() {}
    let mut acks = 0;
    while let Ok(Ok(frame)) = answers.try_recv() {
        if let Some(v1::attach_response::Frame::Ack(ack)) = frame.frame {
            acks += ack.reports.len();
        }
    }
    assert_eq!(acks, WORK_BOUND, "all that were taken in are answered");
}

#[tokio::test]
async fn a_coordinator_that_stops_takes_no_worker() {
    let dir = tempfile::tempdir().expect("a directory");
    let node = node(dir.path()).await;
    node.shared().stop.cancel();
    let (out, _frames) = mpsc::channel(8);
    let said = v1::AttachRequest { frame: Some(Frame::Hello(hello())) };
    let frames = futures::stream::iter([Ok(said)]);
    let refused = serve(node.clone(), frames, String::new(), &out, CancellationToken::new()).await;
    assert_eq!(refused.expect_err("refused").code(), Code::Unavailable);
    assert_eq!(node.shared().dispatch.sessions(|session| session.id), []);
    node.stopped().await;
}

/// A driver whose inputs are full holds up what the worker says of its batch, and nothing else.
#[tokio::test]
async fn what_is_said_of_a_batch_comes_after_the_word_that_the_worker_is_there() {
    let dir = tempfile::tempdir().expect("a directory");
    let node = node(dir.path()).await;
    let mut session = Attached::new(node.clone(), WorkerKey::new("w", "life-1"), Scope::All, SessionId(7));
    let (busy, free) = (BatchKey::new("default", "busy"), BatchKey::new("default", "free"));
    let told = CancellationToken::new();
    session.unannounced.insert(busy.clone(), told.clone());
    assert!(session.announced(&free).is_none());
    let waits = session.announced(&busy).expect("it isn't told yet");
    assert!(!waits.is_cancelled());
    told.cancel();
    assert!(waits.is_cancelled() && session.announced(&busy).is_none(), "from now on nothing waits");
    node.shared().stop.cancel();
    node.stopped().await;
}
