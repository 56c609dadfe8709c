//! A coordinator that leaves while the store is away.

use super::*;
use crate::server::Server;
use futures::StreamExt as _;
use tokio::time::Instant;

/// By the clock of the test.
#[tokio::test(start_paused = true)]
async fn a_store_that_does_not_answer_leaves_time_for_the_rest() {
    for hangs in ["txn states/", "close_session", "txn specs/"] {
        let dir = folder();
        let world = World::start(dir.path()).await;
        let batch = world.node.create("default", spec(), "").await.expect("created").key;
        let stopped = world.store.stop(hangs);
        let (node, key) = (world.node.clone(), batch.clone());
        let call = tokio::spawn(async move {
            match hangs {
                "txn specs/" => node.create("default", spec(), "").await,
                _ => node.seal(&key, Some(0)).await,
            }
        });
        let go = match hangs {
            "close_session" => None,
            _ => Some(timeout(LONG, stopped.reached()).await.expect("the call hangs")),
        };
        let grace = Duration::from_mins(10);
        let config = Config { shutdown_grace: grace, ..config(dir.path()) };
        let (incoming, shutdown) = (
            futures::stream::pending::<std::io::Result<tokio::io::DuplexStream>>(),
            CancellationToken::new(),
        );
        shutdown.cancel();
        let left = Instant::now();
        Server::serve(
            world.node.clone(),
            &config,
            Arc::default(),
            incoming.boxed(),
            world.stop.clone(),
            shutdown,
        )
        .await;
        assert!(left.elapsed() < grace * 3 / 4, "{hangs}: {:?}", left.elapsed());
        timeout(LONG, world.node.stopped()).await.expect("nothing waits any more");
        let answer = timeout(LONG, call).await.expect("answered").expect("not aborted");
        assert!(go.is_none() || answer.is_err(), "{answer:?}");
    }
}
