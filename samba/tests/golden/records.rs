//! Records are decoded and encoded byte for byte, and damage is named.

use frame::Database;
use proptest::prelude::*;
use samba::RecordError;
use samba::records::{BrlockEntry, LeaseRecord, LockingRecord, OpenGlobal, Problem, TconGlobal};

use crate::situation::{LAYOUT, Situation};

/// Decodes a value and encodes it again.
fn round_trip(database: Database, value: &[u8]) -> Result<Vec<u8>, RecordError> {
    Ok(match database {
        Database::OpenGlobal => OpenGlobal::decode(LAYOUT, value)?.encode(LAYOUT),
        Database::Locking => LockingRecord::decode(LAYOUT, value)?.encode(LAYOUT),
        Database::Leases => LeaseRecord::decode(LAYOUT, value)?.encode(LAYOUT),
        Database::Brlock => BrlockEntry::encode_all(LAYOUT, &BrlockEntry::decode_all(LAYOUT, value)?),
        Database::TconGlobal => TconGlobal::decode(LAYOUT, value)?.encode(LAYOUT),
    })
}

fn for_each_record(mut check: impl FnMut(&str, Database, &[u8])) {
    for situation in Situation::all() {
        for (database, _, value) in &situation.records {
            check(&format!("{}, {database}", situation.name), *database, value);
        }
    }
}

#[test]
fn every_record_is_encoded_to_the_bytes_it_was_decoded_from() {
    for_each_record(|name, database, value| {
        let again = round_trip(database, value).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(again, value, "{name}");
    });
}

#[test]
fn every_truncation_is_an_error_that_names_record_and_offset() {
    for_each_record(|name, database, value| {
        for length in 0..value.len() {
            match round_trip(database, &value[..length]) {
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
    // The padding of a C structure, which nobody promises to be zero.
    let is_brlock_padding =
        |database, offset: usize| database == Database::Brlock && (12..16).contains(&(offset % 72));
    for_each_record(|name, database, value| {
        let mut damaged = value.to_vec();
        for offset in 0..value.len() {
            for flip in [0x01, 0x80, 0xFF] {
                damaged[offset] ^= flip;
                match round_trip(database, &damaged) {
                    Ok(again) if is_brlock_padding(database, offset) => assert_eq!(again, value),
                    Ok(again) => assert_eq!(again, damaged, "{name}, offset {offset}"),
                    Err(error) => assert_eq!(error.record, database, "{name}, offset {offset}"),
                }
                damaged[offset] ^= flip;
            }
        }
    });
}

proptest! {
    /// Whatever stands in a record: it is refused, or it is understood and kept.
    #[test]
    fn overwritten_record_is_refused_or_kept(
        record in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        bytes in prop::collection::vec(any::<u8>(), 1..64),
    ) {
        let situation = Situation::load("two_opens_one_lease");
        let (database, _, value) = record.get(&situation.records);
        let at = at.index(value.len());
        let mut damaged = value.clone();
        let end = value.len().min(at + bytes.len());
        damaged.splice(at..end, bytes);
        if let Ok(again) = round_trip(*database, &damaged) && *database != Database::Brlock {
            prop_assert_eq!(again, damaged);
        }
    }
}

#[test]
fn error_says_what_is_wrong_and_where() {
    let situation = Situation::load("rwh_v2_locks");
    let mut value = situation.value(Database::OpenGlobal).to_vec();
    value[168] = 7;
    let error = OpenGlobal::decode(LAYOUT, &value).unwrap_err();
    assert_eq!(error.to_string(), "smbXsrv_open_global.tdb: durable at offset 168: 0x7 is not 0 or 1");
}

#[test]
fn cookie_of_another_vfs_module_is_refused() {
    let situation = Situation::load("rwh_v2_locks");
    let mut value = situation.value(Database::OpenGlobal).to_vec();
    let magic = value.windows(11).position(|window| window == b"VFS_DEFAULT").unwrap();
    value[magic] = b'X';
    let error = OpenGlobal::decode(LAYOUT, &value).unwrap_err();
    assert_eq!(error.problem, Problem::ForeignCookie);
    assert_eq!(error.offset, magic);
}

#[test]
fn tree_connect_names_its_share() {
    let situation = Situation::load("stores_of_a_create");
    let stores =
        situation.values(Database::TconGlobal).map(|value| TconGlobal::decode(LAYOUT, value).unwrap());
    let mut stores = stores.filter(|tcon| tcon.share_name == "share");
    let (making, made) = (stores.next().unwrap(), stores.next().unwrap());
    assert_eq!(making.tcon_global_id, made.tcon_global_id);
    assert_eq!(making.signing_flags, 0);
    assert_ne!(made.signing_flags, 0);
}

#[test]
fn record_without_opens_is_only_a_lock() {
    let situation = Situation::load("stores_of_a_create");
    let value = situation.values(Database::Locking).next().unwrap();
    let record = LockingRecord::decode(LAYOUT, value).unwrap();
    assert!(record.share_modes().is_none());
    assert!(record.lock_holder().is_some());
}
