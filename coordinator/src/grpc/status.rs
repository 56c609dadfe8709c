//! The one table from [`Error`] to what a client gets.
//!
//! Every status carries a `google.rpc.ErrorInfo` of the domain `tranche`, whose reason programs can match;
//! wrong fields are a `google.rpc.BadRequest`; what may work later carries a `google.rpc.RetryInfo`.

use crate::config::Rate;
use crate::error::Error;
use crate::identity::{Identity, rights};
use crate::store::StoreError;
use std::collections::HashMap;
use std::time::Duration;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};
use tranche_proto::Rpc;

/// The domain of every reason.
pub const DOMAIN: &str = "tranche";

/// After a hand-over the batch has an owner again about this soon.
const RETRY_SOON: Duration = Duration::from_millis(200);
/// What is behind an unreachable store or storage rarely heals faster.
const RETRY_LATER: Duration = Duration::from_secs(1);

/// Every reason that a client may be told.
pub(crate) const REASONS: [&str; 23] = [
    "INVALID_ARGUMENT",
    "BATCH_NOT_FOUND",
    "ALREADY_DECIDED",
    "WRONG_STATE",
    "REQUEST_ID_REUSED",
    "TOTAL_MISMATCH",
    "APPEND_GAP",
    "APPEND_OVERTAKEN",
    "BATCH_SEALED",
    "APPEND_IDLE",
    "NO_OWNER",
    "SHUTTING_DOWN",
    "STORE_UNAVAILABLE",
    "STORE_OUTCOME_UNKNOWN",
    "STORE_FULL",
    "STORE_REJECTED",
    "DAMAGED",
    "OBJECTS_UNAVAILABLE",
    "OVERLOADED",
    "RATE_LIMITED",
    "QUOTA_EXCEEDED",
    "REQUEST_TIMEOUT",
    // Of an error that has no reason of ours.
    "OTHER",
];

/// What becomes of an error.
struct Row {
    code: Code,
    reason: &'static str,
    metadata: Vec<(&'static str, String)>,
    retry: Option<Duration>,
}

fn row<const N: usize>(code: Code, reason: &'static str, metadata: [(&'static str, String); N]) -> Row {
    Row { code, reason, metadata: metadata.into(), retry: None }
}

impl Row {
    fn again(self, after: Duration) -> Self {
        Self { retry: Some(after), ..self }
    }
}

