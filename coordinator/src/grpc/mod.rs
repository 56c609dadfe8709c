//! The gRPC services: they decode, ask the node, encode, and no more.

pub(crate) mod page;
pub mod status;
pub(crate) mod validate;
