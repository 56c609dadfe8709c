//! One batch, from its files to the sweep: what its clients do, and what must come out.

use super::calls::{CallError, Calls};
use super::files::{Files, Shelf, count};
use super::journal::Journal;
use super::plan::BatchPlan;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tranche_client::v1::batch::{CommitMode, State};
use tranche_client::v1::decision::{Outcome, Reason};
use tranche_client::{Error, is_final, v1};

/// Between two questions to any coordinator.
const POLL: Duration = Duration::from_millis(100);
/// A worker that wakes up after the sweep removes what it staged itself; so long it may take.
const LATE: Duration = Duration::from_secs(20);
/// A watch is left after this time, so that a round's end is noticed.
const WATCH: Duration = Duration::from_secs(10);
/// Who cancels and approves.
const ACTOR: &str = "chaos";

/// Why a batch is no more followed: all of these are violations, and name the batch.
type Broken = String;

/// A batch under way.
pub struct Batch<'a> {
    /// What it is like.
    pub plan: &'a BatchPlan,
    /// Its files.
    pub files: &'a mut Files,
    /// Where they go.
    pub shelf: &'a Shelf,
    /// How coordinators are asked.
    pub calls: &'a Calls,
    /// Where it is counted.
    pub journal: &'a Journal,
    /// When all must be over.
    pub overdue: &'a CancellationToken,
}

/// What the clients of a batch were told.
#[derive(Debug, Default)]
struct Told {
    cancel_sent: bool,
    cancelled: bool,
    too_late: bool,
}

