//! The worker of Tranche: the SDK (handlers, session, slots) and the built-in handlers.
//!
//! A [`Worker`] attaches to coordinators, takes leases and runs each through the [`Handler`] that its
//! batch names. See [`handlers`] for the built-in ones.

pub mod config;
pub mod handler;
pub mod handlers;
pub mod lease;
mod link;
mod metrics;
mod per_task;
mod run;
pub mod session;
pub mod tasks;
mod worker;

pub use config::{Config, ConfigError};
pub use handler::{Handler, HandlerError, Progress, Staged, TaskFailure};
pub use lease::{Attempt, BatchInfo, CommitLease, Range, RollbackLease, StageLease, Token};
pub use metrics::Operator;
pub use per_task::{PerTask, TaskError, TaskHandler};
pub use tasks::{StageTask, StageTasks};
pub use worker::{Worker, WorkerError};
