//! The steps of tasks' bytes, from the client's encoder to the worker's handler. Each is about one message of 8,192
//! tasks, or a segment of four of them; tasks and bytes for each second are printed.

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use tranche_benches::path::{self, GATHERED, MESSAGE};
use tranche_proto::{TaskList, TaskListBuilder};

fn main() {
    divan::main();
}

/// A segment that was gathered from messages.
fn messages() -> Vec<TaskList> {
    let all = path::tasks(MESSAGE * GATHERED);
    all.chunks(MESSAGE).map(|tasks| path::decode(path::message(tasks)).tasks).collect()
}

fn bytes(lists: &[TaskList]) -> usize {
    lists.iter().map(|list| list.bytes().len()).sum()
}

/// Client: tasks into a chunk.
#[divan::bench]
fn encode(bencher: Bencher) {
    let tasks = path::tasks(MESSAGE);
    let mut builder = TaskListBuilder::default();
    let size = path::encode(&mut builder, &tasks).bytes().len();
    bencher
        .counter(ItemsCount::new(MESSAGE))
        .counter(BytesCount::new(size))
        .bench_local(|| path::encode(&mut builder, &tasks));
}

/// Coordinator: a message, read.
#[divan::bench]
fn decode(bencher: Bencher) {
    let message = path::message(&path::tasks(MESSAGE));
    bencher
        .counter(ItemsCount::new(MESSAGE))
        .counter(BytesCount::new(message.len()))
        .with_inputs(|| message.clone())
        .bench_values(path::decode);
}

/// Coordinator: a message, checked.
#[divan::bench]
fn check(bencher: Bencher) {
    let message = path::message(&path::tasks(MESSAGE));
    let request = path::decode(message.clone());
    bencher
        .counter(ItemsCount::new(MESSAGE))
        .counter(BytesCount::new(message.len()))
        .bench(|| path::check(&request));
}

/// Coordinator: four messages into a segment, and its checksum.
#[divan::bench]
fn segment(bencher: Bencher) {
    let lists = messages();
    bencher
        .counter(ItemsCount::new(MESSAGE * GATHERED))
        .counter(BytesCount::new(bytes(&lists)))
        .bench(|| path::segment(&lists));
}

/// Coordinator: a segment into the frames of a lease.
#[divan::bench]
fn frames(bencher: Bencher) {
    let segment = path::segment(&messages());
    bencher
        .counter(ItemsCount::new(segment.len()))
        .counter(BytesCount::new(segment.bytes().len()))
        .bench(|| path::frames(&segment));
}

/// Worker: frames into the tasks of a lease.
#[divan::bench]
fn work(bencher: Bencher) {
    let segment = path::segment(&messages());
    let frames = path::frames(&segment);
    let grant = path::grant(segment.len());
    bencher
        .counter(ItemsCount::new(segment.len()))
        .counter(BytesCount::new(segment.bytes().len()))
        .with_inputs(|| (grant.clone(), frames.clone()))
        .bench_values(|(grant, frames)| path::work(grant, frames));
}
