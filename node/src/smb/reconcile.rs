//! Keeps the orphaned opens in this node's Samba databases, and only those that belong there.
//!
//! Declarative: the replicated state says which opens wait for their clients, and for each of them whether this
//! node should hold its records. Whatever changes, [`Reconciler`] compares what should be there with what it knows
//! to be there, and stores or removes the difference. A tree connect waits for it ([`Reconciled::through`]).
//!
//! Only records of opens that are nobody's are stored or removed. What `smbd` owns, `smbd` changes.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use samba::databases::{LocalDatabases, Orphan, PlaceError};
use samba::file_stat::StatError;
use samba::records::{Holder, OpenGlobal};
use samba::{MaterialiseError, OpenImage};
use statedb::{
    Arbiter, DeletePending, DeleteState, DurableFileId, FileKey, NodeState, OpenDescription, OpenState,
    Owner, ShareName, State,
};
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::deletion::{self, Deletion};
use super::left_behind::LeftBehind;
use super::look::keeper_of_orphans;
use super::service::Settings;
use super::tracker::Tracker;
use crate::lease::ServiceLease;
use crate::raft::{News, RaftNode};
use crate::telemetry::chain;

/// Between two attempts at records that could not be stored: a file system that is still being mounted, a
/// database that `smbd` is just making.
const RETRY_AFTER: Duration = Duration::from_millis(50);

/// How long one record may be locked by `smbd`. It holds such a lock while it waits for the cluster, so this is
/// longer than an election; the work is done on a thread of its own and is tried again.
const RECORD_LOCKED_AT_MOST: Duration = Duration::from_secs(2);

/// Where this node should have an open.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// In its databases, as an orphan.
    Orphan(Box<OpenDescription>),
    /// In its databases, as an orphan, where a dead process of `smbd` has left it as its own.
    LeftBehind(Box<OpenDescription>),
    /// In its databases, as one of `smbd`'s own.
    Smbd {
        /// Its file.
        file: FileKey,
        /// Whether `smbd` keeps it for a client that is away.
        is_disconnected: bool,
    },
    /// Not here: another node has it, or serves its share.
    Elsewhere,
    /// Nowhere.
    Gone,
}

/// What this node's databases hold of an open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    file: FileKey,
    how: How,
}

/// As whose an open is in this node's databases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// As nobody's; placed by this reconciler.
    Orphan,
    /// As that of a process of `smbd`, which will delete it.
    Connected,
    /// As one that `smbd` keeps for its client. If its time is up elsewhere first, nobody deletes it.
    Disconnected,
}

/// How far this node's databases agree with the replicated state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Progress {
    /// Everything up to this entry of the log has been looked at.
    index: Option<u64>,
    /// Orphans that could not be placed yet, and their shares.
    behind: BTreeMap<DurableFileId, ShareName>,
    /// Shares with a file that is to be deleted here before anybody sees it.
    deleting: BTreeSet<ShareName>,
}

/// What the databases of an incarnation hold of its opens when it is first met: something only if this sidecar was
/// restarted and `smbd` was not.
#[derive(Clone, Debug)]
pub struct Found {
    /// The incarnation.
    pub incarnation: Owner,
    /// The records of the opens that clients have through it.
    pub opens: Vec<OpenGlobal>,
}

/// Waits for the reconciler. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Reconciled(watch::Receiver<Progress>);

impl Reconciled {
    /// Resolves when the orphans of a share, or of all, are in place as the entry at `index` left them, and its files deleted
    /// that should not be there any more. Never, if that cannot be done: the caller bounds the wait.
    pub async fn through(&self, share: Option<&ShareName>, index: u64) {
        let mut progress = self.0.clone();
        let is_meant = |of: &ShareName| share.is_none_or(|share| share == of);
        let reached = progress.wait_for(|progress| {
            progress.index.is_some_and(|done| done >= index)
                && !progress.behind.values().any(is_meant)
                && !progress.deleting.iter().any(is_meant)
        });
        if reached.await.is_err() {
            // The reconciler has ended with this process; what waits here ends too, with its bound.
            std::future::pending().await
        }
    }

    /// Resolves when an orphan is in place as the entry at `index` left it. Never, if that cannot be done: the caller
    /// bounds the wait.
    pub async fn placed(&self, orphan: DurableFileId, index: u64) {
        let mut progress = self.0.clone();
        let reached = progress.wait_for(|progress| {
            progress.index.is_some_and(|done| done >= index) && !progress.behind.contains_key(&orphan)
        });
        if reached.await.is_err() {
            std::future::pending().await
        }
    }
}

