//! Every reachable state.

use stateright::{Checker, Model};
use std::time::Instant;
use tranche_model::Batch;

#[test]
fn probe() {
    let n = |k: &str, d: u8| std::env::var(k).ok().and_then(|v| v.parse().ok()).unwrap_or(d);
    let model = Batch {
        ranges: n("R", 1),
        attempts: n("A", 2),
        cancel: n("C", 1) > 0,
        deadline: n("D", 0) > 0,
        faults: n("SUM", 2),
        off: None,
    };
    let start = Instant::now();
    let checker = model.checker().threads(2).spawn_dfs().join();
    println!("{} states, {} generated, depth {}, {:?}", checker.unique_state_count(), checker.state_count(), checker.max_depth(), start.elapsed());
    for (name, path) in checker.discoveries() {
        println!("== {name}: {} steps", path.clone().into_vec().len());
        if !name.starts_with("a batch") {
            for (s, a) in path.into_vec() { println!("{a:?}\n     {s:?}"); }
        }
    }
}
