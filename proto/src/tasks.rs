//! Tasks as they travel: encoded once by the client, decoded once by the worker.
//!
//! A coordinator moves millions of tasks a second and needs of each only where it begins. So it keeps them
//! as the bytes that came: a [`TaskList`] is those bytes and the place at which each task ends, and a part
//! of it shares its memory. `TaskList.tasks` and `AppendTasksRequest.tasks` have the same field number: the
//! bytes of the one are the bytes of the other.

use crate::v1::Task;
use bytes::{BufMut, Bytes, BytesMut};
use prost::encoding::{self, DecodeContext, WireType};
use prost::{DecodeError, Message};
use std::fmt;
use std::ops::Range;

/// `tasks`, in `TaskList` and in `AppendTasksRequest`.
const TASKS: u32 = 3;
/// Its key, as every encoder writes it.
const KEY: u8 = (TASKS << 3) as u8 | WireType::LengthDelimited as u8;
/// The most bytes of a list: places are 32-bit numbers.
const MAX_BYTES: usize = u32::MAX as usize;

/// Tasks, encoded. Cheap to clone and to cut; the tasks' own bytes are looked at when they are read.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct TaskList {
    /// Each task: the field's key, its length, the task.
    bytes: Bytes,
    /// Where each task ends in `bytes`; it begins where the one before ends.
    ends: Vec<u32>,
}

/// A task of a list, decoded where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskRef<'a> {
    /// [`Task::key`].
    pub key: &'a str,
    /// [`Task::payload`].
    pub payload: &'a [u8],
}

