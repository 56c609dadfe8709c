//! Follows one batch from its first task to its end: progress, approval, Ctrl-C.

use std::future::Future;
use std::pin::Pin;

use futures::StreamExt as _;
use tokio::sync::mpsc;
use tonic::Code;
use tranche_client::v1::{self, batch::State};
use tranche_client::{Client, Error as ClientError, is_final, names};

use crate::error::{CliError, Result};
use crate::exit;
use crate::output::progress::Ui;
use crate::output::{count, table};
use crate::signals::Signals;

/// Failures shown before a question and at the end.
pub(crate) const FAILURES_SHOWN: usize = 20;

/// Appends and seals; dropped when the batch is cancelled first.
pub(crate) type Append<'a> = Pin<Box<dyn Future<Output = Result<(), ClientError>> + Send + 'a>>;

/// What Ctrl-C does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnInterrupt {
    /// Cancels the batch and shows its rollback; a second one leaves at once.
    Cancel {
        /// What becomes of the batch after the second.
        left: &'static str,
    },
    /// Leaves, and the batch goes on. One that is not yet sealed could never end, so it is cancelled,
    /// unless the submission can be resumed.
    Detach {
        /// Whether the same command goes on with the same batch.
        resumable: bool,
    },
}

/// What happens at HELD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnHeld {
    /// Return.
    Stop,
    /// Go on watching until somebody has decided.
    Wait,
    /// Ask on standard input.
    Ask,
}

/// How a batch ended.
#[derive(Debug)]
pub(crate) struct Followed {
    /// The batch as it was last seen: final, or HELD.
    pub(crate) batch: v1::Batch,
    /// Ctrl-C cancelled it.
    pub(crate) interrupted: bool,
    /// Ctrl-C came, whether or not it could change anything.
    pub(crate) signalled: bool,
    /// Why no more tasks could be appended; the batch was cancelled for it.
    pub(crate) append_error: Option<CliError>,
}

/// A call whose answer is awaited while everything else goes on.
type Action<'a> = Pin<Box<dyn Future<Output = Result<(), ClientError>> + Send + 'a>>;

pub(crate) struct Follow<'a> {
    pub(crate) client: &'a Client,
    pub(crate) name: &'a str,
    pub(crate) on_interrupt: OnInterrupt,
    pub(crate) on_held: OnHeld,
    /// Return as soon as all tasks are appended and sealed.
    pub(crate) until_sealed: bool,
}

impl<'a> Follow<'a> {
    /// Follows until the batch has ended, or is HELD if that is to stop it.
    pub(crate) async fn run(
        &self,
        ui: &mut Ui,
        signals: &mut Signals,
        append: Option<Append<'a>>,
        mut each: impl FnMut(&v1::WatchBatchResponse) -> Result<()>,
    ) -> Result<Followed> {
        let mut run = Run {
            append,
            action: None,
            batch: v1::Batch::default(),
            interrupted: false,
            interrupts: 0,
            append_error: None,
            answers: None,
        };
        let mut updates = self.client.watch(self.name);
        loop {
            tokio::select! {
                update = updates.next() => {
                    let Some(update) = update else {
                        return Err(CliError::new("the watch ended before the batch"));
                    };
                    let update = update.map_err(|e| CliError::of_batch(self.name, e))?;
                    ui.update(&update);
                    each(&update)?;
                    let before = run.batch.state();
                    run.batch = update.batch.unwrap_or_default();
                    let held = run.batch.state() == State::Held;
                    if is_final(&run.batch) || (held && self.on_held == OnHeld::Stop) {
                        return Ok(run.end());
                    }
                    if held && before != State::Held && self.on_held == OnHeld::Ask {
                        self.question(ui, &run.batch).await;
                        run.answers.get_or_insert_with(read_lines);
                    }
                }
                result = maybe(&mut run.append) => {
                    run.append = None;
                    match result {
                        Err(error) => self.append_failed(&mut run, ui, error).await?,
                        Ok(()) if self.until_sealed => {
                            let batch = self.client.get(self.name).await;
                            run.batch = batch.map_err(|e| CliError::of_batch(self.name, e))?;
                            return Ok(run.end());
                        }
                        Ok(()) => {}
                    }
                }
                result = maybe(&mut run.action) => {
                    run.action = None;
                    self.acted(&mut run, ui, result).await?;
                }
                answer = line(&mut run.answers), if run.batch.state() == State::Held && run.action.is_none() => {
                    self.answered(&mut run, ui, answer.as_deref());
                }
                () = signals.next() => self.signalled(&mut run, ui)?,
            }
        }
    }

