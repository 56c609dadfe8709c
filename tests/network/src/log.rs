//! Logs of one run, with virtual time.

use std::fmt;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

/// Logs to stderr what `TRANCHE_NETWORK_LOG` says, as `tracing` directives; nothing without it.
pub fn init() {
    let Ok(directives) = std::env::var("TRANCHE_NETWORK_LOG") else { return };
    // Fails when a test before did it.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(directives)
        .with_timer(Virtual)
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .try_init();
}

struct Virtual;

impl FormatTime for Virtual {
    fn format_time(&self, to: &mut Writer<'_>) -> fmt::Result {
        let at = if turmoil::in_simulation() { turmoil::sim_elapsed() } else { None };
        match at {
            Some(at) => write!(to, "{:9.3}", at.as_secs_f64()),
            None => write!(to, "         "),
        }
    }
}
