//! A batch's files, and what the library must hold before and after it.

use super::plan::{BatchPlan, Broken};
use crate::library::{Snapshot, snapshot};
use rand::rngs::StdRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use tranche_client::v1;

/// How many keys a lane uses: fewer than its batches have tasks, so that later ones overwrite.
const KEYS: usize = 2_500;
/// Folders that they are in.
const FOLDERS: usize = 7;

/// One lane's part of a library: the folder with its name. Nobody else writes there.
#[derive(Debug)]
pub struct Shelf {
    library: PathBuf,
    lane: String,
    expected: Snapshot,
}

impl Shelf {
    /// A lane's empty part of the library.
    pub fn new(library: PathBuf, lane: usize) -> Self {
        Self { library, lane: format!("lane{lane}"), expected: Snapshot::new() }
    }

    /// Whether the library has this key.
    pub fn has(&self, key: &str) -> bool {
        self.expected.contains_key(key)
    }

    /// From now on it must hold these files too.
    pub fn add(&mut self, staged: impl IntoIterator<Item = (String, String)>) {
        for (key, sum) in staged {
            for parent in Path::new(&key).ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty())
            {
                self.expected.insert(parent.display().to_string(), String::new());
            }
            self.expected.insert(key, sum);
        }
    }

    /// Compares it with what it must be, by checksum.
    ///
    /// # Errors
    /// What differs.
    pub fn check(&self) -> Result<(), String> {
        let prefix = &self.lane;
        let folder = self.library.join(prefix);
        let mut found: Snapshot =
            snapshot(&folder).into_iter().map(|(path, sum)| (format!("{prefix}/{path}"), sum)).collect();
        if folder.exists() {
            found.insert(prefix.clone(), String::new());
        }
        let only = |one: &Snapshot, other: &Snapshot| -> Vec<String> {
            let differ = one.iter().filter(|(path, sum)| other.get(*path) != Some(sum));
            differ.map(|(path, _)| path.clone()).collect()
        };
        let (extra, missing) = (only(&found, &self.expected), only(&self.expected, &found));
        if extra.is_empty() && missing.is_empty() {
            return Ok(());
        }
        let some = |all: &[String]| format!("{} ({})", all.len(), all[..all.len().min(5)].join(", "));
        Err(format!(
            "I4: {}: not expected so: {}; expected so, and not there: {}",
            folder.display(),
            some(&extra),
            some(&missing)
        ))
    }

    /// The batch's manifest.
    pub fn manifest(&self, batch: &str) -> PathBuf {
        self.library.join(format!("_tranche/{}.json", tranche_client::names::batch_id(batch)))
    }

    /// Where the batch stages.
    pub fn staging(&self, batch: &str) -> PathBuf {
        staging(&self.library).join(tranche_client::names::batch_id(batch))
    }
}

/// Where batches into this library stage.
pub fn staging(library: &Path) -> PathBuf {
    let name = library.file_name().unwrap_or_default().to_string_lossy();
    library.with_file_name(format!(".{name}.tranche")).join("staging")
}

/// A number of tasks, as the API has it.
pub fn count(tasks: usize) -> i64 {
    i64::try_from(tasks).expect("few tasks")
}

/// A batch's tasks and their source files.
#[derive(Debug)]
pub struct Files {
    source: PathBuf,
    library: PathBuf,
    /// The tasks, in order.
    pub tasks: Vec<v1::Task>,
    /// Key and checksum of each, as it must be in the library.
    staged: Vec<(String, String)>,
    /// Which fail, and with which code, by index.
    failing: BTreeMap<usize, &'static str>,
    /// Which of these can be mended.
    missing: Vec<(usize, Vec<u8>)>,
}

impl Files {
    /// Writes the batch's files into this folder.
    pub fn write(plan: &BatchPlan, source: PathBuf, shelf: &Shelf) -> Self {
        let mut random = StdRng::seed_from_u64(plan.contents);
        let mut this = Self {
            source,
            library: shelf.library.clone(),
            tasks: Vec::new(),
            staged: Vec::new(),
            failing: BTreeMap::new(),
            missing: Vec::new(),
        };
        for folder in 0..FOLDERS {
            let folder = this.source.join(format!("{}/d{folder}", shelf.lane));
            std::fs::create_dir_all(folder).expect("a folder");
        }
        let mut used = BTreeSet::new();
        for index in 0..plan.tasks {
            let number = loop {
                let number = random.random_range(0..KEYS);
                if used.insert(number) {
                    break number;
                }
            };
            let mut bytes = vec![0; random.random_range(0..3_000)];
            random.fill_bytes(&mut bytes);
            let key = format!("{}/d{}/f{number:04}", shelf.lane, number % FOLDERS);
            let described = random.random_bool(0.3);
            this.add(plan, index, key, bytes, described, shelf);
        }
        this
    }

