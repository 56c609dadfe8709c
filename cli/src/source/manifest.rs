//! Tasks from a manifest: NDJSON or CSV.
//!
//! For the `object` handler a line has `key` and, if wanted, `source`, `size`, `checksum`. For other
//! handlers it has `key` and `payload`: text, or (NDJSON) an object, passed on as JSON. Lines that say
//! nothing are passed over in NDJSON; a field that isn't known is refused, so that a slip of the pen
//! never drops a checksum.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde_json::{Map, Value};
use tokio_stream::wrappers::ReceiverStream;
use tranche_client::v1::Task;

use super::{Sink, SourceError};

/// The longest line of NDJSON: more than the largest task.
const MAX_LINE_BYTES: u64 = 8 * 1024 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// One JSON object a line.
    Ndjson,
    /// Comma-separated, the first line names the columns.
    Csv,
}

impl Format {
    /// By the file's extension: `.csv`, or `.ndjson`, `.jsonl`, `.json`. None for others and for `-`.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "csv" => Some(Self::Csv),
            "ndjson" | "jsonl" | "json" => Some(Self::Ndjson),
            _ => None,
        }
    }
}

/// What a line may say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// `key`, `source`, `size`, `checksum`.
    Object,
    /// `key`, `payload`.
    Raw,
}

impl Shape {
    fn fields(self) -> &'static [&'static str] {
        match self {
            Self::Object => &["key", "source", "size", "checksum"],
            Self::Raw => &["key", "payload"],
        }
    }

    fn unknown(self, field: &str) -> String {
        format!("unknown field `{field}`; known are {}", self.fields().join(", "))
    }
}

/// The tasks of a manifest; `-` is standard input.
pub(crate) fn tasks(
    path: PathBuf,
    format: Format,
    shape: Shape,
) -> ReceiverStream<Result<Task, SourceError>> {
    super::stream(move |sink| {
        if path == Path::new("-") {
            return read("standard input", io::stdin().lock(), format, shape, &mut |task| {
                sink_task(sink, task)
            });
        }
        let what = path.display().to_string();
        let file = File::open(&path).map_err(|source| SourceError::Read { what: what.clone(), source })?;
        read(&what, BufReader::new(file), format, shape, &mut |task| sink_task(sink, task))
    })
}

fn sink_task(sink: &Sink, task: Task) -> Result<(), SourceError> {
    sink.task(task)
}

type Take<'a> = &'a mut dyn FnMut(Task) -> Result<(), SourceError>;

fn read(
    what: &str,
    input: impl BufRead,
    format: Format,
    shape: Shape,
    take: Take<'_>,
) -> Result<(), SourceError> {
    match format {
        Format::Ndjson => read_ndjson(what, input, shape, take),
        Format::Csv => read_csv(what, input, shape, take),
    }
}

fn read_ndjson(what: &str, mut input: impl BufRead, shape: Shape, take: Take<'_>) -> Result<(), SourceError> {
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let wrong = |problem: String| SourceError::Line { file: what.to_owned(), line: number, problem };
        let read = input.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line);
        let read = read.map_err(|source| SourceError::Read { what: what.to_owned(), source })?;
        if read == 0 {
            break;
        }
        if read as u64 == MAX_LINE_BYTES {
            return Err(wrong(format!("longer than {MAX_LINE_BYTES} bytes")));
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        let value: Value =
            serde_json::from_slice(&line).map_err(|e| wrong(format!("not JSON: {}", json_problem(&e))))?;
        let Value::Object(fields) = value else {
            return Err(wrong("not a JSON object".to_owned()));
        };
        take(task(fields, shape).map_err(wrong)?)?;
    }
    Ok(())
}

/// The parser's words without its own line number, which is always 1.
fn json_problem(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.split_once(" at line ") {
        Some((problem, _)) => format!("{problem} at column {}", error.column()),
        None => text,
    }
}

