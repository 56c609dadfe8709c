//! What is counted of clients' calls.

use super::{One, Two};
use crate::grpc::status::REASONS;
use std::time::Duration;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use tranche_ops::prometheus_client::metrics::counter::Counter;
use tranche_ops::prometheus_client::metrics::family::Family;
use tranche_ops::prometheus_client::metrics::histogram::Histogram;
use tranche_ops::prometheus_client::registry::{Registry, Unit};
use tranche_ops::seconds;

/// The methods that are counted, with their paths. A test compares it with the protos.
pub(crate) const METHODS: [(&str, &str); 15] = [
    ("CreateBatch", "/tranche.v1.BatchService/CreateBatch"),
    ("AppendTasks", "/tranche.v1.BatchService/AppendTasks"),
    ("SealBatch", "/tranche.v1.BatchService/SealBatch"),
    ("GetBatch", "/tranche.v1.BatchService/GetBatch"),
    ("ListBatches", "/tranche.v1.BatchService/ListBatches"),
    ("WatchBatch", "/tranche.v1.BatchService/WatchBatch"),
    ("CommitBatch", "/tranche.v1.BatchService/CommitBatch"),
    ("CancelBatch", "/tranche.v1.BatchService/CancelBatch"),
    ("RetryFailed", "/tranche.v1.BatchService/RetryFailed"),
    ("ListFailures", "/tranche.v1.BatchService/ListFailures"),
    ("DeleteBatch", "/tranche.v1.BatchService/DeleteBatch"),
    ("ListWorkers", "/tranche.v1.AdminService/ListWorkers"),
    ("ListCoordinators", "/tranche.v1.AdminService/ListCoordinators"),
    ("ListLeases", "/tranche.v1.AdminService/ListLeases"),
    ("Attach", "/tranche.v1.WorkerService/Attach"),
];

/// A method's name among the labels, by its path.
fn method(path: &str) -> &'static str {
    METHODS.iter().find(|(_, of)| *of == path).map_or("other", |(name, _)| name)
}

/// A code as gRPC writes it.
pub(crate) fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// What is counted of clients' calls.
#[derive(Clone, Debug)]
pub struct CallMetrics {
    calls: Family<Two, Counter>,
    refused: Family<One, Counter>,
    seconds: Family<One, Histogram, fn() -> Histogram>,
}

impl Default for CallMetrics {
    fn default() -> Self {
        let refused = Family::<One, Counter>::default();
        for reason in REASONS {
            refused.get_or_create_owned(&[("reason", reason)]);
        }
        let seconds = Family::new_with_constructor(seconds as fn() -> Histogram);
        Self { calls: Family::default(), refused, seconds }
    }
}

impl CallMetrics {
    /// A call began to be answered after this time.
    pub(crate) fn answered(&self, method: &'static str, took: Duration) {
        self.seconds.get_or_create(&[("method", method)]).observe(took.as_secs_f64());
    }

    /// A call, or a stream, ended; without a status its client went away.
    pub(crate) fn ended(&self, method: &'static str, status: Option<&Status>) {
        let code = status.map_or(Code::Cancelled, Status::code);
        self.calls.get_or_create(&[("method", method), ("code", code_name(code))]).inc();
        let Some(status) = status.filter(|status| status.code() != Code::Ok) else { return };
        let details = status.get_error_details();
        let reason =
            details.error_info().and_then(|info| REASONS.iter().find(|known| **known == info.reason));
        self.refused.get_or_create(&[("reason", reason.copied().unwrap_or("OTHER"))]).inc();
    }

    /// The same, by path.
    pub(crate) fn method(path: &str) -> &'static str {
        method(path)
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "calls",
            "Calls and streams that ended, by method and gRPC code; CANCELLED: the client went away",
            self.calls.clone(),
        );
        registry.register(
            "refused_calls",
            "Calls and streams that ended with an error, by the reason that the client is told",
            self.refused.clone(),
        );
        registry.register_with_unit(
            "call",
            "Time until a call was answered, or a stream began to be, by method",
            Unit::Seconds,
            self.seconds.clone(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;

    #[test]
    fn every_method_of_the_protos_is_counted_under_its_name() {
        let set =
            prost_types::FileDescriptorSet::decode(tranche_proto::FILE_DESCRIPTOR_SET).expect("our own");
        let mut paths = Vec::new();
        for file in set.file.iter().filter(|file| file.package() == "tranche.v1") {
            for service in &file.service {
                paths.extend(
                    service.method.iter().map(|m| format!("/tranche.v1.{}/{}", service.name(), m.name())),
                );
            }
        }
        let mut known: Vec<String> = METHODS.iter().map(|(_, path)| (*path).to_owned()).collect();
        paths.sort();
        known.sort();
        assert_eq!(paths, known);
        for (name, path) in METHODS {
            assert!(path.ends_with(&format!("/{name}")));
            assert_eq!(method(path), name);
        }
        assert_eq!(method("/x/y"), "other", "whatever a client asks for, labels are few");
    }
}
