//! A batch on its way: bars on a terminal, lines of state changes elsewhere, nothing in JSON mode.

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tranche_client::v1::{self, batch::State};

use super::{count, line, printable, seconds, state};
use crate::args::Output;

/// Where progress goes.
#[derive(Debug)]
pub(crate) struct Ui {
    lines: bool,
    notes: bool,
    bars: Option<Bars>,
    /// The states seen, in order.
    path: Vec<State>,
    last_message: String,
}

#[derive(Debug)]
struct Bars {
    all: MultiProgress,
    stage: Option<ProgressBar>,
    commit: Option<ProgressBar>,
    rollback: Option<ProgressBar>,
}

impl Ui {
    pub(crate) fn new(output: Output) -> Self {
        let lines = output == Output::Table;
        let terminal = lines && std::io::stderr().is_terminal();
        let bars =
            terminal.then(|| Bars { all: MultiProgress::new(), stage: None, commit: None, rollback: None });
        Self { lines, notes: lines, bars, path: Vec::new(), last_message: String::new() }
    }

    /// One that shows no progress, only notes.
    pub(crate) fn notes(output: Output) -> Self {
        let notes = output == Output::Table;
        Self { lines: false, notes, bars: None, path: Vec::new(), last_message: String::new() }
    }

    /// A line of the result, on standard output. Nothing in JSON mode. A reader that went away doesn't
    /// stop an import.
    pub(crate) fn line(&self, text: &str) {
        if self.lines {
            self.above_bars(|| {
                let _ = line(text);
            });
        }
    }

    /// A line about what goes on, on standard error. Nothing in JSON mode.
    pub(crate) fn note(&self, text: &str) {
        if self.notes {
            self.above_bars(|| eprintln!("{text}"));
        }
    }

    /// Text on standard error even in JSON mode: a question.
    pub(crate) fn ask(&self, text: &str) {
        self.above_bars(|| eprint!("{text}"));
    }

    /// A change of the batch.
    pub(crate) fn update(&mut self, update: &v1::WatchBatchResponse) {
        let Some(batch) = &update.batch else { return };
        if self.path.last() != Some(&batch.state()) {
            extend(&mut self.path, batch.state());
            self.line(&self.states());
        }
        if batch.status_message != self.last_message {
            self.last_message.clone_from(&batch.status_message);
            if !self.last_message.is_empty() {
                self.note(&format!("waiting: {}", printable(&self.last_message)));
            }
        }
        if let Some(bars) = &mut self.bars {
            bars.update(batch, &update.phases);
        }
    }

    /// `IMPORTING → COMMITTING → COMMITTED`.
    pub(crate) fn states(&self) -> String {
        self.path.iter().map(|s| state(*s)).collect::<Vec<_>>().join(" → ")
    }

    /// The bars stay as they are, and what is printed next comes below them.
    pub(crate) fn finish(&mut self) {
        if let Some(bars) = self.bars.take() {
            for bar in [&bars.stage, &bars.commit, &bars.rollback].into_iter().flatten() {
                bar.abandon();
            }
        }
    }

    fn above_bars(&self, print: impl FnOnce()) {
        match &self.bars {
            Some(bars) => bars.all.suspend(print),
            None => print(),
        }
    }
}

