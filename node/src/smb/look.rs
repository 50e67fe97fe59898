//! Whether `smbd` may look at the record of an open that another node of its CTDB cluster has had.
//!
//! A client whose node has died comes to another one, and `smbd` looks for its open there at once: too early. CTDB may
//! still be recovering, and then it has lost what the dead node used last, until that is put back. The first refusal
//! makes a client drop its handle for good. So a look waits until the node whose matter the open is says that its records
//! are as they should be ([`Lookout::is_settled`]): the node in which the open lives, which proves by its answer that it
//! does; or the one that puts the orphans back (`keeper_of_orphans`).
//!
//! The same goes for a file that the dead node should have deleted: a client that connects to a share waits until it is
//! gone ([`Lookout::deletions_are_made`]).
//!
//! # What must stay true
//!
//! - An answer counts from the question on. A node that dies after its answer takes the record with it, or has let it go.
//!   If it has it still, then CTDB itself keeps `smbd` waiting until it has recovered, and the shim asks again.
//! - Nobody waits for ever. A client that cannot be answered truthfully loses its connection, and comes again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use frame::Reply;
use statedb::{Arbiter, DeleteState, DurableFileId, FileKey, NodeId, NodeState, Owner, State};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::capture::Capture;
use super::gate::HELD_AT_MOST;
use super::processes::is_doomed;
use super::reconcile::Reconciled;
use super::tracker::Tracker;
use crate::config::Timing;
use crate::lease::ServiceLease;
use crate::raft::{News, RaftNode};

/// How often a question is asked again whose answer is not there yet.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(10);

/// How long a client waits for a file to be deleted once that is decided: as long as CTDB may need to recover. Who has the
/// file open without a durable handle may keep it for hours.
const DELETED_WITHIN: Duration = Duration::from_secs(5);

/// After so many heartbeats without word from a leader this node may have missed what others have been granted.
const HEARTBEATS_MISSED_MAX: u32 = 2;

/// What this node knows of the records of opens, for its own `smbd` and for other nodes that ask.
#[derive(Debug)]
pub struct Lookout {
    raft: Arc<RaftNode>,
    lease: Arc<ServiceLease>,
    node: NodeId,
    timing: Timing,
    reconciled: Reconciled,
    smbd: Mutex<Option<Smbd>>,
    /// Files that are to be deleted and that clients have waited for in vain.
    in_use: Mutex<BTreeSet<FileKey>>,
}

/// The SMB service of this node, as far as it can vouch for its opens.
#[derive(Clone, Debug)]
pub struct Smbd {
    /// Which start of it.
    pub owner: Owner,
    /// The process that the others were forked from.
    pub main_process: u32,
    /// What it has.
    pub capture: Arc<Capture>,
    /// Cancelled when it is over.
    pub ended: CancellationToken,
}

/// Who is to be asked about an open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    /// Nobody: there is no such open, as far as this node knows.
    Unknown,
    /// This node.
    Mine,
    /// Another one; and up to which entry of the log that was looked up.
    Others(NodeId, u64),
}

impl Lookout {
    /// Knows of no `smbd` yet.
    #[must_use]
    pub fn new(
        raft: Arc<RaftNode>,
        lease: Arc<ServiceLease>,
        node: NodeId,
        timing: Timing,
        reconciled: Reconciled,
    ) -> Self {
        let (smbd, in_use) = (Mutex::default(), Mutex::default());
        Self { raft, lease, node, timing, reconciled, smbd, in_use }
    }

    /// An incarnation of the SMB service begins.
    pub fn begin(&self, smbd: Smbd) {
        *self.smbd() = Some(smbd);
    }

    /// Keeps the page's word on whether this node may have missed opens, and forgets those of its own that have moved to
    /// other nodes. Ends when `stop` is cancelled.
    pub async fn run(self: Arc<Self>, tracker: Arc<Tracker>, stop: CancellationToken) {
        let mut look = tokio::time::interval(self.timing.heartbeat_interval() / 2);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut news = self.raft.news();
        loop {
            tokio::select! {
                _ = look.tick() => tracker.set_look_at_all(self.may_have_missed()),
                heard = news.recv() => match heard.as_deref() {
                    Ok(News::Applied { changes, .. }) => {
                        let smbd = self.smbd().clone();
                        if let Some(smbd) = smbd {
                            smbd.capture.forget_moved(changes.opens.iter().copied());
                        }
                    }
                    // What has moved unseen is found out when it is reported as this node's.
                    Ok(News::Replaced) | Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return,
                },
                () = stop.cancelled() => return,
            }
        }
    }

    /// Closes orphans that somebody contradicts, in the name of the SMB service of this node. Ends with who finds them.
    pub async fn close_contradicted(self: Arc<Self>, mut to_close: mpsc::Receiver<DurableFileId>) {
        while let Some(open) = to_close.recv().await {
            let smbd = self.smbd().clone();
            let Some(smbd) = smbd else { continue };
            if let Err(error) = smbd.capture.close_contradicted(open).await {
                debug!(durable_file_id = %open, %error, "an orphan is not closed by this incarnation any more");
            }
        }
    }

