//! Coordinators among themselves, with TLS and identities on both sides.

use crate::world::{client, credentials, identities, of_team, security, start};
use futures::{StreamExt as _, TryStreamExt as _};
use std::time::Duration;
use tonic::Code;
use tranche_client::{Client, Options, v1};
use tranche_coordinator::config::{Config, StoreConfig};
use tranche_coordinator::identity::Role;
use tranche_tests::cluster::{batch_for, tasks};
use tranche_tests::{Pki, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_passed_on_in_the_name_of_their_caller() {
    let pki = Pki::new();
    pki.write("identities.toml", identities());
    let dir = tempfile::tempdir().expect("a folder");
    let etcd = tranche_tests::etcd::shared().await;
    let config = Config {
        security: security(&pki),
        listen: ([127, 0, 0, 1], 0).into(),
        store: StoreConfig::Etcd {
            endpoints: vec![etcd.endpoint()],
            prefix: format!("/{}/", uuid::Uuid::new_v4().simple()),
            session_ttl: Duration::from_secs(2),
            call_timeout: Duration::from_secs(5),
        },
        objects: Some(dir.path().to_owned()),
        ..Config::default()
    };
    let (one, stop_one, _) = start(config.clone()).await;
    let (two, stop_two, _) = start(config).await;
    let of = |url: &str, token: &str| {
        let options = Options { credentials: credentials(&pki, Some(token), None), ..Options::default() };
        Client::connect_lazy(url, options).expect("a URL")
    };
    let admin = of(&one, "token-of-admin");
    eventually("both know each other", async || {
        let all: Vec<_> = admin.coordinators().try_collect().await.expect("listed");
        (all.len() == 2).then_some(())
    })
    .await;
    let clients = [of(&one, "token-of-a"), of(&two, "token-of-a")];
    for number in 0..6 {
        let batch = Some(batch_for("noop"));
        let request = v1::CreateBatchRequest { batch, ..Default::default() };
        let made = clients[number % 2].create(request).await.expect("made");
        assert!(made.name.starts_with("namespaces/team-a/"), "{}", made.name);
        let own = format!("namespaces/-/batches/{}", tranche_client::names::batch_id(&made.name));
        // Each of these is the owner's business, whoever is asked.
        for (client, name) in clients.iter().zip([&made.name, &own]) {
            client.append(name, tokio_stream::iter(tasks(3))).await.expect("appended");
            let mut watch = std::pin::pin!(client.watch(name));
            watch.next().await.expect("an update").expect("an update");
        }
        let sealed = clients[(number + 1) % 2].seal(&own, Some(3)).await.expect("sealed");
        assert_eq!(sealed.counters.expect("there").total, 3);
        for url in [&one, &two] {
            let other = client(url, credentials(&pki, Some("token-of-b"), None));
            let error = other.append(&made.name, tokio_stream::iter(tasks(3))).await;
            assert_eq!(error.expect_err("another's").code(), Code::NotFound);
        }
    }
    let all: Vec<_> = admin.coordinators().try_collect().await.expect("listed");
    assert!(
        all.iter().all(|one| one.endpoint.starts_with("https://") && one.answering && one.owned_batches > 0),
        "{all:?}"
    );
    // And for an admin of one namespace the others tell of that alone.
    for (namespace, owned) in [("team-a", 6), ("team-b", 0)] {
        for url in [&one, &two] {
            let admin = of(url, &of_team(Role::Admin, namespace));
            let all: Vec<_> = admin.coordinators().try_collect().await.expect("listed");
            assert!(all.len() == 2 && all.iter().all(|one| one.answering), "{all:?}");
            assert_eq!(all.iter().map(|one| one.owned_batches).sum::<i32>(), owned, "{namespace}");
            assert!(
                all.iter().all(|one| one.store_transactions == 0 && one.peak_memory_bytes == 0),
                "{all:?}"
            );
        }
    }
    stop_one.cancel();
    stop_two.cancel();
}
