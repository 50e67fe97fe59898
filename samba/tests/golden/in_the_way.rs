//! Who has come while an orphan was away contradicts it, or does not.

use samba::materialise::{LocksInTheWay, Traces, locks_in_the_way, place_entry, stands_in_the_way};
use samba::records::{BrlockEntry, DeleteMark, LockingRecord, ServerId, ShareModeEntry, UnixMicros};
use samba::{Layout, OpenImage};
use statedb::{AccessMask, ClientGuid, DurableFileId, LeaseKey, LeaseState, ShareAccess};

use crate::situation::Situation;

const RWH: u32 = LeaseState::READ | LeaseState::WRITE | LeaseState::HANDLE;
const RH: u32 = LeaseState::READ | LeaseState::HANDLE;
const READS: u32 = AccessMask::READ_DATA;
const WRITES: u32 = AccessMask::READ_DATA | AccessMask::WRITE_DATA;
const STAT: u32 = AccessMask::READ_ATTRIBUTES | AccessMask::SYNCHRONIZE;
const ALL: u32 = ShareAccess::READ | ShareAccess::WRITE | ShareAccess::DELETE;

/// The process of everybody else.
const SOMEBODY: ServerId = ServerId { pid: 4711, task_id: 0, vnn: 1, unique_id: 4711 };

/// When everybody else has come.
const LATER: UnixMicros = UnixMicros { seconds: 5_000_000_000, micros: 0 };

/// An orphan with a lease in that state, with that access, that shares everything.
fn leased_orphan(layout: Layout, state: u32, access: u32) -> OpenImage {
    let situation = Situation::load(layout, "rwh_v2_locks");
    let mut image = situation.image();
    let mut lease = image.lease().unwrap().clone();
    lease.current_state = LeaseState(state);
    image.update_lease(&image.lease_record_key().unwrap(), Some(&lease.encode(layout))).unwrap();
    with_access(image, access)
}

fn with_access(mut image: OpenImage, access: u32) -> OpenImage {
    let entry = ShareModeEntry {
        access_mask: AccessMask(access),
        share_access: ShareAccess(ALL),
        ..image.entry().clone()
    };
    let mut record = placed(&image);
    record.lock.as_mut().unwrap().share_modes.as_mut().unwrap().entries = vec![entry];
    image.update_locking(Some(&record.encode(image.layout()))).unwrap();
    image
}

/// The share modes of the orphan's file with the orphan alone.
fn placed(image: &OpenImage) -> LockingRecord {
    let traces = Traces::of_record(image.durable_file_id(), None);
    match place_entry(None, image, traces).unwrap() {
        samba::materialise::Edit::Store(record) => record,
        edit => panic!("{edit:?}"),
    }
}

/// The share modes of the orphan's file with others alone.
fn record_of(image: &OpenImage, entries: Vec<ShareModeEntry>) -> LockingRecord {
    let mut record = placed(image);
    record.lock.as_mut().unwrap().share_modes.as_mut().unwrap().entries = entries;
    record
}

/// Somebody else's open without an oplock, who shares everything.
fn other(image: &OpenImage, access: u32) -> ShareModeEntry {
    ShareModeEntry {
        server_id: SOMEBODY,
        op_type: ShareModeEntry::NO_OPLOCK,
        client_guid: ClientGuid::default(),
        lease_key: LeaseKey([0; 16]),
        access_mask: AccessMask(access),
        share_access: ShareAccess(ALL),
        time: LATER,
        share_file_id: 1,
        ..image.entry().clone()
    }
}

fn with_lease(entry: ShareModeEntry) -> ShareModeEntry {
    ShareModeEntry {
        op_type: ShareModeEntry::LEASE_OPLOCK,
        client_guid: ClientGuid([7; 16]),
        lease_key: LeaseKey([7; 16]),
        ..entry
    }
}

fn away(entry: ShareModeEntry) -> ShareModeEntry {
    ShareModeEntry { server_id: ServerId::DISCONNECTED, share_file_id: 4711, ..entry }
}

fn is_alive(server_id: ServerId) -> bool {
    server_id == SOMEBODY
}

/// Whether that one is in the way; his lease, if he has one, is in that state.
fn in_the_way(image: &OpenImage, entry: ShareModeEntry, lease: Option<u32>) -> bool {
    let record = record_of(image, vec![entry]);
    let traces = Traces::of_orphan(image, None, is_alive);
    stands_in_the_way(&record, image, traces, is_alive, |_, _| lease.map(LeaseState))
}

