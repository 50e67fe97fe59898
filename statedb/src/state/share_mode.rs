//! Share modes: which opens of a file exclude each other (MS-FSA 2.1.5.1.2.2), and which are of so little
//! consequence that nobody has to give up what he caches for them.
//!
//! An open counts for as long as it exists, also while its client is away.

use super::open::{AccessMask, ShareAccess};
use super::oplock::Oplock;

impl AccessMask {
    /// FILE_READ_DATA; for a directory FILE_LIST_DIRECTORY.
    pub const READ_DATA: u32 = 0x0000_0001;
    /// FILE_WRITE_DATA; for a directory FILE_ADD_FILE.
    pub const WRITE_DATA: u32 = 0x0000_0002;
    /// FILE_APPEND_DATA; for a directory FILE_ADD_SUBDIRECTORY.
    pub const APPEND_DATA: u32 = 0x0000_0004;
    /// FILE_EXECUTE; for a directory FILE_TRAVERSE.
    pub const EXECUTE: u32 = 0x0000_0020;
    /// FILE_READ_ATTRIBUTES.
    pub const READ_ATTRIBUTES: u32 = 0x0000_0080;
    /// FILE_WRITE_ATTRIBUTES.
    pub const WRITE_ATTRIBUTES: u32 = 0x0000_0100;
    /// DELETE.
    pub const DELETE: u32 = 0x0001_0000;
    /// READ_CONTROL.
    pub const READ_CONTROL: u32 = 0x0002_0000;
    /// SYNCHRONIZE.
    pub const SYNCHRONIZE: u32 = 0x0010_0000;

    /// Access that does not reach the data, so that nobody's cache is in its way.
    const STAT: u32 = Self::READ_ATTRIBUTES | Self::WRITE_ATTRIBUTES | Self::SYNCHRONIZE;

    /// Whether it reaches attributes alone. Such an open gets along with everybody, whatever he caches.
    #[must_use]
    pub fn is_stat_only(self) -> bool {
        self.0 & !Self::STAT == 0
    }

    /// Whether a CREATE with this access leaves alone what another open caches (MS-FSA 2.1.4.12, case OPEN): reading
    /// the security descriptor breaks oplocks and does not break leases. One that overwrites the file needs access
    /// to its data, and is to be asked about with [`AccessMask::WRITE_DATA`].
    pub(super) fn leaves_alone(self, held: Oplock) -> bool {
        match held {
            Oplock::Lease(_) => Self(self.0 & !Self::READ_CONTROL).is_stat_only(),
            Oplock::None | Oplock::LevelII | Oplock::Exclusive | Oplock::Batch => self.is_stat_only(),
        }
    }
}

impl ShareAccess {
    /// FILE_SHARE_READ.
    pub const READ: u32 = 0x1;
    /// FILE_SHARE_WRITE.
    pub const WRITE: u32 = 0x2;
    /// FILE_SHARE_DELETE.
    pub const DELETE: u32 = 0x4;
}

/// What an open may do, and what it lets others do meanwhile.
pub type ShareMode = (AccessMask, ShareAccess);

/// Whether two opens of a file exclude each other (MS-FSA 2.1.5.1.2.2): one of them may do what the other does not
/// share. One that may neither read, write nor delete excludes nobody.
#[must_use]
pub fn excludes(one: ShareMode, other: ShareMode) -> bool {
    takes_part(one) && takes_part(other) && (does_not_share(one, other) || does_not_share(other, one))
}

/// What has to be shared, for which kinds of access.
const SHARED_FOR: [(u32, u32); 3] = [
    (ShareAccess::READ, AccessMask::READ_DATA | AccessMask::EXECUTE),
    (ShareAccess::WRITE, AccessMask::WRITE_DATA | AccessMask::APPEND_DATA),
    (ShareAccess::DELETE, AccessMask::DELETE),
];

fn takes_part((access, _): ShareMode) -> bool {
    SHARED_FOR.iter().any(|(_, needed_for)| access.0 & needed_for != 0)
}

