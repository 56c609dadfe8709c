//! `tranche bench object`: files into a library folder, beside `cp -r` and `sync` of the same files.
//!
//! The source was read wholly just before each of the two, so that it is in the page cache for both: what is
//! compared is making copies and having them on the disk. Each copies into a folder of its own that
//! isn't there yet, and starts when the disk has nothing left to write. Which of the two is first alternates
//! from run to run. Nothing is removed between them: the disk would be busy with that.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;
use tokio::process::Command;
use tonic::codegen::Bytes;
use tranche_client::v1::{self, batch::State};
use tranche_client::{Client, names};

use super::cluster::{Cluster, ClusterArgs, Flags};
use super::figure::Figure;
use super::report::Measured;
use super::runs::{Context, Row};
use super::usage::{self, Usage};
use crate::error::{CliError, Result};
use crate::output::{count, state};

/// Files of one folder of the source.
const FOLDER_FILES: u32 = 200;
/// The longest that an import may last, in times of `cp -r` and `sync`.
const TARGET: f64 = 1.5;
/// The case that the target is about.
const FILES: u32 = 20_000;
const FILE_BYTES: usize = 20_000;
/// Pause before it is looked again whether a batch is swept.
const PAUSE: Duration = Duration::from_millis(20);

#[derive(Clone, Debug, Args)]
pub(crate) struct ObjectArgs {
    /// How many files.
    #[arg(long, default_value_t = FILES, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    files: u32,
    /// Bytes of each file, pseudo-random.
    #[arg(long, default_value_t = FILE_BYTES)]
    file_bytes: usize,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// The row: knows which of the two is first in its next run.
#[derive(Debug)]
pub(super) struct Object {
    args: ObjectArgs,
    runs: AtomicU32,
}

/// What `cp -r` and the `sync` after it took, in seconds.
#[derive(Clone, Copy, Debug)]
struct Copied {
    cp: f64,
    sync: f64,
}

/// What one import took, in seconds from the first append on.
#[derive(Clone, Debug)]
struct Imported {
    append: f64,
    stage: f64,
    whole: f64,
    transactions: i64,
    spent: Vec<Usage>,
}

impl Object {
    pub(super) fn new(args: ObjectArgs) -> Self {
        Self { args, runs: AtomicU32::new(0) }
    }
}

impl Row for Object {
    async fn run(&self, context: &Context) -> Result<Measured> {
        let args = &self.args;
        let source = context.folder().join("source");
        let (files, bytes) = (args.files, args.file_bytes);
        let making = source.clone();
        blocking(move || make(&making, files, bytes)).await?;
        context.tell(&format!(
            "{} files of {} bytes",
            count(files.into()),
            count(bytes.cast_signed() as i64)
        ));
        let root = context.folder().display().to_string();
        let worker = vec!["--allow-root".to_owned(), root];
        let flags = Flags { handlers: "object", worker, ..Flags::default() };
        let mut cluster = Cluster::start_with(context, &args.cluster, &flags).await?;
        let import_first = self.runs.fetch_add(1, Ordering::Relaxed) % 2 == 1;
        let (copied, imported) = if import_first {
            let imported = args.import(context, &mut cluster, &source).await?;
            (copy(context, &source).await?, imported)
        } else {
            let copied = copy(context, &source).await?;
            (copied, args.import(context, &mut cluster, &source).await?)
        };
        cluster.stop().await;
        Ok(args.measured(copied, &imported, import_first))
    }
}

impl ObjectArgs {
    async fn import(&self, context: &Context, cluster: &mut Cluster, source: &Path) -> Result<Imported> {
        let library = context.folder().join("library");
        let client = cluster.client().await?;
        settle(source).await?;
        let name = create(&client, source, &library).await?;
        context.tell(&format!("batch {}", names::batch_id(&name)));
        let before = (cluster.usage(), cluster.coordinator_report(&client).await?.store_transactions);
        let (batch, append, stage, whole) = cluster.while_alive(self.submit(&client, &name)).await?;
        let spent = usage::between(&before.0, &cluster.usage());
        let transactions = cluster.coordinator_report(&client).await?.store_transactions - before.1;
        self.check_counters(&batch)?;
        // Its staging folder goes now: not on the clock, as it isn't for those who wait for the batch.
        cluster.while_alive(swept(&client, &name)).await?;
        let source = source.to_owned();
        blocking(move || compare(&source, &library)).await?;
        context.tell(&format!("import {whole:.2} s, staged after {stage:.2} s"));
        Ok(Imported { append, stage, whole, transactions, spent })
    }

