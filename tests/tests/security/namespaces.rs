//! What a worker and an admin of one namespace get to see.

use crate::workers::Attached;
use crate::world::{TEAMS, World, named, of_team, raw, token_of, told};
use futures::{StreamExt as _, TryStreamExt as _};
use tonic::Code;
use tranche_client::{Client, v1};
use tranche_coordinator::identity::Role;
use tranche_proto::Rpc;
use tranche_proto::v1::attach_request::Frame;
use tranche_proto::v1::attach_response::Frame as Answer;
use tranche_proto::v1::report_ack::Result as Outcome;
use tranche_tests::cluster::{batch_for, in_ranges_of, tasks};

const A: &str = TEAMS[0].1;
const B: &str = TEAMS[1].1;

/// A batch of `number` tasks in the namespace of this token, each task a lease.
async fn submitted(world: &World, token: &str, number: u64) -> String {
    let batch = Some(in_ranges_of(1, batch_for("noop")));
    let request = v1::CreateBatchRequest { batch, ..Default::default() };
    let tasks = tokio_stream::iter(tasks(number));
    world.client(token).submit(request, tasks).await.expect("submitted").name
}

async fn staged(client: &Client, batch: &str) -> i64 {
    client.get(batch).await.expect("there").counters.unwrap_or_default().staged
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_of_a_namespace_gets_nothing_of_another_s_batch_and_can_say_nothing_of_it() {
    let world = World::start().await;
    let [of_a, of_b] = [submitted(&world, TEAMS[0].0, 1).await, submitted(&world, TEAMS[1].0, 1).await];
    // Alone, with credit for both.
    let mut a = Attached::new(&world, &of_team(Role::Worker, A), Vec::new()).await;
    a.takes(8).await;
    let (batch, token) = a.granted().await;
    assert_eq!(batch, of_a);
    assert_eq!(a.report(&of_a, token).await, Outcome::Durable);
    let mut b = Attached::new(&world, &of_team(Role::Worker, B), Vec::new()).await;
    b.takes(1).await;
    let (batch, token) = b.granted().await;
    assert_eq!(batch, of_b);
    // It knows the token, and says that the lease is its own.
    let held = vec![v1::HeldLease { batch: of_b.clone(), token: Some(token) }];
    let mut thief = Attached::new(&world, &of_team(Role::Worker, A), held).await;
    let revoked = thief.until(|answer| if let Answer::Revoke(it) = answer { Some(it) } else { None }).await;
    assert_eq!((revoked.batch.as_str(), revoked.token), (of_b.as_str(), Some(token)));
    let holding = v1::Holding { batch: of_b.clone(), epoch: token.epoch, tokens: vec![token] };
    thief.send(Frame::Holding(holding)).await;
    assert_eq!(thief.report(&of_b, token).await, Outcome::UnknownBatch);
    thief.send(Frame::Release(v1::Release { batch: of_b.clone(), token: Some(token) })).await;
    thief.send(Frame::PhaseAck(v1::PhaseAck { batch: of_b.clone(), ..Default::default() })).await;
    // The very answer of a batch that never was.
    assert_eq!(thief.report("namespaces/team-b/batches/never-was", token).await, Outcome::UnknownBatch);
    let client = world.client(TEAMS[1].0);
    assert_eq!(staged(&client, &of_b).await, 0);
    assert_eq!(b.report(&of_b, token).await, Outcome::Durable);
    assert_eq!(staged(&client, &of_b).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_admin_of_a_namespace_sees_its_workers_and_leases_and_no_other_s() {
    let world = World::start().await;
    let [of_a, of_b] = [submitted(&world, TEAMS[0].0, 3).await, submitted(&world, TEAMS[1].0, 3).await];
    let mut a = Attached::new(&world, &of_team(Role::Worker, A), Vec::new()).await;
    let mut b = Attached::new(&world, &of_team(Role::Worker, B), Vec::new()).await;
    for worker in [&mut a, &mut b] {
        worker.takes(1).await;
        worker.granted().await;
    }
    let mut all = Attached::new(&world, "worker-1", Vec::new()).await;
    all.takes(6).await;
    let mut granted = Vec::new();
    for _ in 0..4 {
        granted.push(all.granted().await.0);
    }
    granted.sort();
    let mut both = [&of_a, &of_a, &of_b, &of_b];
    both.sort();
    assert_eq!(granted.iter().collect::<Vec<_>>(), both);

    let admin = |of: &str| world.client(&of_team(Role::Admin, of));
    let workers = async |client: &Client| {
        let all: Vec<_> = client.workers().try_collect().await.expect("listed");
        let told = |worker: v1::Worker| (worker.worker, worker.namespace, worker.leases, worker.free_credit);
        all.into_iter().map(told).collect::<Vec<_>>()
    };
    let row =
        |name: &str, namespace: &str, leases, free| (format!("{name}/w"), namespace.to_owned(), leases, free);
    let (worker_a, worker_b) = (of_team(Role::Worker, A), of_team(Role::Worker, B));
    let every = world.client(&token_of(Role::Admin));
    assert_eq!(
        workers(&every).await,
        [row("worker-1", "*", 4, 2), row(&worker_a, A, 1, 0), row(&worker_b, B, 1, 0),]
    );
    assert_eq!(workers(&admin(A)).await, [row("worker-1", "*", 2, 0), row(&worker_a, A, 1, 0)]);
    assert_eq!(workers(&admin(B)).await, [row("worker-1", "*", 2, 0), row(&worker_b, B, 1, 0)]);

    let leases = async |client: &Client, batch: Option<&str>| {
        let leases: Result<Vec<_>, _> = client.leases(batch).try_collect().await;
        leases.map(|all| all.into_iter().map(|lease: v1::Lease| lease.batch).collect::<Vec<_>>())
    };
    assert_eq!(leases(&every, None).await.expect("listed").len(), 6);
    for (own, other, client) in [(&of_a, &of_b, admin(A)), (&of_b, &of_a, admin(B))] {
        assert_eq!(leases(&client, None).await.expect("listed"), vec![own.clone(); 3]);
        assert_eq!(leases(&client, Some(own)).await.expect("listed").len(), 3);
        let error = leases(&client, Some(other)).await.expect_err("another's");
        assert_eq!((error.code(), error.reason().as_deref()), (Code::NotFound, Some("BATCH_NOT_FOUND")));
        // And what submitters and readers do, there alone.
        assert_eq!(&client.get(own).await.expect("its own").name, own);
        assert_eq!(client.cancel(other, "", "").await.expect_err("another's").code(), Code::NotFound);
    }
    for (client, owned, more) in [(every, 2, true), (admin(A), 1, false)] {
        let all: Vec<_> = client.coordinators().try_collect().await.expect("listed");
        let [one] = &all[..] else { panic!("there is one: {all:?}") };
        assert!(one.answering);
        assert_eq!((one.owned_batches, one.store_transactions > 0), (owned, more));
        assert_eq!((one.grant_latency_p99_us > 0, one.peak_memory_bytes > 0), (more, more));
    }
}

/// `-` is the namespace of whoever calls, wherever a name has one.
#[tokio::test(flavor = "multi_thread")]
async fn a_dash_is_one_s_own_namespace() {
    let world = World::start().await;
    let [of_a, of_b] = [submitted(&world, TEAMS[0].0, 1).await, submitted(&world, TEAMS[1].0, 1).await];
    let dashed = |name: &str| format!("namespaces/-/batches/{}", tranche_client::names::batch_id(name));
    let (a, b) = (world.client(TEAMS[0].0), world.client(TEAMS[1].0));
    assert_eq!(a.get(&dashed(&of_a)).await.expect("its own").name, of_a);
    assert_eq!(a.get(&dashed(&of_b)).await.expect_err("another's").code(), Code::NotFound);
    let watched = std::pin::pin!(a.watch(&dashed(&of_a))).next().await.expect("told").expect("told");
    assert_eq!(watched.batch.expect("there").name, of_a);
    let request = v1::ListBatchesRequest { parent: "namespaces/-".to_owned(), ..Default::default() };
    let listed: Vec<_> = b.list(request).try_collect().await.expect("listed");
    assert_eq!(listed.into_iter().map(|batch| batch.name).collect::<Vec<_>>(), std::slice::from_ref(&of_b));
    // For who sees all it is `default`.
    let admin = world.client(&token_of(Role::Admin));
    assert_eq!(admin.get(&dashed(&of_a)).await.expect_err("elsewhere").code(), Code::NotFound);
    let batch = Some(batch_for("noop"));
    let request = v1::CreateBatchRequest { parent: "namespaces/-".into(), batch, ..Default::default() };
    let made = admin.create(request.clone()).await.expect("made").name;
    assert!(made.starts_with("namespaces/default/batches/"), "{made}");
    assert_eq!(admin.get(&dashed(&made)).await.expect("there").name, made);
    let own = b.create(request).await.expect("made").name;
    assert!(own.starts_with("namespaces/team-b/batches/"), "{own}");
    b.appender(&dashed(&own)).run(tokio_stream::iter(tasks(2))).await.expect("appended");
    assert!(b.seal(&dashed(&own), Some(2)).await.expect("sealed").sealed);
    assert_eq!(b.cancel(&dashed(&own), "", "").await.expect("cancelled").name, own);
    // A call whose batch another one may have, by the same name.
    let asked = raw(world.channel(TEAMS[0].0).await, Rpc::GetBatch.path(), named(&dashed(&own)), &[]).await;
    assert_eq!(told(&asked), (Code::NotFound, "BATCH_NOT_FOUND".to_owned()));
}
