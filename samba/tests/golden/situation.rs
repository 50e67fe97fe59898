//! Reading `testdata/`.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use frame::{Database, RecordKey};
use samba::records::{OpenGlobal, file_key};
use samba::{Capture, Layout, OpenImage};

pub(crate) const LAYOUT: Layout = Layout::V4_17;

/// The records of one file of `testdata/`.
pub(crate) struct Situation {
    pub(crate) name: String,
    pub(crate) records: Vec<(Database, Vec<u8>, Vec<u8>)>,
}

impl Situation {
    pub(crate) fn load(name: &str) -> Self {
        let path = testdata().join(format!("{name}.txt"));
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let records = text.lines().filter(|line| !line.starts_with('#')).map(|line| {
            let mut words = line.split(' ');
            let mut word = || words.next().expect("database, key and value");
            let database = Database::from_file_name(word().as_bytes()).expect("a database of ours");
            (database, unhex(word()), unhex(word()))
        });
        Self { name: name.to_owned(), records: records.collect() }
    }

    pub(crate) fn all() -> Vec<Self> {
        let mut names: Vec<_> = fs::read_dir(testdata())
            .expect("testdata is there")
            .map(|entry| entry.expect("it can be read").path())
            .map(|path| path.file_stem().expect("a name").to_str().expect("UTF-8").to_owned())
            .collect();
        names.sort();
        names.iter().map(|name| Self::load(name)).collect()
    }

    pub(crate) fn values(&self, database: Database) -> impl Iterator<Item = &[u8]> {
        self.records.iter().filter(move |(of, ..)| *of == database).map(|(_, _, value)| value.as_slice())
    }

    pub(crate) fn value(&self, database: Database) -> &[u8] {
        let mut values = self.values(database);
        let value = values.next().unwrap_or_else(|| panic!("{} has no record of {database}", self.name));
        assert!(values.next().is_none(), "{} has several records of {database}", self.name);
        value
    }

    /// The durable opens, in no particular order.
    pub(crate) fn durable_opens(&self) -> Vec<OpenGlobal> {
        self.values(Database::OpenGlobal)
            .map(|value| OpenGlobal::decode(LAYOUT, value).unwrap())
            .filter(|open| open.durable)
            .collect()
    }

    /// The other records, as the shim would answer.
    pub(crate) fn answers(&self, keys: &[RecordKey]) -> BTreeMap<RecordKey, Option<Vec<u8>>> {
        let find = |key: &RecordKey| {
            let mut records = self.records.iter();
            records.find(|(database, of, _)| *database == key.database && *of == key.key)
        };
        keys.iter().map(|key| (key.clone(), find(key).map(|(_, _, value)| value.clone()))).collect()
    }

    /// The image of a durable open, asking for records as the sidecar does.
    pub(crate) fn capture(&self, open: &OpenGlobal) -> OpenImage {
        let value = open.encode(LAYOUT);
        let mut records = BTreeMap::new();
        loop {
            match OpenImage::capture(LAYOUT, &value, &records).unwrap() {
                Capture::Complete(image) => return *image,
                Capture::Need(keys) => {
                    assert!(keys.iter().all(|key| !records.contains_key(key)), "asks again: {keys:?}");
                    records.extend(self.answers(&keys));
                }
            }
        }
    }

    /// The image of the only durable open.
    pub(crate) fn image(&self) -> OpenImage {
        let opens = self.durable_opens();
        assert_eq!(opens.len(), 1, "{}", self.name);
        self.capture(&opens[0])
    }

    /// The value of a record of the image's file.
    pub(crate) fn of_file(&self, database: Database, image: &OpenImage) -> Option<Vec<u8>> {
        let key = RecordKey { database, key: file_key(image.file()).to_vec() };
        self.answers(std::slice::from_ref(&key)).remove(&key).flatten()
    }
}

fn testdata() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata/v4_17")
}

fn unhex(text: &str) -> Vec<u8> {
    assert!(text.len().is_multiple_of(2), "half a byte in {text}");
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hexadecimal"))
        .collect()
}
