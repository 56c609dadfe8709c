//! A client that knows several coordinators goes on when the one that it uses is gone.

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use support::{World, assert_exactly_once, mortal, options, serve, tasks};
use tokio::sync::watch;
use tokio_stream::StreamExt as _;
use tonic::Code;
use tranche_client::v1::batch::State;
use tranche_client::{AppendProgress, Client, Error};

const BATCH: &str = "namespaces/default/batches/b";

fn urls(addresses: &[SocketAddr]) -> String {
    let urls: Vec<String> = addresses.iter().map(|address| format!("http://{address}")).collect();
    urls.join(",")
}

async fn nobody() -> SocketAddr {
    tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn connects_to_the_first_that_is_there() {
    let (world, address) = serve(World::new(1)).await;
    let urls = urls(&[nobody().await, address]);
    let client = Client::connect(urls.clone()).await.unwrap();
    assert_eq!(client.url(), urls);
    client.seal(BATCH, None).await.unwrap();
    assert_eq!(world.lock().unwrap().seals.len(), 1);
    let away = nobody().await;
    let error = Client::connect(format!("http://{},http://{away}", nobody().await)).await.unwrap_err();
    assert!(matches!(&error, Error::Connect { url, .. } if *url == format!("http://{away}")), "{error:?}");
}

#[tokio::test]
async fn calls_move_on_when_their_coordinator_is_killed_and_stay_with_the_next() {
    let (world, address) = serve(World::new(1)).await;
    let (first, life) = mortal(address).await;
    let (second, _) = mortal(address).await;
    let client = Client::connect_with(urls(&[first, second]), options()).await.unwrap();
    client.seal(BATCH, None).await.unwrap();
    life.abort();
    client.seal(BATCH, None).await.unwrap();
    // Made once more only when nobody was reached, and so it is.
    client.retry_failed(BATCH).await.unwrap();
    let world = world.lock().unwrap();
    assert_eq!((world.seals.len(), world.retries), (2, 1));
}

#[tokio::test]
async fn a_retry_that_reached_nobody_is_made_at_the_next() {
    let (world, address) = serve(World::new(1)).await;
    let client = Client::connect_lazy(urls(&[nobody().await, address]), options()).unwrap();
    client.retry_failed(BATCH).await.unwrap();
    assert_eq!(world.lock().unwrap().retries, 1);
}

#[tokio::test]
async fn a_coordinator_that_cannot_serve_is_left() {
    let (leaving, first) = serve(World::new(1)).await;
    leaving.lock().unwrap().refuse = Some(Code::Unavailable);
    let (world, second) = serve(World::new(1)).await;
    let client = Client::connect_with(urls(&[first, second]), options()).await.unwrap();
    assert_eq!(client.append(BATCH, tokio_stream::iter(tasks(100))).await.unwrap(), 100);
    assert_exactly_once(&world.lock().unwrap(), 100, "at the second");
    assert_eq!(leaving.lock().unwrap().streams, 1);
    // A refusal that another would give too isn't left for.
    leaving.lock().unwrap().refuse = Some(Code::FailedPrecondition);
    let client = Client::connect_with(urls(&[first, second]), options()).await.unwrap();
    let refused = client.append(BATCH, tokio_stream::iter(tasks(100))).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn an_append_goes_on_at_the_next_with_every_task_once() {
    let (world, address) = serve(World::new(1)).await;
    let (first, life) = mortal(address).await;
    let (second, _) = mortal(address).await;
    let client = Client::connect_with(urls(&[first, second]), options()).await.unwrap();
    let (progress, mut seen) = watch::channel(AppendProgress::default());
    let append = tokio::spawn(async move {
        // Slow enough to be in the middle.
        let source = futures::StreamExt::then(futures::stream::iter(tasks(2000)), |task| async {
            tokio::task::yield_now().await;
            task
        });
        client.appender(BATCH).report_to(progress).run(source).await
    });
    seen.wait_for(|progress| progress.durable >= 500).await.unwrap();
    life.abort();
    assert_eq!(append.await.unwrap().unwrap(), 2000);
    let world = world.lock().unwrap();
    assert_exactly_once(&world, 2000, "over two");
    assert!(world.streams >= 2, "{}", world.streams);
}

#[tokio::test]
async fn a_watch_goes_on_at_the_next() {
    let mut world = World::new(1);
    world.watches = vec![vec![State::Importing], vec![State::Committing, State::Committed]];
    let (_world, address) = serve(world).await;
    let (first, life) = mortal(address).await;
    let (second, _) = mortal(address).await;
    let client = Client::connect_with(urls(&[first, second]), options()).await.unwrap();
    let mut updates = Box::pin(client.watch(BATCH));
    let state = |update: Option<Result<tranche_client::v1::WatchBatchResponse, Error>>| {
        update.unwrap().unwrap().batch.unwrap().state()
    };
    assert_eq!(state(updates.next().await), State::Importing);
    life.abort();
    for wanted in [State::Committing, State::Committed] {
        let update = tokio::time::timeout(Duration::from_secs(20), updates.next()).await;
        assert_eq!(state(update.unwrap()), wanted);
    }
    assert!(updates.next().await.is_none());
}
