//! Clients: each makes one batch, as a real one would who never gives up.

use crate::handler;
use crate::host::{HostId, Kind, Life};
use crate::plan::{Held, Plan, task};
use crate::stats::Count;
use crate::world::World;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tranche_coordinator::error::Error;
use tranche_coordinator::node::{Node, View};
use tranche_coordinator::store::keys::BatchKey;
use tranche_proto::v1;
use tranche_proto::v1::batch::State;

/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// Why a call brought nothing.
#[derive(Debug)]
enum Failure {
    /// The coordinator said so.
    Told(Error),
    /// Another coordinator owns the batch.
    Elsewhere(HostId),
    /// No answer came.
    Nothing,
}

impl Failure {
    /// It won't be otherwise the next time.
    fn is_final(&self) -> bool {
        match self {
            Self::Told(error) => matches!(
                error,
                Error::AlreadyDecided { .. }
                    | Error::WrongState { .. }
                    | Error::Sealed { .. }
                    | Error::NotFound(_)
            ),
            Self::Elsewhere(_) | Self::Nothing => false,
        }
    }
}

/// One client.
pub(crate) struct Client {
    world: World,
    me: (HostId, Life),
    plan: Plan,
    /// A create got no answer: it may be carried out at any time.
    doubtful: AtomicBool,
}

impl Client {
    /// A client that follows a plan.
    pub(crate) fn new(world: World, me: (HostId, Life), plan: Plan) -> Self {
        Self { world, me, plan, doubtful: AtomicBool::new(false) }
    }

    /// Sees its batch through.
    pub(crate) async fn run(self) {
        let begun = Instant::now();
        sleep(self.plan.begin).await;
        let key = self.create().await;
        let acts = self.act_at_times(begun, &key);
        let import = async {
            if self.append(&key).await {
                sleep(self.plan.seal_after).await;
                self.seal(&key).await;
            }
            self.see_it_end(&key).await;
        };
        tokio::join!(acts, import);
        self.world.lock().done.insert(self.plan.number);
    }

    fn spec(&self) -> v1::Batch {
        let params = [(handler::PLAN.to_owned(), self.plan.number.to_string())].into();
        v1::Batch {
            targets: vec![v1::Target { handler: handler::NAME.to_owned(), params }],
            priority: 10,
            commit_mode: if self.plan.manual {
                v1::batch::CommitMode::Manual
            } else {
                v1::batch::CommitMode::Auto
            }
            .into(),
            failure_limit: self
                .plan
                .max_failed
                .map(|most| v1::FailureLimit { max_failed_tasks: Some(most), ..v1::FailureLimit::default() }),
            deadline: self.plan.deadline.and_then(|deadline| deadline.try_into().ok()),
            range_bounds: Some(v1::RangeBounds { min_tasks: 1, max_tasks: self.plan.max_range }),
            max_attempts: self.plan.max_attempts,
            ..v1::Batch::default()
        }
    }

    async fn create(&self) -> BatchKey {
        let mut made: Option<BatchKey> = None;
        loop {
            // Sometimes it asks two at once, as one does whose first call seems to be lost.
            let answers = if self.roll(4) {
                self.world.lock().count(Count::CallTwice);
                let (one, other) = tokio::join!(self.create_once(), self.create_once());
                [Some(one), Some(other)]
            } else {
                [Some(self.create_once().await), None]
            };
            let mut again = false;
            for view in answers.into_iter().flatten().flatten() {
                if made.as_ref().is_some_and(|made| *made != view.key) {
                    self.world
                        .lock()
                        .violated(format!("I8 request {} made {made:?} and {}", self.plan.number, view.key));
                }
                again = made.is_none() && self.roll(3);
                made = Some(view.key.clone());
            }
            match &made {
                Some(made) if !again => return made.clone(),
                Some(_) => self.world.lock().count(Count::CallTwice),
                None => {}
            }
            self.pause().await;
        }
    }

