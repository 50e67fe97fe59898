//! What is done through an open that others may have cached: writes, renames, deletions.

use std::sync::Arc;

use super::caching::Cause;
use super::command::Operation;
use super::ids::{DurableFileId, FileKey, LeaseId, Owner};
use super::node::Arbiter;
use super::open::{Durability, Open};
use super::outcome::{Outcome, Rejection};
use super::state::State;
use super::waiting::Awaited;

impl State {
    /// Lets a client do something to a file, when nobody caches any more what it changes.
    pub(super) fn operate(
        &mut self,
        owner: Owner,
        sequence: u64,
        id: DurableFileId,
        operation: &Operation,
    ) -> Result<Outcome, Rejection> {
        match self.operate_or_break(owner, id, operation)? {
            Outcome::BreakPending => {
                let file = self.connected_open(owner, id)?.description.file;
                let awaited = Awaited::Operation { open: id, operation: operation.clone() };
                self.wait(owner, sequence, file, awaited)
            }
            decided => Ok(decided),
        }
    }

    /// Does it, or breaks what others cache and says that it has to wait for that.
    pub(super) fn operate_or_break(
        &mut self,
        owner: Owner,
        id: DurableFileId,
        operation: &Operation,
    ) -> Result<Outcome, Rejection> {
        let open = self.connected_open(owner, id)?;
        if let Operation::Rename { .. } = operation {
            self.check_nobody_waits_below(open)?;
        }
        let cause = match operation {
            Operation::Write => Some(Cause::Write),
            Operation::Rename { .. } | Operation::SetDeletePending(true) => Some(Cause::RenameOrDelete),
            Operation::SetMetadata | Operation::SetDeletePending(false) => None,
        };
        if let Some(cause) = cause
            && self.break_others(id, cause)?
        {
            return Ok(Outcome::BreakPending);
        }
        self.clear_replay_eligible(id);
        self.break_parent(id, owner);
        match operation {
            Operation::Write | Operation::SetMetadata => {}
            Operation::Rename { path, parent_directory } => self.rename(id, owner, path, *parent_directory),
            Operation::SetDeletePending(is_pending) => self.set_disposition(id, *is_pending),
        }
        Ok(Outcome::Proceed)
    }

    /// Tells who caches the directory of an open's file that something in it has changed, but for the lease that the open
    /// has named as its parent's.
    pub(super) fn break_parent(&mut self, id: DurableFileId, owner: Owner) {
        let Some(open) = self.opens.get(id) else { return };
        let Some(directory) = open.description.parent_directory else { return };
        let parent = open.description.oplock.lease().and_then(|lease| lease.parent);
        let own = parent.map(|key| LeaseId { client_guid: open.description.client_guid, key });
        self.break_directory(directory, owner, own);
    }

    /// All opens of the file, and if it is a directory those below it, go by their new paths from now on.
    fn rename(
        &mut self,
        id: DurableFileId,
        owner: Owner,
        path: &Arc<str>,
        parent_directory: Option<FileKey>,
    ) {
        let Some(open) = self.opens.get(id) else { return };
        let (file, share) = (open.description.file, open.description.share.clone());
        let below = open.description.is_directory.then(|| format!("{}/", open.description.path));
        for sibling in self.opens.ids_of_file(file) {
            self.edit_open(sibling, |open| {
                open.path = Arc::clone(path);
                open.parent_directory = parent_directory;
            });
        }
        // A directory is seldom renamed while files below it are open, so all opens of the share are looked at.
        if let Some(below) = below {
            let moved: Vec<(DurableFileId, Arc<str>)> = self
                .opens
                .of_share(&share)
                .filter_map(|open| {
                    let rest = open.description.path.strip_prefix(below.as_str())?;
                    Some((open.description.durable_file_id, format!("{path}/{rest}").into()))
                })
                .collect();
            for (moved, path) in moved {
                self.edit_open(moved, |open| open.path = path);
            }
        }
        self.break_parent(id, owner);
    }

    /// Refuses to rename a directory above a persistent open whose client is away: it would come back by a path that is
    /// another file's.
    fn check_nobody_waits_below(&self, open: &Open) -> Result<(), Rejection> {
        if !open.description.is_directory {
            return Ok(());
        }
        let below = format!("{}/", open.description.path);
        let waits_below = |other: &&Open| {
            other.deadline().is_some()
                && other.description.durability == Durability::Persistent
                && other.description.path.starts_with(&below)
        };
        match self.opens.of_share(&open.description.share).find(waits_below) {
            Some(other) => Err(Rejection::DirectoryOfPersistentOpen(other.description.durable_file_id)),
            None => Ok(()),
        }
    }

    fn set_disposition(&mut self, id: DurableFileId, is_pending: bool) {
        let Some(open) = self.opens.get(id) else { return };
        let description = open.description.clone();
        if is_pending {
            self.set_delete_pending(&description, Arbiter::Cluster);
        } else {
            self.clear_delete_pending(description.file);
        }
    }
}
