//! The logs of the code that is run, with the host's number and virtual time.

use crate::host::HostId;
use crate::world::At;
use std::cell::Cell;
use std::fmt;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

thread_local! {
    static HERE: Cell<(HostId, At)> = const { Cell::new((0, At::ZERO)) };
}

/// Which host's code runs from here on.
pub fn here(host: HostId, now: At) {
    HERE.set((host, now));
}

struct Here;

impl FormatTime for Here {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let (host, now) = HERE.get();
        write!(writer, "{:>10.3}  host {host}", now.as_secs_f64())
    }
}

/// Logs are printed.
pub fn print() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("debug"));
    let format = tracing_subscriber::fmt().with_timer(Here).with_ansi(false).with_target(false);
    // Twice is no harm.
    let _ = format.with_env_filter(filter).with_writer(std::io::stdout).try_init();
}