fn read_csv(what: &str, input: impl BufRead, shape: Shape, take: Take<'_>) -> Result<(), SourceError> {
    let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(input);
    let wrong = |line, problem: String| SourceError::Line { file: what.to_owned(), line, problem };
    let broken = |line, error: csv::Error| match error.into_kind() {
        csv::ErrorKind::Io(source) => SourceError::Read { what: what.to_owned(), source },
        csv::ErrorKind::Utf8 { err, .. } => wrong(line, format!("not UTF-8: {err}")),
        other => wrong(line, format!("not CSV: {other:?}")),
    };
    let headings = reader.headers().map_err(|e| broken(1, e))?.clone();
    let headings: Vec<String> = headings.iter().map(|h| h.trim().to_owned()).collect();
    for (n, heading) in headings.iter().enumerate() {
        if !shape.fields().contains(&heading.as_str()) {
            return Err(wrong(1, shape.unknown(heading)));
        }
        if headings[..n].contains(heading) {
            return Err(wrong(1, format!("column `{heading}` is there twice")));
        }
    }
    if !headings.iter().any(|h| h == "key") {
        return Err(wrong(1, "no column `key`; the first line must name the columns".to_owned()));
    }
    let mut record = csv::StringRecord::new();
    loop {
        let line = reader.position().line();
        if !reader.read_record(&mut record).map_err(|e| broken(line, e))? {
            return Ok(());
        }
        let line = record.position().map_or(line, csv::Position::line);
        if record.len() != headings.len() {
            let problem = format!("{} fields, but the first line names {}", record.len(), headings.len());
            return Err(wrong(line, problem));
        }
        let mut fields = Map::new();
        for (heading, cell) in headings.iter().zip(&record) {
            // An empty cell is a field that isn't there, but an empty key is a mistake worth a word.
            if cell.is_empty() && heading != "key" {
                continue;
            }
            let value = match heading.as_str() {
                "size" => cell.trim().parse::<u64>().map_or_else(|_| cell.into(), Value::from),
                _ => cell.into(),
            };
            fields.insert(heading.clone(), value);
        }
        take(task(fields, shape).map_err(|problem| wrong(line, problem))?)?;
    }
}

/// Checks a line's fields and makes its task; the error names the field and its value.
fn task(mut fields: Map<String, Value>, shape: Shape) -> Result<Task, String> {
    let key = match fields.remove("key") {
        Some(Value::String(key)) if !key.is_empty() => key,
        Some(Value::String(_)) => return Err("field `key` is empty".to_owned()),
        Some(other) => return Err(expected("key", "text", &other)),
        None => return Err("field `key` is missing".to_owned()),
    };
    let payload = match shape {
        Shape::Raw => match fields.remove("payload") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::String(text)) => text.into_bytes(),
            Some(Value::Object(object)) => Value::Object(object).to_string().into_bytes(),
            Some(other) => return Err(expected("payload", "text or an object", &other)),
        },
        Shape::Object => object_payload(&mut fields)?,
    };
    if let Some(field) = fields.keys().next() {
        return Err(shape.unknown(field));
    }
    Ok(Task { key, payload: payload.into() })
}

fn object_payload(fields: &mut Map<String, Value>) -> Result<Vec<u8>, String> {
    let mut payload = Map::new();
    for (field, kind) in
        [("source", "text"), ("size", "a whole number"), ("checksum", "sha256:HEX or blake3:HEX")]
    {
        let Some(value) = fields.remove(field) else { continue };
        let fits = match (field, &value) {
            (_, Value::Null) => continue,
            ("size", Value::Number(size)) => size.is_u64(),
            ("checksum", Value::String(text)) => is_checksum(text),
            ("source", Value::String(text)) => !text.is_empty(),
            _ => false,
        };
        if !fits {
            return Err(expected(field, kind, &value));
        }
        payload.insert(field.to_owned(), value);
    }
    Ok(if payload.is_empty() { Vec::new() } else { Value::Object(payload).to_string().into_bytes() })
}

fn is_checksum(text: &str) -> bool {
    text.split_once(':').is_some_and(|(kind, hex)| {
        matches!(kind, "sha256" | "blake3") && hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit())
    })
}

