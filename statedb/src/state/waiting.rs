//! Requests that wait for breaks, in the order in which they came.

use std::collections::{BTreeMap, BTreeSet};

use super::command::Operation;
use super::create::Create;
use super::event::EventKind;
use super::ids::{ClientGuid, CreateGuid, DurableFileId, FileKey, Owner, SessionId};
use super::outcome::{Outcome, Rejection};
use super::state::State;

/// A request that waits until others have given up what they cache of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitingRequest {
    /// Its place in the log: those that came first are decided first.
    pub index: u64,
    /// The incarnation that asks.
    pub owner: Owner,
    /// The sequence of its request.
    pub sequence: u64,
    /// The file.
    pub file: FileKey,
    /// What it asks for.
    pub awaited: Awaited,
}

/// What waits for breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Awaited {
    /// A CREATE.
    Create {
        /// The id that the open will have.
        durable_file_id: DurableFileId,
        /// What it asks for.
        create: Box<Create>,
    },
    /// Something that is to be done through an open.
    Operation {
        /// The open.
        open: DurableFileId,
        /// What.
        operation: Operation,
    },
}

impl WaitingRequest {
    /// By what the replay of a CREATE is recognised, if it can be replayed.
    fn replay_key(&self) -> Option<(ClientGuid, CreateGuid)> {
        let Awaited::Create { create, .. } = &self.awaited else { return None };
        let request = create.contexts.durable_request_v2?;
        Some((create.client.client_guid, request.create_guid))
    }

    /// The id that the open of a CREATE will have.
    fn durable_file_id(&self) -> Option<DurableFileId> {
        match &self.awaited {
            Awaited::Create { durable_file_id, .. } => Some(*durable_file_id),
            Awaited::Operation { .. } => None,
        }
    }

    /// The session in which a CREATE came. What waits to be done through an open ends with the open.
    pub(super) fn session(&self) -> Option<SessionId> {
        match &self.awaited {
            Awaited::Create { create, .. } => Some(create.client.session),
            Awaited::Operation { .. } => None,
        }
    }
}

/// All of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct WaitingTable {
    by_index: BTreeMap<u64, WaitingRequest>,
    by_file: BTreeSet<(FileKey, u64)>,
    by_request: BTreeMap<(Owner, u64), u64>,
    by_replay_key: BTreeSet<(ClientGuid, CreateGuid, u64)>,
    by_durable_file_id: BTreeSet<(DurableFileId, u64)>,
}

impl WaitingTable {
    pub(super) fn len(&self) -> usize {
        self.by_index.len()
    }

    pub(super) fn get(&self, index: u64) -> Option<&WaitingRequest> {
        self.by_index.get(&index)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &WaitingRequest> {
        self.by_index.values()
    }

    /// Those that want a file, the first one first.
    pub(super) fn of_file(&self, file: FileKey) -> Vec<u64> {
        self.by_file.range((file, u64::MIN)..=(file, u64::MAX)).map(|(_, index)| *index).collect()
    }

    /// Those of an SMB server.
    pub(super) fn of_owner(&self, owner: Owner) -> Vec<u64> {
        self.by_request.range((owner, u64::MIN)..=(owner, u64::MAX)).map(|(_, index)| *index).collect()
    }

    /// The request that an SMB server made under this sequence, if it waits.
    pub(super) fn of_request(&self, owner: Owner, sequence: u64) -> Option<u64> {
        self.by_request.get(&(owner, sequence)).copied()
    }

    /// Whether a CREATE of this client with this CreateGuid waits.
    pub(super) fn has(&self, client_guid: ClientGuid, create_guid: CreateGuid) -> bool {
        let range = (client_guid, create_guid, u64::MIN)..=(client_guid, create_guid, u64::MAX);
        self.by_replay_key.range(range).next().is_some()
    }

    /// Whether a CREATE waits whose open will have this id.
    pub(super) fn has_id(&self, id: DurableFileId) -> bool {
        self.by_durable_file_id.range((id, u64::MIN)..=(id, u64::MAX)).next().is_some()
    }

    pub(super) fn insert(&mut self, waiting: WaitingRequest) -> Option<WaitingRequest> {
        let index = waiting.index;
        let before = self.remove(index);
        self.by_file.insert((waiting.file, index));
        self.by_request.insert((waiting.owner, waiting.sequence), index);
        self.by_replay_key.extend(waiting.replay_key().map(|(client, guid)| (client, guid, index)));
        self.by_durable_file_id.extend(waiting.durable_file_id().map(|id| (id, index)));
        self.by_index.insert(index, waiting);
        before
    }

    pub(super) fn remove(&mut self, index: u64) -> Option<WaitingRequest> {
        let waiting = self.by_index.remove(&index)?;
        self.by_file.remove(&(waiting.file, index));
        self.by_request.remove(&(waiting.owner, waiting.sequence));
        if let Some((client, guid)) = waiting.replay_key() {
            self.by_replay_key.remove(&(client, guid, index));
        }
        if let Some(id) = waiting.durable_file_id() {
            self.by_durable_file_id.remove(&(id, index));
        }
        Some(waiting)
    }
}

impl State {
    /// Lets a request wait.
    pub(super) fn wait(
        &mut self,
        owner: Owner,
        sequence: u64,
        file: FileKey,
        awaited: Awaited,
    ) -> Result<Outcome, Rejection> {
        let limit = self.limits.waiting_max;
        if self.waiting.len() as u64 >= limit {
            return Err(Rejection::TooManyWaiting { limit });
        }
        let index = self.applied().expect("a request is an applied entry").index;
        self.waiting.insert(WaitingRequest { index, owner, sequence, file, awaited });
        self.changes.waiting.insert(index);
        Ok(Outcome::BreakPending)
    }

