//! Who calls, and what they may do.
//!
//! ```text
//! certificate's SANs | bearer token ──► Book (file `identities`, JWKS) ──► Identity: name, namespace, roles
//!                                                          RPC × role ──► rights::holders
//! ```
//!
//! Pure but for the reading of files: the layer in `grpc/auth.rs` asks here for each call.

mod book;
mod jwt;
pub mod rights;

pub use book::{Book, Credential, Granted, Refused};

use crate::store::keys::BatchKey;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// What an identity may do; which calls that are is in [`rights`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Makes batches, fills them, decides about them, deletes them.
    Submitter,
    /// Reads batches.
    Reader,
    /// Works: attaches and gets leases of its namespace's batches.
    Worker,
    /// Does what submitters and readers do, and reads what operators read, as far as its namespace is concerned.
    Admin,
    /// Another coordinator: passes on the calls of others, with their rights.
    Replica,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Submitter, Self::Reader, Self::Worker, Self::Admin, Self::Replica];

    /// As in files and claims.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Submitter => "submitter",
            Self::Reader => "reader",
            Self::Worker => "worker",
            Self::Admin => "admin",
            Self::Replica => "replica",
        }
    }

    /// Whether it is one of the whole cluster: it can't be held in one namespace alone.
    const fn is_of_the_cluster(self) -> bool {
        match self {
            Self::Submitter | Self::Reader | Self::Worker | Self::Admin => false,
            Self::Replica => true,
        }
    }
}

impl FromStr for Role {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|role| role.name() == text);
        found
            .ok_or_else(|| format!("{text:?} is no role; there are {}", Self::ALL.map(Self::name).join(", ")))
    }
}

/// Some roles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Roles(u8);

impl Roles {
    /// Whether this one is among them.
    pub const fn has(self, role: Role) -> bool {
        self.0 & (1 << role as u8) != 0
    }

    fn iter(self) -> impl Iterator<Item = Role> {
        Role::ALL.into_iter().filter(move |role| self.has(*role))
    }
}

impl FromIterator<Role> for Roles {
    fn from_iter<T: IntoIterator<Item = Role>>(roles: T) -> Self {
        Self(roles.into_iter().fold(0, |all, role| all | 1 << role as u8))
    }
}

impl fmt::Display for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.iter().map(Role::name).collect::<Vec<_>>().join(","))
    }
}

/// The namespaces whose batches one sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// This one.
    Namespace(String),
    /// All; as text `*`.
    All,
}

impl Scope {
    /// Whether this namespace's batches are among them.
    pub fn sees(&self, namespace: &str) -> bool {
        match self {
            Self::All => true,
            Self::Namespace(own) => own == namespace,
        }
    }
}

impl FromStr for Scope {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "*" {
            return Ok(Self::All);
        }
        // What is a namespace in a batch's name is one here, but for the one that means one's own.
        match BatchKey::parse(&format!("namespaces/{text}/batches/x")) {
            Some(key) if key.namespace == text && text != "-" => Ok(Self::Namespace(text.to_owned())),
            _ => Err(format!("{text:?} is no namespace (a word of a-z, 0-9 and -), and not *")),
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Namespace(namespace) => namespace,
            Self::All => "*",
        })
    }
}

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its name, of [`MAX_NAME`] characters at most, without `/`.
    pub name: Arc<str>,
    /// Whose batches it sees.
    pub scope: Scope,
    /// What it may do there.
    pub roles: Roles,
}

/// The most characters of an identity's name.
pub const MAX_NAME: usize = 128;

impl Identity {
    /// An identity.
    ///
    /// # Errors
    /// These don't go together.
    pub fn new(name: &str, scope: Scope, roles: Roles) -> Result<Self, String> {
        if !is_name(name) {
            return Err(format!("name {name:?} must be 1 to {MAX_NAME} of a-z, A-Z, 0-9 and . _ : @ % -"));
        }
        if roles == Roles::default() {
            return Err("roles is empty".to_owned());
        }
        if let (Scope::Namespace(_), Some(role)) =
            (&scope, roles.iter().find(|role| role.is_of_the_cluster()))
        {
            return Err(format!(
                "namespace = {:?}: the role {} is one of the whole cluster, with namespace = \"*\"",
                scope.to_string(),
                role.name()
            ));
        }
        Ok(Self { name: name.into(), scope, roles })
    }

    /// Whether it sees the batches of this namespace.
    pub fn sees(&self, namespace: &str) -> bool {
        self.scope.sees(namespace)
    }
}

fn is_name(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._:@%-".contains(&b))
}

#[cfg(test)]
mod tests;
