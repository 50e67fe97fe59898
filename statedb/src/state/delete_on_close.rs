//! Files that are to be deleted: FileDeleteOnClose (MS-SMB2 3.3.1.12, MS-FSA 2.1.5.5).
//!
//! A file is *pending* from the moment on at which its deletion is decided (an open that was made to delete it is
//! closed, or FileDispositionInformation says so), and *due* when nobody has it open any more. Then one SMB server is told to
//! delete it and says when it has; until then nobody can open it, and if that server dies another one is told.
//!
//! SMB servers that decide for themselves delete by themselves. Only if one dies with an open that it would have closed,
//! and the file deleted with it, at the loss of the client, that is left to do: it is the node's that serves the
//! share next, before it lets a client in, or of SMB servers that have their records together the first one's.

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
    /// Who decided between the opens of it.
    pub arbiter: Arbiter,
    /// What the SMB server knew of the open with which it was to be deleted, by which its successor recognises the file;
    /// empty where the cluster decides.
    pub image: Arc<[u8]>,
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
            self.set_delete_pending(description, Arbiter::Cluster);
        }
        let pending = self.deletes.get(&description.file).map(|pending| (pending.state, pending.arbiter));
        let Some((DeleteState::Pending, arbiter)) = pending else { return };
        if self.opens.of_file(description.file).next().is_none() {
            // Who waits for the file is told; else who had it open last is closest to it.
            let closest = wished_by.or(closed.holder());
            let closest = closest.filter(|owner| arbiter == Arbiter::Cluster && self.is_up(*owner));
            let deleter = closest.or_else(|| self.some_deleter(arbiter, &description.share));
            self.assign_delete(description.file, deleter);
        }
    }

    /// The file of this open shall be deleted when nobody has it open any more.
    pub(super) fn set_delete_pending(&mut self, description: &OpenDescription, arbiter: Arbiter) {
        let image = match arbiter {
            Arbiter::Cluster => Arc::default(),
            Arbiter::SmbServer | Arbiter::SmbCluster => Arc::clone(&description.image),
        };
        let pending = DeletePending {
            share: description.share.clone(),
            path: Arc::clone(&description.path),
            arbiter,
            image,
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

    /// A file that an SMB server reports to be open is not deleted, whatever was due: it is there again.
    pub(super) fn keep_reopened_file(&mut self, file: FileKey) {
        if self.deletes.get(&file).is_some_and(|pending| pending.state != DeleteState::Pending) {
            self.clear_delete_pending(file);
        }
    }

    /// Whoever serves a share from now on deletes what was due there.
    pub(super) fn assign_deletes_of_share(&mut self, share: &ShareName, serving: Owner) {
        let is_of_share = |pending: &DeletePending| {
            pending.arbiter == Arbiter::SmbServer
                && pending.share == *share
                && pending.state != DeleteState::Pending
        };
        let found = self.deletes.iter().filter(|(_, pending)| is_of_share(pending));
        for file in found.map(|(file, _)| *file).collect::<Vec<_>>() {
            self.assign_delete(file, Some(serving));
        }
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
        let found = self.deletes.iter().filter(|(_, pending)| pending.state == state);
        let found: Vec<_> = found
            .map(|(file, pending)| (*file, self.some_deleter(pending.arbiter, &pending.share)))
            .filter(|(_, deleter)| DeleteState::Due(*deleter) != state)
            .collect();
        for (file, deleter) in found {
            self.assign_delete(file, deleter);
        }
    }

    /// Who can delete a file of a share without harm to anybody who has it open: an SMB server of the same kind that is
    /// up. Of separate ones only the serving one knows that nobody has.
    fn some_deleter(&self, arbiter: Arbiter, share: &ShareName) -> Option<Owner> {
        if arbiter == Arbiter::SmbServer {
            return self.serving_node(share).map(|serving| serving.owner).filter(|owner| self.is_up(*owner));
        }
        let up = self.nodes().find(|(_, node)| node.state == NodeState::Up && node.arbiter == arbiter);
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
