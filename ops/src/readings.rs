//! Figures that are read when they are asked for, so that nothing can drift.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Unit;
use std::fmt;

/// One metric, with its samples.
#[derive(Clone, Debug)]
pub struct Reading {
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    counter: bool,
    samples: Vec<(Vec<(&'static str, String)>, f64)>,
}

impl Reading {
    /// A figure that goes up and down. The unit's name is added to the metric's.
    pub fn gauge(name: &'static str, help: &'static str, unit: Option<Unit>) -> Self {
        Self { name, help, unit, counter: false, samples: Vec::new() }
    }

    /// A figure that only grows while the process lives.
    pub fn counter(name: &'static str, help: &'static str, unit: Option<Unit>) -> Self {
        Self { counter: true, ..Self::gauge(name, help, unit) }
    }

    /// Its only sample.
    #[must_use]
    pub fn is(self, value: f64) -> Self {
        self.with(Vec::new(), value)
    }

    /// One of its samples.
    #[must_use]
    pub fn with(mut self, labels: Vec<(&'static str, String)>, value: f64) -> Self {
        self.samples.push((labels, value));
        self
    }

    fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        // As the registry does with those of its own.
        let help = format!("{}.", self.help);
        let kind = if self.counter { MetricType::Counter } else { MetricType::Gauge };
        let mut family = encoder.encode_descriptor(self.name, &help, self.unit.as_ref(), kind)?;
        for (labels, value) in &self.samples {
            let sample = if labels.is_empty() {
                // No braces without labels.
                return self.encode_value(*value, family);
            } else {
                family.encode_family(labels)?
            };
            self.encode_value(*value, sample)?;
        }
        Ok(())
    }

    fn encode_value(
        &self,
        value: f64,
        encoder: prometheus_client::encoding::MetricEncoder<'_>,
    ) -> fmt::Result {
        if self.counter {
            ConstCounter::new(value).encode(encoder)
        } else {
            ConstGauge::new(value).encode(encoder)
        }
    }
}

/// Reads at each scrape.
pub struct Readings<F>(pub F);

impl<F> fmt::Debug for Readings<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Readings")
    }
}

impl<F: Fn() -> Vec<Reading> + Send + Sync + 'static> Collector for Readings<F> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        (self.0)().iter().try_for_each(|reading| reading.encode(&mut encoder))
    }
}

/// A histogram of times in seconds, from a tenth of a millisecond to 100 s.
pub fn seconds() -> Histogram {
    const BOUNDS: [f64; 19] = [
        0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
        10.0, 25.0, 50.0, 100.0,
    ];
    Histogram::new(BOUNDS)
}
