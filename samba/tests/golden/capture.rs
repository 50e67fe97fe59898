//! Images of opens, captured from their records.

use std::collections::BTreeMap;

use frame::{Database, RecordKey};
use samba::image::ImageError;
use samba::records::{
    BrlockEntry, DeleteMark, Holder, LeaseRecord, LockingRecord, NtTime, OpenGlobal, ServerId, file_key,
};
use samba::{Capture, Change, Layout, OpenImage};
use statedb::{
    AccessMask, AppInstance, AppInstanceVersion, ByteRangeLock, CreateAction, CreateGuid, CreateOptions,
    Durability, DurableFileId, LeaseEpoch, LeaseKey, LeaseState, LeaseVersion, Millis, OpenDescription,
    Oplock, OplockState, ShareAccess, ShareName,
};

use crate::situation::Situation;

fn share() -> ShareName {
    ShareName::new("share")
}

#[test]
fn every_durable_open_is_captured_and_its_image_survives_encoding() {
    for layout in Layout::ALL {
        for situation in
            Situation::all(layout).iter().filter(|situation| !situation.name.starts_with("stores_"))
        {
            for open in situation.durable_opens() {
                let image = situation.capture(&open);
                assert_eq!(OpenImage::decode(&image.encode()).unwrap(), image, "{}", situation.name);
                assert_eq!(image.describe(share()).image[..], image.encode()[..]);
            }
        }
    }
}

#[test]
fn open_with_a_lease_is_described() {
    for layout in Layout::ALL {
        let open = Situation::load(layout, "rwh_v2_locks").image().describe(share());
        assert_eq!(&*open.durable_owner.0, "S-1-5-21-1-2-3-1000");
        assert_eq!(&*open.path, "report.docx");
        assert_eq!(open.durability, Durability::DurableV2);
        assert_eq!(open.durable_open_timeout, Millis(60_000));
        assert_eq!((open.granted_access, open.share_access), (AccessMask(0x12_019F), ShareAccess(7)));
        assert_eq!(open.create_guid.to_string(), "000000a0000000408000000000000001");
        let Oplock::Lease(lease) = open.oplock else { panic!("{:?}", open.oplock) };
        assert_eq!(lease.key, LeaseKey(*b"lease-key-report"));
        assert_eq!(lease.state, LeaseState(7));
        assert_eq!((lease.epoch, lease.version), (LeaseEpoch(1), LeaseVersion::V2));
        assert_eq!(
            open.byte_range_locks,
            [
                ByteRangeLock { offset: 10, length: 20, exclusive: true },
                ByteRangeLock { offset: 100, length: 5, exclusive: false },
            ]
        );
        assert!(!open.delete_on_close);
    }
}

#[test]
fn open_with_a_batch_oplock_is_described() {
    for layout in Layout::ALL {
        let v2 = Situation::load(layout, "batch_v2").image().describe(share());
        assert_eq!((v2.oplock, v2.durability), (Oplock::Batch, Durability::DurableV2));
        assert_eq!((v2.share_access, v2.durable_open_timeout), (ShareAccess(1), Millis(30_000)));

        let v1 = Situation::load(layout, "batch_v1_lock").image().describe(share());
        assert_eq!((v1.oplock, v1.durability), (Oplock::Batch, Durability::DurableV1));
        assert_eq!(v1.create_guid, CreateGuid::default());
        assert_eq!(v1.durable_open_timeout, Millis(16 * 60 * 1000));
    }
}

#[test]
fn lease_of_version_1_has_no_epoch() {
    for layout in Layout::ALL {
        let open = Situation::load(layout, "rwh_v1").image().describe(share());
        let Oplock::Lease(lease) = open.oplock else { panic!("{:?}", open.oplock) };
        assert_eq!((lease.epoch, lease.version), (LeaseEpoch(0), LeaseVersion::V1));
    }
}

#[test]
fn lease_break_in_flight_is_told() {
    for layout in Layout::ALL {
        let open = Situation::load(layout, "lease_break_in_flight").image().describe(share());
        assert_eq!(open.oplock_state, OplockState::Breaking);
        assert!(!open.outlives_its_connection());
    }
}

