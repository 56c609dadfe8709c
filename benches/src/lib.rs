//! What the micro benches, the ceilings and the counting of instructions share: each step of a task's way, by itself.

pub mod engine;
pub mod path;
