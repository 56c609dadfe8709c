//! Which links there are, and which of them dial.

use super::super::links::MOST_REPLICAS;
use super::*;

impl Sim {
    fn dialling(&self) -> Vec<LinkId> {
        self.dialling.keys().copied().collect()
    }
}

#[test]
fn configured_coordinators_are_dialled_at_once_and_for_ever() {
    let mut sim = Sim::new(settings(1, 1, 2));
    assert_eq!(sim.dialling, BTreeMap::from([(0, url(0)), (1, url(1))]));
    sim.attach(0);
    // Not in the list, but it was configured.
    sim.replicas(0, &[("c0", &url(0))]);
    sim.attach(1);
    sim.down(1);
    assert_eq!((sim.dialling(), sim.hung_up.len()), (vec![0, 1], 0));
}

#[test]
fn replicas_are_dialled_while_they_are_there() {
    let mut sim = Sim::attached(1);
    sim.replicas(0, &[("c0", "http://elsewhere"), ("c1", "http://b"), ("c2", "http://c/")]);
    assert_eq!(sim.dialling[&1], "http://b");
    assert_eq!((sim.dialling[&2].as_str(), sim.dialling.len()), ("http://c", 3));
    // Told by all, it is one.
    sim.attach(1);
    sim.replicas(1, &[("c0", "http://elsewhere"), ("c1", "http://b"), ("c2", "http://c")]);
    sim.attach(2);
    assert_eq!(sim.dialling(), [0, 1, 2]);
    // Gone from one list: the other still has it. Gone from both, it stays while it has a stream.
    sim.replicas(0, &[("c0", "http://elsewhere"), ("c1", "http://b")]);
    sim.replicas(1, &[("c0", "http://elsewhere"), ("c1", "http://b")]);
    assert!(sim.hung_up.is_empty());
    sim.down(2);
    assert_eq!((sim.dialling(), sim.hung_up.clone()), (vec![0, 1], vec![2]));
    // It came back: ids are never used twice.
    sim.replicas(0, &[("c0", "http://elsewhere"), ("c1", "http://b"), ("c9", "http://c")]);
    assert_eq!(sim.dialling(), [0, 1, 3]);
    // What a link that is gone still brings is nothing.
    sim.event(Event::Opened(2));
    assert_eq!(sim.closed, [2]);
    sim.frame(2, In::Drain(v1::Drain {}));
    sim.down(2);
}

#[test]
fn nobody_goes_while_nobody_is_there_to_tell() {
    let mut sim = Sim::attached(1);
    sim.replicas(0, &[("c0", "http://a"), ("c1", "http://b")]);
    sim.down(0);
    assert_eq!((sim.dialling(), sim.hung_up.len()), (vec![0, 1], 0));
    sim.attach(0);
    assert_eq!((sim.dialling(), sim.hung_up.len()), (vec![0, 1], 0));
}

#[test]
fn a_coordinator_that_was_started_again_is_reached_by_its_old_link() {
    let mut sim = Sim::attached(1);
    sim.replicas(0, &[("c0", "http://a"), ("c1", "http://b")]);
    sim.attach(1);
    sim.down(1);
    sim.replicas(0, &[("c0", "http://a"), ("c1-again", "http://b")]);
    assert_eq!((sim.dialling(), sim.hung_up.len()), (vec![0, 1], 0));
    sim.attach_as(1, "c1-again");
    assert_eq!(sim.dialling(), [0, 1]);
}

#[test]
fn a_replica_that_is_attached_by_another_url_is_dialled_once_that_is_lost() {
    let mut sim = Sim::attached(1);
    // The configured URL is another one than the coordinator's own.
    sim.replicas(0, &[("c0", "http://a"), ("c1", "http://b")]);
    assert_eq!(sim.dialling(), [0, 1]);
    sim.attach(1);
    sim.replicas(1, &[("c0", "http://a"), ("c1", "http://b")]);
    sim.down(0);
    assert_eq!(sim.dialling[&2], "http://a");
    // Whichever is there first; the other rests.
    sim.attach_as(2, "c0");
    assert_eq!(sim.dialling(), [1, 2]);
    sim.down(2);
    assert_eq!(sim.dialling(), [0, 1, 2]);
}

#[test]
fn two_urls_of_one_coordinator_dont_replace_each_other_for_ever() {
    let mut sim = Sim::new(settings(1, 1, 2));
    sim.attach_as(0, "same");
    sim.attach_as(1, "same");
    // The newer stream is the one that the coordinator keeps.
    assert_eq!((sim.closed.clone(), sim.dialling()), (vec![0], vec![1]));
    sim.down(0);
    // It had got through just before it was told to rest.
    sim.event(Event::Opened(0));
    assert_eq!(sim.closed, [0, 0]);
    assert!(!sim.take_sent().iter().skip(4).any(|frame| matches!(frame, Out::Hello(_))));
    sim.down(1);
    assert_eq!(sim.dialling(), [0, 1]);
    // Also while it is greeted.
    sim.event(Event::Opened(0));
    assert_eq!(sim.dialling(), [0]);
    sim.down(0);
    assert_eq!(sim.dialling(), [0, 1]);
}

#[test]
fn as_many_replicas_are_dialled_as_a_list_may_have_and_no_more() {
    let list: Vec<(String, String)> =
        (0..=MOST_REPLICAS).map(|n| (format!("r{n:02}"), format!("http://r{n:02}"))).collect();
    let list: Vec<(&str, &str)> = list.iter().map(|(id, url)| (id.as_str(), url.as_str())).collect();
    let mut sim = Sim::attached_to(2, 1);
    sim.replicas(0, &list[..MOST_REPLICAS]);
    assert_eq!(sim.dialling.len(), 2 + MOST_REPLICAS);
    // One more, in a list that is too long; and in another list.
    sim.replicas(0, &list);
    sim.replicas(1, &list[MOST_REPLICAS..]);
    assert_eq!(sim.dialling.len(), 2 + MOST_REPLICAS);
    // There is room when one goes.
    sim.replicas(0, &list[1..]);
    assert_eq!((sim.dialling.len(), sim.hung_up.len()), (2 + MOST_REPLICAS, 1));
    assert!(sim.dialling.values().any(|url| *url == list[MOST_REPLICAS].1));
}