impl TaskList {
    /// Finds the tasks in an encoded `TaskList`. Fields of a newer version are dropped.
    ///
    /// # Errors
    /// When it is no such message. What is inside of the tasks is checked when they are read.
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut list = Self::default();
        list.fields(bytes, |_, _, _| Ok(false))?;
        Ok(list)
    }

    /// How many tasks.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The encoded `TaskList`.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// What it takes in memory beside its bytes, which it may share.
    pub fn index_memory(&self) -> usize {
        self.ends.capacity() * size_of::<u32>()
    }

    /// The tasks, each decoded as it comes.
    pub fn iter(&self) -> impl Iterator<Item = Result<TaskRef<'_>, DecodeError>> {
        (0..self.len()).map(|index| TaskRef::decode(self.encoded(index)))
    }

    /// One task.
    ///
    /// # Errors
    /// When it is damaged.
    ///
    /// # Panics
    /// When the list has no such task.
    pub fn get(&self, index: usize) -> Result<TaskRef<'_>, DecodeError> {
        TaskRef::decode(self.encoded(index))
    }

    /// Some of the tasks. They share the memory of all.
    ///
    /// # Panics
    /// When the list is shorter.
    pub fn slice(&self, tasks: Range<usize>) -> Self {
        let (begin, end) = (self.begin(tasks.start), self.begin(tasks.end));
        let ends = self.ends[tasks].iter().map(|at| at - begin as u32).collect();
        Self { bytes: self.bytes.slice(begin..end), ends }
    }

    /// How many of its first tasks have at most so many bytes together, encoded.
    pub fn fitting(&self, bytes: usize) -> usize {
        self.ends.partition_point(|end| *end as usize <= bytes)
    }

    /// Adds the tasks of another list: a copy of its bytes, unless this one is empty.
    pub fn append(&mut self, other: &Self) {
        if self.is_empty() {
            self.clone_from(other);
            return;
        }
        let begin = self.bytes.len() as u32;
        let mut bytes =
            std::mem::take(&mut self.bytes).try_into_mut().unwrap_or_else(|all| all.as_ref().into());
        bytes.extend_from_slice(&other.bytes);
        self.bytes = bytes.freeze();
        self.ends.extend(other.ends.iter().map(|at| begin + at));
    }

    /// Joins lists: one copy of all bytes.
    pub fn concat(lists: &[Self]) -> Self {
        if let [one] = lists {
            return one.clone();
        }
        let mut bytes = BytesMut::with_capacity(lists.iter().map(|list| list.bytes.len()).sum());
        for list in lists {
            bytes.extend_from_slice(&list.bytes);
        }
        Self::moved(lists, bytes.freeze())
    }

    /// Lists as one, whose bytes are in `bytes` now, one after the other.
    ///
    /// # Panics
    /// When they are of another length.
    pub fn moved(lists: &[Self], bytes: Bytes) -> Self {
        let mut ends = Vec::with_capacity(lists.iter().map(Self::len).sum());
        let mut begin = 0;
        for list in lists {
            ends.extend(list.ends.iter().map(|at| begin + at));
            begin += list.bytes.len() as u32;
        }
        assert_eq!(begin as usize, bytes.len(), "the bytes of these lists");
        Self { bytes, ends }
    }

    fn begin(&self, index: usize) -> usize {
        index.checked_sub(1).map_or(0, |before| self.ends[before] as usize)
    }

    /// A task's own bytes, without the field's key and length.
    fn encoded(&self, index: usize) -> &[u8] {
        let field = &self.bytes[self.begin(index)..self.ends[index] as usize];
        // One byte of key, then the length, which was read before.
        let len = field[1..].iter().position(|byte| *byte < 0x80).map_or(field.len(), |at| at + 2);
        &field[len..]
    }

    /// Reads a message that has this list among its fields: `other` takes what isn't part of the list (its
    /// number, its type, what follows), or says that it doesn't know it, and it is passed over.
    pub(crate) fn fields(
        &mut self,
        bytes: Bytes,
        mut other: impl FnMut(u32, WireType, &mut &[u8]) -> Result<bool, DecodeError>,
    ) -> Result<(), DecodeError> {
        if bytes.len() > MAX_BYTES {
            return Err(broken("a list of tasks has at most 4 GiB"));
        }
        let mut at = 0;
        while at < bytes.len() {
            // The usual: all tasks are one after the other, and nothing is copied.
            let run = Self::leading(bytes.slice(at..))?;
            if !run.is_empty() {
                at += run.bytes.len();
                if self.is_empty() {
                    *self = run;
                } else {
                    self.append(&run);
                }
                continue;
            }
            let mut rest = &bytes[at..];
            let (tag, wire) = encoding::decode_key(&mut rest)?;
            if tag == TASKS {
                // A key that is longer than it need be.
                encoding::check_wire_type(WireType::LengthDelimited, wire)?;
                self.push_encoded(take(&mut rest)?);
            } else if !other(tag, wire, &mut rest)? {
                encoding::skip_field(wire, tag, &mut rest, DecodeContext::default())?;
            }
            at = bytes.len() - rest.len();
        }
        Ok(())
    }

    /// The tasks with which these bytes begin.
    fn leading(bytes: Bytes) -> Result<Self, DecodeError> {
        let (mut end, mut ends) = (0, Vec::new());
        while bytes.get(end) == Some(&KEY) {
            let mut rest = &bytes[end + 1..];
            take(&mut rest)?;
            end = bytes.len() - rest.len();
            ends.push(end as u32);
        }
        Ok(Self { bytes: bytes.slice(..end), ends })
    }

    /// Adds a task that is encoded already.
    pub(crate) fn push_encoded(&mut self, task: &[u8]) {
        let mut one = TaskListBuilder::default();
        one.field(task.len(), |bytes| bytes.put_slice(task));
        self.append(&one.finish());
    }
}

/// What a length and so many bytes hold.
fn take<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], DecodeError> {
    // Most lengths are one byte.
    let len = match rest.first() {
        Some(&len) if len < 0x80 => {
            *rest = &rest[1..];
            u64::from(len)
        }
        _ => encoding::decode_varint(rest)?,
    };
    match usize::try_from(len).ok().and_then(|len| rest.split_at_checked(len)) {
        Some((inside, after)) => {
            *rest = after;
            Ok(inside)
        }
        None => Err(broken("a task or a field of it is cut off")),
    }
}

