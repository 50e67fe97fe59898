//! All opens, and the ways to find them.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hash;

use super::ids::{ClientGuid, CreateGuid, DurableFileId, FileKey, LeaseId, Owner, SessionId, ShareName};
use super::lookup::Lookup;
use super::open::{Open, OpenDescription, OpenState};
use super::time::Timestamp;

/// The opens by id, with an index for every other way in which a command looks for them.
///
/// Invariant: the indexes are what [`OpenTable::insert`] would make of the opens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct OpenTable {
    // Boxed, because the nodes of the tree are moved about with every insertion.
    by_id: BTreeMap<DurableFileId, Box<Open>>,
    by_file: Index<FileKey>,
    by_holder: Index<Owner>,
    by_share: Index<ShareName>,
    by_deadline: BTreeSet<(Timestamp, DurableFileId)>,
    by_lease: Index<LeaseId>,
    by_session: Index<SessionId>,
    /// Without opens of version 1, which have no CreateGuid.
    by_create_guid: Index<(ClientGuid, CreateGuid)>,
    by_app_instance: Index<[u8; 16]>,
}

/// Ids of opens by something that they have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Index<K: Eq + Hash>(Lookup<K, Ids>);

/// One id or more. Most files, leases and sessions have one open.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Ids {
    One(DurableFileId),
    /// Two at least.
    Many(BTreeSet<DurableFileId>),
}

impl<K: Eq + Hash> Default for Index<K> {
    fn default() -> Self {
        Self(Lookup::default())
    }
}

impl<K: Clone + Eq + Hash> Index<K> {
    fn insert(&mut self, key: &K, id: DurableFileId) {
        match self.0.get_mut(key) {
            None => drop(self.0.insert(key.clone(), Ids::One(id))),
            Some(Ids::Many(ids)) => drop(ids.insert(id)),
            Some(ids @ Ids::One(_)) => {
                let both = ids.iter().chain([id]).collect();
                *ids = Ids::Many(both);
            }
        }
    }

    fn remove(&mut self, key: &K, id: DurableFileId) {
        let Some(ids) = self.0.get_mut(key) else { return };
        match ids {
            Ids::One(_) => drop(self.0.remove(key)),
            Ids::Many(many) => {
                many.remove(&id);
                if many.len() == 1 {
                    *ids = Ids::One(many.pop_first().expect("it has one"));
                }
            }
        }
    }

    /// The ids under a key, ascending.
    fn ids<'a>(&'a self, key: &K) -> impl Iterator<Item = DurableFileId> + use<'a, K> {
        self.0.get(key).into_iter().flat_map(Ids::iter)
    }
}

impl Ids {
    fn iter(&self) -> impl Iterator<Item = DurableFileId> {
        let (one, many) = match self {
            Self::One(id) => (Some(*id), None),
            Self::Many(ids) => (None, Some(ids.iter().copied())),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }
}

/// What an open is found by, beside its id, its share and its state.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Keys {
    file: FileKey,
    lease: Option<LeaseId>,
    create_guid: Option<(ClientGuid, CreateGuid)>,
    app_instance: Option<[u8; 16]>,
}

impl Keys {
    fn of(description: &OpenDescription) -> Self {
        let has_guid = description.create_guid != CreateGuid::default();
        Self {
            file: description.file,
            lease: description.lease_id(),
            create_guid: has_guid.then_some((description.client_guid, description.create_guid)),
            app_instance: description.app_instance.map(|instance| instance.id),
        }
    }
}

