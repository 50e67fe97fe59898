//! Byte-range locks, and the array of lock sequences by which a LOCK that comes again is recognised
//! (MS-SMB2 3.3.5.14, MS-FSA 2.1.4.10).
//!
//! A lock belongs to its open, and is as good as any other while the open's client is away. Nobody waits here: a
//! client that wants to wait is its SMB server's to keep, which asks again.
//!
//! What must stay true: what one open has locked exclusively, no other has locked.

use super::caching::Cause;
use super::create::Dialect;
use super::ids::{DurableFileId, FileKey, Owner};
use super::open::{ByteRangeLock, Durability, Open, OpenDescription};
use super::outcome::{Outcome, Rejection};
use super::state::State;

/// A LOCK request (MS-SMB2 2.2.26). All its elements lock, or all unlock. Locks are taken all or none; unlocking ends
/// with the first element that cannot be done, and those before it are unlocked (MS-SMB2 3.3.5.14.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lock {
    /// The open.
    pub open: DurableFileId,
    /// What is locked or unlocked, in this order.
    pub elements: Vec<LockElement>,
    /// LockSequenceNumber and LockSequenceIndex of the request.
    pub sequence: LockSequence,
    /// What the connection negotiated.
    pub dialect: Dialect,
    /// Whether server and client announced SMB2_GLOBAL_CAP_MULTI_CHANNEL.
    pub multichannel: bool,
}

/// The lock sequence of a LOCK request (MS-SMB2 2.2.26): on the wire `index << 4 | number`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LockSequence {
    /// An entry of `Open.LockSequenceArray`: 1 to 64; with 0, or more than 64, nothing is recognised.
    pub index: u32,
    /// Four bits, which the client changes with every request that uses the entry.
    pub number: u8,
}

/// One range of a LOCK request (MS-SMB2 2.2.26.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockElement {
    /// Its first byte.
    pub offset: u64,
    /// How many bytes; may be 0.
    pub length: u64,
    /// What to do with it.
    pub kind: LockKind,
}

/// What to do with a range. A server that lets its client wait (without SMB2_LOCKFLAG_FAIL_IMMEDIATELY) asks again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockKind {
    /// SMB2_LOCKFLAG_SHARED_LOCK.
    Shared,
    /// SMB2_LOCKFLAG_EXCLUSIVE_LOCK.
    Exclusive,
    /// SMB2_LOCKFLAG_UNLOCK.
    Unlock,
}

/// How many entries `Open.LockSequenceArray` has (MS-SMB2 3.3.1.10). On the wire they are counted from 1.
const LOCK_SEQUENCES: usize = 64;
/// An entry whose `Valid` is FALSE: no number of four bits.
const INVALID: u8 = 0xFF;
/// LockSequenceNumber has four bits.
const NUMBER_MASK: u8 = 0xF;

impl State {
    /// Locks or unlocks byte ranges of an open, unless that was done already.
    pub(super) fn lock(&mut self, owner: Owner, lock: &Lock) -> Result<Outcome, Rejection> {
        let id = lock.open;
        let open = &self.connected_open(owner, id)?.description;
        let entry = lock.sequence_entry(open);
        let number = lock.sequence.number & NUMBER_MASK;
        let is_replay = entry.is_some_and(|entry| open.lock_sequence_array.get(entry) == Some(&number));
        self.clear_replay_eligible(id);
        if is_replay {
            return Ok(Outcome::Locked { is_replay: true });
        }
        // From here on the client knows that its request before has been answered, whatever becomes of this one.
        if let Some(entry) = entry {
            self.set_lock_sequence(id, entry, INVALID);
        }
        match lock.elements.first() {
            Some(LockElement { kind: LockKind::Unlock, .. }) => self.release_ranges(id, &lock.elements)?,
            Some(_) => self.acquire_ranges(id, &lock.elements)?,
            None => return Err(Rejection::InvalidLockRequest(id)),
        }
        if let Some(entry) = entry {
            self.set_lock_sequence(id, entry, number);
        }
        Ok(Outcome::Locked { is_replay: false })
    }

    fn set_lock_sequence(&mut self, id: DurableFileId, entry: usize, number: u8) {
        self.edit_open(id, |open| {
            open.lock_sequence_array.resize(LOCK_SEQUENCES, INVALID);
            open.lock_sequence_array[entry] = number;
        });
    }

    fn acquire_ranges(&mut self, id: DurableFileId, elements: &[LockElement]) -> Result<(), Rejection> {
        let Some(Open { description: open, .. }) = self.opens.get(id) else {
            return Err(Rejection::FileClosed(id));
        };
        let limit = self.limits.locks_max;
        if (open.byte_range_locks.len() + elements.len()) as u64 > limit {
            return Err(Rejection::TooManyLocks { limit });
        }
        let mut wanted = Vec::with_capacity(elements.len());
        for element in elements {
            let range = element.wanted_by(open)?;
            let in_own_way = wanted.iter().any(|before| conflicts(*before, range, true)).then_some(id);
            if let Some(with) = in_own_way.or_else(|| self.in_the_way_of(range, id, open.file)) {
                return Err(Rejection::LockNotGranted { with });
            }
            wanted.push(range);
        }
        // Who caches reads could go on reading what is locked now. Who caches writes may have locked it himself; only
        // a CREATE that did not ask for the data got along with such a holder.
        if self.break_others(id, Cause::Lock)? {
            return Err(Rejection::LockNotGranted { with: self.writer_beside(id).unwrap_or(id) });
        }
        self.edit_open(id, |open| open.byte_range_locks.extend(wanted));
        Ok(())
    }

