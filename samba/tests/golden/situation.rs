//! Reading `testdata/`.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use frame::{Database, RecordKey};
use samba::records::{OpenGlobal, file_key};
use samba::{Capture, Layout, OpenImage};

/// The records of one file of `testdata/`.
pub(crate) struct Situation {
    pub(crate) layout: Layout,
    pub(crate) name: String,
    pub(crate) records: Vec<(Database, Vec<u8>, Vec<u8>)>,
}

impl Situation {
    pub(crate) fn load(layout: Layout, name: &str) -> Self {
        let path = testdata(layout).join(format!("{name}.txt"));
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let records = text.lines().filter(|line| !line.starts_with('#')).map(|line| {
            let mut words = line.split(' ');
            let mut word = || words.next().expect("database, key and value");
            let database = Database::from_file_name(word().as_bytes()).expect("a database of ours");
            (database, unhex(word()), unhex(word()))
        });
        Self { layout, name: name.to_owned(), records: records.collect() }
    }

    /// All of one layout.
    pub(crate) fn all(layout: Layout) -> Vec<Self> {
        let mut names: Vec<_> = fs::read_dir(testdata(layout))
            .expect("testdata is there")
            .map(|entry| entry.expect("it can be read").path())
            .map(|path| path.file_stem().expect("a name").to_str().expect("UTF-8").to_owned())
            .collect();
        names.sort();
        names.iter().map(|name| Self::load(layout, name)).collect()
    }

    /// The values of a database's records, but for what newer Samba keeps beside the opens.
    pub(crate) fn values(&self, database: Database) -> impl Iterator<Item = &[u8]> {
        let records = self.records.iter().filter(move |(of, key, _)| *of == database && is_known(*of, key));
        records.map(|(_, _, value)| value.as_slice())
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
            .map(|value| OpenGlobal::decode(self.layout, value).unwrap())
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
        let value = open.encode(self.layout);
        let mut records = BTreeMap::new();
        loop {
            match OpenImage::capture(self.layout, &value, &records).unwrap() {
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

/// Whether it is a record that there is a type for. Samba 4.25 keeps its replay cache in the database of the opens, under
/// keys of another length.
pub(crate) fn is_known(database: Database, key: &[u8]) -> bool {
    database != Database::OpenGlobal || key.len() == size_of::<u32>()
}

fn testdata(layout: Layout) -> PathBuf {
    let directory = format!("v{}", layout.to_string().replace('.', "_"));
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata").join(directory)
}

fn unhex(text: &str) -> Vec<u8> {
    assert!(text.len().is_multiple_of(2), "half a byte in {text}");
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hexadecimal"))
        .collect()
}
