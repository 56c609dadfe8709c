//! A simulation of the whole system: the real coordinators and workers, on a simulated store, network and
//! library, under seeded faults, in virtual time.
//!
//! ```text
//!  clients ──calls──▶ Node ─────────▶ Store (simulated: answers lost, late, never; watches that lag or miss)
//!                      │  real        ▲
//!                      ▼              │ every revision is checked: I1 to I8
//!            grpc::worker::serve ◀──frames (late, twice, cut, silent)──▶ Worker ──▶ library (simulated)
//! ```
//! One thread, one runtime a host, whose clock is wound by hand: a host that isn't wound stands still, one whose
//! runtime is dropped is lost with everything in its memory. All else is events in one queue. So a seed is a run:
//! `cargo run -p tranche-sim -- --seed 1234 --trace` shows what a test found.
//!
//! After a time there are no more faults, and everything must end by itself (I9), with a library that is exactly
//! what was decided (I4).

mod check;
mod client;
mod faults;
mod handler;
mod host;
mod library;
pub mod log;
mod net;
mod objects;
mod panics;
mod plan;
mod run;
mod seeds;
mod stats;
mod store;
mod trace;
mod transport;
mod world;

pub use run::{Options, Outcome, run};
pub use seeds::{Failure, Report, run_seeds};
pub use stats::{Count, Stats};
