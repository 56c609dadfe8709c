//! One batch at its owner.

mod backup;
mod crew;
mod decide;
mod finish;
mod lease;
mod leases;
mod looks;
mod queue;
mod retry;
mod stage;
mod workers;
mod write;

pub use lease::LeaseView;

use crate::event::{Answer, Command, Event, OpId, Refusal, Write};
use crate::ids::{Epoch, Now, Token, WorkerKey};
use crate::record::{Decision, Records, State, StateRecord};
use crate::runs::Run;
use crate::spec::Spec;
use backup::{Stopping, Typical};
use crew::Crew;
use finish::Closing;
use leases::Leases;
use queue::Queue;
use retry::{PutBack, Retrying};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::time::Duration;
use write::{Dirty, WRITE_RECORDS};

/// How long a rollback that was just decided leases nothing as long as somebody stages. What is given to the first who
/// stopped would be in the way of telling the last to stop; and looking through all ranges with each that stops costs
/// more, the more they are.
const STOP_TOGETHER: Duration = Duration::from_millis(50);

/// How long tasks of a batch that isn't sealed may wait for more, before a small lease is made of them.
const LINGER: Duration = Duration::from_millis(20);

/// The owner's settings.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How long a lease lives without a heartbeat.
    pub lease_ttl: Duration,
    /// How long a lease that failed as a whole waits before it is given again; doubles each time.
    pub retry_pause: Duration,
    /// The longest such wait.
    pub retry_pause_max: Duration,
    /// How long a staging lease must be out before a second one may be given for the same tasks.
    pub backup_after: Duration,
    /// How long after its end a batch that lost a worker is swept once more.
    pub late_sweep_after: Duration,
}

impl Settings {
    fn pause(&self, failed_before: u32) -> Duration {
        self.retry_pause.saturating_mul(1 << failed_before.min(20)).min(self.retry_pause_max)
    }
}

/// What [`Batch::step`] brings.
#[derive(Debug, Default)]
pub struct Step {
    /// To be done now; nothing here waits for a write.
    pub commands: Vec<Command>,
    /// To be made durable; then call [`Batch::written`], or [`Batch::reload`] if it was refused.
    pub write: Option<Write>,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    first: u64,
    ready_at: Duration,
    attempt: u32,
}

/// One batch at its owner: the records as the last durable write (and the one in flight) left them, and
/// what only lives in memory.
#[derive(Debug)]
pub struct Batch {
    spec: Spec,
    epoch: Epoch,
    settings: Settings,
    records: Records,

    inbox: VecDeque<(Now, Event)>,
    /// Somebody else's decision. It stands already, so it is worked in before anything that came earlier:
    /// nothing may be granted or counted beside it.
    heard: Option<Decision>,
    /// Events that are worked into the write in flight, so that a refused write loses none of them.
    unsettled: Vec<(Now, Event)>,
    out: Vec<Command>,
    after: Vec<Command>,
    dirty: Dirty,
    in_flight: bool,

    leases: Leases,
    /// No lease's time is over before; it may be later, since workers are seen meanwhile.
    none_expires_before: Duration,
    /// Leases of refused writes, which their workers never heard of. A write whose answer was lost may be
    /// applied after the records were read; no lease of it is out even then. Empty after the next write,
    /// which no older one can follow.
    unsent: BTreeSet<Token>,
    workers: Crew,
    /// Leases that were lost, and whose workers may not have stopped yet. The records name them, too.
    stopping: BTreeMap<Token, Stopping>,
    /// Those of them that are over, though a record names them yet, with their ranges.
    stopped: BTreeMap<Token, Run>,
    typical: Typical,
    /// Until when nothing is offered that the last worker to ask could not have.
    missed_until: Duration,
    /// Ranges to be leased for staging again.
    again: VecDeque<Waiting>,
    /// Ranges to be committed or rolled back.
    finish: Queue,
    /// Until when a rollback waits for all its workers to stop, before it begins with what may be removed.
    stops_until: Duration,
    /// The batch's own last lease: PUBLISH, then SWEEP.
    closing: Closing,
    /// The normal end is done: what is left is the late sweep.
    late: bool,
    retrying: Option<Retrying>,
    /// What retries put back in the write that is being built, or in flight.
    put_back: Vec<PutBack>,
    /// What calls that are worked in again had put back before.
    retried: HashMap<OpId, u64>,
    /// Since when tasks wait for more to come, in a batch that isn't sealed.
    lingering_since: Option<Duration>,
    message: String,
    ended: bool,
}

