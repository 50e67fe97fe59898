//! Files that are to be deleted: FileDeleteOnClose (MS-SMB2 3.3.1.12, MS-FSA 2.1.5.5).
//!
//! A file is *pending* from the moment on at which its deletion is decided (an open that was made to delete it is
//! closed, or FileDispositionInformation says so), and *due* when nobody has it open any more. Then one SMB server is told to
//! delete it and says when it has; until then nobody can open it, and if that server dies another one is told.

use std::sync::Arc;

use super::event::EventKind;
use super::ids::{FileKey, Owner, ShareName};
use super::node::{Arbiter, NodeState};
use super::open::{Open, OpenDescription};
use super::outcome::{Outcome, Rejection};
use super::state::State;

/// A file that is to be deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeletePending {
    /// The share through which that was wanted.
    pub share: ShareName,
    /// Its path there.
    pub path: Arc<str>,
    /// Whether it is due, and who was told to delete it.
    pub state: DeleteState,
}

/// Where the deletion of a file stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeleteState {
    /// Somebody has it open still.
    Pending,
    /// Nobody has; it is this incarnation's to delete. `None` if nobody was up to be told.
    Due(Option<Owner>),
}

impl State {
    /// What the close of an open means for the deletion of its file. The open is gone already, perhaps because an SMB
    /// server has wished for the file.
    pub(super) fn delete_after_close(&mut self, closed: &Open, wished_by: Option<Owner>) {
        let description = &closed.description;
        if description.delete_on_close && closed.arbiter == Arbiter::Cluster {
            self.set_delete_pending(description);
        }
        let is_pending =
            self.deletes.get(&description.file).is_some_and(|pending| pending.state == DeleteState::Pending);
        if is_pending && self.opens.of_file(description.file).next().is_none() {
            // Who waits for the file is told; else who had it open last is closest to it.
            let closest = wished_by.or(closed.holder()).filter(|owner| self.is_up(*owner));
            let deleter = closest.or_else(|| self.some_deleter());
            self.assign_delete(description.file, deleter);
        }
    }

    /// The file of this open shall be deleted when nobody has it open any more.
    pub(super) fn set_delete_pending(&mut self, description: &OpenDescription) {
        let pending = DeletePending {
            share: description.share.clone(),
            path: Arc::clone(&description.path),
            state: DeleteState::Pending,
        };
        self.deletes.entry(description.file).or_insert(pending);
        self.changes.deletes.insert(description.file);
    }

    /// The file shall not be deleted after all.
    pub(super) fn clear_delete_pending(&mut self, file: FileKey) {
        self.deletes.remove(&file);
        self.changes.deletes.insert(file);
    }

    /// Gives an SMB server a due deletion to do, or leaves it until there is one.
    pub(super) fn assign_delete(&mut self, file: FileKey, deleter: Option<Owner>) {
        let Some(pending) = self.deletes.get_mut(&file) else { return };
        pending.state = DeleteState::Due(deleter);
        let (share, path) = (pending.share.clone(), Arc::clone(&pending.path));
        self.changes.deletes.insert(file);
        if deleter.is_some() {
            self.tell(deleter, EventKind::DeleteFile { file, share, path });
        }
    }

    /// The deletions that this incarnation was told to do, which is down now, are others' to do.
    pub(super) fn reassign_deletes_of(&mut self, dead: Owner) {
        self.assign_deletes_that_are(DeleteState::Due(Some(dead)));
    }

    /// An SMB server has come up; deletions that nobody was there for are its to do.
    pub(super) fn assign_unassigned_deletes(&mut self) {
        self.assign_deletes_that_are(DeleteState::Due(None));
    }

    fn assign_deletes_that_are(&mut self, state: DeleteState) {
        let deleter = self.some_deleter();
        if DeleteState::Due(deleter) == state {
            return;
        }
        let found = self.deletes.iter().filter(|(_, pending)| pending.state == state);
        for file in found.map(|(file, _)| *file).collect::<Vec<_>>() {
            self.assign_delete(file, deleter);
        }
    }

    /// An SMB server that is up and lets the cluster decide: others delete by their own rules.
    fn some_deleter(&self) -> Option<Owner> {
        let up =
            self.nodes().find(|(_, node)| node.state == NodeState::Up && node.arbiter == Arbiter::Cluster);
        up.map(|(id, node)| Owner { node: id, incarnation: node.incarnation })
    }

    pub(super) fn file_deleted(&mut self, owner: Owner, file: FileKey) -> Result<Outcome, Rejection> {
        match self.deletes.get(&file).map(|pending| pending.state) {
            Some(DeleteState::Due(Some(deleter))) if deleter == owner => {
                self.clear_delete_pending(file);
                Ok(Outcome::Updated)
            }
            // Somebody else's to do by now, or done.
            _ => Err(Rejection::NotYoursToDelete(file)),
        }
    }
}