    /// A batch that was decided takes no more tasks: that is no error, it goes on to its end. Any other
    /// failure revokes the batch.
    async fn append_failed(&self, run: &mut Run<'a>, ui: &Ui, error: ClientError) -> Result<()> {
        if error.code() == Code::FailedPrecondition
            && self.client.get(self.name).await.is_ok_and(|batch| batch.decision.is_some())
        {
            return Ok(());
        }
        let error = CliError::of_batch(self.name, error);
        ui.note(&format!(
            "cannot append all tasks, cancelling: {}",
            crate::output::printable(&error.message)
        ));
        let comment: String =
            format!("the submitter failed: {}", error.message).chars().take(1_000).collect();
        if self.client.cancel(self.name, &actor(), &comment).await.is_err() {
            // The first error says more than the second.
            return Err(error);
        }
        run.append_error = Some(error);
        Ok(())
    }

    fn signalled(&self, run: &mut Run<'a>, ui: &Ui) -> Result<()> {
        run.interrupts += 1;
        let id = names::batch_id(self.name);
        let leave = |text: String| CliError { exit: exit::INTERRUPTED, ..CliError::new(text) };
        let left = match self.on_interrupt {
            OnInterrupt::Cancel { left } => left,
            OnInterrupt::Detach { resumable: true } if run.append.is_some() => {
                let hint = "the same command with the same --request-id goes on where this one stopped";
                return Err(leave(format!("interrupted; batch {id} waits for more tasks")).hint(hint));
            }
            OnInterrupt::Detach { .. } if run.append.is_none() && run.interrupts == 1 => {
                let hint = format!("tranche watch {id}, or tranche cancel {id}");
                return Err(leave(format!("interrupted; batch {id} goes on")).hint(hint));
            }
            OnInterrupt::Detach { .. } => "the coordinator finishes the rollback",
        };
        if run.interrupts > 1 {
            return Err(leave(format!("interrupted again; {left}")));
        }
        let committed = run.batch.decision.as_ref().map(|d| d.outcome() == v1::decision::Outcome::Commit);
        match committed {
            Some(true) => ui.note(UNDOABLE),
            Some(false) => {
                run.interrupted = true;
                ui.note("interrupted; the rollback is on its way (Ctrl-C again leaves at once)");
            }
            None => {
                ui.note("interrupted; cancelling the batch (Ctrl-C again leaves at once)");
                run.append = None;
                run.interrupted = true;
                let (client, name) = (self.client, self.name);
                run.action =
                    Some(Box::pin(
                        async move { client.cancel(name, &actor(), "interrupted").await.map(drop) },
                    ));
            }
        }
        Ok(())
    }

    /// A cancel, approval or retry was answered.
    async fn acted(&self, run: &mut Run<'a>, ui: &Ui, result: Result<(), ClientError>) -> Result<()> {
        let Err(error) = result else { return Ok(()) };
        if error.code() != Code::FailedPrecondition {
            return Err(CliError::of_batch(self.name, error));
        }
        // Somebody or something else was first; what was decided shows in the watch.
        let batch = self.client.get(self.name).await.map_err(|e| CliError::of_batch(self.name, e))?;
        match &batch.decision {
            Some(decision) if run.interrupted && decision.outcome() == v1::decision::Outcome::Commit => {
                run.interrupted = false;
                ui.note(UNDOABLE);
            }
            Some(decision) => ui.note(&format!("already decided: {}", table::decided(decision))),
            None => return Err(CliError::of_batch(self.name, error)),
        }
        Ok(())
    }

    /// Shows what there is to decide about.
    async fn question(&self, ui: &Ui, batch: &v1::Batch) {
        ui.note(&format!("all tasks are accounted for: {}", table::counts(batch)));
        if let Ok(lines) = failure_lines(self.client, batch).await {
            for text in lines {
                ui.note(&text);
            }
        }
        ask(ui, batch);
    }