    /// Somebody may have given up what requests for this file wait for. They are looked at again at the end of this
    /// command, when everything that it changes is in place.
    pub(super) fn file_released(&mut self, file: FileKey) {
        self.released.insert(file);
    }

    /// Decides what waits for the files that were released, in the order in which it came. What is decided can release
    /// further files, this one among them; each time something stops to wait, so this ends.
    pub(super) fn decide_released(&mut self) {
        while let Some(file) = self.released.pop_first() {
            for index in self.waiting.of_file(file) {
                let Some(waiting) = self.waiting.get(index).cloned() else { continue };
                let decided = match &waiting.awaited {
                    Awaited::Create { durable_file_id, create } => {
                        self.open_or_break(waiting.owner, *durable_file_id, create)
                    }
                    Awaited::Operation { open, operation } => {
                        self.operate_or_break(waiting.owner, *open, operation)
                    }
                };
                match decided {
                    Ok(Outcome::BreakPending) => {}
                    decided => self.finish_waiting(index, decided.unwrap_or_else(Outcome::Rejected)),
                }
            }
        }
    }

    fn finish_waiting(&mut self, index: u64, outcome: Outcome) {
        let Some(waiting) = self.waiting.remove(index) else { return };
        self.changes.waiting.insert(index);
        let WaitingRequest { owner, sequence, .. } = waiting;
        let Ok(node) = self.live_node(owner) else { return };
        // What waits was not answered yet; the answer is this one.
        if sequence >= node.first_outstanding {
            node.answered.insert(sequence, outcome.clone());
            self.changes.nodes.insert(owner.node);
        }
        self.tell(Some(owner), EventKind::RequestFinished { sequence, outcome });
    }

    pub(super) fn cancel_waiting(&mut self, index: u64, why: Rejection) {
        self.finish_waiting(index, Outcome::Rejected(why));
    }

    pub(super) fn cancel(&mut self, owner: Owner, sequence: u64) -> Outcome {
        if let Some(index) = self.waiting.of_request(owner, sequence) {
            self.cancel_waiting(index, Rejection::Cancelled);
        }
        Outcome::Cancelled
    }

    /// Nobody waits for the answers to CREATEs of a session that is over.
    pub(super) fn cancel_waiting_of_session(&mut self, owner: Owner, session: SessionId) {
        for index in self.waiting.of_owner(owner) {
            if self.waiting.get(index).is_some_and(|waiting| waiting.session() == Some(session)) {
                self.cancel_waiting(index, Rejection::Cancelled);
            }
        }
    }

    /// An SMB server is dead, and whoever waited there.
    pub(super) fn forget_waiting_of(&mut self, owner: Owner) {
        for index in self.waiting.of_owner(owner) {
            self.waiting.remove(index);
            self.changes.waiting.insert(index);
        }
    }
}
