//! Cancel racing with the last report: one decision, and everything agrees with it.

use super::random;
use rand::Rng as _;
use std::sync::Arc;
use std::time::Duration;
use tranche_client::v1::{self, batch::State, decision::Outcome};
use tranche_tests::cluster::{batch_for, batch_into, tasks};
use tranche_tests::{Cluster, Gate, Library};
use tranche_worker::handlers::Object;

const RACES: usize = 200;
/// Of these, so many with files.
const WITH_FILES: usize = 40;
/// Both outcomes must come at least so often, or it was no race.
const EACH: usize = 10;

/// How much later than the last report the cancel is sent, in microseconds; negative: earlier. It follows
/// the outcomes, so that both stay about as likely however fast the machine is.
struct Aim(i64);

impl Aim {
    fn adjust(&mut self, outcome: Outcome) {
        self.0 += if outcome == Outcome::Commit { -150 } else { 150 };
        self.0 = self.0.clamp(-20_000, 20_000);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn i3_a_cancel_that_races_with_the_last_report_makes_one_decision() {
    let cluster = Cluster::start().await;
    let data = cluster.data();
    let (gate, files) = (Gate::new("gate"), Gate::behind(Arc::new(Object::new(vec![data.clone()]))));
    let _worker = cluster.attach("w", 2, vec![gate.clone(), files.clone()]).await;
    let mut random = random(31);
    let (mut aims, mut outcomes) = ([Aim(0), Aim(0)], [0, 0]);
    for race in 0..RACES {
        let library =
            (race % (RACES / WITH_FILES) == 0).then(|| Library::with_files(&data, &format!("l{race}"), 3));
        let (spec, tasks, gate) = match &library {
            Some(library) => (batch_into(library.target()), library.tasks(), &files),
            None => (batch_for("gate"), tasks(3), &gate),
        };
        let aim = &mut aims[usize::from(library.is_some())];
        let bounds = Some(v1::RangeBounds { min_tasks: 3, max_tasks: 3 });
        let batch = cluster.submit(v1::Batch { range_bounds: bounds, ..spec }, tasks).await;
        gate.wait_staging(1).await;

        let late = aim.0 + random.random_range(-300..=300);
        let wait = |us: i64| tokio::time::sleep(Duration::from_micros(u64::try_from(us).unwrap_or(0)));
        let report = async {
            wait(-late).await;
            gate.pass(1);
        };
        let cancel = async {
            wait(late).await;
            cluster.client().cancel(&batch, "test", "racing").await
        };
        let ((), cancelled) = tokio::join!(report, cancel);

        let ended = cluster.client().wait(&batch).await.expect("an end");
        let decision = ended.decision.clone().expect("a decision");
        aim.adjust(decision.outcome());
        outcomes[usize::from(decision.outcome() == Outcome::Commit)] += 1;
        // The gate lets the next batch's lease wait, whoever won this time.
        gate.close();
        match (decision.outcome(), cancelled) {
            (Outcome::Rollback, Ok(answer)) => {
                assert_eq!(answer.decision.expect("told").outcome(), Outcome::Rollback);
                assert_eq!((ended.state(), decision.actor.as_str()), (State::RolledBack, "test"));
                assert_eq!(ended.counters.unwrap().committed, 0);
            }
            (Outcome::Commit, Err(error)) => {
                assert_eq!(error.reason().as_deref(), Some("ALREADY_DECIDED"), "{error}");
                assert_eq!(ended.state(), State::Committed);
                let counters = ended.counters.unwrap();
                assert_eq!((counters.staged, counters.committed, counters.rolled_back), (3, 3, 0));
            }
            (outcome, answer) => panic!("{batch} is {outcome:?}, and the cancel got {answer:?}"),
        }
        let phases: Vec<_> = gate.seen().into_iter().filter(|s| s.batch == batch).map(|s| s.phase).collect();
        let against = if ended.state() == State::Committed { "rollback" } else { "commit" };
        assert!(!phases.contains(&against), "{phases:?}");
        if let Some(library) = library {
            cluster.wait_swept(&batch).await;
            match ended.state() {
                State::Committed => library.assert_exactly(library.keys()),
                _ => library.assert_untouched(),
            }
            library.assert_no_staging_left();
        }
    }
    let history = cluster.history().await;
    for (key, _) in history.changes.values().flatten().filter(|(key, _)| key.starts_with("decisions/")) {
        let writes = history.changes.values().flatten().filter(|(k, value)| k == key && value.is_some());
        assert_eq!(writes.count(), 1, "{key} is written once");
    }
    let [rolled_back, committed] = outcomes;
    eprintln!("{committed} committed, {rolled_back} rolled back; aim {} µs", aims[0].0);
    assert!(committed >= EACH && rolled_back >= EACH, "{committed} committed, {rolled_back} rolled back");
}
