use super::*;
use tokio_stream::StreamExt as _;
use tonic::Code;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tranche_proto::v1;
use tranche_proto::v1::worker_service_client::WorkerServiceClient;

/// Streams that their clients would keep open for ever: the process ends all the same, long before the grace.
#[tokio::test]
async fn open_streams_do_not_keep_a_process_that_leaves() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = Config { shutdown_grace: Duration::from_mins(5), ..Config::embedded(dir.path().to_owned()) };
    let server = Server::start(config).await.expect("started");
    let url = format!("http://{}", server.local_addr());
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(server.run(shutdown.clone()));
    let request = HealthCheckRequest { service: String::new() };
    let channel = Channel::from_shared(url.clone()).expect("a URL").connect().await.expect("connected");
    let mut health = HealthClient::new(channel);
    let mut watch = health.watch(request).await.expect("watching").into_inner();
    let told = watch.message().await.expect("right").expect("told");
    assert_eq!(told.status(), ServingStatus::Serving);
    let hello = v1::Hello {
        worker: "w".to_owned(),
        incarnation: "life-1".to_owned(),
        handlers: vec!["noop".to_owned()],
        protocol_versions: vec![tranche_proto::PROTOCOL_VERSION],
        ..v1::Hello::default()
    };
    let said = v1::AttachRequest { frame: Some(v1::attach_request::Frame::Hello(hello)) };
    let mut worker = WorkerServiceClient::connect(url).await.expect("connected");
    let frames = tokio_stream::once(said).chain(tokio_stream::pending());
    let mut frames = worker.attach(frames).await.expect("attached").into_inner();
    assert!(frames.message().await.expect("right").is_some());

    shutdown.cancel();
    let ended = tokio::time::timeout(Duration::from_mins(1), running).await.expect("long before the grace");
    ended.expect("joined");
    let told = watch.message().await.expect("right").expect("told");
    assert_eq!(told.status(), ServingStatus::NotServing, "before the end");
    assert_eq!(watch.message().await.expect_err("ended").code(), Code::Unavailable);
    let mut drained = false;
    let status = loop {
        match frames.message().await {
            Ok(Some(frame)) => drained |= matches!(frame.frame, Some(v1::attach_response::Frame::Drain(_))),
            Ok(None) => panic!("ended without a reason"),
            Err(status) => break status,
        }
    };
    assert!(drained);
    assert_eq!(status.code(), Code::Unavailable);
}
