//! What a recovery of CTDB brings back although it has ended.
//!
//! A node takes the newest copy of a record that it has used last with it when it dies, and the recovery finds the newest
//! that is left: the record as it was when it went from there to somewhere else. Opens may be in it that were closed
//! since, or that another process has had meanwhile.
//!
//! What such a copy says of a living process is so: a process alone adds and takes away entries of its own, its node
//! keeps what it has stored, and every newer copy has that too. Of the rest it is told by who is still there: an
//! entry of a dead process or of a client that is away, whose open the cluster does not know, is a *ghost*. Nobody may be
//! kept out for it, and smbd gives no open back beside it.
//!
//! A known gap: CTDB's vacuuming deletes the copies of an empty record node by node and may stop half-way. The newest that is
//! left can then be older still, and have entries that a living process has taken away since.

use statedb::{DurableFileId, FileKey};

use super::{Edit, EntryRemoval, MaterialiseError, Traces, remove_entries};
use crate::records::{BrlockEntry, LockingRecord, ServerId, ShareModeEntry};

/// Who is still there of those whom a record names.
pub struct Present<A, K> {
    /// Whether a process lives.
    pub is_alive: A,
    /// Whether the cluster knows an open, wherever its client is.
    pub is_known: K,
}

impl<A: Fn(ServerId) -> bool, K: Fn(DurableFileId) -> bool> Present<A, K> {
    fn has_entry(&self, entry: &ShareModeEntry) -> bool {
        self.has(entry.server_id, entry.share_file_id)
    }

    fn has_lock(&self, lock: &BrlockEntry) -> bool {
        self.has(lock.server_id, lock.smblctx)
    }

    fn has(&self, holder: ServerId, id: u64) -> bool {
        match holder {
            ServerId::DISCONNECTED => (self.is_known)(DurableFileId(id)),
            process => (self.is_alive)(process),
        }
    }

    /// The share modes of a file without ghosts; but with all traces of an open that is to be placed.
    #[must_use]
    pub fn entries_of(&self, record: &LockingRecord, placed: Traces) -> LockingRecord {
        let mut record = record.clone();
        if let Some(share_modes) = record.lock.as_mut().and_then(|lock| lock.share_modes.as_mut()) {
            share_modes.entries.retain(|entry| placed.has_entry(entry) || self.has_entry(entry));
        }
        record
    }

    /// The byte-range locks of a file without those of ghosts.
    #[must_use]
    pub fn locks_of(&self, locks: &[BrlockEntry]) -> Vec<BrlockEntry> {
        locks.iter().filter(|lock| self.has_lock(lock)).copied().collect()
    }

    /// What becomes of the share modes of a file when its ghosts are laid.
    pub fn lay_entries(
        &self,
        local: Option<LockingRecord>,
        file: FileKey,
    ) -> Result<EntryRemoval, MaterialiseError> {
        remove_entries(local, file, |entry| !self.has_entry(entry))
    }

    /// What becomes of the byte-range locks of a file when those of its ghosts are removed.
    #[must_use]
    pub fn lay_locks(&self, local: &[BrlockEntry]) -> Edit<Vec<BrlockEntry>> {
        Edit::of_removal(local, self.locks_of(local))
    }
}
