//! The model: its bounds, its guards, and which steps there are.

use crate::state::{ATTEMPTS, COORDINATORS, Coordinator, RANGES, State};
use stateright::{Model, Property};
use tranche_guards::Guard;

/// One batch, its coordinators, its workers, its client, and the faults that may happen.
#[derive(Clone, Copy, Debug)]
pub struct Batch {
    /// Ranges (of one task each), at most [`RANGES`].
    pub ranges: u8,
    /// Leases that a range may lose before its task counts as failed, at most [`ATTEMPTS`]: the spec's
    /// `max_attempts`.
    pub attempts: u8,
    /// Whether a client may cancel.
    pub cancel: bool,
    /// Whether a slow range may be leased a second time.
    pub backup: bool,
    /// Whether a new owner knows of which workers the one before it awaited that they stop: the code's
    /// `RangeRecord::stopping`, always there. Engine `note_stopping`, `take_up_stopping`.
    pub stopping_kept: bool,
    /// Whether the owner may decide ROLLBACK by itself, at any time: the deadline.
    pub deadline: bool,
    /// How many faults happen, of any kind, at most.
    pub faults: u8,
    /// A guard that is switched off.
    pub off: Option<Guard>,
}

/// A step. `c` is a coordinator, `r` a range, `a` one of its attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A coordinator takes the free lock and reads the records. `node/ownership.rs`: `take`, `drive`;
    /// `driver/ledger.rs`: `load`; engine `Batch::new`, `take_up`.
    TakeOver(usize),
    /// A coordinator notices that its session is over, or its write was refused and the lock isn't its own.
    /// `node/ownership.rs`: `serve`, `own`; `driver/mod.rs`: `reload`, `NotOwned`.
    NoticeLoss(usize),
    /// A driver learns of the decision: the watch tells it, or its write was refused and it reads the records.
    /// `node/ownership.rs`: `tell`; `driver/mod.rs`: `reload`; engine `Batch::decided`, `Batch::reload`.
    Hear(usize),
    /// The owner leases a range for staging. Engine `grant_stage`, `lease_range`.
    Grant(usize, usize),
    /// The owner leases a slow range a second time. Engine `grant_backup`.
    Backup(usize, usize),
    /// A report arrives and counts. Engine `report_stage`; with the last one `advance_undecided`, `decide`.
    Count(usize, usize, usize),
    /// A lease is lost: nobody renewed it, its worker died, or doesn't name it. Engine `expire`, `gone`,
    /// `attached`, `lose_stage`, `requeue`.
    Lose(usize, usize, usize),
    /// The same of a lease whose worker lives and only wasn't heard.
    LoseUnheard(usize, usize, usize),
    /// The deadline passed. Engine `advance_undecided`.
    Deadline(usize),
    /// The state follows another's decision. Engine `enter_decided`.
    Enter(usize),
    /// A range is made final, or removed, by any worker that is leased it, and reported. Engine `grant_finish`,
    /// `report_range`; worker `Handler::commit`, `Handler::rollback`.
    Finish(usize, usize),
    /// PUBLISH, after the last range. Engine `report_closing`, `advance_decided`.
    Publish(usize),
    /// SWEEP, before the end of a rollback, after that of a commit, and late. Engine `report_closing`,
    /// `advance_decided`, `advance_final`, `fold`; worker `Handler::sweep`.
    Sweep(usize),
    /// The store carries out a write or refuses it, and the owner hears of it. `driver/mod.rs`: `send`,
    /// `settle`; `store/commit.rs`; engine `Batch::written`.
    Apply(usize),
    /// The same, and a copy of the write arrives later. `store/commit.rs`: `settle` sends again.
    ApplyTwice(usize),
    /// The store gets a write that the network kept; nobody hears of it.
    ApplyStray,
    /// The session of a dead coordinator expires.
    ExpireDead,
    /// CancelBatch reads. `node/decide.rs`: `decide`.
    Cancel,
    /// CancelBatch's transaction is carried out. The same.
    CancelApply,
    /// A lease arrives at its worker, or is refused there. `driver/act.rs`: `deliver`; `dispatch/`: `grant`;
    /// worker `session/state.rs`.
    Deliver(usize, usize),
    /// A worker has staged. Worker `Handler::stage`.
    Stage(usize, usize),
    /// A worker tells a new owner that it holds a lease that isn't out any more. Worker `session/grants.rs`: `owner`;
    /// engine `attached`, `stop_lost`.
    Attach(usize, usize),
    /// A worker stops: told of the rollback, or that the lease isn't its own. Worker `session/state.rs`.
    Stop(usize, usize),
    /// A report is answered: it counts already, or it won't. Engine `settled_before`; worker `session/state.rs`.
    Settle(usize, usize),
    /// A paused worker goes on.
    Wake(usize, usize),
    /// Fault: a coordinator dies; what it had sent is lost, or (`true`) arrives later.
    Crash(usize, bool),
    /// Fault: the owner's session expires, and the owner doesn't notice yet.
    Expire,
    /// Fault: a write neither arrives nor is answered in time; it may arrive later.
    Stray(usize),
    /// Fault: the worker of an attempt dies.
    CrashWorker(usize, usize),
    /// Fault: the worker of an attempt is paused.
    Pause(usize, usize),
    /// Fault: the worker of an attempt hears nothing for the lease's time, and stops it by itself. Worker
    /// `session/state.rs`.
    Lapse(usize, usize),
}