/// smbd writes the position down when it loses the client, and stores the one from before until then.
#[test]
fn position_that_a_client_has_set_stays_until_smbd_writes_one_down() {
    for layout in Layout::ALL {
        let situation = Situation::load(layout, "batch_v2");
        let mut image = situation.image();
        assert_eq!(image.set_position(image.cookie().position), Ok(Change::Same));
        assert_eq!(image.set_position(0x1000), Ok(Change::Changed));
        assert_eq!(image.describe(share()).position, 0x1000);

        let stored = situation.value(Database::OpenGlobal);
        assert_eq!(image.update_open_global(stored), Ok(Change::Same));
        let mut lost = OpenGlobal::decode(layout, stored).unwrap();
        lost.server_id = ServerId::DISCONNECTED;
        lost.backend_cookie.as_mut().unwrap().position = 0x2000;
        assert_eq!(image.update_open_global(&lost.encode(layout)), Ok(Change::Changed));
        assert_eq!(image.describe(share()).position, 0x2000);
    }
}

#[test]
fn mark_for_deletion_is_told() {
    for layout in Layout::ALL {
        assert!(Situation::load(layout, "delete_on_close").image().describe(share()).delete_on_close);
    }
}

/// Opens of one file by one process differ in the moment of their making only.
#[test]
fn opens_of_one_lease_are_told_apart() {
    for layout in Layout::ALL {
        let situation = Situation::load(layout, "two_opens_one_lease");
        let images: Vec<_> = situation.durable_opens().iter().map(|open| situation.capture(open)).collect();
        let [one, other] = images.as_slice() else { panic!("two durable opens") };
        assert_ne!(one.entry().share_file_id, other.entry().share_file_id);
        assert_eq!(one.lease(), other.lease());
        for image in [one, other] {
            let [lock] = image.byte_range_locks() else { panic!("one lock each") };
            assert_eq!(lock.smblctx, image.durable_file_id().0);
        }
    }
}

#[test]
fn holder_is_told() {
    for layout in Layout::ALL {
        let connected = Situation::load(layout, "rwh_v2_locks").image();
        let Holder::Process(server_id) = connected.holder() else { panic!("it is connected") };
        assert_eq!(connected.entry().server_id, server_id);
        assert_eq!(
            Situation::load(layout, "rwh_v2_locks_disconnected").image().holder(),
            Holder::Disconnected
        );
        assert_eq!(ServerId::DISCONNECTED.to_string(), "disconnected");
    }
}

#[test]
fn open_that_is_not_durable_is_not_captured() {
    for layout in Layout::ALL {
        let situation = Situation::load(layout, "not_durable");
        let value = situation.values(Database::OpenGlobal).next().unwrap();
        let error = OpenImage::capture(layout, value, &BTreeMap::new()).unwrap_err();
        assert!(matches!(error, ImageError::NotDurable { .. }), "{error}");
    }
}

#[test]
fn missing_records_are_asked_for_in_two_rounds() {
    for layout in Layout::ALL {
        let situation = Situation::load(layout, "rwh_v2_locks");
        let value = situation.value(Database::OpenGlobal);
        let Capture::Need(first) = OpenImage::capture(layout, value, &BTreeMap::new()).unwrap() else {
            panic!("nothing is known yet")
        };
        let databases: Vec<_> = first.iter().map(|key| key.database).collect();
        assert_eq!(databases, [Database::Locking, Database::Brlock]);
        let Capture::Need(second) = OpenImage::capture(layout, value, &situation.answers(&first)).unwrap()
        else {
            panic!("the lease is not known yet")
        };
        let databases: Vec<_> = second.iter().map(|key| key.database).collect();
        assert_eq!(databases, [Database::Leases]);
    }
}

