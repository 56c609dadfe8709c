//! Batches that are made elsewhere, and answers that are lost on their way between two coordinators.

use super::*;
use tokio::net::TcpStream;

#[tokio::test]
async fn a_new_batch_goes_to_whom_it_is_given_and_is_made_here_when_nobody_is_there() {
    let pair = Pair::start().await;
    let caller = peers::Caller::of(&tonic::Request::new(()), LONG);
    let services = served_by(&pair.other);
    let there = services.create(&caller, request(""), Some(pair.owner.member())).await.expect("created");
    let key = BatchKey::parse(&there.name).expect("a name");
    assert!(pair.owner.node.shared().handle(&key).is_some(), "made at the owner");
    assert!(pair.other.node.shared().handle(&key).is_none());

    let gone = TcpListener::bind("127.0.0.1:0").await.expect("bound").local_addr().expect("bound");
    let nobody = Member { id: "gone".into(), endpoint: format!("http://{gone}") };
    let here = services.create(&caller, request(""), Some(nobody)).await.expect("created");
    let key = BatchKey::parse(&here.name).expect("a name");
    assert!(pair.other.node.shared().handle(&key).is_some(), "made here");

    let made = services.create(&caller, request("mine"), Some(pair.owner.member())).await.expect("created");
    let again = services.create(&caller, request("mine"), None).await.expect("the same");
    assert_eq!(made.name, again.name);
    let mut other = request("mine");
    other.batch.as_mut().expect("there").display_name = "another".into();
    let reused = services.create(&caller, other, Some(pair.owner.member())).await.expect_err("another spec");
    assert_eq!(reason(&reused), "REQUEST_ID_REUSED");
    pair.end().await;
}

#[tokio::test]
async fn a_batch_whose_creation_elsewhere_was_not_heard_of_is_made_once() {
    let pair = Pair::start().await;
    let line = Line::to(pair.owner.address).await;
    let caller = peers::Caller::of(&tonic::Request::new(()), LONG);
    let services = served_by(&pair.other);
    let member = Member { id: "owner".into(), endpoint: format!("http://{}", line.address) };
    // The line is open then.
    services.create(&caller, request("first"), Some(member.clone())).await.expect("created");
    line.deaf.send_replace(true);
    let creating = services.create(&caller, request(""), Some(member));
    let cut = async {
        while all_batches(&pair).await.len() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        line.cut.cancel();
    };
    let (made, ()) = timeout(LONG, async { tokio::join!(creating, cut) }).await.expect("answered");
    let made = made.expect("the batch that was made there");
    let all = all_batches(&pair).await;
    assert_eq!(all.len(), 2, "{all:?}");
    assert!(all.contains(&made.name), "{} is none of {all:?}", made.name);
    pair.end().await;
}

#[tokio::test]
async fn a_retry_whose_answer_was_lost_is_not_made_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = Config::embedded(dir.path().to_owned());
    let StoreConfig::Embedded { path } = &config.store else { panic!("not embedded") };
    let store: Arc<dyn Store> = Embedded::open(path.clone()).await.expect("opened");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let line = Line::to(listener.local_addr().expect("bound")).await;
    let owner = One::start_as(&config, store.clone(), listener, line.address).await;
    let other = One::start(&config, store).await;
    let name = owner.node.create("default", spec(&other), "").await.expect("created").key.to_string();
    let retry = v1::RetryFailedRequest { name };
    let mut client = other.batches();
    client.retry_failed(retry.clone()).await.expect("the line is open");
    line.deaf.send_replace(true);
    let calling = client.retry_failed(retry);
    let asked = line.asked.clone();
    let cut = async {
        asked.notified().await;
        line.cut.cancel();
    };
    let (answer, ()) = timeout(LONG, async { tokio::join!(calling, cut) }).await.expect("answered");
    let status = answer.expect_err("nobody knows");
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "STORE_OUTCOME_UNKNOWN"));
    other.stop().await;
    owner.shutdown.cancel();
    timeout(LONG, owner.node.stopped()).await.expect("it stops");
}

