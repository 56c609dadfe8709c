//! Carries out faults, and takes them back.

use super::disk::Disk;
use super::journal::Journal;
use super::plan::{ETCDS, Fault, Full, Moment, Planned, Target, Who};
use super::recorder::{Decided, Recorder};
use super::system::{Member, System};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tranche_client::v1::decision::Outcome;

/// How long a fault waits for its decision.
const NO_DECISION: Duration = Duration::from_secs(3);
/// How long it may take to free etcd's space, once all nodes are there.
const FREEING: Duration = Duration::from_mins(1);
/// How long a process that is starved stands still, and how long it runs, by turns.
const STUTTER_STOPPED: Duration = Duration::from_millis(300);
/// See [`STUTTER_STOPPED`].
const STUTTER_RUNNING: Duration = Duration::from_millis(30);
/// Between two tries of that.
const PAUSE: Duration = Duration::from_millis(300);

/// What one round's faults need.
#[derive(Debug)]
pub struct Injector {
    /// Whom they hit.
    pub system: Arc<System>,
    /// Tells owners and decisions.
    pub recorder: Arc<Recorder>,
    /// Where they are counted.
    pub journal: Arc<Journal>,
    /// When all faults end.
    pub heal: CancellationToken,
    /// There is one alarm at a time.
    pub alarm: Mutex<()>,
    /// There is one ballast at a time on a disk.
    pub disks: [Mutex<()>; 2],
}

impl Injector {
    /// Waits for the fault's moment, does it, and takes it back after its time, or when all are healed.
    pub async fn strike(self: Arc<Self>, planned: Planned) {
        let decided = self.moment(planned.moment).await;
        if self.heal.is_cancelled() {
            return;
        }
        let Planned { fault, lasts, .. } = planned;
        match &fault {
            Fault::Kill(target) => self.kill(&fault, *target, decided, lasts).await,
            Fault::Pause(target) => self.pause(&fault, *target, decided, lasts).await,
            Fault::Blackout(all) => self.blackout(&fault, all, lasts).await,
            Fault::Freeze(all) => self.freeze(&fault, all, lasts).await,
            Fault::Stutter(target) => self.stutter(&fault, *target, decided, lasts).await,
            Fault::Leave(target) => self.leave(&fault, *target, decided, lasts).await,
            Fault::Partition { from, to, both } => self.partition(&fault, from, to, *both, lasts).await,
            Fault::Compact(node) => self.compact(&fault, *node).await,
            Fault::NoSpace(real) => self.no_space(&fault, *real, lasts).await,
            Fault::DiskFull(Full::Library) => self.fill(&fault, &self.system.library_disk, 0, lasts).await,
            Fault::DiskFull(Full::Objects) => self.fill(&fault, &self.system.objects_disk, 1, lasts).await,
        }
    }

    /// Waits for the decision that the fault is for; or for nothing.
    async fn moment(&self, moment: Moment) -> Option<Decided> {
        let wanted = match moment {
            Moment::Now => return None,
            Moment::Committing => Outcome::Commit,
            Moment::RollingBack => Outcome::Rollback,
        };
        let mut decisions = self.recorder.decisions();
        let decided = async {
            loop {
                match decisions.recv().await {
                    Ok(decided) if decided.outcome == wanted => return Some(decided),
                    // Another outcome, or some were missed.
                    _ => {}
                }
            }
        };
        tokio::select! {
            decided = decided => decided,
            () = sleep(NO_DECISION) => None,
            () = self.heal.cancelled() => None,
        }
    }

    /// Lets time pass, unless all is to be healed.
    async fn last(&self, time: Duration) {
        tokio::select! {
            () = sleep(time) => {}
            () = self.heal.cancelled() => {}
        }
    }

    async fn resolve(&self, target: Target, decided: Option<Decided>) -> Who {
        match target {
            Target::One(who) => who,
            Target::Owner(otherwise) => {
                let owner = decided.and_then(|decided| decided.owner);
                let owner = owner.or_else(|| self.recorder.owners().into_iter().next());
                let index = owner.and_then(|url| self.system.coordinator_at(&url));
                Who::Coordinator(index.unwrap_or(otherwise))
            }
            Target::Leader(otherwise) => Who::Etcd(self.system.etcd.leader().await.unwrap_or(otherwise)),
        }
    }