#[test]
fn open_without_its_other_records_is_not_captured() {
    for layout in Layout::ALL {
        let situation = Situation::load(layout, "rwh_v2_locks");
        let image = situation.image();
        let value = situation.value(Database::OpenGlobal);
        let file = file_key(image.file()).to_vec();
        let lease = image.lease_record_key().unwrap().to_vec();
        let key = |database, key: &Vec<u8>| RecordKey { database, key: key.clone() };
        let keys =
            [key(Database::Locking, &file), key(Database::Brlock, &file), key(Database::Leases, &lease)];

        let mut records = situation.answers(&keys);
        records.insert(keys[2].clone(), None);
        let error = OpenImage::capture(layout, value, &records).unwrap_err();
        assert!(matches!(error, ImageError::NoLease { .. }), "{error}");
        records.insert(keys[0].clone(), None);
        let error = OpenImage::capture(layout, value, &records).unwrap_err();
        assert!(matches!(error, ImageError::NoShareModeEntry { .. }), "{error}");
    }
}

#[test]
fn truncated_image_is_refused_at_every_length() {
    for layout in Layout::ALL {
        let bytes = Situation::load(layout, "rwh_v2_locks").image().encode();
        for length in 0..bytes.len() {
            OpenImage::decode(&bytes[..length]).unwrap_err();
        }
        let longer = [&bytes[..], &[0]].concat();
        assert!(matches!(OpenImage::decode(&longer), Err(ImageError::Trailing { left: 1 })));
    }
}

#[test]
fn damaged_image_never_panics() {
    for layout in Layout::ALL {
        let mut bytes = Situation::load(layout, "two_opens_one_lease").durable_opens()[0].encode(layout);
        let image = Situation::load(layout, "rwh_v2_locks").image().encode();
        for bytes in [&mut bytes, &mut image.clone()] {
            for offset in 0..bytes.len() {
                bytes[offset] ^= 0xFF;
                if let Ok(image) = OpenImage::decode(bytes) {
                    let _ = image.describe(share());
                }
                bytes[offset] ^= 0xFF;
            }
        }
    }
}

/// Whoever places the image again would add such a lock again, because it is not recognised as the open's.
#[test]
fn image_with_a_lock_of_another_open_is_refused() {
    for layout in Layout::ALL {
        let image = Situation::load(layout, "rwh_v2_locks").image();
        let mut bytes = image.encode();
        let locks = BrlockEntry::encode_all(layout, image.byte_range_locks());
        let id = image.durable_file_id().0.to_le_bytes();
        let in_first_lock = locks.windows(id.len()).position(|window| window == id).unwrap();
        let first_lock = bytes.len() - locks.len() + in_first_lock;
        bytes[first_lock] ^= 0xFF;
        let other = DurableFileId(image.durable_file_id().0 ^ 0xFF);
        assert_eq!(
            OpenImage::decode(&bytes),
            Err(ImageError::ForeignLock { id: image.durable_file_id(), other })
        );
    }
}

#[test]
fn image_of_a_newer_format_is_refused() {
    for layout in Layout::ALL {
        let mut bytes = Situation::load(layout, "rwh_v1").image().encode();
        bytes[0] = 2;
        assert!(matches!(OpenImage::decode(&bytes), Err(ImageError::FormatVersion { version: 2 })));
        bytes[..4].copy_from_slice(&[1, 0, 0xFF, 0xFF]);
        assert!(matches!(OpenImage::decode(&bytes), Err(ImageError::UnknownLayout { number: 0xFFFF })));
    }
}

#[test]
fn noise_in_the_share_modes_is_no_change() {
    for layout in Layout::ALL {
        let situation = Situation::load(layout, "rwh_v2_locks");
        let mut image = situation.image();
        let mut record = LockingRecord::decode(layout, situation.value(Database::Locking)).unwrap();
        let lock = record.lock.as_mut().unwrap();
        lock.exclusive = image.entry().server_id;
        lock.lock_epoch += 1;
        lock.data_epoch += 1;
        let modes = lock.share_modes.as_mut().unwrap();
        modes.data.as_mut().unwrap().unique_content_epoch += 1;
        let mut other = modes.entries[0].clone();
        other.share_file_id += 1;
        other.time.seconds += 1;
        modes.entries.push(other);
        assert_eq!(image.update_locking(Some(&record.encode(layout))), Ok(Change::Same));
    }
}

