//! Each RPC, with each credential.

use crate::world::{TEAMS, World, channel, client, credentials, named, raw, token_of, told};
use futures::TryStreamExt as _;
use serde_json::json;
use tonic::Code;
use tranche_client::{Client, v1};
use tranche_coordinator::identity::Role;
use tranche_coordinator::identity::rights::holders;
use tranche_proto::Rpc;
use tranche_tests::Pki;
use tranche_tests::cluster::batch_for;

#[tokio::test(flavor = "multi_thread")]
async fn each_role_makes_the_calls_of_the_table_and_no_others() {
    let world = World::start().await;
    for role in Role::ALL {
        for rpc in Rpc::ALL {
            let (code, reason) = world.call(&token_of(role), rpc, Vec::new()).await;
            if holders(rpc).contains(&role) {
                let refused = [Code::PermissionDenied, Code::Unauthenticated, Code::Unimplemented];
                assert!(!refused.contains(&code), "{role:?} {rpc:?}: {code:?} {reason}");
            } else {
                assert_eq!(
                    (code, reason.as_str()),
                    (Code::PermissionDenied, "ROLE_MISSING"),
                    "{role:?} {rpc:?}"
                );
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_credential_that_is_known_nothing_is_answered_but_health() {
    let world = World::start().await;
    world.pki.issue("stranger", &["spiffe://corp/ns/a/importer/x", "dns:h"]);
    world.pki.issue("importer", &["dns:h", "spiffe://corp/other", "spiffe://corp/ns/a/importer"]);
    let calls = |token: Option<&'static str>, certificate: Option<&'static str>| {
        let credentials = world.credentials(token, certificate);
        let url = &world.url;
        async move |path: &str, headers: &[(&'static str, &str)]| {
            told(&raw(channel(url, &credentials).await, path, Vec::new(), headers).await)
        }
    };
    let unknown = |reason: &str| (Code::Unauthenticated, reason.to_owned());
    for path in Rpc::ALL.map(Rpc::path).into_iter().chain([
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        "/tranche.v1.BatchService/NoSuchCall",
        "/grpc.health.v1.Health/NoSuchCall",
        "/",
    ]) {
        assert_eq!(calls(None, None)(path, &[]).await, unknown("CREDENTIAL_MISSING"), "{path}");
        assert_eq!(calls(None, Some("stranger"))(path, &[]).await, unknown("CREDENTIAL_UNKNOWN"), "{path}");
        assert_eq!(
            calls(Some("no-such-token"), None)(path, &[]).await,
            unknown("CREDENTIAL_UNKNOWN"),
            "{path}"
        );
    }
    let list = Rpc::ListBatches.path();
    assert_eq!(calls(None, Some("importer"))(list, &[]).await.0, Code::Ok);
    // The wrong token isn't made good by the right certificate.
    let both = calls(Some("no-such-token"), Some("importer"));
    assert_eq!(both(list, &[]).await, unknown("CREDENTIAL_UNKNOWN"));
    for header in ["", "Bearer", "Bearer ", "Basic dXNlcjpw", "token-of-a"] {
        let answer = calls(None, Some("importer"))(list, &[("authorization", header)]).await;
        assert_eq!(answer, unknown("CREDENTIAL_INVALID"), "{header:?}");
    }
    let twice = [("authorization", "Bearer token-of-a"), ("authorization", "Bearer token-of-a")];
    assert_eq!(calls(None, None)(list, &twice).await, unknown("CREDENTIAL_INVALID"));
    assert_eq!(calls(None, None)("/grpc.health.v1.Health/Check", &[]).await.0, Code::Ok);
    let known = calls(Some("token-of-a"), None);
    assert_eq!(known("/tranche.v1.BatchService/NoSuchCall", &[]).await.0, Code::Unimplemented);
    // What was signed by nobody, and for somebody else.
    let claims = |audience: &str| {
        json!({
            "iss": "https://issuer", "aud": audience, "sub": "x", "exp": 4_000_000_000_u64,
            "tranche_namespace": "*", "tranche_roles": "admin",
        })
    };
    let right = world.issuer.sign(&json!({"alg": "EdDSA", "kid": "k"}), &claims("tranche"));
    assert_eq!(world.call(&right, Rpc::ListWorkers, Vec::new()).await.0, Code::Ok);
    let none = world.issuer.sign(&json!({"alg": "none", "kid": "k"}), &claims("tranche"));
    let unsigned = none.rsplit_once('.').expect("three parts").0.to_owned() + ".";
    let other = world.issuer.sign(&json!({"alg": "EdDSA", "kid": "k"}), &claims("others"));
    for token in [none, unsigned, other] {
        assert_eq!(world.call(&token, Rpc::ListWorkers, Vec::new()).await, unknown("CREDENTIAL_INVALID"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_connects_with_a_wrong_certificate_or_to_a_wrong_server() {
    let world = World::start().await;
    let other = Pki::new();
    other.issue("importer", &["spiffe://corp/ns/a/importer"]);
    for file in ["importer.pem", "importer.key"] {
        world.pki.write(&format!("foreign-{file}"), std::fs::read(other.path(file)).expect("read"));
    }
    std::fs::rename(world.pki.path("foreign-importer.key"), world.pki.path("foreign.key")).expect("renamed");
    std::fs::rename(world.pki.path("foreign-importer.pem"), world.pki.path("foreign.pem")).expect("renamed");
    world.pki.issue_until("expired", &["spiffe://corp/ns/a/importer"], 2021);
    for certificate in ["foreign", "expired"] {
        // Also with a token that would do by itself.
        let credentials = world.credentials(Some("token-of-a"), Some(certificate));
        let error = client(&world.url, credentials).list_page(v1::ListBatchesRequest::default()).await;
        let error = error.expect_err(certificate);
        // With TLS 1.3 a client hears of it only after its first words.
        let broken = [Code::Unavailable, Code::Cancelled, Code::Unknown].contains(&error.code());
        assert!(broken && error.reason().is_none(), "{certificate}: {error:?}");
    }
    let distrusts = credentials(&other, Some("token-of-a"), None);
    let error = client(&world.url, distrusts).list_page(v1::ListBatchesRequest::default()).await;
    assert_eq!(error.expect_err("another CA").code(), Code::Unavailable);
    let plain = world.url.replace("https", "http");
    let error =
        client(&plain, world.credentials(Some("token-of-a"), None)).get("namespaces/a/batches/b").await;
    assert_ne!(error.expect_err("clear text").code(), Code::NotFound);
}

async fn made(client: &Client) -> String {
    let request = v1::CreateBatchRequest { batch: Some(batch_for("noop")), ..Default::default() };
    client.create(request).await.expect("made").name
}

/// The request that names a batch; `None`: the RPC takes none.
fn request(rpc: Rpc, name: &str) -> Option<Vec<u8>> {
    match rpc {
        // The first field of all of these is the batch's name.
        Rpc::AppendTasks
        | Rpc::SealBatch
        | Rpc::GetBatch
        | Rpc::WatchBatch
        | Rpc::CommitBatch
        | Rpc::CancelBatch
        | Rpc::RetryFailed
        | Rpc::ListFailures
        | Rpc::DeleteBatch => Some(named(name)),
        // Operators see all leases.
        Rpc::CreateBatch
        | Rpc::ListBatches
        | Rpc::ListWorkers
        | Rpc::ListCoordinators
        | Rpc::ListLeases
        | Rpc::Attach => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_namespace_s_batch_is_not_there() {
    let world = World::start().await;
    let [a, b] = TEAMS.map(|(token, _)| world.client(token));
    let (of_a, of_b) = (made(&a).await, made(&b).await);
    assert!(
        of_a.starts_with("namespaces/team-a/batches/") && of_b.starts_with("namespaces/team-b/"),
        "{of_a}"
    );
    let before = a.get(&of_a).await.expect("one's own");
    for rpc in Rpc::ALL {
        let Some(message) = request(rpc, &of_a) else { continue };
        let asked = raw(world.channel(TEAMS[1].0).await, rpc.path(), message, &[]).await;
        assert_eq!(told(&asked), (Code::NotFound, "BATCH_NOT_FOUND".to_owned()), "{rpc:?}");
        // The very answer of one that never was.
        let never = of_b.replace(of_b.rsplit('/').next().expect("an id"), "never-was");
        let message = request(rpc, &never).expect("as before");
        let absent = raw(world.channel(TEAMS[1].0).await, rpc.path(), message, &[]).await;
        assert_eq!(told(&absent), told(&asked), "{rpc:?}");
        assert_eq!(absent.message().replace(&never, &of_a), asked.message(), "{rpc:?}");
    }
    assert_eq!(a.get(&of_a).await.expect("still there"), before);
    let listed = async |client: &Client, parent: &str| {
        let request = v1::ListBatchesRequest { parent: parent.to_owned(), ..Default::default() };
        let all: Result<Vec<_>, _> = client.list(request).try_collect().await;
        all.map(|all| all.into_iter().map(|batch| batch.name).collect::<Vec<_>>())
    };
    assert_eq!(listed(&a, "").await.expect("listed"), std::slice::from_ref(&of_a));
    assert_eq!(listed(&b, "namespaces/team-b").await.expect("listed"), std::slice::from_ref(&of_b));
    for parent in ["namespaces/team-a", "namespaces/default"] {
        let denied = listed(&b, parent).await.expect_err("another's");
        assert_eq!(
            (denied.code(), denied.reason().as_deref()),
            (Code::PermissionDenied, Some("NAMESPACE_DENIED"))
        );
        let batch = Some(batch_for("noop"));
        let denied =
            b.create(v1::CreateBatchRequest { parent: parent.to_owned(), batch, ..Default::default() }).await;
        assert_eq!(denied.expect_err("another's").reason().as_deref(), Some("NAMESPACE_DENIED"));
    }
    // Operators see all of them.
    let admin = world.client(&token_of(Role::Admin));
    for (name, parent) in [(&of_a, "namespaces/team-a"), (&of_b, "namespaces/team-b")] {
        assert_eq!(&admin.get(name).await.expect("seen").name, name);
        assert_eq!(listed(&admin, parent).await.expect("listed"), std::slice::from_ref(name));
    }
    // And who decides is who they are, whatever they call themselves.
    let cancelled = a.cancel(&of_a, "Eve", "no").await.expect("one's own");
    assert_eq!(cancelled.decision.expect("decided").actor, "Eve (team-a)");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_coordinator_calls_for_others() {
    let world = World::start().await;
    let name = made(&world.client(TEAMS[0].0)).await;
    let behalf = |name, namespace, roles| {
        [
            ("tranche-forwarded", "c1"),
            ("tranche-behalf-name", name),
            ("tranche-behalf-namespace", namespace),
            ("tranche-behalf-roles", roles),
        ]
    };
    let call = async |token: &str, rpc: Rpc, headers: &[(&'static str, &str)]| {
        told(&raw(world.channel(token).await, rpc.path(), named(&name), headers).await)
    };
    let denied = (Code::PermissionDenied, "NOT_A_REPLICA".to_owned());
    let admin = behalf("ops", "*", "admin");
    for token in [TEAMS[1].0, &token_of(Role::Admin), &token_of(Role::Worker)] {
        assert_eq!(call(token, Rpc::GetBatch, &admin).await, denied, "{token}");
        for header in &admin {
            assert_eq!(call(token, Rpc::GetBatch, &[*header]).await, denied, "{token} {header:?}");
        }
    }
    let replica = token_of(Role::Replica);
    assert_eq!(call(&replica, Rpc::GetBatch, &behalf("a", "team-a", "reader")).await.0, Code::Ok);
    // The first caller's own rights are what counts.
    assert_eq!(call(&replica, Rpc::GetBatch, &behalf("b", "team-b", "reader")).await.0, Code::NotFound);
    assert_eq!(call(&replica, Rpc::GetBatch, &behalf("x", "team-a", "admin")).await.0, Code::Ok);
    assert_eq!(call(&replica, Rpc::GetBatch, &behalf("x", "team-b", "admin")).await.0, Code::NotFound);
    let (code, reason) = call(&replica, Rpc::GetBatch, &behalf("a", "team-a", "submitter")).await;
    assert_eq!((code, reason.as_str()), (Code::PermissionDenied, "ROLE_MISSING"));
    assert_eq!(call(&replica, Rpc::DeleteBatch, &behalf("a", "team-a", "submitter")).await, denied);
    for headers in [
        behalf("x", "*", "replica"),
        behalf("x", "*", "admin,replica"),
        behalf("x", "team-a", "replica"),
        behalf("x", "team-a", ""),
        behalf("", "team-a", "reader"),
        behalf("a/b", "team-a", "reader"),
        behalf("x", "Team", "reader"),
    ] {
        assert_eq!(call(&replica, Rpc::GetBatch, &headers).await, denied, "{headers:?}");
    }
    assert_eq!(call(&replica, Rpc::GetBatch, &[("tranche-forwarded", "c1")]).await, denied);
    let twice = [&behalf("a", "team-a", "reader")[..], &[("tranche-behalf-roles", "reader")]].concat();
    assert_eq!(call(&replica, Rpc::GetBatch, &twice).await, denied);
}
