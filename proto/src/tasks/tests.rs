use super::*;
use crate::AppendTasksRequest;
use crate::v1;
use prost_types::field_descriptor_proto::Type;

fn tasks(count: usize) -> Vec<Task> {
    // Lengths of one and of two bytes, empty fields, keys of several bytes a letter.
    (0..count)
        .map(|n| Task { key: "kä".repeat(n % 5), payload: Bytes::from(vec![n as u8; (n * 37) % 300]) })
        .collect()
}

fn read(list: &TaskList) -> Vec<Task> {
    list.iter()
        .map(|task| task.expect("a task"))
        .map(|task| Task { key: task.key.into(), payload: Bytes::copy_from_slice(task.payload) })
        .collect()
}

/// As a derived message would be: `tasks` with their number.
fn derived(tasks: &[Task]) -> Vec<u8> {
    let mut bytes = Vec::new();
    encoding::message::encode_repeated(TASKS, tasks, &mut bytes);
    bytes
}

#[test]
fn a_list_is_what_prost_would_encode_and_is_cut_and_joined_without_decoding() {
    let all = tasks(40);
    let list: TaskList = all.iter().cloned().collect();
    assert_eq!(list.bytes().as_ref(), derived(&all));
    assert_eq!(list.len(), 40);
    assert_eq!(read(&list), all);
    for (begin, end) in [(0, 0), (0, 1), (0, 40), (7, 23), (39, 40), (40, 40)] {
        let part = list.slice(begin..end);
        assert_eq!(read(&part), all[begin..end], "{begin}..{end}");
        assert_eq!(part.bytes().as_ref(), derived(&all[begin..end]));
        let mut joined = list.slice(0..begin);
        joined.append(&part);
        joined.append(&list.slice(end..40));
        assert_eq!(joined, list);
        assert_eq!(TaskList::concat(&[list.slice(0..begin), part, list.slice(end..40)]), list);
    }
    assert_eq!(TaskList::decode(list.bytes().clone()).expect("decoded"), list);
    assert_eq!(format!("{:?}", list.slice(0..1)), "[Ok(TaskRef { key: \"\", payload: [] })]");
}

#[test]
fn as_many_as_fit_are_counted_at_every_byte() {
    let list: TaskList = tasks(3).into_iter().collect();
    let ends: Vec<usize> = (1..=3).map(|n| list.slice(0..n).bytes().len()).collect();
    for bytes in 0..=ends[2] + 1 {
        assert_eq!(list.fitting(bytes), ends.iter().filter(|end| **end <= bytes).count(), "{bytes}");
    }
}

#[test]
fn a_slice_and_a_decoded_request_share_the_bytes() {
    let list: TaskList = tasks(10).into_iter().collect();
    let part = list.slice(2..5);
    assert!(list.bytes().as_ref().as_ptr_range().contains(&part.bytes().as_ptr()));
    let message = AppendTasksRequest { name: "n".into(), first_sequence: 7, tasks: list };
    let bytes = Bytes::from(message.encode_to_vec());
    let request = AppendTasksRequest::decode(bytes.clone()).expect("decoded");
    assert_eq!(request, message);
    assert!(bytes.as_ref().as_ptr_range().contains(&request.tasks.bytes().as_ptr()));
}

#[test]
fn a_request_is_read_in_any_order_and_passes_over_newer_fields() {
    let all = tasks(5);
    let mut bytes = Vec::new();
    encoding::message::encode(TASKS, &all[0], &mut bytes);
    encoding::uint64::encode(15, &5, &mut bytes);
    encoding::message::encode_repeated(TASKS, &all[1..3], &mut bytes);
    encoding::string::encode(1, &"first".to_owned(), &mut bytes);
    encoding::string::encode(1, &"last wins".to_owned(), &mut bytes);
    // The key of the field in two bytes: allowed, and written by nobody.
    bytes.extend([KEY | 0x80, 0]);
    encoding::encode_varint(all[3].encoded_len() as u64, &mut bytes);
    all[3].encode_raw(&mut bytes);
    encoding::int64::encode(2, &9, &mut bytes);
    encoding::message::encode(TASKS, &all[4], &mut bytes);
    let wanted =
        AppendTasksRequest { name: "last wins".into(), first_sequence: 9, tasks: all.into_iter().collect() };
    assert_eq!(AppendTasksRequest::decode(bytes.as_slice()).expect("decoded"), wanted);
    // The way of a derived message: field by field.
    let mut merged = AppendTasksRequest::default();
    merged.merge(bytes.as_slice()).expect("merged");
    assert_eq!(merged, wanted);
    assert_eq!(wanted.encoded_len(), wanted.encode_to_vec().len());
    merged.clear();
    assert_eq!(merged, AppendTasksRequest::default());
}

