//! The tables, and [`State::apply`]: dispatch and bookkeeping only. The rules are beside what they are
//! about, in `node`, `share`, `open` and `reclaim`.

use std::collections::{BTreeMap, BTreeSet};

use super::breaks::{Break, BreakTable, BreakTarget};
use super::command::{Command, Proposer, Request};
use super::delete_on_close::DeletePending;
use super::event::{Event, EventKind};
use super::ids::{
    ClientGuid, CreateGuid, DurableFileId, FileKey, LeaseId, LogId, NodeId, Owner, SessionId, ShareName,
};
use super::limits::Limits;
use super::node::Node;
use super::open::{Open, OpenState};
use super::open_table::OpenTable;
use super::outcome::{Outcome, Rejection};
use super::share::ServingNode;
use super::time::Timestamp;
use super::waiting::{WaitingRequest, WaitingTable};

/// What has changed since somebody last looked, for who keeps a copy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Opens that were granted, changed or closed.
    pub opens: BTreeSet<DurableFileId>,
    /// Nodes that registered, went down, or were answered.
    pub nodes: BTreeSet<NodeId>,
    /// Shares that got or lost a serving node.
    pub shares: BTreeSet<ShareName>,
    /// Breaks that began or ended.
    pub breaks: BTreeSet<BreakTarget>,
    /// Requests that began or ended to wait, by their place in the log.
    pub waiting: BTreeSet<u64>,
    /// Files whose deletion was decided, became due or was done.
    pub deletes: BTreeSet<FileKey>,
}

/// Events are counted from here, so that who has seen none can say that 0 was the last.
const FIRST_EVENT: u64 = 1;

/// Everything the cluster has agreed on.
#[derive(Clone, Debug)]
pub struct State {
    pub(super) limits: Limits,
    applied: Option<LogId>,
    pub(super) now: Timestamp,
    pub(super) nodes: BTreeMap<NodeId, Node>,
    pub(super) shares: BTreeMap<ShareName, ServingNode>,
    pub(super) opens: OpenTable,
    pub(super) breaks: BreakTable,
    pub(super) waiting: WaitingTable,
    pub(super) deletes: BTreeMap<FileKey, DeletePending>,
    next_event: u64,

    // Not part of the state's value: readers' bookmarks.
    pub(super) changes: Changes,
    events: Vec<Event>,

    /// Empty between commands: the files whose waiting requests are looked at again at the end of this one.
    pub(super) released: BTreeSet<FileKey>,
}

impl PartialEq for State {
    /// Replicas are equal when what they agreed on is; who has looked at what does not matter.
    fn eq(&self, other: &Self) -> bool {
        self.limits == other.limits
            && self.applied == other.applied
            && self.now == other.now
            && self.nodes == other.nodes
            && self.shares == other.shares
            && self.opens == other.opens
            && self.breaks == other.breaks
            && self.waiting == other.waiting
            && self.deletes == other.deletes
            && self.next_event == other.next_event
    }
}

impl Eq for State {}

