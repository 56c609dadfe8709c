//! The run loop: each run of a row has an empty folder and, mostly, processes of its own.

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::figure::Figure;
use super::machine::{Machine, is_memory_folder};
use super::report::{Measured, RowReport};
use super::usage::Load;
use crate::error::{CliError, Result};

/// A line that changes is drawn again after this time at the earliest.
const REDRAW: Duration = Duration::from_millis(200);

/// Cores that others keep busy, on average, over a whole run, its start included.
const OTHERS: &str = "cores busy with other things";

/// More of it than a quiet machine has.
const DISTURBED: f64 = 0.3;

/// A row of the table of figures.
pub(super) trait Row {
    /// One run, from nothing to its figures. The first figure is the headline.
    async fn run(&self, context: &Context) -> Result<Measured>;
}

/// What a run gets.
#[derive(Debug)]
pub(super) struct Context {
    folder: PathBuf,
    quiet: bool,
    /// When the line that changes was drawn last; None: it isn't there.
    drawn: Mutex<Option<Instant>>,
}

impl Context {
    fn new(folder: PathBuf, quiet: bool) -> Self {
        Self { folder, quiet, drawn: Mutex::new(None) }
    }

    /// An empty folder on the disk that is measured. It is removed after the run.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// A folder in it that is made now.
    pub(super) fn subfolder(&self, name: &str) -> Result<PathBuf> {
        let folder = self.folder.join(name);
        std::fs::create_dir(&folder)?;
        Ok(folder)
    }

    /// The same for a part of the run that needs a folder of its own, such as a second cluster.
    pub(super) fn part(&self, name: &str) -> Result<Self> {
        Ok(Self::new(self.subfolder(name)?, self.quiet))
    }

    /// Says what happens, in a line on standard error.
    pub(super) fn tell(&self, text: &str) {
        if !self.quiet {
            let clear =
                if self.drawn.lock().is_ok_and(|mut drawn| drawn.take().is_some()) { "\r\x1b[K" } else { "" };
            eprintln!("{clear}  {text}");
        }
    }

    /// Shows how far a run is, in a line that the next one replaces; only on a terminal. May be called as
    /// often as one likes.
    pub(super) fn progress(&self, text: impl FnOnce() -> String) {
        let Ok(mut drawn) = self.drawn.lock() else { return };
        let due = drawn.is_none_or(|last| last.elapsed() >= REDRAW);
        if due && !self.quiet && std::io::stderr().is_terminal() {
            *drawn = Some(Instant::now());
            eprint!("\r\x1b[K  {}", text());
            let _ = std::io::stderr().flush();
        }
    }
}

/// What all rows of one command share.
#[derive(Debug)]
pub(super) struct Session {
    folder: TempDir,
    pub(super) machine: Machine,
    quiet: bool,
}

impl Session {
    /// Makes a folder in `base`, describes the machine.
    pub(super) async fn open(base: Option<&Path>, quiet: bool) -> Result<Self> {
        let base = base.map_or_else(default_base, Path::to_owned);
        let folder = tempfile::Builder::new().prefix("tranche-bench-").tempdir_in(&base);
        let folder = folder.map_err(|e| CliError::caused(format!("no folder in {}", base.display()), &e))?;
        let machine = Machine::describe(folder.path()).await?;
        let session = Self { folder, machine, quiet };
        session.tell(&format!("files in {}", session.folder.path().display()));
        session.machine.warnings().iter().for_each(|line| session.tell(line));
        Ok(session)
    }

    pub(super) fn tell(&self, text: &str) {
        if !self.quiet {
            eprintln!("{text}");
        }
    }

    /// Runs a row `runs` times.
    pub(super) async fn repeat(&self, command: &str, runs: u32, row: &impl Row) -> Result<RowReport> {
        let mut measured = Vec::new();
        for run in 1..=runs {
            self.tell(&format!("\n{command}, run {run} of {runs}"));
            let folder = self.folder.path().join("run");
            std::fs::create_dir(&folder)?;
            let context = Context::new(folder, self.quiet);
            let before = Load::now();
            let mut one = Box::pin(row.run(&context)).await?;
            let others = Load::now().others_since(before);
            one.figures.push(Figure::ratio(OTHERS, others));
            if others > DISTURBED {
                context.tell(&format!(
                    "others kept {others:.1} cores busy meanwhile: times say little, counts do"
                ));
            }
            if let Some(figure) = one.figures.first() {
                context.tell(&format!("{}: {}", figure.name, figure.unit.show(figure.value)));
            }
            measured.push(one);
            // A run that fails leaves it to the end of the session.
            std::fs::remove_dir_all(context.folder())?;
        }
        Ok(RowReport::new(command.to_owned(), measured, self.machine.is_judged()))
    }

    /// Removes what a row that failed left.
    pub(super) fn clear(&self) -> Result<()> {
        let folder = self.folder.path().join("run");
        if folder.exists() {
            std::fs::remove_dir_all(folder)?;
        }
        Ok(())
    }
}

/// The folder for temporary files; one that outlives a restart if the first is in memory.
fn default_base() -> PathBuf {
    let usual = std::env::temp_dir();
    let other = Path::new("/var/tmp");
    if is_memory_folder(&usual) && other.is_dir() && !is_memory_folder(other) {
        other.to_owned()
    } else {
        usual
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails in its `fails`th run, and looks whether its folder is new.
    struct Counting {
        runs: Mutex<u32>,
        fails: u32,
    }

    impl Row for Counting {
        async fn run(&self, context: &Context) -> Result<Measured> {
            assert_eq!(std::fs::read_dir(context.folder()).unwrap().count(), 0);
            context.part("again").unwrap();
            let mut runs = self.runs.lock().unwrap();
            *runs += 1;
            if *runs == self.fails {
                return Err(CliError::new("broken"));
            }
            Ok(vec![Figure::count("run", i64::from(*runs))].into())
        }
    }

    #[tokio::test]
    async fn each_run_has_an_empty_folder_and_a_value() {
        let base = tempfile::tempdir().unwrap();
        let session = Session::open(Some(base.path()), true).await.unwrap();
        let report =
            session.repeat("counting", 3, &Counting { runs: Mutex::new(0), fails: 0 }).await.unwrap();
        assert_eq!(report.figures[0].values, [1.0, 2.0, 3.0]);
        let row = Counting { runs: Mutex::new(0), fails: 2 };
        assert_eq!(session.repeat("counting", 3, &row).await.unwrap_err().message, "broken");
        session.clear().unwrap();
        assert!(session.repeat("counting", 1, &row).await.is_ok());
        drop(session);
        assert_eq!(std::fs::read_dir(base.path()).unwrap().count(), 0);
    }
}