/// Where the reconciler reports what the cluster has to hear of.
#[derive(Debug)]
pub struct Reports {
    /// Orphans that cannot be placed because somebody has their files whom they would have kept out: they are to be
    /// closed.
    pub contradicted: mpsc::Sender<DurableFileId>,
    /// Files that were deleted for a dead `smbd`.
    pub deleted: mpsc::Sender<FileKey>,
    /// Answered when this node has applied all that was committed before.
    pub catch_up: mpsc::Sender<oneshot::Sender<()>>,
}

/// The task that does it.
pub struct Reconciler {
    raft: Arc<RaftNode>,
    tracker: Arc<Tracker>,
    lease: Arc<ServiceLease>,
    left_behind: Arc<LeftBehind>,
    settings: Arc<Settings>,
    progress: watch::Sender<Progress>,
    reports: Reports,
    found: watch::Sender<Option<Found>>,
    /// The incarnation whose databases `held` is about. Another one starts with empty databases.
    incarnation: Option<Owner>,
    /// Whether these were looked at already.
    has_looked: bool,
    held: BTreeMap<DurableFileId, Held>,
    /// Up to which entry it is known what has changed. The state may be ahead of that: a pass that looks at what has
    /// changed has not seen to what is in news that are still on their way.
    heard: Option<u64>,
    /// The incarnations that are up; looked at under ctdb only.
    up: BTreeSet<Owner>,
    /// Orphans that could not be placed or removed, which was said once; it is tried many times a second.
    complained_of: BTreeSet<DurableFileId>,
    /// Byte-range locks of dead processes, which nobody else removes.
    dead_locks: DeadLocks,
    /// Files that were seen to, of which the cluster does not know that yet.
    settled: BTreeSet<FileKey>,
    /// Files that are to be deleted when somebody has closed them.
    in_use: BTreeSet<FileKey>,
}

/// What is to be done, worked out of one moment of the state.
#[derive(Debug, Default)]
struct Plan {
    index: Option<u64>,
    place: Vec<OpenDescription>,
    remove: Vec<(DurableFileId, FileKey)>,
    delete: Vec<(FileKey, DeletePending)>,
}

impl Reconciler {
    /// A reconciler for the databases of the `smbd` beside this node.
    #[must_use]
    pub fn new(
        raft: Arc<RaftNode>,
        tracker: Arc<Tracker>,
        lease: Arc<ServiceLease>,
        left_behind: Arc<LeftBehind>,
        settings: Arc<Settings>,
        reports: Reports,
    ) -> Self {
        Self {
            raft,
            tracker,
            lease,
            left_behind,
            settings,
            progress: watch::Sender::default(),
            reports,
            found: watch::Sender::default(),
            incarnation: None,
            has_looked: false,
            held: BTreeMap::new(),
            heard: None,
            up: BTreeSet::new(),
            complained_of: BTreeSet::new(),
            dead_locks: DeadLocks::None,
            settled: BTreeSet::new(),
            in_use: BTreeSet::new(),
        }
    }

    /// What waits for it.
    #[must_use]
    pub fn reconciled(&self) -> Reconciled {
        Reconciled(self.progress.subscribe())
    }

    /// What it finds in the databases of each incarnation, before it changes anything there.
    #[must_use]
    pub fn found(&self) -> watch::Receiver<Option<Found>> {
        self.found.subscribe()
    }