    /// Answers whoever wants to know all that was committed before he asked. Ends with who asks.
    pub async fn catch_up_for(self: Arc<Self>, mut asked: mpsc::Receiver<oneshot::Sender<()>>) {
        while let Some(answer) = asked.recv().await {
            if self.catch_up().await {
                // He may have lost patience.
                let _ = answer.send(());
            }
        }
    }

    /// Tells the cluster of files that were deleted for a dead smbd, in the name of the SMB service of this node. Ends with
    /// who deletes them.
    pub async fn report_deleted(self: Arc<Self>, mut deleted: mpsc::Receiver<FileKey>) {
        while let Some(file) = deleted.recv().await {
            let Some(smbd) = self.smbd().clone() else { continue };
            if let Err(error) = smbd.capture.file_deleted(file).await {
                debug!(%file, %error, "a deleted file is not this incarnation's any more");
            }
        }
    }

    /// What `smbd` is told that wants to look at the record of an open.
    pub async fn look(&self, open: DurableFileId) -> Reply {
        let asked_at = Instant::now();
        match timeout(HELD_AT_MOST, self.settled(open)).await {
            Ok(()) => {
                debug!(durable_file_id = %open, held = ?asked_at.elapsed(), "smbd may look at an open");
                Reply::Proceed
            }
            Err(_) => {
                warn!(durable_file_id = %open, "a client is disconnected, to come again: nobody could say in time what has become of its open");
                Reply::Fence
            }
        }
    }

    /// Waits until the files are gone that a node which has died should have deleted: their clients must not find them when
    /// they come back. Not for ever: then they do.
    pub async fn deletions_are_made(&self) {
        let waits_for_verdict = self.timing.verdict_within().min(HELD_AT_MOST);
        if timeout(waits_for_verdict, self.deleters_live()).await.is_err() {
            warn!(
                "a client is let in, though nobody could say in time whether a node lives that is to delete files: it may find them"
            );
        }
        let due = self.raft.read(|state| self.due(state));
        if due.is_empty() {
            return;
        }
        let deleted = self.raft.until(|state| self.due(state).is_disjoint(&due));
        if timeout(DELETED_WITHIN, deleted).await.is_err() {
            let left = self.raft.read(|state| self.due(state));
            debug!(
                files = left.len(),
                "a client is let in, though files that are to be deleted are there: somebody has them open"
            );
            self.in_use().extend(left.intersection(&due));
        }
    }

    /// Resolves when no open that deletes its file is that of another node which may have died. What a process leaves that
    /// dies alone, its node deletes at once.
    async fn deleters_live(&self) {
        let mut has_caught_up = !self.may_have_missed();
        let mut living = BTreeSet::new();
        loop {
            if !has_caught_up {
                has_caught_up = self.catch_up().await;
            }
            let (asked, applied) = self.raft.read(|state| {
                let mut asked = BTreeMap::new();
                for open in state.deleting_opens() {
                    let through = open.connected_through().map(|owner| owner.node);
                    if let Some(node) = through.filter(|node| *node != self.node && !living.contains(node)) {
                        asked.insert(node, open.description.durable_file_id);
                    }
                }
                (asked, state.applied().map_or(0, |log_id| log_id.index))
            });
            if asked.is_empty() && has_caught_up {
                return;
            }
            let known_to_live = living.len();
            for (node, open) in asked {
                if self.raft.is_settled_at(node, open, applied, self.timing.heartbeat_interval()).await {
                    living.insert(node);
                }
            }
            if living.len() == known_to_live {
                sleep(ASK_AGAIN_AFTER).await;
            }
        }
    }

    /// The files that are to be deleted at once, but for those that are known to be in use.
    fn due(&self, state: &State) -> BTreeSet<FileKey> {
        let due = state.deletes_pending().filter(|(_, pending)| {
            pending.arbiter == Arbiter::SmbCluster && matches!(pending.state, DeleteState::Due(_))
        });
        let mut due: BTreeSet<_> = due.map(|(file, _)| file).collect();
        let mut in_use = self.in_use();
        in_use.retain(|file| due.contains(file));
        due.retain(|file| !in_use.contains(file));
        due
    }

    /// Resolves when the records of an open are as they should be.
    async fn settled(&self, open: DurableFileId) {
        let mut has_caught_up = false;
        loop {
            match self.whose(open) {
                Whose::Unknown if has_caught_up || !self.may_have_missed() => return,
                Whose::Unknown => has_caught_up = self.catch_up().await,
                Whose::Mine => return,
                Whose::Others(node, applied) => {
                    // A living node answers within a heartbeat, unless it waits itself.
                    let patience = self.timing.heartbeat_interval();
                    let is_settled = if node == self.node {
                        self.is_settled(open, applied).await
                    } else {
                        self.raft.is_settled_at(node, open, applied, patience).await
                    };
                    if is_settled {
                        return;
                    }
                }
            }
            sleep(ASK_AGAIN_AFTER).await;
        }
    }

