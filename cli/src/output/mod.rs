//! What goes to standard output, and progress on standard error.

pub(crate) mod json;
pub(crate) mod progress;
pub(crate) mod table;

use std::io::{self, Write as _};

use tranche_client::v1::batch::State;

/// A line on standard output.
pub(crate) fn line(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.write_all(b"\n")
}

/// Text of others without control characters: a key can't steer the terminal.
pub(crate) fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// A state as people know it: `ROLLING_BACK`.
pub(crate) fn state(state: State) -> &'static str {
    short(state.as_str_name(), "STATE_")
}

/// An enum's name without its prefix.
pub(crate) fn short(name: &'static str, prefix: &str) -> &'static str {
    name.strip_prefix(prefix).unwrap_or(name)
}

/// A whole number with separators: `1 234 567`.
pub(crate) fn count(n: i64) -> String {
    let digits = n.unsigned_abs().to_string();
    let mut out = String::new();
    if n < 0 {
        out.push('-');
    }
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A time for people: `4.2 s`, `3 min 05 s`.
pub(crate) fn seconds(seconds: f64) -> String {
    if seconds < 60.0 {
        return format!("{seconds:.1} s");
    }
    let whole = seconds.round() as u64;
    if whole < 3_600 {
        format!("{} min {:02} s", whole / 60, whole % 60)
    } else {
        format!("{} h {:02} min", whole / 3_600, whole % 3_600 / 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_times_are_readable() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(count(-1_000), "-1,000");
        assert_eq!(seconds(4.21), "4.2 s");
        assert_eq!(seconds(185.0), "3 min 05 s");
        assert_eq!(seconds(7_500.0), "2 h 05 min");
    }

    #[test]
    fn a_key_cannot_steer_the_terminal() {
        assert_eq!(printable("a\x1b[2Jb\nc é"), "a\\u{1b}[2Jb\\nc é");
    }

    #[test]
    fn states_have_their_short_names() {
        assert_eq!(state(State::RollingBack), "ROLLING_BACK");
        assert_eq!(state(State::Unspecified), "UNSPECIFIED");
    }
}
