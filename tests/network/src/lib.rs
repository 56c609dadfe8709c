//! Tranche over a simulated network: the real gRPC bytes, seeded faults, virtual time.
//!
//! Coordinators, workers and clients run their real code, down to HTTP/2; only TCP is turmoil's, and etcd is
//! a fake one ([`etcd`]) that speaks etcd's protocol. turmoil loses what it drops for good (there is no
//! retransmission), so that a connection that lost a byte is silent for ever: worse than any real network,
//! and just what HTTP/2's keep-alive is there for.
//!
//! ```text
//!   client ──gRPC──► coordinator-1..3 ──gRPC──► etcd (fake)
//!                       ▲  lease stream
//!   worker-1..3 ────────┘
//! ```
//!
//! A [`plan::Plan`] is drawn from a seed, [`run::run`] runs it. The order of events isn't wholly the seed's:
//! `select!` and hash maps draw from elsewhere, so that a seed that failed may have to run a few times.

pub mod check;
pub mod client;
pub mod cluster;
pub mod etcd;
pub mod hosts;
pub mod library;
pub mod log;
pub mod plan;
pub mod run;
pub mod seeds;
pub mod stats;
pub mod wire;
