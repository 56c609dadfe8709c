//! Resource names: `namespaces/{namespace}/batches/{batch}`.

/// In a name: the namespace of whoever calls. That is the credential's, or `default` for who sees all namespaces, and
/// where callers aren't asked who they are.
pub const OWN_NAMESPACE: &str = "-";

/// The full name of a batch that was given by full name or by bare id (in [`OWN_NAMESPACE`]).
///
/// ```
/// assert_eq!(tranche_client::names::batch("b1"), "namespaces/-/batches/b1");
/// assert_eq!(tranche_client::names::batch("namespaces/x/batches/b1"), "namespaces/x/batches/b1");
/// ```
pub fn batch(name_or_id: &str) -> String {
    if name_or_id.contains('/') {
        name_or_id.to_owned()
    } else {
        format!("namespaces/{OWN_NAMESPACE}/batches/{name_or_id}")
    }
}

/// The id at the end of a batch's name; a bare id is returned as it is.
///
/// ```
/// assert_eq!(tranche_client::names::batch_id("namespaces/x/batches/b1"), "b1");
/// ```
pub fn batch_id(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

/// The full name of a namespace that was given by full name or by bare id; empty is [`OWN_NAMESPACE`].
///
/// ```
/// assert_eq!(tranche_client::names::namespace(""), "namespaces/-");
/// assert_eq!(tranche_client::names::namespace("x"), "namespaces/x");
/// ```
pub fn namespace(name_or_id: &str) -> String {
    match name_or_id {
        "" => format!("namespaces/{OWN_NAMESPACE}"),
        name if name.contains('/') => name.to_owned(),
        id => format!("namespaces/{id}"),
    }
}
