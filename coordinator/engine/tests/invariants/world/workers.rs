//! What the workers do: leases, reports, deaths, streams that break.

use super::{Held, World};
use crate::action::How;
use crate::library::Library;
use crate::support::{but, error, found};
use tranche_engine::{Event, Grant, Phase, Report, Runs, Token, WorkerKey};

/// When paused processes wake up: after the normal sweep, before the late one.
const AFTER_THE_END_MS: i64 = 500;

impl World {
    pub(super) fn work(&mut self, index: usize, lease: usize, how: &How) {
        let poison = self.poison;
        let worker = &mut self.workers[index];
        if !worker.alive || worker.leases.is_empty() {
            return;
        }
        let token = *worker.leases.keys().nth(lease % worker.leases.len()).expect("modulo");
        let held = worker.leases.get_mut(&token).expect("just found");
        let grant = held.grant.clone();
        if grant.phase == Phase::Stage && poison.is_some_and(|task| grant.runs.contains(task)) {
            // Something of it was staged before the worker died.
            self.library.stage(token, &a_part(&grant));
            return self.die(index, true);
        }
        let report = match held.report.clone() {
            Some(report) => report,
            None => match Self::report(&mut self.library, &grant, how) {
                Ok(report) => report,
                Err(text) => return self.breaks(text),
            },
        };
        held.report = Some(report.clone());
        worker.old.push(report.clone());
        if report.phase == Phase::Stage && report.error.is_none() && report.done > 0 {
            let valid = report.done + report.failed.count() == grant.runs.count();
            if valid {
                self.desk.counted.insert(token);
            }
        }
        if worker.attached && !matches!(how, How::Unheard) {
            self.desk.report(report);
        }
    }

    pub(super) fn report(library: &mut Library, grant: &Grant, how: &How) -> Result<Report, String> {
        if matches!(how, How::Error) {
            if grant.phase == Phase::Stage {
                library.stage(grant.token, &grant.runs);
            }
            return Ok(error(grant, "no space left on device"));
        }
        if grant.phase != Phase::Stage {
            let residue = library.finish(grant)?;
            return Ok(Report { published: Library::publishes(grant), ..found(grant, residue) });
        }
        let failed: Runs = match how {
            How::Partly(rest) => {
                let numbers = grant.runs.iter().flat_map(|run| run.first..=run.last);
                numbers.filter(|number| number % 3 == *rest).collect()
            }
            How::AllFail => grant.runs.clone(),
            How::Well | How::Error | How::Nonsense | How::Unheard => Runs::default(),
        };
        library.stage(grant.token, &grant.runs.minus(&failed));
        let mut report = but(grant, failed);
        if matches!(how, How::Nonsense) {
            report.done += 1;
        }
        Ok(report)
    }

    pub(super) fn repeat(&mut self, index: usize, report: usize) {
        let worker = &self.workers[index];
        if !worker.old.is_empty() {
            let report = worker.old[report % worker.old.len()].clone();
            self.desk.report(report);
        }
    }

    pub(super) fn release(&mut self, index: usize, lease: usize) {
        let worker = &mut self.workers[index];
        let idle: Vec<Token> =
            worker.leases.iter().filter(|(_, held)| held.report.is_none()).map(|(token, _)| *token).collect();
        if worker.alive && worker.attached && !idle.is_empty() {
            let token = idle[lease % idle.len()];
            worker.leases.remove(&token);
            let key = worker.key.clone();
            self.desk.push(Event::Release { worker: key, token });
        }
    }

    pub(super) fn die(&mut self, index: usize, noticed: bool) {
        let worker = &mut self.workers[index];
        if !worker.alive {
            return;
        }
        worker.alive = false;
        worker.attached = false;
        worker.asked = 0;
        for (token, held) in std::mem::take(&mut worker.leases) {
            if held.grant.phase == Phase::Stage && held.report.is_none() {
                // It was in the middle of it.
                self.library.stage(token, &a_part(&held.grant));
            }
        }
        let key = worker.key.clone();
        self.queue.retain(|other| *other != key);
        if noticed {
            self.desk.gone(&key);
        } else {
            self.workers[index].unnoticed.push(key);
        }
    }

    /// Nobody is told, and it neither stops by itself nor hears that it should.
    pub(super) fn freeze(&mut self, index: usize) {
        let worker = &mut self.workers[index];
        if !worker.alive {
            return;
        }
        (worker.alive, worker.attached, worker.asked) = (false, false, 0);
        for (token, held) in std::mem::take(&mut worker.leases) {
            if held.grant.phase == Phase::Stage && held.report.is_none() {
                worker.frozen.push((token, a_part(&held.grant)));
            }
        }
        let key = worker.key.clone();
        worker.unnoticed.push(key.clone());
        self.queue.retain(|other| *other != key);
    }

