//! Under CTDB: notices that the cluster has recovered its databases.
//!
//! A recovery takes the newest copy that is left of each record. Where the newest of all has gone with a node, that can be one
//! from before an open has ended ([`samba::materialise::Present`]). The share modes among them are looked through by whoever
//! opens the file, and where an orphan is placed. Byte-range locks are looked through by nobody, and cost the next file with
//! the inode its batch oplocks; so they are swept after each recovery ([`LeftBehind::locks_were_left`]).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use samba::CtdbError;
use samba::ctdb::Connection;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::left_behind::LeftBehind;
use crate::telemetry::chain;

/// Between two looks: how long clients may be kept from batch oplocks without need.
const LOOK_AFTER: Duration = Duration::from_millis(200);

/// How long ctdbd may take to answer what it knows by itself.
const ANSWERS_WITHIN: Duration = Duration::from_millis(500);

/// Says after each recovery that locks may have been left, until `stop` is cancelled.
pub(super) async fn watch(socket: PathBuf, left_behind: Arc<LeftBehind>, stop: CancellationToken) {
    let mut seen = None;
    loop {
        match finished_recovery(&socket).await {
            Ok(Some(recovery)) if seen != Some(recovery) => {
                debug!(recovery, "CTDB has recovered the databases");
                seen = Some(recovery);
                left_behind.locks_were_left();
            }
            Ok(_) => {}
            // It is stopped, or just starting.
            Err(error) => debug!(error = %chain(&error), "ctdbd does not say whether it has recovered"),
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_AFTER) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// The recovery that the databases come from; `None` while they are being recovered, and before they ever were.
async fn finished_recovery(socket: &Path) -> Result<Option<u32>, CtdbError> {
    let socket = socket.to_owned();
    let look = move || {
        let mut ctdbd = Connection::open(&socket, ANSWERS_WITHIN)?;
        // In this order: a recovery has its number before it is finished.
        let recovery = ctdbd.generation(ctdbd.pnn())?;
        let is_under_way = ctdbd.is_recovering()?;
        Ok(recovery.filter(|_| !is_under_way))
    };
    tokio::task::spawn_blocking(look).await.expect("nothing in it panics")
}
