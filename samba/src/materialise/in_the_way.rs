//! Whether somebody has come while an orphan was not in the records, whom it would have met there.
//!
//! smbd looks after an orphan that is in its records: whoever wants the file meets it by the protocol's rules. With CTDB
//! a node takes the records that it used last with it when it dies, and then somebody can come to a file before its
//! orphans are put back. What he finds, and what he is given, contradicts the orphan or it does not. If it does, he
//! stays and the orphan is closed: smbd has given him his open already.
//!
//! # What must stay true
//!
//! - In doubt somebody is in the way. An orphan that is closed without need costs its client a handle; one that is put back
//!   without right costs somebody his data.
//! - Opens that lived beside each other while they all were in the records are in nobody's way, so that putting back the
//!   orphans of a file one after the other keeps them all.
//!
//! # What cannot be known
//!
//! An open with access to attributes alone whose CREATE has overwritten the file looks like any other with such access,
//! which is in nobody's way.

use statedb::state::share_mode;
use statedb::{AccessMask, ClientGuid, LeaseKey, LeaseState};

use super::Traces;
use crate::image::OpenImage;
use crate::records::{BrlockEntry, LockingRecord, ServerId, ShareModeData, ShareModeEntry};

/// Whether an open in the share modes of an orphan's file contradicts the orphan: their share modes exclude each other,
/// or what one of them caches would have had to be broken for the other.
///
/// False while the orphan's own entry is there, as its dead process has left it or disconnected: who conflicts with such an
/// entry makes smbd take it away. So it may be asked before an orphan is put back, whatever is left of it, and of a value
/// that is about to be stored.
///
/// Entries of processes that are dead are nobody. `lease_state` is asked for the leases of other entries; one that is not
/// known (`None`) may allow everything.
#[must_use]
pub fn stands_in_the_way(
    record: &LockingRecord,
    image: &OpenImage,
    traces: Traces,
    is_alive: impl Fn(ServerId) -> bool,
    lease_state: impl Fn(ClientGuid, LeaseKey) -> Option<LeaseState>,
) -> bool {
    let Some(share_modes) = record.share_modes() else {
        return false;
    };
    if share_modes.entries.iter().any(|entry| traces.has_entry(entry)) {
        return false;
    }
    // Whoever marks a file for deletion takes away everybody else's handle caching, which every orphan lives by. A recovery
    // of CTDB also brings marks back of a file that had the inode before, and was deleted: they are for another name.
    let own_marks = |data: &ShareModeData| {
        let marks = data.delete_tokens.marks.iter();
        marks.filter(|mark| mark.name_hash == image.entry().name_hash).count()
    };
    let was_marked = share_modes.data.as_ref().map_or(0, own_marks) > own_marks(image.data());

    let orphan = Caching { entry: image.entry(), state: image.caching() };
    was_marked
        || share_modes.entries.iter().any(|entry| {
            let is_away = entry.server_id == ServerId::DISCONNECTED;
            if !is_away && !is_alive(entry.server_id) {
                return false;
            }
            let state = entry.lease().map(|(client, key)| lease_state(client, key).unwrap_or(EVERYTHING));
            contradicts(&orphan, &Caching::of(entry, state), is_away)
        })
}

/// What a lease allows of which nothing is known.
const EVERYTHING: LeaseState = LeaseState(LeaseState::READ | LeaseState::HANDLE | LeaseState::WRITE);

/// An open of a file and what it may cache.
struct Caching<'a> {
    entry: &'a ShareModeEntry,
    state: LeaseState,
}

impl<'a> Caching<'a> {
    /// An open whose lease, if it has one, is in that state.
    fn of(entry: &'a ShareModeEntry, lease: Option<LeaseState>) -> Self {
        let state = match entry.op_type {
            ShareModeEntry::NO_OPLOCK => LeaseState::NONE,
            ShareModeEntry::LEVEL_II_OPLOCK => LeaseState(LeaseState::READ),
            ShareModeEntry::LEASE_OPLOCK => lease.unwrap_or(EVERYTHING),
            _ => EVERYTHING,
        };
        Self { entry, state }
    }

