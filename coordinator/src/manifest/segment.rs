//! A segment in memory: its encoded bytes and where each task begins.
//!
//! A range is a small part of a segment; with the index only its own tasks are decoded, and a task costs
//! eight bytes beside its encoding, whatever its key.

use bytes::{Bytes, BytesMut};
use prost::Message;
use prost::encoding::{self, DecodeContext, WireType};
use std::ops::Range;
use tranche_proto::v1::Task;

/// `tasks` in `Segment`.
const TASKS: u32 = 1;

/// A segment whose bytes were checked, or were just made.
#[derive(Debug)]
pub(super) struct Verified {
    bytes: Bytes,
    /// For each task where its message begins and ends.
    places: Vec<(u32, u32)>,
}

impl Verified {
    /// Encodes tasks as a `Segment`.
    pub(super) fn encode(tasks: &[Task]) -> Self {
        let size = tasks.iter().map(|task| encoding::message::encoded_len(TASKS, task)).sum();
        let mut bytes = BytesMut::with_capacity(size);
        let places = tasks
            .iter()
            .map(|task| {
                encoding::message::encode(TASKS, task, &mut bytes);
                let end = bytes.len();
                ((end - task.encoded_len()) as u32, end as u32)
            })
            .collect();
        Self { bytes: bytes.freeze(), places }
    }

    /// Finds the tasks in the bytes of a `Segment`; fields of a newer version are passed over.
    pub(super) fn index(bytes: Bytes) -> Result<Self, String> {
        let text = |error: prost::DecodeError| error.to_string();
        if u32::try_from(bytes.len()).is_err() {
            return Err(format!("it has {} bytes, more than a segment ever has", bytes.len()));
        }
        let mut rest: &[u8] = &bytes;
        let mut places = Vec::new();
        while !rest.is_empty() {
            let (tag, wire) = encoding::decode_key(&mut rest).map_err(text)?;
            if tag != TASKS {
                encoding::skip_field(wire, tag, &mut rest, DecodeContext::default()).map_err(text)?;
                continue;
            }
            encoding::check_wire_type(WireType::LengthDelimited, wire).map_err(text)?;
            let len = encoding::decode_varint(&mut rest).map_err(text)?;
            let start = bytes.len() - rest.len();
            let len = usize::try_from(len).ok().filter(|&len| len <= rest.len());
            let len = len.ok_or("a task is cut off")?;
            rest = &rest[len..];
            places.push((start as u32, (start + len) as u32));
        }
        Ok(Self { bytes, places })
    }

    pub(super) fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// How many tasks it holds.
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// What it takes in memory, in bytes.
    pub(super) fn memory(&self) -> usize {
        self.bytes.len() + size_of_val(self.places.as_slice()) + size_of::<Self>()
    }

    /// Decodes the tasks at these places of the segment. Their payloads share its memory.
    pub(super) fn read(&self, tasks: Range<usize>, out: &mut Vec<Task>) -> Result<(), String> {
        for &(start, end) in self.places.get(tasks).ok_or("it holds too few tasks")? {
            let task = Task::decode(self.bytes.slice(start as usize..end as usize));
            out.push(task.map_err(|error| error.to_string())?);
        }
        Ok(())
    }
}
