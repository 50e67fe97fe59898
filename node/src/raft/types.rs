//! The types that Raft is instantiated with, and short names for them.

use std::fmt;
use std::sync::Arc;

use openraft::BasicNode;
use openraft::impls::leader_id_std;
use openraft::type_config::alias::CommittedLeaderIdOf;
use statedb::{Command, Outcome, Timestamp};

openraft::declare_raft_types!(
    /// Raft as Holdfast uses it: at most one leader per term, so that a position is (term, index).
    pub(crate) TypeConfig:
        D = Arc<Proposed>,
        R = Option<Outcome>,
        NodeId = u64,
        Node = BasicNode,
        LeaderId = leader_id_std::LeaderId<u64, u64>,
);

pub(super) type CommittedLeaderId = CommittedLeaderIdOf<TypeConfig>;
pub(super) type LogId = openraft::LogId<CommittedLeaderId>;
pub(super) type Vote = openraft::Vote<leader_id_std::LeaderId<u64, u64>>;
pub(super) type Payload = openraft::EntryPayload<Arc<Proposed>, u64, BasicNode>;
pub(super) type Entry = openraft::Entry<CommittedLeaderId, Payload>;
pub(super) type Membership = openraft::Membership<u64, BasicNode>;
pub(super) type StoredMembership = openraft::StoredMembership<CommittedLeaderId, u64, BasicNode>;

/// A command, and when its leader proposed it. What an entry of the log says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Proposed {
    /// Cluster time at the leader.
    pub(crate) at: Timestamp,
    /// The command.
    pub(crate) command: Command,
    /// Both as they are in the log and on their way to followers. Encoded once, where they are proposed.
    pub(crate) encoded: Arc<[u8]>,
}

impl fmt::Display for Proposed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at={}", self.command, self.at)
    }
}
