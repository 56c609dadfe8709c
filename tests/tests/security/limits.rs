//! How much one may ask for: others get theirs.

use crate::world::{TEAMS, World, raw, told};
use std::time::Duration;
use tonic::Code;
use tranche_client::{Client, Options};
use tranche_proto::Rpc;

const A: &str = TEAMS[0].0;
const B: &str = TEAMS[1].0;
const HEALTH: &str = "/grpc.health.v1.Health/Check";

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_makes_as_many_calls_as_it_may_and_takes_nothing_from_others() {
    let world = World::start_with(|config| {
        config.max_calls_per_second = 1;
        config.max_call_burst = Some(20);
    })
    .await;
    let list = async |token| world.call(token, Rpc::ListBatches, Vec::new()).await;
    let began = tokio::time::Instant::now();
    let mut let_in = 0;
    let refused = loop {
        match list(A).await {
            (Code::Ok, _) => let_in += 1,
            refused => break refused,
        }
    };
    assert_eq!(refused, (Code::ResourceExhausted, "RATE_LIMITED".to_owned()));
    let at_most = 20 + usize::try_from(began.elapsed().as_secs()).expect("short");
    assert!((20..=at_most).contains(&let_in), "{let_in}, at most {at_most}");
    // What it may not call isn't counted; the other has all of its own, also over this connection.
    assert_eq!(list(B).await.0, Code::Ok);
    let channel = world.channel(A).await;
    assert_eq!(told(&raw(channel, HEALTH, Vec::new(), &[]).await).0, Code::Ok);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_told_to_wait_waits_and_gets_its_answer() {
    let world = World::start_with(|config| {
        config.max_calls_per_second = 10;
        config.max_call_burst = Some(1);
    })
    .await;
    let options = Options { credentials: world.credentials(Some(A), None), ..Options::default() };
    let client = Client::connect_lazy(&world.url, options).expect("a URL");
    let began = tokio::time::Instant::now();
    for _ in 0..11 {
        let missing = client.get("namespaces/team-a/batches/none").await.expect_err("there is none");
        assert_eq!(missing.code(), Code::NotFound, "{missing}");
    }
    assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
}
