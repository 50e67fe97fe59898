//! The tables, and [`State::apply`]: dispatch and bookkeeping only.

use std::collections::{BTreeMap, BTreeSet};

use super::command::{Command, Proposer, Reclaim, Request};
use super::ids::{DurableFileId, FileKey, Incarnation, Instance, LogId, NodeId, Owner, ShareName};
use super::node::{Node, NodeState};
use super::open::{Open, OpenDescription, OpenState};
use super::outcome::{Outcome, Rejection};
use super::share::ServingNode;
use super::time::Timestamp;

/// Bounds on what the state may hold. The same on every node, or replicas would disagree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Opens in the cluster.
    pub opens_max: u64,
    /// Bytes of one open's image.
    pub image_bytes_max: u64,
    /// How far a proposer's sequence may be ahead of its oldest unanswered request.
    pub outstanding_max: u64,
}

impl Limits {
    /// One million opens of about 2 KiB each fit into 4 GiB with room to spare; an image is a few
    /// records of Samba, of which the longest holds two paths of at most 4 KiB; 4096 outstanding
    /// requests are more than a node has SMB server processes waiting.
    pub const DEFAULT: Self = Self { opens_max: 1_000_000, image_bytes_max: 64 * 1024, outstanding_max: 4096 };
}

/// What has changed since somebody last looked, for who keeps a copy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Opens that were granted, changed or closed.
    pub opens: BTreeSet<DurableFileId>,
    /// Nodes that registered, went down, or were answered.
    pub nodes: BTreeSet<NodeId>,
    /// Shares that got or lost a serving node.
    pub shares: BTreeSet<ShareName>,
}

/// Everything the cluster has agreed on.
#[derive(Clone, Debug)]
pub struct State {
    limits: Limits,
    applied: Option<LogId>,
    now: Timestamp,
    nodes: BTreeMap<NodeId, Node>,
    shares: BTreeMap<ShareName, ServingNode>,
    opens: BTreeMap<DurableFileId, Open>,

    // Derived from `opens`, so that no command has to look at all of them.
    by_file: BTreeSet<(FileKey, DurableFileId)>,
    by_holder: BTreeSet<(NodeId, DurableFileId)>,
    by_share: BTreeSet<(ShareName, DurableFileId)>,
    by_deadline: BTreeSet<(Timestamp, DurableFileId)>,

    // Not part of the state's value: a reader's bookmark.
    changes: Changes,
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
            opens: BTreeMap::new(),
            by_file: BTreeSet::new(),
            by_holder: BTreeSet::new(),
            by_share: BTreeSet::new(),
            by_deadline: BTreeSet::new(),
            changes: Changes::default(),
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
        self.skip(log_id);

        // A new leader counts on from the newest applied time with its own monotonic clock. Cluster time
        // never goes back, so a deadline that has passed stays passed on every replica.
        self.now = self.now.max(proposed_at);