/// `Err`: it is a status already.
fn table(error: &Error) -> Result<Row, &Status> {
    let row = match error {
        Error::Answered(status) => return Err(status),
        Error::Invalid(_) => row(Code::InvalidArgument, "INVALID_ARGUMENT", []),
        Error::NotFound(batch) => row(Code::NotFound, "BATCH_NOT_FOUND", [("batch", batch.to_string())]),
        Error::AlreadyDecided { batch, outcome, reason } => row(
            Code::FailedPrecondition,
            "ALREADY_DECIDED",
            [
                ("batch", batch.to_string()),
                ("outcome", outcome.as_str_name().to_owned()),
                ("reason", reason.as_str_name().to_owned()),
            ],
        ),
        Error::WrongState { batch, state, .. } => row(
            Code::FailedPrecondition,
            "WRONG_STATE",
            [("batch", batch.to_string()), ("state", state.as_str_name().to_owned())],
        ),
        Error::RequestReused { request_id, batch } => row(
            Code::AlreadyExists,
            "REQUEST_ID_REUSED",
            [("batch", batch.to_string()), ("request_id", request_id.clone())],
        ),
        Error::TotalMismatch { batch, said, durable } => row(
            Code::FailedPrecondition,
            "TOTAL_MISMATCH",
            [
                ("batch", batch.to_string()),
                ("total", said.to_string()),
                ("durable_through", durable.to_string()),
            ],
        ),
        // Not FAILED_PRECONDITION: this is a write beyond the end, which the code's definition names, and
        // a client that goes through the sequence can look for exactly this code.
        Error::Gap { batch, expected, got } => row(
            Code::OutOfRange,
            "APPEND_GAP",
            [
                ("batch", batch.to_string()),
                ("expected_sequence", expected.to_string()),
                ("first_sequence", got.to_string()),
            ],
        ),
        // ABORTED, which the code's definition gives to conflicts of concurrent calls: a client whose stream
        // broke may meet what that one left behind, and resumes.
        Error::Overtaken { batch, durable } => row(
            Code::Aborted,
            "APPEND_OVERTAKEN",
            [("batch", batch.to_string()), ("durable_through", durable.to_string())],
        )
        .again(RETRY_SOON),
        Error::Sealed { batch, total } => row(
            Code::FailedPrecondition,
            "BATCH_SEALED",
            [("batch", batch.to_string()), ("total", total.to_string())],
        ),
        Error::NotOwned { batch } => {
            row(Code::Unavailable, "NO_OWNER", [("batch", batch.to_string())]).again(RETRY_SOON)
        }
        Error::Busy { limit, .. } => {
            row(Code::ResourceExhausted, "OVERLOADED", [("limit", limit.to_string())]).again(RETRY_LATER)
        }
        Error::Quota { of, what, limit, setting, passes } => {
            let metadata = [
                ("of", of.clone()),
                ("what", (*what).to_owned()),
                ("limit", limit.to_string()),
                ("setting", (*setting).to_owned()),
            ];
            let row = row(Code::ResourceExhausted, "QUOTA_EXCEEDED", metadata);
            // Without a time to wait clients don't try again: somebody has to do something first.
            if *passes { row.again(RETRY_LATER) } else { row }
        }
        Error::ShuttingDown => row(Code::Unavailable, "SHUTTING_DOWN", []).again(RETRY_SOON),
        Error::Store(StoreError::Unavailable(_)) => {
            row(Code::Unavailable, "STORE_UNAVAILABLE", []).again(RETRY_LATER)
        }
        // Also UNAVAILABLE: every call can be repeated, if CreateBatch has a request id.
        Error::Store(StoreError::Unknown(_)) => {
            row(Code::Unavailable, "STORE_OUTCOME_UNKNOWN", []).again(RETRY_LATER)
        }
        Error::Store(StoreError::Full(_)) => {
            row(Code::ResourceExhausted, "STORE_FULL", []).again(RETRY_LATER)
        }
        Error::Store(StoreError::Rejected(_)) => row(Code::Internal, "STORE_REJECTED", []),
        Error::Store(StoreError::Corrupt { .. }) | Error::Damaged { .. } => {
            row(Code::DataLoss, "DAMAGED", [])
        }
        Error::Objects(_) => row(Code::Unavailable, "OBJECTS_UNAVAILABLE", []).again(RETRY_LATER),
    };
    Ok(row)
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let row = match table(&error) {
            Ok(row) => row,
            Err(status) => return status.clone(),
        };
        let violations: Vec<FieldViolation> = match &error {
            Error::Invalid(all) => {
                all.iter().map(|v| FieldViolation::new(&v.field, &v.description)).collect()
            }
            _ => Vec::new(),
        };
        match row.code {
            Code::Internal | Code::DataLoss => tracing::error!(reason = row.reason, %error, "call failed"),
            Code::Unavailable => tracing::debug!(reason = row.reason, %error, "call can be repeated"),
            _ => {}
        }
        build(row, violations, error.to_string())
    }
}

/// Somebody makes too many calls.
pub(crate) fn rate_limited(caller: &str, rate: Rate, wait: Duration) -> Status {
    let metadata = [
        ("caller", caller.to_owned()),
        ("limit", rate.per_second.to_string()),
        ("burst", rate.burst.to_string()),
    ];
    let row = row(Code::ResourceExhausted, "RATE_LIMITED", metadata).again(wait);
    let message = format!(
        "too many calls by {caller}: {} a second are let in, and {} at once; try again in {wait:?}, make fewer, or have \
         max_calls_per_second raised",
        rate.per_second, rate.burst
    );
    build(row, Vec::new(), message)
}

/// A unary call took too long.
pub(crate) fn timed_out(limit: Duration) -> Status {
    let row = row(Code::DeadlineExceeded, "REQUEST_TIMEOUT", []).again(RETRY_LATER);
    build(row, Vec::new(), format!("call took longer than {limit:?}"))
}

/// An append stream brought nothing for long.
pub(crate) fn append_idle(limit: Duration) -> Status {
    let row = row(Code::Aborted, "APPEND_IDLE", []).again(RETRY_SOON);
    let text = format!(
        "nothing came on this stream for {limit:?}, the limit is append_idle_timeout; open another when there is more"
    );
    build(row, Vec::new(), text)
}

