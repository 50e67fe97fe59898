//! Whether what this node holds of the cluster's records is what they are.
//!
//! CTDB takes a node that does not answer for dead, and recovers without it. If it was not dead but hung, or cut off, its
//! ctdbd joins the others later with its copies of long ago. CTDB compares their age by how often a record has moved from
//! node to node, and not at all by which recovery they come from: so an old copy can win over what everybody has agreed on
//! meanwhile. Then opens and locks come back that were given up, and those that were made are lost.

use std::thread;
use std::time::Duration;

use super::connection::{Connection, CtdbError};

/// How long after the first one the last node may hear that a recovery has begun in which all take part. They are told at
/// the same time.
const HEARD_BY_ALL_WITHIN: Duration = Duration::from_millis(20);

/// What the records of this node are worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Membership {
    /// It takes part in the same recovery as the others.
    Member,
    /// Others have recovered without it, and it has not noticed: its records must not reach them.
    Stale,
    /// A recovery has begun in this moment, of which some nodes hear earlier than others.
    Undecided,
    /// It takes part in nothing: it has just started, or is banned or stopped. Its records count for nothing.
    Outside,
    /// No other node answers that takes part in anything.
    Alone,
}

impl Connection {
    /// What the records of this node are worth, by what the other nodes say that can be reached.
    pub fn membership(&mut self) -> Result<Membership, CtdbError> {
        let own = self.pnn();
        let (mine, others): (Vec<_>, Vec<_>) = self.node_map()?.into_iter().partition(|node| node.pnn == own);
        let generation = if mine.iter().any(|node| node.is_active()) { self.generation(own)? } else { None };
        let Some(generation) = generation else { return Ok(Membership::Outside) };
        let mut membership = Membership::Alone;
        for other in others.into_iter().filter(|node| node.is_active()) {
            match self.generation(other.pnn) {
                Ok(Some(theirs)) if theirs != generation => {
                    thread::sleep(HEARD_BY_ALL_WITHIN);
                    let is_same = self.generation(own)? == Some(generation);
                    return Ok(if is_same { Membership::Stale } else { Membership::Undecided });
                }
                Ok(Some(_)) => membership = Membership::Member,
                // It takes part in nothing, or was lost just now.
                Ok(None) | Err(CtdbError::Refused { .. } | CtdbError::Timeout { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(membership)
    }
}
