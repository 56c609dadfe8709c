//! A store that stutters while a coordinator starts.

use super::*;

async fn troubled(dir: &Path) -> Arc<Troubled> {
    let StoreConfig::Embedded { path } = config(dir).store else { panic!("not embedded") };
    Troubled::new(Embedded::open(path).await.expect("opened"))
}

#[tokio::test(start_paused = true)]
async fn each_call_of_the_start_is_tried_again() {
    let dir = folder();
    let store = troubled(dir.path()).await;
    store.fail_with("session", StoreError::Full("by order of the test".to_owned()));
    for call in [
        "session",
        "range coordinators/",
        "watch coordinators/",
        "watch locks/",
        "watch decisions/",
        "get coordinators/",
        "txn coordinators/",
        "range locks/",
        "range states/",
    ] {
        store.fail(call);
    }
    let world = World::on(store, dir.path()).await;
    let batch = world.node.create("default", spec(), "").await.expect("created").key;
    world.append(&batch, 1, 3).await;
    assert_eq!(world.store.listed(keys::COORDINATORS).await, 1);
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_start_ends_when_the_store_refuses_or_is_away_for_long() {
    let dir = folder();
    let store = troubled(dir.path()).await;
    let start = || {
        let config = config(dir.path());
        let objects = Objects::local(&config.objects_dir()).expect("opened");
        let (host, stop) = (Host::default(), CancellationToken::new());
        Node::start(config, String::new(), store.clone(), objects, host, stop)
    };
    store.fail_with("session", StoreError::Rejected("no permission".to_owned()));
    let refused = start().await.err().expect("refused");
    assert!(matches!(refused, Error::Store(StoreError::Rejected(_))), "{refused}");
    for _ in 0..1000 {
        store.fail("session");
    }
    let away = start().await.err().expect("away");
    assert!(matches!(away, Error::Store(StoreError::Unavailable(_))), "{away}");
}
