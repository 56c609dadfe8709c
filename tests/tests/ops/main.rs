//! The ops ports of real processes: what probes and Prometheus get to see.
#![allow(clippy::float_cmp, reason = "counts are whole numbers")]

mod catalogue;
mod collector;
mod coordinator;
mod correlated;
mod probes;
mod prometheus;
mod secure;
mod traces;
mod worker;
