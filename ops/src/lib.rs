//! The port for operators: is the process alive, is it ready, what does it count.
//!
//! [`serve`] answers `/livez`, `/readyz` and `/metrics` on connections that its caller gives it, in clear text or
//! not. It is bounded in every direction, and knows nothing of what it tells: that is [`Operated`].

mod listen;
pub mod logs;
mod process;
mod readings;
mod serve;
mod text;
#[cfg(feature = "otlp")]
pub mod trace;
#[cfg(not(feature = "otlp"))]
#[path = "untraced.rs"]
pub mod trace;

/// The name of the metadata that carries a trace from one process to the next.
pub const TRACEPARENT: &str = "traceparent";

pub use listen::{incoming, is_loopback};
pub use process::{Process, registry};
pub use readings::{Reading, Readings, seconds};
pub use serve::{CONNECTION_LIMIT, HEAD_LIMIT, MAX_CONNECTIONS, serve};
pub use text::{OPENMETRICS, PLAIN, plain};

// What has metrics needs its types.
pub use prometheus_client;

/// What an operator asks a process.
pub trait Operated: Send + Sync + 'static {
    /// Whether it takes work now; else why not, in a few words.
    ///
    /// # Errors
    /// Why it doesn't.
    fn ready(&self) -> Result<(), String>;

    /// All metrics as of now, in OpenMetrics text. Must not wait.
    fn metrics(&self) -> String;
}
