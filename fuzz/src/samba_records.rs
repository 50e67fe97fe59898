//! Samba's records in every layout, images of opens, and what is placed for an orphan.
//!
//! An input is a byte that says what the rest is: a [`Database`]'s number for one of its values, `IMAGE`, or
//! `STORES`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use frame::Database;
use samba::materialise::{
    Edit, Traces, place_byte_range_locks, place_entry, place_lease, place_open_global,
    remove_byte_range_locks, remove_entry,
};
use samba::records::{
    BrlockEntry, LeaseRecord, LockingRecord, NtTime, OpenGlobal, RecordError, TconGlobal, file_key,
};
use samba::{Capture, ImageError, Layout, OpenImage};
use statedb::ShareName;

use crate::Seed;
use crate::pieces::{Pieces, join};

/// The rest is an encoded image.
const IMAGE: u8 = 0x10;

/// The rest is pieces: the value of an open's own record, then further stores, each a database's number and a value.
const STORES: u8 = 0x11;

/// How often a capture may ask for records before it has all: for the file's, and for the lease's.
const NEEDS_MAX: usize = 2;

/// Reads the rest as what its first byte says.
pub fn check(input: &[u8]) {
    let Some((what, rest)) = input.split_first() else { return };
    match *what {
        IMAGE => {
            if let Ok(image) = OpenImage::decode(rest) {
                check_image(&image);
            }
        }
        STORES => Layout::ALL.into_iter().for_each(|layout| check_stores(layout, rest)),
        number => {
            if let Some(database) = Database::from_wire(number) {
                Layout::ALL.into_iter().for_each(|layout| check_record(layout, database, rest));
            }
        }
    }
}

/// What is decoded is encoded to the same bytes, but for the padding in `brlock.tdb`, which nobody promises to be zero.
fn check_record(layout: Layout, database: Database, value: &[u8]) {
    match round_trip(layout, database, value) {
        Ok(again) if database == Database::Brlock => {
            assert_eq!(again.len(), value.len());
            assert_eq!(round_trip(layout, database, &again), Ok(again));
        }
        Ok(again) => assert_eq!(again, value),
        Err(error) => {
            assert_eq!(error.record, database, "{error}");
            assert!(error.offset <= value.len(), "{error}");
        }
    }
}

fn round_trip(layout: Layout, database: Database, value: &[u8]) -> Result<Vec<u8>, RecordError> {
    Ok(match database {
        Database::OpenGlobal => OpenGlobal::decode(layout, value)?.encode(layout),
        Database::Locking => LockingRecord::decode(layout, value)?.encode(layout),
        Database::Leases => LeaseRecord::decode(layout, value)?.encode(layout),
        Database::Brlock => BrlockEntry::encode_all(layout, &BrlockEntry::decode_all(layout, value)?),
        Database::TconGlobal => TconGlobal::decode(layout, value)?.encode(layout),
    })
}

/// An open is captured at its first store, and follows the others.
fn check_stores(layout: Layout, input: &[u8]) {
    let mut pieces = Pieces(input);
    let Some(open_global) = pieces.next() else { return };
    let stores: Vec<_> = pieces.filter_map(store).collect();
    let Some(mut image) = capture(layout, open_global, &stores) else { return };
    check_image(&image);

    for (database, value) in stores {
        let before = image.clone();
        let lease_key = image.lease_record_key().unwrap_or_default();
        let updated = match database {
            Database::OpenGlobal => image.update_open_global(value),
            Database::Locking => image.update_locking(Some(value)),
            Database::Leases => image.update_lease(&lease_key, Some(value)),
            Database::Brlock => image.update_brlock(Some(value)),
            Database::TconGlobal => continue,
        };
        match updated {
            Ok(samba::Change::Changed) => check_image(&image),
            Ok(samba::Change::Same | samba::Change::Gone) | Err(_) => assert_eq!(image, before),
        }
        if database == Database::Locking
            && let Ok(locking) = LockingRecord::decode(layout, value)
        {
            check_placing(&image, locking);
        }
    }
}

fn store(piece: &[u8]) -> Option<(Database, &[u8])> {
    let (number, value) = piece.split_first()?;
    Some((Database::from_wire(*number)?, value))
}

/// The image of the open, where each record that is asked for has the value of the first store in its database.
fn capture(layout: Layout, open_global: &[u8], stores: &[(Database, &[u8])]) -> Option<OpenImage> {
    let mut records = BTreeMap::new();
    for _ in 0..=NEEDS_MAX {
        match OpenImage::capture(layout, open_global, &records) {
            Ok(Capture::Complete(image)) => return Some(*image),
            Ok(Capture::Need(keys)) => {
                for key in keys {
                    let stored = stores.iter().find(|(database, _)| *database == key.database);
                    let before = records.insert(key, stored.map(|(_, value)| value.to_vec()));
                    assert_eq!(before, None, "it asks for a record again");
                }
            }
            Err(error) => {
                assert!(!error.to_string().is_empty());
                return None;
            }
        }
    }
    panic!("it asks for more and more records");
}

/// An image is what its bytes are, and can be described and placed.
fn check_image(image: &OpenImage) {
    assert_eq!(OpenImage::decode(&image.encode()).as_ref(), Ok(image));
    let description = image.describe(ShareName::new("share"));
    assert_eq!(description.durable_file_id, image.durable_file_id());
    assert_eq!(description.image[..], image.encode());
    check_placing(image, LockingRecord::default());
    for layout in Layout::ALL {
        match image.in_layout(layout) {
            Ok(turned) => assert_eq!(OpenImage::decode(&turned.encode()), Ok(turned)),
            Err(error) => assert!(matches!(error, ImageError::NotInLayout { .. }), "{error}"),
        }
    }
}