impl Batch<'_> {
    /// Creates the batch, appends to it, decides about it, waits until it is swept, and checks everything
    /// that can be seen.
    ///
    /// # Errors
    /// What is wrong.
    pub async fn run(&mut self, request_id: &str) -> Result<v1::Batch, Broken> {
        let name = self.create(request_id).await?;
        self.journal.note(format!("{name}: {}", self.describe()));
        let over = CancellationToken::new();
        let (cancelled, ended) = {
            let (calls, journal) = (self.calls, self.journal);
            let cancel = cancel_later(calls, journal, &name, self.plan.cancel, over.clone());
            let go = async {
                let ended = self.go_to_its_end(&name).await;
                over.cancel();
                ended
            };
            tokio::join!(cancel, go)
        };
        let (mut told, decided) = ended.map_err(|error| format!("{name}: {error}"))?;
        let cancelled = cancelled.map_err(|error| format!("{name}: {error}"))?;
        told.cancel_sent |= cancelled.cancel_sent;
        told.cancelled |= cancelled.cancelled;
        told.too_late |= cancelled.too_late;
        let checked = self.check(&name, &decided, &told).await;
        checked.map_err(|error| format!("{name}: {error}"))
    }

    fn describe(&self) -> String {
        let plan = self.plan;
        let failing = self.files.failing().len();
        format!(
            "{} tasks, {failing} must fail, limit {:?}, {:?}, cancel after {:?}, deadline {:?}, ranges of {}",
            plan.tasks, plan.limit, plan.held, plan.cancel, plan.deadline, plan.range
        )
    }

    async fn create(&self, request_id: &str) -> Result<String, Broken> {
        let plan = self.plan;
        let batch = v1::Batch {
            targets: vec![self.files.target(plan)],
            commit_mode: if plan.held.is_some() { CommitMode::Manual } else { CommitMode::Auto }.into(),
            failure_limit: plan
                .limit
                .map(|limit| v1::FailureLimit { max_failed_tasks: Some(limit), ..Default::default() }),
            deadline: plan.deadline.map(|time| time.try_into().expect("a short time")),
            range_bounds: Some(v1::RangeBounds { min_tasks: 1, max_tasks: plan.range }),
            // The chaos loses workers all the time; no task is to blame.
            max_attempts: 100,
            ..Default::default()
        };
        let request = v1::CreateBatchRequest {
            batch: Some(batch),
            request_id: request_id.to_owned(),
            ..Default::default()
        };
        let create = || self.calls.ask("CreateBatch", async |client| client.create(request.clone()).await);
        let name = create().await.map_err(|error| format!("{request_id}: {}", text(error)))?.name;
        if plan.create_twice {
            let again = create().await.map_err(|error| format!("{name}: {}", text(error)))?.name;
            if again != name {
                return Err(format!("I8: request {request_id} made {name} and {again}"));
            }
        }
        Ok(name)
    }

    async fn go_to_its_end(&mut self, name: &str) -> Result<(Told, v1::Batch), Broken> {
        let mut told = Told::default();
        if self.append(name).await? && self.seal(name).await? && self.plan.held.is_some() {
            self.hold(name, &mut told).await?;
        }
        let ended = self.wait(name, is_final).await?;
        Ok((told, ended))
    }

    /// Appends all tasks; false: the batch was decided before.
    async fn append(&self, name: &str) -> Result<bool, Broken> {
        let mut given_up = self.plan.resume;
        loop {
            let client = self.calls.any();
            let tasks = self.files.tasks.clone();
            let run = client.appender(name).run(tokio_stream::iter(tasks));
            let result = match given_up.take() {
                None => run.await,
                Some(limit) => {
                    let Ok(result) = timeout(limit, run).await else {
                        self.journal.counts().resumes += 1;
                        continue;
                    };
                    result
                }
            };
            match result {
                Ok(_) => return Ok(true),
                Err(error @ Error::LostTasks { .. }) => return Err(format!("I7: {error}")),
                Err(error) if error.retryable() => {
                    let url = client.url();
                    self.journal.note(format!("{name}: append at {url}: {:?}: {error}", error.code()));
                    if self.overdue.is_cancelled() {
                        return Err(format!("I9: appending isn't possible again: {error}"));
                    }
                    sleep(POLL).await;
                }
                Err(error) => return self.decided_instead(name, error).await.map(|()| false),
            }
        }
    }

    async fn seal(&self, name: &str) -> Result<bool, Broken> {
        let total = Some(count(self.files.tasks.len()));
        match self.calls.ask("SealBatch", async |client| client.seal(name, total).await).await {
            Ok(_) => Ok(true),
            Err(CallError::Refused(error)) => self.decided_instead(name, error).await.map(|()| false),
            Err(error) => Err(text(error)),
        }
    }

    /// A call was refused: the batch must have been decided by something else.
    async fn decided_instead(&self, name: &str, error: Error) -> Result<(), Broken> {
        let batch = self.get(name).await?;
        if batch.decision.is_some() && error.code() == tonic::Code::FailedPrecondition {
            return Ok(());
        }
        Err(format!("refused, and nothing is decided: {:?} {:?}: {error}", error.code(), error.reason()))
    }

    /// Waits until the batch is HELD, and does with it what the plan says.
    async fn hold(&mut self, name: &str, told: &mut Told) -> Result<(), Broken> {
        let Some(held) = self.plan.held else { return Ok(()) };
        let is_held = |batch: &v1::Batch| batch.state() == State::Held || batch.decision.is_some();
        if self.wait(name, is_held).await?.state() != State::Held {
            return Ok(());
        }
        self.shelf.check().map_err(|error| format!("while it is held: {error}"))?;
        if held.retry {
            self.files.mend(self.plan, self.shelf);
            self.journal.counts().retries += 1;
            match self.calls.ask("RetryFailed", async |client| client.retry_failed(name).await).await {
                Ok(_) => {}
                Err(CallError::Refused(error)) => return self.decided_instead(name, error).await,
                Err(error) => return Err(text(error)),
            }
            self.wait(name, is_held).await?;
        }
        sleep(held.lasts).await;
        let answer = if held.approve {
            self.calls.ask("CommitBatch", async |client| client.commit(name, ACTOR).await).await.map(drop)
        } else {
            told.cancel_sent = true;
            self.journal.counts().cancels += 1;
            let answer =
                self.calls.ask("CancelBatch", async |client| client.cancel(name, ACTOR, "held").await).await;
            told.cancelled = answer.is_ok();
            answer.map(drop)
        };
        match answer {
            Ok(()) => Ok(()),
            Err(CallError::Refused(error)) => self.decided_instead(name, error).await,
            Err(error) => Err(text(error)),
        }
    }

    async fn get(&self, name: &str) -> Result<v1::Batch, Broken> {
        self.calls.ask("GetBatch", async |client| client.get(name).await).await.map_err(text)
    }

    /// Waits until the batch is as wished, or has ended. No answer may contradict one before.
    async fn wait(&self, name: &str, wished: impl Fn(&v1::Batch) -> bool) -> Result<v1::Batch, Broken> {
        let mut before = v1::Batch::default();
        loop {
            let batch = if self.plan.watch {
                let watch = self.calls.any().wait_until(name, &wished);
                match timeout(WATCH, watch).await {
                    Ok(Ok(batch)) => batch,
                    Ok(Err(error)) if !error.retryable() => {
                        return Err(format!("a watch was refused: {:?}: {error}", error.code()));
                    }
                    _ => self.get(name).await?,
                }
            } else {
                self.get(name).await?
            };
            Self::contradicts(&before, &batch)?;
            if wished(&batch) || is_final(&batch) {
                return Ok(batch);
            }
            if self.overdue.is_cancelled() {
                return Err(format!("I9: it doesn't go on: {}", brief(&batch)));
            }
            if batch.decision.is_some() || before.decision.is_none() {
                before = batch;
            }
            sleep(POLL).await;
        }
    }

    /// A decision never changes, and an end is never taken back, whoever answers. (What is read from etcd may
    /// show a decision a little before its owner knows of it.)
    fn contradicts(before: &v1::Batch, now: &v1::Batch) -> Result<(), Broken> {
        let both = before.decision.is_some() && now.decision.is_some();
        let changed = both && now.decision != before.decision;
        if changed || is_final(before) && (now.state() != before.state() || now.decision.is_none()) {
            return Err(format!("I3: an answer was {}, and a later one {}", brief(before), brief(now)));
        }
        Ok(())
    }

    async fn check(&mut self, name: &str, ended: &v1::Batch, told: &Told) -> Result<v1::Batch, Broken> {
        self.check_decision(ended, told)?;
        self.check_library(name, ended)?;
        self.check_counters(ended)?;
        self.check_failures(name, ended.state()).await?;
        let swept = loop {
            let batch = self.get(name).await?;
            Self::contradicts(ended, &batch)?;
            if batch.swept {
                break batch;
            }
            if self.overdue.is_cancelled() {
                return Err(format!("I9: it isn't swept: {}", brief(&batch)));
            }
            sleep(POLL).await;
        };
        self.check_counters(&swept)?;
        gone(&self.shelf.staging(name)).await?;
        Ok(swept)
    }

    fn check_decision(&self, ended: &v1::Batch, told: &Told) -> Result<(), Broken> {
        let decision = ended.decision.clone().ok_or_else(|| format!("I3: no decision: {}", brief(ended)))?;
        let failing = count(self.files.failing().len());
        let crossed = self.plan.limit.is_some_and(|limit| failing > limit);
        let possible = match (decision.outcome(), decision.reason()) {
            (Outcome::Commit, Reason::AllAccounted) => self.plan.held.is_none() && !crossed,
            (Outcome::Commit, Reason::Approved) => {
                self.plan.held.is_some_and(|held| held.approve) && !crossed
            }
            (Outcome::Rollback, Reason::Cancelled) => told.cancel_sent,
            (Outcome::Rollback, Reason::FailureLimit) => crossed,
            (Outcome::Rollback, Reason::Deadline) => self.plan.deadline.is_some(),
            _ => false,
        };
        let state = match decision.outcome() {
            Outcome::Commit => State::Committed,
            _ => State::RolledBack,
        };
        let contradiction = match decision.outcome() {
            Outcome::Commit => told.cancelled,
            _ => told.too_late,
        };
        if !possible || state != ended.state() {
            return Err(format!("I3: that can't be: {}: {}", self.describe(), brief(ended)));
        }
        if contradiction {
            return Err(format!("I7: the cancel was answered otherwise ({told:?}): {}", brief(ended)));
        }
        Ok(())
    }

    fn check_library(&self, name: &str, ended: &v1::Batch) -> Result<(), Broken> {
        check_report(ended)?;
        let path = self.shelf.manifest(name);
        if ended.state() == State::RolledBack {
            if path.exists() {
                return Err("I4: rolled back, it has a manifest in the library".into());
            }
            return self.shelf.check();
        }
        // The library is compared by the caller, who knows what must be there now.
        let objects = json(&path)?["objects"].as_array().cloned().unwrap_or_default();
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        let found: BTreeMap<_, _> = objects.iter().map(|o| (text(&o["key"]), text(&o["blake3"]))).collect();
        let expected: BTreeMap<_, _> = self.files.staged().collect();
        if found != expected || objects.len() != expected.len() {
            let (found, expected) = (objects.len(), expected.len());
            return Err(format!("I4: its manifest has {found} objects, not the {expected} that were staged"));
        }
        Ok(())
    }

    fn check_counters(&self, ended: &v1::Batch) -> Result<(), Broken> {
        let counters = ended.counters.unwrap_or_default();
        let (total, failed) = (count(self.files.tasks.len()), count(self.files.failing().len()));
        let staged = total - failed;
        let right = if ended.state() == State::Committed {
            (counters.total, counters.staged, counters.failed, counters.committed, counters.rolled_back)
                == (total, staged, failed, staged, 0)
        } else {
            counters.committed == 0
                && counters.rolled_back == counters.cutoff
                && counters.total <= total
                && counters.staged <= staged
                // Some may have been mended, and not retried in time.
                && (counters.failed <= failed || self.plan.held.is_some_and(|held| held.retry))
        };
        if right { Ok(()) } else { Err(format!("I5: {failed} of {total} must fail: {counters:?}")) }
    }

    async fn check_failures(&self, name: &str, state: State) -> Result<(), Broken> {
        use futures::TryStreamExt as _;
        let list: Vec<v1::TaskFailure> = self
            .calls
            .ask("ListFailures", async |client| client.failures(name).try_collect().await)
            .await
            .map_err(text)?;
        let expected = self.files.failing();
        let found: BTreeMap<i64, &str> = list.iter().map(|f| (f.sequence, f.code.as_str())).collect();
        let known = found.iter().all(|(sequence, code)| expected.get(sequence) == Some(code));
        // Retried tasks that were mended may have failed before a batch was cancelled.
        let unknown_at_rollback = state == State::RolledBack && self.plan.held.is_some_and(|held| held.retry);
        let complete = state != State::Committed || found.len() == expected.len();
        if list.len() == found.len() && (known || unknown_at_rollback) && complete {
            return Ok(());
        }
        Err(format!("I1: the failures are {list:?}, and must be {expected:?}"))
    }
}

