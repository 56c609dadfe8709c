//! The worker's side of the lease stream.
//!
//! ```text
//!                 events + now                    commands
//!   link tasks ──────────────────► ┌─────────┐ ─────────────► frames to the links, close a link
//!   leases that ended ───────────► │ Machine │ ─────────────► run / cancel a lease
//!   shutdown, the time ──────────► └─────────┘ ─────────────► leave a batch, exit
//! ```
//!
//! [`Machine`] decides and does nothing else: no clock, no runtime, no socket. [`Worker`](crate::Worker)
//! owns one, feeds it and carries out what it says, over a [`transport::Transport`].

mod frames;
mod held;
mod link;
mod state;
#[cfg(test)]
mod state_tests;
pub mod transport;

pub use held::{Job, Outcome};
pub use state::{Command, Event, LinkId, Machine, Now, Settings};
