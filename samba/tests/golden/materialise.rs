//! Orphans are placed as smbd itself leaves disconnected opens, and taken away without a trace.

use std::collections::BTreeSet;

use frame::Database;
use samba::materialise::{
    Edit, EntryRemoval, MaterialiseError, Removed, Traces, place_byte_range_locks, place_entry, place_lease,
    place_open_global, remove_byte_range_locks, remove_entry, remove_lease_file, remove_open_global,
};
use samba::records::{BrlockEntry, LeaseRecord, LockingRecord, NtTime, OpenGlobal, ServerId, ShareModeData};
use samba::{Layout, OpenImage};
use statedb::{ClientGuid, LeaseKey, LeaseState};

use crate::situation::Situation;

fn stored<T: std::fmt::Debug>(edit: Edit<T>) -> T {
    match edit {
        Edit::Store(value) => value,
        edit => panic!("nothing is stored: {edit:?}"),
    }
}

/// What is known of an open of which there is no record.
fn none(image: &OpenImage) -> Traces {
    Traces::of_record(image.durable_file_id(), None)
}

fn alive(_: ServerId) -> bool {
    true
}

fn dead(_: ServerId) -> bool {
    false
}

fn lease_of(image: &OpenImage) -> BTreeSet<(ClientGuid, LeaseKey)> {
    image.entry().lease().into_iter().collect()
}

fn locking(situation: &Situation) -> LockingRecord {
    LockingRecord::decode(situation.layout, situation.value(Database::Locking)).unwrap()
}

/// The two durable opens of one file.
fn two_images(layout: Layout) -> [OpenImage; 2] {
    let situation = Situation::load(layout, "two_opens_one_lease");
    let images: Vec<_> = situation.durable_opens().iter().map(|open| situation.capture(open)).collect();
    images.try_into().unwrap()
}

/// The judge is what the same smbd has made of the same open when its connection was lost cleanly.
#[test]
fn orphan_looks_as_smbd_leaves_an_open_after_a_clean_loss() {
    for layout in Layout::ALL {
        for name in ["rwh_v2_locks", "batch_v1_lock"] {
            let image = Situation::load(layout, name).image();
            let lost = Situation::load(layout, &format!("{name}_disconnected"));

            let expected = OpenGlobal::decode(layout, lost.value(Database::OpenGlobal)).unwrap();
            let cookie = expected.backend_cookie.as_ref().unwrap();
            let placed =
                place_open_global(None, &image, expected.disconnect_time, &cookie.stat, alive).unwrap();
            let mut placed = stored(placed);
            // What only the process itself knew: how often it has stored the record, that the file was written, and
            // which locks had a sequence number.
            placed.seqnum = expected.seqnum;
            placed.lock_sequence_array = expected.lock_sequence_array;
            placed.backend_cookie.as_mut().unwrap().update_write_time_triggered =
                cookie.update_write_time_triggered;
            assert_eq!(placed, expected, "{name}");

            let placed = stored(place_entry(None, &image, none(&image)).unwrap());
            let (placed, expected) = (placed.share_modes().unwrap(), locking(&lost));
            let expected = expected.share_modes().unwrap();
            assert_eq!(placed.entries, expected.entries, "{name}");
            let (placed, expected) = (placed.data.as_ref().unwrap(), expected.data.as_ref().unwrap());
            assert_eq!((placed.flags, &placed.base_name), (expected.flags, &expected.base_name), "{name}");

            let placed = stored(place_byte_range_locks(&[], &image, none(&image)));
            assert_eq!(BrlockEntry::encode_all(layout, &placed), lost.value(Database::Brlock), "{name}");

            if let Some(lease) = image.lease() {
                let placed = stored(place_lease(None, lease));
                assert_eq!(placed.encode(layout), lost.value(Database::Leases), "{name}");
            }
        }
    }
}

#[test]
fn placing_twice_is_placing_once() {
    for layout in Layout::ALL {
        let image = Situation::load(layout, "rwh_v2_locks").image();
        let stat = &image.cookie().stat;
        let open = stored(place_open_global(None, &image, NtTime(1), stat, alive).unwrap());
        assert_eq!(place_open_global(Some(&open), &image, NtTime(2), stat, alive), Ok(Edit::Keep));
        let record = stored(place_entry(None, &image, none(&image)).unwrap());
        assert_eq!(place_entry(Some(record), &image, none(&image)), Ok(Edit::Keep));
        let locks = stored(place_byte_range_locks(&[], &image, none(&image)));
        assert_eq!(place_byte_range_locks(&locks, &image, none(&image)), Edit::Keep);
        let lease = image.lease().unwrap();
        assert_eq!(place_lease(Some(lease.clone()), lease), Edit::Keep);
    }
}

