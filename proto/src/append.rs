//! `AppendTasksRequest`, whose tasks stay encoded.

use crate::TaskList;
use bytes::{Buf, BufMut};
use prost::encoding::{self, DecodeContext, WireType};
use prost::{DecodeError, Message};

/// Request of AppendTasks: `tranche.v1.AppendTasksRequest`, with its tasks as a [`TaskList`].
///
/// Written by hand because a derived message would make a value of every task on its way through.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AppendTasksRequest {
    /// REQUIRED in the first message of a stream, optional later (it can't change). The batch.
    pub name: String,
    /// REQUIRED. Sequence number of the first task here. The first of a batch is 1.
    pub first_sequence: i64,
    /// The tasks, with consecutive sequence numbers: at most 65,536 and 4 MiB a message. May be empty in the
    /// first message, to learn where to go on.
    pub tasks: TaskList,
}

const NAME: u32 = 1;
const FIRST_SEQUENCE: u32 = 2;
const TASKS: u32 = 3;

impl AppendTasksRequest {
    /// A field that isn't the tasks; false: it isn't known.
    fn other(
        &mut self,
        tag: u32,
        wire: WireType,
        buf: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<bool, DecodeError> {
        match tag {
            NAME => encoding::string::merge(wire, &mut self.name, buf, context)?,
            FIRST_SEQUENCE => encoding::int64::merge(wire, &mut self.first_sequence, buf, context)?,
            _ => return Ok(false),
        }
        Ok(true)
    }
}

impl Message for AppendTasksRequest {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        if !self.name.is_empty() {
            encoding::string::encode(NAME, &self.name, buf);
        }
        if self.first_sequence != 0 {
            encoding::int64::encode(FIRST_SEQUENCE, &self.first_sequence, buf);
        }
        buf.put_slice(self.tasks.bytes());
    }

    fn encoded_len(&self) -> usize {
        let name = if self.name.is_empty() { 0 } else { encoding::string::encoded_len(NAME, &self.name) };
        let first = match self.first_sequence {
            0 => 0,
            first => encoding::int64::encoded_len(FIRST_SEQUENCE, &first),
        };
        name + first + self.tasks.bytes().len()
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire: WireType,
        buf: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        if tag == TASKS {
            let mut task = bytes::Bytes::new();
            encoding::bytes::merge(wire, &mut task, buf, context)?;
            self.tasks.push_encoded(&task);
            return Ok(());
        }
        if self.other(tag, wire, buf, context.clone())? {
            return Ok(());
        }
        encoding::skip_field(wire, tag, buf, context)
    }

    /// The tasks are a slice of what came: nothing of them is copied.
    fn decode(mut buf: impl Buf) -> Result<Self, DecodeError> {
        let mut tasks = TaskList::default();
        let mut request = Self::default();
        tasks.fields(buf.copy_to_bytes(buf.remaining()), |tag, wire, rest| {
            request.other(tag, wire, rest, DecodeContext::default())
        })?;
        request.tasks = tasks;
        Ok(request)
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}
