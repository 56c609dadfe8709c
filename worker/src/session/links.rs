//! Which links there are, and which of them dial.
//!
//! A worker keeps one stream to every coordinator. It finds them by the URLs that it was given and by the
//! lists that coordinators send. Two URLs may lead to one coordinator, which ends the older stream of a
//! worker when a newer comes: if both dialled they would end each other's streams for ever. So of the links
//! to one coordinator only one dials while it has a stream; the others rest, and take over when it is down.

use super::link::{Attached, Link};
use super::state::{Command, LinkId, Machine};
use std::collections::{BTreeMap, BTreeSet};
use tracing::{info, warn};
use tranche_proto::v1;

/// The most links that are made because a coordinator told of another, and the most replicas of a list that
/// are looked at. More coordinators than anybody runs: a list that grows without end must not make a worker
/// do so too.
pub(super) const MOST_REPLICAS: usize = 64;

impl Machine {
    pub(super) fn link_ids(&self) -> Vec<LinkId> {
        self.links.keys().copied().collect()
    }

    pub(super) fn attached(&self, link: LinkId) -> Option<&Attached> {
        self.links.get(&link).and_then(Link::attached)
    }

    /// Takes a list of coordinators.
    pub(super) fn replicas(&mut self, link: LinkId, mut replicas: Vec<v1::Replica>) {
        if replicas.len() > MOST_REPLICAS {
            warn!(link, replicas = replicas.len(), most = MOST_REPLICAS, "the list of coordinators is cut");
            replicas.truncate(MOST_REPLICAS);
        }
        replicas.retain(|replica| !replica.coordinator.is_empty() && !replica.endpoint.is_empty());
        if let Some(attached) = self.links.get_mut(&link).and_then(Link::attached_mut) {
            attached.replicas = replicas;
            self.links_changed = true;
        }
    }

    /// Another link got to the same coordinator, which ends the older stream. So do we.
    pub(super) fn leave_others_of(&mut self, link: LinkId) {
        let coordinator = self.links[&link].coordinator.clone();
        let same = |(id, other): &(&LinkId, &Link)| {
            **id != link && !other.is_down() && coordinator.is_some() && other.coordinator == coordinator
        };
        let others: Vec<LinkId> = self.links.iter().filter(same).map(|(id, _)| *id).collect();
        for other in others {
            self.close(other, "the coordinator is attached by another URL");
        }
    }

    /// Makes the links that are missing, drops those of coordinators that are gone, and tells each whether
    /// it dials.
    pub(super) fn settle_links(&mut self) {
        if !std::mem::take(&mut self.links_changed) {
            return;
        }
        let lists = self.links.values().filter_map(Link::attached).map(|attached| &attached.replicas);
        // By endpoint. Without a list nothing is known, so nothing goes.
        let mut there: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for replica in lists.flatten() {
            let endpoint = place(&replica.endpoint).to_owned();
            there.entry(endpoint).or_default().insert(replica.coordinator.clone());
        }
        if !there.is_empty() {
            self.name_links(&there);
            self.drop_links(&there);
            self.make_links(&there);
        }
        self.tell_links();
    }

    /// A coordinator that was started again has another id at the same place.
    fn name_links(&mut self, there: &BTreeMap<String, BTreeSet<String>>) {
        for link in self.links.values_mut().filter(|link| link.is_down()) {
            let ids = there.get(place(&link.url));
            // Two at one place: an old list, or an address that leads to any of them.
            if let Some(id) = ids.filter(|ids| ids.len() == 1).and_then(BTreeSet::first) {
                link.coordinator = Some(id.clone());
            }
        }
    }

    fn drop_links(&mut self, there: &BTreeMap<String, BTreeSet<String>>) {
        let gone = |_: &LinkId, link: &mut Link| {
            let listed = there.contains_key(place(&link.url))
                || link.coordinator.as_ref().is_some_and(|id| there.values().any(|ids| ids.contains(id)));
            !link.configured && link.is_down() && !listed
        };
        for (link, gone) in self.links.extract_if(.., gone) {
            info!(link, url = gone.url, "the coordinator is gone, so is the link to it");
            self.commands.push(Command::HangUp(link));
        }
    }

    fn make_links(&mut self, there: &BTreeMap<String, BTreeSet<String>>) {
        let told = self.links.values().filter(|link| !link.configured).count();
        let mut room = MOST_REPLICAS.saturating_sub(told);
        for (endpoint, ids) in there {
            let has_link = self.links.values().any(|link| place(&link.url) == endpoint);
            let Some(id) = ids.iter().find(|id| !self.is_attached(id)).filter(|_| !has_link) else {
                continue;
            };
            if room == 0 {
                warn!(
                    coordinator.id = id,
                    url = endpoint,
                    most = MOST_REPLICAS,
                    "too many coordinators: not dialled"
                );
                continue;
            }
            room -= 1;
            info!(link = self.next_link, coordinator.id = id, url = endpoint, "another coordinator is there");
            let replica = v1::Replica { coordinator: id.clone(), endpoint: endpoint.clone() };
            self.links.insert(self.next_link, Link::of_replica(replica));
            self.next_link += 1;
        }
    }

    fn is_attached(&self, coordinator: &str) -> bool {
        let mut attached = self.links.values().filter(|link| link.attached().is_some());
        attached.any(|link| link.coordinator.as_deref() == Some(coordinator))
    }

    fn tell_links(&mut self) {
        let up: BTreeSet<String> = self
            .links
            .values()
            .filter(|link| !link.is_down())
            .filter_map(|l| l.coordinator.clone())
            .collect();
        for (id, link) in &mut self.links {
            let dials = !link.is_down() || link.coordinator.as_ref().is_none_or(|id| !up.contains(id));
            if dials != link.dials {
                link.dials = dials;
                let dial = || Command::Dial { link: *id, url: link.url.clone() };
                self.commands.push(if dials { dial() } else { Command::Rest(*id) });
            }
        }
    }
}

/// A URL as it is compared with others.
fn place(url: &str) -> &str {
    url.trim_end_matches('/')
}
