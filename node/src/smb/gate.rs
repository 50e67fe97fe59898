//! The gate: a client gets into a share through the node that serves it, and after the orphans.
//!
//! Between separate `smbd`s nobody but the cluster keeps share modes and oplocks coherent. So a tree connect
//! waits here until this node serves the share and has put the share's orphaned opens into its own databases;
//! nobody can open a file before that. Otherwise a client that came and went unseen would make the cache stale
//! that the orphan's client is about to trust again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex as SyncMutex, MutexGuard};
use std::time::Duration;

use statedb::{Outcome, Owner, Rejection, Request, ShareName, State};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use tracing::{debug, error, info, warn};

use super::reconcile::Reconciled;
use super::tree_connects::{TreeConnect, TreeConnects};
use crate::proposer::{Proposer, RequestError};
use crate::raft::RaftNode;

/// How long a client waits for its share to be taken over. Clients give up on a request after twenty seconds (Samba's
/// own tools) or more; within less the verdict on a dead node is there in any usable configuration.
pub(super) const HELD_AT_MOST: Duration = Duration::from_secs(15);

/// What a tree connect is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Come in.
    Enter,
    /// Another node serves the share, and lives.
    ServedBy(Owner),
    /// No answer could be had in time.
    Undecided,
}

/// The tree connects of this node's SMB service.
#[derive(Debug)]
pub struct Gate {
    raft: Arc<RaftNode>,
    proposer: Arc<Proposer>,
    reconciled: Reconciled,
    /// How long a serving node may be silent before it is surely declared down: within that time a client
    /// that knocks elsewhere is more likely fleeing from a dead node than lost.
    verdict_within: Duration,
    /// Whether `smbd` is one of several that are coherent among themselves: then there is no serving node, and nobody is
    /// kept waiting here (but see [`super::look::Lookout::deletions_are_made`]). Who is in which share is of interest all
    /// the same.
    lets_all_in: bool,
    tree_connects: SyncMutex<TreeConnects>,
    doors: SyncMutex<BTreeMap<ShareName, Arc<Mutex<Door>>>>,
}

/// The way into one share. Locked while the share is asked for or given up, which exclude each other.
#[derive(Debug, Default)]
struct Door {
    /// Somebody passed since the share was last asked for, so the next one need not ask.
    open: bool,
}

impl Gate {
    /// A gate that these have passed.
    #[must_use]
    pub fn new(
        raft: Arc<RaftNode>,
        proposer: Arc<Proposer>,
        reconciled: Reconciled,
        verdict_within: Duration,
        lets_all_in: bool,
        tree_connects: TreeConnects,
    ) -> Self {
        Self {
            raft,
            proposer,
            reconciled,
            verdict_within: verdict_within.min(HELD_AT_MOST),
            lets_all_in,
            tree_connects: SyncMutex::new(tree_connects),
            doors: SyncMutex::default(),
        }
    }

    /// Holds a tree connect until there is a verdict.
    ///
    /// # Errors
    ///
    /// If there is no answer: see [`RequestError`].
    pub async fn enter(&self, share: &ShareName, connect: TreeConnect) -> Result<Verdict, RequestError> {
        if self.lets_all_in {
            return Ok(self.let_in(connect, share));
        }
        let door = self.door(share);
        let knocked_at = Instant::now();
        // Others may pass while this one waits, so the lock is taken for each attempt anew.
        loop {
            let mut door = door.lock().await;
            if door.open {
                return Ok(self.let_in(connect, share));
            }
            let (log_id, outcome) = self.proposer.propose(Request::ServeShare(share.clone())).await?;
            match outcome {
                Outcome::ShareServed => {
                    // The lock is kept: giving the share up has to wait, and so has the next client.
                    if !self.orphans_are_placed(share, log_id.index, knocked_at).await {
                        return Ok(Verdict::Undecided);
                    }
                    door.open = true;
                    return Ok(self.let_in(connect, share));
                }
                Outcome::Rejected(Rejection::ShareServedElsewhere { owner, .. }) => {
                    drop(door);
                    debug!(%share, served_by = %owner, "a tree connect is held");
                    let left = self.verdict_within.saturating_sub(knocked_at.elapsed());
                    if timeout(left, self.is_free(share, log_id.index)).await.is_err() {
                        warn!(%share, served_by = %owner, "a tree connect is refused: another node serves the share");
                        return Ok(Verdict::ServedBy(owner));
                    }
                }
                other => {
                    warn!(%share, outcome = %other, "a tree connect is refused");
                    return Ok(Verdict::Undecided);
                }
            }
        }
    }