    fn answered(&self, run: &mut Run<'a>, ui: &Ui, answer: Option<&str>) {
        let (client, name) = (self.client, self.name);
        match answer.map(|a| a.trim().to_lowercase()).as_deref() {
            Some("y" | "yes") => {
                run.action = Some(Box::pin(async move { client.commit(name, &actor()).await.map(drop) }));
            }
            Some("r" | "retry") => {
                run.action = Some(Box::pin(async move { client.retry_failed(name).await.map(drop) }));
            }
            None | Some("n" | "no" | "") => {
                let comment = "not approved";
                run.action =
                    Some(Box::pin(async move { client.cancel(name, &actor(), comment).await.map(drop) }));
            }
            Some(_) => ask(ui, &run.batch),
        }
    }
}

const UNDOABLE: &str =
    "the decision is COMMIT: it can't be undone any more; waiting for the end (Ctrl-C again leaves at once)";

struct Run<'a> {
    append: Option<Append<'a>>,
    action: Option<Action<'a>>,
    batch: v1::Batch,
    interrupted: bool,
    interrupts: u32,
    append_error: Option<CliError>,
    answers: Option<mpsc::Receiver<String>>,
}

impl Run<'_> {
    fn end(self) -> Followed {
        Followed {
            batch: self.batch,
            interrupted: self.interrupted,
            signalled: self.interrupts > 0,
            append_error: self.append_error,
        }
    }
}

fn ask(ui: &Ui, batch: &v1::Batch) {
    let counters = batch.counters.unwrap_or_default();
    let retry = if counters.failed > 0 { "/r = retry the failed ones" } else { "" };
    ui.ask(&format!("commit {} tasks? [y/N{retry}] ", count(counters.staged)));
}

/// Waits for what there is, for ever if there is nothing.
async fn maybe<T>(future: &mut Option<Pin<Box<dyn Future<Output = T> + Send + '_>>>) -> T {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

async fn line(lines: &mut Option<mpsc::Receiver<String>>) -> Option<String> {
    match lines {
        Some(lines) => lines.recv().await,
        None => std::future::pending().await,
    }
}

/// Lines of standard input, from a thread that ends with it or with the process. One line waits for its
/// question; more are read when that was taken.
fn read_lines() -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines() {
            let Ok(line) = line else { return };
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    lines
}

/// The first failures, and how many more there are; empty if none failed.
pub(crate) async fn failure_lines(client: &Client, batch: &v1::Batch) -> Result<Vec<String>> {
    let failed = batch.counters.unwrap_or_default().failed;
    if failed == 0 {
        return Ok(Vec::new());
    }
    let failures = first_failures(client, &batch.name).await?;
    let mut lines = table::failures(&failures).lines();
    let more = failed - failures.len().cast_signed() as i64;
    if more > 0 {
        lines.push(format!("… and {} more", count(more)));
    }
    Ok(lines)
}

/// At most [`FAILURES_SHOWN`].
pub(crate) async fn first_failures(client: &Client, name: &str) -> Result<Vec<v1::TaskFailure>> {
    let mut failures = Vec::new();
    let mut all = client.failures(name).take(FAILURES_SHOWN);
    while let Some(failure) = all.next().await {
        failures.push(failure.map_err(|e| CliError::of_batch(name, e))?);
    }
    Ok(failures)
}

/// Who decides, for the record: `anna@host`.
pub(crate) fn actor() -> String {
    let user =
        std::env::var("USER").or_else(|_| std::env::var("LOGNAME")).unwrap_or_else(|_| "tranche".to_owned());
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{user}@{}", host.trim()).chars().take(200).collect()
}

/// The exit code of a batch that was waited for.
pub(crate) fn exit_code(batch: &v1::Batch, fail_on_failed: bool) -> i32 {
    match batch.state() {
        State::Committed if fail_on_failed && batch.counters.unwrap_or_default().failed > 0 => {
            exit::FAILED_TASKS
        }
        State::Committed => exit::OK,
        State::RolledBack => exit::ROLLED_BACK,
        State::Held => exit::HELD,
        _ => exit::ERROR,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_is_the_outcome() {
        let batch = |state: State, failed| v1::Batch {
            state: state.into(),
            counters: Some(v1::Counters { failed, ..Default::default() }),
            ..Default::default()
        };
        assert_eq!(exit_code(&batch(State::Committed, 0), true), exit::OK);
        assert_eq!(exit_code(&batch(State::Committed, 2), false), exit::OK);
        assert_eq!(exit_code(&batch(State::Committed, 2), true), exit::FAILED_TASKS);
        assert_eq!(exit_code(&batch(State::RolledBack, 2), true), exit::ROLLED_BACK);
        assert_eq!(exit_code(&batch(State::Held, 0), false), exit::HELD);
    }
}
