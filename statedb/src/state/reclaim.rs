//! A client comes back for its open.
//!
//! The SMB server has compared what only it knows: the user, the ClientGuid, the lease context and the
//! name (MS-SMB2 3.3.5.9.7 and 3.3.5.9.12). Here is decided what only the cluster knows: whether the open
//! is still there to be had, and whether this node is the one to have it. Of two survivors that both try,
//! the log puts one first, and the other meets a connected open.

use super::command::Reclaim;
use super::ids::Owner;
use super::open::{Open, OpenState};
use super::outcome::{Outcome, Rejection};
use super::state::State;
use super::time::Timestamp;

impl State {
    pub(super) fn reclaim(&mut self, owner: Owner, reclaim: &Reclaim) -> Result<Outcome, Rejection> {
        let id = reclaim.durable_file_id;
        let open = self.opens.get(id).ok_or(Rejection::OpenNotFound(id))?;
        check_reclaimable(open, owner, reclaim, self.now)?;
        self.check_serving_node(owner, &open.description.share)?;
        self.set_open_state(id, OpenState::Connected { owner });
        Ok(Outcome::Reclaimed)
    }
}

/// The checks of MS-SMB2 3.3.5.9.12 that are the cluster's, in its order, then those that are ours.
fn check_reclaimable(open: &Open, owner: Owner, reclaim: &Reclaim, now: Timestamp) -> Result<(), Rejection> {
    let id = reclaim.durable_file_id;
    // The CreateGuid is compared before the state, so that a stranger who probes DurableFileIds cannot
    // learn which of them are connected.
    if open.description.create_guid != reclaim.create_guid {
        return Err(Rejection::CreateGuidMismatch(id));
    }
    let (keeper, until) = match open.state {
        OpenState::Connected { owner } => return Err(Rejection::OpenConnected { open: id, owner }),
        OpenState::Disconnected { keeper, durable_open_scavenger_timeout } => {
            (keeper, durable_open_scavenger_timeout)
        }
    };
    // Neither of the two is to be had any more, whether or not somebody has committed that yet: its time
    // is up, or it lost its handle caching while its client was away.
    if until <= now || !open.description.outlives_its_connection() {
        return Err(Rejection::OpenNotFound(id));
    }
    match keeper {
        Some(keeper) if keeper != owner => Err(Rejection::NotOwner { open: id, holder: Some(keeper) }),
        _ => Ok(()),
    }
}
