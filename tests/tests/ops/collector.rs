//! A stub of a collector, which decodes what real processes send it.

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};
use tranche_tls::ServerFiles;

/// The trace of the tests' callers.
pub(crate) const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
/// Their span.
pub(crate) const PARENT: &str = "00f067aa0ba902b7";

/// Spans, each with the service that sent it.
pub(crate) type Spans = Arc<Mutex<Vec<(String, Span)>>>;

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

pub(crate) struct Stub {
    pub(crate) spans: Spans,
    pub(crate) url: String,
    _serving: AbortOnDropHandle<()>,
}

impl Stub {
    pub(crate) fn start() -> Self {
        let collector = Collector::default();
        let spans = collector.0.clone();
        let incoming = TcpIncoming::bind(([127, 0, 0, 1], 0).into()).expect("a port");
        let url = format!("http://{}", incoming.local_addr().expect("bound"));
        let router = tonic::transport::Server::builder().add_service(TraceServiceServer::new(collector));
        let serving =
            tokio::spawn(async move { router.serve_with_incoming(incoming).await.expect("serving") });
        Self { spans, url, _serving: AbortOnDropHandle::new(serving) }
    }

    /// By TLS, with these files.
    pub(crate) fn start_tls(files: ServerFiles) -> Self {
        let collector = Collector::default();
        let spans = collector.0.clone();
        let incoming = TcpIncoming::bind(([127, 0, 0, 1], 0).into()).expect("a port");
        let url = format!("https://{}", incoming.local_addr().expect("bound"));
        let router = tonic::transport::Server::builder().add_service(TraceServiceServer::new(collector));
        let incoming = tranche_tls::accept(incoming, files.start().expect("its files"));
        let serving =
            tokio::spawn(async move { router.serve_with_incoming(incoming).await.expect("serving") });
        Self { spans, url, _serving: AbortOnDropHandle::new(serving) }
    }

    /// The spans of a service in the trace, by name.
    pub(crate) fn of(&self, service: &str, trace: &[u8]) -> BTreeMap<String, Vec<Span>> {
        let mut named: BTreeMap<String, Vec<Span>> = BTreeMap::new();
        for (by, span) in self.spans.lock().expect("not poisoned").iter() {
            if by == service && span.trace_id == trace {
                named.entry(span.name.clone()).or_default().push(span.clone());
            }
        }
        named
    }
}

pub(crate) fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex")).collect()
}

/// A span's attribute, as text.
pub(crate) fn attribute(span: &Span, key: &str) -> Option<String> {
    let value = span.attributes.iter().find(|attribute| attribute.key == key)?.value.clone()?.value?;
    Some(match value {
        Value::StringValue(text) => text,
        Value::IntValue(number) => number.to_string(),
        other => format!("{other:?}"),
    })
}