/// Nobody known calls.
pub(crate) fn unauthenticated(reason: &'static str, message: &str) -> Status {
    build(row(Code::Unauthenticated, reason, []), Vec::new(), message.to_owned())
}

/// Somebody known calls what isn't theirs to call.
pub(crate) fn role_missing(rpc: Rpc, identity: &Identity) -> Status {
    let needed = rights::holders(rpc).iter().map(|role| role.name()).collect::<Vec<_>>().join(" or ");
    let metadata = [("rpc", rpc.name()), ("identity", identity.name.to_string()), ("role", needed.clone())];
    let message = format!("{} may not call {}: it needs the role {needed}", identity.name, rpc.name());
    build(row(Code::PermissionDenied, "ROLE_MISSING", metadata), Vec::new(), message)
}

/// Somebody passes on a call who isn't a coordinator, or not as coordinators do.
pub(crate) fn not_a_replica(identity: &Identity) -> Status {
    let metadata = [("identity", identity.name.to_string())];
    let message = format!("{} may not call for others: only coordinators (role replica) do", identity.name);
    build(row(Code::PermissionDenied, "NOT_A_REPLICA", metadata), Vec::new(), message)
}

/// A request names another namespace than its caller's.
pub(crate) fn namespace_denied(namespace: &str, identity: &Identity) -> Status {
    let metadata = [("identity", identity.name.to_string()), ("namespace", identity.scope.to_string())];
    let message = format!(
        "namespace {namespace:?} isn't that of {}: leave it out, or name {}",
        identity.name, identity.scope
    );
    build(row(Code::PermissionDenied, "NAMESPACE_DENIED", metadata), Vec::new(), message)
}

