//! Chaos with real processes: three etcd nodes, three coordinators, six workers on this machine, hurt at
//! random while they import real files; every batch is checked.
//!
//! A run is a series of rounds. In each, some lanes submit batch after batch (random sizes, broken sources,
//! limits, approvals, cancels, retries), while faults strike: processes are killed, stopped, asked to leave,
//! cut off from each other, etcd is compacted and out of space, disks are full. Then all faults end, and
//! every batch must reach its end within a bounded time (I9). After each batch its library is compared by
//! checksum (I4), its counters, failures and decision with what was sent and answered (I1, I3, I5, I7, I8);
//! after each round the history in etcd is asserted revision by revision ([`crate::invariants`]).
//!
//! | part | what it does |
//! | --- | --- |
//! | [`sandbox`] | namespaces of the run's own |
//! | [`network`] | a host for each member, partitions |
//! | [`disk`] | small disks, to be filled |
//! | [`system`] | the members' processes |
//! | [`plan`] | which faults come when, and what batches are like, drawn from the seed |
//! | [`inject`] | carries the faults out, and takes them back |
//! | [`recorder`] | reads etcd's history before it is compacted |
//! | [`lane`], [`batch`], [`files`], [`calls`] | clients, and what must come out |
//! | [`settled`] | what must hold after each round |
//! | [`journal`], [`table`] | what happened |

pub mod batch;
pub mod calls;
pub mod disk;
pub mod files;
pub mod inject;
pub mod journal;
pub mod lane;
pub mod network;
pub mod options;
pub mod plan;
pub mod recorder;
mod run;
pub mod sandbox;
pub mod settled;
pub mod system;
pub mod table;

pub use options::Options;
pub use run::{Report, run};
pub use sandbox::Sandbox;