fn does_not_share((_, share): ShareMode, (access, _): ShareMode) -> bool {
    SHARED_FOR.iter().any(|(shared, needed_for)| access.0 & needed_for != 0 && share.0 & shared == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::ids::LeaseKey;
    use crate::state::oplock::{Lease, LeaseEpoch, LeaseState, LeaseVersion};

    /// The kinds of access that are told apart, each with the share bit that it needs.
    const KINDS: [(u32, u32); 5] = [
        (AccessMask::READ_DATA, ShareAccess::READ),
        (AccessMask::EXECUTE, ShareAccess::READ),
        (AccessMask::WRITE_DATA, ShareAccess::WRITE),
        (AccessMask::APPEND_DATA, ShareAccess::WRITE),
        (AccessMask::DELETE, ShareAccess::DELETE),
    ];
    /// Whatever else an open may be granted.
    const REST: u32 = !(AccessMask::READ_DATA
        | AccessMask::EXECUTE
        | AccessMask::WRITE_DATA
        | AccessMask::APPEND_DATA
        | AccessMask::DELETE);

    #[test]
    fn opens_exclude_each_other_unless_each_shares_what_the_other_may_do() {
        // Every set of access and every set of shared access, on both sides.
        let access = |set: u32| {
            KINDS
                .iter()
                .enumerate()
                .filter(|(bit, _)| set & 1 << bit != 0)
                .fold(0, |mask, (_, kind)| mask | kind.0)
        };
        let needs = |set: u32| {
            KINDS
                .iter()
                .enumerate()
                .filter(|(bit, _)| set & 1 << bit != 0)
                .fold(0, |mask, (_, kind)| mask | kind.1)
        };
        for (one, other) in (0..32).flat_map(|one| (0..32).map(move |other| (one, other))) {
            for (one_shares, other_shares) in (0..8).flat_map(|one| (0..8).map(move |other| (one, other))) {
                let get_along = one == 0
                    || other == 0
                    || (needs(other) & !one_shares == 0 && needs(one) & !other_shares == 0);
                for rest in [0, REST] {
                    let one = (AccessMask(access(one) | rest), ShareAccess(one_shares));
                    let other = (AccessMask(access(other) | rest), ShareAccess(other_shares));
                    assert_eq!(excludes(one, other), !get_along, "{one:?} {other:?}");
                }
            }
        }
    }

    #[test]
    fn stat_opens_reach_attributes_alone() {
        let stat = AccessMask::READ_ATTRIBUTES | AccessMask::WRITE_ATTRIBUTES | AccessMask::SYNCHRONIZE;
        for bit in 0..u32::BITS {
            let is_stat = stat & 1 << bit != 0;
            assert_eq!(AccessMask(1 << bit).is_stat_only(), is_stat, "bit {bit}");
            assert_eq!(AccessMask(stat | 1 << bit).is_stat_only(), is_stat, "bit {bit}");
        }
        assert!(AccessMask(0).is_stat_only());
    }

    /// What smbtorture's lease.statopen4 and oplock.statopen1 find.
    #[test]
    fn read_control_breaks_oplocks_and_leaves_leases_alone() {
        let lease = Lease {
            key: LeaseKey([1; 16]),
            state: LeaseState(LeaseState::READ),
            epoch: LeaseEpoch(1),
            version: LeaseVersion::V2,
            parent: None,
        };
        let attributes = AccessMask::READ_ATTRIBUTES | AccessMask::SYNCHRONIZE;
        for (held, for_attributes, for_security) in [
            (Oplock::LevelII, true, false),
            (Oplock::Exclusive, true, false),
            (Oplock::Batch, true, false),
            (Oplock::Lease(lease), true, true),
        ] {
            assert_eq!(AccessMask(attributes).leaves_alone(held), for_attributes, "{held}");
            assert_eq!(
                AccessMask(attributes | AccessMask::READ_CONTROL).leaves_alone(held),
                for_security,
                "{held}"
            );
            assert!(!AccessMask(attributes | AccessMask::READ_DATA).leaves_alone(held), "{held}");
        }
    }
}
