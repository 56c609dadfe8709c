//! CommitBatch and CancelBatch: the decision is one key, written once, from any coordinator.
//!
//! Here a client's word races with the owner's last report, its deadline and its failure limit; whoever
//! creates the key first has decided, and the loser is told which it is.

use super::{Node, View};
use crate::driver::{Handle, ledger, records};
use crate::error::Error;
use crate::store::keys::{self, BatchKey};
use crate::store::{Txn, TxnOutcome, commit};
use std::time::Duration;
use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;
use tranche_engine::{Decision, Event, Outcome, Reason};
use tranche_guards::Guard;
use tranche_proto::stored::Stored;
use tranche_proto::v1::{self, batch::State};

/// How long a call waits for the owner to act on the decision, before it answers without having seen it.
const SEEN_WAIT: Duration = Duration::from_secs(2);
/// How often it looks, when the owner is elsewhere.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Lets the owner that is here begin no write. `None`: the one in flight takes too long; then it is decided
/// beside it, as beside an owner elsewhere.
async fn paused(owner: &Handle) -> Option<OwnedMutexGuard<()>> {
    tokio::select! {
        biased;
        paused = owner.pause() => Some(paused),
        () = owner.term().over() => None,
        () = tokio::time::sleep(SEEN_WAIT) => None,
    }
}

impl Node {
    /// Approves a held batch.
    pub async fn commit(&self, batch: &BatchKey, actor: &str) -> Result<View, Error> {
        self.decide(batch, Outcome::Commit, actor, "").await
    }

    /// Revokes a batch.
    pub async fn cancel(&self, batch: &BatchKey, actor: &str, message: &str) -> Result<View, Error> {
        self.decide(batch, Outcome::Rollback, actor, message).await
    }

    async fn decide(
        &self,
        batch: &BatchKey,
        outcome: Outcome,
        actor: &str,
        message: &str,
    ) -> Result<View, Error> {
        let store = &*self.shared.store;
        let mut incomplete = false;
        // Each turn that fails means that a grant moved the cut-off, or the state changed, in between: an owner
        // elsewhere may do that. One that is here waits.
        loop {
            let paused = match self.shared.handle(batch) {
                Some(owner) => paused(&owner).await,
                None => None,
            };
            let (state_key, decision_key, cutoff_key) =
                (keys::state(batch), keys::decision(batch), keys::cutoff(batch));
            // Side by side: the transaction compares all three.
            let (state, decided, cutoff) =
                tokio::try_join!(store.get(&state_key), store.get(&decision_key), store.get(&cutoff_key))?;
            let state = state.ok_or_else(|| Error::NotFound(batch.clone()))?;
            if let Some(entry) = decided {
                drop(paused);
                let made = ledger::decode::<v1::DecisionRecord>(&entry)?.value;
                if made.outcome() != records::outcome_to_proto(outcome) {
                    let (outcome, reason) = (made.outcome(), made.reason());
                    return Err(Error::AlreadyDecided { batch: batch.clone(), outcome, reason });
                }
                return self.acted_on(batch, made).await;
            }
            let record = ledger::decode::<v1::StateRecord>(&state)?.value;
            let Some(cutoff) = cutoff else {
                // It may have been deleted between two reads, but not twice.
                if std::mem::replace(&mut incomplete, true) {
                    return Err(Error::Damaged { what: cutoff_key, message: "it is missing".to_owned() });
                }
                continue;
            };
            let mut txn =
                Txn::new().absent(decision_key.clone()).created(state_key.clone(), state.create_revision);
            if Guard::CutoffFrozen.on() {
                txn = txn.modified(cutoff_key, cutoff.mod_revision);
            }
            if outcome == Outcome::Commit {
                if record.state() != State::Held {
                    return Err(Error::WrongState {
                        batch: batch.clone(),
                        state: record.state(),
                        wanted: "only a batch that is HELD can be committed",
                    });
                }
                txn = txn.modified(state_key, state.mod_revision);
            }
            let decision = Decision {
                outcome,
                reason: match outcome {
                    Outcome::Commit => Reason::Approved,
                    Outcome::Rollback => Reason::Cancelled,
                },
                actor: if actor.is_empty() { "unknown".to_owned() } else { actor.to_owned() },
                message: message.to_owned(),
                cutoff: ledger::decode::<v1::CutoffRecord>(&cutoff)?.value.cutoff.cast_unsigned(),
                decide_time_ms: self.shared.host.wall_ms(),
            };
            let stored = records::decision_record(&decision, &self.shared.id);
            txn = txn.put(decision_key, Stored::new(stored.clone()).encode());
            if commit::commit(store, &txn).await? == (TxnOutcome::Refused) {
                continue;
            }
            drop(paused);
            tracing::info!(batch.id = %batch, ?outcome, actor, "decided by a client");
            if let Some(handle) = self.shared.handle(batch) {
                handle.event(Event::Decided(decision)).await;
            }
            return self.acted_on(batch, stored).await;
        }
    }

    /// Waits shortly until the batch shows what follows from the decision. The answer has the decision in any
    /// case, also when an owner that is slow doesn't show it yet.
    async fn acted_on(&self, batch: &BatchKey, made: v1::DecisionRecord) -> Result<View, Error> {
        let until = Instant::now() + SEEN_WAIT;
        let acted = |view: &View| !matches!(view.state.state(), State::Importing | State::Held);
        let mut view = loop {
            let view = self.get(batch).await?;
            if acted(&view) || Instant::now() >= until || self.shared.stop.is_cancelled() {
                break view;
            }
            let Some(handle) = self.shared.handle(batch) else {
                tokio::time::sleep(LOOK_AGAIN).await;
                continue;
            };
            let mut updates = handle.view();
            // Not seen in time, or by another owner: the decision is durable all the same.
            tokio::select! {
                biased;
                _ = updates.wait_for(|view| acted(view)) => {}
                () = handle.term().over() => {}
                () = tokio::time::sleep_until(until) => {}
            }
        };
        view.decision.get_or_insert(made);
        Ok(view)
    }
}
