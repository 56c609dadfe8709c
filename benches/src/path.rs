//! The way of a task's bytes: client, coordinator, worker. Each step is the code that runs in the processes.

use bytes::Bytes;
use prost::Message;
use tranche_coordinator::steps;
use tranche_coordinator::store::keys::BatchKey;
use tranche_proto::v1::{self, AppendTasksRequest, Task};
use tranche_proto::{TaskList, TaskListBuilder};
use tranche_worker::lease::Work;

/// Tasks of one message: what a client sends at once.
pub const MESSAGE: usize = 8192;
/// Messages that become one segment: as many as fit into 4 MiB.
pub const GATHERED: usize = 4;
/// Bytes of a task's payload.
pub const PAYLOAD: usize = 100;

/// Tasks as `tranche bench` makes them: the key is the number, the payload not to be compressed.
pub fn tasks(count: usize) -> Vec<Task> {
    let mut noise: u64 = 0x9E37_79B9_7F4A_7C15;
    let mut byte = || {
        noise ^= noise << 13;
        noise ^= noise >> 7;
        noise ^= noise << 17;
        noise as u8
    };
    let mut task = |number: usize| Task {
        key: (1_000_000 + number).to_string(),
        payload: (0..PAYLOAD).map(|_| byte()).collect::<Vec<_>>().into(),
    };
    (0..count).map(&mut task).collect()
}

/// The client's step: tasks become a chunk. `builder` has room, as it has after the first chunk.
pub fn encode(builder: &mut TaskListBuilder, tasks: &[Task]) -> TaskList {
    for task in tasks {
        builder.push(task);
    }
    builder.take()
}

/// A message as the client's transport sends it.
pub fn message(tasks: &[Task]) -> Bytes {
    let tasks = tasks.iter().cloned().collect();
    AppendTasksRequest { name: String::new(), first_sequence: 1, tasks }.encode_to_vec().into()
}

/// Reads a message, as tonic does.
///
/// # Panics
/// When it is damaged.
pub fn decode(message: Bytes) -> AppendTasksRequest {
    AppendTasksRequest::decode(message).expect("a message")
}

/// The coordinator's check of a message.
///
/// # Panics
/// When it is to be refused.
pub fn check(request: &AppendTasksRequest) {
    steps::check(&BatchKey::new("default", "b1"), request).expect("a valid message");
}

/// Makes a segment of messages.
pub fn segment(lists: &[TaskList]) -> TaskList {
    steps::segment(lists).0
}

/// Cuts a segment into the frames of a lease.
pub fn frames(segment: &TaskList) -> Vec<Bytes> {
    let whole = segment.slice(0..segment.len());
    steps::frames(vec![whole]).iter().map(|frame| frame.bytes().clone()).collect()
}

/// The first frame of a lease of so many tasks, without the tasks.
pub fn grant(tasks: usize) -> v1::Grant {
    let range = v1::Range { first: 1, last: tasks.cast_signed() as i64 };
    v1::Grant {
        batch: "namespaces/default/batches/b1".into(),
        token: Some(v1::Token { epoch: 1, counter: 1 }),
        phase: v1::Phase::Stage.into(),
        range: Some(range),
        runs: vec![range],
        ..v1::Grant::default()
    }
}

/// The worker's step: frames become a lease, and a handler reads its tasks. Returns their bytes.
///
/// # Panics
/// When they don't fit the grant.
pub fn work(grant: v1::Grant, frames: Vec<Bytes>) -> usize {
    let Ok(Work::Stage(lease)) = Work::from_grant(grant, frames) else { panic!("a lease to stage tasks") };
    lease.tasks.iter().map(|task| task.key.len() + task.payload.len()).sum()
}