        match command {
            Command::RegisterNode { node, instance } => self.register_node(*node, *instance),
            Command::NodeDown { node, incarnation } => self.node_down(*node, *incarnation),
            Command::ExpireOpens => self.expire_opens(),
            Command::FromSmbNode { proposer, request } => self.from_smb_node(proposer, request),
        }
    }

    /// Counts an entry that changes nothing here (a blank or a membership entry), so that `applied` has no holes.
    ///
    /// # Panics
    ///
    /// As [`Self::apply`].
    pub fn skip(&mut self, log_id: LogId) {
        if let Some(applied) = self.applied {
            assert_eq!(log_id.index, applied.index + 1, "entry applied out of order");
        }
        self.applied = Some(log_id);
    }

    /// The newest applied entry.
    #[must_use]
    pub fn applied(&self) -> Option<LogId> {
        self.applied
    }

    /// Cluster time: the newest `proposed_at` that was applied.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// The bounds.
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
        self.opens.get(&id)
    }

    /// All opens, by id.
    pub fn opens(&self) -> impl Iterator<Item = &Open> {
        self.opens.values()
    }

    /// How many opens there are.
    #[must_use]
    pub fn opens_len(&self) -> usize {
        self.opens.len()
    }

    /// The opens of a file, by id.
    pub fn opens_of_file(&self, file: FileKey) -> impl Iterator<Item = &Open> {
        let range = (file, DurableFileId(u64::MIN))..=(file, DurableFileId(u64::MAX));
        self.by_file.range(range).map(|(_, id)| &self.opens[id])
    }

    /// When the next disconnected open expires.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Timestamp> {
        self.by_deadline.first().map(|(deadline, _)| *deadline)
    }

    /// Whether this incarnation may act.
    #[must_use]
    pub fn is_up(&self, owner: Owner) -> bool {
        self.nodes
            .get(&owner.node)
            .is_some_and(|node| node.incarnation == owner.incarnation && node.state == NodeState::Up)
    }

    /// What has changed since this was last called, or since the state was made.
    pub fn take_changes(&mut self) -> Changes {
        std::mem::take(&mut self.changes)
    }

    fn register_node(&mut self, id: NodeId, instance: Instance) -> Outcome {
        let incarnation = match self.nodes.get(&id) {
            None => Incarnation(1),
            Some(node) if node.instance == instance => {
                return match node.state {
                    NodeState::Up => Outcome::Registered { incarnation: node.incarnation },
                    // Its opens may be somebody else's by now. It has to end; its successor may register.
                    NodeState::Down { .. } => Outcome::Rejected(Rejection::Fenced {
                        proposer: Owner { node: id, incarnation: node.incarnation },
                        current: Some(node.incarnation),
                    }),
                };
            }
            Some(node) => {
                let superseded = node.incarnation;
                self.node_down(id, superseded);
                Incarnation(superseded.0 + 1)
            }
        };
        self.nodes.insert(id, Node::registered(incarnation, instance));
        self.changes.nodes.insert(id);
        Outcome::Registered { incarnation }
    }

    fn node_down(&mut self, id: NodeId, incarnation: Incarnation) -> Outcome {
        let owner = Owner { node: id, incarnation };
        if !self.is_up(owner) {
            return Outcome::NodeDown { disconnected: Vec::new(), closed: Vec::new() };
        }
        let now = self.now;
        let node = self.nodes.get_mut(&id).expect("a node that is up is known");
        node.state = NodeState::Down { since: now };
        self.changes.nodes.insert(id);

        let released: Vec<_> =
            self.shares.iter().filter(|(_, serving)| serving.owner == owner).map(|(name, _)| name.clone()).collect();
        for share in released {
            self.shares.remove(&share);
            self.changes.shares.insert(share);
        }

        let (mut disconnected, mut closed) = (Vec::new(), Vec::new());
        for open in self.held_by(id) {
            let held = self.opens.get(&open).expect("by_holder names opens that exist");
            match held.state {
                OpenState::Connected { .. } if held.description.outlives_its_connection() => {
                    // The promise is a time to wait after the loss (MS-SMB2 2.2.14.2.12), and the loss is
                    // what this entry decides: never an earlier moment that some node may have seen.
                    let until = now.after(held.description.durable_open_timeout);
                    self.set_open_state(
                        open,
                        OpenState::Disconnected { keeper: None, durable_open_scavenger_timeout: until },
                    );
                    disconnected.push(open);
                }
                OpenState::Connected { .. } => {
                    self.remove_open(open);
                    closed.push(open);
                }
                OpenState::Disconnected { durable_open_scavenger_timeout, .. } => self.set_open_state(
                    open,
                    OpenState::Disconnected { keeper: None, durable_open_scavenger_timeout },
                ),
            }
        }
        Outcome::NodeDown { disconnected, closed }
    }

    fn expire_opens(&mut self) -> Outcome {
        let due = (self.now, DurableFileId(u64::MAX));
        let closed: Vec<_> = self.by_deadline.range(..=due).map(|(_, id)| *id).collect();
        for open in &closed {
            self.remove_open(*open);
        }
        Outcome::Expired { closed }
    }

    /// Fencing and exactly-once, then the request itself.
    fn from_smb_node(&mut self, proposer: &Proposer, request: &Request) -> Outcome {
        let owner = proposer.owner;
        if !self.is_up(owner) {
            let current = self.nodes.get(&owner.node).map(|node| node.incarnation);
            return Outcome::Rejected(Rejection::Fenced { proposer: owner, current });
        }
        let limit = self.limits.outstanding_max;
        let node = self.nodes.get_mut(&owner.node).expect("a node that is up is known");
        if let Some(outcome) = node.answered.get(&proposer.sequence) {
            return outcome.clone();
        }
        if proposer.sequence < node.first_outstanding {
            return Outcome::Rejected(Rejection::AnswerForgotten { sequence: proposer.sequence });
        }
        // A proposer cannot have acknowledged the answer to the request that it makes here.
        let first_outstanding = proposer.first_outstanding.min(proposer.sequence).max(node.first_outstanding);
        if proposer.sequence - first_outstanding >= limit {
            return Outcome::Rejected(Rejection::TooManyOutstanding { limit });
        }
        node.first_outstanding = first_outstanding;
        node.answered = node.answered.split_off(&first_outstanding);
        self.changes.nodes.insert(owner.node);

        let outcome = match self.decide(owner, request) {
            Ok(outcome) => outcome,
            Err(rejection) => Outcome::Rejected(rejection),
        };
        let node = self.nodes.get_mut(&owner.node).expect("a request does not remove its proposer");
        node.answered.insert(proposer.sequence, outcome.clone());
        outcome
    }

    fn decide(&mut self, owner: Owner, request: &Request) -> Result<Outcome, Rejection> {
        match request {
            Request::Grant(description) => self.grant(owner, description),
            Request::Update(descriptions) => self.update(owner, descriptions),
            Request::Disconnect(open) => self.disconnect(owner, *open),
            Request::Reclaim(reclaim) => self.reclaim(owner, reclaim),
            Request::Close(open) => self.close(owner, *open),
            Request::ServeShare(share) => self.serve_share(owner, share),
            Request::ReleaseShare(share) => Ok(self.release_share(owner, share)),
        }
    }

    fn grant(&mut self, owner: Owner, description: &OpenDescription) -> Result<Outcome, Rejection> {
        let id = description.durable_file_id;
        if self.opens.contains_key(&id) {
            return Err(Rejection::DurableFileIdInUse(id));
        }
        self.check_serves(owner, &description.share)?;
        self.check_image(description)?;
        let limit = self.limits.opens_max;
        if self.opens.len() as u64 >= limit {
            return Err(Rejection::TooManyOpens { limit });
        }
        self.insert_open(Open { description: description.clone(), state: OpenState::Connected { owner } });
        Ok(Outcome::Granted)
    }

    fn update(&mut self, owner: Owner, descriptions: &[OpenDescription]) -> Result<Outcome, Rejection> {
        for description in descriptions {
            let open = self.held_open(owner, description.durable_file_id)?;
            if open.description.create_guid != description.create_guid {
                return Err(Rejection::CreateGuidMismatch(description.durable_file_id));
            }
            self.check_image(description)?;
        }
        for description in descriptions {
            let open = self.remove_open(description.durable_file_id).expect("each was checked above");
            self.insert_open(Open { description: description.clone(), state: open.state });
        }
        Ok(Outcome::Updated)
    }

    fn disconnect(&mut self, owner: Owner, id: DurableFileId) -> Result<Outcome, Rejection> {
        let now = self.now;
        let open = self.held_open(owner, id)?;
        let until = match open.state {
            OpenState::Connected { .. } => now.after(open.description.durable_open_timeout),
            OpenState::Disconnected { durable_open_scavenger_timeout, .. } => durable_open_scavenger_timeout,
        };
        self.set_open_state(
            id,
            OpenState::Disconnected { keeper: Some(owner), durable_open_scavenger_timeout: until },
        );
        Ok(Outcome::Disconnected { until })
    }

    fn reclaim(&mut self, owner: Owner, reclaim: &Reclaim) -> Result<Outcome, Rejection> {
        let id = reclaim.durable_file_id;
        let open = self.opens.get(&id).ok_or(Rejection::OpenNotFound(id))?;
        // The CreateGuid is compared before the owner, so that a stranger who probes DurableFileIds
        // cannot learn which of them are connected.
        if open.description.create_guid != reclaim.create_guid {
            return Err(Rejection::CreateGuidMismatch(id));
        }
        match open.state {
            OpenState::Connected { owner } => return Err(Rejection::OpenConnected { open: id, owner }),
            OpenState::Disconnected { keeper: Some(keeper), .. } if keeper != owner => {
                return Err(Rejection::NotOwner { open: id, holder: Some(keeper) });
            }
            // Its time is up, whether or not somebody has committed that yet.
            OpenState::Disconnected { durable_open_scavenger_timeout, .. }
                if durable_open_scavenger_timeout <= self.now =>
            {
                return Err(Rejection::OpenNotFound(id));
            }
            OpenState::Disconnected { .. } => {}
        }
        self.check_serves(owner, &open.description.share)?;
        self.set_open_state(id, OpenState::Connected { owner });
        Ok(Outcome::Reclaimed)
    }

    fn close(&mut self, owner: Owner, id: DurableFileId) -> Result<Outcome, Rejection> {
        let open = self.opens.get(&id).ok_or(Rejection::OpenNotFound(id))?;
        match open.holder() {
            Some(holder) if holder == owner => {}
            // An orphan is closed by who serves its share: somebody there wanted the file.
            None if self.serves(owner, &open.description.share) => {}
            holder => return Err(Rejection::NotOwner { open: id, holder }),
        }
        self.remove_open(id);
        Ok(Outcome::Closed)
    }

    fn serve_share(&mut self, owner: Owner, share: &ShareName) -> Result<Outcome, Rejection> {
        self.check_serves(owner, share)?;
        if self.shares.contains_key(share) {
            return Ok(Outcome::ShareServed);
        }
        self.shares.insert(share.clone(), ServingNode { owner });
        self.changes.shares.insert(share.clone());

        // What an earlier serving node still keeps for its clients is taken from it here, in the same
        // entry, so that no open of a share is ever kept by two.
        let range = (share.clone(), DurableFileId(u64::MIN))..=(share.clone(), DurableFileId(u64::MAX));
        let moved: Vec<_> = self
            .by_share
            .range(range)
            .filter_map(|(_, id)| match self.opens[id].state {
                OpenState::Disconnected { keeper: Some(keeper), durable_open_scavenger_timeout }
                    if keeper != owner =>
                {
                    Some((*id, durable_open_scavenger_timeout))
                }
                _ => None,
            })
            .collect();
        for (open, durable_open_scavenger_timeout) in moved {
            self.set_open_state(open, OpenState::Disconnected { keeper: None, durable_open_scavenger_timeout });
        }
        Ok(Outcome::ShareServed)
    }

    fn release_share(&mut self, owner: Owner, share: &ShareName) -> Outcome {
        let connected = |(_, id): &(ShareName, DurableFileId)| {
            self.opens[id].state == OpenState::Connected { owner }
        };
        let range = (share.clone(), DurableFileId(u64::MIN))..=(share.clone(), DurableFileId(u64::MAX));
        // A client that still has an open there has a tree connect too, whatever the proposer counted.
        if self.serves(owner, share) && !self.by_share.range(range).any(connected) {
            self.shares.remove(share);
            self.changes.shares.insert(share.clone());
        }
        Outcome::ShareReleased
    }

    fn serves(&self, owner: Owner, share: &ShareName) -> bool {
        self.shares.get(share).is_some_and(|serving| serving.owner == owner)
    }

    /// Refuses a proposer while another node serves the share.
    fn check_serves(&self, owner: Owner, share: &ShareName) -> Result<(), Rejection> {
        match self.shares.get(share) {
            Some(serving) if serving.owner != owner => {
                Err(Rejection::ShareServedElsewhere { share: share.clone(), owner: serving.owner })
            }
            _ => Ok(()),
        }
    }

    fn check_image(&self, description: &OpenDescription) -> Result<(), Rejection> {
        let limit = self.limits.image_bytes_max;
        if description.image.len() as u64 > limit {
            return Err(Rejection::ImageTooLarge { open: description.durable_file_id, limit });
        }
        Ok(())
    }

    /// The open, if it lives in the SMB server of `owner`, connected or kept.
    fn held_open(&self, owner: Owner, id: DurableFileId) -> Result<&Open, Rejection> {
        let open = self.opens.get(&id).ok_or(Rejection::OpenNotFound(id))?;
        match open.holder() {
            Some(holder) if holder == owner => Ok(open),
            holder => Err(Rejection::NotOwner { open: id, holder }),
        }
    }

    fn held_by(&self, node: NodeId) -> Vec<DurableFileId> {
        let range = (node, DurableFileId(u64::MIN))..=(node, DurableFileId(u64::MAX));
        self.by_holder.range(range).map(|(_, id)| *id).collect()
    }

    fn set_open_state(&mut self, id: DurableFileId, state: OpenState) {
        let open = self.remove_open(id).expect("the caller has just looked the open up");
        self.insert_open(Open { description: open.description, state });
    }

    /// Puts a restored node in its place; false if the node was there already.
    pub(super) fn insert_node(&mut self, id: NodeId, node: Node) -> bool {
        self.nodes.insert(id, node).is_none()
    }

    /// Puts a restored share in its place; false if the share was there already.
    pub(super) fn insert_share(&mut self, name: ShareName, serving: ServingNode) -> bool {
        self.shares.insert(name, serving).is_none()
    }

    /// Says where a restored state stands. Nothing has changed since.
    pub(super) fn set_meta(&mut self, applied: Option<LogId>, now: Timestamp) {
        self.applied = applied;
        self.now = now;
        self.changes = Changes::default();
    }

    pub(super) fn insert_open(&mut self, open: Open) {
        let id = open.description.durable_file_id;
        self.by_file.insert((open.description.file, id));
        self.by_share.insert((open.description.share.clone(), id));
        if let Some(holder) = open.holder() {
            self.by_holder.insert((holder.node, id));
        }
        if let Some(deadline) = open.deadline() {
            self.by_deadline.insert((deadline, id));
        }
        self.changes.opens.insert(id);
        self.opens.insert(id, open);
    }

    fn remove_open(&mut self, id: DurableFileId) -> Option<Open> {
        let open = self.opens.remove(&id)?;
        self.by_file.remove(&(open.description.file, id));
        self.by_share.remove(&(open.description.share.clone(), id));
        if let Some(holder) = open.holder() {
            self.by_holder.remove(&(holder.node, id));
        }
        if let Some(deadline) = open.deadline() {
            self.by_deadline.remove(&(deadline, id));
        }
        self.changes.opens.insert(id);
        Some(open)
    }
}
