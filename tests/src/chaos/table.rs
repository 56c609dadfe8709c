//! The table at the end.

use super::journal::Counts;
use super::plan;
use tranche_client::v1::batch::State;

/// What a run was, and came to, as a table of one row.
pub fn table(seed: u64, minutes: f64, counts: &Counts, violations: usize) -> String {
    let Counts { batches, committed, rolled_back, .. } = counts;
    let columns = [
        ("seed", seed.to_string()),
        ("minutes", format!("{minutes:.1}")),
        ("batches (committed, rolled back)", format!("{batches} ({committed}, {rolled_back})")),
        ("tasks", counts.tasks.to_string()),
        ("kills", counts.kills.to_string()),
        ("pauses", counts.pauses.to_string()),
        ("starved", counts.stutters.to_string()),
        ("partitions", counts.partitions.to_string()),
        ("leader kills", counts.leader_kills.to_string()),
        ("compactions", counts.compactions.to_string()),
        ("alarms", counts.alarms.to_string()),
        ("disk fulls", counts.disk_fulls.to_string()),
        ("hand-overs", counts.hand_overs.to_string()),
        ("drains", counts.drains.to_string()),
        ("cancels", counts.cancels.to_string()),
        ("retries", counts.retries.to_string()),
        ("resumes", counts.resumes.to_string()),
        ("histories", counts.histories.to_string()),
        ("longest settling", format!("{:.1} s", counts.longest_settling.as_secs_f64())),
        ("largest coordinator", mib(counts.coordinator_memory)),
        ("largest worker", mib(counts.worker_memory)),
        ("VIOLATIONS", violations.to_string()),
    ];
    let width = columns.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    let row = |(name, value): &(&str, String)| format!("| {name:width$} | {value:>16} |\n");
    let line = format!("|{}|{}:|\n", "-".repeat(width + 2), "-".repeat(17));
    let body: String = columns.iter().map(row).collect();
    format!("| {:width$} | {:>16} |\n{line}{body}\n{}", "chaos", "", struck(counts))
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

/// How often each kind of fault struck while a batch was in each state.
fn struck(counts: &Counts) -> String {
    let states = [State::Importing, State::Held, State::Committing, State::RollingBack];
    let heads =
        states.iter().map(|state| format!(" {:>12} |", format!("{state:?}"))).collect::<Vec<_>>().concat();
    let row = |kind: &'static str| {
        let count = |state| counts.struck.get(&(kind, state)).copied().unwrap_or_default();
        let cells =
            states.iter().map(|state| format!(" {:>12} |", count(*state))).collect::<Vec<_>>().concat();
        format!("| {kind:15} |{cells}\n")
    };
    let line = format!("|{}|{}", "-".repeat(17), format!("{}:|", "-".repeat(13)).repeat(states.len()));
    let body: String = plan::kinds().map(row).collect();
    format!("| {:15} |{heads}\n{line}\n{body}", "struck while")
}