    /// Reconciles whatever changes, until `stop` is cancelled.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut news = self.raft.news();
        let mut incarnation = self.lease.owner();
        let left_behind = Arc::clone(&self.left_behind);
        // `None`: everything may have changed.
        let mut changed = None;
        loop {
            let incarnation_now = *incarnation.borrow_and_update();
            if incarnation_now != self.incarnation {
                self.incarnation = incarnation_now;
                self.held.clear();
                self.complained_of.clear();
                self.settled.clear();
                self.has_looked = false;
                // Somebody may have died while there was no sidecar.
                self.dead_locks = DeadLocks::MayBe;
                // Nobody passes the gate before the new databases have been looked at.
                self.progress.send_replace(Progress::default());
                changed = None;
            }
            if !self.has_looked && !self.look_around().await {
                tokio::select! {
                    () = tokio::time::sleep(RETRY_AFTER) => continue,
                    () = stop.cancelled() => return,
                }
            }
            let left = self.reconcile(changed.take()).await;
            let is_to_be_tried_again = left.is_anything();
            let retry = async {
                if is_to_be_tried_again {
                    tokio::time::sleep(RETRY_AFTER).await;
                } else {
                    std::future::pending().await
                }
            };
            changed = Some(left.opens);
            tokio::select! {
                heard = news.recv() => {
                    if matches!(heard, Err(RecvError::Closed)) {
                        return;
                    }
                    self.hear(heard.ok(), &mut changed);
                    // What has come meanwhile is done in the same pass.
                    loop {
                        match news.try_recv() {
                            Ok(heard) => self.hear(Some(heard), &mut changed),
                            Err(TryRecvError::Lagged(_)) => self.hear(None, &mut changed),
                            Err(TryRecvError::Empty | TryRecvError::Closed) => break,
                        }
                    }
                }
                changed = incarnation.changed() => if changed.is_err() { return },
                () = left_behind.any_locks_left() => self.dead_locks = DeadLocks::MayBe,
                () = retry => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Notes which opens some news are about; `None` stands for news that were missed. From then on everything may have
    /// changed.
    fn hear(&mut self, news: Option<Arc<News>>, changed: &mut Option<BTreeSet<DurableFileId>>) {
        match news.as_deref() {
            Some(News::Applied { upto, changes, .. }) => {
                self.heard = self.heard.max(upto.map(|log_id| log_id.index));
                if let Some(changed) = changed {
                    changed.extend(changes.opens.iter().copied());
                    changed.extend(self.opens_of(&changes.shares));
                }
            }
            Some(News::Replaced) | None => *changed = None,
        }
    }

    /// Looks at what the databases of a new incarnation hold. Nothing, unless this sidecar was restarted: then clients
    /// may have left, processes may have died and deadlines may have passed meanwhile. False if it has to be tried again.
    async fn look_around(&mut self) -> bool {
        let Some(incarnation) = self.incarnation else {
            self.has_looked = true;
            return true;
        };
        let own: Vec<(DurableFileId, bool)> = self.raft.read(|state| {
            let own = state.opens().filter(|open| open.holder() == Some(incarnation));
            own.map(|open| (open.description.durable_file_id, open.deadline().is_some())).collect()
        });
        let has_own = !own.is_empty();
        let looked = self.on_databases(move |databases| {
            let records = own.into_iter().map(|(id, is_disconnected)| {
                Ok::<_, PlaceError>((databases.open_global(id)?, is_disconnected))
            });
            let records = records.collect::<Result<Vec<_>, _>>()?;
            Ok::<_, PlaceError>((records, databases.disconnected_opens()?))
        });
        let (records, disconnected) = match looked.await {
            Some(Ok(looked)) => looked,
            Some(Err(error)) => {
                warn!(error = %chain(&error), "the records of this smbd's opens cannot be read, trying again");
                return false;
            }
            // An smbd that has just started has nothing yet to be learned about.
            None if !has_own => (Vec::new(), Vec::new()),
            None => return false,
        };
        let mut opens = Vec::new();
        for (record, is_disconnected) in records {
            let Some(record) = record else { continue };
            match record.holder() {
                // Lost by a process that has died alone, and not rewritten yet.
                Holder::Process(_) if is_disconnected => self.left_behind.add(record.open_persistent_id),
                _ if is_disconnected => {}
                _ => opens.push(record),
            }
        }
        if !self.settings.is_clustered() {
            self.held = self.leftovers(disconnected);
        }
        self.has_looked = true;
        self.found.send_replace(Some(Found { incarnation, opens }));
        true
    }

    /// The opens that the databases still keep for clients although the cluster knows nothing of them any more.
    fn leftovers(&self, disconnected: Vec<OpenGlobal>) -> BTreeMap<DurableFileId, Held> {
        let held = disconnected.into_iter().filter_map(|record| {
            let cookie = record.backend_cookie?;
            let is_protected = self.settings.protects(&cookie.service_path);
            is_protected
                .then_some((record.open_persistent_id, Held { file: cookie.file, how: How::Disconnected }))
        });
        held.collect()
    }

    fn opens_of(&self, shares: &BTreeSet<ShareName>) -> Vec<DurableFileId> {
        let of_share = |state: &State, share| {
            state.opens_of_share(share).map(|open| open.description.durable_file_id).collect::<Vec<_>>()
        };
        self.raft.read(|state| shares.iter().flat_map(|share| of_share(state, share)).collect())
    }

    /// One pass. Returns what should be tried again.
    async fn reconcile(&mut self, changed: Option<BTreeSet<DurableFileId>>) -> Left {
        let mut plan = self.plan(changed);
        let Behind { unplaced, unremoved } = if plan.place.is_empty() && plan.remove.is_empty() {
            Behind::default()
        } else {
            self.execute(std::mem::take(&mut plan.place), std::mem::take(&mut plan.remove)).await
        };
        self.delete(&plan.delete).await;
        let is_left = |file| !self.settled.contains(file);
        let files = plan.delete.iter().any(|(file, _)| is_left(file));
        // Whoever has such a file open need not fear that somebody else comes to it.
        let deleting = plan.delete.iter().filter(|(file, _)| !self.in_use.contains(file));
        let deleting = deleting.map(|(_, pending)| pending.share.clone()).collect();
        let opens = unplaced.keys().copied().chain(unremoved).collect();
        self.progress.send_replace(Progress { index: plan.index, behind: unplaced, deleting });
        // Nobody waits for this.
        if self.dead_locks != DeadLocks::None && self.incarnation.is_some() {
            self.dead_locks = self.remove_dead_locks().await;
        }
        let dead_locks = self.dead_locks != DeadLocks::None && self.incarnation.is_some();
        Left { opens, files, dead_locks }
    }

    /// Removes what processes have left of byte-range locks that died. Returns what may still be there.
    async fn remove_dead_locks(&mut self) -> DeadLocks {
        // Of an open that this node has not heard of yet a lock is not left over.
        if self.settings.is_clustered() && !self.catch_up().await {
            return self.dead_locks;
        }
        match self.on_databases(LocalDatabases::remove_locks_of_the_dead).await {
            None => self.dead_locks,
            Some(Ok(())) => DeadLocks::None,
            // It is the same the next time.
            Some(Err(error @ PlaceError::Record(_))) => {
                warn!(error = %chain(&error), "byte-range locks of processes that have died may stay, and cost others their oplocks");
                DeadLocks::None
            }
            Some(Err(error)) => {
                if self.dead_locks != DeadLocks::Stubborn {
                    warn!(error = %chain(&error), "byte-range locks of processes that have died cannot be removed yet, trying again");
                }
                DeadLocks::Stubborn
            }
        }
    }

    /// Deletes what is this node's to delete.
    async fn delete(&mut self, due: &[(FileKey, DeletePending)]) {
        let is_due = |file: &FileKey| due.iter().any(|(due, _)| due == file);
        self.settled.retain(is_due);
        self.in_use.retain(is_due);
        let to_do: Vec<_> = due.iter().filter(|(file, _)| !self.settled.contains(file)).cloned().collect();
        if to_do.is_empty() {
            return;
        }
        // Who has a file open is told by the opens that this node has heard of.
        if self.settings.is_clustered() && !self.catch_up().await {
            return;
        }
        let done = self.on_databases(move |databases| {
            let delete = |(file, pending): (FileKey, DeletePending)| {
                (file, deletion::delete(databases, file, &pending))
            };
            to_do.into_iter().map(delete).collect::<Vec<_>>()
        });
        for (file, what) in done.await.unwrap_or_default() {
            match what {
                Deletion::Settled if self.reports.deleted.try_send(file).is_ok() => {
                    self.settled.insert(file);
                }
                Deletion::Open => drop(self.in_use.insert(file)),
                // Tried again.
                Deletion::Settled | Deletion::Unknown => {}
            }
        }
    }

    fn plan(&mut self, changed: Option<BTreeSet<DurableFileId>>) -> Plan {
        let raft = Arc::clone(&self.raft);
        raft.read(|state| {
            let has_lost_records = self.settings.is_clustered() && self.nodes_were_lost(state);
            let all = || {
                let known = state.opens().map(|open| open.description.durable_file_id);
                known.chain(self.held.keys().copied()).collect()
            };
            let changed = changed.filter(|_| !has_lost_records);
            if changed.is_none() {
                self.heard = state.applied().map(|log_id| log_id.index);
            }
            let changed: BTreeSet<_> = changed.unwrap_or_else(all);
            let mut plan = Plan { index: self.heard, ..Plan::default() };
            let is_ours = |pending: &DeletePending| {
                pending.arbiter != Arbiter::Cluster
                    && self.incarnation.is_some()
                    && pending.state == DeleteState::Due(self.incarnation)
            };
            let due = state.deletes_pending().filter(|(_, pending)| is_ours(pending));
            plan.delete.extend(due.map(|(file, pending)| (file, pending.clone())));
            for id in changed {
                match state.open(id) {
                    Some(open) => {
                        self.tracker.track(&open.description);
                        self.tracker.set_elsewhere(id, open.holder() != self.incarnation);
                    }
                    None => {
                        self.tracker.forget(id);
                        self.left_behind.settle(id);
                    }
                }
                if self.incarnation.is_some() {
                    self.plan_open(state, id, &mut plan);
                }
            }
            plan
        })
    }

    /// Whether a node of the ctdb cluster has gone. With it ctdb loses the records that it used last, whosever they were: all
    /// that should be there has to be looked at again. With one that comes nothing is lost, and nobody's task changes
    /// ([`keeper_of_orphans`]).
    fn nodes_were_lost(&mut self, state: &State) -> bool {
        let up = state.nodes().filter(|(_, node)| node.state == NodeState::Up);
        let up = up.map(|(node, known)| Owner { node, incarnation: known.incarnation }).collect();
        let before = std::mem::replace(&mut self.up, up);
        if before.is_subset(&self.up) {
            return false;
        }
        self.dead_locks = DeadLocks::MayBe;
        // Still to be removed when their time is up, and placed again before.
        let placed = self.held.values_mut().filter(|held| held.how == How::Orphan);
        placed.for_each(|held| held.how = How::Disconnected);
        let kept =
            state.opens().filter(|open| open.deadline().is_some() && open.holder() == self.incarnation);
        kept.for_each(|open| self.left_behind.add(open.description.durable_file_id));
        true
    }

    fn plan_open(&mut self, state: &State, id: DurableFileId, plan: &mut Plan) {
        let held = self.held.get(&id).copied();
        match (self.place_of(state, id), held) {
            (Place::Orphan(_) | Place::LeftBehind(_), Some(Held { how: How::Orphan, .. })) => {}
            (Place::Orphan(description), Some(held)) if !self.settings.is_clustered() => {
                plan.remove.push((id, held.file));
                plan.place.push(*description);
            }
            (Place::Orphan(description), _) | (Place::LeftBehind(description), _) => {
                plan.place.push(*description);
            }
            (Place::Smbd { file, is_disconnected }, _) => {
                let how = if is_disconnected { How::Disconnected } else { How::Connected };
                self.held.insert(id, Held { file, how });
            }
            // What smbd has for a client, smbd deletes.
            (Place::Gone, Some(Held { how: How::Connected, .. })) => {
                self.held.remove(&id);
            }
            // The record is the same for all nodes of a ctdb cluster: another one has it or looks after it now.
            (Place::Elsewhere, Some(_)) if self.settings.is_clustered() => drop(self.held.remove(&id)),
            (Place::Gone | Place::Elsewhere, Some(held)) => plan.remove.push((id, held.file)),
            (Place::Gone | Place::Elsewhere, None) => {}
        }
    }

    fn place_of(&self, state: &State, id: DurableFileId) -> Place {
        let Some(open) = state.open(id) else { return Place::Gone };
        match (open.state, open.holder()) {
            (OpenState::Disconnected { .. }, Some(holder))
                if Some(holder) == self.incarnation && self.left_behind.contains(id) =>
            {
                Place::LeftBehind(Box::new(open.description.clone()))
            }
            (state, Some(holder)) if Some(holder) == self.incarnation => Place::Smbd {
                file: open.description.file,
                is_disconnected: matches!(state, OpenState::Disconnected { .. }),
            },
            (OpenState::Disconnected { keeper: None, .. }, _) if self.settings.is_clustered() => {
                let is_ours = keeper_of_orphans(state) == self.incarnation.map(|owner| owner.node);
                if is_ours { Place::Orphan(Box::new(open.description.clone())) } else { Place::Elsewhere }
            }
            (OpenState::Disconnected { keeper: None, .. }, _) => {
                let serving = state.serving_node(&open.description.share).map(|serving| serving.owner);
                if serving.is_none() || serving == self.incarnation {
                    Place::Orphan(Box::new(open.description.clone()))
                } else {
                    Place::Elsewhere
                }
            }
            _ => Place::Elsewhere,
        }
    }

    /// Carries a plan out, on a thread that may block.
    async fn execute(
        &mut self,
        place: Vec<OpenDescription>,
        remove: Vec<(DurableFileId, FileKey)>,
    ) -> Behind {
        let shares: BTreeMap<_, _> =
            place.iter().map(|open| (open.durable_file_id, open.share.clone())).collect();
        let to_remove = remove.iter().map(|(id, _)| *id).collect();
        // What this node does not know of counts as something that has ended.
        if self.settings.is_clustered() && !place.is_empty() && !self.catch_up().await {
            return Behind { unplaced: shares, unremoved: to_remove };
        }
        let done = self.on_databases(move |databases| {
            let removed =
                remove.into_iter().map(|(id, file)| (id, databases.remove(id, file).map(drop))).collect();
            Done { removed, placed: place_all(databases, &place) }
        });
        let Some(done) = done.await else { return Behind { unplaced: shares, unremoved: to_remove } };
        let mut unremoved = BTreeSet::new();
        for (id, removed) in done.removed {
            match removed {
                Ok(()) => {
                    self.complained_of.remove(&id);
                    self.held.remove(&id);
                }
                // It is the same the next time.
                Err(error @ (PlaceError::Record(_) | PlaceError::Materialise(_))) => {
                    error!(durable_file_id = %id, error = %chain(&error), "an orphan's records cannot be removed");
                }
                Err(error) => {
                    if self.complained_of.insert(id) {
                        warn!(durable_file_id = %id, error = %chain(&error), "an orphan's records cannot be removed yet, trying again");
                    }
                    unremoved.insert(id);
                }
            }
        }
        // Its client may have come back meanwhile, to another node.
        if done.placed.iter().any(|(_, _, placed)| matches!(placed, Placed::Never(_))) {
            let _ = self.catch_up().await;
        }
        let mut unplaced = BTreeMap::new();
        for (id, file, placed) in done.placed {
            let of_its_share = || shares.get(&id).map(|share| (id, share.clone()));
            match placed {
                Placed::Here => {
                    self.complained_of.remove(&id);
                    info!(durable_file_id = %id, "an orphan waits for its client here");
                    self.held.insert(id, Held { file, how: How::Orphan });
                }
                Placed::Contradicted => {
                    warn!(durable_file_id = %id, "somebody has come to the file of an orphan before it was in place, and contradicts it");
                    if self.reports.contradicted.try_send(id).is_err() {
                        unplaced.extend(of_its_share());
                    }
                }
                Placed::Ended => {
                    self.complained_of.remove(&id);
                    debug!(durable_file_id = %id, "an orphan has ended before it was in place");
                }
                Placed::Never(why) if !self.is_orphan(id) => {
                    debug!(durable_file_id = %id, error = why, "an orphan has been claimed before it was in place");
                }
                // It stays with the cluster until its time is up; this node cannot give it back.
                Placed::Never(why) => {
                    error!(durable_file_id = %id, error = why, "an orphan cannot be given back by this node")
                }
                Placed::NotYet(why) => {
                    if self.complained_of.insert(id) {
                        warn!(durable_file_id = %id, error = why, "an orphan cannot be placed yet, trying again");
                    }
                    unplaced.extend(of_its_share());
                }
                Placed::NotTried => {
                    unplaced.extend(of_its_share());
                }
            }
        }
        Behind { unplaced, unremoved }
    }
}

impl Reconciler {
    fn is_orphan(&self, id: DurableFileId) -> bool {
        let state = self.raft.read(|state| state.open(id).map(|open| open.state));
        matches!(state, Some(OpenState::Disconnected { keeper: None, .. }))
    }

    /// Waits until this node has applied all that was committed by now; false if that takes too long.
    async fn catch_up(&self) -> bool {
        let (has_caught_up, caught_up) = oneshot::channel();
        let wait =
            async { self.reports.catch_up.send(has_caught_up).await.is_ok() && caught_up.await.is_ok() };
        tokio::time::timeout(RECORD_LOCKED_AT_MOST, wait).await.unwrap_or(false)
    }

    /// Does something with the databases, on a thread that may block. `None` if they cannot be opened yet.
    async fn on_databases<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut LocalDatabases) -> R + Send + 'static,
    ) -> Option<R> {
        let settings = Arc::clone(&self.settings);
        let raft = Arc::clone(&self.raft);
        let work = move || {
            // Open only as long as it takes: a handle that is kept would keep the databases of an smbd that has
            // ended from being emptied by its successor.
            LocalDatabases::open(
                &settings.libtdb,
                &settings.location(),
                settings.layout,
                RECORD_LOCKED_AT_MOST,
            )
            .map(|databases| {
                let is_known = move |id| raft.read(|state| state.open(id).is_some());
                work(&mut databases.knowing(is_known, move |path| settings.protects(path)))
            })
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(Ok(result)) => Some(result),
            Ok(Err(error)) => {
                debug!(error = %chain(&error), "the databases of smbd cannot be opened yet");
                None
            }
            Err(error) => {
                error!(%error, "work on the databases of smbd was cut short");
                None
            }
        }
    }
}

