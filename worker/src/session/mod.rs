//! The worker's side of the lease stream.
//!
//! ```text
//!                 events + now                    commands
//!   link tasks ──────────────────► ┌─────────┐ ─────────────► dial, rest, hang up, frames, close a stream
//!   leases that ended ───────────► │ Machine │ ─────────────► run / cancel a lease, remove a lost attempt
//!   shutdown, the time ──────────► └─────────┘ ─────────────► leave a batch, exit
//! ```
//!
//! [`Machine`] decides and does nothing else: no clock, no runtime, no socket. [`Worker`](crate::Worker)
//! owns one, feeds it and carries out what it says, over a [`transport::Transport`].

mod batches;
mod credit;
mod drain;
mod frames;
mod grants;
mod held;
mod link;
mod links;
mod lost;
mod report;
mod reports;
mod state;
#[cfg(test)]
mod tests;
pub mod transport;

pub use held::{Job, Outcome, Removal};
pub use state::{Command, Event, LinkId, Machine, Now, Settings};
