//! All opens, and the ways to find them.

use std::collections::{BTreeMap, BTreeSet};

use super::ids::{DurableFileId, FileKey, Owner, ShareName};
use super::open::{Open, OpenState};
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

    /// The opens of a share, by id.
    pub(super) fn of_share(&self, share: &ShareName) -> impl Iterator<Item = &Open> {
        let range = (share.clone(), DurableFileId(u64::MIN))..=(share.clone(), DurableFileId(u64::MAX));
        self.by_share.range(range).map(|(_, id)| &self.by_id[id])
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

    /// Puts an open in its place, and returns the one that was there before.
    pub(super) fn insert(&mut self, open: Open) -> Option<Open> {
        let id = open.description.durable_file_id;
        let before = self.remove(id);
        self.by_file.insert((open.description.file, id));
        self.by_share.insert((open.description.share.clone(), id));
        self.index_state(id, open.state);
        self.by_id.insert(id, open);
        before
    }

    pub(super) fn remove(&mut self, id: DurableFileId) -> Option<Open> {
        let open = self.by_id.remove(&id)?;
        self.by_file.remove(&(open.description.file, id));
        self.by_share.remove(&(open.description.share.clone(), id));
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
    }

    fn unindex_state(&mut self, id: DurableFileId, state: OpenState) {
        if let Some(holder) = state.holder() {
            self.by_holder.remove(&(holder, id));
        }
        if let Some(deadline) = state.deadline() {
            self.by_deadline.remove(&(deadline, id));
        }
    }
}
