//! What is said of an outcome, cut to what a frame may hold.

use super::held::Outcome;
use super::state::Now;
use crate::handler::TaskFailure;
use crate::lease::Token;
use prost::Message as _;
use tracing::warn;
use tranche_proto::{MAX_FAILURE_MESSAGE_BYTES, MAX_FRAME_BYTES, MAX_KEY_BYTES, MAX_RECEIPT_BYTES, v1};

/// The most bytes of a failure's code.
const MAX_CODE_BYTES: usize = 64;
/// For the frame's own few bytes around a report, and for what is said when it is cut.
const SPARE: usize = 1024;

/// The report of an outcome.
pub(super) fn report(batch: &str, token: Token, phase: i32, outcome: Outcome, elapsed: Now) -> v1::Report {
    let mut report = v1::Report {
        batch: batch.to_owned(),
        token: Some(token.into()),
        phase,
        elapsed: prost_types::Duration::try_from(elapsed).ok(),
        ..Default::default()
    };
    match outcome {
        Outcome::Staged { receipt, .. } if receipt.len() > MAX_RECEIPT_BYTES => {
            report.error =
                format!("the handler's receipt has {} bytes, more than {MAX_RECEIPT_BYTES}", receipt.len());
        }
        Outcome::Staged { done, failures, receipt } => {
            report.done = done.cast_signed();
            report.receipt = receipt;
            report.failures = failures.into_iter().map(failure).collect();
        }
        Outcome::Done(done) => report.done = done.cast_signed(),
        Outcome::Published(done) => (report.done, report.published) = (done.cast_signed(), true),
        Outcome::Swept(residue) => report.residue = residue.cast_signed(),
        Outcome::Error(error) if error.is_empty() => {
            "the handler failed and said nothing".clone_into(&mut report.error);
        }
        Outcome::Error(error) => report.error = cut(error, MAX_RECEIPT_BYTES),
    }
    fit(&mut report, MAX_FRAME_BYTES - SPARE);
    report
}

/// Cuts what is for people, first the messages, then the keys, all to the same length, until the report
/// has at most `room` bytes. The numbers of the failures are what counts; they stay.
fn fit(report: &mut v1::Report, room: usize) {
    let size = report.encoded_len();
    if size <= room {
        return;
    }
    let excess = size - room;
    let messages = limit(MAX_FAILURE_MESSAGE_BYTES, excess, report.failures.iter().map(|f| f.message.len()));
    for failure in &mut report.failures {
        cut_in_place(&mut failure.message, messages);
    }
    let excess = report.encoded_len().saturating_sub(room);
    let keys = limit(MAX_KEY_BYTES, excess, report.failures.iter().map(|f| f.key.len()));
    for failure in &mut report.failures {
        cut_in_place(&mut failure.key, keys);
    }
    warn!(batch.id = report.batch, token = ?report.token, size, messages, keys, "a report is too large: its failures' texts are cut");
    if let Some(last) = report.failures.last_mut() {
        let note = format!("the report was too large: messages are cut to {messages} bytes, keys to {keys}");
        last.message = cut(format!("[{note}] {}", last.message), MAX_FAILURE_MESSAGE_BYTES);
    }
    if report.encoded_len() > MAX_FRAME_BYTES - 64 {
        report.error = format!("{} failures don't fit into one report", report.failures.len());
        report.failures.clear();
        report.done = 0;
    }
}

/// The longest that texts of these lengths may be so that `excess` bytes go; 0 if they are too few.
fn limit(longest: usize, excess: usize, lengths: impl Iterator<Item = usize> + Clone) -> usize {
    let saved = |limit: usize| lengths.clone().map(|length| length.saturating_sub(limit)).sum::<usize>();
    let (mut fits, mut too_long) = (0, longest + 1);
    while too_long - fits > 1 {
        let middle = usize::midpoint(fits, too_long);
        if saved(middle) >= excess {
            fits = middle;
        } else {
            too_long = middle;
        }
    }
    fits
}