    /// Waits until a share that was in use elsewhere by the entry at `index` is not any more, by the serving node's
    /// death or its last tree disconnect.
    async fn is_free(&self, share: &ShareName, index: u64) {
        self.raft.applied_through(index).await;
        let owner = self.proposer.owner();
        self.raft.until(|state| state.used_elsewhere(owner, share).is_none()).await;
    }

    async fn orphans_are_placed(&self, share: &ShareName, index: u64, knocked_at: Instant) -> bool {
        let left = HELD_AT_MOST.saturating_sub(knocked_at.elapsed());
        let placed = timeout(left, self.reconciled.through(Some(share), index)).await.is_ok();
        if !placed {
            warn!(%share, "a tree connect is refused: the orphans of the share are not in place yet; see the errors above");
        }
        placed
    }

    /// Lets one in, unless the next run of this sidecar would not know of it.
    fn let_in(&self, connect: TreeConnect, share: &ShareName) -> Verdict {
        match self.tree_connects().insert(connect, share) {
            Ok(()) => Verdict::Enter,
            Err(error) => {
                error!(%share, %error, "a tree connect is refused: it cannot be noted in the run directory ([samba] run_dir)");
                Verdict::Undecided
            }
        }
    }

    /// A tree disconnect.
    ///
    /// # Errors
    ///
    /// If there is no answer: see [`RequestError`].
    pub async fn leave(&self, connect: &TreeConnect) -> Result<(), RequestError> {
        self.leave_where(|other| other == connect).await
    }

    /// The end of a process, and of all its tree connects.
    ///
    /// # Errors
    ///
    /// If there is no answer: see [`RequestError`].
    pub async fn leave_all(&self, process: u32) -> Result<(), RequestError> {
        self.leave_where(|connect| connect.process == process).await
    }

    /// Gives up what this node serves and nobody is in any more: the last one has left while there was no sidecar.
    ///
    /// # Errors
    ///
    /// If there is no answer: see [`RequestError`].
    pub async fn release_deserted(&self) -> Result<(), RequestError> {
        let owner = self.proposer.owner();
        let served = self.raft.read(|state| {
            let served = state.shares().filter(|(_, serving)| serving.owner == owner);
            served.map(|(share, _)| share.clone()).collect()
        });
        self.release(served).await
    }

    /// The shares that a process has entered.
    #[must_use]
    pub fn entered(&self, process: u32) -> BTreeSet<ShareName> {
        self.tree_connects().of(process)
    }

    /// The processes that have entered any.
    #[must_use]
    pub fn processes(&self) -> BTreeSet<u32> {
        self.tree_connects().processes()
    }

    async fn leave_where(&self, leaves: impl Fn(&TreeConnect) -> bool) -> Result<(), RequestError> {
        let left = self.tree_connects().remove_where(leaves);
        self.release(left).await
    }

    /// Gives up those of these shares that are this node's and that nobody is in.
    async fn release(&self, shares: BTreeSet<ShareName>) -> Result<(), RequestError> {
        let owner = self.proposer.owner();
        for share in shares {
            let door = self.door(&share);
            let mut door = door.lock().await;
            // What was served before this sidecar was started was asked for by another.
            let is_served =
                |state: &State| state.serving_node(&share).is_some_and(|node| node.owner == owner);
            if (door.open || self.raft.read(is_served)) && !self.tree_connects().has(&share) {
                let (_, outcome) = self.proposer.propose(Request::ReleaseShare(share.clone())).await?;
                // Refused while a client still has an open there. Then the share stays ours, and whoever comes and
                // goes next asks again.
                door.open = outcome != Outcome::ShareReleased;
                if !door.open {
                    info!(%share, "the last tree connect is gone, the share is free");
                }
            }
        }
        Ok(())
    }

    fn door(&self, share: &ShareName) -> Arc<Mutex<Door>> {
        let mut doors = self.doors.lock().expect("no holder of this lock can panic");
        Arc::clone(doors.entry(share.clone()).or_default())
    }

    fn tree_connects(&self) -> MutexGuard<'_, TreeConnects> {
        self.tree_connects.lock().expect("no holder of this lock can panic")
    }
}
