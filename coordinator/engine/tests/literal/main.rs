//! The engine by literal events, writes and commands.

#[path = "../support/mod.rs"]
mod support;

mod append;
mod bounds;
mod decisions;
mod few_writes;
mod finishing;
mod late_sweep;
mod losses;
mod owners;
mod refused;
mod staging;
mod stopping;
mod stragglers;
