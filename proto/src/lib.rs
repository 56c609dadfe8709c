//! The wire (`tranche.v1`) and the stored records, generated from `proto/tranche/v1`.
//!
//! [`stored`] reads and writes records so that fields of a newer version survive.

mod append;
mod rpc;
pub mod stored;
mod tasks;

pub use append::AppendTasksRequest;
pub use rpc::Rpc;
pub use tasks::{TaskList, TaskListBuilder, TaskRef};

/// Package `tranche.v1`.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod v1 {
    pub use crate::AppendTasksRequest;
    tonic::include_proto!("tranche.v1");
}

/// The encoded file descriptor set of `tranche.v1`, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/tranche.v1.bin"));

/// The version of the lease stream that this software speaks.
pub const PROTOCOL_VERSION: i32 = 1;

/// The most payload bytes of one task.
pub const MAX_PAYLOAD_BYTES: usize = 1024 * 1024;
/// The most bytes of a task's key.
pub const MAX_KEY_BYTES: usize = 1024;
/// The most tasks in one append message.
pub const MAX_APPEND_TASKS: usize = 65_536;
/// The most bytes of one append message, as encoded.
pub const MAX_APPEND_BYTES: usize = 4 * 1024 * 1024;
/// The most bytes of a receipt.
pub const MAX_RECEIPT_BYTES: usize = 64 * 1024;
/// The most bytes of a failure's message.
pub const MAX_FAILURE_MESSAGE_BYTES: usize = 512;
/// The most bytes of any frame of the lease stream.
///
/// A report of 65,536 failures, each with the longest key and message, is larger: such a report is
/// split by nobody, so the range's upper bound keeps it below (16,384 by default).
pub const MAX_FRAME_BYTES: usize = 64 * 1024 * 1024;
/// Bytes of an HTTP/2 frame that coordinators and workers take: a chunk of tasks, or a frame of a lease. HTTP/2's own
/// default is 16 KiB, and each frame is a call of the kernel on both sides.
pub const HTTP2_FRAME_BYTES: u32 = 1024 * 1024;
