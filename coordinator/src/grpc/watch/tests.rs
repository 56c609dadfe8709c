use super::*;
use crate::node::{Live, Term};
use crate::store::Store;
use crate::store::embedded::Embedded;
use futures::FutureExt;
use std::sync::Mutex;
use tokio::time::advance;
use tranche_proto::v1::{DecisionRecord, StateRecord, WatchBatchResponse};

type Responses = Updates;

fn view(state: State, staged: i64) -> View {
    View {
        key: BatchKey::new("ns", "b"),
        spec: Arc::new(v1::SpecRecord::default()),
        state: StateRecord { state: state.into(), total: 1000, staged, sealed: true, ..Default::default() },
        decision: None,
        cutoff: 600,
        live: Live { leases: 3, workers: 2, message: String::new() },
    }
}

fn decided(state: State, outcome: Outcome) -> View {
    let decision = DecisionRecord { outcome: outcome.into(), decide_time_ms: 77_000, ..Default::default() };
    View { decision: Some(decision), ..view(state, 1000) }
}

fn watch_it(first: View) -> (watch::Sender<Arc<View>>, Responses, CancellationToken) {
    let (sender, receiver) = watch::channel(Arc::new(first));
    let shutdown = CancellationToken::new();
    (sender, follow(responses(receiver), None::<Next>, shutdown.clone(), None), shutdown)
}

type Next = fn() -> std::future::Ready<Result<Updates, Status>>;

/// Follows through these owners; when there is none left, nobody is found.
fn from_owner_to_owner(first: Updates, others: Vec<Result<Updates, Status>>) -> Responses {
    let others = Arc::new(Mutex::new(others.into_iter()));
    let next = move || {
        let next = others.lock().expect("held by nobody").next();
        let nobody = || Err(Error::NotOwned { batch: BatchKey::new("ns", "b") }.into());
        std::future::ready(next.unwrap_or_else(nobody))
    };
    follow(first, Some(next), CancellationToken::new(), None)
}

/// An owner that shows these one after the other, each when it is asked for, and is lost then.
fn owner(views: Vec<View>) -> Updates {
    let shown = stream::iter(views).map(|view| {
        let (_, receiver) = watch::channel(Arc::new(view));
        responses(receiver).take(1)
    });
    shown.flatten().boxed()
}

/// What is there at once.
fn now(stream: &mut Responses) -> Option<WatchBatchResponse> {
    stream.next().now_or_never().map(|message| message.expect("open").expect("right"))
}

async fn next(stream: &mut Responses) -> WatchBatchResponse {
    stream.next().await.expect("open").expect("right")
}

fn staged(message: &WatchBatchResponse) -> i64 {
    message.batch.as_ref().and_then(|batch| batch.counters).expect("there").staged
}

fn state(message: &WatchBatchResponse) -> State {
    message.batch.as_ref().expect("there").state()
}

#[tokio::test(start_paused = true)]
async fn the_batch_is_told_at_once() {
    let (_sender, mut stream, _) = watch_it(view(State::Importing, 5));
    let first = now(&mut stream).expect("at once");
    assert_eq!((state(&first), staged(&first), first.workers, first.leases), (State::Importing, 5, 2, 3));
    assert_eq!(first.phases.len(), 1);
    assert!(now(&mut stream).is_none(), "nothing new");
}

#[tokio::test(start_paused = true)]
async fn counters_are_told_ten_times_a_second_at_most_and_the_last_one_always() {
    let (sender, mut stream, _) = watch_it(view(State::Importing, 0));
    next(&mut stream).await;
    let start = Instant::now();
    let moving = tokio::spawn(async move {
        for n in 1..=2000 {
            tokio::time::sleep(Duration::from_millis(1)).await;
            sender.send_replace(Arc::new(view(State::Importing, n)));
        }
        sender
    });
    let (mut messages, mut last) = (0, start);
    loop {
        let message = next(&mut stream).await;
        messages += 1;
        assert!(Instant::now() - last >= COUNTERS_EVERY, "too early");
        last = Instant::now();
        if staged(&message) == 2000 {
            break;
        }
    }
    assert!((19..=21).contains(&messages), "{messages} messages in 2 s");
    drop(moving.await.expect("joined"));
}

#[tokio::test(start_paused = true)]
async fn a_change_of_state_is_never_held_back() {
    let (sender, mut stream, _) = watch_it(View {
        state: StateRecord { sealed: false, ..view(State::Importing, 0).state },
        ..view(State::Importing, 0)
    });
    now(&mut stream).expect("at once");
    sender.send_replace(Arc::new(view(State::Importing, 1)));
    assert!(now(&mut stream).is_some(), "sealed");
    sender.send_replace(Arc::new(view(State::Importing, 2)));
    assert!(now(&mut stream).is_none(), "only a counter");
    sender.send_replace(Arc::new(view(State::Held, 2)));
    assert_eq!(state(&now(&mut stream).expect("at once")), State::Held);
    sender.send_replace(Arc::new(decided(State::Committing, Outcome::Commit)));
    assert_eq!(state(&now(&mut stream).expect("at once")), State::Committing);
    sender.send_replace(Arc::new(decided(State::Committed, Outcome::Commit)));
    assert_eq!(state(&now(&mut stream).expect("at once")), State::Committed);
    assert!(stream.next().await.is_none(), "ends with the final state");
}

