//! Two coordinators on one store: every call at both.

use super::*;
use crate::node::Member;
use crate::store::{RangeOptions, keys, keys::BatchKey};
use std::time::Duration;
use tokio::time::timeout;
use tranche_proto::stored::Stored;

mod lost_answers;

/// Longer than anything here takes, by far.
const LONG: Duration = Duration::from_secs(30);

/// A coordinator of the pair.
struct One {
    node: Arc<Node>,
    address: std::net::SocketAddr,
    channel: Channel,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    server: JoinHandle<()>,
}

impl One {
    async fn start(config: &Config, store: Arc<dyn Store>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("bound");
        Self::start_as(config, store, listener, address).await
    }

    /// One that is known to the others at this address.
    async fn start_as(
        config: &Config,
        store: Arc<dyn Store>,
        listener: TcpListener,
        address: std::net::SocketAddr,
    ) -> Self {
        let objects = Objects::local(&config.objects_dir()).expect("opened");
        let endpoint = format!("http://{address}");
        let shutdown = CancellationToken::new();
        let (config, host) = (config.clone(), Host::default());
        let node =
            Node::start(config.clone(), endpoint.clone(), store, objects, host, shutdown.clone()).await;
        let node = Arc::new(node.expect("started"));
        let Services { router, tasks, .. } = routes(node.clone(), &config, &shutdown);
        let incoming = incoming(listener, router.door());
        let server = tokio::spawn(router.serve(incoming, shutdown.clone()));
        let channel = Channel::from_shared(endpoint).expect("a URL").connect_lazy();
        Self { node, address, channel, tasks, shutdown, server }
    }

    fn batches(&self) -> BatchServiceClient<Channel> {
        BatchServiceClient::new(self.channel.clone())
    }

    fn admin(&self) -> AdminServiceClient<Channel> {
        AdminServiceClient::new(self.channel.clone())
    }

    fn member(&self) -> Member {
        Member { id: self.node.shared().id.clone(), endpoint: format!("http://{}", self.address) }
    }

    /// Stops as a process does: its session closes, and its batches are free.
    async fn stop(self) {
        self.shutdown.cancel();
        drop(self.channel);
        timeout(LONG, async {
            self.node.stopped().await;
            self.server.await.expect("joined");
            self.tasks.close();
            self.tasks.wait().await;
        })
        .await
        .expect("it stops");
    }
}

/// The owner of all batches, and the other.
struct Pair {
    _dir: TempDir,
    store: Arc<dyn Store>,
    owner: One,
    other: One,
}

impl Pair {
    async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let mut config = Config::embedded(dir.path().to_owned());
        change(&mut config);
        let StoreConfig::Embedded { path } = &config.store else { panic!("not embedded") };
        let store: Arc<dyn Store> = Embedded::open(path.clone()).await.expect("opened");
        let owner = One::start(&config, store.clone()).await;
        let other = One::start(&config, store.clone()).await;
        Self { _dir: dir, store, owner, other }
    }

    /// Creates a batch at the owner, with no regard to who has fewer.
    async fn create(&self) -> String {
        let spec = spec(&self.owner);
        self.owner.node.create("default", spec, "").await.expect("created").key.to_string()
    }

    async fn end(self) {
        self.other.stop().await;
        self.owner.stop().await;
    }
}

fn request(request_id: &str) -> v1::CreateBatchRequest {
    let batch = v1::Batch {
        targets: vec![v1::Target { handler: "noop".into(), params: HashMap::new() }],
        ..Default::default()
    };
    v1::CreateBatchRequest { batch: Some(batch), request_id: request_id.to_owned(), ..Default::default() }
}

fn spec(one: &One) -> v1::Batch {
    validate::create(request(""), &one.node.known_handlers("default")).expect("right").spec
}

fn watch(name: &str) -> v1::WatchBatchRequest {
    v1::WatchBatchRequest { name: name.to_owned() }
}

fn counters(batch: &v1::Batch) -> v1::Counters {
    batch.counters.expect("there")
}

async fn last_ack(one: &One, requests: Vec<v1::AppendTasksRequest>) -> Result<i64, Status> {
    let mut acks = one.batches().append_tasks(tokio_stream::iter(requests)).await?.into_inner();
    let mut last = None;
    while let Some(ack) = acks.message().await? {
        last = Some(ack.durable_through);
    }
    Ok(last.expect("one at least"))
}

