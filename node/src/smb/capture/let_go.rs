//! A client that is back before the process that served it has let go of its opens.
//!
//! A connection breaks, and its client makes a new one at once, to the same node. The new process of `smbd` looks for the
//! open while the old one has not put it aside yet: `smbd` says that there is no such open, and the client drops its handle
//! for good. So the new process asks before it looks ([`frame::Request::Look`]), and waits here for the old one.
//!
//! Under CTDB the shim asks about opens of other nodes ([`super::super::look`]).
//!
//! # What must stay true
//!
//! - Nobody waits for a process that has a client: it will not let go. `smbd` refuses then, as it should.
//! - Nobody waits for longer than [`LETS_GO_WITHIN`]. Then `smbd` answers by what it finds.
//! - Nobody who waits holds a lock that the old process needs: the shim does not ask under one.

use tokio::time::timeout;

use super::super::processes::has_client;
use super::super::reconcile::Reconciled;
use super::*;

/// How long a process may take to let go of an open whose client has left it: for each of the client's opens a commit or
/// two, which wait for an election if the leader dies just then. Half of what a client waits for an answer.
const LETS_GO_WITHIN: Duration = Duration::from_secs(10);

impl Capture {
    /// Waits until the process that served an open has let go of it, unless that is `asker`, or has a client still.
    pub async fn let_go(&self, id: DurableFileId, asker: u32, reconciled: &Reconciled) {
        let asked_at = Instant::now();
        let let_go = async {
            while let Some(process) = self.served_by(id).filter(|process| *process != asker) {
                if !is_doomed(process) && has_client(process).await {
                    return;
                }
                sleep(LOOK_AGAIN_AFTER).await;
            }
            // Its record is as the process has left it, unless this sidecar has to rewrite or to remove it.
            reconciled.placed(id, self.record_changed_at(id)).await;
        };
        match timeout(LETS_GO_WITHIN, let_go).await {
            Ok(()) => debug!(durable_file_id = %id, held = ?asked_at.elapsed(), "smbd may look at an open"),
            Err(_) => {
                warn!(durable_file_id = %id, "a client is back for an open of which the process that served it does not let go")
            }
        }
    }

    fn served_by(&self, id: DurableFileId) -> Option<u32> {
        self.opens().get(id).and_then(|local| local.process)
    }

    /// The entry of the log that made this sidecar change the record of an open, or an older one if there is none.
    fn record_changed_at(&self, id: DurableFileId) -> u64 {
        let applied = self.raft.read(|state| match state.open(id) {
            Some(_) => None,
            None => state.applied().map(|log_id| log_id.index),
        });
        applied.unwrap_or_else(|| self.bereaved_at())
    }
}
