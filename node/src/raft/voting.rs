//! Whether this node may vote and stand for election.
//!
//! Raft assumes that a node remembers what it promised. Two things are not on disk, or not any more:
//!
//! - **The lease.** A follower that heard from its leader votes for nobody else for the leader's lease, and
//!   fencing relies on it. A restarted one has forgotten; so it waits one lease before it votes.
//! - **A lost disk.** A node that was given an empty data directory has forgotten votes and entries that a
//!   leader may have counted on. It must not help to elect anybody until a leader has brought it up to date.
//!   Until then a file, [`MARKER`], lies in its data directory.
//!
//! A *new cluster* has only nodes with empty directories. The one with the lowest id asks all others whether
//! they are new, too. Only if every one of them is, it tells them so, and the cluster is formed. One that is
//! not new, or does not answer, stops that: then it is a lost disk, or a cluster that is not all there yet.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use statedb::store::log::LogState;

/// Lies in the data directory of a node that does not know what it has forgotten.
const MARKER: &str = "not-a-voter-yet";

/// What this node may do in elections.
#[derive(Debug)]
pub(super) struct Voting {
    marker: PathBuf,
    /// Whether the marker is gone: nothing that this node ever promised is forgotten.
    remembers: AtomicBool,
    /// Whether the lease that it may have given before it was restarted has run off.
    lease_ran_off: AtomicBool,
}

/// Whether a log belongs to a node that never took part: it has no entry but the first membership.
pub(super) fn is_new(last_log_index: Option<u64>) -> bool {
    last_log_index.is_none_or(|index| index == 0)
}

impl Voting {
    /// At the start of a node. An empty log makes it a node that does not vote.
    pub(super) fn at_start(data_dir: &Path, log: &LogState) -> io::Result<Self> {
        let marker = data_dir.join(MARKER);
        let is_empty = log.vote.is_none() && log.last.is_none();
        if is_empty {
            File::create(&marker)?.sync_all()?;
            sync_dir(data_dir)?;
        }
        let remembers = !marker.try_exists()?;
        // A node that never voted never heard from a leader either.
        Ok(Self {
            marker,
            remembers: AtomicBool::new(remembers),
            lease_ran_off: AtomicBool::new(log.vote.is_none()),
        })
    }

    /// Whether it may vote and stand for election.
    pub(super) fn is_allowed(&self) -> bool {
        self.remembers() && self.lease_ran_off.load(Ordering::Acquire)
    }

    pub(super) fn remembers(&self) -> bool {
        self.remembers.load(Ordering::Acquire)
    }

    /// The cluster is formed with this node, or a leader has brought it up to date.
    pub(super) fn remember(&self) -> io::Result<()> {
        if self.remembers() {
            return Ok(());
        }
        match fs::remove_file(&self.marker) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        if let Some(data_dir) = self.marker.parent() {
            sync_dir(data_dir)?;
        }
        self.remembers.store(true, Ordering::Release);
        Ok(())
    }

    /// Waits until whatever lease was given before the restart has run off.
    pub(super) async fn wait_for_lease(&self, leader_lease: Duration) {
        if !self.lease_ran_off.load(Ordering::Acquire) {
            tokio::time::sleep(leader_lease).await;
            self.lease_ran_off.store(true, Ordering::Release);
        }
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use statedb::store::log::Vote;

    use super::*;

    #[tokio::test]
    async fn a_restarted_node_votes_after_a_lease_and_a_new_one_when_the_cluster_is_formed() {
        let dir = tempfile::tempdir().expect("a directory");
        let voting = Voting::at_start(dir.path(), &LogState::default()).expect("starts");
        assert!(!voting.is_allowed(), "its disk may have been lost");

        // It took a vote from the leader that rebuilds it, and was restarted before it was up to date.
        let vote = Vote { term: 7, committed: true, voted_for: 2 };
        let log = LogState { vote: Some(vote), ..LogState::default() };
        let voting = Voting::at_start(dir.path(), &log).expect("starts");
        voting.wait_for_lease(Duration::from_millis(5)).await;
        assert!(!voting.is_allowed(), "it still does not know what it has forgotten");
        voting.remember().expect("the marker can be removed");
        assert!(voting.is_allowed());

        let voting = Voting::at_start(dir.path(), &log).expect("starts");
        assert!(!voting.is_allowed(), "its lease has not run off");
        voting.wait_for_lease(Duration::from_millis(5)).await;
        assert!(voting.is_allowed());
    }
}
