//! Errors of one task, of a lease, of a target.

use crate::handler::HandlerError;
use crate::handlers::params::ParamError;
use std::fmt::Display;
use std::io;

/// Why one task can't be staged.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct TaskFail {
    pub(super) code: &'static str,
    pub(super) message: String,
}

impl TaskFail {
    pub(super) fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// Why a task was not staged.
#[derive(Debug)]
pub(super) enum StageError {
    /// This task alone.
    Task(TaskFail),
    /// The lease as a whole.
    Lease(HandlerError),
}

impl From<TaskFail> for StageError {
    fn from(fail: TaskFail) -> Self {
        Self::Task(fail)
    }
}

impl From<HandlerError> for StageError {
    fn from(error: HandlerError) -> Self {
        Self::Lease(error)
    }
}

/// Why a batch's folders can't be opened.
#[derive(Debug)]
pub(super) enum OpenError {
    /// A parameter is wrong.
    Param(ParamError),
    /// It may work later.
    Handler(HandlerError),
}

impl From<ParamError> for OpenError {
    fn from(error: ParamError) -> Self {
        Self::Param(error)
    }
}

impl From<HandlerError> for OpenError {
    fn from(error: HandlerError) -> Self {
        Self::Handler(error)
    }
}

/// Says what was being done when the disk failed. Nothing tells a full or broken disk from one that
/// will do better later, so all of it can be tried again.
pub(super) fn disk(doing: &str, what: impl Display) -> impl FnOnce(io::Error) -> HandlerError {
    move |error| HandlerError::Retryable(format!("{doing} `{what}`: {error}"))
}

/// Whether cap-std refused to leave its folder. The kernel's own refusals carry a number.
pub(super) fn escapes(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied && error.raw_os_error().is_none()
}