fn build(row: Row, violations: Vec<FieldViolation>, message: String) -> Status {
    let metadata: HashMap<String, String> =
        row.metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    let mut details = ErrorDetails::with_error_info(row.reason, DOMAIN, metadata);
    if !violations.is_empty() {
        details.set_bad_request(violations);
    }
    if let Some(after) = row.retry {
        details.set_retry_info(Some(after));
    }
    Status::with_error_details(row.code, message, details)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Violation;
    use crate::store::keys::BatchKey;
    use tranche_proto::v1::batch::State;
    use tranche_proto::v1::decision::{Outcome, Reason};

    const QUOTA: &str = "limit=7 of=namespaces/ns setting=max_x what=things";

    fn quota(passes: bool) -> Error {
        Error::Quota { of: "namespaces/ns".into(), what: "things", limit: 7, setting: "max_x", passes }
    }

    #[test]
    fn each_error_has_its_code_reason_and_metadata() {
        let batch = BatchKey::new("ns", "b1");
        let text = || "x".to_owned();
        let cases: Vec<(Error, Code, &str, &str, bool)> = vec![
            (
                Error::Invalid(vec![Violation::new("a.b", "is 1"), Violation::new("c", "is 2")]),
                Code::InvalidArgument,
                "INVALID_ARGUMENT",
                "",
                false,
            ),
            (
                Error::NotFound(batch.clone()),
                Code::NotFound,
                "BATCH_NOT_FOUND",
                "batch=namespaces/ns/batches/b1",
                false,
            ),
            (
                Error::AlreadyDecided {
                    batch: batch.clone(),
                    outcome: Outcome::Rollback,
                    reason: Reason::Cancelled,
                },
                Code::FailedPrecondition,
                "ALREADY_DECIDED",
                "batch=namespaces/ns/batches/b1 outcome=OUTCOME_ROLLBACK reason=REASON_CANCELLED",
                false,
            ),
            (
                Error::WrongState { batch: batch.clone(), state: State::Held, wanted: "y" },
                Code::FailedPrecondition,
                "WRONG_STATE",
                "batch=namespaces/ns/batches/b1 state=STATE_HELD",
                false,
            ),
            (
                Error::RequestReused { request_id: "r".into(), batch: batch.clone() },
                Code::AlreadyExists,
                "REQUEST_ID_REUSED",
                "batch=namespaces/ns/batches/b1 request_id=r",
                false,
            ),
            (
                Error::TotalMismatch { batch: batch.clone(), said: 4, durable: 3 },
                Code::FailedPrecondition,
                "TOTAL_MISMATCH",
                "batch=namespaces/ns/batches/b1 durable_through=3 total=4",
                false,
            ),
            (
                Error::Gap { batch: batch.clone(), expected: 4, got: 6 },
                Code::OutOfRange,
                "APPEND_GAP",
                "batch=namespaces/ns/batches/b1 expected_sequence=4 first_sequence=6",
                false,
            ),
            (
                Error::Overtaken { batch: batch.clone(), durable: 5 },
                Code::Aborted,
                "APPEND_OVERTAKEN",
                "batch=namespaces/ns/batches/b1 durable_through=5",
                true,
            ),
            (
                Error::Sealed { batch: batch.clone(), total: 9 },
                Code::FailedPrecondition,
                "BATCH_SEALED",
                "batch=namespaces/ns/batches/b1 total=9",
                false,
            ),
            (
                Error::NotOwned { batch },
                Code::Unavailable,
                "NO_OWNER",
                "batch=namespaces/ns/batches/b1",
                true,
            ),
            (Error::Busy { what: "calls", limit: 7 }, Code::ResourceExhausted, "OVERLOADED", "limit=7", true),
            (quota(true), Code::ResourceExhausted, "QUOTA_EXCEEDED", QUOTA, true),
            (quota(false), Code::ResourceExhausted, "QUOTA_EXCEEDED", QUOTA, false),
            (Error::ShuttingDown, Code::Unavailable, "SHUTTING_DOWN", "", true),
            (StoreError::Unavailable(text()).into(), Code::Unavailable, "STORE_UNAVAILABLE", "", true),
            (StoreError::Unknown(text()).into(), Code::Unavailable, "STORE_OUTCOME_UNKNOWN", "", true),
            (StoreError::Full(text()).into(), Code::ResourceExhausted, "STORE_FULL", "", true),
            (StoreError::Rejected(text()).into(), Code::Internal, "STORE_REJECTED", "", false),
            (
                StoreError::Corrupt { key: text(), message: text() }.into(),
                Code::DataLoss,
                "DAMAGED",
                "",
                false,
            ),
            (Error::Objects(text()), Code::Unavailable, "OBJECTS_UNAVAILABLE", "", true),
            (Error::Damaged { what: text(), message: text() }, Code::DataLoss, "DAMAGED", "", false),
        ];
        for (error, code, reason, metadata, retry) in cases {
            let status = Status::from(error.clone());
            assert_eq!(status.code(), code, "{error}");
            assert_eq!(status.message(), error.to_string());
            let details = status.get_error_details();
            let info = details.error_info().expect("always there");
            assert_eq!((info.reason.as_str(), info.domain.as_str()), (reason, DOMAIN));
            assert!(REASONS.contains(&reason), "{reason} isn't counted");
            let mut found: Vec<_> =
                info.metadata.iter().map(|(key, value)| format!("{key}={value}")).collect();
            found.sort();
            assert_eq!(found.join(" "), metadata, "{error}");
            assert_eq!(details.retry_info().is_some(), retry, "{error}");
            let bad = details.bad_request().map(|bad| bad.field_violations.clone()).unwrap_or_default();
            let bad: Vec<_> = bad.into_iter().map(|v| Violation::new(v.field, v.description)).collect();
            assert_eq!(bad, if let Error::Invalid(all) = error { all } else { vec![] });
        }
    }

    #[test]
    fn what_an_owner_answered_goes_on_unchanged() {
        let batch = BatchKey::new("ns", "b1");
        let told = Status::from(Error::Gap { batch, expected: 4, got: 6 });
        let passed = Status::from(Error::Answered(Box::new(told.clone())));
        assert_eq!(
            (passed.code(), passed.message(), passed.details()),
            (told.code(), told.message(), told.details())
        );
    }

    #[test]
    fn what_never_reached_the_node_has_details_too() {
        let status = rate_limited("ci", Rate { per_second: 7, burst: 9, fleet: 9 }, Duration::from_secs(1));
        assert_eq!(status.code(), Code::ResourceExhausted);
        let details = status.get_error_details();
        assert_eq!(details.error_info().expect("there").reason, "RATE_LIMITED");
        assert!(details.retry_info().is_some());
        let status = timed_out(Duration::from_secs(3));
        assert_eq!(status.code(), Code::DeadlineExceeded);
        assert_eq!(status.get_error_details().error_info().expect("there").reason, "REQUEST_TIMEOUT");
    }
}
