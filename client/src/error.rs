//! What can go wrong, in words that programs can match.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::StatusExt;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The URL is none that a client can connect to.
    #[error("{url:?} is not a coordinator's URL (such as http://127.0.0.1:7070)")]
    Url {
        /// The URL as given.
        url: String,
        /// Why.
        #[source]
        source: tranche_tls::UrlError,
    },
    /// No connection.
    #[error("cannot connect to {url}")]
    Connect {
        /// The URL as given.
        url: String,
        /// Why.
        #[source]
        source: tonic::transport::Error,
    },
    /// The service refused, or the connection broke under the call.
    #[error("{call}: {}", .status.message())]
    Call {
        /// The method, such as `CreateBatch`.
        call: &'static str,
        /// The answer.
        status: Box<Status>,
    },
    /// A task is larger than the service takes. Nothing of it was sent.
    #[error("task {sequence} ({key:?}): its {field} has {size} bytes, the most is {limit}")]
    TaskTooLarge {
        /// The task.
        sequence: i64,
        /// Its key, cut to 80 characters.
        key: String,
        /// `key` or `payload`.
        field: &'static str,
        /// Its size in bytes.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The service says that fewer tasks are durable than it acknowledged before. Never to be retried:
    /// the client no longer has the tasks.
    #[error("{batch}: tasks through {acknowledged} were acknowledged, now only {durable} are durable")]
    LostTasks {
        /// The batch.
        batch: String,
        /// The highest acknowledgement.
        acknowledged: i64,
        /// What the service says now.
        durable: i64,
    },
    /// The caller's source of tasks failed.
    #[error("reading the tasks")]
    Source(#[source] Box<dyn StdError + Send + Sync>),
}

/// A field that the service found wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldViolation {
    /// Path of the field, such as `batch.targets[0].handler`.
    pub field: String,
    /// What is wrong with it.
    pub description: String,
}

impl Error {
    pub(crate) fn call(call: &'static str, status: Status) -> Self {
        Self::Call { call, status: Box::new(status) }
    }

    /// The gRPC code; what never reached the service has the code that fits best.
    pub fn code(&self) -> Code {
        match self {
            Self::Url { .. } | Self::TaskTooLarge { .. } => Code::InvalidArgument,
            Self::Connect { .. } => Code::Unavailable,
            Self::Call { status, .. } => status.code(),
            Self::LostTasks { .. } => Code::DataLoss,
            Self::Source(_) => Code::Aborted,
        }
    }

    /// The `reason` of the answer's `google.rpc.ErrorInfo`, such as `ALREADY_DECIDED`.
    pub fn reason(&self) -> Option<String> {
        self.status()?.get_details_error_info().map(|info| info.reason)
    }

    /// The `metadata` of the answer's `google.rpc.ErrorInfo`; empty when there is none.
    pub fn metadata(&self) -> HashMap<String, String> {
        self.status()
            .and_then(StatusExt::get_details_error_info)
            .map(|info| info.metadata)
            .unwrap_or_default()
    }

    /// The fields that the service found wrong; empty when it named none.
    pub fn violations(&self) -> Vec<FieldViolation> {
        self.status().and_then(StatusExt::get_details_bad_request).map_or_else(Vec::new, |bad| {
            let fields = bad.field_violations.into_iter();
            fields.map(|v| FieldViolation { field: v.field, description: v.description }).collect()
        })
    }

