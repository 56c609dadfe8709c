//! One figure of a row: what was measured, and what it should be.

use serde_json::{Value, json};

use crate::output::count;

/// What a value counts. Values are kept in the unit that is named here; tables scale them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    /// Tasks a second.
    TasksPerSecond,
    /// Seconds: of the clock, or of a processor.
    Seconds,
    Bytes,
    /// A number of things.
    Count,
    /// A quotient, without a unit.
    Ratio,
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Self::TasksPerSecond => "tasks/s",
            Self::Seconds => "s",
            Self::Bytes => "bytes",
            Self::Count => "count",
            Self::Ratio => "ratio",
        }
    }

    /// For people: `1,234,567/s`, `0.31 ms`, `106 MB`.
    pub(super) fn show(self, value: f64) -> String {
        match self {
            Self::TasksPerSecond => format!("{}/s", count(value.round() as i64)),
            Self::Count => count(value.round() as i64),
            Self::Ratio => format!("{value:.2}"),
            Self::Bytes if value < 1e6 => format!("{} kB", places(value / 1e3)),
            Self::Bytes if value < 1e9 => format!("{} MB", places(value / 1e6)),
            Self::Bytes => format!("{} GB", places(value / 1e9)),
            Self::Seconds if value == 0.0 => "0 s".to_owned(),
            Self::Seconds if value < 1e-6 => format!("{} ns", places(value * 1e9)),
            Self::Seconds if value < 1e-3 => format!("{} µs", places(value * 1e6)),
            Self::Seconds if value < 1.0 => format!("{} ms", places(value * 1e3)),
            Self::Seconds => format!("{} s", places(value)),
        }
    }
}

/// Three digits that say something, without zeros behind them.
fn places(value: f64) -> String {
    let text = match value {
        v if v < 10.0 => format!("{v:.2}"),
        v if v < 100.0 => format!("{v:.1}"),
        v => return format!("{v:.0}"),
    };
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Which side of the target is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bound {
    AtLeast,
    AtMost,
    Under,
}

/// What a figure's median should be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Target {
    bound: Bound,
    value: f64,
    /// What is wished for beyond the target. Told, not judged.
    goal: Option<f64>,
}

impl Target {
    fn new(bound: Bound, value: f64) -> Self {
        Self { bound, value, goal: None }
    }

    pub(super) fn met(self, value: f64) -> bool {
        match self.bound {
            Bound::AtLeast => value >= self.value,
            Bound::AtMost => value <= self.value,
            Bound::Under => value < self.value,
        }
    }

    /// `≥ 1,000,000/s (goal 2,000,000/s)`.
    pub(super) fn show(self, unit: Unit) -> String {
        let sign = match self.bound {
            Bound::AtLeast => "≥",
            Bound::AtMost => "≤",
            Bound::Under => "<",
        };
        let goal = self.goal.map(|goal| format!(" (goal {})", unit.show(goal))).unwrap_or_default();
        format!("{sign} {}{goal}", unit.show(self.value))
    }

    pub(super) fn json(self) -> Value {
        let bound = match self.bound {
            Bound::AtLeast => "at_least",
            Bound::AtMost => "at_most",
            Bound::Under => "under",
        };
        json!({"bound": bound, "value": self.value, "goal": self.goal})
    }
}

/// What one run measured of one thing. The name is the same in every run of a row.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Figure {
    pub(super) name: String,
    pub(super) unit: Unit,
    pub(super) value: f64,
    pub(super) target: Option<Target>,
}

impl Figure {
    pub(super) fn new(name: impl Into<String>, unit: Unit, value: f64) -> Self {
        Self { name: name.into(), unit, value, target: None }
    }

    pub(super) fn rate(name: impl Into<String>, tasks: i64, seconds: f64) -> Self {
        Self::new(name, Unit::TasksPerSecond, tasks as f64 / seconds.max(1e-6))
    }

    pub(super) fn seconds(name: impl Into<String>, seconds: f64) -> Self {
        Self::new(name, Unit::Seconds, seconds)
    }

    pub(super) fn bytes(name: impl Into<String>, bytes: i64) -> Self {
        Self::new(name, Unit::Bytes, bytes as f64)
    }

    pub(super) fn count(name: impl Into<String>, number: i64) -> Self {
        Self::new(name, Unit::Count, number as f64)
    }

    pub(super) fn ratio(name: impl Into<String>, ratio: f64) -> Self {
        Self::new(name, Unit::Ratio, ratio)
    }

    /// The median must reach `value`.
    pub(super) fn at_least(self, value: f64) -> Self {
        Self { target: Some(Target::new(Bound::AtLeast, value)), ..self }
    }

    /// The median may reach `value`.
    pub(super) fn at_most(self, value: f64) -> Self {
        Self { target: Some(Target::new(Bound::AtMost, value)), ..self }
    }