#[tokio::test]
async fn a_batch_is_appended_to_sealed_read_and_cancelled_at_the_other() {
    let pair = Pair::start().await;
    let name = pair.create().await;
    let mut other = pair.other.batches();
    let key = BatchKey::parse(&name).expect("a name");

    assert_eq!(last_ack(&pair.other, vec![append(&name, 0, &[])]).await.expect("asked"), 0);
    let chunks = vec![append(&name, 1, &[3, 3]), append("", 3, &[0]), append(&name, 4, &[1 << 20])];
    assert_eq!(last_ack(&pair.other, chunks.clone()).await.expect("appended"), 4);
    assert_eq!(last_ack(&pair.other, chunks).await.expect("again changes nothing"), 4);
    assert!(pair.other.node.shared().handle(&key).is_none(), "it is owned elsewhere all the time");
    let gap = last_ack(&pair.other, vec![append(&name, 7, &[1])]).await.expect_err("a gap");
    assert_eq!((gap.code(), reason(&gap).as_str()), (Code::OutOfRange, "APPEND_GAP"));
    let details = gap.get_error_details();
    assert_eq!(
        details.error_info().expect("there").metadata["expected_sequence"],
        "5",
        "as the owner said it"
    );

    let seal = |total| v1::SealBatchRequest { name: name.clone(), total };
    let wrong = other.seal_batch(seal(Some(6))).await.expect_err("another total");
    assert_eq!((wrong.code(), reason(&wrong).as_str()), (Code::FailedPrecondition, "TOTAL_MISMATCH"));
    assert!(other.seal_batch(seal(Some(4))).await.expect("sealed").into_inner().sealed);
    other.seal_batch(seal(None)).await.expect("idempotent");
    let late = last_ack(&pair.other, vec![append(&name, 5, &[1])]).await.expect_err("sealed");
    assert_eq!(reason(&late), "BATCH_SEALED");
    let retried = v1::RetryFailedRequest { name: name.clone() };
    assert_eq!(other.retry_failed(retried.clone()).await.expect("retried").into_inner().retried, 0);

    let get = v1::GetBatchRequest { name: name.clone() };
    let here = pair.owner.batches().get_batch(get.clone()).await.expect("there").into_inner();
    let there = other.get_batch(get.clone()).await.expect("there").into_inner();
    assert_eq!(counters(&here), counters(&there));
    let failures = v1::ListFailuresRequest { parent: name.clone(), ..Default::default() };
    assert_eq!(other.list_failures(failures).await.expect("listed").into_inner().failures, []);
    let early = other.delete_batch(v1::DeleteBatchRequest { name: name.clone() }).await;
    assert_eq!(reason(&early.expect_err("not ended")), "WRONG_STATE");

    let mut stream = other.watch_batch(watch(&name)).await.expect("watching").into_inner();
    let cancel = v1::CancelBatchRequest { name: name.clone(), ..Default::default() };
    let cancelled = other.cancel_batch(cancel).await.expect("cancelled").into_inner();
    assert!(matches!(cancelled.state(), State::RollingBack | State::RolledBack), "{cancelled:?}");
    let mut states = Vec::new();
    while let Some(message) = stream.message().await.expect("right") {
        states.push(message.batch.expect("there").state());
    }
    states.dedup();
    assert_eq!(states, [State::Importing, State::RollingBack, State::RolledBack]);
    let retry = other.retry_failed(retried).await.expect_err("decided");
    assert_eq!(reason(&retry), "WRONG_STATE");
    assert!(other.seal_batch(seal(None)).await.expect("the same answer as then").into_inner().sealed);

    let delete = v1::DeleteBatchRequest { name: name.clone() };
    other.delete_batch(delete).await.expect("deleted");
    for mut client in [other, pair.owner.batches()] {
        let gone = client.get_batch(get.clone()).await.expect_err("deleted");
        assert_eq!(reason(&gone), "BATCH_NOT_FOUND");
        let gone = client.seal_batch(seal(None)).await.expect_err("deleted");
        assert_eq!(reason(&gone), "BATCH_NOT_FOUND");
    }
    pair.end().await;
}

fn forwarded<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.metadata_mut().insert(peers::FORWARDED, "somebody".parse().expect("a value"));
    request
}

#[tokio::test]
async fn a_call_that_was_passed_on_is_not_passed_on_again() {
    let pair = Pair::start().await;
    let name = pair.create().await;
    let mut other = pair.other.batches();
    let seal = v1::SealBatchRequest { name: name.clone(), total: None };
    let refused = other.seal_batch(forwarded(seal)).await.expect_err("not owned there");
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Unavailable, "NO_OWNER"));
    assert!(refused.get_error_details().retry_info().is_some());
    let refused = other.watch_batch(forwarded(watch(&name))).await.expect_err("not owned there");
    assert_eq!(reason(&refused), "NO_OWNER");
    let mut acks = other
        .append_tasks(forwarded(tokio_stream::once(append(&name, 1, &[1]))))
        .await
        .expect("opened")
        .into_inner();
    assert_eq!(reason(&acks.message().await.expect_err("not owned there")), "NO_OWNER");
    pair.end().await;
}

