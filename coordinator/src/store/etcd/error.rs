//! What an error of the client means: wasn't it sent, was the answer lost, or can it never work?

use crate::store::StoreError;
use etcd_client::Error;
use std::error::Error as _;
use tonic::Code;

/// Why a call failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// It never reached a server.
    NotSent(String),
    /// It may have reached one; a change may have been made, or may yet be made.
    Lost(String),
    /// The revision asked for is compacted away.
    Compacted(String),
    /// The lease is gone.
    NoLease(String),
    /// The space that etcd may take is used up.
    Full(String),
    /// etcd doesn't take who we say that we are: nothing was done. It may once the files change, or etcd.
    Denied(String),
    /// It can't ever work.
    Refused(String),
    /// Stored bytes are not ours.
    Corrupt {
        /// The key.
        key: String,
        /// What is wrong.
        message: String,
    },
}

impl Failure {
    /// For a call that changes nothing.
    pub(super) fn of_read(self) -> StoreError {
        match self {
            Self::NotSent(message)
            | Self::Lost(message)
            | Self::Compacted(message)
            | Self::Denied(message) => StoreError::Unavailable(message),
            Self::Full(message) => StoreError::Full(message),
            Self::NoLease(message) | Self::Refused(message) => StoreError::Rejected(message),
            Self::Corrupt { key, message } => StoreError::Corrupt { key, message },
        }
    }

    /// For a call that changes something.
    pub(super) fn of_change(self) -> StoreError {
        match self {
            Self::Lost(message) => StoreError::Unknown(message),
            other => other.of_read(),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match &error {
            Error::GRpcStatus(status) => of_status(status),
            Error::InvalidArgs(_)
            | Error::InvalidUri(_)
            | Error::InvalidMetadataValue(_)
            | Error::EndpointsNotManaged => Self::Refused(error.to_string()),
            // The client says so when a keep-alive is answered with no time to live.
            Error::LeaseKeepAliveError(text) if text.contains("lease not found") => {
                Self::NoLease(error.to_string())
            }
            // An endpoint that can't be used, for example one without a scheme that TLS needs.
            Error::TransportError(_) | Error::EndpointError(_) => Self::NotSent(error.to_string()),
            Error::IoError(_)
            | Error::WatchError(_)
            | Error::Utf8Error(_)
            | Error::LeaseKeepAliveError(_)
            | Error::ElectError(_)
            | Error::Internal(_) => Self::Lost(error.to_string()),
        }
    }
}

/// What etcd says, as INVALID_ARGUMENT, of credentials that it doesn't take.
const DENIED: [&str; 3] = ["authentication failed", "user name is empty", "revision of auth store is old"];

/// Only what is certain is taken for not sent or refused: the rest may have been carried out. (etcd
/// says UNAVAILABLE also for 'request timed out' and 'leader changed', after which a transaction may
/// still be applied; the client says CANCELLED for its own time limit.)
fn of_status(status: &tonic::Status) -> Failure {
    let message = format!("{}: {}", status.code(), status.message());
    match status.code() {
        Code::Unavailable if never_connected(status) => Failure::NotSent(message),
        // Said by a member before it proposes anything.
        Code::ResourceExhausted if status.message().contains("too many requests") => {
            Failure::NotSent(message)
        }
        Code::ResourceExhausted if status.message().contains("space exceeded") => Failure::Full(message),
        Code::OutOfRange if status.message().contains("compacted") => Failure::Compacted(message),
        Code::NotFound if status.message().contains("lease not found") => Failure::NoLease(message),
        // A password or a token that is another by now; a token from before a change of users.
        Code::Unauthenticated => Failure::Denied(message),
        Code::InvalidArgument if DENIED.iter().any(|text| status.message().contains(text)) => {
            Failure::Denied(message)
        }
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented => Failure::Refused(message),
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => Failure::Lost(message),
    }
}

/// Whether the connection that the call needed could not be made.
fn never_connected(status: &tonic::Status) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meaning(code: Code, message: &str) -> StoreError {
        Failure::from(Error::GRpcStatus(tonic::Status::new(code, message))).of_change()
    }

    #[test]
    fn a_change_is_lost_unless_it_is_certain() {
        for (code, message) in [
            (Code::Cancelled, "Timeout expired"),
            (Code::Unavailable, "etcdserver: request timed out"),
            (Code::Unavailable, "etcdserver: leader changed"),
            (Code::Unknown, "transport error"),
            (Code::DeadlineExceeded, ""),
        ] {
            assert!(matches!(meaning(code, message), StoreError::Unknown(_)), "{code} {message}");
        }
        for (code, message) in [
            (Code::InvalidArgument, "etcdserver: request is too large"),
            (Code::NotFound, "etcdserver: requested lease not found"),
            (Code::PermissionDenied, "etcdserver: permission denied"),
        ] {
            assert!(matches!(meaning(code, message), StoreError::Rejected(_)), "{code} {message}");
        }
        for (code, message) in [
            (Code::Unauthenticated, "etcdserver: invalid auth token"),
            (Code::InvalidArgument, "etcdserver: authentication failed, invalid user ID or password"),
        ] {
            assert!(matches!(meaning(code, message), StoreError::Unavailable(_)), "{code} {message}");
        }
        let full = meaning(Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded");
        assert!(matches!(full, StoreError::Full(_)));
        let busy = meaning(Code::ResourceExhausted, "etcdserver: too many requests");
        assert!(matches!(busy, StoreError::Unavailable(_)));
    }

    #[test]
    fn a_lost_read_changed_nothing() {
        let lost = Failure::from(Error::GRpcStatus(tonic::Status::cancelled("Timeout expired")));
        assert!(matches!(lost.of_read(), StoreError::Unavailable(_)));
    }
}
