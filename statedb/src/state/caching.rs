//! Who may cache a file at the same time, and what has to be given up for whom (MS-FSA 2.1.4.12 and 2.1.5.18).
//!
//! Oplocks are looked at as if they were leases ([`Oplock::caching`]): level II is R, exclusive RW, batch RWH. Here
//! is computed only; who is asked, who waits, and what becomes of those whose client is away is decided in `breaks`.
//!
//! What must stay true: who caches writes is the only one who caches anything, but for opens of the same lease.

use super::oplock::{Lease, LeaseState, Oplock, OplockLevel};

/// Why others have to give up something of what they cache. Opens of the same lease are not others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Cause {
    /// A CREATE, unless what its open may do [leaves](super::open::AccessMask::leaves_alone) the other's cache alone.
    Open {
        /// It empties the file: FILE_SUPERSEDE, FILE_OVERWRITE or FILE_OVERWRITE_IF of a file that exists.
        overwrites: bool,
        /// The share modes of the two exclude each other. The holder may have closed the file already, as far as its
        /// application knows, and is asked first.
        excludes: bool,
    },
    /// Data or the end of the file change.
    Write,
    /// A byte range is locked.
    Lock,
    /// The file gets another name, or shall be deleted.
    RenameOrDelete,
    /// Something in the directory changes.
    ChangeInDirectory,
}

/// What is asked of the holder of an oplock or a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Demand {
    /// What it may cache from now on.
    pub(super) to: LeaseState,
    /// Whether what caused it waits for the acknowledgement.
    pub(super) waits: bool,
}

/// What a holder has to give up; `None` if it can keep everything.
///
/// Ask with what it holds before a break that is under way already: then it is known whether to wait for that one.
pub(super) fn demand(cause: Cause, held: LeaseState) -> Option<Demand> {
    let (to, waits) = match cause {
        Cause::Open { excludes: true, .. } | Cause::RenameOrDelete => {
            (held.without(LeaseState::HANDLE), held.has_handle_caching())
        }
        Cause::Open { overwrites: false, .. } => (held.without(LeaseState::WRITE), held.has_write_caching()),
        // What is cached for reading alone becomes stale, but nothing is lost if it does so a moment early.
        Cause::Open { overwrites: true, .. } | Cause::Write | Cause::Lock | Cause::ChangeInDirectory => {
            (LeaseState::NONE, held.has_write_caching())
        }
    };
    (to != held).then_some(Demand { to, waits })
}

/// The oplock whose holder is asked to go down to `to`: there is nothing between level II and none.
pub(super) fn oplock_after(to: LeaseState) -> Oplock {
    if to.0 & LeaseState::READ == 0 { Oplock::None } else { Oplock::LevelII }
}

/// Whether the holder answers a break (MS-SMB2 3.3.4.6, 3.3.4.7): not if it cached nothing but what it read.
pub(super) fn needs_ack(held: LeaseState) -> bool {
    held.has_handle_caching() || held.has_write_caching()
}

/// Another open of the file, of another lease than the one that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Other {
    /// What it caches.
    pub(super) caching: LeaseState,
    /// Whether it belongs to a lease, even to one that allows nothing any more.
    pub(super) is_lease: bool,
    /// Whether it reaches attributes alone.
    pub(super) is_stat_only: bool,
}

/// What can be granted of an oplock or a lease that is asked for (MS-FSA 2.1.5.18).
///
/// `is_stat_only` says that the open reaches the attributes alone of a file that existed; `others` are those that
/// are left after the breaks; `file_has_locks` that any of them has a byte-range lock. A file that was emptied by the
/// CREATE counts as one without locks.
pub(super) fn grant(
    requested: Oplock,
    is_directory: bool,
    is_stat_only: bool,
    others: impl Iterator<Item = Other>,
    file_has_locks: bool,
) -> Oplock {
    let others = Company::of(others);
    match requested {
        Oplock::Lease(lease) => {
            let state = others.lease_state(valid(lease.state, is_directory), file_has_locks);
            let epoch = if state == LeaseState::NONE { lease.epoch } else { lease.next_epoch() };
            Oplock::Lease(Lease { state, epoch, ..lease })
        }
        Oplock::None => Oplock::None,
        Oplock::LevelII | Oplock::Exclusive | Oplock::Batch => {
            if is_directory || is_stat_only || file_has_locks {
                return Oplock::None;
            }
            others.oplock(requested)
        }
    }
}

