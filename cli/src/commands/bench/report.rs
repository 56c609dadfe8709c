//! What is printed: one JSON object, or one table.

use serde_json::{Map, Value, json};

use super::figure::{Figure, Summary};
use super::machine::Machine;
use crate::output::table::Table;

/// What one run of a row measured.
#[derive(Clone, Debug, Default)]
pub(super) struct Measured {
    /// The first is the headline.
    pub(super) figures: Vec<Figure>,
    /// What else a reader of the JSON wants to know.
    pub(super) details: Map<String, Value>,
}

impl From<Vec<Figure>> for Measured {
    fn from(figures: Vec<Figure>) -> Self {
        Self { figures, details: Map::new() }
    }
}

impl Measured {
    /// Adds the fields of a JSON object.
    pub(super) fn detail(mut self, fields: Value) -> Self {
        if let Value::Object(fields) = fields {
            self.details.extend(fields);
        }
        self
    }
}

/// A row after its runs.
#[derive(Clone, Debug)]
pub(super) struct RowReport {
    /// The command line after `tranche bench`.
    pub(super) command: String,
    pub(super) figures: Vec<Summary>,
    /// The details of each run.
    pub(super) runs: Vec<Map<String, Value>>,
    /// What ended it before its last run.
    pub(super) error: Option<String>,
}

impl RowReport {
    /// `judged`: whether targets count here.
    pub(super) fn new(command: String, runs: Vec<Measured>, judged: bool) -> Self {
        let mut figures: Vec<Summary> = Vec::new();
        for figure in runs.iter().flat_map(|run| &run.figures) {
            match figures.iter_mut().find(|summary| summary.name == figure.name) {
                Some(summary) => summary.values.push(figure.value),
                None => figures.push(Summary {
                    name: figure.name.clone(),
                    unit: figure.unit,
                    target: figure.target.filter(|_| judged),
                    values: vec![figure.value],
                }),
            }
        }
        Self { command, figures, runs: runs.into_iter().map(|run| run.details).collect(), error: None }
    }

    pub(super) fn failed(command: String, error: String) -> Self {
        Self { command, figures: Vec::new(), runs: Vec::new(), error: Some(error) }
    }

    /// The run whose headline is the median, or next above it.
    fn typical(&self) -> Option<&Map<String, Value>> {
        let headline = self.figures.first()?;
        let mut order: Vec<usize> = (0..headline.values.len()).collect();
        order.sort_by(|a, b| headline.values[*a].total_cmp(&headline.values[*b]));
        self.runs.get(*order.get(order.len() / 2)?)
    }

    /// Names of the figures that miss their target.
    pub(super) fn missed(&self) -> impl Iterator<Item = &Summary> {
        self.figures.iter().filter(|figure| figure.met() == Some(false))
    }

    /// The details of the typical run, and over them: `command`, `figures`, `runs`, `error`.
    pub(super) fn json(&self) -> Map<String, Value> {
        let mut out = self.typical().cloned().unwrap_or_default();
        out.insert("command".into(), self.command.clone().into());
        out.insert("figures".into(), self.figures.iter().map(Summary::json).collect());
        out.insert("runs".into(), self.runs.iter().cloned().map(Value::Object).collect());
        if let Some(error) = &self.error {
            out.insert("error".into(), error.clone().into());
        }
        out
    }
}

/// One row: its fields and the machine. Several: the machine and `rows`.
pub(super) fn json(machine: &Machine, rows: &[RowReport]) -> Value {
    if let [row] = rows {
        let mut out = row.json();
        out.insert("machine".into(), machine.json());
        return out.into();
    }
    json!({"machine": machine.json(), "rows": rows.iter().map(RowReport::json).collect::<Vec<_>>()})
}

/// One table of all rows: under each command line its figures.
pub(super) fn table(rows: &[RowReport]) -> Vec<String> {
    let mut table = Table::new(&["", "MIN#", "MEDIAN#", "MAX#", "TARGET", "MET"]);
    for figure in rows.iter().flat_map(|row| &row.figures) {
        let show = |value: f64| if value.is_nan() { "?".to_owned() } else { figure.unit.show(value) };
        table.row(vec![
            format!("  {}", figure.name),
            show(figure.min()),
            show(figure.median()),
            show(figure.max()),
            figure.target.map(|target| target.show(figure.unit)).unwrap_or_default(),
            figure.met().map(|met| if met { "yes" } else { "NO" }.to_owned()).unwrap_or_default(),
        ]);
    }
    let mut lines = table.lines().into_iter();
    let mut out: Vec<String> = lines.next().into_iter().collect();
    for row in rows {
        let failed = row.error.as_ref().map_or("", |_| ": failed");
        out.push(format!("{}{failed}", row.command));
        out.extend(lines.by_ref().take(row.figures.len()));
    }
    out
}

/// `missed: noop: etcd transactions: 612, target < 500`, one line for each.
pub(super) fn missed(rows: &[RowReport]) -> Vec<String> {
    let line = |row: &RowReport, figure: &Summary| {
        let target = figure.target.map(|target| target.show(figure.unit)).unwrap_or_default();
        format!(
            "missed: {}: {}: {}, target {target}",
            row.command,
            figure.name,
            figure.unit.show(figure.median())
        )
    };
    rows.iter().flat_map(|row| row.missed().map(move |figure| line(row, figure))).collect()
}

#[cfg(test)]
mod tests {
    use super::super::figure::Unit;
    use super::*;

    fn row(judged: bool) -> RowReport {
        let run = |rate: f64, n: i64| {
            let figures = vec![
                Figure::new("whole", Unit::TasksPerSecond, rate).at_least(100.0).goal(200.0),
                Figure::count("etcd transactions", n).under(500.0),
                Figure::bytes("peak memory", 106_000_000),
            ];
            Measured::from(figures).detail(json!({"rate": rate}))
        };
        RowReport::new("noop".into(), vec![run(150.0, 499), run(90.0, 600), run(160.0, 500)], judged)
    }

    #[test]
    fn the_table_of_a_row() {
        assert_eq!(
            table(&[row(true), RowReport::failed("object".into(), "no room".into())]),
            [
                "                        MIN  MEDIAN     MAX  TARGET                MET",
                "noop",
                "  whole                90/s   150/s   160/s  ≥ 100/s (goal 200/s)  yes",
                "  etcd transactions     499     500     600  < 500                 NO",
                "  peak memory        106 MB  106 MB  106 MB",
                "object: failed",
            ]
            .map(str::to_owned)
        );
        assert_eq!(missed(&[row(true)]), ["missed: noop: etcd transactions: 500, target < 500"]);
        assert!(missed(&[row(false)]).is_empty());
    }

    #[test]
    fn the_json_of_a_row_starts_with_its_typical_run() {
        let json = Value::Object(row(true).json());
        assert_eq!(json["rate"], 150.0);
        assert_eq!(json["figures"][1]["median"], 500.0);
        assert_eq!(json["figures"][1]["met"], false);
        assert_eq!(json["figures"][0]["target"]["goal"], 200.0);
        assert_eq!(json["figures"][2]["target"], Value::Null);
        assert_eq!(json["runs"].as_array().map(Vec::len), Some(3));
        assert_eq!(Value::Object(row(false).json())["figures"][0]["met"], Value::Null);
    }
}