#[tokio::test]
async fn a_watch_at_the_other_goes_on_when_the_owner_stops_and_takes_no_step_back() {
    let pair = Pair::start().await;
    let name = pair.create().await;
    let mut stream = pair.other.batches().watch_batch(watch(&name)).await.expect("watching").into_inner();
    let first = stream.message().await.expect("right").expect("at once").batch.expect("there");
    assert_eq!(counters(&first).total, 0);
    last_ack(&pair.owner, vec![append(&name, 1, &[1; 5])]).await.expect("appended");
    let mut seen = vec![first];
    while counters(&seen[seen.len() - 1]).total < 5 {
        seen.push(stream.message().await.expect("right").expect("open").batch.expect("there"));
    }
    pair.owner.stop().await;
    // The other has taken it over, and takes the rest.
    assert_eq!(last_ack(&pair.other, vec![append(&name, 6, &[1; 3])]).await.expect("appended"), 8);
    let seal = v1::SealBatchRequest { name: name.clone(), total: Some(8) };
    pair.other.batches().seal_batch(seal).await.expect("sealed");
    let cancel = v1::CancelBatchRequest { name: name.clone(), ..Default::default() };
    pair.other.batches().cancel_batch(cancel).await.expect("cancelled");
    let rest = timeout(LONG, async {
        while let Some(message) = stream.message().await.expect("the owner's end isn't noticed") {
            seen.push(message.batch.expect("there"));
        }
    });
    rest.await.expect("it ends");
    assert_eq!(seen.last().expect("some").state(), State::RolledBack);
    let order = |batch: &v1::Batch| (batch.state, counters(batch).total, batch.sealed);
    assert!(seen.is_sorted_by_key(order), "{:?}", seen.iter().map(order).collect::<Vec<_>>());
    assert!(seen.windows(2).all(|pair| pair[0] != pair[1]), "nothing is told twice");
    pair.other.stop().await;
}

#[tokio::test]
async fn a_watch_at_an_owner_that_loses_its_session_goes_on_at_the_next() {
    let pair = Pair::start().await;
    let name = pair.create().await;
    let mut stream = pair.owner.batches().watch_batch(watch(&name)).await.expect("watching").into_inner();
    stream.message().await.expect("right").expect("at once");
    pair.owner.node.lose_session().await;
    // Whoever takes it.
    let cancel = v1::CancelBatchRequest { name: name.clone(), ..Default::default() };
    pair.other.batches().cancel_batch(cancel).await.expect("cancelled");
    let states = timeout(LONG, async {
        let mut states = Vec::new();
        while let Some(message) = stream.message().await.expect("the loss isn't noticed") {
            states.push(message.batch.expect("there").state());
        }
        states
    });
    let mut states = states.await.expect("it ends");
    states.dedup();
    assert_eq!(states[states.len() - 2..], [State::RollingBack, State::RolledBack], "{states:?}");
    pair.end().await;
}

#[tokio::test]
async fn an_append_at_the_other_is_told_that_the_owner_stopped_and_goes_on_where_it_was() {
    let pair = Pair::start().await;
    let name = pair.create().await;
    let (send, receive) = tokio::sync::mpsc::channel(4);
    let requests = tokio_stream::wrappers::ReceiverStream::new(receive);
    send.send(append(&name, 1, &[1; 4])).await.expect("open");
    let mut acks = pair.other.batches().append_tasks(requests).await.expect("opened").into_inner();
    while acks.message().await.expect("right").expect("open").durable_through < 4 {}
    pair.owner.stop().await;
    let broken = timeout(LONG, async {
        loop {
            match acks.message().await {
                Ok(ack) => assert!(ack.is_some(), "ended without a reason"),
                Err(status) => return status,
            }
        }
    });
    assert_eq!(reason(&broken.await.expect("it breaks")), "NO_OWNER", "which is to be repeated");
    assert_eq!(last_ack(&pair.other, vec![append(&name, 5, &[1; 2])]).await.expect("resumed"), 6);
    pair.other.stop().await;
}

