//! The two text formats.

use std::fmt::Write as _;

/// What [`Operated::metrics`](crate::Operated::metrics) gives.
pub const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Prometheus' own, older format: for scrapers and people who don't ask for the other.
pub const PLAIN: &str = "text/plain; version=0.0.4; charset=utf-8";

/// OpenMetrics as the older format: there a counter's family has the name of its samples, an info is a gauge,
/// and units and the end aren't told.
pub fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    // A family's lines come together: HELP, TYPE, UNIT, samples.
    let mut help: Option<(&str, &str)> = None;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let Some((name, kind)) = rest.split_once(' ') else { continue };
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                kind => ("", kind),
            };
            if let Some((_, help)) = help.take().filter(|(of, _)| *of == name) {
                let _ = writeln!(out, "# HELP {name}{suffix} {help}");
            }
            let _ = writeln!(out, "# TYPE {name}{suffix} {kind}");
        } else if !line.starts_with('#') {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::encoding::text::encode;
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::info::Info;
    use prometheus_client::registry::{Registry, Unit};

    #[test]
    fn the_older_format_names_families_after_their_samples() {
        let mut registry = Registry::with_prefix("t");
        let bytes = Counter::<u64>::default();
        bytes.inc_by(3);
        registry.register_with_unit("read", "Bytes read", Unit::Bytes, bytes);
        registry.register("build", "What this is", Info::new([("version", "1")]));
        let histogram = crate::seconds();
        histogram.observe(0.3);
        registry.register_with_unit("wait", "Waiting", Unit::Seconds, histogram);
        let mut text = String::new();
        encode(&mut text, &registry).expect("into memory");
        assert!(text.contains("# TYPE t_read_bytes counter\n# UNIT t_read_bytes bytes\n"), "{text}");
        assert!(text.ends_with("# EOF\n"));
        let plain = plain(&text);
        let lines: Vec<&str> = plain.lines().collect();
        assert_eq!(
            lines[..6],
            [
                "# HELP t_read_bytes_total Bytes read.",
                "# TYPE t_read_bytes_total counter",
                "t_read_bytes_total 3",
                "# HELP t_build_info What this is.",
                "# TYPE t_build_info gauge",
                "t_build_info{version=\"1\"} 1",
            ]
        );
        assert!(lines.contains(&"# TYPE t_wait_seconds histogram"), "{plain}");
        assert!(lines.contains(&"t_wait_seconds_bucket{le=\"0.5\"} 1"), "{plain}");
    }
}