    fn may(&self, access: u32) -> bool {
        self.entry.access_mask.0 & access != 0
    }

    /// Whether what another open caches is broken when this one is made. Reading the security descriptor breaks an
    /// oplock and does not break a lease (MS-FSA 2.1.4.12).
    fn reaches(&self, other: &Self) -> bool {
        let harmless = if other.entry.lease().is_some() { AccessMask::READ_CONTROL } else { 0 };
        !AccessMask(self.entry.access_mask.0 & !harmless).is_stat_only()
    }

    /// Whether the open caches writes of which the other one would have to know.
    fn hides_writes_from(&self, other: &Self) -> bool {
        self.state.has_write_caching() && (other.reaches(self) || other.state != LeaseState::NONE)
    }
}

fn contradicts(orphan: &Caching<'_>, other: &Caching<'_>, other_is_away: bool) -> bool {
    let share_mode = |open: &Caching<'_>| (open.entry.access_mask, open.entry.share_access);
    if share_mode::excludes(share_mode(orphan), share_mode(other)) {
        return true;
    }
    if orphan.entry.lease().is_some() && orphan.entry.lease() == other.entry.lease() {
        return false;
    }
    // Somebody who has the file open for writing may have written by now. One who is away has not, and came before
    // the orphan was lost or was judged when he came.
    let may_have_written = !other_is_away && other.may(AccessMask::WRITE_DATA | AccessMask::APPEND_DATA);
    orphan.hides_writes_from(other)
        || other.hides_writes_from(orphan)
        || (may_have_written && orphan.state != LeaseState::NONE)
}

/// What byte-range locks of others mean for an orphan whose own are not among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LocksInTheWay {
    /// The orphan can be put back beside them.
    None,
    /// One of them lies where the orphan has one. A client that knew of the orphan's would have been refused, and the
    /// orphan would have stayed.
    Overlap,
    /// One of them would have broken what the orphan caches, and with it the orphan (MS-SMB2 3.3.4.7).
    BreaksCaching,
}

/// Whether byte-range locks on an orphan's file contradict the orphan, whose file has those share modes.
///
/// [`LocksInTheWay::Overlap`] before [`LocksInTheWay::BreaksCaching`]: smbd too looks at other locks first.
#[must_use]
pub fn locks_in_the_way(
    locks: &[BrlockEntry],
    record: &LockingRecord,
    image: &OpenImage,
    is_alive: impl Fn(ServerId) -> bool,
) -> LocksInTheWay {
    let others = || {
        locks.iter().filter(|lock| {
            let is_there = lock.server_id == ServerId::DISCONNECTED || is_alive(lock.server_id);
            is_there && lock.smblctx != image.durable_file_id().0
        })
    };
    let keeps_out = |lock: &BrlockEntry| {
        image.byte_range_locks().iter().any(|own| own.range().keeps_out(lock.range(), false))
    };
    if others().any(keeps_out) {
        return LocksInTheWay::Overlap;
    }
    let caches = Caching { entry: image.entry(), state: image.caching() }.state != LeaseState::NONE;
    if caches && others().any(|lock| !is_under_lease_of(lock, record, image)) {
        return LocksInTheWay::BreaksCaching;
    }
    LocksInTheWay::None
}

/// Whether a lock surely belongs to an open under the orphan's lease. A lock names its process, not its lease.
fn is_under_lease_of(lock: &BrlockEntry, record: &LockingRecord, image: &OpenImage) -> bool {
    let may_have_it = |entry: &&ShareModeEntry| {
        entry.server_id == lock.server_id
            && (entry.server_id != ServerId::DISCONNECTED || entry.share_file_id == lock.smblctx)
    };
    let entries = record.share_modes().map_or(&[][..], |share_modes| &share_modes.entries);
    let lease = image.entry().lease();
    let mut holders = entries.iter().filter(may_have_it).peekable();
    lease.is_some() && holders.peek().is_some() && holders.all(|entry| entry.lease() == lease)
}
