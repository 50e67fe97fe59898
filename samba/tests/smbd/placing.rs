//! Orphans in the databases of a running smbd.

use std::fs;
use std::time::{Duration, SystemTime};

use samba::databases::LocalDatabases;
use samba::materialise::Removed;
use samba::records::{
    BrlockEntry, Holder, LeaseRecord, LockingRecord, NtTime, OpenGlobal, ServerId, ShareModes, file_key,
    open_global_key,
};
use samba::tdb::Tdb;
use samba::{
    Change, Layout, LibtdbError, Location, MaterialiseError, OpenImage, Orphan, PlaceError, StoreError,
};
use statedb::LeaseState;

use crate::instance::{Samba, Smbd};
use crate::testdata::{image_of, shared_keys, testdata, unhex};

fn orphan(image: &OpenImage) -> Orphan<'_> {
    Orphan { image, disconnected_at: SystemTime::now() }
}

/// Places one orphan.
fn place(smbd: &Smbd, image: &OpenImage) -> Result<(), PlaceError> {
    smbd.databases().materialise(&[orphan(image)]).pop().expect("one result for one orphan")
}

/// The same open, made now.
fn opened_now(mut image: OpenImage) -> OpenImage {
    let open = OpenGlobal { open_time: NtTime::from(SystemTime::now()), ..image.open_global().clone() };
    image.update_open_global(&open.encode(image.layout())).unwrap();
    image
}

#[test]
fn orphan_is_placed_found_and_removed_without_a_trace() {
    for samba in Samba::all() {
        let smbd = Smbd::start(&samba, "127.0.41.1");
        fs::write(smbd.share().join("report.docx"), "text").unwrap();
        let image = image_of(samba.layout, "rwh_v2_locks", &smbd.share(), "report.docx");
        let id = image.durable_file_id();
        assert_eq!(smbd.databases().remove(id, image.file()).unwrap(), Removed::Absent);

        place(&smbd, &image).unwrap();
        let placed = smbd.databases().open_global(id).unwrap().expect("it was placed");
        assert_eq!(placed.holder(), Holder::Disconnected);
        assert_eq!(placed.backend_cookie.as_ref().unwrap().stat.size, 4, "the metadata are the file's");
        for (database, key) in shared_keys(&image) {
            assert!(smbd.record(database, &key).is_some(), "{database}");
        }
        place(&smbd, &image).unwrap();
        assert_eq!(smbd.databases().disconnected_opens().unwrap(), [placed]);

        assert_eq!(smbd.databases().remove(id, image.file()).unwrap(), Removed::Removed);
        assert_eq!(smbd.databases().disconnected_opens().unwrap(), []);
        assert_eq!(smbd.record(frame::Database::OpenGlobal, &open_global_key(id)), None);
        for (database, key) in shared_keys(&image) {
            assert_eq!(smbd.record(database, &key), None, "{database}");
        }
    }
}

/// smbd reads what was placed: somebody who wants the file meets the orphan, and smbd gives it up for him by its
/// own rules. It takes the entry away, so that nobody can reclaim the open any more, and leaves the open's own
/// record and its lease, as it does with opens that it has disconnected itself. Placing it again does not bring it
/// back.
#[test]
fn intruder_makes_smbd_give_up_the_orphan() {
    for samba in Samba::all() {
        let smbd = Smbd::start(&samba, "127.0.41.2");
        for (situation, name) in [("batch_v2", "plan.xlsx"), ("rwh_v2_locks", "report.docx")] {
            fs::write(smbd.share().join(name), "text").unwrap();
            let image = image_of(samba.layout, situation, &smbd.share(), name);
            let id = image.durable_file_id();
            place(&smbd, &image).unwrap();

            assert!(smbd.smbclient(&format!("get {name} /dev/null")));
            let locking = smbd.record(frame::Database::Locking, &file_key(image.file()));
            assert_eq!(image.clone().update_locking(locking.as_deref()).unwrap(), Change::Gone);
            place(&smbd, &image).unwrap();
            assert_eq!(smbd.record(frame::Database::Locking, &file_key(image.file())), locking);
            assert_eq!(smbd.databases().remove(id, image.file()).unwrap(), Removed::Removed);
            assert_eq!(smbd.databases().open_global(id).unwrap(), None);
            for (database, key) in shared_keys(&image) {
                let is_left = smbd.record(database, &key).is_some();
                assert_eq!(is_left, database == frame::Database::Leases, "{database}");
            }
        }
    }
}

