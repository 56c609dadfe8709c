//! Writes into an embedded store until it is killed, or until its disk is full; says on stdout what was
//! acknowledged. The conformance suite starts it: `store_child DIR acknowledge|fill`.

use std::io::Write as _;
use std::sync::Arc;
use tranche_coordinator::store::embedded::Embedded;
use tranche_coordinator::store::{Store, StoreError, Txn, TxnOutcome};

/// Writers, so that transactions are written in groups.
const WRITERS: usize = 6;

#[tokio::main(worker_threads = 2)]
async fn main() {
    let mut args = std::env::args().skip(1);
    let (Some(dir), Some(way)) = (args.next(), args.next()) else {
        panic!("usage: store_child DIR acknowledge|fill")
    };
    let store = Embedded::open(dir).await.unwrap();
    match way.as_str() {
        "acknowledge" => acknowledge_for_ever(store).await,
        "fill" => fill(store).await,
        other => panic!("{other:?} is neither acknowledge nor fill"),
    }
}

async fn applied(store: &Embedded, txn: Txn) {
    let outcome = store.txn(&txn).await.unwrap();
    assert!(matches!(outcome, TxnOutcome::Applied(_)), "{txn:?}");
}

fn acknowledge(writer: usize, number: u64) {
    // One write call, so that a kill can't tear a line.
    std::io::stdout().write_all(format!("\nacknowledged {writer} {number}\n").as_bytes()).unwrap();
    std::io::stdout().flush().unwrap();
}

async fn acknowledge_for_ever(store: Arc<Embedded>) {
    let session = store.session(std::time::Duration::from_mins(1)).await.unwrap();
    applied(&store, Txn::new().absent("held").put_held("held", "x", session.id)).await;
    let writers = (0..WRITERS).map(|writer| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            let (one, other) = (format!("one/{writer}"), format!("other/{writer}"));
            loop {
                let (seen, number) = match store.get(&one).await.unwrap() {
                    Some(entry) => {
                        let text = std::str::from_utf8(&entry.value).unwrap();
                        (entry.mod_revision, text.parse::<u64>().unwrap() + 1)
                    }
                    None => (0, 1),
                };
                let value = number.to_string();
                let txn = Txn::new().modified(&one, seen).put(&one, value.clone()).put(&other, value);
                applied(&store, txn).await;
                acknowledge(writer, number);
            }
        })
    });
    futures::future::join_all(writers).await;
}

async fn fill(store: Arc<Embedded>) {
    let big = |number: u64| Txn::new().put(format!("big/{number:04}"), vec![number as u8; 64 * 1024]);
    let mut full = 0;
    for number in 0.. {
        match store.txn(&big(number)).await {
            Ok(TxnOutcome::Applied(_)) => acknowledge(0, number),
            Err(StoreError::Full(_)) => {
                full = number;
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    // Reading goes on, and so does refusing.
    assert!(full > 0);
    assert_eq!(store.get(&format!("big/{full:04}")).await.unwrap(), None);
    assert_eq!(store.get("big/0000").await.unwrap().unwrap().value.len(), 64 * 1024);
    let again = store.txn(&big(full)).await;
    assert!(matches!(again, Err(StoreError::Full(_))), "{again:?}");
}
