//! What a process logs, to stderr: lines of text for people, or objects for programs. With traces each says, under the same names
//! in both, of which trace and span it is: `trace_id` and `span_id`, as OpenTelemetry names them in formats that aren't its own.

use crate::trace::{Traces, ids};
use std::fmt;
use std::io::IsTerminal as _;
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::{self, FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, layer};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

/// Starts this process' log. Once.
pub fn start(filter: EnvFilter, json: bool, traces: Option<&Traces>) {
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let lines = layer().with_writer(std::io::stderr).with_ansi(colours);
    let lines = if json {
        lines.json().event_format(Told { line: format::json(), json }).boxed()
    } else {
        lines.event_format(Told { line: format::format().with_ansi(colours), json }).boxed()
    };
    tracing_subscriber::registry().with(lines.with_filter(filter)).with(traces.map(Traces::layer)).init();
}

/// A line, and behind it the trace that it is of.
struct Told<F> {
    line: F,
    json: bool,
}

impl<S, N, F> FormatEvent<S, N> for Told<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let Some((trace, span)) = ids() else { return self.line.format_event(context, writer, event) };
        let mut line = String::new();
        self.line.format_event(context, Writer::new(&mut line), event)?;
        writer.write_str(&with(&line, self.json, &trace, &span))
    }
}

fn with(line: &str, json: bool, trace: &str, span: &str) -> String {
    let line = line.trim_end_matches('\n');
    match line.strip_suffix('}').filter(|_| json) {
        Some(open) => format!("{open},\"trace_id\":\"{trace}\",\"span_id\":\"{span}\"}}\n"),
        None => format!("{line} trace_id={trace} span_id={span}\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::with;

    #[test]
    fn a_line_stays_one_line_with_its_trace_at_the_end() {
        assert_eq!(with("INFO a {b}\n", false, "t", "s"), "INFO a {b} trace_id=t span_id=s\n");
        let json = with("{\"fields\":{\"message\":\"}\"}}\n", true, "t", "s");
        assert_eq!(json, "{\"fields\":{\"message\":\"}\"},\"trace_id\":\"t\",\"span_id\":\"s\"}\n");
    }
}