    /// Submits and waits for the end, with the clock running.
    async fn submit(&self, client: &Client, name: &str) -> Result<(v1::Batch, f64, f64, f64)> {
        let start = Instant::now();
        let tasks = (0..self.files).map(|n| v1::Task { key: key(n), payload: Bytes::new() });
        let append = async {
            let total = client.appender(name).run_iter(tasks).await?;
            client.seal(name, Some(total)).await?;
            Ok(start.elapsed().as_secs_f64())
        };
        let ended = async {
            client.wait_until(name, |batch| batch.decision.is_some()).await?;
            let staged = start.elapsed().as_secs_f64();
            Ok((client.wait(name).await?, staged, start.elapsed().as_secs_f64()))
        };
        let (append, (batch, stage, whole)) = tokio::try_join!(append, ended)
            .map_err(|e: tranche_client::Error| CliError::of_batch(name, e))?;
        Ok((batch, append, stage, whole))
    }

    fn check_counters(&self, batch: &v1::Batch) -> Result<()> {
        let counters = batch.counters.unwrap_or_default();
        let files = i64::from(self.files);
        if batch.state() == State::Committed && (counters.staged, counters.committed) == (files, files) {
            return Ok(());
        }
        let state = state(batch.state());
        Err(CliError::new(format!("{state}, {} staged, {} committed", counters.staged, counters.committed)))
    }

