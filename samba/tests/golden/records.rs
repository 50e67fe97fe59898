//! Records are decoded and encoded byte for byte, and damage is named.

use frame::Database;
use proptest::prelude::*;
use samba::records::{BrlockEntry, LeaseRecord, LockingRecord, OpenGlobal, Problem, TconGlobal};
use samba::{Layout, RecordError};

use crate::situation::{Situation, is_known};

/// Decodes a value and encodes it again.
fn round_trip(layout: Layout, database: Database, value: &[u8]) -> Result<Vec<u8>, RecordError> {
    Ok(match database {
        Database::OpenGlobal => OpenGlobal::decode(layout, value)?.encode(layout),
        Database::Locking => LockingRecord::decode(layout, value)?.encode(layout),
        Database::Leases => LeaseRecord::decode(layout, value)?.encode(layout),
        Database::Brlock => BrlockEntry::encode_all(layout, &BrlockEntry::decode_all(layout, value)?),
        Database::TconGlobal => TconGlobal::decode(layout, value)?.encode(layout),
    })
}

fn for_each_record(mut check: impl FnMut(&str, Layout, Database, &[u8])) {
    for situation in Layout::ALL.into_iter().flat_map(Situation::all) {
        for (database, key, value) in &situation.records {
            if is_known(*database, key) {
                let name = format!("{}, {}, {database}", situation.layout, situation.name);
                check(&name, situation.layout, *database, value);
            }
        }
    }
}

#[test]
fn every_record_is_encoded_to_the_bytes_it_was_decoded_from() {
    for_each_record(|name, layout, database, value| {
        let again = round_trip(layout, database, value).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(again, value, "{name}");
    });
}

#[test]
fn every_truncation_is_an_error_that_names_record_and_offset() {
    for_each_record(|name, layout, database, value| {
        for length in 0..value.len() {
            match round_trip(layout, database, &value[..length]) {
                Err(error) => {
                    assert_eq!(error.record, database, "{name}");
                    assert!(error.offset <= length, "{name}, {length}: {error}");
                }
                // Some lengths are whole records of another form: no locks, a lock without share modes,
                // an entry less.
                Ok(again) => {
                    assert!(matches!(database, Database::Locking | Database::Brlock), "{name}, {length}");
                    assert_eq!(again, &value[..length], "{name}, {length}");
                }
            }
        }
    });
}

/// A damaged byte is either found, or it is in a field that may have this value too; then it is kept.
#[test]
fn no_damaged_byte_is_lost_or_panics() {
    for_each_record(|name, layout, database, value| {
        let mut damaged = value.to_vec();
        for offset in 0..value.len() {
            for flip in [0x01, 0x80, 0xFF] {
                damaged[offset] ^= flip;
                match round_trip(layout, database, &damaged) {
                    Ok(again) if database == Database::Brlock && is_brlock_padding(layout, offset) => {
                        assert_eq!(again, value, "{name}, offset {offset}");
                    }
                    Ok(again) => assert_eq!(again, damaged, "{name}, offset {offset}"),
                    Err(error) => assert_eq!(error.record, database, "{name}, offset {offset}"),
                }
                damaged[offset] ^= flip;
            }
        }
    });
}

/// Whether a byte is padding of a C structure, which nobody promises to be zero.
fn is_brlock_padding(layout: Layout, offset: usize) -> bool {
    match layout {
        Layout::V4_17 | Layout::V4_22 => (12..16).contains(&(offset % 72)),
        Layout::V4_25 => offset >= 4 && matches!((offset - 4) % 80, 12..16 | 73..80),
    }
}

proptest! {
    /// Whatever stands in a record: it is refused, or it is understood and kept.
    #[test]
    fn overwritten_record_is_refused_or_kept(
        layout in prop::sample::select(Layout::ALL.to_vec()),
        record in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        bytes in prop::collection::vec(any::<u8>(), 1..64),
    ) {
        let situation = Situation::load(layout, "two_opens_one_lease");
        let (database, _, value) = record.get(&situation.records);
        let at = at.index(value.len());
        let mut damaged = value.clone();
        let end = value.len().min(at + bytes.len());
        damaged.splice(at..end, bytes);
        if let Ok(again) = round_trip(layout, *database, &damaged) && *database != Database::Brlock {
            prop_assert_eq!(again, damaged);
        }
    }
}

#[test]
fn error_says_what_is_wrong_and_where() {
    for layout in Layout::ALL {
        let situation = Situation::load(layout, "rwh_v2_locks");
        let mut value = situation.value(Database::OpenGlobal).to_vec();
        let durable = match layout {
            Layout::V4_17 => 168,
            Layout::V4_22 => 160,
            Layout::V4_25 => 216,
        };
        value[durable] = 7;
        let error = OpenGlobal::decode(layout, &value).unwrap_err().to_string();
        let expected = format!("smbXsrv_open_global.tdb: durable at offset {durable}: 0x7 is not 0 or 1");
        assert_eq!(error, expected);
    }
}

#[test]
fn cookie_of_another_vfs_module_is_refused() {
    for layout in Layout::ALL {
        let situation = Situation::load(layout, "rwh_v2_locks");
        let mut value = situation.value(Database::OpenGlobal).to_vec();
        let magic = value.windows(11).position(|window| window == b"VFS_DEFAULT").unwrap();
        value[magic] = b'X';
        let error = OpenGlobal::decode(layout, &value).unwrap_err();
        assert_eq!(error.problem, Problem::ForeignCookie);
        assert_eq!(error.offset, magic);
    }
}

#[test]
fn tree_connect_names_its_share() {
    for layout in Layout::ALL {
        let situation = Situation::load(layout, "stores_of_a_create");
        let stores =
            situation.values(Database::TconGlobal).map(|value| TconGlobal::decode(layout, value).unwrap());
        let mut stores = stores.filter(|tcon| tcon.share_name == "share");
        let (making, made) = (stores.next().unwrap(), stores.next().unwrap());
        assert_eq!(making.tcon_global_id, made.tcon_global_id);
        assert_eq!(making.signing_flags, 0);
        assert_ne!(made.signing_flags, 0);
    }
}

/// Samba 4.17 stores the lock before anything that it protects. Newer Samba stores both at once.
#[test]
fn record_without_opens_is_only_a_lock() {
    let layout = Layout::V4_17;
    let situation = Situation::load(layout, "stores_of_a_create");
    let value = situation.values(Database::Locking).next().unwrap();
    let record = LockingRecord::decode(layout, value).unwrap();
    assert!(record.share_modes().is_none());
    assert!(record.lock_holder().is_some());
}

#[test]
fn layouts_do_not_decode_each_others_opens() {
    for layout in Layout::ALL {
        let situation = Situation::load(layout, "rwh_v2_locks");
        for other in Layout::ALL.into_iter().filter(|other| *other != layout) {
            let decoded = OpenGlobal::decode(other, situation.value(Database::OpenGlobal));
            assert!(decoded.is_err(), "{layout} by {other}");
        }
    }
}

/// Not found by one pass over the file, and so easily lost: what Samba 4.25 says twice has to agree.
#[test]
fn epoch_that_differs_from_its_second_pass_is_refused() {
    let layout = Layout::V4_25;
    let situation = Situation::load(layout, "rwh_v2_locks");
    let mut value = situation.value(Database::Locking).to_vec();
    const WRAPPER_EPOCH: usize = 60;
    value[WRAPPER_EPOCH] ^= 1;
    assert_eq!(LockingRecord::decode(layout, &value).unwrap_err().problem, Problem::SecondPass);
}
