//! Images of opens of a file that exists.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use frame::{Database, RecordKey};
use samba::records::{BrlockEntry, LeaseRecord, LockingRecord, OpenGlobal, file_key, lease_record_key};
use samba::{Capture, Layout, OpenImage};
use statedb::FileKey;

/// The length of an open's key in hexadecimal digits.
const OPEN_KEY_DIGITS: usize = 8;

/// The durable open of a situation in `testdata/`, as an open of `name` in the share at `service_path`.
pub(crate) fn image_of(layout: Layout, situation: &str, service_path: &Path, name: &str) -> OpenImage {
    let metadata = fs::metadata(service_path.join(name)).expect("the file of the open exists");
    let file = FileKey { device: metadata.dev(), inode: metadata.ino(), extid: 0 };
    let service_path = service_path.to_str().expect("UTF-8").to_owned();
    let text = fs::read_to_string(testdata(layout).join(format!("{situation}.txt")))
        .expect("the situation is there");

    let mut open_global = None;
    let mut records = BTreeMap::new();
    let mut record = |database, key: &[u8], value| {
        records.insert(RecordKey { database, key: key.to_vec() }, value);
    };
    record(Database::Brlock, &file_key(file), None);
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let words: Vec<_> = line.split(' ').collect();
        let value = unhex(words[2]);
        match Database::from_file_name(words[0].as_bytes()).expect("a database of ours") {
            // Newer Samba keeps its replay cache in the same database.
            Database::OpenGlobal if words[1].len() != OPEN_KEY_DIGITS => {}
            Database::OpenGlobal => {
                let mut open = OpenGlobal::decode(layout, &value).unwrap();
                let cookie = open.backend_cookie.as_mut().expect("it is durable");
                cookie.file = file;
                cookie.stat.device = file.device;
                cookie.service_path.clone_from(&service_path);
                name.clone_into(&mut cookie.base_name);
                open_global = Some(open.encode(layout));
            }
            Database::Locking => {
                let mut locking = LockingRecord::decode(layout, &value).unwrap();
                let modes = locking.lock.as_mut().unwrap().share_modes.as_mut().unwrap();
                let data = modes.data.as_mut().unwrap();
                data.file = file;
                data.service_path = Some(service_path.clone());
                data.base_name = Some(name.to_owned());
                record(Database::Locking, &file_key(file), Some(locking.encode(layout)));
            }
            Database::Leases => {
                let mut lease = LeaseRecord::decode(layout, &value).unwrap();
                lease.files[0].file = file;
                lease.files[0].service_path = Some(service_path.clone());
                lease.files[0].base_name = Some(name.to_owned());
                record(Database::Leases, &unhex(words[1]), Some(lease.encode(layout)));
            }
            Database::Brlock => {
                let locks = BrlockEntry::decode_all(layout, &value).unwrap();
                record(Database::Brlock, &file_key(file), Some(BrlockEntry::encode_all(layout, &locks)));
            }
            Database::TconGlobal => {}
        }
    }
    match OpenImage::capture(layout, &open_global.expect("it has an open"), &records).unwrap() {
        Capture::Complete(image) => *image,
        Capture::Need(keys) => panic!("{situation} lacks {keys:?}"),
    }
}

/// The keys of every record that an open has a part in, but for its own.
pub(crate) fn shared_keys(image: &OpenImage) -> Vec<(Database, Vec<u8>)> {
    let file = file_key(image.file()).to_vec();
    let lease = image.entry().lease().map(|(client_guid, key)| lease_record_key(client_guid, key).to_vec());
    let mut keys = vec![(Database::Locking, file.clone()), (Database::Brlock, file)];
    keys.extend(lease.map(|key| (Database::Leases, key)));
    keys
}

/// The folder with the situations of a layout.
pub(crate) fn testdata(layout: Layout) -> PathBuf {
    let directory = format!("v{}", layout.to_string().replace('.', "_"));
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata").join(directory)
}

/// Bytes from hexadecimal digits.
pub(crate) fn unhex(text: &str) -> Vec<u8> {
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hexadecimal"))
        .collect()
}