/// Cancels a batch after a time, unless it is over before.
async fn cancel_later(
    calls: &Calls,
    journal: &Journal,
    name: &str,
    after: Option<Duration>,
    over: CancellationToken,
) -> Result<Told, Broken> {
    let mut told = Told::default();
    let Some(after) = after else { return Ok(told) };
    tokio::select! {
        () = over.cancelled() => return Ok(told),
        () = sleep(after) => {}
    }
    told.cancel_sent = true;
    journal.counts().cancels += 1;
    match calls.ask("CancelBatch", async |client| client.cancel(name, ACTOR, "planned").await).await {
        Ok(batch) => {
            if batch.decision.as_ref().map(v1::Decision::outcome) != Some(Outcome::Rollback) {
                return Err(format!("a cancel was answered with {}", brief(&batch)));
            }
            told.cancelled = true;
        }
        Err(CallError::Refused(error)) if error.reason().as_deref() == Some("ALREADY_DECIDED") => {
            told.too_late = true;
        }
        Err(error) => return Err(text(error)),
    }
    journal.note(format!("{name}: {told:?}"));
    Ok(told)
}

/// The report is durable before the end is told, and says the same.
fn check_report(ended: &v1::Batch) -> Result<(), Broken> {
    let report = json(Path::new(&ended.report_uri))?;
    let counters = ended.counters.unwrap_or_default();
    let told = [counters.total, counters.staged, counters.failed, counters.committed, counters.cutoff];
    let names = ["total", "staged", "failed", "committed", "cutoff"];
    let written = names.map(|name| report["counters"][name].as_i64().unwrap_or(-1));
    if report["state"] != ended.state().as_str_name() || written != told {
        return Err(format!("I7: the report says {written:?}, the batch {}", brief(ended)));
    }
    Ok(())
}