impl Batch {
    /// The guard is in place.
    pub fn on(self, guard: Guard) -> bool {
        self.off != Some(guard)
    }

    /// What comes by itself, sooner or later. That some of it does is what the end of a batch rests on.
    pub fn progress(actions: &mut Vec<Action>) {
        for c in 0..COORDINATORS {
            actions.extend([
                Action::Apply(c),
                Action::NoticeLoss(c),
                Action::Hear(c),
                Action::Enter(c),
                Action::Publish(c),
                Action::Sweep(c),
                Action::TakeOver(c),
            ]);
            for r in 0..RANGES {
                actions.extend([Action::Grant(c, r), Action::Finish(c, r)]);
                actions.extend((0..ATTEMPTS).flat_map(|a| [Action::Count(c, r, a), Action::Lose(c, r, a)]));
            }
        }
        actions.push(Action::ExpireDead);
        for (r, a) in places() {
            actions.extend([
                Action::Deliver(r, a),
                Action::Stage(r, a),
                Action::Attach(r, a),
                Action::Stop(r, a),
                Action::Settle(r, a),
                Action::Wake(r, a),
            ]);
        }
    }

    /// What may come, or not.
    pub fn chances(actions: &mut Vec<Action>) {
        actions.extend([Action::Cancel, Action::CancelApply, Action::ApplyStray, Action::Expire]);
        for c in 0..COORDINATORS {
            actions.extend([
                Action::ApplyTwice(c),
                Action::Crash(c, false),
                Action::Crash(c, true),
                Action::Stray(c),
                Action::Deadline(c),
            ]);
            actions.extend((0..RANGES).map(|r| Action::Backup(c, r)));
            actions.extend(places().map(|(r, a)| Action::LoseUnheard(c, r, a)));
        }
        for (r, a) in places() {
            actions.extend([Action::CrashWorker(r, a), Action::Pause(r, a), Action::Lapse(r, a)]);
        }
    }

    /// The state after the step; `None`: it isn't possible.
    pub fn step(self, state: &State, action: Action) -> Option<State> {
        let next = match action {
            Action::TakeOver(c) => self.take_over(state, c),
            Action::NoticeLoss(c) => Self::notice_loss(state, c),
            Action::Hear(c) => Self::hear(state, c),
            Action::Grant(c, r) => self.grant(state, c, r),
            Action::Backup(c, r) => self.back_up(state, c, r),
            Action::Count(c, r, a) => self.count(state, c, r, a),
            Action::Lose(c, r, a) => self.lose(state, c, r, a),
            Action::LoseUnheard(c, r, a) => self.lose_unheard(state, c, r, a),
            Action::Deadline(c) => self.pass_deadline(state, c),
            Action::Enter(c) => Self::enter(state, c),
            Action::Finish(c, r) => self.finish(state, c, r),
            Action::Publish(c) => Self::publish(state, c),
            Action::Sweep(c) => self.sweep(state, c),
            Action::Apply(c) => self.apply(state, c, false),
            Action::ApplyTwice(c) => self.apply(state, c, true),
            Action::ApplyStray => self.apply_stray(state),
            Action::ExpireDead => Self::expire_dead(state),
            Action::Cancel => self.send_cancel(state),
            Action::CancelApply => self.apply_cancel(state),
            Action::Deliver(r, a) => self.deliver(state, r, a),
            Action::Stage(r, a) => Self::stage(state, r, a),
            Action::Attach(r, a) => Self::attach(state, r, a),
            Action::Stop(r, a) => Self::stop(state, r, a),
            Action::Settle(r, a) => self.settle(state, r, a),
            Action::Wake(r, a) => Self::wake(state, r, a),
            Action::Crash(c, kept) => self.crash(state, c, kept),
            Action::Expire => self.expire(state),
            Action::Stray(c) => self.stray(state, c),
            Action::CrashWorker(r, a) => self.crash_worker(state, r, a),
            Action::Pause(r, a) => self.pause(state, r, a),
            Action::Lapse(r, a) => self.lapse(state, r, a),
        }?;
        let next = self.canonical(next);
        (next != *state).then_some(next)
    }

    /// The state with one more fault, if one more may happen.
    pub(crate) fn fault(self, state: &State) -> Option<State> {
        (state.faults < self.faults).then(|| State { faults: state.faults + 1, ..*state })
    }
}

fn places() -> impl Iterator<Item = (usize, usize)> {
    (0..RANGES).flat_map(|r| (0..ATTEMPTS).map(move |a| (r, a)))
}

impl Model for Batch {
    type State = State;
    type Action = Action;

    /// CreateBatch: one transaction makes the records and the lock; its coordinator drives the batch. All tasks
    /// are appended, and it is sealed.
    fn init_states(&self) -> Vec<State> {
        let mut state = State { locked: true, ..State::default() };
        state.coordinators[0] = Coordinator { owner: true, epoch_holds: true, ..Coordinator::default() };
        vec![self.canonical(state)]
    }

    fn actions(&self, _state: &State, actions: &mut Vec<Action>) {
        Self::progress(actions);
        Self::chances(actions);
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        self.step(state, action)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        crate::properties::all()
    }
}