    /// The batch has ended, and was swept: paused processes wake up, and are killed before they hear
    /// anything.
    pub(super) fn thaw(&mut self) {
        let (state, now) = (&self.desk.store.records.state, self.desk.now());
        if self.desk.ended || state.state.is_final() && now.wall_ms >= state.end_time_ms + AFTER_THE_END_MS {
            for worker in &mut self.workers {
                for (token, runs) in worker.frozen.drain(..) {
                    self.library.stage(token, &runs);
                }
            }
        }
    }

    pub(super) fn start(&mut self, index: usize) {
        let worker = &mut self.workers[index];
        if worker.alive {
            return;
        }
        // The paused process is killed.
        for (token, runs) in worker.frozen.drain(..) {
            self.library.stage(token, &runs);
        }
        worker.lives += 1;
        worker.key = WorkerKey::new(worker.key.id.clone(), worker.lives.to_string());
        worker.alive = true;
        self.attach(index);
    }

    pub(super) fn attach(&mut self, index: usize) {
        let worker = &mut self.workers[index];
        if !worker.alive || worker.attached {
            return;
        }
        worker.attached = true;
        worker.asked = 0;
        worker.heard = self.desk.at;
        let key = worker.key.clone();
        let held: Vec<Token> = worker.leases.keys().copied().collect();
        let reports: Vec<Report> = worker.leases.values().filter_map(|held| held.report.clone()).collect();
        self.queue.retain(|other| *other != key);
        self.desk.attach(&key, &held);
        for report in reports {
            self.desk.report(report);
        }
    }

    pub(super) fn hand_out(&mut self, grant: Grant) {
        let records = &self.desk.store.records;
        let range = records.ranges.get(&grant.run.first);
        let backup = range.and_then(|range| range.backup.as_ref());
        self.seen.backups += u32::from(backup.is_some_and(|backup| backup.token == grant.token));
        let late = records.state.state.is_final() && records.state.late_sweep;
        self.seen.late_sweeps += u32::from(late);
        if grant.phase == Phase::Rollback {
            let at_work = self.workers.iter().find(|worker| {
                worker.leases.values().any(|held| {
                    held.grant.phase == Phase::Stage
                        && held.report.is_none()
                        && held.grant.run.first <= grant.run.last
                        && held.grant.run.last >= grant.run.first
                })
            });
            if let Some(worker) = at_work {
                let text = format!("I4: {:?} is rolled back while {} stages it", grant.run, worker.key.id);
                self.breaks(text);
            }
        }
        let at = self.desk.at;
        let Some(index) = self.attached(&grant.worker) else { return };
        let worker = &mut self.workers[index];
        worker.asked = worker.asked.saturating_sub(1);
        worker.heard = worker.heard.max(at);
        worker.leases.insert(grant.token, Held { grant, since: at, report: None });
    }

    pub(super) fn drop_lease(&mut self, key: &WorkerKey, token: Token) {
        let Some(index) = self.attached(key) else { return };
        // Of an attempt that is lost a living worker leaves nothing. Before the end that isn't asked of it.
        let removed = self.desk.store.records.state.state.is_final();
        if let Some(held) = self.workers[index].leases.remove(&token)
            && held.grant.phase == Phase::Stage
            && held.report.is_none()
            && !removed
        {
            self.library.stage(token, &a_part(&held.grant));
        }
    }

    /// A commit asks for no staging to stop.
    pub(super) fn goes_on(&mut self, index: usize) {
        let worker = &self.workers[index];
        if worker.attached {
            self.desk.push(Event::PhaseAck { worker: worker.key.clone() });
        }
    }

    pub(super) fn stop_staging(&mut self, index: usize) {
        let worker = &mut self.workers[index];
        if !worker.attached {
            return;
        }
        let staging: Vec<Token> = worker
            .leases
            .iter()
            .filter(|(_, held)| held.grant.phase == Phase::Stage)
            .map(|(token, _)| *token)
            .collect();
        let key = worker.key.clone();
        for token in staging {
            self.drop_lease(&key, token);
        }
        self.desk.push(Event::PhaseAck { worker: key });
    }
}

/// What a worker that was stopped had staged of it.
pub(super) fn a_part(grant: &Grant) -> Runs {
    grant.runs.iter().take(1).collect()
}
