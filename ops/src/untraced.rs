//! A build without traces (feature `otlp`).

use tracing::Span;
use tracing_subscriber::layer::Identity;

/// Sends a process' spans, in a build that can.
#[derive(Debug)]
pub struct Traces;

impl Traces {
    /// # Errors
    /// This build can't.
    pub fn to(endpoint: &str, _service: &'static str, _version: &'static str) -> Result<Self, String> {
        Err(format!("otlp_endpoint = {endpoint:?}: this build has no traces (feature `otlp`)"))
    }

    /// A layer that does nothing.
    pub fn layer(&self) -> Identity {
        Identity::new()
    }

    /// Nothing is left.
    pub fn end(self) {}
}

/// Nothing is traced.
pub(crate) fn ids() -> Option<(String, String)> {
    None
}

/// Nothing is traced.
pub fn follow(
    _span: &Span,
    _name: &str,
    _kind: &str,
    _attributes: &[(&'static str, &str)],
    _traceparent: &str,
) {
}

/// Nothing is traced.
pub fn current() -> String {
    String::new()
}

/// Nothing is traced.
pub fn answered(_code: &'static str, _failed: bool) {}

/// Nothing is traced.
pub fn count(_span: &Span, _key: &'static str, _value: u64) {}

/// Nothing is traced.
pub fn failed(_span: &Span, _kind: &'static str) {}
