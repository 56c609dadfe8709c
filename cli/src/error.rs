//! Errors for people: what, why, and which command comes next.

use std::error::Error as StdError;
use std::fmt;

use serde_json::json;
use tonic::Code;
use tranche_client::{Error as ClientError, names};

use crate::args::Output;
use crate::exit;

/// What ends a command before its end.
#[derive(Debug)]
pub(crate) struct CliError {
    /// One line, lower case, with its causes.
    pub(crate) message: String,
    /// Details, a line each.
    pub(crate) details: Vec<String>,
    /// What to do next.
    pub(crate) hint: Option<String>,
    /// The gRPC code and the reason, if the service said them.
    pub(crate) code: Option<(Code, Option<String>)>,
    pub(crate) exit: i32,
}

pub(crate) type Result<T, E = CliError> = std::result::Result<T, E>;

impl CliError {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), details: Vec::new(), hint: None, code: None, exit: exit::ERROR }
    }

    /// Wrong arguments that clap can't see.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self { exit: exit::USAGE, ..Self::new(message) }
    }

    /// With the causes of `error` behind `message`.
    pub(crate) fn caused(message: impl fmt::Display, error: &(dyn StdError + 'static)) -> Self {
        Self::new(format!("{message}: {}", chain(error)))
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// A failed call, with a hint that names the batch.
    pub(crate) fn of_batch(name: &str, error: ClientError) -> Self {
        let id = names::batch_id(name).to_owned();
        let mut made = Self::from(error);
        let Some((code, reason)) = &made.code else { return made };
        let hint = match (code, reason.as_deref()) {
            (_, Some("ALREADY_DECIDED")) => Some(format!("`tranche get {id}` shows the decision")),
            (Code::NotFound, _) => Some("`tranche list` shows the batches".to_owned()),
            (Code::FailedPrecondition, _) => Some(format!("`tranche get {id}` shows where the batch stands")),
            _ => None,
        };
        made.hint = hint.or(made.hint);
        made
    }

    /// Whether this is only a reader that went away, as in `tranche list | head`.
    pub(crate) fn print(&self, output: Output) {
        if self.message.is_empty() {
            return;
        }
        if output == Output::Json {
            let (code, reason) = match &self.code {
                Some((code, reason)) => (Some(code_name(*code)), reason.clone()),
                None => (None, None),
            };
            let error = json!({"error": {"message": self.message, "details": self.details, "hint": self.hint,
                "code": code, "reason": reason}});
            eprintln!("{error}");
            return;
        }
        eprintln!("error: {}", crate::output::printable(&self.message));
        for detail in &self.details {
            eprintln!("  {}", crate::output::printable(detail));
        }
        if let Some(hint) = &self.hint {
            eprintln!("hint: {hint}");
        }
    }
}

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> Self {
        let mut made = Self::new(chain(&error));
        made.code = matches!(error, ClientError::Call { .. }).then(|| (error.code(), error.reason()));
        made.details = error.violations().iter().map(|v| format!("{}: {}", v.field, v.description)).collect();
        made.hint = match (&error, error.code(), error.reason().as_deref()) {
            (ClientError::Connect { .. } | ClientError::Url { .. }, ..) => Some(
                "name a coordinator with --coordinator URL or TRANCHE_COORDINATOR; \
                 `tranche import SRC --into LIB` needs none"
                    .to_owned(),
            ),
            (_, Code::Unimplemented, _) => {
                Some("is this a coordinator of another version? `tranche coordinators`".to_owned())
            }
            (_, _, Some("UNKNOWN_HANDLER" | "NO_HANDLER")) => {
                Some("`tranche workers` shows which handlers there are".to_owned())
            }
            (_, Code::AlreadyExists, _) => {
                Some("another --request-id, or none, makes a new batch".to_owned())
            }
            _ => None,
        };
        made
    }
}

impl From<std::io::Error> for CliError {
    fn from(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            // Whoever read the output has enough: no error, nothing to say.
            return Self { exit: exit::OK, ..Self::new("") };
        }
        Self::new(error.to_string())
    }
}

/// The error and its causes in one line, each said once.
pub(crate) fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

/// The code's name in the protocol, such as `NOT_FOUND`.
fn code_name(code: Code) -> String {
    let mut name = String::new();
    for (n, letter) in format!("{code:?}").chars().enumerate() {
        if n > 0 && letter.is_uppercase() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_the_names_of_the_protocol() {
        assert_eq!(code_name(Code::NotFound), "NOT_FOUND");
        assert_eq!(code_name(Code::FailedPrecondition), "FAILED_PRECONDITION");
        assert_eq!(code_name(Code::Ok), "OK");
    }

    #[test]
    fn causes_are_said_once() {
        let cause = std::io::Error::other("disk is full");
        assert_eq!(CliError::caused("cannot write", &cause).message, "cannot write: disk is full");
        let source = ClientError::Source("m.csv: line 3: field `size`: no".into());
        assert_eq!(CliError::from(source).message, "reading the tasks: m.csv: line 3: field `size`: no");
    }
}
