//! Appending tasks: segments to object storage, then their records through the owner.

use super::bytes::Admitted;
use super::{Node, Shared};
use crate::driver::{Handle, Op};
use crate::error::Error;
use crate::manifest::Segments;
use crate::store::keys::BatchKey;
use futures::stream::{FuturesOrdered, StreamExt as _};
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio_util::task::AbortOnDropHandle;
use tranche_engine::{Answer, Epoch, Run, Segment};
use tranche_proto::{TaskList, v1};

/// Pushes of one stream that wait to be written. The bytes are bounded by `max_append_inflight_bytes`; this
/// bounds the number of small ones, and a push waits when it is full.
const PUSHES: usize = 256;
/// Bytes of one segment, at most, unless one push is larger: what a lease may carry.
const SEGMENT_BYTES: usize = 4 * 1024 * 1024;
/// Tasks of one segment, at most.
const SEGMENT_TASKS: usize = 262_144;
/// Segments of one stream that are not durable yet, or whose records aren't.
const SEGMENTS: usize = 6;
/// Segments of one stream that are being written to storage. While one is written the next gathers, and is written
/// beside it when it is full: a disk that syncs takes the next one meanwhile.
const WRITES: usize = 3;

struct Push {
    tasks: TaskList,
    room: Room,
}

/// What tasks take until they are durable.
struct Room {
    _memory: OwnedSemaphorePermit,
    _quota: Admitted,
}

/// What becomes one segment: one object and one record for many pushes.
#[derive(Default)]
struct Gathered {
    lists: Vec<TaskList>,
    tasks: usize,
    bytes: usize,
    rooms: Vec<Room>,
}

impl Gathered {
    fn has_room(&self, push: &Push) -> bool {
        self.lists.is_empty()
            || (self.bytes + push.tasks.bytes().len() <= SEGMENT_BYTES
                && self.tasks + push.tasks.len() <= SEGMENT_TASKS)
    }

    fn add(&mut self, push: Push) {
        self.tasks += push.tasks.len();
        self.bytes += push.tasks.bytes().len();
        self.lists.push(push.tasks);
        self.rooms.push(push.room);
    }
}

/// An open append stream into one batch.
///
/// Pushes are written in order; several may be waiting for durability.
pub struct Appender {
    shared: Arc<Shared>,
    batch: BatchKey,
    next: u64,
    pushes: mpsc::Sender<Push>,
    durable: watch::Receiver<Result<u64, Error>>,
    /// The epoch of the owner that takes the tasks; none in a batch that ended.
    epoch: Option<Epoch>,
    /// Why no further task is taken, in a batch that ended.
    ended: Option<Error>,
}

impl Node {
    /// Opens an append stream. Into a batch that ended, tasks that it has may be repeated: whoever missed the
    /// end finds it so.
    pub async fn append(&self, batch: &BatchKey) -> Result<Appender, Error> {
        let (pushes, receiver) = mpsc::channel(PUSHES);
        let handle = match self.owned(batch).await {
            Err(ended @ Error::WrongState { .. }) => {
                let total = self.stored_view(batch).await?.state.total.cast_unsigned();
                return Ok(Appender {
                    shared: self.shared.clone(),
                    batch: batch.clone(),
                    next: total + 1,
                    pushes,
                    durable: watch::channel(Ok(total)).1,
                    epoch: None,
                    ended: Some(ended),
                });
            }
            handle => handle?,
        };
        let total = handle.view().borrow().state.total.cast_unsigned();
        let epoch = Some(handle.epoch());
        let (durable, seen) = watch::channel(Ok(total));
        let writer = Writer {
            shared: self.shared.clone(),
            batch: batch.clone(),
            segments: self.shared.objects.segments(batch),
            handle,
            next: total + 1,
            durable,
        };
        self.shared.tasks.spawn(writer.run(receiver));
        Ok(Appender {
            shared: self.shared.clone(),
            batch: batch.clone(),
            next: total + 1,
            pushes,
            durable: seen,
            epoch,
            ended: None,
        })
    }
}

impl Appender {
    /// Grows whenever more tasks are durable; holds the highest durable sequence number. An `Err` in it
    /// ends the stream.
    pub fn durable(&self) -> watch::Receiver<Result<u64, Error>> {
        self.durable.clone()
    }

    /// Hands over tasks (validated). Waits while too much is in flight. Tasks that were handed over
    /// already are dropped.
    pub async fn push(&mut self, first: u64, mut tasks: TaskList) -> Result<(), Error> {
        if first > self.next {
            let batch = self.batch.clone();
            if let Some(epoch) = self.epoch {
                self.shared.still_owner(&batch, epoch).await?;
            }
            return Err(Error::Gap { batch, expected: self.next, got: first });
        }
        let known = usize::try_from(self.next - first).unwrap_or(usize::MAX);
        if known >= tasks.len() {
            return self.failure();
        }
        if let Some(ended) = &self.ended {
            return Err(ended.clone());
        }
        if known > 0 {
            tasks = tasks.slice(known..tasks.len());
        }
        let quota = self.shared.admit(&self.batch, tasks.bytes().len() as u64).await?;
        // Their bytes, and where each ends.
        let bytes = tasks.bytes().len() + tasks.index_memory();
        let permits =
            u32::try_from(bytes.min(self.shared.config.max_append_inflight_bytes)).unwrap_or(u32::MAX);
        let permit = tokio::select! {
            biased;
            () = self.shared.stop.cancelled() => return Err(Error::ShuttingDown),
            permit = self.shared.append_bytes.clone().acquire_many_owned(permits) => {
                permit.map_err(|_| Error::ShuttingDown)?
            }
        };
        self.next += tasks.len() as u64;
        if self.pushes.send(Push { tasks, room: Room { _memory: permit, _quota: quota } }).await.is_err() {
            self.failure()?;
            return Err(Error::NotOwned { batch: self.batch.clone() });
        }
        Ok(())
    }