#[test]
fn live_record_under_the_same_id_is_never_overwritten() {
    for layout in Layout::ALL {
        let situation = Situation::load(layout, "rwh_v2_locks");
        let image = situation.image();
        let local = OpenGlobal::decode(layout, situation.value(Database::OpenGlobal)).unwrap();
        let error =
            place_open_global(Some(&local), &image, NtTime(1), &image.cookie().stat, alive).unwrap_err();
        assert_eq!(error, MaterialiseError::Conflict { id: image.durable_file_id(), holder: local.holder() });
    }
}

#[test]
fn disconnected_record_of_another_open_under_the_same_id_is_never_overwritten() {
    for layout in Layout::ALL {
        let situation = Situation::load(layout, "rwh_v2_locks");
        let image = situation.image();
        let mut local = OpenGlobal::decode(layout, situation.value(Database::OpenGlobal)).unwrap();
        local.server_id = ServerId::DISCONNECTED;
        local.create_guid.0[0] ^= 1;
        let error =
            place_open_global(Some(&local), &image, NtTime(1), &image.cookie().stat, alive).unwrap_err();
        assert!(matches!(error, MaterialiseError::Conflict { .. }), "{error}");
    }
}

#[test]
fn renamed_file_is_opened_by_its_new_name() {
    for layout in Layout::ALL {
        let situation = Situation::load(layout, "rwh_v2_locks");
        let mut image = situation.image();
        let mut record = locking(&situation);
        let modes = record.lock.as_mut().unwrap().share_modes.as_mut().unwrap();
        modes.data.as_mut().unwrap().base_name = Some("renamed.docx".to_owned());
        image.update_locking(Some(&record.encode(layout))).unwrap();
        let open = stored(place_open_global(None, &image, NtTime(1), &image.cookie().stat, alive).unwrap());
        assert_eq!(open.backend_cookie.unwrap().base_name, "renamed.docx");
    }
}

/// The records of a process that has died alone in the middle of a rename still say the old name.
#[test]
fn share_modes_are_renamed_if_they_have_the_old_name() {
    for layout in Layout::ALL {
        let mut record = locking(&Situation::load(layout, "rwh_v2_locks"));
        let name = |record: &LockingRecord| {
            record.share_modes().unwrap().data.as_ref().unwrap().base_name.clone().unwrap()
        };
        let before = name(&record);
        record.rename("something else", "renamed.docx");
        assert_eq!(name(&record), before);
        record.rename(&before, "renamed.docx");
        assert_eq!(name(&record), "renamed.docx");
    }
}

/// Each record of an open that has its file's name has the new one, and the entry its hash.
#[test]
fn image_of_a_renamed_file_has_the_new_name_everywhere() {
    for layout in Layout::ALL {
        let before = Situation::load(layout, "rwh_v2_locks").image();
        let renamed = before.renamed("folder/renamed.docx", 7);
        assert_eq!((renamed.path(), renamed.entry().name_hash), ("folder/renamed.docx", 7));
        assert_eq!(renamed.cookie().base_name, "folder/renamed.docx");
        let of_lease = &renamed.lease().unwrap().files[0];
        assert_eq!(of_lease.base_name.as_deref(), Some("folder/renamed.docx"));
        assert_eq!(OpenImage::decode(&renamed.encode()).unwrap(), renamed);
        assert_eq!(renamed.renamed(before.path(), before.entry().name_hash), before);
    }
}

#[test]
fn orphans_of_one_file_share_its_records_and_leave_it_one_by_one() {
    for layout in Layout::ALL {
        let [one, other] = two_images(layout);
        let record = stored(place_entry(None, &one, none(&one)).unwrap());
        let both = stored(place_entry(Some(record.clone()), &other, none(&other)).unwrap());
        let entries = &both.share_modes().unwrap().entries;
        let ids: Vec<_> = entries.iter().map(|entry| entry.share_file_id).collect();
        assert!(
            ids.is_sorted_by(|one, other| one > other),
            "smbd searches them in descending order: {ids:?}"
        );
        assert_ne!(both.lock.as_ref().unwrap().data_epoch, record.lock.as_ref().unwrap().data_epoch);

        let locks = stored(place_byte_range_locks(&[], &one, none(&one)));
        let locks = stored(place_byte_range_locks(&locks, &other, none(&other)));
        assert_eq!(locks.len(), 2);

        // The lease stays while one of them has it.
        let removal = remove_entry(Some(both), one.file(), none(&one)).unwrap();
        assert!(removal.unused_leases.is_empty());
        let rest = stored(removal.edit);
        assert!(
            rest.has_disconnected(other.durable_file_id()) && !rest.has_disconnected(one.durable_file_id())
        );
        let removal = remove_entry(Some(rest), other.file(), none(&other)).unwrap();
        assert_eq!(removal, EntryRemoval { edit: Edit::Delete, unused_leases: lease_of(&other) });
        assert_eq!(remove_lease_file(other.lease().cloned(), other.file()), Edit::Delete);

        let locks = stored(remove_byte_range_locks(&locks, none(&one)));
        assert_eq!(remove_byte_range_locks(&locks, none(&other)), Edit::Delete);
    }
}

