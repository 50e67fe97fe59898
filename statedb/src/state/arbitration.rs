//! Opens that SMB servers have decided on by themselves: what they report is held against what the cluster knows.
//!
//! Between separate SMB servers the serving node of a share keeps conflicts from arising. One that is reported all the same
//! means that the files are reached by another way, for example through two shares, and is refused. SMB servers that are
//! coherent among themselves are right by definition: what they report is recorded.

use super::command::Request;
use super::create::Create;
use super::event::{CloseReason, EventKind};
use super::ids::{DurableFileId, Owner};
use super::node::Arbiter;
use super::open::{Open, OpenDescription};
use super::oplock::LeaseState;
use super::outcome::Rejection;
use super::share_mode;
use super::state::State;

impl State {
    /// Refuses a request of an SMB server that has registered as one that makes no such requests.
    pub(super) fn check_arbiter(&self, owner: Owner, request: &Request) -> Result<(), Rejection> {
        let is_decided_by_cluster = self.arbiter_of(owner) == Arbiter::Cluster;
        match request {
            Request::Disconnect(_)
            | Request::Close(_)
            | Request::FileDeleted(_)
            | Request::ServeShare(_)
            | Request::ReleaseShare(_) => Ok(()),
            Request::Grant(_) | Request::Update(_) | Request::Reclaim(_) if is_decided_by_cluster => {
                Err(Rejection::WrongArbiter)
            }
            Request::Grant(_) | Request::Update(_) | Request::Reclaim(_) => Ok(()),
            _ if is_decided_by_cluster => Ok(()),
            _ => Err(Rejection::WrongArbiter),
        }
    }

    /// Whether an SMB server has the records of an open that may live in another one: both are of the kind that is coherent
    /// among itself. What one of them does to those records has been done to the open.
    pub(super) fn has_records_of(&self, owner: Owner, open: &Open) -> bool {
        open.arbiter == Arbiter::SmbCluster && self.arbiter_of(owner) == Arbiter::SmbCluster
    }

    /// Refuses an open that a separate SMB server reports, if it contradicts one that another SMB server has.
    pub(super) fn refuse_conflict(
        &mut self,
        owner: Owner,
        arbiter: Arbiter,
        reported: &OpenDescription,
    ) -> Result<(), Rejection> {
        if arbiter == Arbiter::SmbCluster {
            return Ok(());
        }
        let is_others = |open: &&Open| open.holder().is_some_and(|holder| holder != owner);
        let other =
            self.opens.of_file(reported.file).filter(is_others).find(|open| contradicts(reported, open));
        let Some((with, holder)) = other.map(|open| (open.description.durable_file_id, open.holder())) else {
            return Ok(());
        };
        self.tell(None, EventKind::ConflictRefused { open: reported.durable_file_id, with, holder });
        Err(Rejection::SharingViolation { with })
    }

    /// Refuses a CREATE that an SMB server which decides itself would have to give something up for: it would not know what
    /// to make of a break. As between separate SMB servers, the files are reached by another way than they should be.
    pub(super) fn refuse_beside_reported(
        &mut self,
        id: DurableFileId,
        create: &Create,
    ) -> Result<(), Rejection> {
        let reported = self.opens.of_file(create.file).filter(|open| open.arbiter != Arbiter::Cluster);
        let in_the_way =
            reported.filter(|open| open.holder().is_some()).find(|open| create.wants_room_of(open));
        let Some((with, holder)) = in_the_way.map(|open| (open.description.durable_file_id, open.holder()))
        else {
            return Ok(());
        };
        self.tell(None, EventKind::ConflictRefused { open: id, with, holder });
        Err(Rejection::SharingViolation { with })
    }

    /// Makes known which opens contradict one that an SMB server reports and is right about. An open that nobody has, and
    /// whose file a separate SMB server has given to somebody else, is lost: what its client caches is stale.
    pub(super) fn record_contradictions(
        &mut self,
        owner: Owner,
        arbiter: Arbiter,
        reported: &OpenDescription,
    ) {
        let contradicted = self.opens.of_file(reported.file).filter(|open| contradicts(reported, open));
        let contradicted: Vec<_> =
            contradicted.map(|open| (open.description.durable_file_id, open.holder())).collect();
        for (with, holder) in contradicted {
            self.tell(None, EventKind::Contradiction { open: reported.durable_file_id, with });
            if arbiter == Arbiter::SmbServer && holder != Some(owner) {
                self.close_open(with, Some(CloseReason::Purged));
            }
        }
    }
}

/// Whether two opens of one file cannot both be as they are.
fn contradicts(reported: &OpenDescription, open: &Open) -> bool {
    let other = &open.description;
    if other.durable_file_id == reported.durable_file_id {
        return false;
    }
    let excludes = share_mode::excludes(
        (reported.granted_access, reported.share_access),
        (other.granted_access, other.share_access),
    );
    let is_own_lease = other.lease_id().is_some() && other.lease_id() == reported.lease_id();
    let spoils = |one: &OpenDescription, other: &OpenDescription| {
        let is_there = !other.granted_access.is_stat_only() || other.oplock.caching() != LeaseState::NONE;
        one.oplock.caching().has_write_caching() && is_there
    };
    excludes || (!is_own_lease && (spoils(reported, other) || spoils(other, reported)))
}