    fn add(
        &mut self,
        plan: &BatchPlan,
        index: usize,
        key: String,
        bytes: Vec<u8>,
        described: bool,
        shelf: &Shelf,
    ) {
        let broken = plan.broken.get(&index).copied();
        let sum = blake3::hash(&bytes).to_hex().to_string();
        let path = self.source.join(&key);
        if broken == Some(Broken::Missing) {
            self.missing.push((index, bytes.clone()));
        } else {
            std::fs::write(path, &bytes).expect("a source file");
        }
        let payload = match broken {
            Some(Broken::Checksum) => {
                let other = blake3::hash(b"another").to_hex().to_string();
                Some((bytes.len(), other))
            }
            Some(Broken::Size) => Some((bytes.len() + 1, sum.clone())),
            _ => described.then(|| (bytes.len(), sum.clone())),
        };
        let payload = payload.map(|(size, sum)| {
            let checksum = format!("blake3:{sum}");
            serde_json::json!({"source": key, "size": size, "checksum": checksum}).to_string()
        });
        // In the order of the handler's checks.
        let exists = plan.if_exists_fail && shelf.has(&key) && broken != Some(Broken::Key);
        let code = if exists { Some("ALREADY_EXISTS") } else { broken.map(Broken::code) };
        if let Some(code) = code {
            self.failing.insert(index, code);
        }
        let named = if broken == Some(Broken::Key) { format!("../{key}") } else { key.clone() };
        self.tasks.push(v1::Task { key: named, payload: payload.unwrap_or_default().into() });
        self.staged.push((key, sum));
    }

    /// The target's parameters.
    pub fn target(&self, plan: &BatchPlan) -> v1::Target {
        let mut params = std::collections::HashMap::new();
        params.insert("source".to_owned(), self.source.display().to_string());
        params.insert("library".to_owned(), self.library.display().to_string());
        if plan.if_exists_fail {
            params.insert("if_exists".to_owned(), "fail".to_owned());
        }
        v1::Target { handler: "object".into(), params }
    }

    /// Which tasks must fail, by sequence number, with their codes.
    pub fn failing(&self) -> BTreeMap<i64, &'static str> {
        self.failing.iter().map(|(index, code)| (count(*index) + 1, *code)).collect()
    }

    /// Key and checksum of every task that must be staged.
    pub fn staged(&self) -> impl Iterator<Item = (String, String)> {
        let all = self.staged.iter().enumerate();
        all.filter(|(index, _)| !self.failing.contains_key(index)).map(|(_, staged)| staged.clone())
    }

    /// Puts the missing files there.
    pub fn mend(&mut self, plan: &BatchPlan, shelf: &Shelf) {
        for (index, bytes) in self.missing.drain(..) {
            let key = &self.staged[index].0;
            std::fs::write(self.source.join(key), bytes).expect("a source file");
            if !(plan.if_exists_fail && shelf.has(key)) {
                self.failing.remove(&index);
            }
        }
    }

    /// Removes the source files.
    pub fn remove(self) {
        std::fs::remove_dir_all(self.source).expect("our own folder");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_differs_from_what_a_shelf_must_hold_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let mut shelf = Shelf::new(dir.path().join("library"), 1);
        shelf.check().unwrap();
        let folder = dir.path().join("library/lane1/d3");
        std::fs::create_dir_all(&folder).unwrap();
        assert!(shelf.check().unwrap_err().contains("lane1/d3"), "a folder that a rollback left");
        let (key, sum) = ("lane1/d3/f1", blake3::hash(b"one").to_hex().to_string());
        shelf.add([(key.to_owned(), sum)]);
        assert!(shelf.check().unwrap_err().contains(key), "a file that is missing");
        std::fs::write(folder.join("f1"), b"one").unwrap();
        shelf.check().unwrap();
        std::fs::write(folder.join("f1"), b"two").unwrap();
        assert!(shelf.check().unwrap_err().contains(key), "other contents");
        std::fs::write(folder.join("f1"), b"one").unwrap();
        std::fs::write(folder.join("f2"), b"").unwrap();
        assert!(shelf.check().unwrap_err().contains("lane1/d3/f2"), "a file too many");
    }
}
