//! A model of the races of decision, fencing and cancel, visited in every state.
//!
//! The code decides, fences and cancels in a few dozen lines, and each of them is there because of an order of
//! events that nobody would think of twice. A test names one order. Here the rules are written down a second
//! time, small, and a checker ([stateright](https://www.stateright.rs)) tries every order that there is,
//! until no new state is found: a fixpoint, without a bound of depth.
//!
//! # What is in it
//!
//! Two coordinators, three workers, up to three ranges, a client that cancels, and a store:
//!
//! - the lock (it goes with its owner's session, noticed or not), the decision, the cut-off, the state with its
//!   counters, the range records with lease, backup and winners: [`state`];
//! - an owner's write: what it compares and what it puts. It is carried out now, or late, or never, or twice,
//!   and its sender hears of it, or dies, or gives it up: `store.rs`;
//! - what an owner writes, by what it saw: `owner.rs`. An outdated view can't reach the store but through a
//!   write, so writes carry what they put, and an outdated view is one bit;
//! - workers, which stage, report as often as it takes, stop, lapse, die, are paused and stage late:
//!   `worker.rs`;
//! - the target: what is staged under each token, and what is in the library.
//!
//! Each [`Action`] names the code that it stands for. The guards are those of `tranche_guards`, asked for at the
//! same places; [`Batch::off`] takes one out.
//!
//! # What it bounds
//!
//! Faults of any kind count together ([`Batch::faults`]); the count is part of the state. A fault is: a
//! coordinator dies (its write may arrive later) · a session expires and its owner goes on · a write is kept by
//! the network · a worker dies, is paused, or hears nothing for a lease's time · a report doesn't come through
//! for as long. One write at a time is kept. A repeat of a write that was carried out, a late or a lost cancel, a
//! slow delivery, a slow answer cost nothing. A range has so many attempts at once of which something is left
//! ([`Batch::attempts`]); when one more is lost, its task fails, as with `max_attempts`.
//!
//! # What it leaves out
//!
//! - Time. A lease may lapse at any time, once; that a worker stops before its coordinator gives the lease away is
//!   taken as given (guard `LeaseLapses`), and so is that Owner frames come before what they overtake.
//! - A range is one task, all tasks are appended and the batch is sealed. No retries, no splits, no HELD, no
//!   failure limit: they decide and lease by the same writes.
//! - A worker has one lease. One that has several is so many workers that die and pause together.
//! - A write has one event in it, where the engine puts many together.
//! - Leases for COMMIT, ROLLBACK, PUBLISH and SWEEP are given, worked off and reported in one step: they are
//!   idempotent, and one that is repeated by an owner of old repeats what was decided.
//! - A worker that was paused doesn't also die with its late work once the last sweep began.
//! - Late sweeps come at any time after the end.
//!
//! # How it stays small
//!
//! Workers, coordinators, ranges and tokens have no names of their own: each state is renamed into a fixed order
//! (`canonical.rs`), so a path that is shown may call the same coordinator 0 in one step and 1 in the next. A
//! revision, an epoch are each one bit of a view: does it still hold? A write that can't be carried out any more
//! is forgotten. States are told apart by 64 bits of hash: among ten million, two are taken for one with a
//! chance of about one in 400,000.
//!
//! # Whom an owner awaits
//!
//! With backups, the attempt that came second goes on for a moment after its range was counted. The owner tells
//! its worker to stop and waits for that before it rolls the range back. Its record names the worker
//! (`RangeRecord::stopping`), so that the next owner waits, too. The model found that this was missing:
//! [`Batch::stopping_kept`] takes it out, and `whom_an_owner_awaits_is_known_to_the_next` (in `tests/planted.rs`)
//! shows what happens then. What a worker said since its range was written is forgotten by the code with its owner,
//! and costs the next one a wait; here, where time is left out, it is known.
//!
//! # Run it
//!
//! `cargo test -p tranche-model -- --nocapture` prints states and times: about four million states in all.
//! `TRANCHE_MODEL_FAULTS=4` explores three ranges with four faults instead of three: about ten million in all, 70
//! seconds of processor time, 100 MB. stateright 0.31 (MIT, begun in 2018) brings nine small crates that nothing
//! else here needs, among them the server of its web explorer, which isn't used; only this crate depends on it.

mod canonical;
mod model;
mod owner;
mod properties;
pub mod state;
mod store;
mod worker;

pub use model::{Action, Batch};