/// Doing it twice is doing it once, and what is placed can be taken away.
fn check_placing(image: &OpenImage, locking: LockingRecord) {
    let is_alive = |_| false;
    let place_open = |local: Option<&OpenGlobal>| {
        place_open_global(local, image, NtTime(1), &image.cookie().stat, is_alive)
    };
    if let Ok(Edit::Store(placed)) = place_open(None) {
        let value = placed.encode(image.layout());
        assert_eq!(OpenGlobal::decode(image.layout(), &value).as_ref(), Ok(&placed));
        assert_eq!(place_open(Some(&placed)), Ok(Edit::Keep));
    }

    let traces = Traces::of_orphan(image, None, is_alive);
    if let Ok(Edit::Store(placed)) = place_entry(Some(locking), image, traces) {
        let value = placed.encode(image.layout());
        assert_eq!(LockingRecord::decode(image.layout(), &value).as_ref(), Ok(&placed));
        assert_eq!(place_entry(Some(placed.clone()), image, traces), Ok(Edit::Keep));
        let removal = remove_entry(Some(placed), image.file(), traces).expect("nobody holds the lock");
        match removal.edit {
            Edit::Store(without) => assert!(!without.has_disconnected(image.durable_file_id())),
            Edit::Delete => {}
            Edit::Keep => panic!("it was there"),
        }
    }

    if let Some(lease) = image.lease() {
        let Edit::Store(placed) = place_lease(None, lease) else { panic!("there was none") };
        assert_eq!(place_lease(Some(placed), lease), Edit::Keep);
    }

    if let Edit::Store(placed) = place_byte_range_locks(&[], image, traces) {
        assert_eq!(place_byte_range_locks(&placed, image, traces), Edit::Keep);
        assert_eq!(remove_byte_range_locks(&placed, traces), Edit::Delete);
    }
}

/// The records of a real smbd, and of each durable open among them its image and its stores.
#[must_use]
pub fn seeds() -> Vec<Seed> {
    let mut seeds = Vec::new();
    for (layout, situation, records) in Layout::ALL.into_iter().flat_map(situations) {
        let situation = format!("{layout}-{situation}");
        for (index, (database, _, value)) in records.iter().enumerate() {
            let name = format!("{situation}-{index}-{}", database.file_name().trim_end_matches(".tdb"));
            seeds.push((name, [&[*database as u8], value.as_slice()].concat()));
        }
        for (index, (_, _, value)) in records.iter().enumerate().filter(is_open) {
            let Some(image) = situation_image(layout, value, &records) else { continue };
            seeds
                .push((format!("{situation}-{index}-image"), [&[IMAGE], image.encode().as_slice()].concat()));
            seeds.push((format!("{situation}-{index}-stores"), stores_seed(&image, value, &records)));
        }
    }
    seeds
}

/// A record of a situation: where it is, its key and its value.
type Stored = (Database, Vec<u8>, Vec<u8>);

fn is_open((_, (database, ..)): &(usize, &Stored)) -> bool {
    *database == Database::OpenGlobal
}

fn situation_image(layout: Layout, open_global: &[u8], records: &[Stored]) -> Option<OpenImage> {
    let open = OpenGlobal::decode(layout, open_global).ok()?;
    let file = open.backend_cookie.as_ref()?.file;
    let is_ours = |database, key: &[u8]| match database {
        Database::Locking | Database::Brlock => *key == file_key(file),
        _ => true,
    };
    let stores: Vec<_> = records
        .iter()
        .filter(|(database, key, _)| is_ours(*database, key))
        .map(|(database, _, value)| (*database, value.as_slice()))
        .collect();
    capture(layout, open_global, &stores)
}

/// The open's own record, and every store to a record that concerns it.
fn stores_seed(image: &OpenImage, open_global: &[u8], records: &[Stored]) -> Vec<u8> {
    let concerns = |database, key: &[u8]| match database {
        Database::Locking | Database::Brlock => *key == file_key(image.file()),
        Database::Leases => image.lease_record_key().is_some_and(|own| *key == own),
        Database::OpenGlobal => *key == image.open_global().key(),
        Database::TconGlobal => false,
    };
    let stores: Vec<_> = records
        .iter()
        .filter(|(database, key, _)| concerns(*database, key))
        .map(|(database, _, value)| [&[*database as u8], value.as_slice()].concat())
        .collect();
    let pieces = std::iter::once(open_global).chain(stores.iter().map(Vec::as_slice));
    [vec![STORES], join(pieces)].concat()
}

/// What is in `samba/testdata` of a layout: its README says how the files look.
fn situations(layout: Layout) -> Vec<(Layout, String, Vec<Stored>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../samba/testdata")
        .join(format!("v{}", layout.to_string().replace('.', "_")));
    let mut situations: Vec<_> = fs::read_dir(&directory)
        .unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
        .map(|entry| {
            let path = entry.expect("the directory can be read").path();
            let name = path.file_stem().expect("a file has a name").to_string_lossy().into_owned();
            let text =
                fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            (layout, name, text.lines().filter(|line| !line.starts_with('#')).map(stored).collect())
        })
        .collect();
    situations.sort_by(|(_, one, _), (_, other, _)| one.cmp(other));
    situations
}

fn stored(line: &str) -> Stored {
    let [database, key, value] = line.split(' ').collect::<Vec<_>>()[..] else {
        panic!("not a database, a key and a value: {line}")
    };
    let database = Database::from_file_name(database.as_bytes()).expect("it is a database of ours");
    (database, unhex(key), unhex(value))
}

fn unhex(text: &str) -> Vec<u8> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    assert!(rest.is_empty(), "half a byte in {text}");
    let byte = |pair: &[u8; 2]| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok();
    pairs.iter().map(|pair| byte(pair).expect("the file is in hexadecimal")).collect()
}