#[test]
fn rename_and_closed_entry_are_told() {
    for layout in Layout::ALL {
        let situation = Situation::load(layout, "rwh_v2_locks");
        let mut image = situation.image();
        let mut record = LockingRecord::decode(layout, situation.value(Database::Locking)).unwrap();
        let modes = record.lock.as_mut().unwrap().share_modes.as_mut().unwrap();
        modes.data.as_mut().unwrap().base_name = Some("renamed.docx".to_owned());
        assert_eq!(image.update_locking(Some(&record.encode(layout))), Ok(Change::Changed));
        assert_eq!(image.path(), "renamed.docx");

        record.lock.as_mut().unwrap().share_modes = None;
        let before = image.clone();
        assert_eq!(image.update_locking(Some(&record.encode(layout))), Ok(Change::Gone));
        assert_eq!(image.update_locking(None), Ok(Change::Gone));
        assert_eq!(image, before);
    }
}

/// smbd stores the entry of a lease that was broken to nothing without it, then deletes the lease.
#[test]
fn lease_that_was_broken_to_nothing_is_told() {
    for layout in Layout::ALL {
        let situation = Situation::load(layout, "rwh_v2_locks");
        let mut image = situation.image();
        let key = image.lease_record_key().unwrap();
        let mut record = LockingRecord::decode(layout, situation.value(Database::Locking)).unwrap();
        record.lock.as_mut().unwrap().share_modes.as_mut().unwrap().entries[0].op_type = 0;
        assert_eq!(image.update_locking(Some(&record.encode(layout))), Ok(Change::Changed));
        assert_eq!(image.update_lease(&key, None), Ok(Change::Same));
        assert_eq!(image.describe(share()).oplock, Oplock::None);
    }
}

#[test]
fn downgrade_of_the_lease_is_told() {
    for layout in Layout::ALL {
        let situation = Situation::load(layout, "rwh_v2_locks");
        let mut image = situation.image();
        let key = image.lease_record_key().unwrap();
        let value = situation.value(Database::Leases);
        assert_eq!(image.update_lease(&key, Some(value)), Ok(Change::Same));
        assert_eq!(image.update_lease(&[0; 32], None), Ok(Change::Same));
        let mut lease = LeaseRecord::decode(layout, value).unwrap();
        lease.current_state = LeaseState(LeaseState::READ);
        assert_eq!(image.update_lease(&key, Some(&lease.encode(layout))), Ok(Change::Changed));
        assert!(!image.describe(share()).outlives_its_connection());
    }
}

#[test]
fn locks_of_others_are_no_change() {
    for layout in Layout::ALL {
        let situation = Situation::load(layout, "two_opens_one_lease");
        let mut images: Vec<_> =
            situation.durable_opens().iter().map(|open| situation.capture(open)).collect();
        for image in &mut images {
            let value = situation.of_file(Database::Brlock, image);
            assert_eq!(image.update_brlock(value.as_deref()), Ok(Change::Same));
            assert_eq!(image.update_brlock(None), Ok(Change::Changed));
            assert_eq!(image.byte_range_locks(), []);
        }
    }
}

#[test]
fn count_of_stores_is_no_change_of_an_open() {
    for layout in Layout::ALL {
        let situation = Situation::load(layout, "rwh_v2_locks");
        let mut image = situation.image();
        let mut open = OpenGlobal::decode(layout, situation.value(Database::OpenGlobal)).unwrap();
        open.seqnum += 1;
        assert_eq!(image.update_open_global(&open.encode(layout)), Ok(Change::Same));
        open.server_id = ServerId::DISCONNECTED;
        open.disconnect_time = NtTime(1);
        assert_eq!(image.update_open_global(&open.encode(layout)), Ok(Change::Changed));
        open.durable = false;
        assert_eq!(image.update_open_global(&open.encode(layout)), Ok(Change::Gone));
    }
}

