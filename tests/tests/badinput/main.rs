//! Bad input: each is refused with an error that names the field and the value, and changes nothing.

mod calls;
mod disk;
mod files;
mod start;
mod stream;

use tranche_client::{Error, v1};
use tranche_tests::Cluster;

/// Asserts code and reason of a refusal, and that these texts are in its message.
#[track_caller]
fn refused<T: std::fmt::Debug>(
    answer: Result<T, Error>,
    code: tonic::Code,
    reason: &str,
    texts: &[&str],
) -> Error {
    let error = answer.expect_err("it must be refused");
    assert_eq!((error.code(), error.reason().as_deref()), (code, Some(reason)), "{error}");
    for text in texts {
        assert!(error.to_string().contains(text), "{text:?} isn't in: {error}");
    }
    error
}

/// Asserts that the refusal names this field, and says these texts of it.
#[track_caller]
fn names(error: &Error, field: &str, texts: &[&str]) {
    let violations = error.violations();
    let found = violations.iter().find(|violation| violation.field == field);
    let description = &found.unwrap_or_else(|| panic!("{field} isn't named: {violations:?}")).description;
    for text in texts {
        assert!(description.contains(text), "{text:?} isn't said of {field}: {description}");
    }
}

/// Asserts that a field of a call is invalid.
#[track_caller]
fn invalid<T: std::fmt::Debug>(answer: Result<T, Error>, field: &str, texts: &[&str]) {
    let error = refused(answer, tonic::Code::InvalidArgument, "INVALID_ARGUMENT", &[field]);
    names(&error, field, texts);
}

async fn create(cluster: &Cluster, batch: v1::Batch) -> Result<v1::Batch, Error> {
    cluster.client().create(v1::CreateBatchRequest { batch: Some(batch), ..Default::default() }).await
}
