//! Where tasks come from: a folder, or a manifest.

pub(crate) mod manifest;
pub(crate) mod paths;
pub(crate) mod walk;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tranche_client::v1::Task;

/// Tasks read ahead of the client. When it is full the reader waits: however many tasks there are, this
/// many and the client's window are in memory.
const READ_AHEAD: usize = 4_096;

/// Why a source can't be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SourceError {
    /// A file or folder can't be read.
    #[error("cannot read {what}: {source}")]
    Read {
        what: String,
        #[source]
        source: std::io::Error,
    },
    /// A file's name is no text, and a key must be.
    #[error("the name of {0:?} is not UTF-8; rename it")]
    Name(std::path::PathBuf),
    /// A line of a manifest is wrong.
    #[error("{file}: line {line}: {problem}")]
    Line { file: String, line: u64, problem: String },
    /// A link loop or the like, from the walk.
    #[error("cannot read the folder: {0}")]
    Walk(String),
    /// Whoever took the tasks has stopped.
    #[error("nobody takes the tasks any more")]
    Gone,
}

/// Takes tasks as they are read.
#[derive(Debug)]
pub(crate) struct Sink(mpsc::Sender<Result<Task, SourceError>>);

impl Sink {
    pub(crate) fn task(&self, task: Task) -> Result<(), SourceError> {
        self.0.blocking_send(Ok(task)).map_err(|_| SourceError::Gone)
    }
}

/// Runs a blocking reader on a thread of its own. The thread ends with the reader, or at its next task
/// after the stream was dropped; one that waits for standard input ends with the process.
pub(crate) fn stream<F>(read: F) -> ReceiverStream<Result<Task, SourceError>>
where
    F: FnOnce(&Sink) -> Result<(), SourceError> + Send + 'static,
{
    let (sender, tasks) = mpsc::channel(READ_AHEAD);
    std::thread::spawn(move || {
        let sink = Sink(sender);
        if let Err(error) = read(&sink) {
            // Gone means that nobody listens.
            let _ = sink.0.blocking_send(Err(error));
        }
    });
    ReceiverStream::new(tasks)
}

#[cfg(test)]
mod tests {
    use tokio_stream::StreamExt as _;

    use super::*;

    #[tokio::test]
    async fn more_tasks_than_are_read_ahead_and_then_an_error() {
        let tasks = stream(|sink| {
            for n in 0..10_000 {
                sink.task(Task { key: n.to_string(), ..Default::default() })?;
            }
            Err(SourceError::Walk("end".into()))
        });
        let tasks: Vec<_> = tasks.collect().await;
        assert_eq!(tasks.len(), 10_001);
        assert!(tasks[..10_000].iter().enumerate().all(|(n, t)| t.as_ref().unwrap().key == n.to_string()));
        assert!(tasks[10_000].is_err());
    }

    #[tokio::test]
    async fn a_dropped_stream_ends_the_reader() {
        let (ended, end) = std::sync::mpsc::channel();
        let tasks = stream(move |sink| {
            let result =
                (0..).try_for_each(|n: u64| sink.task(Task { key: n.to_string(), ..Default::default() }));
            ended.send(matches!(result, Err(SourceError::Gone))).unwrap();
            result
        });
        drop(tasks);
        assert!(tokio::task::spawn_blocking(move || end.recv().unwrap()).await.unwrap());
    }
}
