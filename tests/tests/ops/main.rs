//! The ops ports of real processes: what probes and Prometheus get to see.
#![allow(clippy::float_cmp, reason = "counts are whole numbers")]

mod catalogue;
mod coordinator;
mod probes;
mod prometheus;
mod traces;
mod worker;