    fn failure(&self) -> Result<(), Error> {
        self.durable.borrow().as_ref().map(|_| ()).map_err(Clone::clone)
    }

    /// Waits until everything that was pushed is durable.
    pub async fn finish(self) -> Result<u64, Error> {
        let Self { pushes, mut durable, next, batch, .. } = self;
        drop(pushes);
        let reached = durable.wait_for(|durable| match durable {
            Ok(through) => *through + 1 >= next,
            Err(_) => true,
        });
        match reached.await {
            Ok(durable) => durable.clone(),
            Err(_) => Err(Error::NotOwned { batch }),
        }
    }
}

struct Writer {
    shared: Arc<Shared>,
    batch: BatchKey,
    segments: Segments,
    handle: Handle,
    next: u64,
    durable: watch::Sender<Result<u64, Error>>,
}

impl Writer {
    async fn run(mut self, mut pushes: mpsc::Receiver<Push>) {
        if let Err(error) = self.write_all(&mut pushes).await {
            drop(self.durable.send_replace(Err(error)));
        }
    }

    async fn write_all(&mut self, pushes: &mut mpsc::Receiver<Push>) -> Result<(), Error> {
        let mut answers = FuturesOrdered::new();
        let mut writes = FuturesOrdered::new();
        let mut gathered = Gathered::default();
        // What didn't fit into the segment that gathers, which is full then.
        let mut next: Option<Push> = None;
        let mut open = true;
        loop {
            // A segment that isn't full waits only for one that is on its way: the first tasks are durable soon,
            // and many small pushes become one object.
            let ready = !gathered.lists.is_empty() && (writes.is_empty() || next.is_some());
            if ready && writes.len() < WRITES && writes.len() + answers.len() < SEGMENTS {
                while next.is_none()
                    && let Ok(push) = pushes.try_recv()
                {
                    if gathered.has_room(&push) { gathered.add(push) } else { next = Some(push) }
                }
                let segment = std::mem::take(&mut gathered);
                if let Some(push) = next.take() {
                    gathered.add(push);
                }
                let first = self.next;
                self.next += segment.tasks as u64;
                let segments = self.segments.clone();
                let written = self
                    .shared
                    .tasks
                    .spawn(async move { (segments.write(first, segment.lists).await, segment.rooms) });
                writes.push_back(AbortOnDropHandle::new(written));
                continue;
            }
            let gathering = open && next.is_none();
            if !gathering && gathered.lists.is_empty() && writes.is_empty() && answers.is_empty() {
                return Ok(());
            }
            tokio::select! {
                biased;
                Some((answer, last, rooms)) = answers.next(), if !answers.is_empty() => {
                    drop::<Vec<Room>>(rooms);
                    self.answered(answer, last)?;
                }
                Some(written) = writes.next(), if !writes.is_empty() => {
                    let (record, rooms) = written.map_err(|error| Error::Objects(error.to_string()))?;
                    let record: v1::SegmentRecord = record?;
                    let last = record.last.cast_unsigned();
                    let segment = Segment {
                        run: Run::new(record.first.cast_unsigned(), last),
                        object: record.object,
                        offset: record.offset.cast_unsigned(),
                        bytes: record.size.cast_unsigned(),
                        crc32c: record.crc32c,
                    };
                    let pending = self.handle.begin(&self.batch, Op::Append(segment)).await?;
                    answers.push_back(async move { (pending.answer().await, last, rooms) });
                }
                push = pushes.recv(), if gathering => match push {
                    Some(push) if gathered.has_room(&push) => gathered.add(push),
                    push => {
                        open = push.is_some();
                        next = push;
                    }
                },
            }
        }
    }

    fn answered(&self, answer: Result<Answer, Error>, last: u64) -> Result<(), Error> {
        match answer? {
            Answer::Appended(through) => {
                // Another stream may have brought more. This one is only told of what it sent itself: its
                // client would go on after the rest, which here is a gap.
                let through = through.min(last);
                self.durable.send_if_modified(|durable| {
                    let grew = matches!(durable, Ok(before) if *before < through);
                    if grew {
                        *durable = Ok(through);
                    }
                    grew
                });
                Ok(())
            }
            other @ (Answer::Sealed | Answer::Retried(_)) => unreachable!("an append was answered {other:?}"),
        }
    }
}