/// What a pass could not do.
struct Left {
    /// The opens whose records are not as they should be.
    opens: BTreeSet<DurableFileId>,
    /// Whether a file is still to be deleted.
    files: bool,
    /// Whether byte-range locks of dead processes may still be there.
    dead_locks: bool,
}

impl Left {
    fn is_anything(&self) -> bool {
        !self.opens.is_empty() || self.files || self.dead_locks
    }
}

/// What of a plan could not be carried out.
#[derive(Default)]
struct Behind {
    /// Orphans that are not in place yet, with their shares.
    unplaced: BTreeMap<DurableFileId, ShareName>,
    /// Those whose records are still there.
    unremoved: BTreeSet<DurableFileId>,
}

/// Whether byte-range locks of dead processes are to be looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DeadLocks {
    None,
    MayBe,
    /// They could not be removed, which was said.
    Stubborn,
}

#[derive(Debug)]
struct Done {
    removed: Vec<(DurableFileId, Result<(), PlaceError>)>,
    placed: Vec<(DurableFileId, FileKey, Placed)>,
}

#[derive(Debug)]
enum Placed {
    Here,
    NotYet(String),
    Never(String),
    /// Somebody has the file whom the orphan would have kept out, or been broken for.
    Contradicted,
    /// It was closed since it was planned to place it.
    Ended,
    /// The databases could not be used for one before it, and that one says why.
    NotTried,
}

