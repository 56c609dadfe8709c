//! `tranche submit`.

use std::path::{Path, PathBuf};
use std::pin::Pin;

use clap::{Args, ValueEnum};
use futures::Stream;
use tranche_client::v1::{self, batch::CommitMode};
use tranche_client::{Client, Error as ClientError, is_final, names};
use uuid::Uuid;

use super::{connect, print_batch, watch};
use crate::args::{BatchArgs, Global, ObjectArgs, Output, pair, word};
use crate::error::{CliError, Result};
use crate::exit;
use crate::follow::{self, Append, Follow, OnHeld, OnInterrupt};
use crate::output::line;
use crate::output::progress::Ui;
use crate::signals::Signals;
use crate::source::SourceError;
use crate::source::manifest::{self, Format, Shape};
use crate::source::walk::{self, Skipped};

/// Submits a batch: every regular file of a folder, or the lines of a manifest.
///
/// Workers read SRC and write the library themselves, so both are paths on their machines. Prints the
/// batch's id as soon as it exists. Run again with the same --request-id and the same input, it goes on
/// where it stopped.
#[derive(Debug, Args)]
pub(crate) struct SubmitArgs {
    /// The folder to import; with --manifest, the folder that its sources are relative to.
    #[arg(value_name = "SRC", required_unless_present_any = ["manifest"])]
    source: Option<PathBuf>,
    /// NDJSON or CSV with `key` and, for the handler `object`, `source`, `size`, `checksum`; for others
    /// `payload`. `-` reads standard input.
    #[arg(long, value_name = "FILE|-")]
    manifest: Option<PathBuf>,
    /// The manifest's format [default: by its extension].
    #[arg(long, value_enum, requires = "manifest")]
    format: Option<Format>,
    /// The library, for the handler `object`.
    #[arg(long, value_name = "LIB")]
    into: Option<PathBuf>,
    /// The handler.
    #[arg(long, value_name = "NAME", default_value = "object")]
    handler: String,
    /// A parameter of the handler; may be repeated.
    #[arg(long = "param", value_name = "KEY=VALUE", value_parser = pair)]
    params: Vec<(String, String)>,
    #[command(flatten)]
    objects: ObjectArgs,
    #[command(flatten)]
    pub(crate) batch: BatchArgs,
    /// Who commits once all tasks are accounted for [default: auto].
    #[arg(long, value_enum)]
    commit: Option<Commit>,
    /// The same as --commit manual.
    #[arg(long, conflicts_with = "commit")]
    approve: bool,
    /// Makes the submission repeatable: the same id is the same batch.
    #[arg(long, value_name = "ID")]
    request_id: Option<String>,
    /// Wait until the batch has ended, or is HELD; the exit code is its outcome.
    #[arg(long, conflicts_with = "watch")]
    wait: bool,
    /// The same with progress; in JSON one line for each change.
    #[arg(long)]
    watch: bool,
    /// Exit with 4 if the batch is committed but tasks failed.
    #[arg(long)]
    fail_on_failed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Commit {
    /// The batch, by itself.
    Auto,
    /// `tranche commit`: the batch is HELD until then.
    Manual,
}

type Tasks = Pin<Box<dyn Stream<Item = Result<v1::Task, SourceError>> + Send>>;

impl SubmitArgs {
    pub(crate) fn commit_mode(&self) -> CommitMode {
        if self.approve || self.commit == Some(Commit::Manual) {
            CommitMode::Manual
        } else {
            CommitMode::Auto
        }
    }

    /// Where the data goes.
    fn target(&self) -> Result<v1::Target> {
        let mut params: std::collections::HashMap<_, _> = self.params.iter().cloned().collect();
        if self.handler != "object" {
            let named = [
                ("--into", self.into.is_some()),
                ("--check", self.objects.check.is_some()),
                ("--if-exists", self.objects.if_exists.is_some()),
                ("--staging", self.objects.staging.is_some()),
            ];
            if let Some((flag, _)) = named.iter().find(|(_, given)| *given) {
                let text = format!("{flag} is for the handler `object`, not for `{}`", self.handler);
                return Err(CliError::usage(text).hint("say --param KEY=VALUE"));
            }
            return Ok(v1::Target { handler: self.handler.clone(), params });
        }
        let Some(library) = &self.into else {
            return Err(CliError::usage("the handler `object` needs a library").hint("say --into LIB"));
        };
        let mut set = |name: &str, value: String| {
            params.entry(name.to_owned()).or_insert(value);
        };
        set("library", text(&absolute(library)?)?);
        set("source", text(&self.source_folder()?)?);
        if let Some(staging) = &self.objects.staging {
            set("staging", text(&absolute(staging)?)?);
        }
        if let Some(check) = self.objects.check {
            set("check", word(check));
        }
        if let Some(if_exists) = self.objects.if_exists {
            set("if_exists", word(if_exists));
        }
        Ok(v1::Target { handler: self.handler.clone(), params })
    }