#[test]
fn orphans_of_two_files_do_not_meet() {
    for samba in Samba::all() {
        let smbd = Smbd::start(&samba, "127.0.41.3");
        let images =
            [("rwh_v2_locks", "report.docx"), ("batch_v1_lock", "notes.txt")].map(|(situation, name)| {
                fs::write(smbd.share().join(name), "text").unwrap();
                image_of(samba.layout, situation, &smbd.share(), name)
            });
        let results = smbd.databases().materialise(&[orphan(&images[0]), orphan(&images[1])]);
        assert!(results.iter().all(Result::is_ok), "{results:?}");
        let [one, other] = images.each_ref().map(OpenImage::durable_file_id);
        assert_eq!(smbd.databases().remove(one, images[0].file()).unwrap(), Removed::Removed);
        assert!(smbd.databases().open_global(other).unwrap().is_some());
    }
}

#[test]
fn another_open_under_the_same_id_is_a_conflict_and_leaves_no_trace() {
    for samba in Samba::all() {
        let smbd = Smbd::start(&samba, "127.0.41.4");
        for name in ["report.docx", "other.docx"] {
            fs::write(smbd.share().join(name), "text").unwrap();
        }
        let image = image_of(samba.layout, "rwh_v2_locks", &smbd.share(), "report.docx");
        place(&smbd, &image).unwrap();

        let mut stranger = image_of(samba.layout, "rwh_v2_locks", &smbd.share(), "other.docx");
        let mut open = stranger.open_global().clone();
        open.create_guid.0[0] ^= 1;
        stranger.update_open_global(&open.encode(stranger.layout())).unwrap();
        let error = place(&smbd, &stranger).unwrap_err();
        assert!(matches!(error, PlaceError::Materialise(MaterialiseError::Conflict { .. })), "{error}");
        let key = file_key(stranger.file());
        assert_eq!(smbd.record(frame::Database::Locking, &key), None);
    }
}

#[test]
fn file_that_was_replaced_is_refused() {
    for samba in Samba::all() {
        let smbd = Smbd::start(&samba, "127.0.41.5");
        let path = smbd.share().join("report.docx");
        fs::write(&path, "text").unwrap();
        let image = image_of(samba.layout, "rwh_v2_locks", &smbd.share(), "report.docx");
        fs::write(smbd.share().join("new"), "other text").unwrap();
        fs::rename(smbd.share().join("new"), &path).unwrap();
        let error = place(&smbd, &image).unwrap_err();
        assert!(matches!(error, PlaceError::File { .. }), "{error}");
        fs::remove_file(&path).unwrap();
        let error = place(&smbd, &image).unwrap_err();
        assert!(matches!(error, PlaceError::File { .. }), "{error}");
    }
}

/// smbd has renamed the file, and its node was dead before it could store the new name.
#[test]
fn file_that_has_another_name_than_the_records_say_is_placed_under_that() {
    for samba in Samba::all() {
        let smbd = Smbd::start(&samba, "127.0.41.7");
        fs::create_dir_all(smbd.share().join("from/below")).unwrap();
        fs::create_dir(smbd.share().join("to")).unwrap();
        let renames = [
            ("report.docx", "renamed.docx"),
            ("from/report.docx", "from/renamed.docx"),
            ("from/up.docx", "up.docx"),
            ("from/below/aside.docx", "to/aside.docx"),
        ];
        for (before, after) in renames {
            fs::write(smbd.share().join(before), "text").unwrap();
            let image = opened_now(image_of(samba.layout, "rwh_v2_locks", &smbd.share(), before));
            let (id, file) = (image.durable_file_id(), image.file());
            fs::rename(smbd.share().join(before), smbd.share().join(after)).unwrap();
            // Somebody else has got the name.
            fs::write(smbd.share().join(before), "other text").unwrap();

            for _ in 0..2 {
                place(&smbd, &image).unwrap();
            }
            let placed = smbd.databases().open_global(id).unwrap().expect("it was placed");
            assert_eq!(placed.backend_cookie.unwrap().base_name, after);
            let locking = smbd.record(frame::Database::Locking, &file_key(file)).expect("it was placed");
            let locking = LockingRecord::decode(samba.layout, &locking).unwrap();
            let modes = locking.share_modes().expect("it was placed");
            assert_eq!(modes.data.as_ref().unwrap().base_name.as_deref(), Some(after));
            let name_hash = Tdb::load().unwrap().name_hash(smbd.share().to_str().unwrap(), after);
            assert_eq!(modes.entries[0].name_hash, name_hash);
            let lease = image.lease_record_key().expect("it has one");
            let lease = smbd.record(frame::Database::Leases, &lease).expect("it was placed");
            let lease = LeaseRecord::decode(samba.layout, &lease).unwrap();
            assert_eq!(lease.files[0].base_name.as_deref(), Some(after));
            assert_eq!(smbd.databases().remove(id, file).unwrap(), Removed::Removed);
        }
    }
}

