//! Who may cache a file at the same time, and what has to be given up for whom (MS-FSA 2.1.4.12 and 2.1.5.18).
//!
//! Oplocks are looked at as if they were leases ([`Oplock::caching`]): level II is R, exclusive RW, batch RWH. Here
//! is computed only; who is asked, who waits, and what becomes of those whose client is away is decided in `breaks`.
//!
//! What must stay true: who caches writes is the only one who caches anything, but for opens of the same lease.

use super::oplock::{Lease, LeaseState, Oplock, OplockLevel};

/// Why others have to give up something of what they cache. Opens of the same lease are not others. In the order in
/// which a CREATE means more to a lease: with one of its opens it may get along, with another one not.
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
        // Reads that are cached become stale, but nothing is lost if they do so a moment before their reader knows;
        // writes that are cached have to come back first.
        Cause::Open { overwrites: true, .. } | Cause::Write | Cause::Lock => {
            (LeaseState::NONE, held.has_write_caching())
        }
        Cause::ChangeInDirectory => (LeaseState::NONE, false),
    };
    (to != held).then_some(Demand { to, waits })
}

/// Whether something that is done through an open leaves the oplock of that open alone. Level II goes with the
/// holder's own writes as well (MS-FSA 2.1.4.12; smbtorture's oplock.levelii500).
pub(super) fn spares_own(cause: Cause, own: Oplock) -> bool {
    !(own == Oplock::LevelII && matches!(cause, Cause::Write | Cause::Lock))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::ids::LeaseKey;
    use crate::state::oplock::{LeaseEpoch, LeaseVersion};

    const LEASE_STATES: [&str; 8] = ["-", "R", "H", "RH", "W", "RW", "WH", "RWH"];
    const LEASE: Lease = Lease {
        key: LeaseKey([1; 16]),
        state: LeaseState::NONE,
        epoch: LeaseEpoch(7),
        version: LeaseVersion::V2,
        parent: None,
    };

    /// A lease state as it is displayed.
    fn state(letters: &str) -> LeaseState {
        let bits = LEASE_STATES.iter().position(|state| *state == letters).expect("a lease state");
        LeaseState(u32::try_from(bits).expect("three bits"))
    }

    /// An oplock or a lease as it is displayed.
    fn oplock(display: &str) -> Oplock {
        match display {
            "none" => Oplock::None,
            "level2" => Oplock::LevelII,
            "exclusive" => Oplock::Exclusive,
            "batch" => Oplock::Batch,
            letters => Oplock::Lease(Lease { state: state(letters), ..LEASE }),
        }
    }

    /// Another open with this oplock or lease.
    fn other(display: &str, is_stat_only: bool) -> Other {
        let oplock = oplock(display);
        Other { caching: oplock.caching(), is_lease: oplock.lease().is_some(), is_stat_only }
    }

    /// What is granted to the open of a file, beside these and without locks.
    fn granted(requested: &str, others: &[Other]) -> String {
        grant(oplock(requested), false, false, others.iter().copied(), false).to_string()
    }

    /// What a demand comes to: the state that is left, with `!` if it is waited for, or `.` for nothing.
    fn demanded(cause: Cause, held: &str) -> String {
        match demand(cause, state(held)) {
            None => ".".to_owned(),
            Some(Demand { to, waits }) => format!("{to}{}", if waits { "!" } else { "" }),
        }
    }

    #[test]
    fn each_cause_demands_of_each_state_what_it_must() {
        let open = |overwrites, excludes| Cause::Open { overwrites, excludes };
        let causes = [
            open(false, false),
            open(true, false),
            open(false, true),
            open(true, true),
            Cause::Write,
            Cause::Lock,
            Cause::RenameOrDelete,
            Cause::ChangeInDirectory,
        ];
        // For oplocks as well: level II is R, exclusive RW, batch RWH. The last three states are none that is granted.
        for (held, expected) in [
            //       opens, overwrites, excludes, does both, writes, locks, renames, changes a directory
            ("-", [".", ".", ".", ".", ".", ".", ".", "."]),
            ("R", [".", "-", ".", ".", "-", "-", ".", "-"]),
            ("RH", [".", "-", "R!", "R!", "-", "-", "R!", "-"]),
            ("RW", ["R!", "-!", ".", ".", "-!", "-!", ".", "-"]),
            ("RWH", ["RH!", "-!", "RW!", "RW!", "-!", "-!", "RW!", "-"]),
            ("H", [".", "-", "-!", "-!", "-", "-", "-!", "-"]),
            ("W", ["-!", "-!", ".", ".", "-!", "-!", ".", "-"]),
            ("WH", ["H!", "-!", "W!", "W!", "-!", "-!", "W!", "-"]),
        ] {
            assert_eq!(causes.map(|cause| demanded(cause, held)), expected, "held {held}");
        }
    }

    #[test]
    fn to_exclude_an_open_of_a_lease_means_more_than_to_get_along_with_another() {
        for overwrites in [false, true] {
            let gets_along = Cause::Open { overwrites, excludes: false };
            assert!(Cause::Open { overwrites, excludes: true } > gets_along);
        }
    }

    /// row 9.read-only-lease: every state, and level II.
    #[test]
    fn who_only_reads_need_not_acknowledge() {
        for held in LEASE_STATES {
            assert_eq!(needs_ack(state(held)), held.contains(['H', 'W']), "{held}");
        }
        assert!(!needs_ack(Oplock::LevelII.caching()));
    }

    #[test]
    fn level_two_goes_with_the_writes_of_its_own_holder() {
        let open = Cause::Open { overwrites: false, excludes: false };
        for own in ["none", "level2", "exclusive", "batch", "R", "RH", "RWH"] {
            for cause in [open, Cause::Write, Cause::Lock, Cause::RenameOrDelete, Cause::ChangeInDirectory] {
                let goes = own == "level2" && matches!(cause, Cause::Write | Cause::Lock);
                assert_eq!(spares_own(cause, oplock(own)), !goes, "{own} {cause:?}");
            }
        }
    }

    #[test]
    fn broken_oplocks_go_down_to_level_two_or_none() {
        for to in LEASE_STATES {
            let expected = if to.contains('R') { Oplock::LevelII } else { Oplock::None };
            assert_eq!(oplock_after(state(to)), expected, "{to}");
        }
    }

    /// The table that smbtorture's lease.request, lease.break and lease.oplock fill in parts: what is granted of
    /// each request beside each kind of open.
    #[test]
    fn each_request_is_granted_as_much_as_the_others_leave() {
        let columns: [&[Other]; 9] = [
            &[],
            &[other("none", true)],
            &[other("none", false)],
            &[other("level2", false)],
            &[other("-", true)],
            &[other("R", false)],
            &[other("RH", false)],
            &[other("RWH", false)],
            &[other("R", false), other("level2", false), other("RH", false)],
        ];
        for (requested, expected) in [
            //         alone, stat open, any open, level II, lease -, R, RH, RWH, all of R and level II and RH
            ("none", "none none none none none none none none none"),
            ("level2", "level2 level2 level2 level2 level2 level2 none none none"),
            ("exclusive", "exclusive exclusive level2 level2 level2 level2 none none none"),
            ("batch", "batch batch level2 level2 level2 level2 none none none"),
            ("-", "- - - - - - - - -"),
            ("R", "R R R R R R R - R"),
            ("RH", "RH RH RH R RH RH RH - R"),
            ("RW", "RW RW R R R R R - R"),
            ("RWH", "RWH RWH RH R RH RH RH - R"),
            ("H", "- - - - - - - - -"),
            ("W", "- - - - - - - - -"),
            ("WH", "- - - - - - - - -"),
        ] {
            assert_eq!(columns.map(|others| granted(requested, others)).join(" "), expected, "{requested}");
        }
    }

    /// What smbtorture's lease.break and lease.oplock find for a holder and one who comes: what is left to the one, and
    /// given to the other.
    #[test]
    fn second_open_breaks_the_first_and_gets_what_is_left() {
        let requests = ["R", "RH", "RW", "RWH", "level2", "exclusive", "batch"];
        for (held, left, given) in [
            ("R", "R", ["R", "RH", "R", "RH", "level2", "level2", "level2"]),
            ("RH", "RH", ["R", "RH", "R", "RH", "none", "none", "none"]),
            ("RW", "R", ["R", "RH", "R", "RH", "level2", "level2", "level2"]),
            ("RWH", "RH", ["R", "RH", "R", "RH", "none", "none", "none"]),
            ("level2", "level2", ["R", "R", "R", "R", "level2", "level2", "level2"]),
            ("exclusive", "level2", ["R", "R", "R", "R", "level2", "level2", "level2"]),
            ("batch", "level2", ["R", "R", "R", "R", "level2", "level2", "level2"]),
        ] {
            let open = Cause::Open { overwrites: false, excludes: false };
            let holder = oplock(held);
            let to = demand(open, holder.caching()).map_or(holder.caching(), |demand| demand.to);
            let after = match holder {
                Oplock::Lease(lease) => Oplock::Lease(Lease { state: to, ..lease }),
                _ => oplock_after(to),
            };
            assert_eq!(after.to_string(), left, "{held}");
            assert_eq!(requests.map(|requested| granted(requested, &[other(left, false)])), given, "{held}");
        }
    }

    #[test]
    fn nobody_caches_anything_beside_who_caches_writes() {
        for held in ["RW", "RWH", "exclusive", "batch"] {
            for requested in ["level2", "exclusive", "batch", "R", "RH", "RW", "RWH"] {
                for is_stat_only in [false, true] {
                    let others = [other("none", true), other(held, is_stat_only), other("-", true)];
                    let display = granted(requested, &others);
                    assert_eq!(oplock(&display).caching(), LeaseState::NONE, "{requested} beside {held}");
                }
            }
        }
    }

    #[test]
    fn nothing_is_granted_beside_byte_range_locks() {
        for requested in ["level2", "exclusive", "batch", "R", "RH", "RW", "RWH"] {
            let granted = grant(oplock(requested), false, false, [].into_iter(), true);
            assert_eq!(granted.caching(), LeaseState::NONE, "{requested}");
        }
    }

    /// row 10.1: RW and RWH are granted without W.
    /// row 10.2: no oplock is.
    #[test]
    fn directories_get_no_writes_and_like_stat_opens_no_oplocks() {
        for (requested, on_directory, to_stat_open) in [
            ("none", "none", "none"),
            ("level2", "none", "none"),
            ("exclusive", "none", "none"),
            ("batch", "none", "none"),
            ("-", "-", "-"),
            ("R", "R", "R"),
            ("RH", "RH", "RH"),
            ("RW", "R", "RW"),
            ("RWH", "RH", "RWH"),
            ("H", "-", "-"),
            ("W", "-", "-"),
            ("WH", "-", "-"),
        ] {
            let granted = |is_directory, is_stat_only| {
                grant(oplock(requested), is_directory, is_stat_only, [].into_iter(), false).to_string()
            };
            assert_eq!(granted(true, false), on_directory, "{requested}");
            assert_eq!(granted(true, true), on_directory, "{requested}");
            assert_eq!(granted(false, true), to_stat_open, "{requested}");
        }
    }

    /// row 4.5.change: a new lease counts on.
    /// row 4.5.not-granted: one that is not granted does not.
    /// row 4.5.v1: nor does one of version 1.
    #[test]
    fn epoch_of_a_new_lease_follows_the_one_that_its_client_knows() {
        for (version, known, requested, expected) in [
            (LeaseVersion::V2, 7, "RWH", 8),
            (LeaseVersion::V2, 7, "-", 7),
            (LeaseVersion::V2, 7, "WH", 7),
            (LeaseVersion::V2, u16::MAX, "R", 0),
            (LeaseVersion::V1, 0, "RWH", 0),
        ] {
            let lease = Lease { state: state(requested), version, epoch: LeaseEpoch(known), ..LEASE };
            let granted = grant(Oplock::Lease(lease), false, false, [].into_iter(), false).lease().unwrap();
            assert_eq!(granted.epoch, LeaseEpoch(expected), "{version:?} {requested}");
        }
    }

    /// row 4.5.change: the table of smbtorture's lease.upgrade2, with the epochs.
    #[test]
    fn lease_is_upgraded_to_more_and_never_down() {
        for (current, expected) in [
            //      asked for: -, R, H, RH, W, RW, WH, RWH
            ("-", ["-", "R", "-", "RH", "-", "RW", "-", "RWH"]),
            ("R", ["R", "R", "R", "RH", "R", "RW", "R", "RWH"]),
            ("RH", ["RH", "RH", "RH", "RH", "RH", "RH", "RH", "RWH"]),
            ("RW", ["RW", "RW", "RW", "RW", "RW", "RW", "RW", "RWH"]),
            ("RWH", ["RWH"; 8]),
        ] {
            let lease = Lease { state: state(current), ..LEASE };
            for (requested, expected) in LEASE_STATES.into_iter().zip(expected) {
                let of_file = upgraded(lease, state(requested), false, false, [].into_iter(), false);
                let epoch = if expected == current { lease.epoch } else { lease.next_epoch() };
                assert_eq!(
                    of_file,
                    Lease { state: state(expected), epoch, ..LEASE },
                    "{current} {requested}"
                );

                let breaking = upgraded(lease, state(requested), true, false, [].into_iter(), false);
                assert_eq!(breaking, lease, "a lease that is broken is not upgraded");
                let locked = upgraded(lease, state(requested), false, false, [].into_iter(), true);
                assert_eq!(locked, lease, "nor is one of a file with locks");
            }
        }
    }

    /// The table of smbtorture's lease.upgrade3: all of what is asked for, or nothing of it.
    #[test]
    fn lease_is_upgraded_if_the_others_leave_all_of_it() {
        for beside in ["R", "RH"] {
            for (current, expected) in [
                //     asked for: -, R, RH, RW, RWH
                ("-", ["-", "R", "RH", "-", "-"]),
                ("R", ["R", "R", "RH", "R", "R"]),
                ("RH", ["RH"; 5]),
            ] {
                let lease = Lease { state: state(current), ..LEASE };
                let upgrades = ["-", "R", "RH", "RW", "RWH"].map(|requested| {
                    let others = [other(beside, false)].into_iter();
                    upgraded(lease, state(requested), false, false, others, false).state.to_string()
                });
                assert_eq!(upgrades, expected, "{current} beside {beside}");
            }
        }
        // A directory's lease is upgraded to what a directory can have.
        let lease = Lease { state: state("R"), ..LEASE };
        let of_directory = upgraded(lease, state("RWH"), false, true, [].into_iter(), false);
        assert_eq!(of_directory.state, state("RH"));
    }

    /// row 9.lease-ack-subset: all pairs of states.
    #[test]
    fn lease_is_acknowledged_down_to_a_part_of_what_was_left() {
        for to in LEASE_STATES {
            for acknowledged in LEASE_STATES {
                let is_part = acknowledged.chars().all(|letter| letter == '-' || to.contains(letter));
                assert_eq!(accept_lease_ack(state(to), state(acknowledged)), is_part, "{to} {acknowledged}");
            }
        }
    }

    /// row 9.oplock-ack-level: and the levels to which it leads.
    #[test]
    fn oplock_is_acknowledged_down_to_level_two_or_none() {
        for (to, level, expected) in [
            ("R", OplockLevel::LevelII, Some(Oplock::LevelII)),
            ("R", OplockLevel::None, Some(Oplock::None)),
            // It was level II that was asked for at first, and has become less since.
            ("-", OplockLevel::LevelII, Some(Oplock::None)),
            ("-", OplockLevel::None, Some(Oplock::None)),
            ("R", OplockLevel::Exclusive, None),
            ("R", OplockLevel::Batch, None),
            ("R", OplockLevel::Lease, None),
            ("-", OplockLevel::Lease, None),
        ] {
            assert_eq!(accept_oplock_ack(state(to), level), expected, "{to} {level}");
        }
    }
}
