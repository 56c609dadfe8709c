//! A model of decision, fencing and cancel races.

mod canonical;
mod model;
mod owner;
mod properties;
pub mod state;
mod store;
mod worker;

pub use model::{Action, Batch};
