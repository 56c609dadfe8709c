//! One run: builds the simulated cluster of a plan, lets the faults happen, and checks what comes of it.

use crate::check;
use crate::cluster::Cluster;
use crate::plan::{Fault, Plan};
use crate::stats::Numbers;
use std::sync::PoisonError;
use std::time::Duration;

/// Every batch must end within this time after the faults did.
const ENDS_WITHIN: Duration = Duration::from_mins(4);
/// How long is looked on after all is done: whether somebody still stages.
const AFTERMATH: Duration = Duration::from_secs(1);

/// Runs a plan to its end.
///
/// # Errors
/// What isn't as it must be.
pub fn run(plan: &Plan) -> Result<Numbers, String> {
    let mut cluster = Cluster::new(plan);
    let mut events = schedule(plan);
    let limit = plan.faults_end() + ENDS_WITHIN;
    let mut done_at = None;
    loop {
        while let Some((at, _)) = events.first()
            && *at <= cluster.sim.elapsed()
        {
            match events.remove(0).1 {
                Moment::Begin(fault) => cluster.begin(&fault),
                Moment::End(fault) => cluster.end(&fault),
                Moment::AllWell => cluster.all_well(),
            }
        }
        let ended = cluster.sim.step().map_err(|error| format!("a host failed: {error}"))?;
        let now = cluster.sim.elapsed();
        if let Some(failed) = cluster.failed() {
            return Err(failed);
        }
        if ended && events.is_empty() && check::settled(&cluster.world) {
            let done = *done_at.get_or_insert(now);
            if now >= done + AFTERMATH {
                break;
            }
        } else {
            done_at = None;
        }
        if now > limit {
            let stuck = check::unsettled(&cluster.world);
            let ends = cluster.ends.lock().unwrap_or_else(PoisonError::into_inner).len();
            return Err(format!("I9: after {now:?} {ends} of {} batches ended; {stuck}", plan.batches.len()));
        }
    }
    check::run(plan, &cluster)
}

enum Moment {
    Begin(Fault),
    End(Fault),
    /// Whatever overlapping faults left is made good.
    AllWell,
}

fn schedule(plan: &Plan) -> Vec<(Duration, Moment)> {
    let mut moments = Vec::new();
    for planned in &plan.faults {
        moments.push((planned.at, Moment::Begin(planned.fault.clone())));
        moments.push((planned.at + planned.lasts, Moment::End(planned.fault.clone())));
    }
    moments.push((plan.faults_end(), Moment::AllWell));
    moments.sort_by_key(|(at, _)| *at);
    moments
}