#[test]
fn a_task_is_read_as_prost_reads_it() {
    let cases: &[&[u8]] = &[
        b"",
        b"\x0a\x01a\x12\x02bc",
        b"\x12\x02bc\x0a\x01a",
        b"\x0a\x01a\x0a\x01b",
        b"\x0a\x00",
        b"\x8a\x00\x01a",
        b"\x78\x05\x0a\x01a",
        b"\x0a\x02a",
        b"\x0a\x01\xff",
        b"\x08\x01",
        b"\x0b",
        b"\x0a",
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    ];
    for case in cases {
        let read = TaskRef::decode(case).map(|task| (task.key.to_owned(), task.payload.to_vec())).ok();
        let prost = Task::decode(*case).map(|task| (task.key, task.payload.to_vec())).ok();
        assert_eq!(read, prost, "{case:?}");
    }
}

#[test]
fn what_is_cut_off_is_refused_at_every_byte() {
    let list: TaskList = tasks(4).into_iter().collect();
    let whole: Vec<usize> = (0..=4).map(|n| list.slice(0..n).bytes().len()).collect();
    for end in 0..=list.bytes().len() {
        let cut = TaskList::decode(list.bytes().slice(..end));
        assert_eq!(cut.is_ok(), whole.contains(&end), "{end}");
    }
    let wrong_type = Bytes::from_static(&[(TASKS << 3) as u8, 1]);
    TaskList::decode(wrong_type).expect_err("a number instead of a task");
}

#[test]
fn a_builder_takes_what_fits_to_the_byte() {
    let mut builder = TaskListBuilder::default();
    assert!(builder.is_empty());
    let mut bytes = 0;
    for task in &tasks(30) {
        bytes += derived(std::slice::from_ref(task)).len();
        assert!(!builder.push_within(task, bytes - 1));
        assert!(builder.push_within(task, bytes));
        assert_eq!(builder.encoded_len(), bytes);
    }
    assert_eq!(builder.len(), 30);
    let list = builder.take();
    assert_eq!((read(&list), builder.len(), builder.encoded_len()), (tasks(30), 0, 0));
}

#[test]
fn the_schema_says_what_is_written_by_hand() {
    let request = AppendTasksRequest { name: "b".into(), first_sequence: 3, tasks: TaskList::default() };
    assert_eq!(request.encode_to_vec(), b"\x0a\x01b\x10\x03");
    let set = prost_types::FileDescriptorSet::decode(crate::FILE_DESCRIPTOR_SET).expect("a set");
    let field = |message: &str, name: &str| {
        let messages = set.file.iter().flat_map(|file| &file.message_type);
        let found =
            messages.filter(|m| m.name() == message).flat_map(|m| &m.field).find(|f| f.name() == name);
        let found = found.expect("there");
        (found.number(), found.r#type())
    };
    assert_eq!(field("AppendTasksRequest", "name"), (1, Type::String));
    assert_eq!(field("AppendTasksRequest", "first_sequence"), (2, Type::Int64));
    assert_eq!(field("AppendTasksRequest", "tasks"), (3, Type::Message));
    assert_eq!(field("TaskList", "tasks"), (3, Type::Message));
    assert_eq!(field("Task", "key"), (1, Type::String));
    assert_eq!(field("Task", "payload"), (2, Type::Bytes));
    let fields =
        set.file.iter().flat_map(|file| &file.message_type).find(|m| m.name() == "AppendTasksRequest");
    assert_eq!(fields.expect("there").field.len(), 3, "a new field belongs into append.rs, too");
    let _ = v1::Task::default();
}