impl Batch {
    /// Takes a batch over from its records (a new batch has none but its state). Leases that are out get
    /// one full time to live to be renewed.
    pub fn new(spec: Spec, epoch: Epoch, settings: Settings, records: Records, now: Now) -> Self {
        let mut batch = Self {
            spec,
            epoch,
            settings,
            records,
            inbox: VecDeque::new(),
            heard: None,
            unsettled: Vec::new(),
            out: Vec::new(),
            after: Vec::new(),
            dirty: Dirty::default(),
            in_flight: false,
            leases: Leases::default(),
            none_expires_before: Duration::ZERO,
            unsent: BTreeSet::new(),
            workers: Crew::default(),
            stopping: BTreeMap::new(),
            stopped: BTreeMap::new(),
            typical: Typical::default(),
            missed_until: Duration::ZERO,
            again: VecDeque::new(),
            finish: Queue::default(),
            stops_until: Duration::ZERO,
            closing: Closing::Idle,
            late: false,
            retrying: None,
            put_back: Vec::new(),
            retried: HashMap::new(),
            lingering_since: None,
            message: String::new(),
            ended: false,
        };
        batch.take_up(now);
        batch
    }

    /// Takes in an event. It is worked in at the next [`Batch::step`] without a write in flight.
    pub fn push(&mut self, event: Event, now: Now) {
        match event {
            Event::Decided(decision) => self.heard = Some(decision),
            event => self.inbox.push_back((now, event)),
        }
    }

    /// A worker is alive.
    pub fn seen(&mut self, worker: &WorkerKey, at: Duration) {
        if let Some(state) = self.workers.get_mut(worker) {
            state.seen = state.seen.max(at);
        }
    }

    /// Works in what gathered, as much as one write holds. While a write is in flight nothing happens.
    /// After [`Batch::written`] and [`Batch::reload`] it must be called again, also without a new event:
    /// what is to be done may take several writes.
    pub fn step(&mut self, now: Now) -> Step {
        if self.ended {
            // Calls that came while the last write was in flight are answered; nothing of them is written.
            while let Some((at, event)) = self.inbox.pop_front() {
                self.work_in(at, event, now);
            }
            self.unsettled.clear();
            self.out.append(&mut self.after);
            return Step { commands: std::mem::take(&mut self.out), write: None };
        }
        if self.in_flight {
            return Step { commands: std::mem::take(&mut self.out), write: None };
        }
        if let Some(decision) = self.heard.take() {
            self.decided(decision, now);
        }
        self.gather(now);
        self.advance(now);
        // First the write: if there is none, what would have waited for it goes now.
        let write = self.take_write();
        Step { commands: std::mem::take(&mut self.out), write }
    }

    /// Works in what gathered, as [`Batch::step`] does, and hands nothing out. The appetite after it counts what
    /// that brought, so that requests which are taken then go into the same write: what a seal makes free to be
    /// leased, for one, costs no second write. `step` must follow.
    pub fn gather(&mut self, now: Now) {
        // A decision comes before anything else, and whatever follows from it waits for its write.
        if self.ended || self.in_flight || self.heard.is_some() {
            return;
        }
        self.expire(now);
        self.pump_retry(now);
        while !self.dirty.full() {
            let Some((at, event)) = self.inbox.pop_front() else { break };
            self.work_in(at, event, now);
        }
    }

    /// Which ownership this is.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// True while events wait to be worked in.
    pub fn has_events(&self) -> bool {
        self.waiting_events() > 0 || self.heard.is_some()
    }

    /// How many events wait to be worked in, a decision aside. The shell bounds them: above a bound of its
    /// own it takes in no more until a write is done.
    pub fn waiting_events(&self) -> usize {
        self.inbox.len()
    }

    /// The state record, as of the last write handed out.
    pub fn state(&self) -> &StateRecord {
        &self.records.state
    }

    /// All records, as of the last write handed out.
    pub fn records(&self) -> &Records {
        &self.records
    }

