//! Single steps of a task's way through a coordinator, for benches and for tests of what they cost. Not an interface:
//! they change with the code around them.

use crate::driver::{FRAME_BYTES, in_frames};
use crate::error::Error;
use crate::grpc::validate;
use crate::manifest;
use crate::store::keys::BatchKey;
use tranche_proto::{TaskList, v1};

/// Checks a message of an append stream.
pub fn check(batch: &BatchKey, request: &v1::AppendTasksRequest) -> Result<u64, Error> {
    validate::append(batch, request)
}

/// Makes a segment of what gathered, with its checksum.
pub fn segment(lists: &[TaskList]) -> (TaskList, u32) {
    let (_, tasks, sum) = manifest::join(lists);
    (tasks, sum)
}

/// Cuts the tasks of a lease into the frames of its grant.
pub fn frames(pieces: Vec<TaskList>) -> Vec<TaskList> {
    in_frames(pieces, FRAME_BYTES)
}
