//! The parameters of the built-in handler `object`.
//!
//! The worker checks them again, against its own disk and its allowed roots; here is what can be told
//! before any worker is there.

use super::{Problems, quoted};
use std::collections::HashMap;
use std::path::{Component, Path};

const PARAMS: [&str; 5] = ["source", "library", "staging", "check", "if_exists"];

pub(super) fn check(field: &str, params: &HashMap<String, String>, problems: &mut Problems) {
    for name in ["source", "library"] {
        match params.get(name).map_or("", String::as_str) {
            "" => problems.add(format!("{field}[{name:?}]"), "is required: an absolute path of a directory"),
            path => directory(field, name, path, problems),
        }
    }
    if let Some(path) = params.get("staging") {
        directory(field, "staging", path, problems);
    }
    one_of(field, "check", params, &["none", "image"], problems);
    one_of(field, "if_exists", params, &["overwrite", "fail"], problems);
    let mut unknown: Vec<_> = params.keys().filter(|name| !PARAMS.contains(&name.as_str())).collect();
    unknown.sort();
    for name in unknown {
        let known = PARAMS.join(", ");
        problems.add(format!("{field}[{}]", quoted(name)), format!("is unknown; object has {known}"));
    }
}

fn directory(field: &str, name: &str, value: &str, problems: &mut Problems) {
    let path = Path::new(value);
    let wrong = if !path.is_absolute() {
        "is not absolute"
    } else if path.components().any(|part| part == Component::ParentDir) {
        "contains .."
    } else if value.contains('\0') {
        "contains NUL"
    } else if name != "source" && path.parent().is_none() {
        "is the root"
    } else {
        return;
    };
    problems.add(format!("{field}[{name:?}]"), format!("{} {wrong}", quoted(value)));
}

fn one_of(
    field: &str,
    name: &str,
    params: &HashMap<String, String>,
    allowed: &[&str],
    problems: &mut Problems,
) {
    if let Some(value) = params.get(name).filter(|value| !allowed.contains(&value.as_str())) {
        let description = format!("{} must be {}", quoted(value), allowed.join(" or "));
        problems.add(format!("{field}[{name:?}]"), description);
    }
}
