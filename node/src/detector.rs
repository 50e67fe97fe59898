//! The failure detector: the leader's judgement of which nodes are dead.
//!
//! Only the rules are here, fed with instants, so that a test can play any story. They keep one promise:
//! *when [`Detector::overdue`] names an incarnation, every lease that it can have is over.* Therefore
//!
//! - a question is answered only while its node is not being declared down ([`Detector::heard`] refuses one
//!   whose verdict is on its way), and the lease counts from before the answer;
//! - a new leader begins by assuming that every node was heard at the last moment the old leader could have
//!   answered it (`Timing::node_down_after_election`).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use statedb::{Incarnation, NodeId, Owner};

/// What the leader knows of the liveness of the nodes. A follower has none.
#[derive(Debug)]
pub struct Detector {
    node_down_after: Duration,
    /// By when word from a node has to arrive.
    overdue_at: BTreeMap<NodeId, Instant>,
    /// Incarnations that are being declared down. They get no more leases, whatever becomes of the proposal.
    condemned: BTreeMap<NodeId, Owner>,
    /// What applies to a node that was not heard of in this leadership.
    first_overdue_at: Instant,
    /// The incarnations that were up at the last look; none before the first.
    up_at_last_look: Option<BTreeMap<NodeId, Incarnation>>,
}

impl Detector {
    /// A leadership begins at `elected_at`.
    #[must_use]
    pub fn new(elected_at: Instant, node_down_after_election: Duration, node_down_after: Duration) -> Self {
        Self {
            node_down_after,
            overdue_at: BTreeMap::new(),
            condemned: BTreeMap::new(),
            first_overdue_at: elected_at + node_down_after_election,
            up_at_last_look: None,
        }
    }

    /// Word from a node arrived. False if it must not be answered with a lease.
    #[must_use]
    pub fn heard(&mut self, owner: Owner, now: Instant) -> bool {
        if self.condemned.get(&owner.node) == Some(&owner) {
            return false;
        }
        self.give_time(owner.node, now);
        true
    }

    fn give_time(&mut self, node: NodeId, now: Instant) {
        let overdue_at = now + self.node_down_after;
        let known = self.overdue_at.entry(node).or_insert(overdue_at);
        *known = (*known).max(overdue_at);
    }

    /// Which of the incarnations that are up now have been silent for too long. They are condemned with that.
    pub fn overdue(&mut self, up: impl IntoIterator<Item = Owner>, now: Instant) -> Vec<Owner> {
        let up: BTreeMap<NodeId, Incarnation> =
            up.into_iter().map(|owner| (owner.node, owner.incarnation)).collect();
        if let Some(before) = &self.up_at_last_look {
            // An incarnation that was not there before has registered with this leader: word from its node,
            // although no question was asked yet. Those that the first look finds belong to an earlier
            // leadership.
            let registered = up.iter().filter(|&(node, incarnation)| before.get(node) != Some(incarnation));
            let registered: Vec<NodeId> = registered.map(|(&node, _)| node).collect();
            registered.into_iter().for_each(|node| self.give_time(node, now));
        }
        self.up_at_last_look = Some(up.clone());

        let mut overdue = Vec::new();
        for (node, incarnation) in up {
            let owner = Owner { node, incarnation };
            let overdue_at = self.overdue_at.get(&owner.node).copied().unwrap_or(self.first_overdue_at);
            if now >= overdue_at.max(self.first_overdue_at) {
                self.condemned.insert(owner.node, owner);
                overdue.push(owner);
            }
        }
        overdue
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AFTER_ELECTION: Duration = Duration::from_millis(260);
    const AFTER: Duration = Duration::from_millis(500);

    fn owner(node: u64, incarnation: u64) -> Owner {
        Owner { node: NodeId(node), incarnation: Incarnation(incarnation) }
    }

    #[test]
    fn a_silent_node_is_overdue_after_node_down_after_and_not_before() {
        let start = Instant::now();
        let mut detector = Detector::new(start, AFTER_ELECTION, AFTER);
        let heard_at = start + Duration::from_secs(1);
        assert!(detector.heard(owner(2, 1), heard_at));
        assert_eq!(detector.overdue([owner(2, 1)], heard_at + AFTER - Duration::from_millis(1)), []);
        assert_eq!(detector.overdue([owner(2, 1)], heard_at + AFTER), [owner(2, 1)]);
    }

    #[test]
    fn a_new_leader_waits_for_the_leases_of_its_predecessor() {
        let start = Instant::now();
        let mut detector = Detector::new(start, AFTER_ELECTION, AFTER);
        assert_eq!(detector.overdue([owner(1, 1)], start + AFTER_ELECTION - Duration::from_millis(1)), []);
        assert_eq!(detector.overdue([owner(1, 1)], start + AFTER_ELECTION), [owner(1, 1)]);
    }

    #[test]
    fn an_incarnation_that_registers_later_gets_its_full_time() {
        let start = Instant::now();
        let mut detector = Detector::new(start, AFTER_ELECTION, AFTER);
        let late = start + Duration::from_secs(10);
        assert_eq!(detector.overdue([], late), []);
        let registered = late + Duration::from_secs(1);
        assert_eq!(detector.overdue([owner(1, 1)], registered), []);
        assert_eq!(detector.overdue([owner(1, 1)], registered + AFTER - Duration::from_millis(1)), []);
        assert_eq!(detector.overdue([owner(1, 1)], registered + AFTER), [owner(1, 1)]);
        assert_eq!(detector.overdue([owner(1, 2)], registered + 2 * AFTER), [], "its successor");
    }

    #[test]
    fn a_condemned_incarnation_gets_no_lease_but_its_successor_does() {
        let start = Instant::now();
        let mut detector = Detector::new(start, AFTER_ELECTION, AFTER);
        let late = start + AFTER_ELECTION;
        assert_eq!(detector.overdue([owner(1, 1)], late), [owner(1, 1)]);
        assert!(!detector.heard(owner(1, 1), late));
        assert!(detector.heard(owner(1, 2), late));
    }
}