    async fn create_once(&self) -> Result<View, Failure> {
        let (spec, request) = (self.spec(), format!("request-{}", self.plan.number));
        let answer = self
            .any(move |node, world| async move {
                let view = node.create("default", spec, &request).await?;
                let there =
                    world.lock().check.batches.get(&view.key.to_string()).is_some_and(|m| m.state.is_some());
                if !there {
                    world.lock().violated(format!("I7 {} was said to be made, and isn't there", view.key));
                }
                Ok(view)
            })
            .await;
        self.doubtful.fetch_or(answer.is_err(), Ordering::Relaxed);
        answer
    }

    /// Appends all tasks; false: the batch takes no more.
    async fn append(&self, key: &BatchKey) -> bool {
        let mut durable = 0;
        while durable < self.plan.tasks {
            // Sometimes it begins with what it sent before.
            let back = if self.roll(4) { self.plan.chunk.min(durable) } else { 0 };
            if back > 0 {
                self.world.lock().count(Count::CallTwice);
            }
            let first = durable + 1 - back;
            let last = (durable + self.plan.chunk * 2).min(self.plan.tasks);
            let answer = if self.roll(4) {
                self.world.lock().count(Count::CallTwice);
                let both = (self.append_once(key, first, last), self.append_once(key, first, last));
                let (one, other) = tokio::join!(both.0, both.1);
                if one.is_ok() { one } else { other }
            } else {
                self.append_once(key, first, last).await
            };
            match answer {
                Ok(through) => durable = durable.max(through),
                Err(failure) if failure.is_final() => return false,
                // It has to look how far it came: here it just goes on, which a gap or a resend corrects.
                Err(Failure::Told(Error::Gap { expected, .. })) => durable = expected - 1,
                Err(Failure::Told(Error::Overtaken { durable: there, .. })) => durable = durable.max(there),
                Err(_) => {}
            }
            self.pause().await;
        }
        true
    }

    async fn append_once(&self, key: &BatchKey, first: u64, last: u64) -> Result<u64, Failure> {
        let (number, chunk, batch) = (self.plan.number, self.plan.chunk, key.clone());
        self.owner(key, move |node, world| async move {
            let mut appender = node.append(&batch).await?;
            let mut next = first;
            while next <= last {
                let end = last.min(next + chunk - 1);
                let tasks = (next..=end).map(|sequence| task(number, sequence)).collect();
                appender.push(next, tasks).await?;
                next = end + 1;
            }
            let through = appender.finish().await?;
            let inner = &mut *world.lock();
            let mirror = inner.check.batches.get(&batch.to_string());
            let total = mirror.and_then(|m| m.state.as_ref()).map_or(0, |s| s.total.cast_unsigned());
            if total < through {
                inner.violated(format!("I7 {batch}: {through} tasks are acknowledged, {total} are there"));
            }
            Ok(through)
        })
        .await
    }

    async fn seal(&self, key: &BatchKey) {
        loop {
            let (total, batch) = (self.plan.tasks.cast_signed(), key.clone());
            let answer = self
                .owner(key, move |node, world| async move {
                    let view = node.seal(&batch, Some(total)).await?;
                    let inner = &mut *world.lock();
                    let state = inner.check.batches.get(&batch.to_string()).and_then(|m| m.state.as_ref());
                    let sealed = state.is_some_and(|s| s.sealed && s.total == total);
                    if view.state.sealed && !sealed {
                        inner.violated(format!("I7 {batch} was said to be sealed, and isn't"));
                    }
                    Ok(view)
                })
                .await;
            match answer {
                Ok(_) if self.roll(4) => self.world.lock().count(Count::CallTwice),
                Ok(_) => return,
                Err(Failure::Told(error @ (Error::TotalMismatch { .. } | Error::Gap { .. }))) => {
                    return self.world.lock().violated(format!("I8 {key} can't be sealed: {error}"));
                }
                Err(failure) if failure.is_final() => return,
                Err(_) => {}
            }
            self.pause().await;
        }
    }

    /// Cancels and retries when the plan says so.
    async fn act_at_times(&self, begun: Instant, key: &BatchKey) {
        let cancel = async {
            if let Some(at) = self.plan.cancel {
                sleep_until(begun + at).await;
                self.cancel(key).await;
            }
        };
        let retry = async {
            if let Some(at) = self.plan.retry {
                sleep_until(begun + at).await;
                self.retry_failed(key, 3).await;
            }
        };
        tokio::join!(cancel, retry);
    }

