//! After the faults: the batch must end by itself, without a busy loop, and as the library says.

use super::{SLOTS, World};
use crate::action::How;
use crate::support::grants;
use tranche_engine::{Command, RangePhase, State};

impl World {
    /// I10: what the engine holds is bounded by what workers can hold, and by what was lost within a TTL.
    pub(super) fn bounded(&mut self) {
        let leases = self.desk.batch.leases().count();
        let lives: u32 = self.workers.iter().map(|worker| worker.lives).sum();
        if leases > lives as usize * SLOTS * 4 {
            self.breaks(format!("I10: {leases} leases of {lives} lives"));
        }
    }

    /// Faults stop. The client finishes, the workers work well, and the batch ends by itself (I9).
    pub(crate) fn live(&mut self) -> Result<(), String> {
        self.land();
        if self.desk.ended {
            self.step();
            return self.at_the_end();
        }
        if self.desk.batch.state().total == 0 {
            self.append(5, false, false);
        }
        let op = self.desk.seal();
        self.ops.insert(op);
        for round in 0..1500 {
            self.pass(100, true);
            self.thaw();
            for index in 0..self.workers.len() {
                if self.workers[index].frozen.is_empty() {
                    self.start(index);
                }
                self.attach(index);
                for _ in 0..SLOTS {
                    self.ask(index);
                    self.work(index, 0, &How::Well);
                }
            }
            self.hear();
            if self.desk.state() == State::Held {
                self.decide(true, true);
            }
            self.pump()?;
            self.verdict()?;
            if self.desk.ended {
                self.step();
                return self.at_the_end();
            }
            if round == 600 {
                // By now everything is sealed, also if the seal's own write was lost.
                self.desk.seal();
            }
        }
        let leases: Vec<_> = self.desk.batch.leases().collect();
        Err(format!(
            "I9: no end in sight: {:?}, {leases:?}, queue {:?}, message {}",
            self.desk.batch.state(),
            self.queue,
            self.desk.batch.message()
        ))
    }

    /// Steps until nothing is left to do at this moment; no busy loops.
    fn pump(&mut self) -> Result<(), String> {
        for _ in 0..1000 {
            let hungry = self.desk.batch.appetite(self.desk.now());
            let taken = self.take_requests();
            let queued = self.queue.len();
            let commands = self.desk.step();
            let granted = grants(&commands).len();
            let quiet = commands.iter().all(|command| matches!(command, Command::Return { .. }));
            self.deliver(commands);
            if self.desk.in_flight.is_some() {
                self.land();
            } else if taken > 0 && granted == 0 && quiet && self.queue.len() == queued + taken {
                self.returned_in_vain += 1;
                if self.desk.batch.appetite(self.desk.now()) > 0 {
                    return Err("appetite: it asks for requests, and returns them all".into());
                }
            } else if quiet && !self.desk.batch.has_events() && taken == 0 {
                let now = self.desk.now();
                if self.desk.batch.appetite(now) > hungry {
                    // As the driver does: a worker's word that it stopped says nothing to anybody, and makes work.
                    continue;
                }
                if self.desk.batch.wake_at(now).is_some_and(|wake| wake <= now.at) {
                    return Err("wake: it wants to be woken in the past, for ever".into());
                }
                return Ok(());
            }
            self.verdict()?;
            if self.desk.ended {
                return Ok(());
            }
        }
        Err("I9: a thousand steps at one moment".into())
    }

    /// I4, and nothing is owed to anybody.
    fn at_the_end(&mut self) -> Result<(), String> {
        self.thaw();
        let records = &self.desk.store.records;
        let state = &records.state;
        if state.total > self.appended {
            return Err(format!("I8: {} tasks of {} that were appended", state.total, self.appended));
        }
        if !self.library.staged.is_empty() {
            return Err(format!("I4: staged data is left: {:?}", self.library.staged));
        }
        match state.state {
            State::Committed => {
                if self.library.visible.count() != state.staged || state.committed != state.staged {
                    return Err(format!("I4: {:?} is visible, {state:?}", self.library.visible));
                }
                if state.staged + state.failed != state.total {
                    return Err(format!("I1: {state:?}"));
                }
                if state.staged > 0 && !self.library.published {
                    return Err("I4: never published".into());
                }
                for range in records.ranges.values() {
                    if range.phase == RangePhase::Leased {
                        return Err(format!("I1: {:?} is open at the end", range.run));
                    }
                    let seen = range.failed_runs.minus(&self.library.visible);
                    if seen != range.failed_runs {
                        return Err(format!("I4: failed tasks of {:?} are visible", range.run));
                    }
                }
            }
            State::RolledBack => {
                if !self.library.visible.is_empty() || self.library.published {
                    return Err(format!("I4: {:?} is visible after a rollback", self.library.visible));
                }
            }
            other => return Err(format!("I9: ended in {other:?}")),
        }
        if !self.ops.is_empty() {
            return Err(format!("I7: clients are never answered: {:?}", self.ops));
        }
        if self.desk.store.reports != 1 {
            return Err(format!("I9: {} completion reports", self.desk.store.reports));
        }
        Ok(())
    }
}