/// The three records of an open, in the order in which smbd stores them when the client is lost, and again when it
/// comes back: no step loses the open.
#[test]
fn image_follows_a_clean_loss_and_a_reclaim() {
    for layout in Layout::ALL {
        let mut image = Situation::load(layout, "rwh_v2_locks").image();
        let lost = Situation::load(layout, "rwh_v2_locks_disconnected");
        assert_eq!(image.update_locking(Some(lost.value(Database::Locking))), Ok(Change::Changed));
        assert_eq!(image.update_brlock(Some(lost.value(Database::Brlock))), Ok(Change::Changed));
        assert_eq!(image.update_open_global(lost.value(Database::OpenGlobal)), Ok(Change::Changed));
        assert_eq!(image, lost.image());

        // The claim comes first, before the entry is anybody's again.
        let back = Situation::load(layout, "rwh_v2_locks_reclaimed");
        assert_eq!(image.update_open_global(back.value(Database::OpenGlobal)), Ok(Change::Changed));
        assert_eq!(image.update_locking(Some(back.value(Database::Locking))), Ok(Change::Changed));
        assert_eq!(image.update_brlock(Some(back.value(Database::Brlock))), Ok(Change::Changed));
        assert_eq!(image.entry(), back.image().entry());
        assert_eq!(image.byte_range_locks(), back.image().byte_range_locks());
    }
}

/// While the nodes of a cluster are upgraded, an open of one Samba is given back by another.
#[test]
fn image_is_turned_into_every_other_layout() {
    for (from, to) in pairs_of_layouts() {
        for name in ["rwh_v2_locks", "rwh_v1", "batch_v2", "batch_v1_lock", "rwh_v2_locks_disconnected"] {
            let image = Situation::load(from, name).image();
            let turned = image.in_layout(to).unwrap();
            assert_eq!(turned.layout(), to);
            let (before, after) = (image.describe(share()), turned.describe(share()));
            assert_eq!(after.image[..], turned.encode()[..]);
            // Whether the file was there already is known to the newest alone, and makes no difference to a reclaim.
            let expected =
                OpenDescription { image: after.image.clone(), create_action: after.create_action, ..before };
            assert_eq!(after, expected, "{name} of {from} in {to}");
            assert_eq!(OpenImage::decode_for(to, &image.encode()), Ok(turned));
        }
    }
}

/// There and back again nothing is lost that a reclaim needs.
#[test]
fn image_that_is_turned_twice_is_placed_as_before() {
    for (from, to) in pairs_of_layouts() {
        let image = Situation::load(from, "rwh_v2_locks").image();
        let again = image.in_layout(to).unwrap().in_layout(from).unwrap();
        assert_eq!(again.entry(), image.entry());
        assert_eq!(again.lease(), image.lease());
        assert_eq!(again.byte_range_locks(), image.byte_range_locks());
        assert_eq!(again.cookie().stat, image.cookie().stat);
        assert_eq!(again.path(), image.path());
        let open = OpenGlobal {
            session_global_id: image.open_global().session_global_id,
            tcon_global_id: image.open_global().tcon_global_id,
            backend_cookie: image.open_global().backend_cookie.clone(),
            ..again.open_global().clone()
        };
        assert_eq!(&open, image.open_global(), "{from} by way of {to}");
    }
}

/// Nobody here understands the security tokens, which are marshalled where they stand.
#[test]
fn mark_for_deletion_is_not_turned() {
    for (from, to) in pairs_of_layouts() {
        let error = Situation::load(from, "delete_on_close").image().in_layout(to).unwrap_err();
        assert!(matches!(error, ImageError::NotInLayout { .. }), "{error}");
        let message = error.to_string();
        assert!(message.contains(&from.to_string()) && message.contains(&to.to_string()), "{message}");
    }
}

#[test]
fn persistent_handle_is_turned_into_no_layout_without() {
    let image = Situation::load(Layout::V4_25, "rwh_v2_locks").image();
    let mut open = image.open_global().clone();
    open.persistent = true;
    let mut persistent = image;
    assert_eq!(persistent.update_open_global(&open.encode(Layout::V4_25)), Ok(Change::Changed));
    assert_eq!(persistent.describe(share()).durability, Durability::Persistent);
    for layout in [Layout::V4_17, Layout::V4_22] {
        let error = persistent.in_layout(layout).unwrap_err();
        assert!(error.to_string().contains("a persistent handle"), "{error}");
    }
}