    /// The last error of a lease that is being retried; empty if all is well.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The leases that are out.
    pub fn leases(&self) -> impl Iterator<Item = LeaseView> + '_ {
        self.leases.iter().map(|(token, lease)| LeaseView {
            token,
            worker: lease.worker.clone(),
            phase: lease.phase,
            run: lease.run,
            attempt: lease.attempt,
            granted_at: lease.granted_at,
            expires_at: self.expires_at(lease),
        })
    }

    /// How many leases are out, and how many workers hold them, or may not have stopped one that was lost to another.
    /// Asked for after every step: it doesn't look at them one by one.
    pub fn out(&self) -> (usize, usize) {
        let workers = if self.stopping.is_empty() { self.leases.holders_len() } else { self.holders().len() };
        (self.leases.len(), workers)
    }

    /// Workers that hold leases, or may not have stopped one that was lost to another: to be asked whether
    /// they were seen.
    pub fn holders(&self) -> HashSet<&WorkerKey> {
        let stopping = self.stopping.values().map(|stopping| &stopping.worker);
        self.leases.holders().chain(stopping).collect()
    }

    /// Whether the next [`Batch::step`] may find that somebody was silent for too long, as far as it knows:
    /// only then it matters when the holders were seen.
    pub fn asks_who_was_seen(&self, now: Now) -> bool {
        self.none_expires_before <= now.at || !self.stopping.is_empty()
    }

    /// When [`Batch::step`] has something to do even if nothing happens. `None` while a write is in
    /// flight, since it has nothing to do then.
    pub fn wake_at(&self, now: Now) -> Option<Duration> {
        if self.in_flight || self.ended {
            return None;
        }
        let mut wake: Option<Duration> = None;
        let mut at = |time: Duration| wake = Some(wake.map_or(time, |earliest: Duration| earliest.min(time)));
        if !self.leases.is_empty() {
            at(self.none_expires_before);
        }
        for stopping in self.stopping.values() {
            at(self.gives_up_at(stopping));
        }
        if let Some(slow) = self.backup_at(now)
            && slow > now.at
        {
            at(slow);
        }
        if !self.none_missed(now) && self.trial_waits(now) {
            at(self.missed_until);
        }
        let later = |waiting: &&Waiting| waiting.ready_at > now.at;
        self.again.iter().filter(later).for_each(|waiting| at(waiting.ready_at));
        if self.stops_first(now) {
            // Nothing is given before: the queue isn't looked through with each worker that stops.
            at(self.stops_until);
        } else {
            let finish = self.finish.iter().map(|(_, queued)| &queued.waiting);
            finish.filter(later).for_each(|waiting| at(waiting.ready_at));
        }
        if let Closing::Ready { ready_at, .. } = self.closing
            && ready_at > now.at
        {
            at(ready_at);
        }
        if let Some(since) = self.lingering_since
            && since + LINGER > now.at
        {
            at(since + LINGER);
        }
        if self.records.decision.is_none()
            && let Some(deadline) = self.spec.deadline_ms()
        {
            let left = u64::try_from(deadline.saturating_sub(now.wall_ms)).unwrap_or(0);
            at(now.at + Duration::from_millis(left));
        }
        wake
    }

    /// About how many leases could be granted now, beyond the requests that wait to be worked in; the shell
    /// takes as many requests from the queue.
    pub fn appetite(&self, now: Now) -> usize {
        let ready = |waiting: &Waiting| waiting.ready_at <= now.at;
        let finish = || self.finish.iter().map(|(_, queued)| queued.waiting).filter(ready);
        let some = match self.records.state.state {
            State::Importing if self.records.decision.is_none() => {
                self.offered_again(now) + self.fresh_leases(now) + self.backups(now)
            }
            State::Importing | State::Held | State::Committed | State::RolledBack => 0,
            State::RollingBack if self.stops_first(now) => 0,
            State::Committing => finish().take(WRITE_RECORDS).count(),
            State::RollingBack => {
                finish().filter(|w| self.may_roll_back(w.first)).take(WRITE_RECORDS).count()
            }
        };
        let closing = matches!(self.closing, Closing::Ready { ready_at, .. } if ready_at <= now.at);
        (some + usize::from(closing)).min(WRITE_RECORDS).saturating_sub(self.waiting_requests())
    }

    fn work_in(&mut self, at: Now, event: Event, now: Now) {
        match &event {
            // A request is returned by a reload; a decision is in the records then.
            Event::Request { .. } | Event::Decided(_) => {}
            _ => self.unsettled.push((at, event.clone())),
        }
        match event {
            Event::Appended { op, segment } => self.appended(op, segment, now),
            Event::Seal { op, total } => self.seal(op, total),
            Event::RetryFailed { op } => self.retry_failed(op, now),
            Event::Request { worker } => self.request(worker, now),
            Event::Report(report) => self.report(report, now),
            Event::Release { worker, token } => self.release(&worker, token, now),
            Event::PhaseAck { worker } => self.phase_ack(&worker),
            Event::Attached { worker, held } => {
                if !self.attached(&worker, &held, at, now) {
                    self.inbox.push_front((at, Event::Attached { worker, held }));
                }
            }
            Event::Gone { worker } => {
                if !self.gone(&worker, now) {
                    self.inbox.push_front((at, Event::Gone { worker }));
                }
            }
            Event::Decided(decision) => self.decided(decision, now),
        }
    }

    fn seal(&mut self, op: OpId, total: Option<u64>) {
        let state = &mut self.records.state;
        let answer = if total.is_some_and(|said| said != state.total) {
            Err(Refusal::TotalMismatch(state.total))
        } else if state.sealed {
            Ok(Answer::Sealed)
        } else if self.records.decision.is_some() {
            Err(Refusal::Decided)
        } else {
            state.sealed = true;
            self.dirty.state = true;
            self.lingering_since = None;
            Ok(Answer::Sealed)
        };
        // In `after`, also when nothing changed: what it says may be in this very write.
        self.after.push(Command::Answer { op, answer });
    }
}

#[cfg(test)]
mod tests;
