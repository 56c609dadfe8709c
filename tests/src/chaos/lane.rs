//! A user who imports one batch after the other.

use super::batch::Batch;
use super::calls::Calls;
use super::files::{Files, Shelf};
use super::journal::Journal;
use super::plan::BatchPlan;
use super::system::System;
use std::path::PathBuf;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use tranche_client::v1;
use tranche_client::v1::batch::State;

/// Names of the libraries: on the small disk, and on the machine's own.
pub const LIBRARY: &str = "library";

/// One after the other, with keys that no other lane has.
#[derive(Debug)]
pub struct Lane {
    index: usize,
    seed: u64,
    next: u64,
    sources: PathBuf,
    small: Shelf,
    plain: Shelf,
}

/// What a lane needs in a round.
#[derive(Clone, Debug)]
pub struct Round {
    /// How coordinators are asked.
    pub calls: Arc<Calls>,
    /// Where batches are counted.
    pub journal: Arc<Journal>,
    /// No new batches from now on.
    pub last: CancellationToken,
    /// All must be over.
    pub overdue: CancellationToken,
}

impl Lane {
    /// A lane of a run.
    pub fn new(index: usize, seed: u64, system: &System) -> Self {
        Self {
            index,
            seed,
            next: 0,
            sources: system.plain.join("sources"),
            small: Shelf::new(system.library_disk.path().join(LIBRARY), index),
            plain: Shelf::new(system.plain.join(LIBRARY), index),
        }
    }

    /// Runs batches until no more shall begin, or something is wrong. Returns those that ended well.
    pub async fn run(&mut self, round: &Round) -> Vec<v1::Batch> {
        let mut ended = Vec::new();
        while !round.last.is_cancelled() {
            match self.batch(round).await {
                Ok(batch) => ended.push(batch),
                Err(error) => {
                    round.journal.violation(error);
                    break;
                }
            }
        }
        ended
    }

    /// Compares the lane's part of both libraries once more: nobody who woke up late may have touched it.
    ///
    /// # Errors
    /// What differs.
    pub fn check(&self) -> Result<(), String> {
        self.small.check()?;
        self.plain.check()
    }

    /// Removes the batch's manifest from the library, where else they would fill the small disk.
    pub fn tidy(&self, batch: &str) {
        for shelf in [&self.small, &self.plain] {
            let _ = std::fs::remove_file(shelf.manifest(batch));
        }
    }

    async fn batch(&mut self, round: &Round) -> Result<v1::Batch, String> {
        let number = self.next;
        self.next += 1;
        let plan = BatchPlan::new(self.seed, self.index, number);
        let request = format!("{}-{}-{number}", self.seed, self.index);
        let shelf = if plan.small_disk { &mut self.small } else { &mut self.plain };
        let mut files = Files::write(&plan, self.sources.join(&request), shelf);
        let mut batch = Batch {
            plan: &plan,
            files: &mut files,
            shelf,
            calls: &round.calls,
            journal: &round.journal,
            overdue: &round.overdue,
        };
        let ended = batch.run(&request).await?;
        let committed = ended.state() == State::Committed;
        if committed {
            shelf.add(files.staged());
            shelf.check().map_err(|error| format!("{}: committed: {error}", ended.name))?;
        }
        {
            let mut counts = round.journal.counts();
            counts.batches += 1;
            counts.committed += u64::from(committed);
            counts.rolled_back += u64::from(!committed);
            counts.tasks += ended.counters.unwrap_or_default().total.cast_unsigned();
        }
        round.journal.note(format!("{}: {:?}, all is right", ended.name, ended.state()));
        files.remove();
        Ok(ended)
    }
}