impl<'a> TaskRef<'a> {
    /// Decodes a `Task` in place. Fields of a newer version are passed over.
    ///
    /// # Errors
    /// When it is no `Task`, or its key is not UTF-8.
    pub fn decode(mut bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let (mut key, mut payload): (&[u8], &[u8]) = (&[], &[]);
        while let Some(&first) = bytes.first() {
            match first {
                0x0A => {
                    bytes = &bytes[1..];
                    key = take(&mut bytes)?;
                }
                0x12 => {
                    bytes = &bytes[1..];
                    payload = take(&mut bytes)?;
                }
                _ => {
                    let (tag, wire) = encoding::decode_key(&mut bytes)?;
                    match tag {
                        1 | 2 => {
                            encoding::check_wire_type(WireType::LengthDelimited, wire)?;
                            let inside = take(&mut bytes)?;
                            *(if tag == 1 { &mut key } else { &mut payload }) = inside;
                        }
                        _ => encoding::skip_field(wire, tag, &mut bytes, DecodeContext::default())?,
                    }
                }
            }
        }
        let key = std::str::from_utf8(key).map_err(|_| broken("Task.key: is not UTF-8"))?;
        Ok(Self { key, payload })
    }
}

/// prost has no other way to make one, and its trait wants one.
#[expect(deprecated, reason = "the only constructor with a text")]
fn broken(text: &'static str) -> DecodeError {
    DecodeError::new(text)
}

impl fmt::Debug for TaskList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl FromIterator<Task> for TaskList {
    fn from_iter<I: IntoIterator<Item = Task>>(tasks: I) -> Self {
        let mut all = TaskListBuilder::default();
        tasks.into_iter().for_each(|task| all.push(&task));
        all.finish()
    }
}

/// As prost does, but for the payload: prost would clone it to put it there, which allocates when nobody shares it yet.
fn encode(task: &Task, bytes: &mut BytesMut) {
    if !task.key.is_empty() {
        encoding::string::encode(1, &task.key, bytes);
    }
    if !task.payload.is_empty() {
        encoding::encode_key(2, WireType::LengthDelimited, bytes);
        encoding::encode_varint(task.payload.len() as u64, bytes);
        bytes.put_slice(&task.payload);
    }
}

/// A list in the making.
#[derive(Debug, Default)]
pub struct TaskListBuilder {
    bytes: BytesMut,
    ends: Vec<u32>,
}

impl TaskListBuilder {
    /// How many tasks.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// How many bytes it has, encoded.
    pub fn encoded_len(&self) -> usize {
        self.bytes.len()
    }

    /// Adds a task.
    pub fn push(&mut self, task: &Task) {
        self.field(task.encoded_len(), |bytes| encode(task, bytes));
    }

    /// Adds a task, unless the list would have more than `most` bytes then. Says whether it did.
    pub fn push_within(&mut self, task: &Task, most: usize) -> bool {
        let len = task.encoded_len();
        let fits = self.bytes.len() + 1 + encoding::encoded_len_varint(len as u64) + len <= most;
        if fits {
            self.field(len, |bytes| encode(task, bytes));
        }
        fits
    }

    fn field(&mut self, len: usize, task: impl FnOnce(&mut BytesMut)) {
        self.bytes.reserve(len + 6);
        self.bytes.put_u8(KEY);
        encoding::encode_varint(len as u64, &mut self.bytes);
        task(&mut self.bytes);
        self.ends.push(self.bytes.len() as u32);
    }

    /// The list.
    pub fn finish(self) -> TaskList {
        TaskList { bytes: self.bytes.freeze(), ends: self.ends }
    }

    /// The list, and an empty one in its place with room for as much.
    pub fn take(&mut self) -> TaskList {
        // A little more, as lists of a kind differ: one that doesn't fit would be moved, all of it.
        let room = |len: usize| len + len / 16 + 64;
        let next = Self {
            bytes: BytesMut::with_capacity(room(self.bytes.len())),
            ends: Vec::with_capacity(room(self.ends.len())),
        };
        std::mem::replace(self, next).finish()
    }
}

#[cfg(test)]
mod tests;
