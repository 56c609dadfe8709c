//! The fake etcd is held to what a real one is: the stores' conformance suite, over the simulated network.

#[path = "../../tests/store/sessions.rs"]
mod sessions;
#[macro_use]
#[path = "../../tests/store/suite.rs"]
mod suite;
#[path = "../../tests/store/transactions.rs"]
mod transactions;
#[path = "../../tests/store/util.rs"]
#[expect(dead_code, reason = "the suite's own, which opens other stores too")]
mod util;
#[path = "../../tests/store/watches.rs"]
mod watches;

use std::sync::Arc;
use std::time::Duration;
use tranche_coordinator::store::Store;
use tranche_coordinator::store::etcd::{Dial, Etcd};
use tranche_network::etcd::{Data, serve};
use tranche_network::{hosts, wire};

fn over_the_network<F: Future<Output = ()>>(test: impl FnOnce(Arc<dyn Store>) -> F + 'static) {
    let mut sim = turmoil::Builder::new()
        .tick_duration(Duration::from_millis(1))
        .max_message_latency(Duration::from_millis(2))
        .simulation_duration(Duration::from_hours(1))
        .tcp_capacity(4096)
        .build();
    let data = Data::default();
    sim.host("etcd", move || serve(data.clone(), wire::Cuts::default()));
    sim.client("client", async move {
        test(Etcd::connect_with(hosts::etcd_config(), Dial::new(wire::lazy)).await?).await;
        Ok(())
    });
    sim.run().unwrap();
}

macro_rules! conformance {
    ($($module:ident :: $name:ident,)*) => {
        $(
            #[test]
            fn $name() {
                over_the_network(crate::$module::$name);
            }
        )*
    };
}

suite!(conformance);
