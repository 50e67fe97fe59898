//! A recovery of CTDB has brought older records back: who in them is still there, and what becomes of the rest.

use std::collections::BTreeSet;

use frame::Database;
use samba::materialise::{Edit, Present, Traces, place_byte_range_locks, place_entry, stands_in_the_way};
use samba::records::{BrlockEntry, LockingRecord, ServerId, ShareModeEntry, UnixMicros};
use samba::{Layout, OpenImage};
use statedb::{ClientGuid, DurableFileId, LeaseKey};

use crate::situation::Situation;

const LIVING: ServerId = ServerId { pid: 4711, task_id: 0, vnn: 1, unique_id: 4711 };
const DEAD: ServerId = ServerId { pid: 4712, task_id: 0, vnn: 2, unique_id: 4712 };
const KNOWN: DurableFileId = DurableFileId(77);
const FORGOTTEN: DurableFileId = DurableFileId(78);

fn is_alive(process: ServerId) -> bool {
    process == LIVING
}

fn present() -> Present<impl Fn(ServerId) -> bool, impl Fn(DurableFileId) -> bool> {
    Present { is_alive, is_known: |id| id == KNOWN }
}

/// The entry of somebody else, with a lease of his own and made a second later for each.
fn others(image: &OpenImage) -> [ShareModeEntry; 4] {
    let made_at = image.entry().time;
    let entry = |number: u8, server_id: ServerId, id: u64| ShareModeEntry {
        server_id,
        op_type: ShareModeEntry::LEASE_OPLOCK,
        client_guid: ClientGuid([number; 16]),
        lease_key: LeaseKey([number; 16]),
        time: UnixMicros { seconds: made_at.seconds + u64::from(number), ..made_at },
        share_file_id: id,
        ..image.entry().clone()
    };
    [
        entry(1, LIVING, 5),
        entry(2, ServerId::DISCONNECTED, KNOWN.0),
        entry(3, DEAD, 6),
        entry(4, ServerId::DISCONNECTED, FORGOTTEN.0),
    ]
}

fn record_of(image: &OpenImage, entries: &[ShareModeEntry]) -> LockingRecord {
    let mut record = stored(place_entry(None, image, Traces::of_record(DurableFileId(0), None)).unwrap());
    record.lock.as_mut().unwrap().share_modes.as_mut().unwrap().entries = entries.to_vec();
    record
}

fn entries(record: &LockingRecord) -> Vec<ShareModeEntry> {
    record.share_modes().map_or_else(Vec::new, |share_modes| share_modes.entries.clone())
}

fn stored<T: std::fmt::Debug>(edit: Edit<T>) -> T {
    match edit {
        Edit::Store(value) => value,
        edit => panic!("nothing is stored: {edit:?}"),
    }
}

#[test]
fn ghosts_are_laid_and_nobody_else() {
    for layout in Layout::ALL {
        let image = Situation::load(layout, "rwh_v2_locks").image();
        let all = others(&image);
        let removal = present().lay_entries(Some(record_of(&image, &all)), image.file()).unwrap();
        assert_eq!(entries(&stored(removal.edit)), all[..2]);
        let unused: BTreeSet<_> = all[2..].iter().filter_map(ShareModeEntry::lease).collect();
        assert_eq!(removal.unused_leases, unused);

        let removal = present().lay_entries(Some(record_of(&image, &all[2..])), image.file()).unwrap();
        assert_eq!(removal.edit, Edit::Delete);
        for quiet in [None, Some(record_of(&image, &all[..2]))] {
            assert_eq!(present().lay_entries(quiet, image.file()).unwrap().edit, Edit::Keep);
        }
    }
}

#[test]
fn locks_of_ghosts_go_with_them() {
    for layout in Layout::ALL {
        let lock = Situation::load(layout, "rwh_v2_locks").image().byte_range_locks()[0];
        let locks = [
            (LIVING, 5),
            (ServerId::DISCONNECTED, KNOWN.0),
            (DEAD, 6),
            (ServerId::DISCONNECTED, FORGOTTEN.0),
        ]
        .map(|(server_id, smblctx)| BrlockEntry { server_id, smblctx, ..lock });
        assert_eq!(stored(present().lay_locks(&locks)), locks[..2]);
        assert_eq!(present().lay_locks(&locks[2..]), Edit::Delete);
        assert_eq!(present().lay_locks(&locks[..2]), Edit::Keep);
    }
}

/// Of two copies of an orphan's records, which have different ages, one names the process that had it last, and the
/// other one that had it before.
#[test]
fn orphan_is_found_in_older_records_than_its_own() {
    for layout in Layout::ALL {
        let situation = Situation::load(layout, "rwh_v2_locks");
        let image = situation.image();
        let locking = LockingRecord::decode(layout, situation.value(Database::Locking)).unwrap();
        let older: Vec<_> =
            entries(&locking).into_iter().map(|entry| ShareModeEntry { server_id: DEAD, ..entry }).collect();
        let locks: Vec<_> =
            image.byte_range_locks().iter().map(|lock| BrlockEntry { server_id: DEAD, ..*lock }).collect();

        let traces = Traces::of_orphan(&image, None, is_alive);
        let placed = stored(place_entry(Some(record_of(&image, &older)), &image, traces).unwrap());
        assert_eq!(entries(&placed).len(), 1, "smbd gives back no open beside another");
        assert!(placed.has_disconnected(image.durable_file_id()));
        let placed = stored(place_byte_range_locks(&locks, &image, traces));
        assert_eq!(placed.len(), image.byte_range_locks().len());
        assert!(placed.iter().all(|lock| lock.server_id == ServerId::DISCONNECTED));
    }
}

/// The file has been renamed since.
#[test]
fn name_of_an_orphans_file_is_taken_from_its_image() {
    for layout in Layout::ALL {
        let situation = Situation::load(layout, "rwh_v2_locks");
        let image = situation.image();
        let mut older = LockingRecord::decode(layout, situation.value(Database::Locking)).unwrap();
        let data = older.lock.as_mut().unwrap().share_modes.as_mut().unwrap().data.as_mut().unwrap();
        data.base_name = Some("older".to_owned());
        let epoch = data.unique_content_epoch;
        let traces = Traces::of_orphan(&image, None, is_alive);
        let placed = stored(place_entry(Some(older), &image, traces).unwrap());
        let data = placed.share_modes().unwrap().data.as_ref().unwrap();
        assert_eq!(data.base_name.as_deref(), Some(image.path()));
        assert_ne!(data.unique_content_epoch, epoch, "smbd keeps the older one in its cache");
    }
}

#[test]
fn ghosts_are_in_nobodys_way() {
    for layout in Layout::ALL {
        let image = Situation::load(layout, "rwh_v2_locks").image();
        let all = others(&image);
        let traces = Traces::of_orphan(&image, None, is_alive);
        let is_in_the_way = |entries: &[ShareModeEntry]| {
            let record = present().entries_of(&record_of(&image, entries), traces);
            stands_in_the_way(&record, &image, traces, is_alive, |_, _| None)
        };
        assert!(!is_in_the_way(&all[2..]));
        for somebody in &all[..2] {
            assert!(is_in_the_way(std::slice::from_ref(somebody)), "{somebody:?}");
        }
    }
}