#[test]
fn nobody_is_not_in_the_way() {
    for layout in Layout::ALL {
        let image = leased_orphan(layout, RWH, WRITES);
        let traces = Traces::of_orphan(&image, None, is_alive);
        let lease_state = |_, _| None;
        for record in [LockingRecord::default(), record_of(&image, vec![])] {
            assert!(!stands_in_the_way(&record, &image, traces, is_alive, lease_state));
        }
        let dead = ShareModeEntry { server_id: ServerId { pid: 1, ..SOMEBODY }, ..other(&image, WRITES) };
        assert!(!in_the_way(&image, dead, None));
    }
}

#[test]
fn share_modes_exclude_in_both_directions() {
    for layout in Layout::ALL {
        let image = leased_orphan(layout, RH, READS);
        let unshared =
            ShareModeEntry { share_access: ShareAccess(ShareAccess::WRITE), ..other(&image, READS) };
        assert!(in_the_way(&image, unshared.clone(), None));
        assert!(in_the_way(&image, away(unshared.clone()), None));
        assert!(!in_the_way(&image, ShareModeEntry { access_mask: AccessMask(STAT), ..unshared }, None));
        // The batch orphan shares reading alone.
        let image = Situation::load(layout, "batch_v2").image();
        assert!(in_the_way(&image, other(&image, AccessMask::DELETE), None));
    }
}

/// (the orphan's lease and access, the other's access and lease, in the way while connected, in the way while away)
#[test]
fn caching_that_would_have_been_broken_is_in_the_way() {
    for layout in Layout::ALL {
        for (orphan, access, entry_access, lease, connected, disconnected) in [
            // An open of attributes breaks nothing.
            (RWH, WRITES, STAT, None, false, false),
            (RWH, WRITES, STAT | AccessMask::READ_CONTROL, None, false, false),
            (RH, READS, STAT, Some(RH), false, false),
            // Who caches writes is alone.
            (RWH, WRITES, READS, None, true, true),
            (RWH, WRITES, STAT, Some(LeaseState::READ), true, true),
            (RH, READS, READS, Some(RWH), true, true),
            (RH, STAT, STAT, Some(RWH), true, true),
            // Who caches reads lives beside readers, and beside writers for as long as these do not write.
            (RH, READS, READS, None, false, false),
            (RH, WRITES, READS, Some(RH), false, false),
            (RH, READS, WRITES, None, true, false),
            (RH, READS, WRITES, Some(RH), true, false),
        ] {
            let image = leased_orphan(layout, orphan, access);
            let entry = other(&image, entry_access);
            let entry = if lease.is_some() { with_lease(entry) } else { entry };
            let found = [in_the_way(&image, entry.clone(), lease), in_the_way(&image, away(entry), lease)];
            assert_eq!(found, [connected, disconnected], "{orphan} {access:#x}, {entry_access:#x} {lease:?}");
        }
    }
}

#[test]
fn batch_oplock_is_broken_by_reading_the_security_descriptor() {
    for layout in Layout::ALL {
        let image = with_access(Situation::load(layout, "batch_v2").image(), WRITES);
        assert!(!in_the_way(&image, other(&image, STAT), None));
        assert!(in_the_way(&image, other(&image, STAT | AccessMask::READ_CONTROL), None));
        let batch = ShareModeEntry { op_type: ShareModeEntry::BATCH_OPLOCK, ..other(&image, READS) };
        let image = leased_orphan(layout, RH, READS);
        assert!(in_the_way(&image, batch.clone(), None));
        assert!(!in_the_way(
            &image,
            ShareModeEntry { op_type: ShareModeEntry::LEVEL_II_OPLOCK, ..batch },
            None
        ));
    }
}

#[test]
fn lease_that_is_not_known_may_allow_everything() {
    for layout in Layout::ALL {
        let image = leased_orphan(layout, RH, READS);
        assert!(in_the_way(&image, with_lease(other(&image, READS)), None));
    }
}

#[test]
fn opens_of_one_lease_do_not_break_each_other() {
    for layout in Layout::ALL {
        let image = leased_orphan(layout, RWH, WRITES);
        let (client_guid, lease_key) = image.entry().lease().unwrap();
        let own = ShareModeEntry { client_guid, lease_key, ..with_lease(other(&image, WRITES)) };
        assert!(!in_the_way(&image, own.clone(), Some(RWH)));
        assert!(in_the_way(&image, ShareModeEntry { share_access: ShareAccess(0), ..own }, Some(RWH)));
    }
}

/// smbd takes away the entry of an orphan that is in somebody's way, so where it is nobody came who contradicts it.
#[test]
fn nobody_is_in_the_way_while_the_orphan_is_in_the_record() {
    for layout in Layout::ALL {
        let image = leased_orphan(layout, RH, READS);
        for own in [image.entry().clone(), placed(&image).share_modes().unwrap().entries[0].clone()] {
            let record = record_of(&image, vec![own, other(&image, WRITES)]);
            let traces = Traces::of_orphan(&image, None, is_alive);
            assert!(!stands_in_the_way(&record, &image, traces, is_alive, |_, _| None));
        }
    }
}

