//! The services over a real connection, as far as they answer without a node's work.

use super::*;
use tonic::Code;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus as Told;
use tonic_health::pb::health_client::HealthClient;

#[tokio::test]
async fn health_tells_each_service_and_the_whole() {
    let reporter = HealthReporter::new();
    let health = Health(reporter.clone());
    let service = HealthService::from_health_reporter(reporter);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("bound");
    let shutdown = CancellationToken::new();
    health.set(true).await;
    let served = tokio::spawn(
        tonic::transport::Server::builder()
            .layer(layers::CallLayer::new(1, Duration::from_secs(3)))
            .add_service(tonic_health::pb::health_server::HealthServer::new(service))
            .serve_with_incoming_shutdown(incoming(listener), shutdown.clone().cancelled_owned()),
    );
    let channel =
        Channel::from_shared(format!("http://{address}")).expect("a URL").connect().await.expect("connected");
    let mut client = HealthClient::new(channel);
    for (serving, told) in [(true, Told::Serving), (false, Told::NotServing)] {
        health.set(serving).await;
        for service in SERVICES.into_iter().chain([""]) {
            let request = HealthCheckRequest { service: service.to_owned() };
            let response = client.check(request).await.expect("answered");
            assert!(response.metadata().contains_key(layers::REQUEST_ID));
            assert_eq!(response.into_inner().status(), told, "{service}");
        }
    }
    let unknown = client.check(HealthCheckRequest { service: "x".into() }).await.expect_err("unknown");
    assert_eq!(unknown.code(), Code::NotFound);
    drop(client);
    shutdown.cancel();
    served.await.expect("joined").expect("ended well");
}

#[test]
fn the_descriptors_hold_every_service() {
    let set = <prost_types::FileDescriptorSet as prost::Message>::decode(FILE_DESCRIPTOR_SET).expect("ours");
    let names: Vec<_> = set
        .file
        .iter()
        .filter(|file| file.package() == "tranche.v1")
        .flat_map(|file| file.service.iter().map(|service| format!("tranche.v1.{}", service.name())))
        .collect();
    assert_eq!(names.len(), SERVICES.len());
    for service in SERVICES {
        assert!(names.iter().any(|name| name == service), "{service}");
    }
}