#[tokio::test]
async fn what_a_call_brought_goes_with_it() {
    let pair = Pair::start().await;
    let mut asked = tonic::Request::new(());
    asked.metadata_mut().insert(layers::REQUEST_ID, "mine".parse().expect("a value"));
    asked.set_timeout(Duration::from_secs(7));
    let caller = peers::Caller::of(&asked, LONG);
    let until = caller.patience();
    let passed = served_by(&pair.other).owners.request(&caller, until);
    let text = |name: &str| passed.metadata().get(name).map(|value| value.to_str().expect("text").to_owned());
    assert_eq!(text(peers::FORWARDED), Some(pair.other.member().id));
    assert_eq!(text(layers::REQUEST_ID).as_deref(), Some("mine"));
    let left = peers::Caller::of(&passed, LONG).patience();
    assert!(left <= until + Duration::from_millis(10), "no more time than there was");
    assert!(peers::Caller::of(&passed, LONG).forwarded);
    pair.end().await;
}

async fn all_batches(pair: &Pair) -> Vec<String> {
    let page = pair.store.range(keys::STATES, RangeOptions { limit: 100, ..Default::default() }).await;
    let tail = |key: &str| key.strip_prefix(keys::STATES).and_then(BatchKey::from_tail).expect("a batch");
    page.expect("read").entries.iter().map(|entry| tail(&entry.key).to_string()).collect()
}

fn served_by(one: &One) -> batch::Batches {
    let config = &one.node.shared().config;
    let owners = peers::Owners::new(one.node.clone(), Arc::default(), config.max_append_inflight_bytes);
    batch::Batches::new(owners, config, one.shutdown.clone(), one.tasks.clone())
}

/// A line to a coordinator on which answers can be lost.
struct Line {
    address: std::net::SocketAddr,
    /// Answers wait.
    deaf: tokio::sync::watch::Sender<bool>,
    /// Something was asked while it was deaf.
    asked: Arc<tokio::sync::Notify>,
    /// The line breaks, and is not to be had again.
    cut: CancellationToken,
}

impl Line {
    async fn to(server: std::net::SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("bound");
        let (deaf, cut) = (tokio::sync::watch::Sender::new(false), CancellationToken::new());
        let (hears, ended) = (deaf.subscribe(), cut.clone());
        let asked = Arc::new(tokio::sync::Notify::new());
        let (is_deaf, heard) = (deaf.subscribe(), asked.clone());
        tokio::spawn(async move {
            let (client, _) = listener.accept().await.expect("somebody");
            drop(listener);
            let server = TcpStream::connect(server).await.expect("connected");
            let (mut from_client, mut to_client) = client.into_split();
            let (mut from_server, mut to_server) = server.into_split();
            let asking = async {
                let mut buffer = vec![0; 65_536];
                loop {
                    let read = tokio::io::AsyncReadExt::read(&mut from_client, &mut buffer).await;
                    let Ok(bytes @ 1..) = read else { return };
                    let written = tokio::io::AsyncWriteExt::write_all(&mut to_server, &buffer[..bytes]).await;
                    if written.is_err() {
                        return;
                    }
                    if *is_deaf.borrow() {
                        heard.notify_one();
                    }
                }
            };
            let answering = async {
                let mut hears = hears;
                let mut buffer = vec![0; 65_536];
                loop {
                    let read = tokio::io::AsyncReadExt::read(&mut from_server, &mut buffer).await;
                    let Ok(bytes @ 1..) = read else { return };
                    hears.wait_for(|deaf| !deaf).await.expect("the sender is here");
                    let written = tokio::io::AsyncWriteExt::write_all(&mut to_client, &buffer[..bytes]).await;
                    if written.is_err() {
                        return;
                    }
                }
            };
            tokio::select! {
                biased;
                () = ended.cancelled() => {}
                () = asking => {}
                () = answering => {}
            }
        });
        Self { address, deaf, asked, cut }
    }
}
