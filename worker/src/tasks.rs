//! The tasks of a lease.

use crate::lease::{Range, count};
use std::fmt;
use tranche_proto::{TaskList, TaskListBuilder, TaskRef, v1};

/// One task to stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StageTask<'a> {
    /// Its sequence number in the batch.
    pub sequence: u64,
    /// The user's own id of the item; may be empty.
    pub key: &'a str,
    /// What the user gave to stage it.
    pub payload: &'a [u8],
}

/// The tasks of a lease, in order. They are kept as they came, and read where they lie: a task costs no memory of its
/// own, however many there are.
///
/// ```
/// use tranche_worker::{StageTask, StageTasks};
///
/// let tasks: StageTasks = [StageTask { sequence: 7, key: "a", payload: b"1" }].into_iter().collect();
/// for task in &tasks {
///     assert_eq!((task.sequence, task.key), (7, "a"));
/// }
/// ```
#[derive(Clone, Default)]
pub struct StageTasks {
    runs: Vec<Range>,
    pieces: Vec<TaskList>,
}

impl StageTasks {
    /// Tasks that came in pieces, for the numbers of `runs`, which are in order.
    ///
    /// # Errors
    /// When there are more or fewer than numbers, or one can't be read: what is wrong, for people.
    pub(crate) fn new(runs: Vec<Range>, pieces: Vec<TaskList>) -> Result<Self, String> {
        let came: usize = pieces.iter().map(TaskList::len).sum();
        if count(&runs) != came as u64 {
            return Err(format!("{came} tasks came for {} sequence numbers", count(&runs)));
        }
        let tasks = Self { runs, pieces };
        if let Some(error) = tasks.pieces.iter().flat_map(TaskList::iter).find_map(Result::err) {
            return Err(format!("the tasks can't be read: {error}"));
        }
        Ok(tasks)
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.pieces.iter().map(TaskList::len).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.pieces.iter().all(TaskList::is_empty)
    }

    /// Every task, in order.
    pub fn iter(&self) -> Iter<'_> {
        Iter { tasks: self, run: 0, next: self.runs.first().map_or(0, |run| run.first), piece: 0, index: 0 }
    }

    /// The task with this number, if it is one of them.
    pub fn get(&self, sequence: u64) -> Option<StageTask<'_>> {
        let after = self.runs.partition_point(|run| run.first <= sequence);
        let (run, before) = self.runs[..after].split_last()?;
        if !run.contains(sequence) {
            return None;
        }
        self.read(sequence, (count(before) + sequence - run.first) as usize)
    }

    /// The task at this place, counted from 0.
    pub fn at(&self, index: usize) -> Option<StageTask<'_>> {
        let mut ahead = index as u64;
        for run in &self.runs {
            if ahead < run.len() {
                return self.read(run.first + ahead, index);
            }
            ahead -= run.len();
        }
        None
    }

    fn read(&self, sequence: u64, mut index: usize) -> Option<StageTask<'_>> {
        for piece in &self.pieces {
            if index < piece.len() {
                return Some(StageTask::new(sequence, piece.get(index)));
            }
            index -= piece.len();
        }
        None
    }
}

impl<'a> StageTask<'a> {
    fn new(sequence: u64, task: Result<TaskRef<'a>, prost::DecodeError>) -> Self {
        let TaskRef { key, payload } = task.expect("it was read when the lease came");
        Self { sequence, key, payload }
    }
}

/// See [`StageTasks::iter`].
#[derive(Clone)]
pub struct Iter<'a> {
    tasks: &'a StageTasks,
    /// The number of the next task, and the run that it is in.
    run: usize,
    next: u64,
    /// Where the next task is.
    piece: usize,
    index: usize,
}

