use super::*;
use futures::FutureExt;
use futures::stream::BoxStream;
use std::sync::{Arc, Mutex};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic_types::StatusExt;
use v1::{AppendTasksRequest, AppendTasksResponse};

/// A batch that takes tasks and becomes durable when the test says so.
#[derive(Clone)]
struct Log {
    pushed: Arc<Mutex<Vec<(u64, usize)>>>,
    durable: watch::Sender<Result<u64, Error>>,
}

impl Log {
    fn new(durable: u64) -> Self {
        Self { pushed: Arc::default(), durable: watch::Sender::new(Ok(durable)) }
    }

    fn pushed(&self) -> Vec<(u64, usize)> {
        self.pushed.lock().expect("held by nobody").clone()
    }

    fn reach(&self, through: u64) {
        self.durable.send_replace(Ok(through)).expect("it was well");
    }

    fn end(&self) -> u64 {
        self.pushed().last().map_or(0, |&(first, count)| first + count as u64 - 1)
    }
}

#[async_trait]
impl Sink for Log {
    fn durable(&self) -> watch::Receiver<Result<u64, Error>> {
        self.durable.subscribe()
    }

    async fn push(&mut self, first: u64, tasks: TaskList) -> Result<(), Error> {
        let expected = self.end() + 1;
        if first > expected {
            return Err(Error::Gap { batch: BatchKey::new("n", "b"), expected, got: first });
        }
        self.pushed.lock().expect("held by nobody").push((first, tasks.len()));
        Ok(())
    }

    async fn finish(self) -> Result<u64, Error> {
        let end = self.end();
        let mut durable = self.durable.subscribe();
        let reached = durable.wait_for(|durable| !matches!(durable, Ok(through) if *through < end)).await;
        reached.expect("the sender is here").clone()
    }
}

struct Opened {
    requests: Option<mpsc::Sender<Result<AppendTasksRequest, Status>>>,
    acks: BoxStream<'static, Result<AppendTasksResponse, Status>>,
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

fn open(log: &Log) -> Opened {
    let (requests, receiver) = mpsc::channel(64);
    let (shutdown, tasks) = (CancellationToken::new(), TaskTracker::new());
    let context = Context {
        shutdown: shutdown.clone(),
        tasks: tasks.clone(),
        idle: Duration::from_mins(10),
        place: None,
    };
    let log = log.clone();
    let sink = move |batch: BatchKey| async move {
        if batch.id == "b" { Ok(log) } else { Err(Error::NotFound(batch)) }
    };
    let acks = responses(ReceiverStream::new(receiver), sink, context).boxed();
    Opened { requests: Some(requests), acks, shutdown, tasks }
}

impl Opened {
    async fn send(&self, name: &str, first_sequence: i64, count: usize) {
        let tasks = std::iter::repeat_n(v1::Task::default(), count).collect();
        let request = AppendTasksRequest { name: name.to_owned(), first_sequence, tasks };
        self.requests.as_ref().expect("open").send(Ok(request)).await.expect("read");
    }

    async fn ack(&mut self) -> i64 {
        self.acks.next().await.expect("open").expect("right").durable_through
    }