    /// SRC; or the manifest's folder; or, for standard input, the working directory.
    fn source_folder(&self) -> Result<PathBuf> {
        match (&self.source, &self.manifest) {
            // The folder is walked here, so it must be here.
            (Some(source), None) => existing(source),
            (Some(source), Some(_)) => absolute(source),
            (None, Some(manifest)) if manifest != Path::new("-") => {
                Ok(absolute(manifest)?.parent().unwrap_or(Path::new("/")).to_owned())
            }
            (None, _) => absolute(Path::new(".")),
        }
    }

    fn tasks(&self, skipped: &Skipped) -> Result<Tasks> {
        let Some(path) = &self.manifest else {
            let source = self.source.as_deref().unwrap_or(Path::new("."));
            return Ok(Box::pin(walk::tasks(existing(source)?, skipped.clone())));
        };
        let format = self.format.or_else(|| Format::of(path)).ok_or_else(|| {
            CliError::usage(format!("the format of {} is not clear from its name", path.display()))
                .hint("say --format ndjson or --format csv")
        })?;
        if path != Path::new("-") {
            // Told before there is a batch.
            std::fs::File::open(path)
                .map_err(|e| CliError::caused(format!("cannot read {}", path.display()), &e))?;
        }
        let shape = if self.handler == "object" { Shape::Object } else { Shape::Raw };
        Ok(Box::pin(manifest::tasks(path.clone(), format, shape)))
    }
}

pub(crate) async fn run(global: &Global, args: SubmitArgs) -> Result<i32> {
    let skipped = Skipped::default();
    let request = v1::CreateBatchRequest {
        parent: global.parent(),
        batch: Some(args.batch.batch(args.target()?, args.commit_mode())),
        request_id: args.request_id.clone().unwrap_or_else(|| Uuid::now_v7().to_string()),
    };
    let tasks = args.tasks(&skipped)?;
    let client = connect(global).await?;
    let mut signals = Signals::new()?;
    let batch = client.create(request).await?;
    let name = batch.name.as_str();
    if global.output == Output::Table {
        line(names::batch_id(name))?;
    }
    let waits = args.watch || args.wait;
    let follow = Follow {
        client: &client,
        name,
        on_interrupt: OnInterrupt::Detach { resumable: args.request_id.is_some() },
        on_held: OnHeld::Stop,
        until_sealed: !waits,
    };
    let mut ui = if args.watch { Ui::new(global.output) } else { Ui::notes(global.output) };
    let append = Box::pin(seal(&client, name, tasks)) as Append<'_>;
    let batch = watch::stream(global, &follow, &mut ui, &mut signals, Some(append), args.watch).await?;
    if let Some(text) = skipped.describe() {
        ui.note(&text);
    }
    match global.output {
        Output::Table if waits => watch::summary(&client, &batch).await?,
        Output::Json if !args.watch => print_batch(global, &batch)?,
        _ => {}
    }
    // A batch that was revoked before it was sealed has its outcome, waited for or not.
    Ok(if waits || is_final(&batch) { follow::exit_code(&batch, args.fail_on_failed) } else { exit::OK })
}

/// Appends all tasks and seals.
async fn seal(client: &Client, name: &str, tasks: Tasks) -> Result<(), ClientError> {
    let total = client.appender(name).try_run(tasks).await?;
    client.seal(name, Some(total)).await.map(drop)
}

fn existing(source: &Path) -> Result<PathBuf> {
    let found = source.canonicalize();
    let found = found.map_err(|e| CliError::caused(format!("cannot read SRC {}", source.display()), &e))?;
    if found.is_dir() {
        Ok(found)
    } else {
        Err(CliError::new(format!("SRC {} is not a folder", source.display()))
            .hint("a list of files: --manifest"))
    }
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|e| CliError::caused(format!("cannot use {}", path.display()), &e))
}

fn text(path: &Path) -> Result<String> {
    path.to_str()
        .map(str::to_owned)
        .ok_or_else(|| CliError::new(format!("the path {} is not UTF-8", path.display())))
}