fn failure((failure, key): (TaskFailure, String)) -> v1::TaskFailure {
    v1::TaskFailure {
        sequence: failure.sequence.cast_signed(),
        key: cut(key, MAX_KEY_BYTES),
        code: cut(failure.code, MAX_CODE_BYTES),
        message: cut(failure.message, MAX_FAILURE_MESSAGE_BYTES),
    }
}

fn cut(mut text: String, bytes: usize) -> String {
    cut_in_place(&mut text, bytes);
    text
}

fn cut_in_place(text: &mut String, bytes: usize) {
    text.truncate(text.floor_char_boundary(bytes));
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn outcome(message: &str, receipt: usize) -> Outcome {
        let failures = vec![(TaskFailure::new(4, "BAD", message), "k".to_owned())];
        Outcome::Staged { done: 3, failures, receipt: Bytes::from(vec![0; receipt]) }
    }

    fn reported(outcome: Outcome) -> v1::Report {
        report("b", Token { epoch: 1, counter: 1 }, 1, outcome, Now::from_secs(2))
    }

    #[test]
    fn long_messages_are_cut_between_characters() {
        let report = reported(outcome(&"é".repeat(400), 0));
        assert_eq!(report.failures[0].message, "é".repeat(256));
        assert_eq!(report.failures[0].key, "k");
        assert_eq!((report.done, report.error.as_str()), (3, ""));
    }

    #[test]
    fn a_receipt_that_is_too_long_is_an_error() {
        let report = reported(outcome("", MAX_RECEIPT_BYTES + 1));
        assert!(report.error.contains("receipt"), "{}", report.error);
        assert_eq!((report.done, report.failures.len(), report.receipt.len()), (0, 0, 0));
    }

    #[test]
    fn an_error_is_never_an_empty_string() {
        assert!(!reported(Outcome::Error(String::new())).error.is_empty());
    }

    fn failing(tasks: u64, message: &str, key: &str) -> Outcome {
        let failure = |sequence| (TaskFailure::new(sequence, "C".repeat(100), message), key.to_owned());
        Outcome::Staged { done: 0, failures: (1..=tasks).map(failure).collect(), receipt: Bytes::new() }
    }

    #[test]
    fn a_report_that_is_too_large_loses_messages_then_keys_and_says_so() {
        let (message, key) = ("m".repeat(512), "k".repeat(1024));
        for (tasks, key_left) in [(65_536, 900..1024), (50_000, 1024..1025), (200_000, 200..300)] {
            let report = reported(failing(tasks, &message, &key));
            let frame = v1::attach_request::Frame::Report(report.clone());
            let size = v1::AttachRequest { frame: Some(frame) }.encoded_len();
            assert!(
                size <= MAX_FRAME_BYTES && size > MAX_FRAME_BYTES - 3 * SPARE - 5 * report.failures.len(),
                "{size}"
            );
            assert_eq!((report.failures.len() as u64, report.error.as_str()), (tasks, ""));
            let first = &report.failures[0];
            assert!(key_left.contains(&first.key.len()), "{tasks}: {}", first.key.len());
            assert!(first.message.len() < 512 && first.code.len() == 64);
            let last = &report.failures.last().unwrap().message;
            assert!(last.contains("too large"), "{last}");
            assert!(last.len() <= MAX_FAILURE_MESSAGE_BYTES, "{}", last.len());
        }
    }

    #[test]
    fn a_report_at_the_limit_is_left_alone_and_one_byte_more_is_cut() {
        let mut report = reported(failing(10, &"m".repeat(100), "k"));
        let (whole, size) = (report.clone(), report.encoded_len());
        fit(&mut report, size);
        assert_eq!(report, whole);
        fit(&mut report, size - 1);
        assert_eq!(report.failures[0].message.len(), 99);
        assert_eq!(report.failures[9].sequence, 10);
    }

    #[test]
    fn a_report_that_no_cut_makes_small_enough_is_an_error() {
        let mut report = reported(failing(10, "m", "k"));
        report.error = "e".repeat(MAX_FRAME_BYTES);
        fit(&mut report, 100);
        assert_eq!(
            (report.failures.len(), report.error.as_str()),
            (0, "10 failures don't fit into one report")
        );
    }
}
