//! Traces: what a process sends to an OpenTelemetry collector, and how a trace goes on from one to the next.
//!
//! The context travels as text, W3C's `traceparent`: in the metadata of calls, in a batch's record, in leases.

use opentelemetry::Context;
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::{Status, TraceContextExt as _, TracerProvider as _};
use opentelemetry_otlp::{WithExportConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tracing::{Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;
use tranche_tls::{ClientFiles, Credentials, endpoint};

use crate::TRACEPARENT;

/// How long one export may take; what can't be sent is dropped, and the process goes on.
const EXPORT_LIMIT: Duration = Duration::from_secs(5);
/// How long the end of a process waits for its last spans to be sent.
const END_LIMIT: Duration = Duration::from_secs(2);

/// Whether this process sends spans.
static TRACED: AtomicBool = AtomicBool::new(false);

/// Sends a process' spans; in the background, at most 2,048 waiting.
#[derive(Debug)]
pub struct Traces {
    provider: SdkTracerProvider,
}

impl Traces {
    /// To the collector at this URL, by OTLP over gRPC. Must be called in a runtime that lives as long. How many traces are
    /// kept, how often is sent, and the files of TLS are said by OpenTelemetry's own variables (`OTEL_TRACES_SAMPLER`,
    /// `OTEL_BSP_SCHEDULE_DELAY`, `OTEL_EXPORTER_OTLP_CERTIFICATE`).
    ///
    /// # Errors
    /// What is wrong with the URL, or with the files.
    pub fn to(url: &str, service: &'static str, version: &'static str) -> Result<Self, String> {
        let wrong = |error: &dyn std::fmt::Display| format!("otlp_endpoint = {url:?}: {error}");
        let credentials = Credentials::load(files()).map_err(|error| wrong(&error))?;
        let endpoint = endpoint(url).map_err(|error| wrong(&error))?.connect_timeout(EXPORT_LIMIT);
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_tonic()
            .with_channel(credentials.connect_lazy(url, &endpoint))
            .with_timeout(EXPORT_LIMIT)
            .build();
        let exporter = Told { to: exporter.map_err(|error| wrong(&error))?, failing: AtomicBool::new(false) };
        let version = opentelemetry::KeyValue::new("service.version", version);
        let resource = Resource::builder().with_service_name(service).with_attribute(version).build();
        let provider =
            SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build();
        TRACED.store(true, Ordering::Relaxed);
        Ok(Self { provider })
    }

    /// The layer of the subscriber. It takes our own spans, and no events: what is logged stays in the log.
    pub fn layer<S>(&self) -> impl Layer<S> + Send + Sync + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
    {
        tracing_opentelemetry::layer()
            .with_tracer(self.provider.tracer("tranche"))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            .with_filter(filter_fn(|meta| meta.is_span() && meta.target().starts_with("tranche_")))
    }

    /// Sends what is left.
    pub fn end(self) {
        if let Err(error) = self.provider.shutdown_with_timeout(END_LIMIT) {
            tracing::debug!(%error, "the last spans weren't sent");
        }
    }
}

/// The files of TLS, where OpenTelemetry's variables have them: those for traces, else those for all that is sent.
fn files() -> ClientFiles {
    let file = |name: &str| {
        let of = |prefix: &str| std::env::var_os(format!("{prefix}{name}")).filter(|path| !path.is_empty());
        of("OTEL_EXPORTER_OTLP_TRACES_").or_else(|| of("OTEL_EXPORTER_OTLP_")).map(PathBuf::from)
    };
    let (ca, cert, key) = (file("CERTIFICATE"), file("CLIENT_CERTIFICATE"), file("CLIENT_KEY"));
    ClientFiles { ca, cert, key, token: None }
}

/// Says in the log when spans can't be sent: once, until they can again.
#[derive(Debug)]
struct Told<E> {
    to: E,
    failing: AtomicBool,
}

impl<E: SpanExporter> SpanExporter for Told<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let sent = self.to.export(batch).await;
        match &sent {
            Ok(()) => self.failing.store(false, Ordering::Relaxed),
            Err(error) if !self.failing.swap(true, Ordering::Relaxed) => {
                tracing::warn!(%error, "spans are dropped: the collector doesn't take them");
            }
            Err(_) => {}
        }
        sent
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.to.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.to.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.to.set_resource(resource);
    }
}

/// The trace and the span that this thread works for, in hexadecimal.
pub(crate) fn ids() -> Option<(String, String)> {
    if !TRACED.load(Ordering::Relaxed) {
        return None;
    }
    Context::map_current(|context| {
        let span = context.span();
        let of = span.span_context();
        of.is_valid().then(|| (of.trace_id().to_string(), of.span_id().to_string()))
    })
}

/// Makes this span part of the trace that the text names, if it names one; and says what it is. The span needs the fields
/// `otel.name` and `otel.kind`, empty. Before it is entered.
pub fn follow(span: &Span, name: &str, kind: &str, attributes: &[(&'static str, &str)], traceparent: &str) {
    if !TRACED.load(Ordering::Relaxed) {
        return;
    }
    let carrier = HashMap::from([(TRACEPARENT.to_owned(), traceparent.to_owned())]);
    let context = TraceContextPropagator::new().extract(&carrier);
    if context.span().span_context().is_valid() {
        // Fails only without our layer.
        let _ = span.set_parent(context);
    }
    span.record("otel.name", name);
    span.record("otel.kind", kind);
    for (key, value) in attributes {
        span.set_attribute(*key, (*value).to_owned());
    }
}

/// The current span, as text to go on from; empty when nothing is traced.
pub fn current() -> String {
    if !TRACED.load(Ordering::Relaxed) {
        return String::new();
    }
    let mut carrier = HashMap::new();
    TraceContextPropagator::new().inject_context(&Span::current().context(), &mut carrier);
    carrier.remove(TRACEPARENT).unwrap_or_default()
}

/// The current span, a call's, was answered with this code.
pub fn answered(code: &'static str, failed: bool) {
    if TRACED.load(Ordering::Relaxed) {
        let span = Span::current();
        span.set_attribute("rpc.response.status_code", code);
        if failed {
            span.set_attribute("error.type", code);
            span.set_status(Status::error(code));
        }
    }
}

/// A number that belongs to a span.
pub fn count(span: &Span, key: &'static str, value: u64) {
    if TRACED.load(Ordering::Relaxed) {
        span.set_attribute(key, value.cast_signed());
    }
}

/// A span's work failed. What failed is in the log: it may hold what doesn't belong into a trace.
pub fn failed(span: &Span, kind: &'static str) {
    if TRACED.load(Ordering::Relaxed) {
        span.set_attribute("error.type", kind);
        span.set_status(Status::error(kind));
    }
}