impl Bars {
    fn update(&mut self, batch: &v1::Batch, phases: &[v1::PhaseProgress]) {
        let counters = batch.counters.unwrap_or_default();
        let phase = |wanted: v1::Phase| phases.iter().find(|p| p.phase() == wanted);
        let undecided = matches!(batch.state(), State::Importing | State::Held);
        let stage = self.stage.get_or_insert_with(|| new_bar(&self.all, "staging"));
        let mut text = describe(phase(v1::Phase::Stage).filter(|_| undecided));
        if counters.failed > 0 {
            let _ = write!(text, "  {} failed", count(counters.failed));
        }
        if !batch.sealed {
            text += "  (still reading)";
        }
        show(stage, counters.staged + counters.failed, counters.total, text);
        if !undecided {
            stage.abandon();
        }
        if matches!(batch.state(), State::Committing | State::Committed) {
            let bar = self.commit.get_or_insert_with(|| new_bar(&self.all, "commit"));
            show(bar, counters.committed, counters.staged, describe(phase(v1::Phase::Commit)));
        }
        if matches!(batch.state(), State::RollingBack | State::RolledBack) {
            let bar = self.rollback.get_or_insert_with(|| new_bar(&self.all, "rollback"));
            let progress = phase(v1::Phase::Rollback);
            let total = progress.map_or(counters.cutoff, |p| p.total);
            show(bar, counters.rolled_back, total.max(counters.rolled_back), describe(progress));
        }
    }
}

fn new_bar(all: &MultiProgress, name: &'static str) -> ProgressBar {
    let bar = all.add(ProgressBar::new(0));
    let style = ProgressStyle::with_template("{prefix:>9} [{bar:32}] {human_pos}/{human_len} {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
    bar.set_prefix(name);
    bar
}

fn show(bar: &ProgressBar, done: i64, total: i64, text: String) {
    bar.set_length(total.max(0).cast_unsigned());
    bar.set_position(done.max(0).cast_unsigned());
    bar.set_message(text);
}

/// `1,200/s  ETA 4.0 s`.
fn describe(progress: Option<&v1::PhaseProgress>) -> String {
    let Some(progress) = progress else { return String::new() };
    let mut text = String::new();
    if progress.rate > 0.0 {
        let _ = write!(text, " {}/s", count(progress.rate.round() as i64));
    }
    if let Some(eta) = progress.eta.and_then(|eta| Duration::try_from(eta).ok()) {
        let _ = write!(text, "  ETA {}", seconds(eta.as_secs_f64()));
    }
    text
}

/// Adds a state, and the one that must have been between if it went by unseen.
fn extend(path: &mut Vec<State>, next: State) {
    let between = match next {
        State::Committed => Some(State::Committing),
        State::RolledBack => Some(State::RollingBack),
        _ => None,
    };
    if let (Some(between), Some(last)) = (between, path.last())
        && *last != between
    {
        path.push(between);
    }
    path.push(next);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(states: &[State]) -> String {
        let mut ui = Ui::notes(Output::Json);
        for state in states {
            let batch = v1::Batch { state: (*state).into(), ..Default::default() };
            ui.update(&v1::WatchBatchResponse { batch: Some(batch), ..Default::default() });
        }
        ui.states()
    }

    #[test]
    fn every_state_is_told_once_even_if_it_went_by_unseen() {
        use State::{Committed, Committing, Held, Importing, RolledBack, RollingBack};
        assert_eq!(
            path(&[Importing, Importing, Committing, Committed]),
            "IMPORTING → COMMITTING → COMMITTED"
        );
        assert_eq!(path(&[Importing, Committed]), "IMPORTING → COMMITTING → COMMITTED");
        assert_eq!(path(&[Importing, RolledBack]), "IMPORTING → ROLLING_BACK → ROLLED_BACK");
        assert_eq!(
            path(&[Importing, Held, Importing, Held, RollingBack]),
            "IMPORTING → HELD → IMPORTING → HELD → ROLLING_BACK"
        );
        // One that is watched only after its end says no more than that.
        assert_eq!(path(&[Committed]), "COMMITTED");
    }

    #[test]
    fn rate_and_eta() {
        let progress = v1::PhaseProgress {
            rate: 1_234.4,
            eta: Some(prost_types::Duration { seconds: 61, nanos: 0 }),
            ..Default::default()
        };
        assert_eq!(describe(Some(&progress)), " 1,234/s  ETA 1 min 01 s");
        assert_eq!(describe(Some(&v1::PhaseProgress::default())), "");
    }
}
