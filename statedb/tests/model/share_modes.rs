//! Share modes (MS-FSA 2.1.5.1.2.2).

use statedb::{AccessMask, ShareAccess};

use super::letters::Letters;

/// What a CREATE wants to do with the content of a file, in letters of share modes. Empty for one that only looks at
/// what the file is called, how large it is and the like.
pub(crate) fn wanted(access: AccessMask) -> Letters {
    const READS: u32 = 0x01 | 0x20;
    const WRITES: u32 = 0x02 | 0x04;
    const DELETES: u32 = 0x1_0000;
    word(&[(READS, 'R'), (WRITES, 'W'), (DELETES, 'D')], access.0)
}

/// What a CREATE lets others do meanwhile.
pub(crate) fn shared(share_access: ShareAccess) -> Letters {
    word(&[(0x1, 'R'), (0x2, 'W'), (0x4, 'D')], share_access.0)
}

fn word(names: &[(u32, char)], mask: u32) -> Letters {
    let word: String = names.iter().filter(|(bits, _)| mask & bits != 0).map(|(_, letter)| letter).collect();
    super::letters::letters(&word)
}

/// Whether two opens of one file cannot be there at the same time.
pub(crate) fn exclude_each_other(one: (AccessMask, ShareAccess), other: (AccessMask, ShareAccess)) -> bool {
    let (one_wants, other_wants) = (wanted(one.0), wanted(other.0));
    if one_wants.is_empty() || other_wants.is_empty() {
        return false;
    }
    !one_wants.is_within(&shared(other.1)) || !other_wants.is_within(&shared(one.1))
}