/// Whether an orphan with a READ and HANDLE lease has a mark for deletion by somebody else in its way, for its own name or
/// another one.
fn mark_is_in_the_way(layout: Layout, for_own_name: bool) -> bool {
    let image = leased_orphan(layout, RH, READS);
    let mut record = record_of(&image, vec![other(&image, STAT)]);
    let data = record.lock.as_mut().unwrap().share_modes.as_mut().unwrap().data.as_mut().unwrap();
    let own_name = image.entry().name_hash;
    data.delete_tokens.marks.push(DeleteMark {
        name_hash: if for_own_name { own_name } else { own_name ^ 1 },
        parent_lease_key: LeaseKey([0; 16]),
        open_persistent_id: DurableFileId(0),
        has_nt_token: false,
        has_unix_token: false,
    });
    let traces = Traces::of_orphan(&image, None, is_alive);
    stands_in_the_way(&record, &image, traces, is_alive, |_, _| None)
}

#[test]
fn mark_for_deletion_by_somebody_else_is_in_the_way() {
    for layout in Layout::ALL {
        assert!(mark_is_in_the_way(layout, true));
    }
}

/// The file that had the inode before was deleted, and CTDB has found nothing newer than its record.
#[test]
fn mark_for_deletion_for_another_name_is_in_nobodys_way() {
    for layout in Layout::ALL {
        assert!(!mark_is_in_the_way(layout, false));
    }
}

/// The two durable opens of one lease, each put back beside the other.
#[test]
fn orphans_that_lived_together_are_not_in_each_others_way() {
    for layout in Layout::ALL {
        let situation = Situation::load(layout, "two_opens_one_lease");
        let images: Vec<_> = situation.durable_opens().iter().map(|open| situation.capture(open)).collect();
        for (one, other) in [(&images[0], &images[1]), (&images[1], &images[0])] {
            let record = placed(one);
            let traces = Traces::of_orphan(other, None, |_| false);
            assert!(!stands_in_the_way(&record, other, traces, |_| false, |_, _| None));
            let locks: Vec<_> = one
                .byte_range_locks()
                .iter()
                .map(|lock| BrlockEntry { server_id: ServerId::DISCONNECTED, ..*lock })
                .collect();
            assert_eq!(locks_in_the_way(&locks, &record, other, |_| false), LocksInTheWay::None);
        }
    }
}

#[test]
fn locks_of_others_overlap_or_break_caching() {
    for layout in Layout::ALL {
        let image = leased_orphan(layout, RH, READS);
        let own = image.byte_range_locks()[0];
        assert!(own.exclusive);
        let lock = |start, exclusive| BrlockEntry {
            smblctx: 4711,
            server_id: SOMEBODY,
            start,
            size: 1,
            exclusive,
            ..own
        };
        let elsewhere = own.start + own.size;
        let judge = |lock: BrlockEntry, entry: ShareModeEntry| {
            locks_in_the_way(&[lock], &record_of(&image, vec![entry]), &image, is_alive)
        };
        let stranger = other(&image, READS);
        assert_eq!(judge(lock(own.start, false), stranger.clone()), LocksInTheWay::Overlap);
        assert_eq!(judge(lock(elsewhere, false), stranger.clone()), LocksInTheWay::BreaksCaching);

        let (client_guid, lease_key) = image.entry().lease().unwrap();
        let friend = ShareModeEntry { client_guid, lease_key, ..with_lease(stranger.clone()) };
        assert_eq!(judge(lock(own.start, false), friend.clone()), LocksInTheWay::Overlap);
        assert_eq!(judge(lock(elsewhere, false), friend.clone()), LocksInTheWay::None);
        // The process has two opens of the file, and the lock may be of either.
        let record = record_of(&image, vec![friend, stranger.clone()]);
        let found = locks_in_the_way(&[lock(elsewhere, true)], &record, &image, is_alive);
        assert_eq!(found, LocksInTheWay::BreaksCaching);

        let dead = BrlockEntry { server_id: ServerId { pid: 1, ..SOMEBODY }, ..lock(own.start, true) };
        assert_eq!(judge(dead, stranger.clone()), LocksInTheWay::None);
        let itself = BrlockEntry { smblctx: image.durable_file_id().0, ..lock(own.start, true) };
        assert_eq!(judge(itself, stranger), LocksInTheWay::None);
    }
}
