//! The end of an open, for whatever reason, and of its connection.

use super::breaks::break_target;
use super::event::{CloseReason, EventKind};
use super::ids::{DurableFileId, Owner, SessionId};
use super::node::Arbiter;
use super::open::{Durability, Open, OpenDescription, OpenState};
use super::oplock::OplockState;
use super::outcome::Rejection;
use super::state::State;
use super::time::Timestamp;
use super::waiting::Awaited;

impl State {
    /// Removes an open with everything that hangs on it. With a `reason` it was not its client's wish, and the SMB
    /// server in which it lives is told.
    pub(super) fn close_open(&mut self, id: DurableFileId, reason: Option<CloseReason>) {
        self.close_open_for(id, reason, None);
    }

    /// The same, when it is `wished_by` an SMB server that wants the file: if that is due for deletion now, it is this
    /// server's to delete.
    pub(super) fn close_open_for(
        &mut self,
        id: DurableFileId,
        reason: Option<CloseReason>,
        wished_by: Option<Owner>,
    ) {
        let Some(open) = self.remove_open(id) else { return };
        if let Some(reason) = reason {
            // One that is going down in this very command hears nothing any more.
            let holder = open.holder().filter(|holder| self.is_up(*holder));
            self.tell(holder, EventKind::OpenClosed { open: id, reason });
        }
        let target = break_target(&open);
        if self.opens_of(target).next().is_none() {
            self.forget_break(target);
        } else {
            self.break_lost_its_client(target);
        }
        self.cancel_operations_of(&open);
        self.delete_after_close(&open, wished_by);
        self.file_released(open.description.file);
    }

    /// Takes an open from the SMB server that it lives in. Returns until when it waits for its client; `None` if the
    /// protocol does not keep it, and it is closed.
    ///
    /// The promise is a time to wait after the loss (MS-SMB2 2.2.14.2.12), and the loss is what this entry decides:
    /// never an earlier moment that some node may have seen. One that waits already goes on waiting until its first
    /// deadline.
    pub(super) fn lose_connection(&mut self, id: DurableFileId, keeper: Option<Owner>) -> Option<Timestamp> {
        let open = self.opens.get(id)?;
        if deletes_its_file(open) {
            let (description, arbiter) = (open.description.clone(), open.arbiter);
            self.set_delete_pending(&description, arbiter);
            self.close_open(id, None);
            return None;
        }
        if !open.description.outlives_its_connection() || loses_its_locks(open) {
            self.close_open(id, None);
            return None;
        }
        let until = open.deadline().unwrap_or_else(|| self.now.after(open.description.durable_open_timeout));
        let (file, target) = (open.description.file, break_target(open));
        self.cancel_operations_of(&open.clone());
        self.set_open_state(id, OpenState::Disconnected { keeper, durable_open_scavenger_timeout: until });
        self.break_lost_its_client(target);
        // Who waits for an acknowledgement of this client would wait in vain.
        self.file_released(file);
        Some(until)
    }

    /// The client of a disconnected open is back, through `owner`. What somebody has wanted of it in the meantime, it is
    /// asked for now; what another client of its lease has been asked for, it has been asked for too.
    pub(super) fn client_is_back(&mut self, id: DurableFileId, owner: Owner, session: Option<SessionId>) {
        self.set_open_state(id, OpenState::Connected { owner, session });
        let target = self.opens.get(id).map(break_target);
        if target.is_some_and(|target| self.breaks.get(target).is_some()) {
            self.edit_open(id, |open| open.oplock_state = OplockState::Breaking);
        }
        self.ask_for_saved_break(id);
    }

    /// The open, if it lives in the SMB server of `owner`, connected or kept.
    pub(super) fn held_open(&self, owner: Owner, id: DurableFileId) -> Result<&Open, Rejection> {
        let open = self.opens.get(id).ok_or(Rejection::OpenNotFound(id))?;
        match open.holder() {
            Some(holder) if holder == owner => Ok(open),
            holder => Err(Rejection::NotOwner { open: id, holder }),
        }
    }

    /// The open, if `owner` is to be believed about it: if it lives in that SMB server, or in the records that this server
    /// has together with others.
    pub(super) fn reported_open(&self, owner: Owner, id: DurableFileId) -> Result<&Open, Rejection> {
        match self.held_open(owner, id) {
            Err(Rejection::NotOwner { open, holder }) => {
                let found = self.opens.get(id).filter(|open| self.has_records_of(owner, open));
                found.ok_or(Rejection::NotOwner { open, holder })
            }
            held => held,
        }
    }

    /// The open, if a client has it through `owner`; for everybody else its FileId is void.
    pub(super) fn connected_open(&self, owner: Owner, id: DurableFileId) -> Result<&Open, Rejection> {
        self.opens
            .get(id)
            .filter(|open| open.connected_through() == Some(owner))
            .ok_or(Rejection::FileClosed(id))
    }

    /// Changes what is known of an open, but neither its id, its client's ClientGuid, its CreateGuid nor its file, by
    /// which it is found, nor its lease's key.
    pub(super) fn edit_open(&mut self, id: DurableFileId, edit: impl FnOnce(&mut OpenDescription)) {
        if let Some(description) = self.opens.description_mut(id) {
            edit(description);
            self.changes.opens.insert(id);
        }
    }

    /// Once something was done through an open, its client has heard of it, and a CREATE cannot be the replay of its own
    /// any more (MS-SMB2 3.3.5.14, 3.3.5.22).
    pub(super) fn clear_replay_eligible(&mut self, id: DurableFileId) {
        self.edit_open(id, |open| open.is_replay_eligible = false);
    }

    /// What waits to be done through an open waits no more.
    fn cancel_operations_of(&mut self, open: &Open) {
        let id = open.description.durable_file_id;
        for index in self.waiting.of_file(open.description.file) {
            let of_this =
                |awaited: &Awaited| matches!(awaited, Awaited::Operation { open, .. } if *open == id);
            if self.waiting.get(index).is_some_and(|waiting| of_this(&waiting.awaited)) {
                self.cancel_waiting(index, Rejection::FileClosed(id));
            }
        }
    }
}

/// Whether a durable open of an SMB server that decides for itself does not outlive its connection because its file is
/// deleted with it. Samba keeps no such open, whether it was made to delete the file or the file was marked later, and says
/// so itself when it loses the client cleanly. Here nobody does.
fn deletes_its_file(open: &Open) -> bool {
    let description = &open.description;
    open.arbiter != Arbiter::Cluster
        && matches!(description.durability, Durability::DurableV1 | Durability::DurableV2)
        && description.deletes_its_file()
}

/// Whether a durable open has byte-range locks and no write caching, without which nothing keeps others from the ranges
/// while its client is away: such an open is closed with its connection. SMB servers that decide themselves have rules of
/// their own here, as Samba has from release to release.
fn loses_its_locks(open: &Open) -> bool {
    let description = &open.description;
    let is_durable = matches!(description.durability, Durability::DurableV1 | Durability::DurableV2);
    open.arbiter == Arbiter::Cluster
        && is_durable
        && !description.byte_range_locks.is_empty()
        && !description.oplock.caching().has_write_caching()
}