/// The share modes of the file of a situation in `testdata/`, as smbd has stored them.
fn share_modes_of(layout: Layout, situation: &str) -> ShareModes {
    let text = fs::read_to_string(testdata(layout).join(format!("{situation}.txt")))
        .expect("the situation is there");
    let records = text.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let mut of_file = records.filter(|words| words[0] == frame::Database::Locking.file_name());
    let value = unhex(of_file.next().expect("it has an open")[2]);
    LockingRecord::decode(layout, &value).unwrap().share_modes().expect("it has an open").clone()
}

#[test]
fn names_are_hashed_as_smbd_hashes_them() {
    for samba in Samba::all() {
        for situation in ["rwh_v2_locks", "batch_v2"] {
            let ShareModes { data, entries } = share_modes_of(samba.layout, situation);
            let data = data.expect("it has an open");
            let (service_path, path) = (data.service_path.unwrap(), data.base_name.unwrap());
            let hash = Tdb::load().unwrap().name_hash(&service_path, &path);
            assert_eq!(hash, entries[0].name_hash, "{situation}");
        }
    }
}

/// Between the plan to place it and its turn somebody has wanted its file.
#[test]
fn orphan_that_has_ended_meanwhile_is_not_placed() {
    let Some(samba) = Samba::of_the_machine() else { return };
    let smbd = Smbd::start(&samba, "127.0.41.11");
    for name in ["ended.docx", "report.docx"] {
        fs::write(smbd.share().join(name), "text").unwrap();
    }
    let ended = image_of(samba.layout, "rwh_v1", &smbd.share(), "ended.docx");
    let image = image_of(samba.layout, "rwh_v2_locks", &smbd.share(), "report.docx");
    let id = ended.durable_file_id();
    assert_ne!(id, image.durable_file_id());

    let knowing = |databases: LocalDatabases| databases.knowing(move |known| known != id, |_| true);
    let results = knowing(smbd.databases()).materialise(&[orphan(&ended), orphan(&image)]);
    assert!(matches!(results[0], Err(PlaceError::Ended { id: of }) if of == id), "{results:?}");
    assert!(results[1].is_ok(), "the other one is none the worse for it: {results:?}");
    assert_eq!(smbd.databases().open_global(id).unwrap(), None);
    for (database, key) in shared_keys(&ended) {
        assert_eq!(smbd.record(database, &key), None, "{database}");
    }
}

/// A file that is younger than the open has got the inode of the file that was opened.
#[test]
fn younger_file_with_the_inode_of_the_opened_one_is_refused() {
    for samba in Samba::all() {
        let smbd = Smbd::start(&samba, "127.0.41.8");
        fs::write(smbd.share().join("report.docx"), "text").unwrap();
        // Its open is as old as the test data.
        let image = image_of(samba.layout, "rwh_v2_locks", &smbd.share(), "report.docx");
        fs::rename(smbd.share().join("report.docx"), smbd.share().join("renamed.docx")).unwrap();
        let error = place(&smbd, &image).unwrap_err();
        assert!(matches!(error, PlaceError::File { .. }), "{error}");
    }
}

