//! A model of the target: what is staged under which token, and what readers see.

use std::collections::BTreeMap;
use tranche_engine::{Grant, Phase, Runs, Token};

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
                    if !staged.union(&self.visible).contains_all(&attempt.runs) {
                        return Err(format!("I4: data of {} is gone before its commit", attempt.token));
                    }
                    self.visible = self.visible.union(&attempt.runs);
                    let left = staged.minus(&attempt.runs);
                    if left.is_empty() {
                        self.staged.remove(&attempt.token);
                    } else {
                        self.staged.insert(attempt.token, left);
                    }
                }
            }
            Phase::Rollback => {
                for attempt in &grant.attempts {
                    self.staged.remove(&attempt.token);
                }
            }
            Phase::Publish => {
                if self.visible.count() != grant.staged {
                    return Err(format!("I4: published {} of {}", self.visible.count(), grant.staged));
                }
                self.published = true;
            }
            Phase::Sweep => {
                let found = self.staged.len() as u64;
                self.staged.clear();
                return Ok(found);
            }
        }
        Ok(0)
    }
}
