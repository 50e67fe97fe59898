//! Whether what this node holds of the cluster's records is what they are.
//!
//! CTDB takes a node that does not answer for dead, and recovers without it. If it was not dead but hung, or cut off, its
//! ctdbd joins the others later with its copies of long ago. CTDB compares their age by how often a record has moved from
//! node to node, and not at all by which recovery they come from: so an old copy can win over what everybody has agreed on
//! meanwhile. Then opens and locks come back that were given up, and those that were made are lost.

use super::connection::{Connection, CtdbError};

/// What the records of this node are worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Membership {
    /// It takes part in the same recovery as the others.
    Member,
    /// Others have recovered without it, and it has not noticed: its records must not reach them.
    Stale,
    /// It takes part in nothing: it has just started, or is banned or stopped. Its records count for nothing.
    Outside,
    /// No other node answers that takes part in anything.
    Alone,
}

impl Connection {
    /// What the records of this node are worth, by what the other nodes say that can be reached.
    ///
    /// While a recovery begins, nodes that take part in it may for a moment look as if they did not.
    pub fn membership(&mut self) -> Result<Membership, CtdbError> {
        let own = self.pnn();
        let (mine, others): (Vec<_>, Vec<_>) = self.node_map()?.into_iter().partition(|node| node.pnn == own);
        let generation = if mine.iter().any(|node| node.is_active()) { self.generation(own)? } else { None };
        let Some(generation) = generation else { return Ok(Membership::Outside) };
        let mut membership = Membership::Alone;
        for other in others.into_iter().filter(|node| node.is_active()) {
            match self.generation(other.pnn) {
                Ok(Some(theirs)) if theirs != generation => return Ok(Membership::Stale),
                Ok(Some(_)) => membership = Membership::Member,
                // It takes part in nothing, or was lost just now.
                Ok(None) | Err(CtdbError::Refused { .. } | CtdbError::Timeout { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(membership)
    }
}