#[tokio::test(start_paused = true)]
async fn a_decision_that_was_passed_over_is_told_first() {
    for (between, end, outcome) in [
        (State::Committing, State::Committed, Outcome::Commit),
        (State::RollingBack, State::RolledBack, Outcome::Rollback),
    ] {
        let (sender, mut stream, _) = watch_it(view(State::Importing, 1000));
        next(&mut stream).await;
        let mut last = decided(end, outcome);
        last.state.committed = 1000;
        last.state.rolled_back = 600;
        last.state.end_time_ms = 99_000;
        last.state.report_uri = "r".into();
        sender.send_replace(Arc::new(last));
        let message = next(&mut stream).await;
        assert_eq!(state(&message), between);
        let batch = message.batch.expect("there");
        assert_eq!((batch.end_time, batch.report_uri.as_str()), (None, ""));
        assert_eq!(batch.update_time.expect("there").seconds, 77);
        assert_eq!(batch.counters.expect("there").committed, 0);
        let message = next(&mut stream).await;
        assert_eq!(state(&message), end);
        assert_eq!(message.batch.expect("there").report_uri, "r");
        assert!(stream.next().await.is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_ended_is_told_once() {
    let (sender, mut stream, _) = watch_it(decided(State::RolledBack, Outcome::Rollback));
    drop(sender);
    assert_eq!(state(&next(&mut stream).await), State::RolledBack);
    assert!(stream.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn who_does_not_read_misses_counters_only() {
    let (sender, mut stream, _) = watch_it(view(State::Importing, 0));
    next(&mut stream).await;
    for n in 1..=500 {
        sender.send_replace(Arc::new(view(State::Importing, n)));
    }
    advance(Duration::from_mins(1)).await;
    assert_eq!(staged(&next(&mut stream).await), 500, "the newest");
}

#[tokio::test(start_paused = true)]
async fn shutdown_and_a_lost_owner_end_it_with_a_reason() {
    let (_sender, mut stream, shutdown) = watch_it(view(State::Importing, 0));
    next(&mut stream).await;
    shutdown.cancel();
    let status = stream.next().await.expect("a status").expect_err("an error");
    assert_eq!(status.code(), tonic::Code::Unavailable);
    assert!(stream.next().await.is_none());

    let (sender, mut stream, _) = watch_it(view(State::Importing, 0));
    next(&mut stream).await;
    sender.send_replace(Arc::new(view(State::Importing, 7)));
    drop(sender);
    assert_eq!(staged(&next(&mut stream).await), 7, "what was there first");
    assert!(stream.next().await.expect("a status").is_err());
    assert!(stream.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn phases_have_rates_and_etas() {
    let (sender, mut stream, _) = watch_it(view(State::Importing, 0));
    assert_eq!(next(&mut stream).await.phases[0].eta, None, "no rate yet");
    advance(Duration::from_secs(1)).await;
    let mut staging = view(State::Importing, 150);
    staging.state.failed = 50;
    sender.send_replace(Arc::new(staging.clone()));
    let phase = &next(&mut stream).await.phases[0];
    assert_eq!((phase.phase(), phase.done, phase.total), (v1::Phase::Stage, 200, 1000));
    assert!((phase.rate - 200.0).abs() < 1.0, "{}", phase.rate);
    assert_eq!(phase.eta.expect("known").seconds, 4);

    // Not sealed: nobody knows when it ends.
    advance(Duration::from_secs(1)).await;
    staging.state.sealed = false;
    staging.state.staged = 350;
    sender.send_replace(Arc::new(staging));
    let phase = &next(&mut stream).await.phases[0];
    assert!(phase.rate > 100.0);
    assert_eq!(phase.eta, None);

    let mut committing = decided(State::Committing, Outcome::Commit);
    sender.send_replace(Arc::new(committing.clone()));
    let phases = next(&mut stream).await.phases;
    assert_eq!((phases[0].rate, phases[0].done), (0.0, 1000), "staging is over");
    assert_eq!((phases[1].phase(), phases[1].done, phases[1].total), (v1::Phase::Commit, 0, 1000));
    advance(Duration::from_secs(1)).await;
    committing.state.committed = 500;
    sender.send_replace(Arc::new(committing));
    let phases = next(&mut stream).await.phases;
    assert!((phases[1].rate - 500.0).abs() < 1.0);
    assert_eq!(phases[1].eta.expect("known").seconds, 1);
}

#[tokio::test(start_paused = true)]
async fn a_rate_that_falls_is_told_until_it_is_zero_and_then_all_is_quiet() {
    let (sender, mut stream, _) = watch_it(view(State::Importing, 0));
    next(&mut stream).await;
    advance(Duration::from_secs(1)).await;
    sender.send_replace(Arc::new(view(State::Importing, 100)));
    let mut rates = Vec::new();
    while let Ok(message) = tokio::time::timeout(Duration::from_mins(1), next(&mut stream)).await {
        rates.push(message.phases[0].rate);
    }
    assert!((4..=8).contains(&rates.len()), "{rates:?}");
    assert!(rates.is_sorted_by(|a, b| a >= b), "{rates:?}");
    assert_eq!(rates.last(), Some(&0.0));
}

#[tokio::test(start_paused = true)]
async fn a_rollback_counts_to_the_cutoff() {
    let mut rolling = decided(State::RollingBack, Outcome::Rollback);
    rolling.state.rolled_back = 100;
    let (_sender, mut stream, _) = watch_it(rolling);
    let phases = next(&mut stream).await.phases;
    assert_eq!((phases[1].phase(), phases[1].done, phases[1].total), (v1::Phase::Rollback, 100, 600));
}

#[tokio::test(start_paused = true)]
async fn an_eta_that_says_nothing_is_left_out() {
    assert_eq!(progress(v1::Phase::Stage, 0, i64::MAX, 0.001, true).eta, None);
    assert_eq!(progress(v1::Phase::Stage, 5, 5, 1.0, true).eta, Some(prost_types::Duration::default()));
}

#[tokio::test(start_paused = true)]
async fn a_watch_goes_on_with_the_next_owner_and_tells_nothing_twice() {
    let away = || Err(Error::ShuttingDown.into());
    let mut stream = from_owner_to_owner(
        owner(vec![view(State::Importing, 1), view(State::Importing, 5)]),
        vec![
            away(),
            Ok(owner(vec![view(State::Importing, 5)])),
            Ok(owner(vec![view(State::Importing, 5), view(State::Importing, 8)])),
            away(),
            Ok(owner(vec![decided(State::Committing, Outcome::Commit)])),
            Ok(owner(vec![
                decided(State::Committing, Outcome::Commit),
                decided(State::Committed, Outcome::Commit),
            ])),
        ],
    );
    let mut told = Vec::new();
    while let Some(message) = stream.next().await {
        let message = message.expect("right");
        told.push((state(&message), staged(&message)));
    }
    assert_eq!(
        told,
        [
            (State::Importing, 1),
            (State::Importing, 5),
            (State::Importing, 8),
            (State::Committing, 1000),
            (State::Committed, 1000)
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_decision_that_fell_between_two_owners_is_told_first() {
    let mut stream = from_owner_to_owner(
        owner(vec![view(State::Importing, 1000)]),
        vec![Ok(owner(vec![decided(State::RolledBack, Outcome::Rollback)]))],
    );
    for wanted in [State::Importing, State::RollingBack, State::RolledBack] {
        assert_eq!(state(&next(&mut stream).await), wanted);
    }
    assert!(stream.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_is_gone_ends_the_watch_with_that() {
    let gone = Error::NotFound(BatchKey::new("ns", "b"));
    let mut stream = from_owner_to_owner(owner(vec![view(State::Importing, 1)]), vec![Err(gone.into())]);
    next(&mut stream).await;
    assert_eq!(stream.next().await.expect("a status").expect_err("an error").code(), tonic::Code::NotFound);
    assert!(stream.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_an_owner_is_told_of_the_shutdown() {
    let (first, shutdown) = (owner(vec![view(State::Importing, 1)]), CancellationToken::new());
    let nobody = || std::future::pending::<Result<Updates, Status>>();
    let mut stream = follow(first, Some(nobody), shutdown.clone(), None);
    next(&mut stream).await;
    assert!(tokio::time::timeout(Duration::from_mins(1), stream.next()).await.is_err(), "it waits");
    shutdown.cancel();
    let status = stream.next().await.expect("a status").expect_err("an error");
    assert!(status.message().contains("shutting down"), "{status}");
}

#[tokio::test]
async fn what_an_owner_does_after_its_session_is_not_told() {
    let dir = tempfile::tempdir().expect("a directory");
    let store: Arc<dyn Store> = Embedded::open(dir.path()).await.expect("opened");
    let session = store.session(Duration::from_secs(5)).await.expect("a session");
    let id = session.id;
    let term = Term::new(session, store.clone(), &CancellationToken::new(), &CancellationToken::new());
    let (sender, updates) = watch::channel(Arc::new(view(State::Importing, 5)));
    let watched = || Watched { updates: updates.clone(), term: Some(term.clone()) };
    let batch = BatchKey::new("ns", "b");
    let mut stream = responses_of(batch.clone(), watched());
    assert_eq!(staged(&next(&mut stream).await), 5);
    store.close_session(id).await.expect("closed");
    sender.send_replace(Arc::new(decided(State::Committing, Outcome::Commit)));
    for mut stream in [stream, responses_of(batch, watched())] {
        let told = stream.next().await.expect("open").expect_err("somebody else may own it");
        assert_eq!(told.code(), tonic::Code::Unavailable);
        assert!(passing(&told) && stream.next().await.is_none());
    }
}
