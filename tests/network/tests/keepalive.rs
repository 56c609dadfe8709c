//! A connection whose other end fell silent is noticed, by every kind of client and by the servers: the
//! network loses a few bytes, for good, and all is well again; only HTTP/2's pings can tell.

use futures::{FutureExt as _, StreamExt as _};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tranche_client::{Client, Options, v1};
use tranche_coordinator::peers::{Carries, Peers};
use tranche_coordinator::store::etcd::{Dial, Etcd};
use tranche_coordinator::store::{Store as _, Txn, WatchEvent};
use tranche_network::cluster::TICK;
use tranche_network::hosts::{self, Controls, World};
use tranche_network::library::HANDLER;
use tranche_network::{etcd, wire};
use tranche_proto::v1::batch_service_client::BatchServiceClient;
use tranche_worker::session::transport::{Http2, Transport as _};
use turmoil::Sim;

/// Beyond the configured times: the messages' ways, and the pause before a new connection.
const SPARE: Duration = Duration::from_secs(2);
/// How long the network loses what is sent: shorter than any time limit.
const LOSES: Duration = Duration::from_millis(300);

/// A coordinator, etcd, and a client that does what it is told.
fn simulated(client: impl Future<Output = turmoil::Result> + 'static) -> Sim<'static> {
    tranche_network::log::init();
    let mut sim = turmoil::Builder::new()
        .tick_duration(TICK)
        .simulation_duration(Duration::from_mins(10))
        .tcp_capacity(4096)
        .build();
    let world = World::new(Duration::from_millis(10));
    let data = world.data.clone();
    sim.host("etcd", move || etcd::serve(data.clone(), wire::Cuts::default()));
    let controls = Controls::default();
    sim.host("coordinator", move || {
        hosts::coordinator(world.clone(), "coordinator".into(), controls.clone())
    });
    sim.client("client", client);
    sim
}

/// Loses what travels between the client and the host for a moment. Both sides try to say something.
async fn lose(host: &str) {
    turmoil::partition("client", host);
    sleep(LOSES).await;
    turmoil::repair("client", host);
}

#[test]
fn a_store_notices_that_its_watch_is_dead() {
    let client = async {
        let store = Etcd::connect_with(hosts::etcd_config(), Dial::new(wire::lazy)).await?;
        let mut watch = store.watch("a/", 0).await?;
        // The watch is there once it tells something.
        store.txn(&Txn::new().put("a/1", "1")).await?;
        watch.recv().await.expect("an event");
        turmoil::partition_oneway("etcd", "client");
        let other = Etcd::connect_with(hosts::etcd_config(), Dial::new(wire::lazy));
        let _ = timeout(LOSES, other).await;
        // Written, and the event is lost on its way.
        let _ = timeout(LOSES, store.txn(&Txn::new().put("a/2", "2"))).await;
        turmoil::repair_oneway("etcd", "client");
        let silent = Instant::now();
        let event = timeout(Duration::from_secs(10 + 5) + SPARE, watch.recv()).await?;
        assert!(matches!(event, Some(WatchEvent::Put(entry)) if entry.key == "a/2"));
        println!("noticed after {:?}", silent.elapsed());
        Ok(())
    };
    simulated(client).run().unwrap();
}

#[test]
fn a_worker_notices_that_its_stream_is_dead() {
    let client = async {
        let dial = Arc::new(|endpoint| wire::eager(endpoint).boxed());
        let transport = Http2 { dial: Some(dial), ..Http2::default() };
        sleep(Duration::from_secs(2)).await;
        let connection = transport.connect(&hosts::url("coordinator")).await?;
        let (frames, outbound) = mpsc::channel(8);
        frames.send(hello()).await?;
        let mut inbound = connection.attach(outbound).await?;
        let welcome = inbound.next().await.expect("a frame")?;
        assert!(matches!(welcome.frame, Some(v1::attach_response::Frame::Welcome(_))), "{welcome:?}");
        turmoil::partition("client", "coordinator");
        let silent = Instant::now();
        let end = async { while let Some(Ok(_)) = inbound.next().await {} };
        timeout(transport.keep_alive_interval + transport.keep_alive_timeout + SPARE, end).await?;
        println!("noticed after {:?}", silent.elapsed());
        Ok(())
    };
    simulated(client).run().unwrap();
}

fn hello() -> v1::AttachRequest {
    let hello = v1::Hello {
        worker: "client".into(),
        incarnation: "1".into(),
        handlers: vec![HANDLER.into()],
        slots: 1,
        protocol_versions: vec![1],
        ..Default::default()
    };
    v1::AttachRequest { frame: Some(v1::attach_request::Frame::Hello(hello)) }
}

/// An open batch: nothing changes in it.
async fn open_batch(client: &Client) -> Result<String, tranche_client::Error> {
    let batch = v1::Batch {
        targets: vec![v1::Target { handler: HANDLER.into(), ..Default::default() }],
        ..Default::default()
    };
    Ok(client.create(v1::CreateBatchRequest { batch: Some(batch), ..Default::default() }).await?.name)
}

#[test]
fn a_client_notices_that_its_watch_is_dead() {
    let client = async {
        let client = Client::connect_over(hosts::url("coordinator"), Options::default(), wire::lazy)?;
        let name = open_batch(&client).await?;
        let mut updates = client.batches().watch_batch(v1::WatchBatchRequest { name }).await?.into_inner();
        updates.message().await?.expect("where it stands");
        turmoil::partition("client", "coordinator");
        let silent = Instant::now();
        let end = async { while let Ok(Some(_)) = updates.message().await {} };
        timeout(Duration::from_secs(20 + 10) + SPARE, end).await?;
        println!("noticed after {:?}", silent.elapsed());
        Ok(())
    };
    simulated(client).run().unwrap();
}

#[test]
fn a_coordinator_notices_that_another_is_dead() {
    let client = async {
        let client = Client::connect_over(hosts::url("coordinator"), Options::default(), wire::lazy)?;
        let name = open_batch(&client).await?;
        let peers = Peers::over(wire::lazy);
        let peer = peers.get(&hosts::url("coordinator"), Carries::Watches)?;
        let mut batches = BatchServiceClient::new(peer.channel());
        let mut updates = batches.watch_batch(v1::WatchBatchRequest { name }).await?.into_inner();
        updates.message().await?.expect("where it stands");
        turmoil::partition("client", "coordinator");
        let silent = Instant::now();
        let end = async { while let Ok(Some(_)) = updates.message().await {} };
        timeout(Duration::from_secs(5 + 5) + SPARE, end).await?;
        println!("noticed after {:?}", silent.elapsed());
        Ok(())
    };
    simulated(client).run().unwrap();
}

#[test]
fn a_client_goes_on_over_a_new_connection() {
    let client = async {
        let client = Client::connect_over(hosts::url("coordinator"), Options::default(), wire::lazy)?;
        let name = open_batch(&client).await?;
        lose("coordinator").await;
        // Bytes were lost only if somebody sent some.
        turmoil::partition("client", "coordinator");
        let _ = timeout(LOSES, client.get(&name)).await;
        turmoil::repair("client", "coordinator");
        timeout(Duration::from_secs(20 + 10) + SPARE, client.get(&name)).await??;
        Ok(())
    };
    simulated(client).run().unwrap();
}

#[test]
fn a_coordinator_notices_that_a_client_is_dead() {
    let client = async {
        let client = Client::connect_over(hosts::url("coordinator"), Options::default(), wire::lazy)?;
        let name = open_batch(&client).await?;
        let mut updates = client.batches().watch_batch(v1::WatchBatchRequest { name }).await?.into_inner();
        updates.message().await?.expect("where it stands");
        let before = turmoil::established_tcp_stream_count_on("coordinator");
        turmoil::partition("client", "coordinator");
        // The server's own: 30 s and 10 s.
        sleep(Duration::from_secs(30 + 10) + SPARE).await;
        let after = turmoil::established_tcp_stream_count_on("coordinator");
        assert!(after < before, "{after} connections of {before}");
        Ok(())
    };
    simulated(client).run().unwrap();
}

#[test]
fn calls_to_a_silent_etcd_end_in_time_and_the_session_is_lost_before_its_time() {
    let client = async {
        let config = hosts::etcd_config();
        let limit = config.call_timeout + TICK * 2;
        let store = Etcd::connect_with(config, Dial::new(wire::lazy)).await?;
        let ttl = Duration::from_secs(5);
        let session = store.session(ttl).await?;
        store.txn(&Txn::new().put_held("held", "mine", session.id)).await?;
        turmoil::hold("client", "etcd");
        let silent = Instant::now();
        let mut lost = session.lost.clone();
        let losing = async {
            lost.wait_for(|lost| *lost).await.expect("a session");
            silent.elapsed()
        };
        let write = Txn::new().put("other", "1");
        let (read, written, lost_after) = tokio::join!(
            timeout(limit, store.get("held")),
            timeout(limit, store.txn(&write)),
            timeout(ttl, losing)
        );
        assert!(read?.is_err_and(|error| error.retryable()));
        assert!(written?.is_err_and(|error| error.retryable()));
        println!("session lost after {:?}", lost_after?);
        // Another member of the installation, which etcd is not silent to, would see the key go. Here it is
        // gone when etcd is heard again.
        sleep(ttl).await;
        turmoil::release("client", "etcd");
        let again = async {
            loop {
                if let Ok(found) = store.get("held").await {
                    return found;
                }
            }
        };
        let found = timeout(Duration::from_secs(10 + 5) + SPARE, again).await?;
        assert_eq!(found, None);
        Ok(())
    };
    simulated(client).run().unwrap();
}
