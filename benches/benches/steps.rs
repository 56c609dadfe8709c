//! One step, so many times: what `benches/instructions` runs under callgrind. The difference between two numbers of
//! times is the step alone; all else is the same in both.
//!
//! `steps STEP TIMES`

use std::hint::black_box;
use std::process::ExitCode;
use tranche_benches::engine::{Owner, reports};
use tranche_benches::path::{self, GATHERED, MESSAGE};
use tranche_proto::{TaskList, TaskListBuilder};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (Some(step), Some(times)) = (arguments.next(), arguments.next().and_then(|times| times.parse().ok()))
    else {
        // Under `cargo bench` there is nothing to do.
        return ExitCode::SUCCESS;
    };
    match step.as_str() {
        "engine" => engine(times),
        step => {
            if !path(step, times) {
                eprintln!("{step}: no such step");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}

/// A whole batch of so many ranges.
fn engine(ranges: u64) {
    let mut owner = Owner::filled(ranges, 16_384);
    for _ in 0..2 {
        let events = reports(&owner.lease_all());
        owner.take(events);
    }
    assert!(owner.committed(), "a whole batch");
}

fn path(step: &str, times: u64) -> bool {
    let tasks = path::tasks(MESSAGE * GATHERED);
    let encoded: Vec<_> = tasks.chunks(MESSAGE).map(path::message).collect();
    let requests: Vec<_> = encoded.iter().cloned().map(path::decode).collect();
    let lists: Vec<TaskList> = requests.iter().map(|request| request.tasks.clone()).collect();
    let segment = path::segment(&lists);
    let frames = path::frames(&segment);
    let grant = path::grant(segment.len());
    let mut builder = TaskListBuilder::default();
    drop(path::encode(&mut builder, &tasks[..MESSAGE]));
    for _ in 0..times {
        match step {
            "encode" => tasks.chunks(MESSAGE).for_each(|tasks| drop(path::encode(&mut builder, tasks))),
            "decode" => encoded.iter().cloned().for_each(|message| drop(path::decode(message))),
            "check" => requests.iter().for_each(path::check),
            "segment" => drop(black_box(path::segment(&lists))),
            "frames" => drop(black_box(path::frames(&segment))),
            "work" => {
                black_box(path::work(grant.clone(), frames.clone()));
            }
            _ => return false,
        }
    }
    true
}
