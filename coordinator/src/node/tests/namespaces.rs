//! Batches whose namespace nobody works for.

use super::fake::FakeWorker;
use super::*;
use crate::identity::Scope;
use crate::metrics::Operator;
use tranche_ops::Operated as _;

#[tokio::test]
async fn a_batch_waits_for_a_worker_of_its_namespace_and_operators_are_told() {
    let dir = folder();
    let world = World::start(dir.path()).await;
    let of = |namespace: &str| -> Scope { namespace.parse().expect("a namespace") };
    let operator = Operator::new(world.node.clone(), CancellationToken::new());
    let figure = |name: &str| {
        let text = operator.metrics();
        let wanted = format!("tranche_{name}{{handler=\"noop\"}} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&wanted));
        line.unwrap_or_else(|| panic!("{wanted} in {text}")).parse::<f64>().expect("a number")
    };
    let submitted = async |namespace: &str| {
        let batch = world.node.create(namespace, spec(), "").await.expect("made").key;
        world.append(&batch, 1, 3).await;
        timeout(LONG, world.node.seal(&batch, Some(3))).await.expect("in time").expect("sealed");
        batch
    };
    let _a = FakeWorker::attach_of(&world.node, of("team-a"), "wa", 4);
    let waits = submitted("team-b").await;
    let done = submitted("team-a").await;
    world.until(&done, |view| view.state.swept).await;
    assert_eq!(
        (figure("backlog_tasks"), figure("stranded_tasks"), figure("handler_workers")),
        (3.0, 3.0, 1.0)
    );
    let view = world.node.get(&waits).await.expect("there");
    assert_eq!((view.cutoff, view.live.leases), (0, 0), "nothing of it was ever leased");
    let _b = FakeWorker::attach_of(&world.node, of("team-b"), "wb", 4);
    let ended = world.until(&waits, |view| view.state.swept).await;
    assert_eq!(ended.state.state(), State::Committed);
    assert_eq!(
        (figure("backlog_tasks"), figure("stranded_tasks"), figure("handler_workers")),
        (0.0, 0.0, 2.0)
    );
    world.end().await;
}