fn expected(field: &str, kind: &str, found: &Value) -> String {
    let mut found = found.to_string();
    if found.chars().count() > 80 {
        found = found.chars().take(80).chain(['…']).collect();
    }
    format!("field `{field}`: expected {kind}, found {found}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUM: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn parse(text: &str, format: Format, shape: Shape) -> Result<Vec<(String, String)>, String> {
        let mut tasks = Vec::new();
        let read = read("m", text.as_bytes(), format, shape, &mut |task| {
            tasks.push((task.key, String::from_utf8(task.payload.to_vec()).unwrap()));
            Ok(())
        });
        read.map(|()| tasks).map_err(|e| e.to_string())
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
    }

    #[test]
    fn ndjson_of_objects() {
        let text = format!(
            "{{\"key\":\"a/1.png\"}}\n\n  {{\"key\":\"b\",\"source\":\"x y\",\"size\":12,\"checksum\":\"{SUM}\"}}\r\n{{\"key\":\"c\",\"size\":null}}"
        );
        let full = format!("{{\"checksum\":\"{SUM}\",\"size\":12,\"source\":\"x y\"}}");
        assert_eq!(
            parse(&text, Format::Ndjson, Shape::Object),
            Ok(pairs(&[("a/1.png", ""), ("b", &full), ("c", "")]))
        );
    }

    #[test]
    fn csv_of_objects() {
        let text = format!("size,key,checksum\n12,\"a,b\"\"c\",\n,d,{SUM}\n");
        let sum = format!("{{\"checksum\":\"{SUM}\"}}");
        assert_eq!(
            parse(&text, Format::Csv, Shape::Object),
            Ok(pairs(&[("a,b\"c", "{\"size\":12}"), ("d", &sum)]))
        );
        assert_eq!(parse("key\n", Format::Csv, Shape::Object), Ok(pairs(&[])));
    }

    #[test]
    fn payloads_for_other_handlers() {
        let text =
            "{\"key\":\"a\",\"payload\":\"raw\"}\n{\"key\":\"b\",\"payload\":{\"n\":1}}\n{\"key\":\"c\"}\n";
        assert_eq!(
            parse(text, Format::Ndjson, Shape::Raw),
            Ok(pairs(&[("a", "raw"), ("b", "{\"n\":1}"), ("c", "")]))
        );
        assert_eq!(parse("key,payload\na,12\n", Format::Csv, Shape::Raw), Ok(pairs(&[("a", "12")])));
    }

    #[test]
    fn bad_ndjson_names_line_and_field() {
        for (text, expected) in [
            ("{\"key\":\"a\"}\n{\"key\"", "m: line 2: not JSON: EOF while parsing an object at column 6"),
            ("[1]", "m: line 1: not a JSON object"),
            ("{\"source\":\"a\"}", "m: line 1: field `key` is missing"),
            ("{\"key\":\"\"}", "m: line 1: field `key` is empty"),
            ("{\"key\":7}", "m: line 1: field `key`: expected text, found 7"),
            ("\n\n{\"key\":\"a\",\"size\":-1}", "m: line 3: field `size`: expected a whole number, found -1"),
            ("{\"key\":\"a\",\"size\":1.5}", "m: line 1: field `size`: expected a whole number, found 1.5"),
            ("{\"key\":\"a\",\"source\":\"\"}", "m: line 1: field `source`: expected text, found \"\""),
            (
                "{\"key\":\"a\",\"checksum\":\"md5:00\"}",
                "m: line 1: field `checksum`: expected sha256:HEX or blake3:HEX, found \"md5:00\"",
            ),
            (
                "{\"key\":\"a\",\"checksums\":\"x\"}",
                "m: line 1: unknown field `checksums`; known are key, source, size, checksum",
            ),
            (
                "{\"key\":\"a\",\"payload\":\"x\"}",
                "m: line 1: unknown field `payload`; known are key, source, size, checksum",
            ),
        ] {
            assert_eq!(parse(text, Format::Ndjson, Shape::Object), Err(expected.to_owned()), "{text}");
        }
        let text = "{\"key\":\"a\",\"payload\":[1]}";
        let expected = "m: line 1: field `payload`: expected text or an object, found [1]";
        assert_eq!(parse(text, Format::Ndjson, Shape::Raw), Err(expected.to_owned()));
    }

    #[test]
    fn bad_csv_names_line_and_field() {
        for (text, expected) in [
            ("", "m: line 1: no column `key`; the first line must name the columns"),
            ("source\nx\n", "m: line 1: no column `key`; the first line must name the columns"),
            (
                "key,colour\na,red\n",
                "m: line 1: unknown field `colour`; known are key, source, size, checksum",
            ),
            ("key,key\na,b\n", "m: line 1: column `key` is there twice"),
            ("key,size\na,1\nb,many\n", "m: line 3: field `size`: expected a whole number, found \"many\""),
            ("key,size\na,1\nb\n", "m: line 3: 1 fields, but the first line names 2"),
            ("key,size\n,1\n", "m: line 2: field `key` is empty"),
        ] {
            assert_eq!(parse(text, Format::Csv, Shape::Object), Err(expected.to_owned()), "{text}");
        }
    }

    #[test]
    fn the_format_follows_the_extension() {
        assert_eq!(Format::of(Path::new("a/m.csv")), Some(Format::Csv));
        assert_eq!(Format::of(Path::new("m.JSONL")), Some(Format::Ndjson));
        assert_eq!(Format::of(Path::new("m.txt")), None);
        assert_eq!(Format::of(Path::new("-")), None);
    }
}