impl OpenTable {
    pub(super) fn get(&self, id: DurableFileId) -> Option<&Open> {
        self.by_id.get(&id).map(Box::as_ref)
    }

    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// All of them, by id.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Open> {
        self.by_id.values().map(Box::as_ref)
    }

    fn known(&self, id: DurableFileId) -> &Open {
        &self.by_id[&id]
    }

    /// The opens of a file, by id.
    pub(super) fn of_file(&self, file: FileKey) -> impl Iterator<Item = &Open> {
        self.by_file.ids(&file).map(|id| self.known(id))
    }

    /// The ids of the opens of a file.
    pub(super) fn ids_of_file(&self, file: FileKey) -> Vec<DurableFileId> {
        self.by_file.ids(&file).collect()
    }

    /// The opens of a share, by id.
    pub(super) fn of_share<'a>(&'a self, share: &ShareName) -> impl Iterator<Item = &'a Open> + use<'a> {
        self.by_share.ids(share).map(|id| self.known(id))
    }

    /// The opens of a lease, by id.
    pub(super) fn of_lease(&self, lease: LeaseId) -> impl Iterator<Item = &Open> {
        self.by_lease.ids(&lease).map(|id| self.known(id))
    }

    /// The opens of a session, by id.
    pub(super) fn of_session(&self, session: SessionId) -> impl Iterator<Item = &Open> {
        self.by_session.ids(&session).map(|id| self.known(id))
    }

    /// The opens that a client made with a CreateGuid, by id.
    pub(super) fn of_create_guid(
        &self,
        client_guid: ClientGuid,
        create_guid: CreateGuid,
    ) -> impl Iterator<Item = &Open> {
        self.by_create_guid.ids(&(client_guid, create_guid)).map(|id| self.known(id))
    }

    /// The opens that an application made which calls itself so, by id.
    pub(super) fn of_app_instance(&self, id: [u8; 16]) -> impl Iterator<Item = &Open> {
        self.by_app_instance.ids(&id).map(|id| self.known(id))
    }

    /// The opens that live in the SMB server of `owner`, by id.
    pub(super) fn held_by(&self, owner: Owner) -> Vec<DurableFileId> {
        self.by_holder.ids(&owner).collect()
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
        // Most changes of an open are of nothing that it is found by.
        if let Some(known) = self.by_id.get_mut(&id)
            && known.state == open.state
            && known.description.share == open.description.share
            && Keys::of(&known.description) == Keys::of(&open.description)
        {
            return Some(std::mem::replace(known.as_mut(), open));
        }
        let before = self.remove(id);
        let Keys { file, lease, create_guid, app_instance } = Keys::of(&open.description);
        self.by_file.insert(&file, id);
        self.by_share.insert(&open.description.share, id);
        lease.iter().for_each(|lease| self.by_lease.insert(lease, id));
        create_guid.iter().for_each(|guid| self.by_create_guid.insert(guid, id));
        app_instance.iter().for_each(|instance| self.by_app_instance.insert(instance, id));
        self.index_state(id, open.state);
        self.by_id.insert(id, Box::new(open));
        before
    }

    pub(super) fn remove(&mut self, id: DurableFileId) -> Option<Open> {
        let open = *self.by_id.remove(&id)?;
        let Keys { file, lease, create_guid, app_instance } = Keys::of(&open.description);
        self.by_file.remove(&file, id);
        self.by_share.remove(&open.description.share, id);
        lease.iter().for_each(|lease| self.by_lease.remove(lease, id));
        create_guid.iter().for_each(|guid| self.by_create_guid.remove(guid, id));
        app_instance.iter().for_each(|instance| self.by_app_instance.remove(instance, id));
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

    fn index_state(&mut self, id: DurableFileId, state: OpenState) {
        state.holder().iter().for_each(|holder| self.by_holder.insert(holder, id));
        self.by_deadline.extend(state.deadline().map(|deadline| (deadline, id)));
        session_of(state).iter().for_each(|session| self.by_session.insert(session, id));
    }

    fn unindex_state(&mut self, id: DurableFileId, state: OpenState) {
        state.holder().iter().for_each(|holder| self.by_holder.remove(holder, id));
        if let Some(deadline) = state.deadline() {
            self.by_deadline.remove(&(deadline, id));
        }
        session_of(state).iter().for_each(|session| self.by_session.remove(session, id));
    }
}

fn session_of(state: OpenState) -> Option<SessionId> {
    match state {
        OpenState::Connected { session, .. } => session,
        OpenState::Disconnected { .. } => None,
    }
}
