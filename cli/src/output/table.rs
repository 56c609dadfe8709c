//! Tables and descriptions for people.

use std::fmt::Write as _;
use std::io;

use tranche_client::{names, v1};

use super::{count, line, printable, short, state};

/// Rows below their headings. Columns whose heading ends with `#` are aligned to the right.
#[derive(Debug)]
pub(crate) struct Table {
    headings: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(headings: &[&'static str]) -> Self {
        Self { headings: headings.to_vec(), rows: Vec::new() }
    }

    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells.iter().map(|cell| printable(cell)).collect());
    }

    /// The lines, without spaces at their ends.
    pub(crate) fn lines(&self) -> Vec<String> {
        let titles: Vec<String> = self.headings.iter().map(|h| h.trim_end_matches('#').to_owned()).collect();
        let rows = || std::iter::once(&titles).chain(&self.rows);
        let width = |column: usize| rows().filter_map(|r| r.get(column)).map(|c| c.chars().count()).max();
        let widths: Vec<usize> = (0..titles.len()).map(|c| width(c).unwrap_or(0)).collect();
        let lines = rows().map(|row| {
            let cells = row.iter().zip(&widths).zip(&self.headings);
            let cells = cells.map(|((cell, &width), heading)| {
                if heading.ends_with('#') { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
            });
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        });
        lines.collect()
    }

    pub(crate) fn print(&self) -> io::Result<()> {
        self.lines().iter().try_for_each(|text| line(text))
    }
}

/// `list`.
pub(crate) fn batches(batches: &[v1::Batch]) -> Table {
    let mut table =
        Table::new(&["BATCH", "STATE", "TOTAL#", "STAGED#", "FAILED#", "COMMITTED#", "CREATED", "LABELS"]);
    for batch in batches {
        let counters = batch.counters.unwrap_or_default();
        let mut labels: Vec<String> = batch.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
        labels.sort();
        table.row(vec![
            names::batch_id(&batch.name).to_owned(),
            state(batch.state()).to_owned(),
            count(counters.total),
            count(counters.staged),
            count(counters.failed),
            count(counters.committed),
            time(batch.create_time.as_ref()),
            labels.join(","),
        ]);
    }
    table
}

/// `failures`.
pub(crate) fn failures(failures: &[v1::TaskFailure]) -> Table {
    let mut table = Table::new(&["SEQUENCE#", "KEY", "CODE", "MESSAGE"]);
    for failure in failures {
        table.row(vec![
            failure.sequence.to_string(),
            failure.key.clone(),
            failure.code.clone(),
            failure.message.clone(),
        ]);
    }
    table
}

/// `workers`.
pub(crate) fn workers(workers: &[v1::Worker]) -> Table {
    let mut table = Table::new(&[
        "WORKER",
        "NAMESPACE",
        "HANDLERS",
        "SLOTS#",
        "LEASES#",
        "FREE#",
        "SINCE",
        "VERSION",
        "PEER",
    ]);
    for worker in workers {
        table.row(vec![
            worker.worker.clone(),
            worker.namespace.clone(),
            worker.handlers.join(","),
            worker.slots.to_string(),
            worker.leases.to_string(),
            worker.free_credit.to_string(),
            time(worker.attach_time.as_ref()),
            worker.version.clone(),
            worker.peer.clone(),
        ]);
    }
    table
}

/// `coordinators`.
pub(crate) fn coordinators(coordinators: &[v1::Coordinator]) -> Table {
    let mut table = Table::new(&["COORDINATOR", "ENDPOINT", "VERSION", "STARTED", "ANSWERS", "BATCHES#"]);
    for coordinator in coordinators {
        table.row(vec![
            coordinator.coordinator.clone(),
            coordinator.endpoint.clone(),
            coordinator.version.clone(),
            time(coordinator.start_time.as_ref()),
            if coordinator.answering { "yes" } else { "" }.to_owned(),
            if coordinator.answering { coordinator.owned_batches.to_string() } else { String::new() },
        ]);
    }
    table
}

/// `leases`.
pub(crate) fn leases(leases: &[v1::Lease]) -> Table {
    let mut table =
        Table::new(&["BATCH", "RANGE", "PHASE", "WORKER", "TOKEN", "ATTEMPT#", "GRANTED", "EXPIRES"]);
    for lease in leases {
        let range = lease.range.unwrap_or_default();
        let token = lease.token.unwrap_or_default();
        table.row(vec![
            names::batch_id(&lease.batch).to_owned(),
            format!("{}-{}", range.first, range.last),
            short(lease.phase().as_str_name(), "PHASE_").to_owned(),
            lease.worker.clone(),
            format!("{}-{}", token.epoch, token.counter),
            lease.attempt.to_string(),
            time(lease.grant_time.as_ref()),
            time(lease.expire_time.as_ref()),
        ]);
    }
    table
}

