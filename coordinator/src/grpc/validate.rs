//! From requests to what the node trusts.
//!
//! Every limit in the comments of the protos is checked here and nowhere else. All problems of a request
//! are told at once, each with the path of its field and the value.

mod object;
mod spec;

pub(crate) use spec::create;

use crate::error::{Error, Violation};
use crate::store::keys::BatchKey;
use prost::Message;
use tranche_proto::{MAX_APPEND_BYTES, MAX_APPEND_TASKS, MAX_KEY_BYTES, MAX_PAYLOAD_BYTES, v1};

/// The namespace of who names none.
pub(crate) const DEFAULT_NAMESPACE: &str = "default";
/// In a name, the namespace of whoever calls.
pub(crate) const OWN_NAMESPACE: &str = "-";
/// The most characters of an actor.
const MAX_ACTOR_CHARS: usize = 200;
/// The most characters of a cancel's message.
const MAX_MESSAGE_CHARS: usize = 1000;
/// A client that sends a million broken tasks is told about this many.
const MAX_VIOLATIONS: usize = 20;

/// The problems found so far.
#[derive(Default)]
struct Problems(Vec<Violation>);

impl Problems {
    fn add(&mut self, field: impl Into<String>, description: impl Into<String>) {
        if self.0.len() < MAX_VIOLATIONS {
            self.0.push(Violation::new(field, description));
        }
    }

    fn chars(&mut self, field: impl Into<String>, value: &str, least: usize, most: usize) {
        let count = value.chars().count();
        if !(least..=most).contains(&count) {
            self.add(field, format!("has {count} characters, must have {least} to {most}"));
        }
    }

    fn finish<T>(self, value: T) -> Result<T, Error> {
        if self.0.is_empty() { Ok(value) } else { Err(Error::Invalid(self.0)) }
    }
}

/// One wrong field.
pub(crate) fn invalid(field: impl Into<String>, description: impl Into<String>) -> Error {
    Error::Invalid(vec![Violation::new(field, description)])
}

/// True for a handler's name: 1 to 63 of `a-z`, `0-9`, `-`, `_`.
pub(crate) fn is_handler_name(name: &str) -> bool {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
    (1..=63).contains(&name.len()) && name.bytes().all(word)
}

/// A batch's resource name.
pub(crate) fn batch_name(field: &str, name: &str) -> Result<BatchKey, Error> {
    BatchKey::parse(name).ok_or_else(|| match name {
        "" => invalid(field, "is required: namespaces/{namespace}/batches/{batch}"),
        _ => invalid(
            field,
            format!(
                "{} is not namespaces/{{namespace}}/batches/{{batch}} with words of a-z, 0-9 and -",
                quoted(name)
            ),
        ),
    })
}

/// A namespace's resource name. `None`: the caller's own, which is named by nothing, or by `-`.
pub(crate) fn namespace(field: &str, parent: &str) -> Result<Option<String>, Error> {
    if parent.is_empty() {
        return Ok(None);
    }
    // What is a namespace in a batch's name is one here.
    match BatchKey::parse(&format!("{parent}/batches/x")) {
        Some(key) if key.id == "x" => Ok(Some(key.namespace).filter(|named| named != OWN_NAMESPACE)),
        _ => Err(invalid(
            field,
            format!("{} is not namespaces/{{namespace}} with a word of a-z, 0-9 and -", quoted(parent)),
        )),
    }
}

/// A CommitBatch.
pub(crate) fn commit(request: &v1::CommitBatchRequest) -> Result<BatchKey, Error> {
    let batch = batch_name("name", &request.name)?;
    let mut problems = Problems::default();
    problems.chars("actor", &request.actor, 0, MAX_ACTOR_CHARS);
    problems.finish(batch)
}

/// A CancelBatch.
pub(crate) fn cancel(request: &v1::CancelBatchRequest) -> Result<BatchKey, Error> {
    let batch = batch_name("name", &request.name)?;
    let mut problems = Problems::default();
    problems.chars("actor", &request.actor, 0, MAX_ACTOR_CHARS);
    problems.chars("message", &request.message, 0, MAX_MESSAGE_CHARS);
    problems.finish(batch)
}

/// A SealBatch.
pub(crate) fn seal(request: &v1::SealBatchRequest) -> Result<BatchKey, Error> {
    let batch = batch_name("name", &request.name)?;
    match request.total {
        Some(total) if total < 0 => Err(invalid("total", format!("is {total}, must not be negative"))),
        _ => Ok(batch),
    }
}

/// The states of a ListBatches.
pub(crate) fn states(states: &[i32]) -> Result<Vec<v1::batch::State>, Error> {
    let mut problems = Problems::default();
    let mut known = Vec::new();
    for (index, &number) in states.iter().enumerate() {
        match v1::batch::State::try_from(number) {
            Ok(state) if state != v1::batch::State::Unspecified => known.push(state),
            _ => problems.add(format!("states[{index}]"), format!("{number} is no state")),
        }
    }
    problems.finish(known)
}

/// A message of an append stream into `batch`: its first sequence number, 0 when it has no tasks.
pub(crate) fn append(batch: &BatchKey, request: &v1::AppendTasksRequest) -> Result<u64, Error> {
    let mut problems = Problems::default();
    if !request.name.is_empty() && request.name != batch.to_string() {
        let was = format!("{} differs from the stream's {batch}", quoted(&request.name));
        problems.add("name", was);
    }
    let first = request.first_sequence;
    let least = i64::from(!request.tasks.is_empty());
    if first < least {
        problems.add("first_sequence", format!("is {first}, the first of a batch is 1"));
    } else if first.checked_add_unsigned(request.tasks.len() as u64).is_none() {
        problems.add("first_sequence", format!("is {first}, which leaves no numbers for the tasks"));
    }
    if request.tasks.len() > MAX_APPEND_TASKS {
        let count = request.tasks.len();
        problems.add("tasks", format!("has {count} tasks, a message may have {MAX_APPEND_TASKS}"));
    }
    let bytes = request.encoded_len();
    if bytes > MAX_APPEND_BYTES {
        problems.add("tasks", format!("the message has {bytes} bytes, it may have {MAX_APPEND_BYTES}"));
    }
    for (index, task) in request.tasks.iter().enumerate() {
        let task = match task {
            Ok(task) => task,
            Err(error) => {
                problems.add(format!("tasks[{index}]"), error.to_string());
                continue;
            }
        };
        if task.key.len() > MAX_KEY_BYTES {
            let len = task.key.len();
            problems
                .add(format!("tasks[{index}].key"), format!("has {len} bytes, it may have {MAX_KEY_BYTES}"));
        }
        if task.payload.len() > MAX_PAYLOAD_BYTES {
            let len = task.payload.len();
            problems.add(
                format!("tasks[{index}].payload"),
                format!("has {len} bytes, it may have {MAX_PAYLOAD_BYTES}"),
            );
        }
    }
    problems.finish(first.cast_unsigned())
}

/// A value in an error: never more than a line of it.
fn quoted(value: &str) -> String {
    const SHOWN: usize = 120;
    match value.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{:?}…", &value[..end]),
        None => format!("{value:?}"),
    }
}

#[cfg(test)]
mod tests;