    /// Whether the records of an open are as they should be, if it is this node's to say.
    ///
    /// By the entry at `applied` or a later one: who asks has looked that far.
    pub async fn is_settled(&self, open: DurableFileId, applied: u64) -> bool {
        let settled = async {
            self.raft.applied_through(applied).await;
            let smbd = self.smbd().clone().filter(|smbd| !smbd.ended.is_cancelled())?;
            let (found, keeper, index) = self.raft.read(|state| {
                let found = state.open(open).map(|open| (open.holder(), open.deadline().is_some()));
                (found, keeper_of_orphans(state), state.applied().map_or(0, |log_id| log_id.index))
            });
            let (is_ours, is_kept) = match found {
                None => return Some(()),
                Some((Some(owner), is_kept)) => (owner == smbd.owner && smbd.has(open), is_kept),
                Some((None, _)) => (keeper == Some(self.node), true),
            };
            if is_ours && is_kept {
                self.reconciled.placed(open, index).await;
            }
            is_ours.then_some(())
        };
        matches!(timeout(self.timing.heartbeat_interval(), settled).await, Ok(Some(())))
    }

    fn whose(&self, open: DurableFileId) -> Whose {
        self.raft.read(|state| {
            let applied = state.applied().map_or(0, |log_id| log_id.index);
            match state.open(open).map(|open| open.holder()) {
                None => Whose::Unknown,
                Some(Some(owner)) if owner.node == self.node => Whose::Mine,
                Some(Some(owner)) => Whose::Others(owner.node, applied),
                // This node is one that is up, so there is one.
                Some(None) => Whose::Others(keeper_of_orphans(state).unwrap_or(self.node), applied),
            }
        })
    }

    /// Whether others may have been granted opens that this node has not heard of yet.
    fn may_have_missed(&self) -> bool {
        let until = *self.lease.until().borrow();
        let heard_at = until.and_then(|until| until.checked_sub(self.timing.self_fence_after()));
        heard_at.is_none_or(|heard_at| {
            heard_at.elapsed() > self.timing.heartbeat_interval() * HEARTBEATS_MISSED_MAX
        })
    }

    /// Waits until this node has applied all that was committed before the call; false if there is no answer.
    async fn catch_up(&self) -> bool {
        let smbd = self.smbd().clone();
        match smbd {
            Some(smbd) => smbd.capture.catch_up().await.is_ok(),
            None => false,
        }
    }

    fn in_use(&self) -> MutexGuard<'_, BTreeSet<FileKey>> {
        self.in_use.lock().expect("no holder of this lock can panic")
    }

    fn smbd(&self) -> MutexGuard<'_, Option<Smbd>> {
        self.smbd.lock().expect("no holder of this lock can panic")
    }
}

impl Smbd {
    /// Whether an open lives here still, with all its records.
    fn has(&self, open: DurableFileId) -> bool {
        !is_doomed(self.main_process) && self.capture.has(open)
    }
}

/// The node that puts back what dead nodes of a CTDB cluster have left, and removes it when its time is up: one does it for
/// all, and if that one dies too the next one goes on. It is the one that has been up for longest, so that nobody who comes
/// takes over from one that is in the midst of it.
#[must_use]
pub(super) fn keeper_of_orphans(state: &State) -> Option<NodeId> {
    let up =
        state.nodes().filter(|(_, node)| node.arbiter == Arbiter::SmbCluster && node.state == NodeState::Up);
    up.min_by_key(|(_, node)| node.registered_at).map(|(id, _)| id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use statedb::{Command, Instance, Limits, LogId, Timestamp};

    #[test]
    fn nobody_who_comes_takes_over_from_the_keeper_of_orphans() {
        let mut state = State::new(Limits::DEFAULT);
        let mut index = 0..;
        let mut start = |state: &mut State, node: u64, instance: u8| {
            let (node, instance) = (NodeId(node), Instance([instance; 16]));
            let start = Command::RegisterNode { node, instance, arbiter: Arbiter::SmbCluster };
            let index = index.next().expect("there is no end");
            state.apply(LogId { term: 1, index }, Timestamp(0), &start);
        };
        assert_eq!(keeper_of_orphans(&state), None);
        start(&mut state, 2, 1);
        start(&mut state, 1, 2);
        start(&mut state, 3, 3);
        assert_eq!(keeper_of_orphans(&state), Some(NodeId(2)));
        start(&mut state, 2, 4);
        assert_eq!(keeper_of_orphans(&state), Some(NodeId(1)));
        start(&mut state, 3, 5);
        assert_eq!(keeper_of_orphans(&state), Some(NodeId(1)));
    }
}
