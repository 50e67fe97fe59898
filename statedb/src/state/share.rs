//! Which node serves a share.
//!
//! Between separate SMB servers nobody but the cluster keeps share modes and oplocks coherent, so a
//! share has one serving node at a time. It becomes that by the first tree connect, and stays it until
//! the last tree connect is gone or the node is declared down.
//!
//! SMB servers that keep themselves coherent need no serving node and never ask for one; their opens are
//! in the same tables.

use super::ids::{Owner, ShareName};
use super::outcome::{Outcome, Rejection};
use super::state::State;

/// The node that serves a share now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServingNode {
    /// The incarnation that holds tree connects to the share.
    pub owner: Owner,
}

impl State {
    pub(super) fn serve_share(&mut self, owner: Owner, share: &ShareName) -> Result<Outcome, Rejection> {
        if self.serves(owner, share) {
            return Ok(Outcome::ShareServed);
        }
        if let Some(other) = self.used_elsewhere(owner, share) {
            return Err(Rejection::ShareServedElsewhere { share: share.clone(), owner: other });
        }
        let limit = self.limits.shares_max;
        if self.shares.len() as u64 >= limit {
            return Err(Rejection::TooManyShares { limit });
        }
        self.shares.insert(share.clone(), ServingNode { owner });
        self.changes.shares.insert(share.clone());

        // What an earlier serving node still keeps for its clients is taken from it here, in the same
        // entry, so that no open of a served share is ever kept by anybody but its serving node.
        let kept_elsewhere: Vec<_> = self
            .opens
            .of_share(share)
            .filter(|open| open.holder().is_some_and(|holder| holder != owner))
            .map(|open| open.description.durable_file_id)
            .collect();
        for open in kept_elsewhere {
            self.lose_connection(open, None);
        }
        self.assign_deletes_of_share(share, owner);
        Ok(Outcome::ShareServed)
    }

    pub(super) fn release_share(&mut self, owner: Owner, share: &ShareName) -> Outcome {
        if !self.serves(owner, share) {
            return Outcome::ShareReleased;
        }
        // A client that has an open there has a tree connect too, whatever the proposer counted.
        if self.opens.has_in_share(share, |open| open.connected_through().is_some()) {
            return Outcome::ShareServed;
        }
        self.remove_share(share);
        Outcome::ShareReleased
    }

    /// Releases what only the dead could have released.
    pub(super) fn release_shares_of(&mut self, owner: Owner) {
        let served = self.shares().filter(|(_, serving)| serving.owner == owner);
        for share in served.map(|(share, _)| share.clone()).collect::<Vec<_>>() {
            self.remove_share(&share);
        }
    }

    pub(super) fn serves(&self, owner: Owner, share: &ShareName) -> bool {
        self.shares.get(share).is_some_and(|serving| serving.owner == owner)
    }

    /// Why `owner` cannot serve a share: another one that serves it, or through which a client has an open of it. That
    /// client's oplocks would be unknown to the SMB server of `owner`.
    pub fn used_elsewhere(&self, owner: Owner, share: &ShareName) -> Option<Owner> {
        let serving = self.shares.get(share).map(|serving| serving.owner);
        let mut clients_through = self.opens.of_share(share).filter_map(|open| open.connected_through());
        serving.filter(|other| *other != owner).or_else(|| clients_through.find(|other| *other != owner))
    }

    /// Refuses a proposer while another node serves the share.
    pub(super) fn check_serving_node(&self, owner: Owner, share: &ShareName) -> Result<(), Rejection> {
        match self.shares.get(share) {
            Some(serving) if serving.owner != owner => {
                Err(Rejection::ShareServedElsewhere { share: share.clone(), owner: serving.owner })
            }
            _ => Ok(()),
        }
    }

    fn remove_share(&mut self, share: &ShareName) {
        self.shares.remove(share);
        self.changes.shares.insert(share.clone());
    }
}
