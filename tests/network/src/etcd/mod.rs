//! A fake etcd: the part of its v3 API that the coordinators' store uses, in memory, over real gRPC.
//!
//! [`Data`] is what a member's disk holds, and outlives the host's crashes; [`serve`] is the process. It
//! is one member that is always its own leader: linearizable, as three would be, without their elections.

mod data;
mod serve;

pub use data::{Change, Data};
pub use serve::{PORT, serve};

/// The messages of etcd's API.
#[allow(
    missing_docs,
    clippy::pedantic,
    clippy::enum_variant_names,
    unreachable_pub,
    reason = "generated; etcd documents it"
)]
pub(crate) mod pb {
    tonic::include_proto!("etcdserverpb");
}
