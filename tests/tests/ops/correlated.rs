//! Each line that is logged for a call or a lease names its trace and its span, as the collector has them.

use crate::collector::{PARENT, Stub, TRACE, bytes};
use opentelemetry_proto::tonic::trace::v1::Span;
use std::collections::BTreeMap;
use tranche_client::v1::batch::State;
use tranche_client::{Client, Options, v1};
use tranche_tests::cluster::{batch_for, in_ranges_of, tasks};
use tranche_tests::{Cluster, eventually};

/// The value of a field in a line, whichever of the two formats it has.
fn field(line: &str, name: &str) -> Option<String> {
    if line.starts_with('{') {
        let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
        return line.get(name)?.as_str().map(str::to_owned);
    }
    let value = line.split_once(&format!(" {name}="))?.1;
    value.split_whitespace().next().map(str::to_owned)
}

/// The lines with this message, each as the trace and the span that it names.
fn told(log: &str, message: &str) -> Vec<(String, String)> {
    let lines = log.lines().filter(|line| line.contains(message));
    let named = |line: &str| Some((field(line, "trace_id")?, field(line, "span_id")?));
    lines.map(|line| named(line).unwrap_or_else(|| panic!("it names no trace: {line}"))).collect()
}

fn names(spans: &BTreeMap<String, Vec<Span>>) -> BTreeMap<Vec<u8>, String> {
    let each = |(name, spans): (&String, &Vec<Span>)| {
        spans.iter().map(|span| (span.span_id.clone(), name.clone())).collect::<Vec<_>>()
    };
    spans.iter().flat_map(each).collect()
}

async fn lines_name_their_spans(format: &str) {
    let stub = Stub::start();
    let flags = [("otlp-endpoint", stub.url.as_str()), ("log-format", format)];
    let builder = flags.iter().fold(Cluster::builder(), |builder, (name, value)| builder.flag(name, value));
    let mut cluster = builder.flag("log", "info,tranche_coordinator=debug").start().await;
    cluster.worker_with("w1", 2, &flags).await;
    let options = Options { traceparent: Some(format!("00-{TRACE}-{PARENT}-01")), ..Options::default() };
    let client = Client::connect_with(cluster.url(0), options).await.expect("connected");
    let batch = in_ranges_of(10, batch_for("noop"));
    let request = v1::CreateBatchRequest { batch: Some(batch), ..Default::default() };
    let batch = client.submit(request, tokio_stream::iter(tasks(30))).await.expect("submitted");
    cluster.wait_state(&batch.name, State::Committed).await;
    let trace = bytes(TRACE);

    // The worker's: every lease of the batch has a line, and each line the span of its lease.
    let spans = eventually("the leases' spans are there", async || {
        let spans = stub.of("tranche-worker", &trace);
        let count = |name: &str| spans.get(name).map_or(0, Vec::len);
        (count("stage noop") == 3 && count("commit noop") == 3 && count("sweep noop") == 1).then_some(spans)
    })
    .await;
    let spans = names(&spans);
    let lines = told(&cluster.worker_process("w1").log(), "lease done");
    assert!(lines.len() >= 7, "{lines:?}");
    for (trace, span) in &lines {
        assert_eq!(trace, TRACE);
        assert!(spans.contains_key(&bytes(span)), "{span} is none of {spans:?}");
    }

    // The coordinator's: calls of the client are in its trace, and each names its own span.
    let create = "tranche.v1.BatchService/CreateBatch";
    let spans = eventually("the calls' spans are there", async || {
        let spans = stub.of("tranche-coordinator", &trace);
        spans.contains_key(create).then(|| names(&spans))
    })
    .await;
    let log = cluster.coordinator(0).log();
    let line = log.lines().find(|line| line.contains("answered") && line.contains(create));
    let line = line.expect("the call's line");
    assert_eq!(field(line, "trace_id").as_deref(), Some(TRACE), "{line}");
    let span = field(line, "span_id").expect("a span");
    assert_eq!(spans.get(&bytes(&span)).map(String::as_str), Some(create), "{line}");
    // What is of no call is in no trace.
    let line = log.lines().find(|line| line.contains("listening")).expect("its first line");
    assert_eq!((field(line, "trace_id"), field(line, "span_id")), (None, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_of_text_name_their_trace_and_span() {
    lines_name_their_spans("text").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_of_json_name_their_trace_and_span() {
    lines_name_their_spans("json").await;
}
