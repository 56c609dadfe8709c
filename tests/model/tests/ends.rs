//! I9: every batch ends once faults stop, in whatever order the rest happens.
//!
//! The checker's own `eventually` overlooks circles. So the steps that come by themselves are followed here
//! from every reachable state: they never lead in a circle, hence there are only so many of them; and where none
//! is left, the batch is at its end (a property of every state, see `fixpoint.rs`).

use stateright::Model;
use std::collections::HashMap;
use tranche_model::{Action, Batch};

fn reachable(model: Batch) -> Vec<<Batch as Model>::State> {
    let mut states = model.init_states();
    let mut known: std::collections::HashSet<_> = states.iter().copied().collect();
    let mut next = 0;
    while next < states.len() {
        for state in model.next_states(&states[next]) {
            if known.insert(state) {
                states.push(state);
            }
        }
        next += 1;
    }
    states
}

/// How many steps that come by themselves there are from each state, at most.
fn longest(model: Batch) -> usize {
    let mut steps: Vec<Action> = Vec::new();
    Batch::progress(&mut steps);
    let states = reachable(model);
    // None: on the way that is being followed.
    let mut longest: HashMap<_, Option<usize>> = HashMap::with_capacity(states.len());
    for state in &states {
        let mut way = vec![(*state, false)];
        while let Some((state, followed)) = way.pop() {
            let after = || steps.iter().filter_map(|step| model.step(&state, *step));
            if followed {
                let most = after().map(|next| longest[&next].expect("it was followed to its end") + 1).max();
                longest.insert(state, Some(most.unwrap_or(0)));
                continue;
            }
            match longest.get(&state) {
                Some(Some(_)) => continue,
                Some(None) => panic!("this state comes again by itself: {state:#?}"),
                None => {}
            }
            longest.insert(state, None);
            way.push((state, true));
            for next in after() {
                match longest.get(&next) {
                    Some(Some(_)) => {}
                    // One that was only put aside is taken up once; one that is being followed is a circle.
                    Some(None) => panic!("this state comes again by itself: {next:#?}"),
                    None => way.push((next, false)),
                }
            }
        }
    }
    let most = longest.values().flatten().max().copied().unwrap_or(0);
    println!("{} states, at most {most} steps to the end", states.len());
    most
}

#[test]
fn nothing_goes_in_circles() {
    let model = Batch {
        ranges: 3,
        attempts: 2,
        cancel: true,
        backup: false,
        stopping_kept: true,
        deadline: true,
        faults: 1,
        off: None,
    };
    assert!(longest(model) > 0);
    assert!(longest(Batch { ranges: 2, faults: 2, ..model }) > 0);
    assert!(longest(Batch { ranges: 2, attempts: 3, backup: true, faults: 1, ..model }) > 0);
}