#[tokio::test]
async fn what_the_owner_does_not_take_the_client_keeps() {
    // The owner takes nothing for now.
    let pair = Pair::start().await;
    let name = pair.create().await;
    let most = 8 * tranche_proto::MAX_APPEND_BYTES;
    let held =
        pair.owner.node.shared().append_bytes.clone().acquire_many_owned(u32::try_from(most).expect("fits"));
    let held = held.await.expect("open");
    let sent = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = sent.clone();
    let messages = (0..200).map(|n: i64| n + 1);
    let named = name.clone();
    let requests = tokio_stream::iter(messages).map(move |first| {
        counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        append(&named, first, &[1 << 20])
    });
    let mut acks = pair.other.batches().append_tasks(requests).await.expect("opened").into_inner();
    assert_eq!(acks.message().await.expect("right").expect("open").durable_through, 0);
    // Until nothing moves any more.
    let mut before = usize::MAX;
    while before != sent.load(std::sync::atomic::Ordering::Relaxed) {
        before = sent.load(std::sync::atomic::Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(before < 100, "{before} MiB are on their way");
    drop(held);
    let mut last = 0;
    while let Some(ack) = acks.message().await.expect("right") {
        last = ack.durable_through;
    }
    assert_eq!(last, 200);
    pair.end().await;
}

#[tokio::test]
async fn a_stream_passed_on_ends_when_its_client_leaves() {
    let pair = Pair::start_with(|config| config.max_watchers = 1).await;
    let name = pair.create().await;
    let mut stream = pair.other.batches().watch_batch(watch(&name)).await.expect("watching").into_inner();
    stream.message().await.expect("right").expect("at once");
    let refused = pair.owner.batches().watch_batch(watch(&name)).await.expect_err("one watches");
    assert_eq!(reason(&refused), "OVERLOADED");
    drop(stream);
    let again = async {
        while let Err(refused) = pair.owner.batches().watch_batch(watch(&name)).await {
            assert_eq!(reason(&refused), "OVERLOADED");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(LONG, again).await.expect("the owner's stream ends");
    pair.end().await;
}

#[tokio::test]
async fn operators_see_the_whole_at_each_and_who_does_not_answer() {
    let pair = Pair::start().await;
    let name = pair.create().await;
    for one in [&pair.owner, &pair.other] {
        let mut admin = one.admin();
        let all = admin.list_coordinators(v1::ListCoordinatorsRequest::default()).await.expect("listed");
        let all = all.into_inner().coordinators;
        assert_eq!(
            all.iter().map(|one| (one.answering, one.store_transactions > 0)).collect::<Vec<_>>(),
            [(true, true); 2]
        );
        let owned = |of: &One| {
            all.iter().find(|one| one.coordinator == of.member().id).expect("listed").owned_batches
        };
        assert_eq!((owned(&pair.owner), owned(&pair.other)), (1, 0));
        let leases = v1::ListLeasesRequest { parent: name.clone(), ..Default::default() };
        assert_eq!(admin.list_leases(leases).await.expect("listed").into_inner().leases, []);
        let mut pages = v1::ListCoordinatorsRequest { page_size: 1, ..Default::default() };
        let mut seen = Vec::new();
        loop {
            let page = admin.list_coordinators(pages.clone()).await.expect("listed").into_inner();
            seen.extend(page.coordinators.into_iter().map(|one| (one.coordinator, one.answering)));
            if page.next_page_token.is_empty() {
                break;
            }
            pages.page_token = page.next_page_token;
        }
        assert_eq!(seen, all.iter().map(|one| (one.coordinator.clone(), true)).collect::<Vec<_>>());
    }
    // One that is said to be there and isn't.
    let gone = TcpListener::bind("127.0.0.1:0").await.expect("bound").local_addr().expect("bound");
    let record = v1::CoordinatorRecord { endpoint: format!("http://{gone}"), ..Default::default() };
    let txn = crate::store::Txn::new().put(keys::coordinator("zzz"), Stored::new(record).encode());
    pair.store.txn(&txn).await.expect("put");
    let all =
        pair.other.admin().list_coordinators(v1::ListCoordinatorsRequest::default()).await.expect("listed");
    let all = all.into_inner().coordinators;
    assert_eq!(all.iter().map(|one| one.answering).collect::<Vec<_>>(), [true, true, false]);
    assert_eq!(all[2].coordinator, "zzz");
    let workers = pair.other.admin().list_workers(v1::ListWorkersRequest::default()).await.expect("listed");
    assert_eq!(workers.into_inner().workers, []);
    pair.end().await;
}

#[tokio::test]
async fn a_list_shows_the_cutoff_of_batches_owned_elsewhere_and_leaves_out_damaged_ones() {
    let pair = Pair::start().await;
    let (name, damaged) = (pair.create().await, pair.create().await);
    let key = BatchKey::parse(&name).expect("a name");
    // As a grant leaves it.
    let cutoff = v1::CutoffRecord { cutoff: 7, ..Default::default() };
    let txn = crate::store::Txn::new()
        .put(keys::cutoff(&key), Stored::new(cutoff).encode())
        .put(keys::state(&BatchKey::parse(&damaged).expect("a name")), vec![0xff_u8; 9]);
    pair.store.txn(&txn).await.expect("put");
    let all = pair.other.batches().list_batches(v1::ListBatchesRequest::default()).await.expect("listed");
    let all = all.into_inner().batches;
    let listed: Vec<_> = all.iter().map(|batch| (batch.name.as_str(), counters(batch).cutoff)).collect();
    assert_eq!(listed, [(name.as_str(), 7)]);
    pair.end().await;
}