#[test]
fn newest_samba_says_what_became_of_the_file_and_how_it_was_opened() {
    let created = Situation::load(Layout::V4_25, "batch_v2").image().describe(share());
    assert_eq!(created.create_action, CreateAction::Created);
    let image = Situation::load(Layout::V4_25, "rwh_v2_locks").image();
    assert_eq!(image.describe(share()).create_action, CreateAction::Opened);
    let mut open = image.open_global().clone();
    open.create_action = 0;
    open.app_instance_id = [1; 16];
    open.app_instance_version.low = 3;
    open.backend_cookie.as_mut().unwrap().initial_delete_on_close = true;
    let mut image = image;
    assert_eq!(image.update_open_global(&open.encode(Layout::V4_25)), Ok(Change::Changed));
    let described = image.describe(share());
    assert_eq!(described.create_action, CreateAction::Superseded);
    assert_eq!(described.create_options, CreateOptions(0x1000));
    let version = AppInstanceVersion { high: 0, low: 3 };
    assert_eq!(described.app_instance, Some(AppInstance { id: [1; 16], version: Some(version) }));
}

fn pairs_of_layouts() -> impl Iterator<Item = (Layout, Layout)> {
    let pairs = Layout::ALL.into_iter().flat_map(|from| Layout::ALL.map(|to| (from, to)));
    pairs.filter(|(from, to)| from != to)
}

/// smbd takes an open from the share modes after it has unlinked the file. A file that gets the inode in between finds the
/// record of the deleted one, with its name, its mark and its times, and smbd leaves them there.
#[test]
fn image_of_a_file_that_has_got_an_inode_says_nothing_of_the_one_that_had_it() {
    const OF_DELETED: u32 = 0xDEAD;
    const OF_RENAMED: u32 = 0xBEEF;
    for layout in Layout::ALL {
        let situation = Situation::load(layout, "rwh_v2_locks");
        let before = situation.image();
        let (path, own_hash) = (before.path(), before.entry().name_hash);
        let name_hash = |service_path: &str, name: &str| {
            assert_eq!(service_path, before.cookie().service_path);
            match name {
                "deleted" => OF_DELETED,
                "renamed" => OF_RENAMED,
                _ => own_hash,
            }
        };
        let mut record = LockingRecord::decode(layout, situation.value(Database::Locking)).unwrap();
        let modes = record.lock.as_mut().unwrap().share_modes.as_mut().unwrap();
        let data = modes.data.as_mut().unwrap();
        data.base_name = Some("deleted".to_owned());
        data.delete_tokens.marks.push(DeleteMark {
            name_hash: OF_DELETED,
            parent_lease_key: LeaseKey([0; 16]),
            open_persistent_id: DurableFileId(0),
            has_nt_token: false,
            has_unix_token: false,
        });
        if layout != Layout::V4_25 {
            data.changed_write_time = NtTime(5);
        }

        let mut image = before.clone();
        assert_eq!(image.update_locking(Some(&record.encode(layout))), Ok(Change::Changed));
        image.keep_to_name(path, name_hash);
        assert_eq!(image.path(), path);
        assert_eq!(image.data().changed_write_time, NtTime::default());
        assert!(image.data().delete_tokens.marks.is_empty());

        // What is done to the file itself is seen: a mark of its own, and a rename in two steps, as smbd stores it.
        let modes = record.lock.as_mut().unwrap().share_modes.as_mut().unwrap();
        modes.data.as_mut().unwrap().delete_tokens.marks[0].name_hash = own_hash;
        image.update_locking(Some(&record.encode(layout))).unwrap();
        image.keep_to_name(path, name_hash);
        assert_eq!(image.path(), path);
        assert!(image.describe(share()).delete_on_close);
        let modes = record.lock.as_mut().unwrap().share_modes.as_mut().unwrap();
        modes.entries[0].name_hash = OF_RENAMED;
        image.update_locking(Some(&record.encode(layout))).unwrap();
        image.keep_to_name(path, name_hash);
        assert_eq!(image.path(), path);
        let modes = record.lock.as_mut().unwrap().share_modes.as_mut().unwrap();
        modes.data.as_mut().unwrap().base_name = Some("renamed".to_owned());
        image.update_locking(Some(&record.encode(layout))).unwrap();
        image.keep_to_name(path, name_hash);
        assert_eq!(image.path(), "renamed");
    }
}