    /// Whether the same call may succeed later: the service is away or busy, or the connection broke.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Connect { .. } => true,
            Self::Call { status, .. } => match status.code() {
                Code::Unavailable | Code::DeadlineExceeded | Code::Aborted => true,
                // Without a time to wait it is a quota or a size, and stays so.
                Code::ResourceExhausted => self.retry_delay().is_some(),
                // The next attempt brings the token that is in the file then.
                Code::Unauthenticated => self.reason().as_deref() == Some("CREDENTIAL_EXPIRED"),
                // A connection that breaks under a call has one of these codes, made up on this side
                // from the cause that it carries; the service's own have no cause.
                Code::Unknown | Code::Internal | Code::Cancelled => status.source().is_some(),
                _ => false,
            },
            Self::Url { .. } | Self::TaskTooLarge { .. } | Self::LostTasks { .. } | Self::Source(_) => false,
        }
    }

    /// Whether another coordinator may do better: this one can't be reached, doesn't answer, or can't serve.
    pub(crate) fn moves_on(&self) -> bool {
        let code = self.code();
        self.retryable() && !matches!(code, Code::Aborted | Code::ResourceExhausted)
    }

    /// Whether the call was surely not done: nobody was reached, or the batch had no owner to do it.
    pub(crate) fn not_done(&self) -> bool {
        let mut cause = self.status().and_then(StdError::source);
        while let Some(error) = cause {
            if error.is::<tonic::ConnectError>() {
                return true;
            }
            cause = error.source();
        }
        self.reason().as_deref() == Some("NO_OWNER")
    }

    /// Whether the batch takes no more of this: it was decided meanwhile, or has ended.
    pub(crate) fn is_too_late(&self) -> bool {
        matches!(self.reason().as_deref(), Some("ALREADY_DECIDED" | "WRONG_STATE"))
    }

    /// How long the service asks to wait before the next attempt, if it says.
    pub fn retry_delay(&self) -> Option<Duration> {
        self.status()?.get_details_retry_info()?.retry_delay
    }

    fn status(&self) -> Option<&Status> {
        match self {
            Self::Call { status, .. } => Some(status),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::{ErrorDetails, StatusExt as _};

    use super::*;

    fn with_details(code: Code, details: ErrorDetails) -> Error {
        Error::call("CreateBatch", Status::with_error_details(code, "no", details))
    }

    #[test]
    fn details_are_readable() {
        let mut details = ErrorDetails::new();
        details.set_error_info("UNKNOWN_HANDLER", "tranche", [("handler".to_owned(), "x".to_owned())]);
        details.add_bad_request_violation("batch.targets[0].handler", "nobody announces it");
        let error = with_details(Code::InvalidArgument, details);
        assert_eq!(error.code(), Code::InvalidArgument);
        assert_eq!(error.reason().as_deref(), Some("UNKNOWN_HANDLER"));
        assert_eq!(error.metadata()["handler"], "x");
        assert_eq!(error.violations()[0].field, "batch.targets[0].handler");
        assert!(!error.retryable());
        assert_eq!(error.to_string(), "CreateBatch: no");
    }

    #[test]
    fn only_passing_troubles_are_retryable() {
        for (code, expected) in [
            (Code::Unavailable, true),
            (Code::DeadlineExceeded, true),
            (Code::Aborted, true),
            (Code::ResourceExhausted, false),
            (Code::Internal, false),
            (Code::Unknown, false),
            (Code::NotFound, false),
            (Code::FailedPrecondition, false),
            (Code::InvalidArgument, false),
            (Code::AlreadyExists, false),
        ] {
            assert_eq!(Error::call("GetBatch", Status::new(code, "")).retryable(), expected, "{code:?}");
        }
        let busy = with_details(
            Code::ResourceExhausted,
            ErrorDetails::with_retry_info(Some(Duration::from_millis(20))),
        );
        assert!(busy.retryable());
        assert_eq!(busy.retry_delay(), Some(Duration::from_millis(20)));
        for (reason, expected) in [("CREDENTIAL_EXPIRED", true), ("CREDENTIAL_UNKNOWN", false)] {
            let details = ErrorDetails::with_error_info(reason, "tranche", HashMap::new());
            let error = with_details(Code::Unauthenticated, details);
            assert_eq!((error.retryable(), error.moves_on()), (expected, expected), "{reason}");
        }
        let mut broken = Status::new(Code::Unknown, "transport error");
        broken.set_source(std::sync::Arc::new(std::io::Error::other("reset")));
        assert!(Error::call("GetBatch", broken).retryable());
    }
}
