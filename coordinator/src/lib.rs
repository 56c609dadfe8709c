//! The coordinator: keeps batches in the store, deals their tasks to workers, decides once.
//!
//! [`Server`] is the whole process as one library call; `docs/architecture.md` has the map of tasks.

pub mod config;
mod connections;
pub mod dispatch;
pub mod driver;
pub mod error;
pub mod grpc;
pub mod identity;
pub mod manifest;
pub mod metrics;
pub mod node;
pub mod peers;
mod server;
#[doc(hidden)]
pub mod steps;
pub mod store;

pub use connections::most_connections;
pub use server::{Server, StartError};