fn place_all(
    databases: &mut LocalDatabases,
    opens: &[OpenDescription],
) -> Vec<(DurableFileId, FileKey, Placed)> {
    let mut placed = Vec::with_capacity(opens.len());
    let mut images = Vec::with_capacity(opens.len());
    for open in opens {
        // Its dead node may have run another version of Samba.
        match OpenImage::decode_for(databases.layout(), &open.image) {
            Ok(image) => images.push(image),
            Err(error) => {
                placed.push((open.durable_file_id, open.file, Placed::Never(chain(&error).to_string())));
            }
        }
    }
    let disconnected_at = SystemTime::now();
    let orphans: Vec<_> = images.iter().map(|image| Orphan { image, disconnected_at }).collect();
    for (image, result) in images.iter().zip(databases.materialise(&orphans)) {
        let what = match result {
            Ok(()) => Placed::Here,
            Err(PlaceError::Contradicted { .. }) => Placed::Contradicted,
            Err(PlaceError::Ended { .. }) => Placed::Ended,
            Err(PlaceError::NotTried) => Placed::NotTried,
            Err(error) if is_final(&error, image) => Placed::Never(chain(&error).to_string()),
            Err(error) => Placed::NotYet(chain(&error).to_string()),
        };
        placed.push((image.durable_file_id(), image.file(), what));
    }
    placed
}

/// Whether trying again cannot help.
fn is_final(error: &PlaceError, image: &OpenImage) -> bool {
    match error {
        PlaceError::Materialise(MaterialiseError::Conflict { .. })
        | PlaceError::File { source: StatError::Replaced { .. }, .. } => true,
        // The file is gone if its file system is there without it. Otherwise that is still to be mounted.
        PlaceError::File { source: StatError::Io { source, .. }, .. }
            if source.kind() == ErrorKind::NotFound =>
        {
            let share = std::fs::metadata(&image.cookie().service_path);
            share.is_ok_and(|share| share.dev() == image.file().device)
        }
        _ => false,
    }
}
