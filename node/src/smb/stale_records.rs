//! Under CTDB: keeps a node that has hung, or was cut off, from bringing records of long ago back into the cluster.
//!
//! While the lease holds, a quorum has heard of this node a moment ago. Once it has run off the others may have gone on
//! without it, and their ctdbds may have recovered without its ctdbd, which does not notice and whose old copies can win
//! when they meet again ([`samba::ctdb::Membership`]). So from then on its ctdbd is asked, until it is known to belong to
//! the same recovery as theirs; and if it does not, it is banned for a moment, by which CTDB forgets what it holds. Nobody
//! here loses anything by that: the `smbd` of a lease that has run off has ended.
//!
//! What is not seen here: a ctdbd that hangs or is cut off alone, while the sidecar beside it goes on. The cluster lock of
//! ctdb.conf(5) is for that.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use samba::CtdbError;
use samba::ctdb::{Connection, Membership};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::lease::ServiceLease;

/// Between two looks while the records may be old. The ctdbds need about a second from seeing each other again to the
/// recovery that reads all records.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(50);

/// Between two looks while there is no lease, but no doubt either.
const LOOK_AFTER: Duration = Duration::from_secs(1);

/// How long ctdbd, and through it another one, may take to answer what it knows by itself.
const ANSWERS_WITHIN: Duration = Duration::from_millis(500);

/// How long the ban lasts. A ctdbd that has not frozen its databases when it is over bans itself for much longer: by
/// `RecoveryBanPeriod`, five minutes unless it was changed.
const BAN: Duration = Duration::from_secs(5);

/// Looks after the ctdbd with this socket until `stop` is cancelled.
pub(super) async fn keep_out(socket: PathBuf, lease: Arc<ServiceLease>, stop: CancellationToken) {
    let mut until = lease.until();
    let mut is_doubtful = true;
    let mut bans = 0_u32;
    loop {
        let leased = until.borrow_and_update().filter(|until| *until > Instant::now());
        let pause = match leased {
            Some(until) if !is_doubtful => until.saturating_duration_since(Instant::now()),
            _ => {
                let membership = ban_if_stale(&socket).await;
                // An error is no answer: it may hang, or not run.
                is_doubtful = !matches!(membership, Ok(Membership::Member | Membership::Outside));
                bans = if matches!(membership, Ok(Membership::Stale)) { bans.saturating_add(1) } else { 0 };
                match bans {
                    1 => warn!(
                        for_s = BAN.as_secs(),
                        "CTDB has recovered without this node, whose ctdbd has not noticed: it is banned for a moment, so that records of long ago do not come back"
                    ),
                    2 => error!(
                        "ctdbd does not let itself be banned, and records of long ago may come back (is the tunable EnableBans 0?): stop smbd and ctdbd here, and start them again"
                    ),
                    _ => {}
                }
                if is_doubtful { LOOK_AGAIN_AFTER } else { LOOK_AFTER }
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = until.changed() => {}
            () = stop.cancelled() => return,
        }
    }
}

/// What the records of this node are worth. If they are stale, its ctdbd was just banned.
async fn ban_if_stale(socket: &Path) -> Result<Membership, CtdbError> {
    let socket = socket.to_owned();
    let look = move || {
        let mut ctdbd = Connection::open(&socket, ANSWERS_WITHIN)?;
        let membership = ctdbd.membership()?;
        if membership == Membership::Stale {
            ctdbd.ban(BAN)?;
        }
        Ok(membership)
    };
    tokio::task::spawn_blocking(look).await.expect("nothing in it panics")
}