    async fn kill(&self, fault: &Fault, target: Target, decided: Option<Decided>, lasts: Duration) {
        let led = if let Target::One(Who::Etcd(_)) = target { self.system.etcd.leader().await } else { None };
        let who = self.resolve(target, decided).await;
        let Some(mut member) = self.system.try_member(who).await else { return self.skip(fault, who) };
        if !member.kill() {
            return self.skip(fault, who);
        }
        self.struck(fault);
        self.journal.note(format!("{fault}: {who} for {lasts:?}"));
        {
            let mut counts = self.journal.counts();
            counts.kills += 1;
            let leader = matches!(target, Target::Leader(_)) || led.map(Who::Etcd) == Some(who);
            counts.leader_kills += u64::from(leader);
        }
        self.last(lasts).await;
        member.start();
        self.journal.note(format!("{who} starts again"));
    }

    async fn pause(&self, fault: &Fault, target: Target, decided: Option<Decided>, lasts: Duration) {
        let who = self.resolve(target, decided).await;
        let Some(mut member) = self.system.try_member(who).await else { return self.skip(fault, who) };
        let Some(process) = member.process() else { return self.skip(fault, who) };
        process.stop();
        self.struck(fault);
        self.journal.note(format!("{fault}: {who} for {lasts:?}"));
        self.journal.counts().pauses += 1;
        self.last(lasts).await;
        process.cont();
        self.journal.note(format!("{who} goes on"));
    }

    async fn blackout(&self, fault: &Fault, all: &[Who], lasts: Duration) {
        let mut killed = Vec::new();
        for mut member in self.members(all).await {
            if member.kill() {
                killed.push(member);
            }
        }
        self.struck(fault);
        self.journal.note(format!("{fault} for {lasts:?}: {} were there", killed.len()));
        self.journal.counts().kills += killed.len() as u64;
        self.last(lasts).await;
        for mut member in killed {
            member.start();
        }
        self.journal.note(format!("started again: {fault}"));
    }

    async fn freeze(&self, fault: &Fault, all: &[Who], lasts: Duration) {
        let mut members = self.members(all).await;
        let mut stopped = 0;
        for process in members.iter_mut().filter_map(|member| member.process()) {
            process.stop();
            stopped += 1;
        }
        self.struck(fault);
        self.journal.note(format!("{fault} for {lasts:?}: {stopped} were there"));
        self.journal.counts().pauses += stopped;
        self.last(lasts).await;
        for process in members.iter_mut().filter_map(|member| member.process()) {
            process.cont();
        }
        self.journal.note(format!("go on: {fault}"));
    }

    async fn stutter(&self, fault: &Fault, target: Target, decided: Option<Decided>, lasts: Duration) {
        let who = self.resolve(target, decided).await;
        let Some(mut member) = self.system.try_member(who).await else { return self.skip(fault, who) };
        let Some(process) = member.process() else { return self.skip(fault, who) };
        self.struck(fault);
        self.journal.note(format!("{fault}: {who} for {lasts:?}"));
        self.journal.counts().stutters += 1;
        let end = Instant::now() + lasts;
        while Instant::now() < end && !self.heal.is_cancelled() {
            process.stop();
            self.last(STUTTER_STOPPED).await;
            process.cont();
            self.last(STUTTER_RUNNING).await;
        }
        self.journal.note(format!("{who} is starved no more"));
    }

    /// Those of them that have no trouble already.
    async fn members(&self, all: &[Who]) -> Vec<OwnedMutexGuard<Member>> {
        let all = futures::future::join_all(all.iter().map(|who| self.system.try_member(*who))).await;
        all.into_iter().flatten().collect()
    }

    async fn leave(&self, fault: &Fault, target: Target, decided: Option<Decided>, lasts: Duration) {
        let who = self.resolve(target, decided).await;
        let Some(mut member) = self.system.try_member(who).await else { return self.skip(fault, who) };
        if member.process().is_none() {
            return self.skip(fault, who);
        }
        self.struck(fault);
        self.journal.note(format!("{fault}: {who}"));
        let begun = Instant::now();
        match member.leave().await {
            Ok(()) => self.journal.note(format!("{who} has left after {:?}", begun.elapsed())),
            Err(error) => self.journal.violation(error),
        }
        {
            let mut counts = self.journal.counts();
            match who {
                Who::Worker(_) => counts.drains += 1,
                _ => counts.hand_overs += 1,
            }
        }
        self.last(lasts).await;
        member.start();
        self.journal.note(format!("{who} starts again"));
    }