    /// The status that ends the stream: its reason and message.
    async fn end(&mut self) -> (String, String) {
        let status = loop {
            match self.acks.next().await.expect("a status") {
                Ok(_) => {}
                Err(status) => break status,
            }
        };
        assert!(self.acks.next().await.is_none(), "nothing after it");
        let reason = status.get_error_details().error_info().expect("there").reason.clone();
        (reason, status.message().to_owned())
    }
}

const NAME: &str = "namespaces/n/batches/b";

#[tokio::test]
async fn the_first_ack_says_where_to_go_on_then_each_growth_and_the_end_waits() {
    let log = Log::new(0);
    let mut stream = open(&log);
    stream.send(NAME, 1, 3).await;
    assert_eq!(stream.ack().await, 0, "at once");
    stream.send("", 4, 2).await;
    stream.send(NAME, 6, 1).await;
    log.reach(3);
    assert_eq!(stream.ack().await, 3);
    stream.requests = None;
    assert!(stream.acks.next().now_or_never().is_none(), "not all is durable");
    log.reach(6);
    assert_eq!(stream.ack().await, 6);
    assert!(stream.acks.next().await.is_none(), "the end");
    assert_eq!(log.pushed(), [(1, 3), (4, 2), (6, 1)]);
    stream.tasks.close();
    stream.tasks.wait().await;
}

#[tokio::test]
async fn a_stream_without_tasks_asks_where_to_go_on() {
    let log = Log::new(42);
    let mut stream = open(&log);
    stream.send(NAME, 0, 0).await;
    stream.requests = None;
    assert_eq!(stream.ack().await, 42);
    assert!(stream.acks.next().await.is_none());
    assert_eq!(log.pushed(), []);
}

#[tokio::test]
async fn a_client_that_reads_no_acks_is_read_all_the_same() {
    let log = Log::new(0);
    let mut stream = open(&log);
    stream.send(NAME, 1, 1).await;
    assert_eq!(stream.ack().await, 0);
    // More than the channel holds, and nobody polls the acknowledgements.
    for first in 2..=1000 {
        stream.send("", first, 1).await;
        log.reach(first.cast_unsigned() - 1);
    }
    stream.requests = None;
    log.reach(1000);
    assert_eq!(stream.ack().await, 1000, "they merged");
    assert!(stream.acks.next().await.is_none());
}

#[tokio::test]
async fn wrong_messages_end_the_stream_with_their_field() {
    for (name, first, count, reason, text) in [
        ("", 1, 1, "INVALID_ARGUMENT", "name: is required"),
        ("x", 1, 1, "INVALID_ARGUMENT", "name: \"x\""),
        (NAME, 0, 1, "INVALID_ARGUMENT", "first_sequence: is 0"),
        (NAME, 2, 1, "APPEND_GAP", "the next is 1"),
        ("namespaces/n/batches/other", 1, 1, "BATCH_NOT_FOUND", "not found"),
    ] {
        let mut stream = open(&Log::new(0));
        stream.send(name, first, count).await;
        let (found, message) = stream.end().await;
        assert!(found == reason && message.contains(text), "{found}: {message}");
    }
    for (name, first, text) in
        [("namespaces/n/batches/c", 2, "name: "), (NAME, 3, "leaves a gap"), ("", -1, "is -1")]
    {
        let mut stream = open(&Log::new(0));
        stream.send(NAME, 1, 1).await;
        assert_eq!(stream.ack().await, 0);
        stream.send(name, first, 1).await;
        let (_, message) = stream.end().await;
        assert!(message.contains(text), "{message}");
    }
    let mut stream = open(&Log::new(0));
    stream.requests = None;
    assert!(stream.end().await.1.contains("name: is required"), "no message at all");
}

#[tokio::test]
async fn a_message_too_large_to_read_names_its_field() {
    let mut stream = open(&Log::new(0));
    stream.send(NAME, 1, 1).await;
    assert_eq!(stream.ack().await, 0);
    let refused = Status::out_of_range("Error, decoded message length too large");
    stream.requests.as_ref().expect("open").send(Err(refused)).await.expect("read");
    let (reason, message) = stream.end().await;
    assert_eq!(reason, "INVALID_ARGUMENT");
    assert!(message.contains("tasks: the message is larger"), "{message}");
}

#[tokio::test]
async fn shutdown_a_lost_batch_and_a_client_that_leaves_end_it() {
    let log = Log::new(0);
    let mut stream = open(&log);
    stream.shutdown.cancel();
    assert_eq!(stream.end().await.0, "SHUTTING_DOWN", "before its first message");

    let mut stream = open(&log);
    stream.send(NAME, 1, 1).await;
    assert_eq!(stream.ack().await, 0);
    stream.shutdown.cancel();
    assert_eq!(stream.end().await.0, "SHUTTING_DOWN");

    let mut stream = open(&log);
    stream.send(NAME, 1, 1).await;
    assert_eq!(stream.ack().await, 0);
    log.durable.send_replace(Err(Error::NotOwned { batch: BatchKey::new("n", "b") })).expect("it was well");
    assert_eq!(stream.end().await.0, "NO_OWNER");

    let mut stream = open(&Log::new(0));
    stream.send(NAME, 1, 1).await;
    assert_eq!(stream.ack().await, 0);
    drop(stream.acks);
    stream.tasks.close();
    stream.tasks.wait().await;
}