    fn measured(&self, copied: Copied, imported: &Imported, import_first: bool) -> Measured {
        let Imported { append, stage, whole, transactions, spent } = imported;
        let both = copied.cp + copied.sync;
        let usual = self.files >= FILES && self.file_bytes == FILE_BYTES && self.cluster.workers == 4;
        let mut figures = vec![
            Figure::ratio("import, times `cp -r` + `sync`", whole / both).at_most(TARGET).judged_if(usual),
            Figure::seconds("import, first append → COMMITTED", *whole),
            Figure::seconds("`cp -r` + `sync`", both),
            Figure::seconds("import: appended and sealed", *append),
            Figure::seconds("import: all staged", *stage),
            Figure::seconds("import: commit and publish", whole - stage),
            Figure::seconds("`cp -r` alone", copied.cp),
            Figure::seconds("`sync` alone", copied.sync),
            Figure::count("etcd transactions", *transactions),
        ];
        figures.extend(usage::figures(spent));
        let details = json!({
            "files": self.files,
            "file_bytes": self.file_bytes,
            "source": "in the page cache for both",
            "first": if import_first { "import" } else { "cp" },
            "import_s": whole,
            "cp_s": copied.cp,
            "sync_s": copied.sync,
            "processes": usage::json(spent),
        });
        Measured::from(figures).detail(details).detail(self.cluster.json())
    }
}

async fn create(client: &Client, source: &Path, library: &Path) -> Result<String> {
    let params = [("source", source), ("library", library)];
    let target = v1::Target {
        handler: "object".into(),
        params: params.map(|(name, path)| (name.to_owned(), path.display().to_string())).into(),
    };
    let batch =
        v1::Batch { targets: vec![target], display_name: "bench object".into(), ..Default::default() };
    Ok(client.create(v1::CreateBatchRequest { batch: Some(batch), ..Default::default() }).await?.name)
}

async fn swept(client: &Client, name: &str) -> Result<()> {
    while !client.get(name).await?.swept {
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

/// Copies as a user would, and waits until the copy is on the disk.
async fn copy(context: &Context, source: &Path) -> Result<Copied> {
    let copy = context.folder().join("copy");
    settle(source).await?;
    let start = Instant::now();
    command(Command::new("cp").arg("-r").arg(source).arg(&copy)).await?;
    let cp = start.elapsed();
    command(&mut Command::new("sync")).await?;
    let both = start.elapsed();
    let source = source.to_owned();
    blocking(move || compare(&source, &copy)).await?;
    context.tell(&format!(
        "cp -r {:.2} s, sync {:.2} s",
        cp.as_secs_f64(),
        both.saturating_sub(cp).as_secs_f64()
    ));
    Ok(Copied { cp: cp.as_secs_f64(), sync: both.saturating_sub(cp).as_secs_f64() })
}

/// Until the disk has nothing left to write, and the source is in memory.
async fn settle(source: &Path) -> Result<()> {
    command(&mut Command::new("sync")).await?;
    let source = source.to_owned();
    blocking(move || read_all(&source)).await
}

async fn command(command: &mut Command) -> Result<()> {
    let name = command.as_std().get_program().to_string_lossy().into_owned();
    let failed = |e: &io::Error| CliError::caused(format!("cannot run {name}"), e);
    let status = command.stdin(Stdio::null()).kill_on_drop(true).status().await.map_err(|e| failed(&e))?;
    if status.success() { Ok(()) } else { Err(CliError::new(format!("{name} failed: {status}"))) }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|e| CliError::new(e.to_string()))?
}

/// The path of a file in the source, and in what is made of it.
fn key(n: u32) -> String {
    format!("{:05}/{n:08}.bin", n / FOLDER_FILES)
}

/// Makes the source.
fn make(source: &Path, files: u32, bytes: usize) -> Result<()> {
    let mut content = vec![0; bytes];
    let mut seed = 0;
    for n in 0..files {
        let path = source.join(key(n));
        if n % FOLDER_FILES == 0 {
            fs::create_dir_all(path.parent().unwrap_or(source))?;
        }
        for part in content.chunks_mut(8) {
            part.copy_from_slice(&random(&mut seed).to_le_bytes()[..part.len()]);
        }
        fs::File::create_new(path)?.write_all(&content)?;
    }
    Ok(())
}

/// `SplitMix64`.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Reads all of it, so that it is in memory.
fn read_all(folder: &Path) -> Result<()> {
    for path in paths(folder)? {
        fs::read(folder.join(path))?;
    }
    Ok(())
}

/// Refuses a copy that isn't the source, byte by byte; what is under `_tranche` is left out.
fn compare(source: &Path, copy: &Path) -> Result<()> {
    let (wanted, mut found) = (paths(source)?, paths(copy)?);
    found.retain(|path| !path.starts_with("_tranche"));
    if let Some(path) = wanted.symmetric_difference(&found).next() {
        let fault = if found.contains(path) { "is in the copy only" } else { "is missing" };
        return Err(CliError::new(format!("{}: {fault}", path.display())));
    }
    for path in wanted {
        if fs::read(source.join(&path))? != fs::read(copy.join(&path))? {
            return Err(CliError::new(format!("{}: differs", path.display())));
        }
    }
    Ok(())
}

/// The files below a folder.
fn paths(folder: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    for entry in walkdir::WalkDir::new(folder) {
        let entry = entry.map_err(io::Error::from)?;
        if !entry.file_type().is_dir() {
            found.insert(entry.path().strip_prefix(folder).unwrap_or(entry.path()).to_owned());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_that_differs_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let (source, copy) = (folder.path().join("source"), folder.path().join("copy"));
        make(&source, 250, 100).unwrap();
        assert_eq!(paths(&source).unwrap().len(), 250);
        make(&copy, 250, 100).unwrap();
        fs::create_dir(copy.join("_tranche")).unwrap();
        fs::write(copy.join("_tranche/b.json"), "{}").unwrap();
        compare(&source, &copy).unwrap();
        let changed = copy.join(key(249));
        let content = fs::read(&changed).unwrap();
        assert_ne!(content, fs::read(copy.join(key(248))).unwrap());
        fs::write(&changed, [&content[..99], b"!"].concat()).unwrap();
        let message = |source: &Path, copy: &Path| compare(source, copy).unwrap_err().message;
        assert_eq!(message(&source, &copy), "00001/00000249.bin: differs");
        fs::remove_file(&changed).unwrap();
        assert_eq!(message(&source, &copy), "00001/00000249.bin: is missing");
        assert_eq!(message(&copy, &source), "00001/00000249.bin: is in the copy only");
    }

    #[tokio::test]
    async fn a_command_that_fails_is_an_error() {
        command(Command::new("cp").arg("-r").arg("/does/not/exist").arg("/nor/this")).await.unwrap_err();
    }
}
