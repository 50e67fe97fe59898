//! The nodes of the cluster, as the log knows them: registration, death, and exactly-once.

use std::collections::BTreeMap;
use std::fmt;

use super::command::Proposer;
use super::event::EventKind;
use super::ids::{Incarnation, Instance, NodeId, Owner};
use super::outcome::{Outcome, Rejection};
use super::state::State;
use super::time::Timestamp;

/// How many superseded instances of a node are remembered. One that comes back is late by the time its
/// registration was on the way, or by the life of an SMB service that nobody ended; neither lasts as
/// long as so many restarts.
const SUPERSEDED_INSTANCES_MAX: usize = 16;

/// Who decides between the opens of an SMB service and those of others: who may share a file, and cache it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arbiter {
    /// The cluster: the service asks before it opens, and may serve a share at the same time as others do.
    Cluster,
    /// The SMB server, between its own opens; it knows no others, and so a share has one serving node. What excludes
    /// an open of another server is refused.
    SmbServer,
    /// SMB servers that are coherent among themselves, as Samba is under CTDB. What they report is recorded.
    SmbCluster,
}

/// Whether the SMB service of a node may act.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeState {
    /// Its current incarnation serves.
    Up,
    /// Its current incarnation was declared dead and is fenced. A new one may register.
    Down {
        /// When that was decided.
        since: Timestamp,
    },
}

/// A node, and what its proposers must not be answered twice for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The newest start of its SMB service.
    pub incarnation: Incarnation,
    /// The name that this start gave itself.
    pub instance: Instance,
    /// The starts before it, the newest of them. None of them may register again: what it held may be
    /// somebody else's by now.
    pub superseded: BTreeMap<Incarnation, Instance>,
    /// Who decides between its opens and those of others.
    pub arbiter: Arbiter,
    /// Whether it may act.
    pub state: NodeState,
    /// The entry of the log by which the newest start was registered: who has been up for longer has a smaller one.
    pub registered_at: u64,
    /// The proposer has every answer below this sequence; nothing below it is kept or accepted.
    pub first_outstanding: u64,
    /// The answers it may not have received yet, by sequence. Its length is bounded by how far
    /// a proposer may run ahead (`Limits::outstanding_max`). Empty while the node is down.
    pub answered: BTreeMap<u64, Outcome>,
}

impl Node {
    fn first(instance: Instance, arbiter: Arbiter, registered_at: u64) -> Self {
        Self {
            incarnation: Incarnation(1),
            instance,
            arbiter,
            superseded: BTreeMap::new(),
            state: NodeState::Up,
            registered_at,
            first_outstanding: 0,
            answered: BTreeMap::new(),
        }
    }

    /// The node after its next start. That one counts its requests afresh.
    fn superseded_by(&self, instance: Instance, arbiter: Arbiter, registered_at: u64) -> Self {
        let mut superseded = self.superseded.clone();
        superseded.insert(self.incarnation, self.instance);
        while superseded.len() > SUPERSEDED_INSTANCES_MAX {
            superseded.pop_first();
        }
        Self {
            incarnation: Incarnation(self.incarnation.0 + 1),
            superseded,
            ..Self::first(instance, arbiter, registered_at)
        }
    }

    /// The incarnation that this instance had, if another one has taken its place.
    fn incarnation_of_superseded(&self, instance: Instance) -> Option<Incarnation> {
        self.superseded.iter().find(|(_, earlier)| **earlier == instance).map(|(incarnation, _)| *incarnation)
    }

    /// Makes room for the answer to a request that was not answered yet, and forgets what its proposer
    /// says it has received. Nothing changes if the request is refused.
    pub(super) fn advance_window(
        &mut self,
        proposer: &Proposer,
        outstanding_max: u64,
    ) -> Result<(), Rejection> {
        let sequence = proposer.sequence;
        if sequence < self.first_outstanding {
            return Err(Rejection::AnswerForgotten { sequence });
        }
        // A proposer cannot have acknowledged the answer to the request that it makes here.
        let first_outstanding = proposer.first_outstanding.min(sequence).max(self.first_outstanding);
        if sequence - first_outstanding >= outstanding_max {
            return Err(Rejection::TooManyOutstanding { limit: outstanding_max });
        }
        self.first_outstanding = first_outstanding;
        while let Some(oldest) = self.answered.first_entry().filter(|entry| *entry.key() < first_outstanding)
        {
            oldest.remove();
        }
        Ok(())
    }
}

impl State {
    /// Whether this incarnation may act.
    #[must_use]
    pub fn is_up(&self, owner: Owner) -> bool {
        self.nodes
            .get(&owner.node)
            .is_some_and(|node| node.incarnation == owner.incarnation && node.state == NodeState::Up)
    }

    /// The node of a proposer that may act; everybody else is fenced.
    pub(super) fn live_node(&mut self, owner: Owner) -> Result<&mut Node, Rejection> {
        if !self.is_up(owner) {
            return Err(self.fenced(owner));
        }
        Ok(self.nodes.get_mut(&owner.node).expect("a node that is up is known"))
    }

    fn fenced(&self, proposer: Owner) -> Rejection {
        Rejection::Fenced { proposer, current: self.nodes.get(&proposer.node).map(|node| node.incarnation) }
    }

