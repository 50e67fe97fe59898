//! What may be cached, and who may use a file how: sets of letters, as the specifications write them.

use std::collections::BTreeSet;
use std::fmt;

use statedb::{LeaseState, Oplock};

/// R, W and H: read, write and handle caching. For share modes R, W and D: to read, to write, to delete.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Letters(BTreeSet<char>);

/// The letters of a word.
pub(crate) fn letters(word: &str) -> Letters {
    Letters(word.chars().collect())
}

impl Letters {
    pub(crate) fn has(&self, letter: char) -> bool {
        self.0.contains(&letter)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn is_within(&self, others: &Self) -> bool {
        self.0.is_subset(&others.0)
    }

    pub(crate) fn and(&self, others: &Self) -> Self {
        Self(self.0.union(&others.0).copied().collect())
    }

    pub(crate) fn without(&self, others: &Self) -> Self {
        Self(self.0.difference(&others.0).copied().collect())
    }

    pub(crate) fn common(&self, others: &Self) -> Self {
        Self(self.0.intersection(&others.0).copied().collect())
    }

    /// What a holder of these may go on caching when it has lost some of them. Nothing may be cached without R
    /// (MS-FSA 2.1.5.18).
    pub(crate) fn after_losing(&self, lost: &Self) -> Self {
        let left = self.without(lost);
        if left.has('R') { left } else { Self::default() }
    }
}

impl From<LeaseState> for Letters {
    fn from(state: LeaseState) -> Self {
        let bits = [(LeaseState::READ, 'R'), (LeaseState::WRITE, 'W'), (LeaseState::HANDLE, 'H')];
        Self(bits.into_iter().filter(|(bit, _)| state.0 & bit != 0).map(|(_, letter)| letter).collect())
    }
}

/// An oplock in the terms of leases (MS-FSA 2.1.1.10).
impl From<Oplock> for Letters {
    fn from(oplock: Oplock) -> Self {
        match oplock {
            Oplock::None => letters(""),
            Oplock::LevelII => letters("R"),
            Oplock::Exclusive => letters("RW"),
            Oplock::Batch => letters("RWH"),
            Oplock::Lease(lease) => lease.state.into(),
        }
    }
}

impl fmt::Display for Letters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("nothing");
        }
        self.0.iter().try_for_each(|letter| write!(f, "{letter}"))
    }
}
