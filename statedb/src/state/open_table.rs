//! All opens, and the ways to find them.

use std::collections::{BTreeMap, BTreeSet};

use super::ids::{ClientGuid, CreateGuid, DurableFileId, FileKey, LeaseId, Owner, SessionId, ShareName};
use super::open::{Open, OpenDescription, OpenState};
use super::time::Timestamp;

/// The opens by id, with an index for every other way in which a command looks for them.
///
/// Invariant: the indexes are what [`OpenTable::insert`] would make of the opens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct OpenTable {
    by_id: BTreeMap<DurableFileId, Open>,
    by_file: BTreeSet<(FileKey, DurableFileId)>,
    by_holder: BTreeSet<(Owner, DurableFileId)>,
    by_share: BTreeSet<(ShareName, DurableFileId)>,
    by_deadline: BTreeSet<(Timestamp, DurableFileId)>,
    by_lease: BTreeSet<(LeaseId, DurableFileId)>,
    by_session: BTreeSet<(SessionId, DurableFileId)>,
    /// Without opens of version 1, which have no CreateGuid.
    by_create_guid: BTreeSet<(ClientGuid, CreateGuid, DurableFileId)>,
    by_app_instance: BTreeSet<([u8; 16], DurableFileId)>,
}

impl OpenTable {
    pub(super) fn get(&self, id: DurableFileId) -> Option<&Open> {
        self.by_id.get(&id)
    }

    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// All of them, by id.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Open> {
        self.by_id.values()
    }

    /// The opens of a file, by id.
    pub(super) fn of_file(&self, file: FileKey) -> impl Iterator<Item = &Open> {
        let range = (file, DurableFileId(u64::MIN))..=(file, DurableFileId(u64::MAX));
        self.by_file.range(range).map(|(_, id)| &self.by_id[id])
    }

    /// The ids of the opens of a file.
    pub(super) fn ids_of_file(&self, file: FileKey) -> Vec<DurableFileId> {
        self.of_file(file).map(|open| open.description.durable_file_id).collect()
    }

    /// The opens of a share, by id.
    pub(super) fn of_share(&self, share: &ShareName) -> impl Iterator<Item = &Open> {
        let range = (share.clone(), DurableFileId(u64::MIN))..=(share.clone(), DurableFileId(u64::MAX));
        self.by_share.range(range).map(|(_, id)| &self.by_id[id])
    }

    /// The opens of a lease, by id.
    pub(super) fn of_lease(&self, lease: LeaseId) -> impl Iterator<Item = &Open> {
        let range = (lease, DurableFileId(u64::MIN))..=(lease, DurableFileId(u64::MAX));
        self.by_lease.range(range).map(|(_, id)| &self.by_id[id])
    }

    /// The opens of a session, by id.
    pub(super) fn of_session(&self, session: SessionId) -> impl Iterator<Item = &Open> {
        let range = (session, DurableFileId(u64::MIN))..=(session, DurableFileId(u64::MAX));
        self.by_session.range(range).map(|(_, id)| &self.by_id[id])
    }

    /// The opens that a client made with a CreateGuid, by id.
    pub(super) fn of_create_guid(
        &self,
        client_guid: ClientGuid,
        create_guid: CreateGuid,
    ) -> impl Iterator<Item = &Open> {
        let first = (client_guid, create_guid, DurableFileId(u64::MIN));
        let last = (client_guid, create_guid, DurableFileId(u64::MAX));
        self.by_create_guid.range(first..=last).map(|(_, _, id)| &self.by_id[id])
    }

    /// The opens that an application made which calls itself so, by id.
    pub(super) fn of_app_instance(&self, id: [u8; 16]) -> impl Iterator<Item = &Open> {
        let range = (id, DurableFileId(u64::MIN))..=(id, DurableFileId(u64::MAX));
        self.by_app_instance.range(range).map(|(_, id)| &self.by_id[id])
    }

    /// The opens that live in the SMB server of `owner`, by id.
    pub(super) fn held_by(&self, owner: Owner) -> Vec<DurableFileId> {
        let range = (owner, DurableFileId(u64::MIN))..=(owner, DurableFileId(u64::MAX));
        self.by_holder.range(range).map(|(_, id)| *id).collect()
    }

    /// The disconnected opens whose time is up at `now`, in order of their deadlines.
    pub(super) fn due(&self, now: Timestamp) -> Vec<DurableFileId> {
        self.by_deadline.range(..=(now, DurableFileId(u64::MAX))).map(|(_, id)| *id).collect()
    }

    /// The earliest deadline of a disconnected open.
    pub(super) fn next_deadline(&self) -> Option<Timestamp> {
        self.by_deadline.first().map(|(deadline, _)| *deadline)
    }

    /// What is known of an open, to be changed; not what the indexes are made of.
    pub(super) fn description_mut(&mut self, id: DurableFileId) -> Option<&mut OpenDescription> {
        self.by_id.get_mut(&id).map(|open| &mut open.description)
    }

    /// Puts an open in its place, and returns the one that was there before.
    pub(super) fn insert(&mut self, open: Open) -> Option<Open> {
        let id = open.description.durable_file_id;
        let before = self.remove(id);
        self.by_file.insert((open.description.file, id));
        self.by_share.insert((open.description.share.clone(), id));
        self.by_lease.extend(open.description.lease_id().map(|lease| (lease, id)));
        self.by_create_guid.extend(create_guid_of(&open));
        self.by_app_instance.extend(open.description.app_instance.map(|instance| (instance.id, id)));
        self.index_state(id, open.state);
        self.by_id.insert(id, open);
        before
    }

    pub(super) fn remove(&mut self, id: DurableFileId) -> Option<Open> {
        let open = self.by_id.remove(&id)?;
        self.by_file.remove(&(open.description.file, id));
        self.by_share.remove(&(open.description.share.clone(), id));
        if let Some(lease) = open.description.lease_id() {
            self.by_lease.remove(&(lease, id));
        }
        if let Some(key) = create_guid_of(&open) {
            self.by_create_guid.remove(&key);
        }
        if let Some(instance) = open.description.app_instance {
            self.by_app_instance.remove(&(instance.id, id));
        }
        self.unindex_state(id, open.state);
        Some(open)
    }

    /// Moves an open on to another state; without effect if there is no such open.
    pub(super) fn set_state(&mut self, id: DurableFileId, state: OpenState) {
        let Some(open) = self.by_id.get_mut(&id) else { return };
        let before = std::mem::replace(&mut open.state, state);
        self.unindex_state(id, before);
        self.index_state(id, state);
    }

    /// The table that the opens alone make, to hold this one against.
    pub(super) fn rebuilt(&self) -> Self {
        let mut table = Self::default();
        for open in self.iter() {
            table.insert(open.clone());
        }
        table
    }

    fn index_state(&mut self, id: DurableFileId, state: OpenState) {
        self.by_holder.extend(state.holder().map(|holder| (holder, id)));
        self.by_deadline.extend(state.deadline().map(|deadline| (deadline, id)));
        if let OpenState::Connected { session: Some(session), .. } = state {
            self.by_session.insert((session, id));
        }
    }

    fn unindex_state(&mut self, id: DurableFileId, state: OpenState) {
        if let Some(holder) = state.holder() {
            self.by_holder.remove(&(holder, id));
        }
        if let Some(deadline) = state.deadline() {
            self.by_deadline.remove(&(deadline, id));
        }
        if let OpenState::Connected { session: Some(session), .. } = state {
            self.by_session.remove(&(session, id));
        }
    }
}

fn create_guid_of(open: &Open) -> Option<(ClientGuid, CreateGuid, DurableFileId)> {
    let description = &open.description;
    let has_guid = description.create_guid != CreateGuid::default();
    has_guid.then_some((description.client_guid, description.create_guid, description.durable_file_id))
}
