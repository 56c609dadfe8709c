//! Streams end with their credentials.

use crate::workers::Attached;
use crate::world::{World, identities, of_team, told, warned};
use futures::StreamExt as _;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};
use tranche_client::v1;
use tranche_coordinator::identity::Role;
use tranche_proto::PROTOCOL_VERSION;
use tranche_proto::v1::attach_request::Frame;
use tranche_proto::v1::batch_service_client::BatchServiceClient;
use tranche_proto::v1::worker_service_client::WorkerServiceClient;
use tranche_tests::cluster::batch_for;
use tranche_tests::wait::PATIENCE;
use tranche_tests::{eventually, sha256_hex};

async fn end<T>(mut stream: Streaming<T>) -> (Code, String) {
    let end = async {
        loop {
            match stream.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("it ended well"),
                Err(status) => return told(&status),
            }
        }
    };
    tokio::time::timeout(PATIENCE, end).await.expect("it ends")
}

async fn batch(world: &World) -> String {
    let request = v1::CreateBatchRequest { batch: Some(batch_for("noop")), ..Default::default() };
    world.client("token-of-a").create(request).await.expect("made").name
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_when_its_token_expires() {
    let world = World::start().await;
    let name = batch(&world).await;
    let lives = Duration::from_secs(4);
    let begun = Instant::now();
    let reader = world.issuer.token("team-a", "reader", lives);
    let watch = v1::WatchBatchRequest { name: name.clone() };
    let watch = BatchServiceClient::new(world.channel(&reader).await).watch_batch(watch).await;
    let watch = watch.expect("in time").into_inner();
    let submitter = world.issuer.token("team-a", "submitter", lives);
    let (appends, requests) = mpsc::channel(4);
    appends
        .send(tranche_proto::AppendTasksRequest { name: name.clone(), ..Default::default() })
        .await
        .expect("room");
    let mut appender = BatchServiceClient::new(world.channel(&submitter).await);
    let acks = appender.append_tasks(ReceiverStream::new(requests)).await.expect("in time").into_inner();
    let worker = world.issuer.token("*", "worker", lives);
    let (frames, requests) = mpsc::channel(4);
    let hello = v1::Hello {
        worker: "w".into(),
        incarnation: "i".into(),
        handlers: vec!["noop".into()],
        protocol_versions: vec![PROTOCOL_VERSION],
        ..Default::default()
    };
    frames.send(v1::AttachRequest { frame: Some(Frame::Hello(hello)) }).await.expect("room");
    let mut attacher = WorkerServiceClient::new(world.channel(&worker).await);
    let attached = attacher.attach(ReceiverStream::new(requests)).await.expect("in time").into_inner();
    // It is alive until then: not its silence ends it.
    let alive = tokio::spawn(async move {
        for number in 1.. {
            let frame = Frame::Heartbeat(v1::Heartbeat { number, ..Default::default() });
            if frames.send(v1::AttachRequest { frame: Some(frame) }).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
    let expired = (Code::Unauthenticated, "CREDENTIAL_EXPIRED".to_owned());
    let ends = tokio::join!(end(watch), end(acks), end(attached));
    assert_eq!(ends, (expired.clone(), expired.clone(), expired));
    assert!(begun.elapsed() + Duration::from_secs(1) >= lives, "{:?}", begun.elapsed());
    tokio::time::timeout(PATIENCE, alive).await.expect("its frames aren't read any more").expect("joined");
    drop(appends);
    let refused = world.call(&reader, tranche_proto::Rpc::ListBatches, Vec::new()).await;
    assert_eq!(refused, (Code::Unauthenticated, "CREDENTIAL_INVALID".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_s_stream_ends_when_its_credential_becomes_another_namespace_s() {
    let world = World::start().await;
    let name = of_team(Role::Worker, "team-a");
    let worker = Attached::new(&world, &name, Vec::new()).await;
    let moved = |line: &str, of: &str| {
        format!("name = {line:?}\ntoken_sha256 = {:?}\nnamespace = {of:?}", sha256_hex(line))
    };
    let text = identities();
    let changed = text.replace(&moved(&name, "team-a"), &moved(&name, "team-b"));
    assert_ne!(text, changed);
    world.pki.write("identities.toml", changed);
    assert_eq!(end(worker.answers).await, (Code::Unauthenticated, "CREDENTIAL_REVOKED".to_owned()));
    eventually("it is gone", async || {
        let workers: Vec<_> = world.client("token-of-admin").workers().collect().await;
        workers.is_empty().then_some(())
    })
    .await;
    // It may come back, as what it is now.
    let _again = Attached::new(&world, &name, Vec::new()).await;
    let workers: Vec<_> = world.client("token-of-admin").workers().collect().await;
    let [Ok(worker)] = &workers[..] else { panic!("one: {workers:?}") };
    assert_eq!((&worker.worker, worker.namespace.as_str()), (&format!("{name}/w"), "team-b"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_when_the_file_does_not_name_its_caller_any_more_and_others_go_on() {
    let world = World::start().await;
    let name = batch(&world).await;
    let watch = async |token: &str| {
        let request = v1::WatchBatchRequest { name: name.clone() };
        let watch = BatchServiceClient::new(world.channel(token).await).watch_batch(request).await;
        watch.expect("known").into_inner()
    };
    let (gone, mut stays) = (watch("token-of-a").await, watch("token-of-reader").await);
    // A file that is none changes nothing.
    world.pki.write("identities.toml", "[[identity]]\nname = 'half");
    warned(&world.pki.path("identities.toml").display().to_string()).await;
    world.client("token-of-a").get(&name).await.expect("still known");
    world.pki.write("identities.toml", identities().replace(r#"name = "team-a""#, r#"name = "team-z""#));
    assert_eq!(end(gone).await, (Code::Unauthenticated, "CREDENTIAL_REVOKED".to_owned()));
    world.client("token-of-submitter").cancel(&name, "", "").await.expect("cancelled");
    let told = tokio::time::timeout(PATIENCE, async {
        loop {
            let message = stays.message().await.expect("it goes on").expect("it goes on");
            if message.batch.expect("there").decision.is_some() {
                return;
            }
        }
    });
    told.await.expect("told");
}