    async fn cancel(&self, key: &BatchKey) {
        loop {
            let batch = key.clone();
            let answer = self
                .any(move |node, world| async move {
                    let view = node.cancel(&batch, "client", "as planned").await?;
                    let inner = &mut *world.lock();
                    let decision =
                        inner.check.batches.get(&batch.to_string()).and_then(|m| m.decision.as_ref());
                    let outcome = decision.map(v1::DecisionRecord::outcome);
                    if outcome != Some(v1::decision::Outcome::Rollback) {
                        inner.violated(format!(
                            "I7 {batch} was said to be cancelled, the decision is {outcome:?}"
                        ));
                    }
                    Ok(view)
                })
                .await;
            match answer {
                Ok(_) => return,
                Err(failure) if failure.is_final() => return,
                Err(_) => self.pause().await,
            }
        }
    }

    async fn commit(&self, key: &BatchKey) {
        loop {
            let batch = key.clone();
            let answer = self
                .any(move |node, world| async move {
                    let view = node.commit(&batch, "client").await?;
                    let inner = &mut *world.lock();
                    let decision =
                        inner.check.batches.get(&batch.to_string()).and_then(|m| m.decision.as_ref());
                    let outcome = decision.map(v1::DecisionRecord::outcome);
                    if outcome != Some(v1::decision::Outcome::Commit) {
                        inner.violated(format!(
                            "I7 {batch} was said to be committed, the decision is {outcome:?}"
                        ));
                    }
                    Ok(view)
                })
                .await;
            match answer {
                Ok(_) => return,
                Err(failure) if failure.is_final() => return,
                Err(_) => self.pause().await,
            }
        }
    }

    async fn retry_failed(&self, key: &BatchKey, times: u32) {
        for _ in 0..times {
            let batch = key.clone();
            let answer = self.owner(key, move |node, _| async move { node.retry_failed(&batch).await }).await;
            match answer {
                Ok((_, tasks)) => return self.world.lock().stats.add(Count::Retry, u64::from(tasks > 0)),
                Err(failure) if failure.is_final() => return,
                Err(_) => self.pause().await,
            }
        }
    }

    /// Looks at the batch until it ended; one that is held is decided.
    async fn see_it_end(&self, key: &BatchKey) {
        let mut retried = false;
        loop {
            let batch = key.clone();
            let view: Result<View, Failure> =
                self.any(move |node, _| async move { node.get(&batch).await }).await;
            let state = view.map(|view| view.state.state());
            match state {
                Ok(State::Committed | State::RolledBack) => {
                    self.read_failures(key).await;
                    // Its request id is free then: a create that is still on its way would make another.
                    if self.plan.delete && !self.doubtful.load(Ordering::Relaxed) {
                        self.delete(key).await;
                    }
                    return;
                }
                Err(Failure::Told(Error::NotFound(_))) => {
                    return self.world.lock().violated(format!("I7 {key} isn't known"));
                }
                Ok(State::Held) => match self.plan.held {
                    Held::RetryCommit if !retried => {
                        retried = true;
                        self.retry_failed(key, 10).await;
                    }
                    Held::Cancel => self.cancel(key).await,
                    Held::Commit | Held::RetryCommit => self.commit(key).await,
                },
                Ok(_) | Err(_) => {}
            }
            sleep(Duration::from_millis(300)).await;
        }
    }

    /// The list of failures has every task that failed, and no other.
    async fn read_failures(&self, key: &BatchKey) {
        loop {
            let batch = key.clone();
            let answer = self.any(move |node, _| async move { node.failures(&batch, 0, 10_000).await }).await;
            match answer {
                Ok((failures, _)) => {
                    let listed: Vec<u64> =
                        failures.iter().map(|failure| failure.sequence.cast_unsigned()).collect();
                    let inner = &mut *self.world.lock();
                    let counted = inner.check.failed(&key.to_string());
                    if listed != counted {
                        inner.violated(format!(
                            "I7 {key}: failures of {listed:?} are listed, {counted:?} failed"
                        ));
                    }
                    return;
                }
                Err(Failure::Told(error @ Error::Damaged { .. })) => {
                    return self
                        .world
                        .lock()
                        .violated(format!("I7 {key}: the failures can't be read: {error}"));
                }
                Err(_) => self.pause().await,
            }
        }
    }