    /// The median must stay below `value`.
    pub(super) fn under(self, value: f64) -> Self {
        Self { target: Some(Target::new(Bound::Under, value)), ..self }
    }

    /// With a goal beyond the target.
    pub(super) fn goal(mut self, goal: f64) -> Self {
        if let Some(target) = &mut self.target {
            target.goal = Some(goal);
        }
        self
    }

    /// Without its target, if this run isn't the one that the target is about.
    pub(super) fn judged_if(self, same: bool) -> Self {
        Self { target: self.target.filter(|_| same), ..self }
    }
}

/// One figure over all runs of a row.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Summary {
    pub(super) name: String,
    pub(super) unit: Unit,
    pub(super) target: Option<Target>,
    /// In the order of the runs.
    pub(super) values: Vec<f64>,
}

impl Summary {
    pub(super) fn min(&self) -> f64 {
        self.values.iter().copied().fold(f64::INFINITY, f64::min)
    }

    pub(super) fn max(&self) -> f64 {
        self.values.iter().copied().fold(f64::NEG_INFINITY, f64::max)
    }

    pub(super) fn median(&self) -> f64 {
        median(&self.values)
    }

    /// Whether the median meets the target; None without one.
    pub(super) fn met(&self) -> Option<bool> {
        self.target.map(|target| target.met(self.median()))
    }

    pub(super) fn json(&self) -> Value {
        json!({
            "name": self.name,
            "unit": self.unit.name(),
            "min": self.min(),
            "median": self.median(),
            "max": self.max(),
            "values": self.values,
            "target": self.target.map(Target::json),
            "met": self.met(),
        })
    }
}

/// The middle one, or the mean of the two in the middle; NaN of nothing.
pub(super) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

/// The value at `share` (0 to 1) of what was measured, by the nearest rank; NaN of nothing.
pub(super) fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(figure: Figure, values: &[f64]) -> Summary {
        Summary { name: figure.name, unit: figure.unit, target: figure.target, values: values.to_vec() }
    }

    #[test]
    fn min_median_and_max() {
        let odd = summary(Figure::count("n", 0), &[3.0, 1.0, 2.0]);
        assert_eq!((odd.min(), odd.median(), odd.max()), (1.0, 2.0, 3.0));
        assert_eq!((median(&[4.0, 1.0, 2.0, 3.0]), median(&[7.0])), (2.5, 7.0));
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!((percentile(&values, 0.5), percentile(&values, 0.99)), (50.0, 99.0));
        assert_eq!((percentile(&[5.0], 0.99), percentile(&[5.0], 0.0)), (5.0, 5.0));
        assert!(percentile(&[], 0.5).is_nan());
    }

    #[test]
    fn a_target_is_met_at_its_edge_or_not() {
        let met = |figure: Figure, value| summary(figure, &[value]).met();
        let n = || Figure::count("n", 0);
        assert_eq!((met(n().at_least(10.0), 10.0), met(n().at_least(10.0), 9.0)), (Some(true), Some(false)));
        assert_eq!((met(n().at_most(10.0), 10.0), met(n().at_most(10.0), 11.0)), (Some(true), Some(false)));
        assert_eq!((met(n().under(10.0), 9.0), met(n().under(10.0), 10.0)), (Some(true), Some(false)));
        assert_eq!(met(n(), 1.0), None);
        assert_eq!(met(n().under(10.0).judged_if(false), 99.0), None);
        // The goal is told, not judged; the median counts.
        assert_eq!(summary(n().at_least(10.0).goal(20.0), &[1.0, 10.0, 30.0]).met(), Some(true));
        // What wasn't measured meets nothing.
        assert_eq!(met(n().at_most(10.0), f64::NAN), Some(false));
    }

    #[test]
    fn values_for_people() {
        assert_eq!(Unit::TasksPerSecond.show(1_234_567.4), "1,234,567/s");
        assert_eq!(Unit::Seconds.show(0.000_312), "312 µs");
        assert_eq!(Unit::Seconds.show(0.02), "20 ms");
        assert_eq!(Unit::Seconds.show(1.5), "1.5 s");
        assert_eq!(Unit::Seconds.show(250e-9), "250 ns");
        assert_eq!(Unit::Bytes.show(106_400_000.0), "106 MB");
        assert_eq!(Unit::Bytes.show(1e9), "1 GB");
        assert_eq!(Unit::Ratio.show(1.234), "1.23");
        assert_eq!(
            Figure::rate("r", 1, 1.0).at_least(1e6).goal(2e6).target.map(|t| t.show(Unit::TasksPerSecond)),
            Some("≥ 1,000,000/s (goal 2,000,000/s)".to_owned())
        );
    }
}
