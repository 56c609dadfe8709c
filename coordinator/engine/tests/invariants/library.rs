//! A model of the target: what is staged under which token, and what readers see.

use std::collections::BTreeMap;
use tranche_engine::{Grant, Phase, Runs, Token};

const SWEPT_AT_ONCE: usize = 2;

#[derive(Debug, Default)]
pub(crate) struct Library {
    pub(crate) staged: BTreeMap<Token, Runs>,
    pub(crate) visible: Runs,
    pub(crate) published: bool,
}

impl Library {
    /// Something was staged under the token; all of it or a part.
    pub(crate) fn stage(&mut self, token: Token, runs: &Runs) {
        if !runs.is_empty() {
            let staged = self.staged.entry(token).or_default();
            *staged = staged.union(runs);
        }
    }

    /// COMMIT, ROLLBACK, PUBLISH or SWEEP. Returns what a sweep found.
    pub(crate) fn finish(&mut self, grant: &Grant) -> Result<u64, String> {
        match grant.phase {
            Phase::Stage => {}
            Phase::Commit => {
                for attempt in &grant.attempts {
                    let staged = self.staged.get(&attempt.token).cloned().unwrap_or_default();
                    // Without runs: whatever was staged under the token.
                    let runs = if attempt.runs.is_empty() { &staged } else { &attempt.runs };
                    if !staged.union(&self.visible).contains_all(runs) {
                        return Err(format!("I4: data of {} is gone before its commit", attempt.token));
                    }
                    let left = staged.minus(runs);
                    let now = staged.minus(&left);
                    if now.minus(&self.visible) != now {
                        return Err(format!("I4: tasks of {} are visible before its commit", attempt.token));
                    }
                    self.visible = self.visible.union(runs);
                    if left.is_empty() {
                        self.staged.remove(&attempt.token);
                    } else {
                        self.staged.insert(attempt.token, left);
                    }
                }
                if Self::publishes(grant) {
                    self.publish(grant.staged)?;
                }
            }
            Phase::Rollback => {
                let named = |token: &Token| grant.attempts.iter().any(|attempt| attempt.token == *token);
                let mut of_range = self.staged.iter().filter(|(_, runs)| !runs.within(grant.run).is_empty());
                if let Some((token, _)) = of_range.find(|(token, _)| !named(token)) {
                    return Err(format!("I4: the rollback of {:?} doesn't name {token}", grant.run));
                }
                for attempt in &grant.attempts {
                    self.staged.remove(&attempt.token);
                }
            }
            Phase::Publish => self.publish(grant.staged)?,
            Phase::Sweep => {
                // It doesn't see all at once.
                let found: Vec<Token> = self.staged.keys().copied().take(SWEPT_AT_ONCE).collect();
                self.staged.retain(|token, _| !found.contains(token));
                return Ok(found.len() as u64);
            }
        }
        Ok(0)
    }

    /// Whether who commits this publishes, too. Workers of an older version don't know that they should.
    pub(crate) fn publishes(grant: &Grant) -> bool {
        grant.publish && !grant.token.counter.is_multiple_of(4)
    }

    fn publish(&mut self, staged: u64) -> Result<(), String> {
        if self.visible.count() != staged {
            return Err(format!("I4: published {} of {staged}", self.visible.count()));
        }
        self.published = true;
        Ok(())
    }
}