/// `get`: one line for each thing that there is to say.
pub(crate) fn batch(batch: &v1::Batch) -> Vec<String> {
    let mut out = Vec::new();
    let mut say = |name: &str, value: String| {
        if !value.is_empty() {
            out.push(format!("{:<12} {}", format!("{name}:"), printable(&value)));
        }
    };
    say("batch", batch.name.clone());
    let sealed = if batch.sealed { "" } else { " (more tasks may come)" };
    say("state", format!("{}{sealed}", state(batch.state())));
    say("note", batch.status_message.clone());
    say("title", batch.display_name.clone());
    say("tasks", counts(batch));
    if let Some(decision) = &batch.decision {
        say("decision", decided(decision));
    }
    for target in &batch.targets {
        say("handler", target.handler.clone());
        let mut params: Vec<_> = target.params.iter().collect();
        params.sort();
        for (name, value) in params {
            say("param", format!("{name}={value}"));
        }
    }
    let mut labels: Vec<_> = batch.labels.iter().collect();
    labels.sort();
    for (name, value) in labels {
        say("label", format!("{name}={value}"));
    }
    if batch.commit_mode() == v1::batch::CommitMode::Manual {
        say("commit", "after approval".to_owned());
    }
    say("created", time(batch.create_time.as_ref()));
    say("changed", time(batch.update_time.as_ref()));
    say("ended", time(batch.end_time.as_ref()));
    say("report", batch.report_uri.clone());
    out
}

/// `12 total, 10 staged, 2 failed, 10 committed`.
pub(crate) fn counts(batch: &v1::Batch) -> String {
    let counters = batch.counters.unwrap_or_default();
    let mut out = format!(
        "{} total, {} staged, {} failed",
        count(counters.total),
        count(counters.staged),
        count(counters.failed)
    );
    for (n, what) in [
        (counters.committed, "committed"),
        (counters.rolled_back, "rolled back"),
        (counters.residue_removed, "found and removed by the last sweep"),
    ] {
        if n > 0 {
            let _ = write!(out, ", {} {what}", count(n));
        }
    }
    out
}

/// `ROLLBACK: CANCELLED by anna (wrong folder)`.
pub(crate) fn decided(decision: &v1::Decision) -> String {
    let outcome = short(decision.outcome().as_str_name(), "OUTCOME_");
    let reason = short(decision.reason().as_str_name(), "REASON_");
    let actor = if decision.actor.is_empty() { String::new() } else { format!(" by {}", decision.actor) };
    let message =
        if decision.message.is_empty() { String::new() } else { format!(" ({})", decision.message) };
    format!("{outcome}: {reason}{actor}{message}")
}

/// A time to the second, in UTC.
fn time(time: Option<&prost_types::Timestamp>) -> String {
    time.map(|t| prost_types::Timestamp { nanos: 0, ..*t }.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use v1::batch::State;

    fn sample() -> v1::Batch {
        v1::Batch {
            name: "namespaces/default/batches/b1".into(),
            state: State::Committed.into(),
            sealed: true,
            counters: Some(v1::Counters {
                total: 1_200,
                staged: 1_198,
                failed: 2,
                committed: 1_198,
                ..Default::default()
            }),
            labels: [("b".to_owned(), "2".to_owned()), ("a".to_owned(), "1".to_owned())].into(),
            create_time: Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 5 }),
            targets: vec![v1::Target { handler: "noop".into(), ..Default::default() }],
            decision: Some(v1::Decision {
                outcome: v1::decision::Outcome::Commit.into(),
                reason: v1::decision::Reason::Approved.into(),
                actor: "anna".into(),
                ..Default::default()
            }),
            report_uri: "file:///r.json".into(),
            ..Default::default()
        }
    }

    #[test]
    fn a_list() {
        let other = v1::Batch {
            name: "namespaces/default/batches/longer-id".into(),
            state: State::Importing.into(),
            ..Default::default()
        };
        assert_eq!(
            batches(&[sample(), other]).lines(),
            [
                "BATCH      STATE      TOTAL  STAGED  FAILED  COMMITTED  CREATED               LABELS",
                "b1         COMMITTED  1,200   1,198       2      1,198  2023-11-14T22:13:20Z  a=1,b=2",
                "longer-id  IMPORTING      0       0       0          0",
            ]
        );
    }

    #[test]
    fn one_batch() {
        assert_eq!(
            batch(&sample()),
            [
                "batch:       namespaces/default/batches/b1",
                "state:       COMMITTED",
                "tasks:       1,200 total, 1,198 staged, 2 failed, 1,198 committed",
                "decision:    COMMIT: APPROVED by anna",
                "handler:     noop",
                "label:       a=1",
                "label:       b=2",
                "created:     2023-11-14T22:13:20Z",
                "report:      file:///r.json",
            ]
        );
    }

    #[test]
    fn a_list_of_failures_with_a_hostile_key() {
        let made = v1::TaskFailure {
            sequence: 12,
            key: "a\x1b[2J.png".into(),
            code: "NOT_A_PICTURE".into(),
            message: "unexpected end\nof file".into(),
        };
        assert_eq!(
            failures(&[made]).lines(),
            [
                "SEQUENCE  KEY               CODE           MESSAGE",
                "      12  a\\u{1b}[2J.png  NOT_A_PICTURE  unexpected end\\nof file",
            ]
            .map(|l| l.replace("KEY               CODE", "KEY             CODE"))
        );
    }
}
