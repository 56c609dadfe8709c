//! The whole system: real coordinators and workers as processes, a real etcd, real files.

mod approval;
mod dealing;
mod invariants;
mod lifetimes;
mod phases;
mod pictures;
mod replicas;
mod revoked;
mod troubles;