/// Flags of all opens together: the most access, the least sharing, the most caching.
#[test]
fn flags_are_summed_up_over_all_opens() {
    for layout in Layout::ALL {
        let image = Situation::load(layout, "rwh_v2_locks").image();
        let local = locking(&Situation::load(layout, "batch_v2"));
        let before = local.share_modes().unwrap().data.clone().unwrap();
        assert_eq!(before.flags & ShareModeData::SHARE_WRITE, 0);
        let placed = stored(place_entry(Some(local), &image, none(&image)).unwrap());
        let after = placed.share_modes().unwrap().data.clone().unwrap();
        assert_eq!(
            after.flags & (ShareModeData::SHARE_READ | ShareModeData::SHARE_WRITE),
            ShareModeData::SHARE_READ
        );
        assert_ne!(after.unique_content_epoch, before.unique_content_epoch);
        assert_eq!(after.base_name, before.base_name);
    }
}

#[test]
fn entries_of_others_are_left_alone() {
    for layout in Layout::ALL {
        let image = Situation::load(layout, "rwh_v2_locks").image();
        let local = locking(&Situation::load(layout, "batch_v2"));
        let others = local.share_modes().unwrap().entries.clone();
        let placed = stored(place_entry(Some(local), &image, none(&image)).unwrap());
        let removal = remove_entry(Some(placed), image.file(), none(&image)).unwrap();
        assert_eq!(stored(removal.edit).share_modes().unwrap().entries, others);
    }
}

/// A process that was refused a claim stores the open as nobody's, in a form that smbd gives back to nobody.
#[test]
fn what_a_refused_claim_has_stored_is_replaced() {
    for layout in Layout::ALL {
        let image = Situation::load(layout, "rwh_v2_locks").image();
        let place = |local: Option<&OpenGlobal>| {
            place_open_global(local, &image, NtTime(1), &image.cookie().stat, dead).unwrap()
        };
        let placed = stored(place(None));
        let mut refused = placed.clone();
        refused.backend_cookie.as_mut().unwrap().allow_reconnect = false;
        assert_eq!(stored(place(Some(&refused))), placed);
        assert_eq!(place(Some(&placed)), Edit::Keep);
    }
}

#[test]
fn record_that_is_being_changed_is_not_touched() {
    for layout in Layout::ALL {
        let image = Situation::load(layout, "rwh_v2_locks").image();
        let busy = Situation::load(layout, "stores_of_a_create");
        let records =
            busy.values(Database::Locking).map(|value| LockingRecord::decode(layout, value).unwrap());
        let busy = records.into_iter().find(|record| record.lock_holder().is_some()).unwrap();
        let error = place_entry(Some(busy.clone()), &image, none(&image)).unwrap_err();
        assert_eq!(
            error,
            MaterialiseError::Locked { file: image.file(), holder: busy.lock_holder().unwrap() }
        );

        let mut abandoned = busy;
        abandoned.release_dead_holders(|_| false);
        assert!(place_entry(Some(abandoned), &image, none(&image)).is_ok());
    }
}

#[test]
fn record_that_is_watched_is_not_deleted() {
    for layout in Layout::ALL {
        let image = Situation::load(layout, "rwh_v2_locks").image();
        let mut record = stored(place_entry(None, &image, none(&image)).unwrap());
        let watched = Situation::load(layout, "stores_of_a_lease_break");
        let watched =
            watched.values(Database::Locking).map(|value| LockingRecord::decode(layout, value).unwrap());
        record.watchers =
            watched.map(|record| record.watchers).find(|watchers| !watchers.is_empty()).unwrap();
        let removal = remove_entry(Some(record), image.file(), none(&image)).unwrap();
        assert!(stored(removal.edit).share_modes().is_none());
    }
}

