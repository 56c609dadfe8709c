//! Folders to import from and into, compared by checksum.

use rand::rngs::StdRng;
use rand::{RngCore as _, SeedableRng as _};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tranche_client::v1;
use walkdir::WalkDir;

/// A folder's files: path inside it with `/`, and the contents' BLAKE3. Folders count too, with an empty
/// sum, and links, with where they lead. A folder that isn't there has none.
pub type Snapshot = BTreeMap<String, String>;

/// Reads a folder.
pub fn snapshot(folder: &Path) -> Snapshot {
    if !folder.exists() {
        return Snapshot::new();
    }
    let entries =
        WalkDir::new(folder).min_depth(1).into_iter().map(|entry| entry.expect("a readable folder"));
    entries
        .map(|entry| {
            let path = entry.path().strip_prefix(folder).expect("inside").to_string_lossy().into_owned();
            let sum = if entry.file_type().is_dir() {
                String::new()
            } else if entry.file_type().is_symlink() {
                format!("-> {}", std::fs::read_link(entry.path()).expect("a readable link").display())
            } else {
                blake3::hash(&std::fs::read(entry.path()).expect("a readable file")).to_hex().to_string()
            };
            (path, sum)
        })
        .collect()
}

/// A folder of source files, and a library to import them into.
#[derive(Debug)]
pub struct Library {
    /// Where the files are.
    pub source: PathBuf,
    /// Where they go.
    pub library: PathBuf,
    before: Snapshot,
}

impl Library {
    /// `files` small files of random bytes (the same at each run) in `{root}/{name}-source`, and a library
    /// at `{root}/{name}` that holds a few files of its own already.
    pub fn with_files(root: &Path, name: &str, files: usize) -> Self {
        let this = Self::empty(root, name);
        let mut random = StdRng::seed_from_u64(files as u64);
        for number in 0..files {
            let path = this.source.join(format!("d{:02}/f{number:05}.bin", number % 7));
            std::fs::create_dir_all(path.parent().expect("in a folder")).expect("a folder");
            let mut bytes = vec![0; 100 + (random.next_u32() % 4_000) as usize];
            random.fill_bytes(&mut bytes);
            std::fs::write(path, bytes).expect("a source file");
        }
        this
    }

    /// The pictures of `examples/pictures`, some of them broken.
    pub fn with_pictures(root: &Path, name: &str) -> Self {
        let this = Self::empty(root, name);
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/pictures");
        for file in WalkDir::new(&examples) {
            let file = file.expect("examples/pictures");
            let to = this.source.join(file.path().strip_prefix(&examples).expect("inside"));
            if file.file_type().is_dir() {
                std::fs::create_dir_all(to).expect("a folder");
            } else {
                std::fs::copy(file.path(), to).expect("a copy");
            }
        }
        this
    }

    fn empty(root: &Path, name: &str) -> Self {
        let (source, library) = (root.join(format!("{name}-source")), root.join(name));
        std::fs::create_dir_all(&source).expect("a folder");
        std::fs::create_dir_all(library.join("older/kept")).expect("a folder");
        std::fs::write(library.join("older/one.bin"), b"was here before").expect("a file");
        std::fs::write(library.join("older/kept/two.bin"), b"this one too").expect("a file");
        let before = snapshot(&library);
        Self { source, library, before }
    }

    /// The `object` handler's parameters.
    pub fn target(&self) -> v1::Target {
        self.target_with(&[])
    }

    /// The `object` handler's parameters and more.
    pub fn target_with(&self, more: &[(&str, &str)]) -> v1::Target {
        let mut params: std::collections::HashMap<_, _> =
            more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        params.insert("source".into(), self.source.display().to_string());
        params.insert("library".into(), self.library.display().to_string());
        v1::Target { handler: "object".into(), params }
    }

    /// The source files' paths inside the source folder, in order.
    pub fn keys(&self) -> Vec<String> {
        let files = snapshot(&self.source).into_iter().filter(|(_, sum)| !sum.is_empty());
        files.map(|(path, _)| path).collect()
    }

    /// A task for each source file.
    pub fn tasks(&self) -> Vec<v1::Task> {
        self.keys().into_iter().map(|key| v1::Task { key, payload: Default::default() }).collect()
    }

    /// Where the library's batches stage.
    pub fn staging(&self) -> PathBuf {
        let name = self.library.file_name().expect("a name").to_string_lossy();
        self.library.parent().expect("a parent").join(format!(".{name}.tranche"))
    }

    /// The files that are staged now (any batch's), with their sums; not the claims of keys beside them.
    pub fn staged(&self) -> Snapshot {
        let all = snapshot(&self.staging()).into_iter();
        all.filter(|(path, sum)| !sum.is_empty() && !path.contains("/claims/")).collect()
    }

    /// The batch's manifest, once published.
    pub fn manifest(&self, batch: &str) -> Option<serde_json::Value> {
        let path = self.library.join(format!("_tranche/{}.json", tranche_client::names::batch_id(batch)));
        let text = std::fs::read(path).ok()?;
        Some(serde_json::from_slice(&text).expect("a manifest is JSON"))
    }

    /// Asserts that the library holds what it held before, these source files byte for byte, and nothing
    /// else (beside the batches' manifests).
    pub fn assert_exactly(&self, keys: impl IntoIterator<Item = impl AsRef<str>>) {
        let source = snapshot(&self.source);
        let mut expected = files(&self.before);
        for key in keys {
            let key = key.as_ref();
            let sum = source.get(key).unwrap_or_else(|| panic!("{key} isn't in the source"));
            expected.insert(key.to_owned(), sum.clone());
        }
        let mut found = files(&snapshot(&self.library));
        found.retain(|path, _| !path.starts_with("_tranche/"));
        assert_same(&found, &expected, "the library");
    }

    /// Asserts that the library is as it was before, byte for byte, folders too.
    pub fn assert_untouched(&self) {
        assert_same(&snapshot(&self.library), &self.before, "the library");
    }

    /// What is left where batches stage, folders too; may be asked while workers remove it.
    pub fn staging_left(&self) -> Vec<String> {
        let entries = WalkDir::new(self.staging()).min_depth(1).into_iter().filter_map(Result::ok);
        entries.map(|entry| entry.path().display().to_string()).collect()
    }

    /// Asserts that nothing is left where batches stage.
    pub fn assert_no_staging_left(&self) {
        assert_same(&snapshot(&self.staging()), &Snapshot::new(), "the staging folder");
    }
}

fn files(all: &Snapshot) -> Snapshot {
    all.iter().filter(|(_, sum)| !sum.is_empty()).map(|(path, sum)| (path.clone(), sum.clone())).collect()
}

fn assert_same(found: &Snapshot, expected: &Snapshot, what: &str) {
    let only = |one: &Snapshot, other: &Snapshot| {
        one.iter()
            .filter(|(path, sum)| other.get(*path) != Some(sum))
            .map(|(path, _)| path.clone())
            .collect::<Vec<_>>()
    };
    let (extra, missing) = (only(found, expected), only(expected, found));
    assert!(
        extra.is_empty() && missing.is_empty(),
        "{what}: not expected so: {extra:?}; missing so: {missing:?}"
    );
}
