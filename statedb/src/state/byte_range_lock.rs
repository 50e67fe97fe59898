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
            let keeps_out = |before: &ByteRangeLock| before.keeps_out(range, true);
            let in_own_way = wanted.iter().any(keeps_out).then_some(id);
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
            open.description.byte_range_locks.iter().any(|held| held.keeps_out(range, is_own))
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

impl ByteRangeLock {
    /// Whether this lock keeps another one from being taken (MS-FSA 2.1.4.10): shared locks lie upon each other, and
    /// upon an exclusive lock of the same open.
    #[must_use]
    pub fn keeps_out(self, wanted: Self, is_own: bool) -> bool {
        let lies_upon = !wanted.exclusive && (is_own || !self.exclusive);
        !lies_upon && overlap(self, wanted)
    }
}

/// Whether two ranges overlap (MS-FSA 2.1.4.10). One of no bytes lies between two bytes, and overlaps ranges of both.
fn overlap(one: ByteRangeLock, other: ByteRangeLock) -> bool {
    let end = |range: ByteRangeLock| u128::from(range.offset) + u128::from(range.length);
    u128::from(one.offset) < end(other) && u128::from(other.offset) < end(one)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::event::EventKind;
    use crate::state::fixtures::{ID, OWNER, SESSION, connected, disconnected, lease};
    use crate::state::ids::{ClientGuid, Incarnation};
    use crate::state::limits::Limits;
    use crate::state::open::AccessMask;
    use crate::state::oplock::{LeaseState, Oplock};

    const OTHER: DurableFileId = DurableFileId(8);
    const MAX: u64 = u64::MAX;
    use LockKind::{Exclusive, Shared, Unlock};

    fn element(offset: u64, length: u64, kind: LockKind) -> LockElement {
        LockElement { offset, length, kind }
    }

    fn range(offset: u64, length: u64, kind: LockKind) -> ByteRangeLock {
        ByteRangeLock { offset, length, exclusive: kind == Exclusive }
    }

    /// A LOCK of `ID` that is not sequenced.
    fn request(elements: &[LockElement]) -> Lock {
        Lock {
            open: ID,
            elements: elements.to_vec(),
            sequence: LockSequence::default(),
            dialect: Dialect::Smb311,
            multichannel: false,
        }
    }

    fn sequenced(index: u32, number: u8, element: LockElement) -> Lock {
        Lock { sequence: LockSequence { index, number }, ..request(&[element]) }
    }

    /// A state in which a client has `ID`.
    fn state(durability: Durability) -> State {
        let mut state = State::new(Limits { locks_max: 8, ..Limits::DEFAULT });
        state.put_open(connected(Oplock::Batch, durability, SESSION));
        state
    }

    /// Puts another client's open of the same file beside `ID`.
    fn put_other(state: &mut State, mut other: Open) {
        other.description.durable_file_id = OTHER;
        other.description.client_guid = ClientGuid([2; 16]);
        state.put_open(other);
    }

    fn locks(state: &State, id: DurableFileId) -> &[ByteRangeLock] {
        &state.open(id).unwrap().description.byte_range_locks
    }

    fn lock(state: &mut State, elements: &[LockElement]) -> Result<(), Rejection> {
        state
            .lock(OWNER, &request(elements))
            .map(|outcome| assert_eq!(outcome, Outcome::Locked { is_replay: false }))
    }

    /// The ranges of smbtorture's lock.zerobytelength, lock.lock and lock.overlap among them.
    #[test]
    fn ranges_overlap_where_they_have_a_byte_in_common() {
        for (one, other, expected) in [
            ((10, 10), (0, 10), false),
            ((10, 10), (0, 11), true),
            ((10, 10), (12, 2), true),
            ((10, 10), (5, 30), true),
            ((10, 10), (10, 10), true),
            ((10, 10), (19, 1), true),
            ((10, 10), (20, 1), false),
            ((0, MAX), (MAX - 1, 1), true),
            ((0, MAX), (MAX, 1), false),
            ((MAX, 1), (MAX, 1), true),
            ((MAX, 1), (1, MAX), true),
            // Ranges of no bytes lie between two.
            ((10, 0), (10, 0), false),
            ((10, 0), (9, 1), false),
            ((10, 0), (10, 1), false),
            ((10, 0), (11, 1), false),
            ((10, 0), (9, 2), true),
            ((10, 0), (10, 2), false),
            ((10, 0), (9, 3), true),
            ((0, 0), (0, 0), false),
            ((0, 0), (0, 1), false),
            ((0, 0), (0, MAX), false),
            ((MAX, 0), (MAX, 0), false),
            ((MAX, 0), (MAX, 1), false),
            ((MAX, 0), (MAX - 1, 2), true),
        ] {
            let (one, other) = (range(one.0, one.1, Shared), range(other.0, other.1, Shared));
            assert_eq!(overlap(one, other), expected, "{one:?} {other:?}");
            assert_eq!(overlap(other, one), expected, "{other:?} {one:?}");
        }
    }

    /// The table of MS-FSA 2.1.4.10, which smbtorture's lock.stacking and lock.contend go through.
    #[test]
    fn overlapping_locks_conflict_unless_they_are_shared() {
        for (held, wanted, by_same_open, by_another) in [
            (Shared, Shared, false, false),
            (Shared, Exclusive, true, true),
            (Exclusive, Shared, false, true),
            (Exclusive, Exclusive, true, true),
        ] {
            let (held, wanted) = (range(0, 10, held), range(5, 10, wanted));
            assert_eq!(held.keeps_out(wanted, true), by_same_open, "{held:?} {wanted:?}");
            assert_eq!(held.keeps_out(wanted, false), by_another, "{held:?} {wanted:?}");
            let elsewhere = ByteRangeLock { offset: 10, ..wanted };
            assert!(!held.keeps_out(elsewhere, true) && !held.keeps_out(elsewhere, false));
        }
    }

    #[test]
    fn ranges_end_with_the_last_byte_that_an_offset_can_name() {
        for (offset, length, expected) in [
            (0, MAX, true),
            (1, MAX, true),
            (2, MAX, false),
            (MAX, 0, true),
            (MAX, 1, true),
            (MAX, 2, false),
            (MAX, MAX, false),
        ] {
            let mut state = state(Durability::DurableV2);
            let locked = lock(&mut state, &[element(offset, length, Exclusive)]);
            let unlocked = lock(&mut state, &[element(offset, length, Unlock)]);
            let expected = if expected { Ok(()) } else { Err(Rejection::InvalidLockRange(ID)) };
            assert_eq!((locked, unlocked), (expected.clone(), expected), "{offset} {length}");
        }
    }

    #[test]
    fn locks_are_taken_all_or_none() {
        let mut state = state(Durability::DurableV2);
        lock(&mut state, &[element(0, 10, Exclusive), element(10, 10, Shared), element(10, 10, Shared)])
            .unwrap();
        let taken = locks(&state, ID).to_vec();
        assert_eq!(taken, [range(0, 10, Exclusive), range(10, 10, Shared), range(10, 10, Shared)]);

        for (second, why) in [
            (element(5, 1, Exclusive), Rejection::LockNotGranted { with: ID }),
            (element(40, 1, Exclusive), Rejection::LockNotGranted { with: ID }),
            (element(MAX, 2, Exclusive), Rejection::InvalidLockRange(ID)),
            (element(0, 10, Unlock), Rejection::InvalidLockRequest(ID)),
        ] {
            assert_eq!(lock(&mut state, &[element(40, 10, Exclusive), second]), Err(why), "{second:?}");
            assert_eq!(locks(&state, ID), taken, "{second:?}");
        }
    }

    /// What smbtorture's lock.multiple-unlock finds.
    #[test]
    fn unlocking_ends_with_the_first_range_that_is_not_locked() {
        for (elements, why, left) in [
            ([element(0, 10, Unlock), element(10, 10, Unlock)], None, 0),
            ([element(0, 10, Unlock), element(20, 10, Unlock)], Some(Rejection::RangeNotLocked(ID)), 1),
            ([element(20, 10, Unlock), element(0, 10, Unlock)], Some(Rejection::RangeNotLocked(ID)), 2),
            ([element(0, 10, Unlock), element(20, 10, Shared)], Some(Rejection::InvalidLockRequest(ID)), 1),
            ([element(0, 10, Unlock), element(MAX, 9, Unlock)], Some(Rejection::InvalidLockRange(ID)), 1),
            // Neither a part of what was locked nor two ranges at once.
            ([element(0, 9, Unlock), element(0, 10, Unlock)], Some(Rejection::RangeNotLocked(ID)), 2),
            ([element(0, 20, Unlock), element(0, 10, Unlock)], Some(Rejection::RangeNotLocked(ID)), 2),
        ] {
            let mut state = state(Durability::DurableV2);
            lock(&mut state, &[element(0, 10, Exclusive), element(10, 10, Exclusive)]).unwrap();
            assert_eq!(lock(&mut state, &elements).err(), why, "{elements:?}");
            assert_eq!(locks(&state, ID).len(), left, "{elements:?}");
        }
    }

    /// What smbtorture's lock.unlock finds, for ranges of no bytes as well.
    #[test]
    fn exclusive_lock_goes_before_shared_ones_that_lie_upon_it() {
        for length in [0, 10] {
            let mut state = state(Durability::DurableV2);
            for kind in [Exclusive, Shared, Shared] {
                lock(&mut state, &[element(10, length, kind)]).unwrap();
            }
            lock(&mut state, &[element(10, length, Unlock)]).unwrap();
            assert_eq!(locks(&state, ID), [range(10, length, Shared), range(10, length, Shared)]);
            lock(&mut state, &[element(10, length, Unlock), element(10, length, Unlock)]).unwrap();
            let unlocked = lock(&mut state, &[element(10, length, Unlock)]);
            assert_eq!(unlocked, Err(Rejection::RangeNotLocked(ID)));
        }
    }

    #[test]
    fn requests_that_make_no_sense_are_refused() {
        let mut state = state(Durability::DurableV2);
        assert_eq!(lock(&mut state, &[]), Err(Rejection::InvalidLockRequest(ID)));
        let stranger = Owner { incarnation: Incarnation(OWNER.incarnation.0 + 1), ..OWNER };
        let lock_of_stranger = state.lock(stranger, &request(&[element(0, 1, Shared)]));
        assert_eq!(lock_of_stranger, Err(Rejection::FileClosed(ID)));

        let mut directory = connected(Oplock::None, Durability::NotDurable, SESSION);
        directory.description.is_directory = true;
        state.put_open(directory);
        for kind in [Shared, Exclusive, Unlock] {
            let locked = lock(&mut state, &[element(0, 1, kind)]);
            assert_eq!(locked, Err(Rejection::InvalidLockRequest(ID)), "{kind:?}");
        }
    }

    #[test]
    fn an_open_has_no_more_locks_than_it_may() {
        let mut state = state(Durability::DurableV2);
        let limit = state.limits().locks_max;
        for offset in 0..limit {
            lock(&mut state, &[element(offset, 1, Exclusive)]).unwrap();
        }
        let one_more = [element(limit, 1, Exclusive)];
        assert_eq!(lock(&mut state, &one_more), Err(Rejection::TooManyLocks { limit }));
        lock(&mut state, &[element(0, 1, Unlock)]).unwrap();
        assert_eq!(lock(&mut state, &one_more), Ok(()));
    }

    /// row 5.1.15: whether or not the client of the other open is there.
    #[test]
    fn locks_of_another_open_are_in_the_way_also_when_its_client_is_away() {
        for (held, wanted, expected) in [
            (Shared, Shared, true),
            (Shared, Exclusive, false),
            (Exclusive, Shared, false),
            (Exclusive, Exclusive, false),
        ] {
            let away = disconnected(Oplock::None, Durability::Resilient);
            let there = connected(Oplock::None, Durability::NotDurable, SESSION);
            for mut other in [away, there] {
                other.description.byte_range_locks = vec![range(10, 10, held)];
                let mut state = state(Durability::NotDurable);
                put_other(&mut state, other);
                let expected = if expected { Ok(()) } else { Err(Rejection::LockNotGranted { with: OTHER }) };
                assert_eq!(lock(&mut state, &[element(19, 1, wanted)]), expected, "{held:?} {wanted:?}");
                assert_eq!(lock(&mut state, &[element(20, 1, wanted)]), Ok(()));
                assert_eq!(locks(&state, OTHER), [range(10, 10, held)]);
                let not_its_own = lock(&mut state, &[element(10, 10, Unlock)]);
                assert_eq!(not_its_own, Err(Rejection::RangeNotLocked(ID)));
            }
        }
    }

    #[test]
    fn lock_ends_read_caching_of_others_and_a_refused_one_does_not() {
        let mut state = state(Durability::NotDurable);
        let mut other = connected(Oplock::LevelII, Durability::NotDurable, SESSION);
        other.description.byte_range_locks = vec![range(0, 10, Exclusive)];
        put_other(&mut state, other);
        lock(&mut state, &[element(0, 1, Shared)]).unwrap_err();
        assert_eq!(state.take_events(), []);

        lock(&mut state, &[element(10, 1, Shared)]).unwrap();
        let told = state.take_events().into_iter().map(|event| event.kind).collect::<Vec<_>>();
        assert!(
            matches!(told[..], [EventKind::OplockBreak { open: OTHER, ack_until: None, .. }]),
            "{told:?}"
        );
        assert_eq!(state.open(OTHER).unwrap().description.oplock, Oplock::None);
        assert_eq!(state.open(ID).unwrap().description.oplock, Oplock::Batch);
    }

    #[test]
    fn lock_ends_level_two_of_its_own_open() {
        let mut state = state(Durability::NotDurable);
        state.put_open(connected(Oplock::LevelII, Durability::NotDurable, SESSION));
        lock(&mut state, &[element(0, 1, Shared)]).unwrap();
        assert_eq!(state.open(ID).unwrap().description.oplock, Oplock::None);
        assert_eq!(state.take_events().len(), 1);
    }

    #[test]
    fn lock_beside_who_caches_writes_is_refused_until_he_gives_that_up() {
        let mut state = state(Durability::NotDurable);
        let mut stat_open = connected(Oplock::None, Durability::NotDurable, SESSION);
        stat_open.description.granted_access = AccessMask(AccessMask::READ_ATTRIBUTES);
        state.put_open(stat_open);
        let writer = LeaseState::READ | LeaseState::WRITE | LeaseState::HANDLE;
        put_other(&mut state, connected(lease(writer), Durability::DurableV2, SESSION));

        let refused = Err(Rejection::LockNotGranted { with: OTHER });
        assert_eq!(lock(&mut state, &[element(0, 1, Shared)]), refused);
        let Some(lease_id) = state.open(OTHER).unwrap().description.lease_id() else { panic!("no lease") };
        state.ack_lease_break(OWNER, lease_id, LeaseState::NONE).unwrap();
        assert_eq!(lock(&mut state, &[element(0, 1, Shared)]), Ok(()));
    }

    /// row 6.1: of the number four bits count.
    /// row 6.3: locks and unlocks alike; whatever else the request says.
    #[test]
    fn request_with_the_number_that_is_stored_does_nothing() {
        let mut state = state(Durability::DurableV1);
        for (index, number) in [(1, 1), (64, 15)] {
            let offset = u64::from(index);
            let first = sequenced(index, number, element(offset, 1, Exclusive));
            assert_eq!(state.lock(OWNER, &first), Ok(Outcome::Locked { is_replay: false }));
            let before = state.open(ID).unwrap().clone();
            for kind in [Exclusive, Shared, Unlock] {
                for number in [number, number | 0x30] {
                    let again = sequenced(index, number, element(offset, 1, kind));
                    assert_eq!(state.lock(OWNER, &again), Ok(Outcome::Locked { is_replay: true }));
                }
                assert_eq!(state.open(ID), Some(&before));
            }
            let unlock = sequenced(index, number ^ 1, element(offset, 1, Unlock));
            assert_eq!(state.lock(OWNER, &unlock), Ok(Outcome::Locked { is_replay: false }));
            assert_eq!(state.lock(OWNER, &unlock), Ok(Outcome::Locked { is_replay: true }));
            assert_eq!(locks(&state, ID), []);
        }
    }

    /// row 6.4: an operation that fails, and one that succeeds.
    #[test]
    fn another_number_voids_the_entry_until_its_request_succeeds() {
        let mut state = state(Durability::DurableV2);
        let first = sequenced(1, 1, element(0, 10, Exclusive));
        state.lock(OWNER, &first).unwrap();
        let refused = sequenced(1, 2, element(5, 10, Exclusive));
        for _ in 0..2 {
            assert_eq!(state.lock(OWNER, &refused), Err(Rejection::LockNotGranted { with: ID }));
        }
        // The client knows the answer to its first request, so this is none of its replays.
        assert_eq!(state.lock(OWNER, &first), Err(Rejection::LockNotGranted { with: ID }));
        state.lock(OWNER, &sequenced(1, 3, element(0, 10, Unlock))).unwrap();
        assert_eq!(state.lock(OWNER, &refused), Ok(Outcome::Locked { is_replay: false }));
        assert_eq!(state.lock(OWNER, &refused), Ok(Outcome::Locked { is_replay: true }));
    }

    /// row 6.5: 0, and all above 64.
    #[test]
    fn nothing_is_recognised_by_an_index_that_does_not_exist() {
        for index in [0, 65, u32::MAX] {
            let mut state = state(Durability::DurableV2);
            let lock = sequenced(index, 1, element(0, 10, Exclusive));
            let unlock = sequenced(index, 1, element(0, 10, Unlock));
            state.lock(OWNER, &lock).unwrap();
            assert_eq!(state.lock(OWNER, &lock), Err(Rejection::LockNotGranted { with: ID }), "{index}");
            state.lock(OWNER, &unlock).unwrap();
            assert_eq!(state.lock(OWNER, &unlock), Err(Rejection::RangeNotLocked(ID)), "{index}");
            assert_eq!(state.open(ID).unwrap().description.lock_sequence_array, [], "{index}");
        }
    }

    /// row 6.2: every durability, dialect and number of channels.
    #[test]
    fn replays_are_recognised_where_they_can_happen() {
        let dialects = [Dialect::Smb202, Dialect::Smb210, Dialect::Smb300, Dialect::Smb302, Dialect::Smb311];
        for (durability, is_kept) in [
            (Durability::NotDurable, false),
            (Durability::DurableV1, true),
            (Durability::DurableV2, true),
            (Durability::Resilient, true),
            (Durability::Persistent, true),
        ] {
            for (dialect, multichannel) in
                dialects.into_iter().flat_map(|dialect| [(dialect, false), (dialect, true)])
            {
                let is_smb3 = matches!(dialect, Dialect::Smb300 | Dialect::Smb302 | Dialect::Smb311);
                let expected = dialect != Dialect::Smb202 && (is_kept || (is_smb3 && multichannel));
                let mut state = state(durability);
                let lock = Lock { dialect, multichannel, ..sequenced(1, 1, element(0, 10, Shared)) };
                state.lock(OWNER, &lock).unwrap();
                let again = state.lock(OWNER, &lock);
                let case = format!("{durability} {dialect} {multichannel}");
                assert_eq!(again, Ok(Outcome::Locked { is_replay: expected }), "{case}");
            }
        }
    }

    /// row 6.7: whatever becomes of the LOCK.
    #[test]
    fn an_open_with_a_lock_request_can_be_replayed_no_more() {
        let taken = element(0, 10, Exclusive);
        for (lock, is_done) in [
            (request(&[taken]), true),
            (request(&[element(0, 1, Unlock)]), false),
            (sequenced(1, 1, taken), true),
        ] {
            let mut state = state(Durability::DurableV2);
            let mut open = connected(Oplock::Batch, Durability::DurableV2, SESSION);
            open.description.is_replay_eligible = true;
            // For the last request: it is known already.
            open.description.lock_sequence_array = vec![1; LOCK_SEQUENCES];
            state.put_open(open);
            assert_eq!(state.lock(OWNER, &lock).is_ok(), is_done, "{lock:?}");
            assert!(!state.open(ID).unwrap().description.is_replay_eligible, "{lock:?}");
        }
    }
}
