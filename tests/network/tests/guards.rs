//! The simulated network notices when a guard is missing: these are switched off, one by one.

use tranche_guards::Guard;
use tranche_network::seeds::run_seeds;

#[test]
fn table() {
    for guard in Guard::ALL {
        let began = std::time::Instant::now();
        let report = run_seeds(0, 150, 1, Some(*guard));
        let what = report.failures.first().map_or("-".to_owned(), |f| format!("{} {:.300}", f.seed, f.what));
        println!("{:20} {:?} after {} runs: {what}", guard.name(), began.elapsed(), report.numbers.runs);
    }
}