#[test]
fn claimed_open_is_not_removed() {
    for layout in Layout::ALL {
        let situation = Situation::load(layout, "rwh_v2_locks_reclaimed");
        let local = OpenGlobal::decode(layout, situation.value(Database::OpenGlobal)).unwrap();
        assert_eq!(remove_open_global(Some(&local), alive), (Edit::Keep, Removed::Claimed));
        assert_eq!(remove_open_global(None, alive), (Edit::Keep, Removed::Absent));
        let situation = Situation::load(layout, "rwh_v2_locks_disconnected");
        let local = OpenGlobal::decode(layout, situation.value(Database::OpenGlobal)).unwrap();
        assert_eq!(remove_open_global(Some(&local), alive), (Edit::Delete, Removed::Removed));

        // Its entry and its locks are a process's, so they are not found.
        let image = Situation::load(layout, "rwh_v2_locks_reclaimed").image();
        let record = locking(&Situation::load(layout, "rwh_v2_locks_reclaimed"));
        let removal = remove_entry(Some(record), image.file(), none(&image)).unwrap();
        assert_eq!(removal, EntryRemoval { edit: Edit::Keep, unused_leases: BTreeSet::new() });
        let locks = image.byte_range_locks();
        assert_eq!(remove_byte_range_locks(locks, none(&image)), Edit::Keep);
    }
}

/// A lease that is there already may have been broken since, and stays as it is.
#[test]
fn lease_of_this_node_is_not_overwritten() {
    for layout in Layout::ALL {
        let image = Situation::load(layout, "rwh_v2_locks").image();
        let orphan = image.lease().unwrap();
        let mut local = orphan.clone();
        local.current_state = LeaseState(LeaseState::READ);
        assert_eq!(place_lease(Some(local.clone()), orphan), Edit::Keep);
        local.files[0].file.inode += 1;
        let placed = stored(place_lease(Some(local), orphan));
        assert_eq!((placed.current_state, placed.files.len()), (LeaseState(LeaseState::READ), 2));
        assert_eq!(stored(remove_lease_file(Some(placed), image.file())).files.len(), 1);
    }
}

/// CTDB has the record still as it was before its holder has acknowledged the break.
#[test]
fn lease_from_before_the_acknowledgement_is_replaced() {
    let rh = LeaseState(LeaseState::READ | LeaseState::HANDLE);
    for layout in Layout::ALL {
        let image = Situation::load(layout, "rwh_v2_locks").image();
        let granted = image.lease().unwrap().clone();
        assert!(granted.current_state.has_write_caching());
        let mut breaking = LeaseRecord {
            breaking: true,
            breaking_to_requested: rh,
            breaking_to_required: rh,
            ..granted.clone()
        };
        breaking.epoch.0 += 1;
        let acknowledged = LeaseRecord { current_state: rh, epoch: breaking.epoch, ..granted.clone() };
        let mut to_less = breaking.clone();
        to_less.breaking_to_required = LeaseState::NONE;

        for (older, newer) in [(&granted, &breaking), (&breaking, &to_less), (&breaking, &acknowledged)] {
            assert_eq!(&stored(place_lease(Some(older.clone()), newer)), newer);
            assert_eq!(place_lease(Some(newer.clone()), older), Edit::Keep);
        }
    }
}

/// A process of the survivor itself has died with the open: what it left is not there twice.
#[test]
fn what_a_dead_process_has_left_is_replaced() {
    for layout in Layout::ALL {
        let situation = Situation::load(layout, "rwh_v2_locks");
        let image = situation.image();
        let local = OpenGlobal::decode(layout, situation.value(Database::OpenGlobal)).unwrap();
        let stat = &image.cookie().stat;
        let open = stored(place_open_global(Some(&local), &image, NtTime(1), stat, dead).unwrap());
        assert_eq!(open.server_id, ServerId::DISCONNECTED);

        // Also when smbd has deleted the open's own record meanwhile.
        let traces = Traces::of_orphan(&image, None, dead);
        assert_eq!(traces, Traces::of_orphan(&image, Some(&local), dead));
        assert_eq!(traces, Traces::of_record(image.durable_file_id(), Some(&local)));
        assert_eq!(Traces::of_orphan(&image, None, alive), none(&image));
        let record = stored(place_entry(Some(locking(&situation)), &image, traces).unwrap());
        let entries = &record.share_modes().unwrap().entries;
        assert_eq!(entries.len(), 1);
        assert!(entries[0].is_disconnected(image.durable_file_id()));
        let locks = stored(place_byte_range_locks(image.byte_range_locks(), &image, traces));
        assert_eq!(locks.len(), 2);
        assert!(locks.iter().all(|lock| lock.server_id == ServerId::DISCONNECTED));

        assert_eq!(remove_open_global(Some(&local), dead), (Edit::Delete, Removed::Removed));
        let removal = remove_entry(Some(locking(&situation)), image.file(), traces).unwrap();
        assert_eq!(removal, EntryRemoval { edit: Edit::Delete, unused_leases: lease_of(&image) });
        assert_eq!(remove_byte_range_locks(image.byte_range_locks(), traces), Edit::Delete);
    }
}