impl State {
    /// The state before the first entry of the log.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            applied: None,
            now: Timestamp::default(),
            nodes: BTreeMap::new(),
            shares: BTreeMap::new(),
            opens: OpenTable::default(),
            breaks: BreakTable::default(),
            waiting: WaitingTable::default(),
            deletes: BTreeMap::new(),
            next_event: FIRST_EVENT,
            changes: Changes::default(),
            events: Vec::new(),
            released: BTreeSet::new(),
        }
    }

    /// Applies one committed command and returns what its proposer should be told.
    ///
    /// Every replica runs this, so the result depends on `self` and the arguments alone. A refusal is an
    /// [`Outcome`]: the entry still counts as applied. There is no error path.
    ///
    /// # Panics
    ///
    /// If the entry does not follow the one applied before it: a replica that disagrees with its own log
    /// must not acknowledge the next entry.
    pub fn apply(&mut self, log_id: LogId, proposed_at: Timestamp, command: &Command) -> Outcome {
        let next = self.applied.map_or(0, |applied| applied.index + 1);
        assert_eq!(log_id.index, next, "entry applied out of order");
        self.applied = Some(log_id);

        // A new leader counts on from the newest applied time with its own monotonic clock. Cluster time
        // never goes back, so a deadline that has passed stays passed on every replica.
        self.now = self.now.max(proposed_at);

        let decided = match command {
            Command::RegisterNode { node, instance, arbiter } => {
                self.register_node(*node, *instance, *arbiter)
            }
            Command::NodeDown { node, incarnation } => Ok(self.node_down(*node, *incarnation)),
            Command::ExpireOpens => Ok(self.expire_opens()),
            Command::FromSmbNode { proposer, request } => self.answer(proposer, request),
        };
        self.decide_released();
        decided.unwrap_or_else(Outcome::Rejected)
    }

    /// Counts an entry that changes nothing here (a blank or a membership entry), so that `applied` has no
    /// holes.
    ///
    /// # Panics
    ///
    /// If the entry is not newer than the one applied before it.
    pub fn skip(&mut self, log_id: LogId) {
        let applied = self.applied.replace(log_id);
        assert!(applied.is_none_or(|applied| applied.index < log_id.index), "entry skipped out of order");
    }

    /// Fencing and exactly-once; the request itself is decided below.
    fn answer(&mut self, proposer: &Proposer, request: &Request) -> Result<Outcome, Rejection> {
        let owner = proposer.owner;
        let outstanding_max = self.limits.outstanding_max;
        let node = self.live_node(owner)?;
        if let Some(first_outcome) = node.answered.get(&proposer.sequence) {
            return Ok(first_outcome.clone());
        }
        node.advance_window(proposer, outstanding_max)?;

        let outcome = self.decide(proposer, request).unwrap_or_else(Outcome::Rejected);

        let node = self.live_node(owner).expect("a request does not fence its proposer");
        node.answered.insert(proposer.sequence, outcome.clone());
        self.changes.nodes.insert(owner.node);
        Ok(outcome)
    }

    fn decide(&mut self, proposer: &Proposer, request: &Request) -> Result<Outcome, Rejection> {
        let Proposer { owner, sequence, .. } = *proposer;
        self.check_arbiter(owner, request)?;
        match request {
            Request::Create(create) => self.create(owner, sequence, create),
            Request::Cancel { sequence } => Ok(self.cancel(owner, *sequence)),
            Request::AckOplockBreak { open, level } => self.ack_oplock_break(owner, *open, *level),
            Request::AckLeaseBreak { lease, state } => self.ack_lease_break(owner, *lease, *state),
            Request::Lock(lock) => self.lock(owner, lock),
            Request::Operate { open, operation } => self.operate(owner, sequence, *open, operation),
            Request::Note(note) => self.note(owner, note),
            Request::RequestResiliency { open, timeout, dialect } => {
                self.request_resiliency(owner, *open, *timeout, *dialect)
            }
            Request::EndSession(session) => Ok(self.end_session(owner, *session)),
            Request::ReplaceSession { previous, user } => Ok(self.replace_session(owner, *previous, user)),
            Request::EndTreeConnect { session, share } => Ok(self.end_tree_connect(owner, *session, share)),
            Request::FileDeleted(file) => self.file_deleted(owner, *file),
            Request::Grant(description) => self.grant(owner, description),
            Request::Update(update) => self.update(owner, update),
            Request::Disconnect(open) => self.disconnect(owner, *open),
            Request::Reclaim(reclaim) => self.reclaim(owner, reclaim),
            Request::Close(open) => self.close(owner, *open),
            Request::ServeShare(share) => self.serve_share(owner, share),
            Request::ReleaseShare(share) => Ok(self.release_share(owner, share)),
        }
    }

    /// The newest applied entry.
    #[must_use]
    pub fn applied(&self) -> Option<LogId> {
        self.applied
    }

    /// Cluster time: when the newest applied command was proposed, or later.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// The bounds that this state keeps to.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// A node, if it ever registered.
    #[must_use]
    pub fn node(&self, node: NodeId) -> Option<&Node> {
        self.nodes.get(&node)
    }

    /// All nodes that ever registered, by id.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.nodes.iter().map(|(id, node)| (*id, node))
    }

    /// Who serves a share now.
    #[must_use]
    pub fn serving_node(&self, share: &ShareName) -> Option<ServingNode> {
        self.shares.get(share).copied()
    }

    /// All shares that have a serving node, by name.
    pub fn shares(&self) -> impl Iterator<Item = (&ShareName, ServingNode)> {
        self.shares.iter().map(|(name, serving)| (name, *serving))
    }

    /// An open.
    #[must_use]
    pub fn open(&self, id: DurableFileId) -> Option<&Open> {
        self.opens.get(id)
    }

    /// All opens, by id.
    pub fn opens(&self) -> impl Iterator<Item = &Open> {
        self.opens.iter()
    }

    /// How many opens there are.
    #[must_use]
    pub fn opens_len(&self) -> usize {
        self.opens.len()
    }

    /// The opens of a file, by id.
    pub fn opens_of_file(&self, file: FileKey) -> impl Iterator<Item = &Open> {
        self.opens.of_file(file)
    }

    /// The opens of a share, by id.
    pub fn opens_of_share(&self, share: &ShareName) -> impl Iterator<Item = &Open> {
        self.opens.of_share(share)
    }

    /// The opens of a session, by id.
    pub fn opens_of_session(&self, session: SessionId) -> impl Iterator<Item = &Open> {
        self.opens.of_session(session)
    }

    /// The opens that a client made with a CreateGuid, by id.
    pub fn opens_of_create_guid(
        &self,
        client_guid: ClientGuid,
        create_guid: CreateGuid,
    ) -> impl Iterator<Item = &Open> {
        self.opens.of_create_guid(client_guid, create_guid)
    }

    /// The opens of a lease, by id.
    pub fn opens_of_lease(&self, lease: LeaseId) -> impl Iterator<Item = &Open> {
        self.opens.of_lease(lease)
    }

    /// A break that is under way.
    #[must_use]
    pub fn break_under_way(&self, target: BreakTarget) -> Option<Break> {
        self.breaks.get(target)
    }

    /// All breaks under way.
    pub fn breaks(&self) -> impl Iterator<Item = (BreakTarget, Break)> {
        self.breaks.iter()
    }

    /// A request that waits for breaks, by its place in the log.
    #[must_use]
    pub fn waiting_request(&self, index: u64) -> Option<&WaitingRequest> {
        self.waiting.get(index)
    }

    /// All requests that wait for breaks, in the order in which they came.
    pub fn waiting_requests(&self) -> impl Iterator<Item = &WaitingRequest> {
        self.waiting.iter()
    }

    /// The opens whose files are deleted with them by a cluster of SMB servers
    /// ([`Arbiter::SmbCluster`](super::node::Arbiter::SmbCluster)), by id.
    pub fn deleting_opens(&self) -> impl Iterator<Item = &Open> {
        self.opens.deleting()
    }

    /// The deletion of a file, if it is decided.
    #[must_use]
    pub fn delete_pending(&self, file: FileKey) -> Option<&DeletePending> {
        self.deletes.get(&file)
    }

    /// All files that are to be deleted.
    pub fn deletes_pending(&self) -> impl Iterator<Item = (FileKey, &DeletePending)> {
        self.deletes.iter().map(|(file, pending)| (*file, pending))
    }

    /// When the next disconnected open expires, or the next acknowledgement of a break is overdue.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Timestamp> {
        [self.opens.next_deadline(), self.breaks.next_deadline()].into_iter().flatten().min()
    }

    /// The number that the next event will have.
    #[must_use]
    pub fn next_event(&self) -> u64 {
        self.next_event
    }

    /// The events since this was last called, or since the state was made.
    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// What has changed since this was last called, or since the state was made.
    pub fn take_changes(&mut self) -> Changes {
        std::mem::take(&mut self.changes)
    }

    pub(super) fn tell(&mut self, to: Option<Owner>, kind: EventKind) {
        self.events.push(Event { sequence: self.next_event, to, kind });
        self.next_event += 1;
    }

    pub(super) fn put_open(&mut self, open: Open) {
        self.changes.opens.insert(open.description.durable_file_id);
        self.opens.insert(open);
    }

    pub(super) fn set_open_state(&mut self, id: DurableFileId, state: OpenState) {
        self.changes.opens.insert(id);
        self.opens.set_state(id, state);
    }

    /// Takes an open out of the table; [`State::close_open`] is the close.
    pub(super) fn remove_open(&mut self, id: DurableFileId) -> Option<Open> {
        self.changes.opens.insert(id);
        self.opens.remove(id)
    }

    /// Says where a restored state stands.
    pub(super) fn set_meta(&mut self, applied: Option<LogId>, now: Timestamp, next_event: u64) {
        self.applied = applied;
        self.now = now;
        self.next_event = next_event;
    }
}
