//! `tranche import`: all in one process, over loopback for real.

mod node;
mod settle;
mod summary;

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use tokio_stream::wrappers::ReceiverStream;
use tranche_client::v1::{self, batch::CommitMode};
use tranche_client::{Client, Error as ClientError, names};

use node::Node;

use crate::args::{BatchArgs, Global, ObjectArgs, word};
use crate::error::{CliError, Result};
use crate::exit;
use crate::follow::{self, Append, Follow, Followed, OnHeld, OnInterrupt};
use crate::output::progress::Ui;
use crate::signals::Signals;
use crate::source::SourceError;
use crate::source::paths::ImportPaths;
use crate::source::walk::{self, Skipped};

/// What is said when somebody won't wait for the end.
const LEFT: &str = "the next import into this library finishes what is left";

/// Imports every regular file below SRC into the library: all of them, or nothing.
///
/// A coordinator with its store on disk and a worker run in this process and listen on loopback. Files
/// are staged beside the library first, where no reader sees them; then they are renamed into it. Ctrl-C
/// before that cancels, and leaves the library as it was. What an import that was killed left behind is
/// finished or rolled back by the next one into the same library.
#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// The folder to import. Symbolic links in it are not followed.
    #[arg(value_name = "SRC")]
    source: PathBuf,
    /// The library; made if it is missing.
    #[arg(long, value_name = "LIB")]
    into: PathBuf,
    /// Where the coordinator keeps its records [default: .NAME.tranche/state beside the library NAME].
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    #[command(flatten)]
    objects: ObjectArgs,
    #[command(flatten)]
    batch: BatchArgs,
    /// Ask before the commit, once all is staged and the failures are known.
    #[arg(long)]
    approve: bool,
    /// The coordinator's port on loopback; 0 takes a free one.
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    port: u16,
    /// How many ranges are worked on at once [default: the number of processors].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1_024))]
    slots: Option<u16>,
    /// Exit with 4 if the batch is committed but tasks failed.
    #[arg(long)]
    fail_on_failed: bool,
}

impl ImportArgs {
    fn target(&self, paths: &ImportPaths) -> Result<v1::Target> {
        let mut params = vec![("source", text(&paths.source)?), ("library", text(&paths.library)?)];
        if let Some(staging) = &paths.staging {
            params.push(("staging", text(staging)?));
        }
        if let Some(check) = self.objects.check {
            params.push(("check", word(check)));
        }
        if let Some(if_exists) = self.objects.if_exists {
            params.push(("if_exists", word(if_exists)));
        }
        let params = params.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        Ok(v1::Target { handler: "object".into(), params })
    }
}

pub(crate) async fn run(global: &Global, args: ImportArgs) -> Result<i32> {
    let staging = args.objects.staging.as_deref();
    let paths = ImportPaths::check(&args.source, &args.into, args.state.as_deref(), staging)?;
    let target = args.target(&paths)?;
    let mut signals = Signals::new()?;
    let mut node = Node::start(&paths.state, args.port).await?;
    let mut ui = Ui::new(global.output);
    let address = node.address();
    ui.line(&format!("coordinator listening on {address} (grpcurl -plaintext {address} list)"));
    let client = node.client().await?;
    let unfinished = settle::unfinished(&client).await?;
    node.attach(settle::roots(&paths, &unfinished), args.slots.map(usize::from));
    let work = async {
        let settled = settle::settle(&client, &unfinished, global, &mut signals).await?;
        let ended = import(&client, &args, &paths, target, &mut ui, &mut signals).await;
        ui.finish();
        Ok::<_, CliError>((settled, ended?))
    };
    let (settled, ended) = tokio::select! {
        done = work => done?,
        failure = node.failed() => return Err(failure),
    };
    summary::print(global, &client, &paths, &ended, &settled, address).await?;
    tokio::select! {
        () = node.swept(&client) => {}
        // All that was asked for is done and said: who won't wait need not.
        () = signals.next() => {}
    }
    node.stop().await;
    let Ended { followed, .. } = ended;
    if let Some(error) = followed.append_error {
        return Err(error);
    }
    let code = follow::exit_code(&followed.batch, args.fail_on_failed);
    Ok(if followed.interrupted && code == exit::ROLLED_BACK { exit::INTERRUPTED } else { code })
}

/// How an import ended.
struct Ended {
    followed: Followed,
    skipped: Skipped,
    seconds: f64,
    states: String,
}

async fn import(
    client: &Client,
    args: &ImportArgs,
    paths: &ImportPaths,
    target: v1::Target,
    ui: &mut Ui,
    signals: &mut Signals,
) -> Result<Ended> {
    let start = Instant::now();
    let mode = if args.approve { CommitMode::Manual } else { CommitMode::Auto };
    let request =
        v1::CreateBatchRequest { batch: Some(args.batch.batch(target, mode)), ..Default::default() };
    let batch = client.create(request).await?;
    let name = batch.name.as_str();
    ui.line(&format!(
        "importing {} into {}, batch {}",
        printable(&paths.source),
        printable(&paths.library),
        names::batch_id(name)
    ));
    let skipped = Skipped::default();
    let tasks = walk::tasks(paths.source.clone(), skipped.clone());
    let append: Append<'_> = Box::pin(append(client, name, tasks));
    let follow = Follow {
        client,
        name,
        on_interrupt: OnInterrupt::Cancel { left: LEFT },
        on_held: OnHeld::Ask,
        until_sealed: false,
    };
    let followed = follow.run(ui, signals, Some(append), |_| Ok(())).await?;
    Ok(Ended { followed, skipped, seconds: start.elapsed().as_secs_f64(), states: ui.states() })
}

async fn append(
    client: &Client,
    name: &str,
    tasks: ReceiverStream<Result<v1::Task, SourceError>>,
) -> Result<(), ClientError> {
    let total = client.appender(name).try_run(tasks).await?;
    client.seal(name, Some(total)).await.map(drop)
}

fn text(path: &Path) -> Result<String> {
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| CliError::new(format!("the path {} is not UTF-8", path.display())))
}

fn printable(path: &Path) -> String {
    crate::output::printable(&path.display().to_string())
}
