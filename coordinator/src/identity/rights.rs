//! Which role may make which call.

use super::{Role, Roles};
use tranche_proto::Rpc;

/// The roles that may make this call.
///
/// The enum is generated from the protos: an RPC that has no line here doesn't compile, and a wildcard is refused by
/// clippy. `docs/security.md` has the same table, which a test compares.
#[deny(clippy::wildcard_enum_match_arm, clippy::match_wildcard_for_single_variants)]
pub const fn holders(rpc: Rpc) -> &'static [Role] {
    match rpc {
        Rpc::CreateBatch
        | Rpc::AppendTasks
        | Rpc::SealBatch
        | Rpc::CommitBatch
        | Rpc::CancelBatch
        | Rpc::RetryFailed
        | Rpc::DeleteBatch => &[Role::Submitter, Role::Admin],
        Rpc::GetBatch | Rpc::ListBatches | Rpc::WatchBatch | Rpc::ListFailures => {
            &[Role::Reader, Role::Admin]
        }
        Rpc::ListWorkers | Rpc::ListCoordinators | Rpc::ListLeases => &[Role::Admin],
        Rpc::Attach => &[Role::Worker],
    }
}

/// Whether another coordinator may pass on this call for somebody else.
#[deny(clippy::wildcard_enum_match_arm, clippy::match_wildcard_for_single_variants)]
pub const fn is_passed_on(rpc: Rpc) -> bool {
    match rpc {
        Rpc::CreateBatch
        | Rpc::AppendTasks
        | Rpc::SealBatch
        | Rpc::RetryFailed
        | Rpc::GetBatch
        | Rpc::WatchBatch
        | Rpc::ListWorkers
        | Rpc::ListCoordinators
        | Rpc::ListLeases => true,
        // Each coordinator answers these itself.
        Rpc::CommitBatch
        | Rpc::CancelBatch
        | Rpc::DeleteBatch
        | Rpc::ListBatches
        | Rpc::ListFailures
        | Rpc::Attach => false,
    }
}

/// Whether somebody with these roles may make this call.
pub fn allowed(roles: Roles, rpc: Rpc) -> bool {
    holders(rpc).iter().any(|role| roles.has(*role))
}
