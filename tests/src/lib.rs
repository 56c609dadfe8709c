//! What the whole-system tests share: real processes, a real etcd, real files.
//!
//! A test reads as sentences: [`Cluster`] starts coordinators and workers as processes, [`Library`] makes
//! folders and compares them by checksum, [`Gate`] is a worker's handler that the test holds and lets go,
//! [`History`] is all that etcd ever held, and [`eventually`] waits for a condition.

pub mod chaos;
pub mod cluster;
pub mod command;
pub mod control;
pub mod etcd;
pub mod gate;
pub mod history;
pub mod in_process;
pub mod invariants;
pub mod library;
pub mod pki;
pub mod process;
pub mod raw;
pub mod scrape;
pub mod wait;

pub use cluster::{Builder, Cluster};
pub use command::{Ran, Session, grpcurl, run, tranche};
pub use control::{At, Control};
pub use gate::{Gate, Seen};
pub use history::{BatchHistory, History, Snapshot};
pub use in_process::InProcess;
pub use library::{Library, snapshot};
pub use pki::{Pki, sha256_hex};
pub use process::Process;
pub use wait::eventually;
