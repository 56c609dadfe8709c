//! A stub of a collector, which decodes what real processes send it, and the shape of a batch's trace.

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};
use tranche_client::v1::batch::State;
use tranche_client::{Client, Options, v1};
use tranche_tests::cluster::{batch_for, in_ranges_of, tasks};
use tranche_tests::process::program;
use tranche_tests::{Cluster, eventually, scrape};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// Spans, each with the service that sent it.
type Spans = Arc<Mutex<Vec<(String, Span)>>>;

#[derive(Clone, Default)]
struct Collector(Spans);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for of in request.into_inner().resource_spans {
            let attributes = of.resource.map(|resource| resource.attributes).unwrap_or_default();
            let service = attributes.into_iter().find(|a| a.key == "service.name").and_then(|a| a.value);
            let Some(Value::StringValue(service)) = service.and_then(|value| value.value) else {
                return Err(Status::invalid_argument("no service.name"));
            };
            let spans = of.scope_spans.into_iter().flat_map(|scope| scope.spans);
            let mut all = self.0.lock().expect("not poisoned");
            all.extend(spans.map(|span| (service.clone(), span)));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

struct Stub {
    spans: Spans,
    url: String,
    _serving: AbortOnDropHandle<()>,
}

impl Stub {
    fn start() -> Self {
        let collector = Collector::default();
        let spans = collector.0.clone();
        let incoming = TcpIncoming::bind(([127, 0, 0, 1], 0).into()).expect("a port");
        let url = format!("http://{}", incoming.local_addr().expect("bound"));
        let router = tonic::transport::Server::builder().add_service(TraceServiceServer::new(collector));
        let serving =
            tokio::spawn(async move { router.serve_with_incoming(incoming).await.expect("serving") });
        Self { spans, url, _serving: AbortOnDropHandle::new(serving) }
    }

    /// The spans of a service in the trace, by name.
    fn of(&self, service: &str, trace: &[u8]) -> BTreeMap<String, Vec<Span>> {
        let mut named: BTreeMap<String, Vec<Span>> = BTreeMap::new();
        for (by, span) in self.spans.lock().expect("not poisoned").iter() {
            if by == service && span.trace_id == trace {
                named.entry(span.name.clone()).or_default().push(span.clone());
            }
        }
        named
    }
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex")).collect()
}

/// A span's attribute, as text.
fn attribute(span: &Span, key: &str) -> Option<String> {
    let value = span.attributes.iter().find(|attribute| attribute.key == key)?.value.clone()?.value?;
    Some(match value {
        Value::StringValue(text) => text,
        Value::IntValue(number) => number.to_string(),
        other => format!("{other:?}"),
    })
}

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