    pub(super) fn register_node(
        &mut self,
        id: NodeId,
        instance: Instance,
        arbiter: Arbiter,
    ) -> Result<Outcome, Rejection> {
        let registered_at = self.registration_index();
        let registered = match self.nodes.get(&id) {
            None => Node::first(instance, arbiter, registered_at),
            Some(node) if node.instance == instance => {
                // Its opens may be somebody else's by now. It has to end; its successor may register.
                if let NodeState::Down { .. } = node.state {
                    return Err(self.fenced(Owner { node: id, incarnation: node.incarnation }));
                }
                return Ok(self.registered(node.incarnation));
            }
            Some(node) => {
                if let Some(incarnation) = node.incarnation_of_superseded(instance) {
                    return Err(self.fenced(Owner { node: id, incarnation }));
                }
                node.superseded_by(instance, arbiter, registered_at)
            }
        };
        if let Some(before) = self.nodes.get(&id) {
            self.node_down(id, before.incarnation);
        }
        let incarnation = registered.incarnation;
        self.nodes.insert(id, registered);
        self.changes.nodes.insert(id);
        self.assign_unassigned_deletes();
        self.tell(None, EventKind::NodeUp { owner: Owner { node: id, incarnation } });
        Ok(self.registered(incarnation))
    }

    /// The answer to a registration.
    ///
    /// Each answered request took an entry of the log, and no more than `outstanding_max` others were on
    /// the way. So a run of the sidecar that registered at entry *i*, and therefore began to count at
    /// *i* × `outstanding_max`, had not reached *j* × `outstanding_max` when a later run registered at
    /// entry *j*: no two runs use the same sequence, and the first request of the later one moves the
    /// window past everything that the earlier one may still have on the way.
    fn registered(&self, incarnation: Incarnation) -> Outcome {
        let first_sequence = self.registration_index().saturating_mul(self.limits.outstanding_max);
        Outcome::Registered { incarnation, first_sequence }
    }

    /// The entry that is being applied, which is a registration.
    fn registration_index(&self) -> u64 {
        self.applied().expect("a registration is an applied entry").index
    }

    /// Who decides between the opens of an SMB server and those of others.
    pub(super) fn arbiter_of(&self, owner: Owner) -> Arbiter {
        self.nodes.get(&owner.node).map_or(Arbiter::SmbServer, |node| node.arbiter)
    }

    pub(super) fn node_down(&mut self, id: NodeId, incarnation: Incarnation) -> Outcome {
        let owner = Owner { node: id, incarnation };
        let (mut disconnected, mut closed) = (Vec::new(), Vec::new());
        let now = self.now;
        let Ok(node) = self.live_node(owner) else {
            return Outcome::NodeDown { disconnected, closed };
        };
        node.state = NodeState::Down { since: now };
        // Whatever this incarnation asks for again, it is refused before anybody looks here.
        node.answered.clear();
        self.changes.nodes.insert(id);

        self.release_shares_of(owner);
        self.forget_waiting_of(owner);
        for open in self.opens.held_by(owner) {
            match self.lose_connection(open, None) {
                Some(_) => disconnected.push(open),
                None => closed.push(open),
            }
        }
        self.reassign_deletes_of(owner);
        let (waiting, gone) = (disconnected.len() as u64, closed.len() as u64);
        self.tell(None, EventKind::NodeDown { owner, disconnected: waiting, closed: gone });
        Outcome::NodeDown { disconnected, closed }
    }
}

impl fmt::Display for Arbiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cluster => "cluster",
            Self::SmbServer => "smb-server",
            Self::SmbCluster => "smb-cluster",
        })
    }
}

impl fmt::Display for NodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Up => f.write_str("up"),
            Self::Down { since } => write!(f, "down since={since}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proposer(sequence: u64, first_outstanding: u64) -> Proposer {
        let owner = Owner { node: NodeId(1), incarnation: Incarnation(1) };
        Proposer { owner, sequence, first_outstanding }
    }

    #[test]
    fn the_window_moves_forward_and_no_further_than_its_limit() {
        let mut node = Node::first(Instance([1; 16]), Arbiter::Cluster, 1);
        node.first_outstanding = 10;
        for (sequence, first_outstanding, expected, moved_to) in [
            (9, 0, Err(Rejection::AnswerForgotten { sequence: 9 }), 10),
            (10, 0, Ok(()), 10),
            (13, 10, Ok(()), 10),
            (14, 10, Err(Rejection::TooManyOutstanding { limit: 4 }), 10),
            // Nobody has acknowledged what he asks for here.
            (14, 99, Ok(()), 14),
            (u64::MAX, u64::MAX, Ok(()), u64::MAX),
        ] {
            assert_eq!(
                node.advance_window(&proposer(sequence, first_outstanding), 4),
                expected,
                "{sequence}"
            );
            assert_eq!(node.first_outstanding, moved_to, "{sequence}");
        }
    }

    #[test]
    fn the_newest_superseded_instances_are_remembered() {
        let instance = |start: u8| Instance([start; 16]);
        let starts = SUPERSEDED_INSTANCES_MAX as u8 + 2;
        let node = (1..starts).fold(Node::first(instance(0), Arbiter::Cluster, 1), |node, start| {
            node.superseded_by(instance(start), Arbiter::Cluster, 2)
        });
        assert_eq!(node.incarnation, Incarnation(u64::from(starts)));
        assert_eq!(node.superseded.len(), SUPERSEDED_INSTANCES_MAX);
        assert_eq!(node.incarnation_of_superseded(instance(0)), None, "the oldest is forgotten");
        assert_eq!(node.incarnation_of_superseded(instance(1)), Some(Incarnation(2)));
        assert_eq!(node.incarnation_of_superseded(node.instance), None, "the newest is not superseded");
    }
}