/// A recovery of CTDB takes half a minute, and a CREATE that falls into it makes its file afterwards.
#[test]
fn file_that_a_slow_create_has_made_is_that_of_the_open() {
    for samba in Samba::all() {
        let smbd = Smbd::start(&samba, "127.0.41.12");
        fs::write(smbd.share().join("report.docx"), "text").unwrap();
        let made_at = fs::metadata(smbd.share().join("report.docx")).unwrap().created().unwrap();
        let mut image = image_of(samba.layout, "rwh_v2_locks", &smbd.share(), "report.docx");
        assert!(!image.can_be_of_file_made_at(made_at), "the test data are older");
        let mut open = image.open_global().clone();
        open.open_time = NtTime::from(made_at - Duration::from_secs(30));
        open.backend_cookie.as_mut().unwrap().stat.mtime =
            NtTime::from(made_at + Duration::from_millis(1)).into();
        image.update_open_global(&open.encode(image.layout())).unwrap();
        assert!(image.can_be_of_file_made_at(made_at));
        assert!(!image.can_be_of_file_made_at(made_at + Duration::from_secs(2)), "a younger one is another");

        fs::rename(smbd.share().join("report.docx"), smbd.share().join("renamed.docx")).unwrap();
        place(&smbd, &image).unwrap();
    }
}

/// Its client was lost in the moment in which somebody was about to change the file, and has not heard of it.
#[test]
fn orphan_whose_cache_may_be_outdated_is_not_placed() {
    let Some(samba) = Samba::of_the_machine() else { return };
    let smbd = Smbd::start(&samba, "127.0.41.10");
    fs::write(smbd.share().join("report.docx"), "text").unwrap();
    let mut image = image_of(samba.layout, "rwh_v2_locks", &smbd.share(), "report.docx");
    let read_handle = LeaseState(LeaseState::READ | LeaseState::HANDLE);
    let lease = LeaseRecord { current_state: read_handle, ..image.lease().unwrap().clone() };
    let key = image.lease_record_key().unwrap();
    image.update_lease(&key, Some(&lease.encode(samba.layout))).unwrap();
    place(&smbd, &image).unwrap();
    smbd.databases().remove(image.durable_file_id(), image.file()).unwrap();

    assert_eq!(image.break_lease(LeaseState::NONE), Ok(Change::Changed));
    let error = place(&smbd, &image).unwrap_err();
    assert!(matches!(error, PlaceError::Contradicted { .. }), "{error}");
    assert_eq!(smbd.databases().disconnected_opens().unwrap(), []);
}

/// Opening the databases when no smbd has them open would empty them for the one who looks at them next.
#[test]
fn locks_of_dead_processes_are_removed_whatever_else_is_there() {
    let Some(samba) = Samba::of_the_machine() else { return };
    let smbd = Smbd::start(&samba, "127.0.41.9");
    let lock = |pid| BrlockEntry {
        smblctx: 1,
        tid: 1,
        server_id: ServerId { pid, task_id: 0, vnn: u32::MAX, unique_id: 1 },
        start: 0,
        size: 1,
        fnum: 1,
        exclusive: true,
        posix: false,
        persistent: false,
    };
    let value = |locks: &[BrlockEntry]| BrlockEntry::encode_all(samba.layout, locks);
    let living = lock(u64::from(std::process::id()));
    // No kernel has such a process.
    let dead = lock(u64::from(u32::MAX));
    let store = |key: &[u8], value: &[u8]| smbd.store(frame::Database::Brlock, key, value);
    store(b"damaged 1", b"no locks");
    store(b"dead", &value(&[dead]));
    store(b"damaged 2", b"no locks");
    store(b"both", &value(&[dead, living]));

    let done = smbd.databases().remove_locks_of_the_dead();

    assert!(matches!(done, Err(PlaceError::Record(_))), "{done:?}");
    let record = |key: &[u8]| smbd.record(frame::Database::Brlock, key);
    assert_eq!(record(b"dead"), None);
    assert_eq!(record(b"both"), Some(value(&[living])));
    assert_eq!(record(b"damaged 1").as_deref(), Some(&b"no locks"[..]));
}

#[test]
fn databases_without_smbd_are_not_opened() {
    for samba in Samba::all() {
        let mut smbd = Smbd::start(&samba, "127.0.41.6");
        smbd.end();
        let libtdb = samba::tdb::Tdb::load().unwrap();
        let timeout = std::time::Duration::from_secs(1);
        let location = Location::Plain { lock_directory: smbd.lock_directory() };
        let result = samba::LocalDatabases::open(&libtdb, &location, samba.layout, timeout);
        assert!(matches!(result, Err(StoreError::Tdb(LibtdbError::NotOpenElsewhere { .. }))));
    }
}
