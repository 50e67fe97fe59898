//! Byte-range locks, byte by byte, over the few bytes that the schedules lock (MS-FSA 2.1.4.10, MS-SMB2 3.3.5.14).

use std::collections::BTreeSet;

use statedb::{ByteRangeLock, Dialect, Durability, DurableFileId, Lock, LockElement, LockKind};

/// How the model says no.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// STATUS_INVALID_PARAMETER
    InvalidParameter,
    /// STATUS_LOCK_NOT_GRANTED
    LockNotGranted,
    /// STATUS_RANGE_NOT_LOCKED
    RangeNotLocked,
}

/// The locks of one file, in the order in which they were taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Locks(pub(crate) Vec<(DurableFileId, ByteRangeLock)>);

/// The places that a range takes: byte *n* is place 2*n* + 1, and between the bytes *n* - 1 and *n* is place 2*n*. A
/// range takes its bytes and what is between them. One without bytes lies between two, and is in the way of who takes
/// both.
fn places(offset: u64, length: u64) -> BTreeSet<u64> {
    match length {
        0 => BTreeSet::from([2 * offset]),
        _ => (2 * offset + 1..2 * (offset + length)).collect(),
    }
}

impl Locks {
    /// The locks of an open.
    pub(crate) fn of(&self, open: DurableFileId) -> Vec<ByteRangeLock> {
        self.0.iter().filter(|(holder, _)| *holder == open).map(|(_, lock)| *lock).collect()
    }

    pub(crate) fn forget(&mut self, open: DurableFileId) {
        self.0.retain(|(holder, _)| *holder != open);
    }

    /// Does what a request asks for, up to the first range for which that cannot be done. Locks are then given back,
    /// what is unlocked stays unlocked. The first range says whether all are locked or all are unlocked.
    pub(crate) fn request(&mut self, lock: &Lock) -> Result<(), Refusal> {
        let first = lock.elements.first().ok_or(Refusal::InvalidParameter)?;
        if first.kind == LockKind::Unlock {
            return lock.elements.iter().try_for_each(|element| match element.kind {
                LockKind::Unlock => self.unlock(lock.open, element),
                LockKind::Shared | LockKind::Exclusive => Err(Refusal::InvalidParameter),
            });
        }
        let mut locks = self.clone();
        for element in &lock.elements {
            match element.kind {
                LockKind::Shared => locks.lock(lock.open, element, false)?,
                LockKind::Exclusive => locks.lock(lock.open, element, true)?,
                LockKind::Unlock => return Err(Refusal::InvalidParameter),
            }
        }
        *self = locks;
        Ok(())
    }

    fn lock(&mut self, open: DurableFileId, element: &LockElement, exclusive: bool) -> Result<(), Refusal> {
        let wanted = places(element.offset, element.length);
        for (holder, other) in &self.0 {
            let taken = places(other.offset, other.length);
            let is_between_the_same_bytes = element.length == 0 && other.length == 0;
            if is_between_the_same_bytes || taken.is_disjoint(&wanted) {
                continue;
            }
            // An open may lock for reading what it has locked for itself alone, and nothing twice for itself alone.
            let is_allowed = if other.exclusive { *holder == open && !exclusive } else { !exclusive };
            if !is_allowed {
                return Err(Refusal::LockNotGranted);
            }
        }
        let lock = ByteRangeLock { offset: element.offset, length: element.length, exclusive };
        self.0.push((open, lock));
        Ok(())
    }

    /// Where the same range is locked more than once, a lock for the open alone goes first.
    fn unlock(&mut self, open: DurableFileId, element: &LockElement) -> Result<(), Refusal> {
        for exclusive in [true, false] {
            let lock = ByteRangeLock { offset: element.offset, length: element.length, exclusive };
            if let Some(place) = self.0.iter().position(|other| *other == (open, lock)) {
                self.0.remove(place);
                return Ok(());
            }
        }
        Err(Refusal::RangeNotLocked)
    }
}

/// `Open.LockSequenceArray`: the number at each index from 1 on, where one is valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sequences(Vec<Option<u8>>);

impl Sequences {
    const INDEX_MAX: u32 = 64;
    const VOID: u8 = 0xFF;

    pub(crate) fn none() -> Self {
        Self(vec![None; Self::INDEX_MAX as usize])
    }

    /// As an open keeps them: what is not there is void.
    pub(crate) fn from_array(array: &[u8]) -> Self {
        let mut sequences = Self::none();
        for (entry, number) in sequences.0.iter_mut().zip(array) {
            *entry = (*number != Self::VOID).then_some(*number);
        }
        sequences
    }

    /// The entry that a request uses, if its repetition is recognised at all.
    pub(crate) fn entry(&mut self, lock: &Lock, durability: Durability) -> Option<&mut Option<u8>> {
        let is_checked =
            durability != Durability::NotDurable || (lock.dialect >= Dialect::Smb300 && lock.multichannel);
        let has_entry = (1..=Self::INDEX_MAX).contains(&lock.sequence.index);
        if lock.dialect == Dialect::Smb202 || !is_checked || !has_entry {
            return None;
        }
        self.0.get_mut(lock.sequence.index as usize - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_without_bytes_is_in_the_way_of_who_takes_both_sides() {
        assert!(places(3, 0).is_disjoint(&places(3, 5)));
        assert!(places(8, 0).is_disjoint(&places(3, 5)));
        assert!(!places(4, 0).is_disjoint(&places(3, 5)));
        assert!(places(0, 3).is_disjoint(&places(3, 1)));
        assert!(!places(0, 4).is_disjoint(&places(3, 1)));
    }
}
