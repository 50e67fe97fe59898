//! The nodes of the cluster, as the log knows them.

use std::collections::BTreeMap;
use std::fmt;

use super::ids::{Incarnation, Instance};
use super::outcome::Outcome;
use super::time::Timestamp;

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
    /// Whether it may act.
    pub state: NodeState,
    /// The proposer has every answer below this sequence; nothing below it is kept or accepted.
    pub first_outstanding: u64,
    /// The answers it may not have received yet, by sequence. Its length is bounded by how far
    /// a proposer may run ahead (`Limits::outstanding_max`).
    pub answered: BTreeMap<u64, Outcome>,
}

impl Node {
    /// A node at the first registration of an incarnation.
    #[must_use]
    pub(super) fn registered(incarnation: Incarnation, instance: Instance) -> Self {
        Self { incarnation, instance, state: NodeState::Up, first_outstanding: 0, answered: BTreeMap::new() }
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
