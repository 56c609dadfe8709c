//! What was taken from the caller and is not yet durable. Pure: no stream, no clock.

use std::collections::VecDeque;

use tranche_proto::v1::{AppendTasksRequest, Task};
use tranche_proto::{TaskList, TaskListBuilder};

use crate::{Error, Options};

/// A chunk in the making. Tasks are encoded as they come, and never again.
#[derive(Debug)]
pub(crate) struct Building {
    first: i64,
    tasks: TaskListBuilder,
}

impl Building {
    pub(crate) fn starting_at(first: i64) -> Self {
        Self { first, tasks: TaskListBuilder::default() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Starts elsewhere; nothing may be in it.
    pub(crate) fn restart_at(&mut self, first: i64) {
        debug_assert!(self.is_empty());
        self.first = first;
    }

    pub(crate) fn is_full(&self, options: &Options) -> bool {
        self.tasks.len() >= options.chunk_tasks.max(1) || self.tasks.encoded_len() >= options.chunk_bytes
    }

    /// Adds a task, or gives it back when the chunk would become too large; a chunk takes its first
    /// task whatever its size.
    pub(crate) fn add(&mut self, task: Task, options: &Options) -> Result<(), Task> {
        let most = if self.is_empty() { usize::MAX } else { options.chunk_bytes };
        if self.tasks.push_within(&task, most) { Ok(()) } else { Err(task) }
    }

    /// The chunk. The next one starts after it.
    pub(crate) fn take(&mut self) -> Chunk {
        let chunk = Chunk { first: self.first, tasks: self.tasks.take() };
        self.first += chunk.tasks.len().cast_signed() as i64;
        chunk
    }
}

/// Tasks that travel in one message, with consecutive sequence numbers.
#[derive(Debug)]
pub(crate) struct Chunk {
    first: i64,
    tasks: TaskList,
}

impl Chunk {
    fn bytes(&self) -> usize {
        self.tasks.bytes().len()
    }

    /// Forgets the tasks up to `durable`.
    fn trim(&mut self, durable: i64) {
        let len = self.tasks.len();
        let known = (durable + 1 - self.first).clamp(0, len.cast_signed() as i64);
        if known > 0 {
            self.tasks = self.tasks.slice(known as usize..len);
            self.first += known;
        }
    }
}

/// Chunks in order, each kept until it is acknowledged.
#[derive(Debug)]
pub(crate) struct Window {
    chunks: VecDeque<Chunk>,
    bytes: usize,
    /// How many of `chunks`, from the front, went out on the present stream.
    sent: usize,
    durable: i64,
}

impl Window {
    /// A window behind `durable` tasks that are known to be durable.
    pub(crate) fn new(durable: i64) -> Self {
        Self { chunks: VecDeque::new(), bytes: 0, sent: 0, durable }
    }

    /// The highest sequence number that is known to be durable.
    pub(crate) fn durable(&self) -> i64 {
        self.durable
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    pub(crate) fn has_room(&self, options: &Options) -> bool {
        self.chunks.is_empty()
            || (self.chunks.len() < options.window_chunks && self.bytes < options.window_bytes)
    }

    pub(crate) fn has_unsent(&self) -> bool {
        self.sent < self.chunks.len()
    }

    /// Keeps a chunk; what of it is durable already is forgotten.
    pub(crate) fn push(&mut self, mut chunk: Chunk) {
        chunk.trim(self.durable);
        if !chunk.tasks.is_empty() {
            self.bytes += chunk.bytes();
            self.chunks.push_back(chunk);
        }
    }

    /// The next message of this stream. Its tasks are shared, not copied.
    pub(crate) fn next_unsent(&mut self) -> Option<AppendTasksRequest> {
        let chunk = self.chunks.get(self.sent)?;
        self.sent += 1;
        Some(AppendTasksRequest {
            name: String::new(),
            first_sequence: chunk.first,
            tasks: chunk.tasks.clone(),
        })
    }

    /// A new stream has started: all that is kept goes out again.
    pub(crate) fn rewind(&mut self) {
        self.sent = 0;
    }

    /// Forgets what is durable. Returns whether that is more than before.
    pub(crate) fn acknowledge(&mut self, batch: &str, durable: i64) -> Result<bool, Error> {
        if durable < self.durable {
            return Err(Error::LostTasks { batch: batch.to_owned(), acknowledged: self.durable, durable });
        }
        let grew = durable > self.durable;
        self.durable = durable;
        while let Some(front) = self.chunks.front_mut() {
            let before = front.bytes();
            front.trim(durable);
            self.bytes -= before - front.bytes();
            if !front.tasks.is_empty() {
                break;
            }
            self.chunks.pop_front();
            self.sent = self.sent.saturating_sub(1);
        }
        Ok(grew)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(first: i64, count: usize) -> Chunk {
        let options = Options::default();
        let mut chunk = Building::starting_at(first);
        for n in 0..count {
            let task = Task { key: format!("{}", first + n.cast_signed() as i64), ..Default::default() };
            chunk.add(task, &options).unwrap();
        }
        chunk.take()
    }

    fn sequences(request: &AppendTasksRequest) -> Vec<i64> {
        request.tasks.iter().map(|t| t.unwrap().key.parse().unwrap()).collect()
    }

    #[test]
    fn a_resend_starts_exactly_after_what_is_durable() {
        let mut window = Window::new(0);
        window.push(chunk(1, 3));
        window.push(chunk(4, 3));
        assert_eq!(sequences(&window.next_unsent().unwrap()), [1, 2, 3]);
        assert_eq!(sequences(&window.next_unsent().unwrap()), [4, 5, 6]);
        assert!(window.next_unsent().is_none());
        assert!(window.acknowledge("b", 4).unwrap());
        assert!(!window.acknowledge("b", 4).unwrap());
        assert!(!window.has_unsent());
        window.rewind();
        let again = window.next_unsent().unwrap();
        assert_eq!((again.first_sequence, sequences(&again)), (5, vec![5, 6]));
        window.acknowledge("b", 6).unwrap();
        assert!(window.is_empty());
        assert_eq!(window.bytes, 0);
    }

    #[test]
    fn what_is_durable_before_it_is_taken_is_never_sent() {
        let mut window = Window::new(0);
        window.acknowledge("b", 5).unwrap();
        window.push(chunk(1, 3));
        assert!(window.is_empty());
        window.push(chunk(4, 4));
        let next = window.next_unsent().unwrap();
        assert_eq!((next.first_sequence, sequences(&next)), (6, vec![6, 7]));
    }

    #[test]
    fn an_acknowledgement_taken_back_is_an_error() {
        let mut window = Window::new(0);
        window.push(chunk(1, 9));
        window.acknowledge("b", 5).unwrap();
        let error = window.acknowledge("b", 4).unwrap_err();
        assert!(matches!(error, Error::LostTasks { acknowledged: 5, durable: 4, .. }));
    }

    #[test]
    fn chunks_end_at_the_count_and_at_the_bytes() {
        let options = Options { chunk_tasks: 3, chunk_bytes: 100, ..Options::default() };
        let task = |n: usize| Task { key: String::new(), payload: vec![0; n].into() };
        let mut chunk = Building::starting_at(1);
        for _ in 0..3 {
            assert!(!chunk.is_full(&options));
            chunk.add(task(1), &options).unwrap();
        }
        assert!(chunk.is_full(&options));
        let mut chunk = Building::starting_at(1);
        chunk.add(task(50), &options).unwrap();
        assert!(chunk.add(task(50), &options).is_err());
        let mut large = Building::starting_at(1);
        large.add(task(500), &options).unwrap();
        assert!(large.is_full(&options));
    }

    #[test]
    fn the_window_is_bounded_by_chunks_and_by_bytes() {
        let few = Options { window_chunks: 2, ..Options::default() };
        let mut window = Window::new(0);
        window.push(chunk(1, 1));
        assert!(window.has_room(&few));
        window.push(chunk(2, 1));
        assert!(!window.has_room(&few));
        window.acknowledge("b", 1).unwrap();
        assert!(window.has_room(&few));
        let small = Options { window_bytes: 1, ..Options::default() };
        assert!(!window.has_room(&small));
        window.acknowledge("b", 2).unwrap();
        assert!(window.has_room(&small));
    }
}