    async fn delete(&self, key: &BatchKey) {
        loop {
            let batch = key.clone();
            match self.any(move |node, _| async move { node.delete(&batch).await }).await {
                Ok(()) => return self.world.lock().count(Count::Delete),
                Err(Failure::Told(Error::NotFound(_))) => return,
                Err(_) => sleep(Duration::from_millis(300)).await,
            }
        }
    }

    fn roll(&self, one_in: u8) -> bool {
        self.world.lock().rng.u8(0..one_in) == 0
    }

    async fn pause(&self) {
        let pause = self.world.lock().ms(1, 60);
        sleep(pause).await;
    }

    /// Calls any coordinator.
    async fn any<T, F>(&self, work: impl FnOnce(Arc<Node>, World) -> F + Send + 'static) -> Result<T, Failure>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send,
    {
        let to = {
            let inner = &mut *self.world.lock();
            let all = inner.hosts.all(Kind::Coordinator);
            all[inner.rng.usize(0..all.len())]
        };
        self.call(to, |node, world| async move { work(node, world).await.map_err(Failure::Told) }).await
    }

    /// Calls the batch's owner, as any coordinator knows it.
    async fn owner<T, F>(
        &self,
        key: &BatchKey,
        work: impl FnOnce(Arc<Node>, World) -> F + Send + Clone + 'static,
    ) -> Result<T, Failure>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send,
    {
        let mut to = {
            let inner = &mut *self.world.lock();
            let all = inner.hosts.all(Kind::Coordinator);
            all[inner.rng.usize(0..all.len())]
        };
        for _ in 0..2 {
            let (work, key) = (work.clone(), key.clone());
            let answer = self
                .call(to, |node, world| async move {
                    let shared = node.shared().clone();
                    if shared.handle(&key).is_none()
                        && let Some(owner) = shared.owner_of(&key).await.map_err(Failure::Told)?
                        && owner.id != shared.id
                        && let Some((host, _)) = crate::check::place_of(&owner.id)
                    {
                        return Err(Failure::Elsewhere(host));
                    }
                    work(node, world).await.map_err(Failure::Told)
                })
                .await;
            match answer {
                Err(Failure::Elsewhere(host)) => to = host,
                answer => return answer,
            }
        }
        Err(Failure::Nothing)
    }

    async fn call<T, F>(
        &self,
        to: HostId,
        work: impl FnOnce(Arc<Node>, World) -> F + Send + 'static,
    ) -> Result<T, Failure>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Failure>> + Send,
    {
        let (reply, answer) = oneshot::channel();
        let (world, me) = (self.world.clone(), self.me.0);
        {
            let inner = &mut *self.world.lock();
            let lost = inner.chance(inner.knobs.call_lost);
            let answer_lost = lost && inner.rng.bool();
            if lost {
                inner.count(Count::CallLost);
            }
            let pause = inner.ms(0, 15);
            inner.after(pause, move |inner| {
                if lost && !answer_lost {
                    return inner.never.push(Box::new(reply));
                }
                let seen = inner.hosts.of(to);
                let (Some((node, _)), Some(handle), true) = (seen.node.clone(), seen.handle.clone(), seen.up)
                else {
                    inner.hosts.touch(me);
                    return drop(reply);
                };
                inner.hosts.touch(to);
                handle.spawn(async move {
                    let begun = world.lock().now;
                    let result = work(node, world.clone()).await;
                    let inner = &mut *world.lock();
                    inner.answered(begun);
                    if answer_lost {
                        return inner.never.push(Box::new(reply));
                    }
                    let pause = inner.ms(0, 15);
                    inner.after(pause, move |inner| {
                        inner.hosts.touch(me);
                        let _ = reply.send(result);
                    });
                });
            });
        }
        match timeout(PATIENCE, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) | Err(_) => Err(Failure::Nothing),
        }
    }
}