    async fn partition(&self, fault: &Fault, from: &[Who], to: &[Who], both: bool, lasts: Duration) {
        let pairs: Vec<(usize, usize)> = from
            .iter()
            .flat_map(|a| to.iter().map(|b| (a.number(), b.number())))
            .flat_map(|(a, b)| if both { vec![(a, b), (b, a)] } else { vec![(a, b)] })
            .collect();
        for (from, to) in &pairs {
            self.system.network.cut(*from, *to);
        }
        self.struck(fault);
        self.journal.note(format!("{fault} for {lasts:?}"));
        self.journal.counts().partitions += 1;
        self.last(lasts).await;
        for (from, to) in &pairs {
            self.system.network.mend(*from, *to);
        }
        self.journal.note(format!("healed: {fault}"));
    }

    async fn compact(&self, fault: &Fault, node: Option<usize>) {
        for asked in 0..ETCDS {
            match self.system.etcd.compact(asked).await {
                Ok(revision) => {
                    self.struck(fault);
                    self.journal.note(format!("{fault} at {revision}"));
                    self.journal.counts().compactions += 1;
                    break;
                }
                Err(error) => self.journal.note(format!("{fault} at etcd-{asked}: {error}")),
            }
        }
        if let Some(node) = node
            && let Err(error) = self.system.etcd.defragment(node).await
        {
            self.journal.note(format!("{fault}: {error}"));
        }
    }

    async fn no_space(&self, fault: &Fault, real: bool, lasts: Duration) {
        let Ok(_one) = self.alarm.try_lock() else { return self.journal.note(format!("skipped: {fault}")) };
        let mut raised = false;
        for node in 0..ETCDS {
            if !raised {
                raised = if real {
                    self.system.etcd.fill(node).await
                } else {
                    self.system.etcd.raise_alarm(node).await.is_ok()
                };
            }
        }
        if raised {
            self.struck(fault);
            self.journal.note(format!("{fault} for {lasts:?}"));
            self.journal.counts().alarms += 1;
            self.last(lasts).await;
        }
        // In any case: an answer may have been lost.
        let mut deadline = None;
        let mut node = 0;
        while let Err(error) = self.system.etcd.free(node).await {
            self.journal.note(format!("freeing etcd's space at etcd-{node}: {error}"));
            if self.heal.is_cancelled() {
                let deadline = *deadline.get_or_insert_with(|| Instant::now() + FREEING);
                if Instant::now() > deadline {
                    self.journal.violation(format!("etcd's space can't be freed: {error}"));
                    return;
                }
            }
            node = (node + 1) % ETCDS;
            sleep(PAUSE).await;
        }
        self.journal.note(format!("over: {fault}"));
    }

    /// Looks after alarms once all faults are taken back, until told to stop: a node that lagged behind
    /// raises its alarm only when it has caught up.
    pub async fn operate(&self, stop: CancellationToken) {
        let mut node = 0;
        while !stop.is_cancelled() {
            if self.system.etcd.is_alarmed(node).await.is_ok_and(|alarmed| alarmed) {
                let freed = self.system.etcd.free(node).await;
                self.journal.note(format!("a late NOSPACE alarm: freed: {freed:?}"));
            }
            node = (node + 1) % ETCDS;
            tokio::select! {
                () = sleep(PAUSE) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    async fn fill(&self, fault: &Fault, disk: &Disk, index: usize, lasts: Duration) {
        let Ok(_one) = self.disks[index].try_lock() else {
            return self.journal.note(format!("skipped: {fault}"));
        };
        // A few MiB of memory: it doesn't block for long.
        let bytes = disk.fill();
        self.struck(fault);
        self.journal.note(format!("{fault} ({bytes} bytes) for {lasts:?}"));
        self.journal.counts().disk_fulls += 1;
        self.last(lasts).await;
        disk.free();
        self.journal.note(format!("over: {fault}"));
    }

    /// Counts what batches were doing when the fault struck.
    fn struck(&self, fault: &Fault) {
        let states = self.recorder.states();
        let mut counts = self.journal.counts();
        for state in states {
            *counts.struck.entry((fault.kind(), state)).or_default() += 1;
        }
    }

    fn skip(&self, fault: &Fault, who: Who) {
        self.journal.note(format!("skipped, {who} has trouble already: {fault}"));
    }
}
