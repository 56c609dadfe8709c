//! Reads a target's parameters; unknown ones are refused.

use std::collections::BTreeMap;

/// A parameter is wrong; every task of a lease fails with [`INVALID_TARGET`] then.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("param `{param}` = {value:?}: {rule}")]
pub(crate) struct ParamError {
    /// The parameter.
    pub(crate) param: String,
    /// Its value.
    pub(crate) value: String,
    /// What it must be.
    pub(crate) rule: String,
}

/// The code of every task of a lease whose target is wrong.
pub(crate) const INVALID_TARGET: &str = "INVALID_TARGET";

impl ParamError {
    pub(crate) fn new(param: &str, value: impl ToString, rule: impl Into<String>) -> Self {
        Self { param: param.to_owned(), value: value.to_string(), rule: rule.into() }
    }
}

/// Refuses parameters that aren't among `known`.
pub(crate) fn refuse_unknown(params: &BTreeMap<String, String>, known: &[&str]) -> Result<(), ParamError> {
    match params.iter().find(|(name, _)| !known.contains(&name.as_str())) {
        None => Ok(()),
        Some((name, value)) => {
            Err(ParamError::new(name, value, format!("unknown; known are {}", known.join(", "))))
        }
    }
}
