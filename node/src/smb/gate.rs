//! The gate: a client gets into a share through the node that serves it, and after the orphans.
//!
//! Between separate `smbd`s nobody but the cluster keeps share modes and oplocks coherent. So a tree connect
//! waits here until this node serves the share and has put the share's orphaned opens into its own databases;
//! nobody can open a file before that. Otherwise a client that came and went unseen would make the cache stale
//! that the orphan's client is about to trust again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex as SyncMutex, MutexGuard};
use std::time::Duration;

use statedb::{Outcome, Owner, Rejection, Request, ShareName};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use tracing::{debug, info, warn};

use super::reconcile::Reconciled;
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
    /// kept waiting. Who is in which share is of interest all the same.
    lets_all_in: bool,
    /// By process and by the key of the tree connect's record, which only that process changes.
    tree_connects: SyncMutex<BTreeMap<(u32, Vec<u8>), ShareName>>,
    doors: SyncMutex<BTreeMap<ShareName, Arc<Mutex<Door>>>>,
}

/// The way into one share. Locked while the share is asked for or given up, which exclude each other.
#[derive(Debug, Default)]
struct Door {
    /// Somebody passed since the share was last asked for, so the next one need not ask.
    open: bool,
}

impl Gate {
    /// A gate that nobody has passed.
    #[must_use]
    pub fn new(
        raft: Arc<RaftNode>,
        proposer: Arc<Proposer>,
        reconciled: Reconciled,
        verdict_within: Duration,
        lets_all_in: bool,
    ) -> Self {
        Self {
            raft,
            proposer,
            reconciled,
            verdict_within: verdict_within.min(HELD_AT_MOST),
            lets_all_in,
            tree_connects: SyncMutex::default(),
            doors: SyncMutex::default(),
        }
    }

    /// Holds a tree connect of `process` until there is a verdict. `record` is the key of its record.
    ///
    /// # Errors
    ///
    /// If there is no answer: see [`RequestError`].
    pub async fn enter(
        &self,
        share: &ShareName,
        process: u32,
        record: &[u8],
    ) -> Result<Verdict, RequestError> {
        if self.lets_all_in {
            self.tree_connects().insert((process, record.to_vec()), share.clone());
            return Ok(Verdict::Enter);
        }
        let door = self.door(share);
        let knocked_at = Instant::now();
        // Others may pass while this one waits, so the lock is taken for each attempt anew.
        loop {
            let mut door = door.lock().await;
            if door.open {
                self.tree_connects().insert((process, record.to_vec()), share.clone());
                return Ok(Verdict::Enter);
            }
            let (log_id, outcome) = self.proposer.propose(Request::ServeShare(share.clone())).await?;
            match outcome {
                Outcome::ShareServed => {
                    // The lock is kept: giving the share up has to wait, and so has the next client.
                    let verdict = self.wait_for_orphans(share, log_id.index, knocked_at).await;
                    if verdict == Verdict::Enter {
                        door.open = true;
                        self.tree_connects().insert((process, record.to_vec()), share.clone());
                    }
                    return Ok(verdict);
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

    async fn wait_for_orphans(&self, share: &ShareName, index: u64, knocked_at: Instant) -> Verdict {
        let left = HELD_AT_MOST.saturating_sub(knocked_at.elapsed());
        match timeout(left, self.reconciled.through(share, index)).await {
            Ok(()) => Verdict::Enter,
            Err(_) => {
                warn!(%share, "a tree connect is refused: the orphans of the share are not in place yet; see the errors above");
                Verdict::Undecided
            }
        }
    }

    /// A tree disconnect.
    ///
    /// # Errors
    ///
    /// If there is no answer: see [`RequestError`].
    pub async fn leave(&self, process: u32, record: &[u8]) -> Result<(), RequestError> {
        self.leave_where(|connect| connect.0 == process && connect.1 == record).await
    }

    /// The end of a process, and of all its tree connects.
    ///
    /// # Errors
    ///
    /// If there is no answer: see [`RequestError`].
    pub async fn leave_all(&self, process: u32) -> Result<(), RequestError> {
        self.leave_where(|connect| connect.0 == process).await
    }

    /// The shares that a process has entered.
    #[must_use]
    pub fn entered(&self, process: u32) -> BTreeSet<ShareName> {
        let tree_connects = self.tree_connects();
        tree_connects.iter().filter(|((of, _), _)| *of == process).map(|(_, share)| share.clone()).collect()
    }

    async fn leave_where(&self, leaves: impl Fn(&(u32, Vec<u8>)) -> bool) -> Result<(), RequestError> {
        let left: BTreeSet<ShareName> = {
            let mut tree_connects = self.tree_connects();
            let left = tree_connects
                .iter()
                .filter(|(connect, _)| leaves(connect))
                .map(|(_, share)| share.clone())
                .collect();
            tree_connects.retain(|connect, _| !leaves(connect));
            left
        };
        for share in left {
            let door = self.door(&share);
            let mut door = door.lock().await;
            if door.open && !self.tree_connects().values().any(|entered| *entered == share) {
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

    fn tree_connects(&self) -> MutexGuard<'_, BTreeMap<(u32, Vec<u8>), ShareName>> {
        self.tree_connects.lock().expect("no holder of this lock can panic")
    }
}