impl<'a> Iterator for Iter<'a> {
    type Item = StageTask<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut piece = self.tasks.pieces.get(self.piece)?;
        while self.index == piece.len() {
            (self.piece, self.index) = (self.piece + 1, 0);
            piece = self.tasks.pieces.get(self.piece)?;
        }
        let run = self.tasks.runs.get(self.run)?;
        let task = StageTask::new(self.next, piece.get(self.index));
        self.index += 1;
        if self.next < run.last {
            self.next += 1;
        } else {
            self.run += 1;
            self.next = self.tasks.runs.get(self.run).map_or(0, |run| run.first);
        }
        Some(task)
    }
}

impl<'a> IntoIterator for &'a StageTasks {
    type Item = StageTask<'a>;
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

impl<'a> FromIterator<StageTask<'a>> for StageTasks {
    /// # Panics
    /// When their numbers don't ascend.
    fn from_iter<I: IntoIterator<Item = StageTask<'a>>>(tasks: I) -> Self {
        let (mut runs, mut list) = (Vec::<Range>::new(), TaskListBuilder::default());
        for StageTask { sequence, key, payload } in tasks {
            list.push(&v1::Task { key: key.to_owned(), payload: payload.to_vec().into() });
            match runs.last_mut() {
                Some(run) if run.last + 1 == sequence => run.last = sequence,
                run => {
                    assert!(
                        run.is_none_or(|run| run.last < sequence),
                        "task {sequence} is not after the one before"
                    );
                    runs.push(Range { first: sequence, last: sequence });
                }
            }
        }
        Self { runs, pieces: vec![list.finish()] }
    }
}

impl PartialEq for StageTasks {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl fmt::Debug for StageTasks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(sequence: u64) -> (u64, String, Vec<u8>) {
        (sequence, format!("k{sequence}"), vec![sequence as u8; 3])
    }

    fn list(numbers: &[u64]) -> TaskList {
        let task = |n: &u64| v1::Task { key: task(*n).1, payload: task(*n).2.into() };
        numbers.iter().map(task).collect()
    }

    #[test]
    fn numbers_go_on_over_pieces_and_runs() {
        let runs =
            vec![Range { first: 2, last: 4 }, Range { first: 9, last: 9 }, Range { first: 20, last: 21 }];
        let pieces = vec![list(&[]), list(&[2, 3]), list(&[]), list(&[4, 9, 20]), list(&[21]), list(&[])];
        let tasks = StageTasks::new(runs, pieces).expect("they fit");
        let numbers = [2, 3, 4, 9, 20, 21];
        assert_eq!((tasks.len(), tasks.is_empty()), (6, false));
        let read: Vec<_> = tasks.iter().map(|t| (t.sequence, t.key.to_owned(), t.payload.to_vec())).collect();
        assert_eq!(read, numbers.map(task));
        for number in 0..30 {
            let found = tasks.get(number).map(|t| (t.sequence, t.key.to_owned(), t.payload.to_vec()));
            assert_eq!(found, numbers.contains(&number).then(|| task(number)), "{number}");
        }
        let places: Vec<_> = (0..8).map(|index| tasks.at(index).map(|task| task.sequence)).collect();
        assert_eq!(places, [Some(2), Some(3), Some(4), Some(9), Some(20), Some(21), None, None]);
        let again: StageTasks = tasks.iter().collect();
        assert_eq!(again, tasks);
        assert!(StageTasks::default().is_empty() && StageTasks::default().iter().next().is_none());
    }

    #[test]
    fn what_does_not_fit_or_is_damaged_is_refused() {
        let runs = vec![Range { first: 1, last: 2 }];
        let error = StageTasks::new(runs.clone(), vec![list(&[1])]).expect_err("one is missing");
        assert_eq!(error, "1 tasks came for 2 sequence numbers");
        // The second one's key is cut off.
        let bytes = [&list(&[1]).bytes()[..], &[0x1a, 2, 0x0a, 9]].concat();
        let damaged = TaskList::decode(bytes.into()).expect("a list");
        let error = StageTasks::new(runs, vec![damaged]).expect_err("damaged");
        assert!(error.starts_with("the tasks can't be read"), "{error}");
    }
}