    fn release_ranges(&mut self, id: DurableFileId, elements: &[LockElement]) -> Result<(), Rejection> {
        let mut released = Ok(());
        self.edit_open(id, |open| {
            released = elements.iter().try_for_each(|element| element.release(open));
        });
        released
    }

    /// The open that has locked something of a range so that this one cannot have it.
    fn in_the_way_of(&self, range: ByteRangeLock, id: DurableFileId, file: FileKey) -> Option<DurableFileId> {
        let in_the_way = |open: &&Open| {
            let is_own = open.description.durable_file_id == id;
            open.description.byte_range_locks.iter().any(|held| conflicts(*held, range, is_own))
        };
        self.opens.of_file(file).find(in_the_way).map(|open| open.description.durable_file_id)
    }

    /// Another open of the same file that caches writes.
    fn writer_beside(&self, id: DurableFileId) -> Option<DurableFileId> {
        let file = self.opens.get(id)?.description.file;
        let writers =
            self.opens.of_file(file).filter(|open| open.description.oplock.caching().has_write_caching());
        writers.map(|open| open.description.durable_file_id).find(|writer| *writer != id)
    }
}

impl Lock {
    /// The entry of `Open.LockSequenceArray` by which a repetition of this request is recognised, counted from 0; `None`
    /// if none is.
    fn sequence_entry(&self, open: &OpenDescription) -> Option<usize> {
        let is_kept = open.durability != Durability::NotDurable;
        let can_come_again = is_kept || (self.dialect >= Dialect::Smb300 && self.multichannel);
        let entry = usize::try_from(self.sequence.index).ok()?.checked_sub(1)?;
        (self.dialect != Dialect::Smb202 && can_come_again && entry < LOCK_SEQUENCES).then_some(entry)
    }
}

impl LockElement {
    /// The lock that this element asks for.
    fn wanted_by(&self, open: &OpenDescription) -> Result<ByteRangeLock, Rejection> {
        let exclusive = match self.kind {
            LockKind::Shared => false,
            LockKind::Exclusive => true,
            LockKind::Unlock => return Err(Rejection::InvalidLockRequest(open.durable_file_id)),
        };
        self.check_range(open)?;
        Ok(ByteRangeLock { offset: self.offset, length: self.length, exclusive })
    }

    /// Unlocks what was locked by the same range, once. The exclusive lock goes before shared ones that lie upon it
    /// (MS-FSA 2.1.5.9).
    fn release(&self, open: &mut OpenDescription) -> Result<(), Rejection> {
        if self.kind != LockKind::Unlock {
            return Err(Rejection::InvalidLockRequest(open.durable_file_id));
        }
        self.check_range(open)?;
        let locks = &mut open.byte_range_locks;
        let is_it = |lock: &ByteRangeLock| (lock.offset, lock.length) == (self.offset, self.length);
        let exclusive = locks.iter().position(|lock| is_it(lock) && lock.exclusive);
        match exclusive.or_else(|| locks.iter().position(is_it)) {
            Some(position) => {
                locks.remove(position);
                Ok(())
            }
            None => Err(Rejection::RangeNotLocked(open.durable_file_id)),
        }
    }

    /// MS-FSA 2.1.5.8, validation.
    fn check_range(&self, open: &OpenDescription) -> Result<(), Rejection> {
        if open.is_directory {
            return Err(Rejection::InvalidLockRequest(open.durable_file_id));
        }
        let last = self.offset.checked_add(self.length.saturating_sub(1));
        last.map(|_| ()).ok_or(Rejection::InvalidLockRange(open.durable_file_id))
    }
}

/// Whether a lock keeps another one from being taken (MS-FSA 2.1.4.10): shared locks lie upon each other, and upon an
/// exclusive lock of the same open.
fn conflicts(held: ByteRangeLock, wanted: ByteRangeLock, is_own: bool) -> bool {
    let lies_upon = !wanted.exclusive && (is_own || !held.exclusive);
    !lies_upon && overlap(held, wanted)
}

/// Whether two ranges overlap (MS-FSA 2.1.4.10). One of no bytes lies between two bytes, and overlaps ranges of both.
fn overlap(one: ByteRangeLock, other: ByteRangeLock) -> bool {
    let end = |range: ByteRangeLock| u128::from(range.offset) + u128::from(range.length);
    u128::from(one.offset) < end(other) && u128::from(other.offset) < end(one)
}