fn json(path: &Path) -> Result<serde_json::Value, Broken> {
    let bytes = std::fs::read(path).map_err(|error| format!("I7: {}: {error}", path.display()))?;
    serde_json::from_slice(&bytes).map_err(|error| format!("I7: {}: {error}", path.display()))
}

/// Waits until nothing is there.
async fn gone(folder: &Path) -> Result<(), Broken> {
    let deadline = Instant::now() + LATE;
    while folder.exists() {
        if Instant::now() > deadline {
            let left: Vec<_> = crate::library::snapshot(folder).into_keys().take(5).collect();
            return Err(format!("I4: swept, and {} is there: {left:?}, …", folder.display()));
        }
        sleep(POLL).await;
    }
    Ok(())
}

/// What matters of a batch, on one line.
pub fn brief(batch: &v1::Batch) -> String {
    let decision = batch.decision.as_ref().map(|decision| (decision.outcome(), decision.reason()));
    let (sealed, swept, counters) = (batch.sealed, batch.swept, batch.counters.unwrap_or_default());
    let trouble = &batch.status_message;
    format!("{:?} sealed={sealed} swept={swept} {decision:?} {counters:?} {trouble:?}", batch.state())
}

fn text(error: CallError) -> String {
    match error {
        CallError::Refused(error) => {
            format!("refused: {:?} {:?}: {error}", error.code(), error.reason())
        }
        CallError::Overdue(error) => format!("I9: no coordinator answers: {error}"),
    }
}
