//! The shape of a batch's trace, as a collector gets it.

use crate::collector::{PARENT, Stub, TRACE, attribute, bytes};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use tranche_client::v1::batch::State;
use tranche_client::{Client, Options, v1};
use tranche_tests::cluster::{batch_for, in_ranges_of, tasks};
use tranche_tests::process::program;
use tranche_tests::{Cluster, eventually, scrape};

#[tokio::test(flavor = "multi_thread")]
async fn one_trace_goes_from_the_submit_through_the_coordinators_to_the_workers_commit() {
    let stub = Stub::start();
    // Two coordinators: whichever owns the batch, the trace is one.
    let mut cluster = Cluster::builder().coordinators(2).flag("otlp-endpoint", &stub.url).start().await;
    cluster.worker_with("w1", 2, &[("otlp-endpoint", &stub.url)]).await;
    let traceparent = Some(format!("00-{TRACE}-{PARENT}-01"));
    let options = Options { traceparent, ..Options::default() };
    let client = Client::connect_with(cluster.url(0), options).await.expect("connected");
    let secret = "a canary that no trace shows";
    let labels = [("note".to_owned(), secret.to_owned())].into();
    let batch = v1::Batch { labels, ..in_ranges_of(10, batch_for("noop")) };
    let request = v1::CreateBatchRequest { batch: Some(batch), ..Default::default() };
    let all: Vec<v1::Task> =
        tasks(30).into_iter().map(|task| v1::Task { payload: secret.into(), ..task }).collect();
    let name = client.submit(request, tokio_stream::iter(all)).await.expect("submitted").name;
    cluster.wait_state(&name, State::Committed).await;

    let trace = bytes(TRACE);
    let create = "tranche.v1.BatchService/CreateBatch";
    let (calls, work) = eventually("the spans are there", async || {
        let (calls, work) = (stub.of("tranche-coordinator", &trace), stub.of("tranche-worker", &trace));
        let count = |name: &str| work.get(name).map_or(0, Vec::len);
        let there = calls.contains_key(create) && count("stage noop") == 3 && count("commit noop") == 3;
        there.then_some((calls, work))
    })
    .await;
    for method in ["CreateBatch", "AppendTasks", "SealBatch"] {
        let spans = &calls[&format!("tranche.v1.BatchService/{method}")];
        for span in spans {
            assert_eq!(span.kind(), SpanKind::Server, "{span:?}");
            assert_eq!(attribute(span, "rpc.system.name").as_deref(), Some("grpc"));
            assert_eq!(attribute(span, "rpc.method"), Some(format!("tranche.v1.BatchService/{method}")));
            assert_eq!(attribute(span, "rpc.response.status_code").as_deref(), Some("OK"));
        }
        assert!(spans.iter().any(|span| span.parent_span_id == bytes(PARENT)), "{method}: {spans:?}");
    }
    // The last of the chain of calls that made it: it may have been passed on to the coordinator that has fewest.
    let created: Vec<&[u8]> = calls[create].iter().map(|span| &*span.span_id).collect();
    for phase in ["stage", "commit"] {
        for span in &work[&format!("{phase} noop")] {
            assert_eq!(span.kind(), SpanKind::Consumer);
            assert!(created.contains(&&*span.parent_span_id), "{span:?} is no child of {created:?}");
            assert_eq!(attribute(span, "messaging.operation.name").as_deref(), Some(phase));
            assert_eq!(attribute(span, "messaging.destination.name").as_deref(), Some("noop"));
            assert_eq!(attribute(span, "batch.id"), Some(name.clone()));
            assert!(span.start_time_unix_nano <= span.end_time_unix_nano);
        }
    }
    let counted: u64 = work["stage noop"]
        .iter()
        .map(|span| attribute(span, "messaging.batch.message_count").expect("a count"))
        .map(|count| count.parse::<u64>().expect("a number"))
        .sum();
    assert_eq!(counted, 30);
    let spans = stub.spans.lock().expect("not poisoned");
    assert!(!format!("{spans:?}").contains(secret));
    assert!(spans.iter().all(|(_, span)| span.events.is_empty()), "what is logged stays in the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_goes_on_in_the_trace_of_its_environment() {
    let stub = Stub::start();
    let cluster = Cluster::builder().flag("otlp-endpoint", &stub.url).start().await;
    let mut command = tokio::process::Command::new(program("tranche"));
    command.args(["--coordinator", &cluster.url(0), "list"]);
    let listed =
        command.env("TRACEPARENT", format!("00-{TRACE}-{PARENT}-01")).output().await.expect("it runs");
    assert!(listed.status.success(), "{listed:?}");
    let trace = bytes(TRACE);
    let span = eventually("the span is there", async || {
        stub.of("tranche-coordinator", &trace).remove("tranche.v1.BatchService/ListBatches")?.pop()
    })
    .await;
    assert_eq!(span.parent_span_id, bytes(PARENT));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_holds_nothing_up() {
    // Nothing listens on port 1 (tcpmux).
    let url = "http://127.0.0.1:1";
    let mut cluster =
        Cluster::builder().flag("otlp-endpoint", url).flag("ops-listen", "127.0.0.1:0").start().await;
    let ops = cluster.coordinator(0).said("ops port on").await.expect("an ops port");
    cluster.worker_with("w1", 2, &[("otlp-endpoint", url)]).await;
    let batch = cluster.submit(batch_for("noop"), tasks(10)).await;
    cluster.wait_state(&batch, State::Committed).await;
    assert_eq!(scrape::get(&ops, "/readyz").await.0, 200);
    cluster.coordinator(0).sigterm();
    assert!(cluster.coordinator(0).ended().await.success());
}
