//! Ceilings on what each step allocates: so many times for a message, a segment or a lease, whatever it holds, and
//! never for each task. Memory stands for copies, too: what is copied needs a place.

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;
use std::hint::black_box;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tranche_benches::engine::{Owner, reports};
use tranche_benches::path::{self, MESSAGE};
use tranche_coordinator::manifest::Objects;
use tranche_coordinator::store::keys::BatchKey;
use tranche_proto::{TaskList, TaskListBuilder};

#[global_allocator]
static MEMORY: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// All threads of the process are counted, so one test counts at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a step took.
#[derive(Clone, Copy, Debug)]
struct Took {
    /// How often memory was asked for, or more of it.
    times: usize,
    bytes: usize,
}

/// The least of some runs: what the test's own threads do beside can only add to it.
fn least<T>(mut step: impl FnMut() -> T) -> Took {
    let mut once = || {
        let region = Region::new(MEMORY);
        let result = black_box(step());
        let change = region.change();
        drop(result);
        let grown = usize::try_from(change.bytes_reallocated).unwrap_or(0);
        Took { times: change.allocations + change.reallocations, bytes: change.bytes_allocated + grown }
    };
    let runs: Vec<Took> = (0..5).map(|_| once()).collect();
    runs.into_iter().min_by_key(|took| (took.times, took.bytes)).expect("a run")
}

/// Sizes of a message: what a ceiling for each message must hold for.
const SIZES: [usize; 3] = [64, 1024, MESSAGE];

fn at_most(what: &str, tasks: usize, took: Took, times: usize, bytes: usize) {
    println!("{what}, {tasks} tasks: {took:?}, at most {times} times, {bytes} bytes");
    assert!(took.times <= times, "{what}, {tasks} tasks: {took:?}, at most {times} times");
    assert!(took.bytes <= bytes, "{what}, {tasks} tasks: {took:?}, at most {bytes} bytes");
}

fn lists(messages: usize, tasks: usize) -> Vec<TaskList> {
    path::tasks(messages * tasks)
        .chunks(tasks)
        .map(|tasks| path::decode(path::message(tasks)).tasks)
        .collect()
}

#[test]
fn the_client_encodes_a_chunk_in_memory_that_it_takes_once() {
    let _alone = alone();
    for count in SIZES {
        // Payloads of their own, which nobody shares: as a caller makes them.
        let mut sets = (0..6).map(|_| path::tasks(count)).collect::<Vec<_>>();
        let mut next = || sets.pop().expect("tasks for each run");
        let mut builder = TaskListBuilder::default();
        let size = path::encode(&mut builder, &next()).bytes().len();
        let took = least(|| path::encode(&mut builder, &next()));
        // The next chunk's memory, with a little more room than this one took.
        at_most("encode", count, took, 6, size + size / 16 + count * 5 + 512);
    }
}

#[test]
fn a_message_is_read_where_it_lies() {
    let _alone = alone();
    for count in SIZES {
        let message = path::message(&path::tasks(count));
        let took = least(|| path::decode(message.clone()));
        // Where each task ends, in a list that doubles.
        at_most("decode", count, took, 16, count * 16);
    }
}

#[test]
fn a_message_is_checked_without_memory() {
    let _alone = alone();
    for count in SIZES {
        let request = path::decode(path::message(&path::tasks(count)));
        // The batch's name, which the step makes.
        at_most("check", count, least(|| path::check(&request)), 2, 16);
    }
}

#[test]
fn a_segment_is_one_copy_of_its_messages() {
    let _alone = alone();
    for count in SIZES {
        let lists = lists(4, count);
        let size: usize = lists.iter().map(|list| list.bytes().len()).sum();
        // The bytes, padded to whole blocks at both ends, and where each task ends.
        let room = size + 2 * 4096 + 4 * count * 4 + 256;
        at_most("segment", 4 * count, least(|| path::segment(&lists)), 4, room);
    }
}

#[test]
fn the_frames_of_a_lease_share_the_segments_memory() {
    let _alone = alone();
    for count in SIZES {
        let segment = path::segment(&lists(4, count));
        let frames = path::frames(&segment);
        let memory = segment.bytes().as_ptr_range();
        assert!(frames.iter().all(|frame| memory.contains(&frame.as_ptr())));
        assert_eq!(frames.iter().map(bytes::Bytes::len).sum::<usize>(), segment.bytes().len());
        // Where each task ends, for what is left at each cut; nothing of the tasks.
        at_most("frames", 4 * count, least(|| path::frames(&segment)), 14, 4 * count * 20 + 512);
    }
}

#[test]
fn a_worker_reads_tasks_where_they_lie() {
    let _alone = alone();
    for count in SIZES {
        let segment = path::segment(&lists(4, count));
        let (frames, grant) = (path::frames(&segment), path::grant(segment.len()));
        let took = least(|| path::work(grant.clone(), frames.clone()));
        // Where each task ends, in a list for each frame that doubles.
        at_most("work", 4 * count, took, 70, 4 * count * 24 + 1024);
    }
}

#[test]
fn a_segment_is_written_and_leased_with_the_same_effort_whatever_it_holds() {
    let _alone = alone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let dir = tempfile::tempdir().expect("a folder");
    let objects = Objects::local(dir.path()).expect("opened");
    let segments = objects.segments(&BatchKey::new("default", "b1"));
    for count in SIZES {
        let lists = lists(4, count);
        let size: usize = lists.iter().map(|list| list.bytes().len()).sum();
        let took = least(|| {
            let record = runtime.block_on(segments.write(1, lists.clone())).expect("written");
            let run = (1, record.last.cast_unsigned());
            runtime.block_on(objects.read_tasks(&[record], &[run])).expect("read")
        });
        at_most("written and read", 4 * count, took, 20, size + 4 * count * 12 + 16 * 1024);
    }
}

#[test]
fn the_engine_works_for_ranges_and_not_for_tasks() {
    let _alone = alone();
    let life = |ranges: u64, tasks: u64| {
        least(|| {
            let mut owner = Owner::filled(ranges, tasks);
            for _ in 0..2 {
                let events = reports(&owner.lease_all());
                owner.take(events);
            }
            assert!(owner.committed(), "a whole batch");
            owner
        })
    };
    let (few, many) = (life(200, 10), life(200, 16_384));
    assert_eq!(few.times, many.times, "{few:?} with 10 tasks in each range, {many:?} with 16,384");
    // A range's life, from its segment to its commit, and the events themselves, which the bench makes.
    at_most("200 ranges", 200 * 16_384, many, 200 * 28, 200 * 10_000);
}
