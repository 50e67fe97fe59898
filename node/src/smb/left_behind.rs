//! What a process of `smbd` leaves behind when it dies alone, killed or crashed, while the others go on.
//!
//! Its durable opens are disconnected in the cluster, as after a clean loss of the connection. But it has not rewritten
//! its records: they name a process that is dead, and `smbd` gives nothing back from those. So the sidecar rewrites
//! them, as it does with the orphans of another node ([`super::reconcile`]), before it lets anybody pass the gate.
//!
//! The opens are listed here from before the cluster knows of the loss until somebody has them back or they are
//! gone. After a restart of the sidecar the list is made anew from the records.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard};

use statedb::DurableFileId;
use tokio::sync::Notify;

/// The opens whose records a dead process has left as they were, and which are this sidecar's to rewrite.
#[derive(Debug, Default)]
pub struct LeftBehind {
    opens: Mutex<BTreeSet<DurableFileId>>,
    locks: Notify,
}

impl LeftBehind {
    /// Adds an open.
    pub fn add(&self, id: DurableFileId) {
        self.list().insert(id);
    }

    /// Somebody has it back, or it is gone.
    pub fn settle(&self, id: DurableFileId) {
        self.list().remove(&id);
    }

    /// Whether this one is among them.
    #[must_use]
    pub fn contains(&self, id: DurableFileId) -> bool {
        self.list().contains(&id)
    }

    /// Another incarnation has other databases, without a trace of them.
    pub fn clear(&self) {
        self.list().clear();
    }

    /// Byte-range locks may be there that are nobody's any more: a process has died without an end to what it had, which may be
    /// more than durable opens; or CTDB has brought them back.
    pub fn locks_were_left(&self) {
        self.locks.notify_one();
    }

    /// Resolves after locks may have been left, once for all that has happened meanwhile.
    pub async fn any_locks_left(&self) {
        self.locks.notified().await;
    }

    fn list(&self) -> MutexGuard<'_, BTreeSet<DurableFileId>> {
        self.opens.lock().expect("no holder of this lock can panic")
    }
}