/// The lease after a CREATE that names it again (MS-SMB2 3.3.5.9.8): what is asked for, if that is more than it
/// allows and all of it can be granted, and no break is under way; otherwise what it was.
pub(super) fn upgraded(
    current: Lease,
    requested: LeaseState,
    is_breaking: bool,
    is_directory: bool,
    others: impl Iterator<Item = Other>,
    file_has_locks: bool,
) -> Lease {
    let requested = valid(requested, is_directory);
    let is_more = current.state.is_within(requested) && current.state != requested;
    if is_breaking || !is_more || Company::of(others).lease_state(requested, file_has_locks) != requested {
        return current;
    }
    Lease { state: requested, epoch: current.next_epoch(), ..current }
}

/// Whether a lease may be acknowledged down to a state (MS-SMB2 3.3.5.22.2).
pub(super) fn accept_lease_ack(to: LeaseState, acknowledged: LeaseState) -> bool {
    acknowledged.is_within(to)
}

/// What is left of an oplock whose break is acknowledged with `level` (MS-SMB2 3.3.5.22.1, MS-FSA 2.1.5.19); `None`
/// if no break leads to that level. Level II is what the client was offered, or is less than it believes by now: then
/// nothing is left.
pub(super) fn accept_oplock_ack(to: LeaseState, level: OplockLevel) -> Option<Oplock> {
    match level {
        OplockLevel::None => Some(Oplock::None),
        OplockLevel::LevelII => Some(oplock_after(to)),
        OplockLevel::Exclusive | OplockLevel::Batch | OplockLevel::Lease => None,
    }
}

/// A lease state that exists (MS-SMB2 2.2.13.2.8), on a file or a directory: nothing is cached without reads.
fn valid(requested: LeaseState, is_directory: bool) -> LeaseState {
    let known = requested.and(LeaseState(LeaseState::READ | LeaseState::HANDLE | LeaseState::WRITE));
    let known = if is_directory { known.without(LeaseState::WRITE) } else { known };
    if known.0 & LeaseState::READ == 0 { LeaseState::NONE } else { known }
}

/// What matters of the others.
#[derive(Clone, Copy, Debug, Default)]
struct Company {
    /// Somebody caches writes.
    caches_writes: bool,
    /// Somebody has an oplock that is no lease.
    has_oplock: bool,
    /// Somebody has handle caching.
    has_handle_caching: bool,
    /// Somebody is there who could read or write, or has a lease.
    excludes_write_caching: bool,
}

impl Company {
    fn of(others: impl Iterator<Item = Other>) -> Self {
        others.fold(Self::default(), |company, other| {
            let caches = other.caching != LeaseState::NONE;
            Self {
                caches_writes: company.caches_writes || other.caching.has_write_caching(),
                has_oplock: company.has_oplock || (caches && !other.is_lease),
                has_handle_caching: company.has_handle_caching || other.caching.has_handle_caching(),
                excludes_write_caching: company.excludes_write_caching
                    || caches
                    || other.is_lease
                    || !other.is_stat_only,
            }
        })
    }

    /// What is left of a lease that is asked for.
    fn lease_state(self, requested: LeaseState, file_has_locks: bool) -> LeaseState {
        if self.caches_writes || file_has_locks {
            return LeaseState::NONE;
        }
        let mut state = requested;
        if self.excludes_write_caching {
            state = state.without(LeaseState::WRITE);
        }
        // A batch or level II oplock cannot tell that a handle is only cached.
        if self.has_oplock {
            state = state.without(LeaseState::HANDLE);
        }
        state
    }

    /// What is left of an oplock that is asked for.
    fn oplock(self, requested: Oplock) -> Oplock {
        if self.caches_writes || self.has_handle_caching {
            Oplock::None
        } else if self.excludes_write_caching {
            Oplock::LevelII
        } else {
            requested
        }
    }
}
