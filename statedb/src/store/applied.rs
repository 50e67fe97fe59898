//! The stored copy of the applied state, in sled: records by table and key, and what they say together.
//!
//! A batch holds what some log entries changed *and* how far they got, so the copy is always the state
//! after some entry. It is written without waiting for the disk and may lag behind the log, which is
//! replayed from there. It never leads: only committed entries are applied. [`AppliedStore::sync`] makes
//! everything so far safe against the loss of power; whoever purges the log calls it first.
//!
//! # Damage
//!
//! sled notices a torn write and goes back to what it had before, which is an earlier state after some
//! entry, and correct. It may also go back because an old byte has rotted, and then loses records that
//! were stored long ago. So the meta record carries the number of records and a digest of all of them:
//! a state is served whole or not at all. And every value has a frame whose checksum covers its key.
//!
//! # Replacing everything
//!
//! A snapshot is written to a tree of its own, synced, and made current by one small write. A crash
//! before that leaves the old state, a crash after it the new one.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use sled::{Batch, Db, Tree};

use super::error::StoreError;
use super::format::{self, Kind};
use super::open_unlocked;

/// In the default tree: which generation is current.
const GENERATION_KEY: &[u8] = b"generation";

/// The tree of a generation is named after it.
const GENERATION_TREE_PREFIX: &str = "applied-";

/// The key of the meta record. Tables begin with another byte.
const META_KEY: &[u8] = &[0];

/// How much sled may hold in memory. The state is in memory already, so this only serves writes.
const CACHE_CAPACITY: u64 = 16 * 1024 * 1024;

/// How many records go into one batch when everything is replaced.
const REPLACE_BATCH_RECORDS: usize = 1024;

/// Which table a record belongs to; 0 is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Table(u8);

impl Table {
    /// The table with this number, which is on disk.
    ///
    /// # Panics
    ///
    /// If it is 0.
    #[must_use]
    pub const fn new(number: u8) -> Self {
        assert!(number != META_KEY[0], "table 0 is the meta record's");
        Self(number)
    }

    fn key(self, key: &[u8]) -> Vec<u8> {
        let mut full = Vec::with_capacity(1 + key.len());
        full.push(self.0);
        full.extend_from_slice(key);
        full
    }
}

/// What a batch does to one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its table.
    pub table: Table,
    /// Its key there.
    pub key: Vec<u8>,
    /// Its new value; `None` if it is gone.
    pub value: Option<Vec<u8>>,
}

/// A record as it was stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRecord {
    /// Its table.
    pub table: Table,
    /// Its key there.
    pub key: Vec<u8>,
    /// Its value.
    pub value: Vec<u8>,
}

/// All that is stored: how far it got, and every record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// What was written with the newest batch; opaque here.
    pub meta: Vec<u8>,
    /// Every record, by table and key.
    pub records: Vec<StoredRecord>,
}

/// The stored applied state of one node.
pub struct AppliedStore {
    path: PathBuf,
    db: Db,
    current: Mutex<Generation>,
}

/// The tree that is current, and what its meta record says of the other records.
struct Generation {
    number: u64,
    tree: Tree,
    summary: Summary,
}

/// What all records are together. Kept up to date without looking at the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Summary {
    /// How many there are.
    records: u64,
    /// The wrapping sum of their frames' checksums, which cover key and value.
    digest: u64,
}

impl AppliedStore {
    /// Opens the store in `dir`, which is created if there is none.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        open_unlocked(|| Self::try_open(dir))
    }

    fn try_open(dir: &Path) -> Result<Self, StoreError> {
        guarded(dir, "open the applied state in", || {
            // Flushing is asked for explicitly: a background thread could tell nobody that it failed.
            let config = sled::Config::new().path(dir).flush_every_ms(None).cache_capacity(CACHE_CAPACITY);
            let db = config.open().map_err(|error| explain_open_error(dir, error))?;
            let number = current_generation(&db, dir)?;
            let tree = db
                .open_tree(format!("{GENERATION_TREE_PREFIX}{number}"))
                .map_err(|error| explain(dir, "open a tree of", error))?;
            let store = Self {
                path: dir.to_owned(),
                current: Mutex::new(Generation { number, tree, summary: Summary::default() }),
                db,
            };
            store.drop_other_generations(number)?;
            Ok(store)
        })
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.path
    }

    /// Reads and checks everything. `None` if nothing was ever written. Must be called before the first
    /// write, which needs to know what is there.
    pub fn load(&self) -> Result<Option<Applied>, StoreError> {
        self.guarded("read the applied state in", |current| {
            let Some(meta) = get(&current.tree, &self.path, META_KEY, Kind::AppliedMeta)? else {
                return match current.tree.iter().next() {
                    None => Ok(None),
                    Some(_) => Err(self.damaged(META_KEY, "records without a meta record")),
                };
            };
            let (stored, meta) =
                Summary::split(&meta).ok_or_else(|| self.damaged(META_KEY, "too few bytes"))?;

            let mut summary = Summary::default();
            let mut records = Vec::new();
            for item in current.tree.range([META_KEY[0] + 1]..) {
                let (key, framed) = item.map_err(|error| explain(&self.path, "read a record of", error))?;
                let value = format::open(Kind::AppliedRecord, &key, &framed)
                    .map_err(|error| self.damaged(&key, error))?;
                summary.add(&framed);
                let (table, record_key) = key.split_first().expect("the range has no empty key");
                let (key, value) = (record_key.to_vec(), value.to_vec());
                records.push(StoredRecord { table: Table(*table), key, value });
            }
            if stored != summary {
                return Err(self.damaged(META_KEY, format_args!("{stored:?} where there is {summary:?}")));
            }
            current.summary = summary;
            Ok(Some(Applied { meta: meta.to_vec(), records }))
        })
    }

    /// Writes what some entries changed, and how far they got, all or nothing. Of two changes of one
    /// record the later one counts. Not synced.
    pub fn write(&self, meta: &[u8], changes: Vec<Change>) -> Result<(), StoreError> {
        self.guarded("write the applied state in", |current| {
            let changes: BTreeMap<_, _> =
                changes.into_iter().map(|change| (change.table.key(&change.key), change.value)).collect();
            let mut summary = current.summary;
            let mut batch = Batch::default();
            for (key, value) in changes {
                let before = current.tree.get(&key).map_err(|error| explain(&self.path, "read", error))?;
                if let Some(before) = before {
                    summary.remove(&before);
                }
                match value {
                    Some(value) => {
                        let framed = format::seal(Kind::AppliedRecord, &key, &value);
                        summary.add(&framed);
                        batch.insert(key, framed);
                    }
                    None => batch.remove(key),
                }
            }
            batch.insert(META_KEY, summary.seal_with(meta));
            current.tree.apply_batch(batch).map_err(|error| explain(&self.path, "write", error))?;
            current.summary = summary;
            Ok(())
        })
    }

    /// Waits until everything written so far is on disk.
    pub fn sync(&self) -> Result<(), StoreError> {
        self.guarded("sync the applied state in", |current| {
            current.tree.flush().map_err(|error| explain(&self.path, "sync", error))?;
            Ok(())
        })
    }

    /// Puts a whole new state in the place of the old one, and syncs it.
    pub fn replace(
        &self,
        meta: &[u8],
        records: impl IntoIterator<Item = StoredRecord>,
    ) -> Result<(), StoreError> {
        self.guarded("replace the applied state in", |current| {
            let number = current.number + 1;
            let name = format!("{GENERATION_TREE_PREFIX}{number}");
            let sled_error = |error| explain(&self.path, "write a snapshot to", error);
            let tree = self.db.open_tree(name).map_err(sled_error)?;
            // An earlier attempt may have ended half way.
            tree.clear().map_err(sled_error)?;

            let mut summary = Summary::default();
            let mut batch = Batch::default();
            let mut batch_records = 0;
            for record in records {
                let key = record.table.key(&record.key);
                let framed = format::seal(Kind::AppliedRecord, &key, &record.value);
                summary.add(&framed);
                batch.insert(key, framed);
                batch_records += 1;
                if batch_records == REPLACE_BATCH_RECORDS {
                    tree.apply_batch(std::mem::take(&mut batch)).map_err(sled_error)?;
                    batch_records = 0;
                }
            }
            batch.insert(META_KEY, summary.seal_with(meta));
            tree.apply_batch(batch).map_err(sled_error)?;
            tree.flush().map_err(sled_error)?;

            set_current_generation(&self.db, number).map_err(sled_error)?;
            *current = Generation { number, tree, summary };
            self.drop_other_generations(number)
        })
    }

    /// What is left of earlier generations and of snapshots that were not written to their end.
    fn drop_other_generations(&self, number: u64) -> Result<(), StoreError> {
        let current = format!("{GENERATION_TREE_PREFIX}{number}");
        for name in self.db.tree_names() {
            if name.starts_with(GENERATION_TREE_PREFIX.as_bytes()) && name != current.as_bytes() {
                self.db.drop_tree(name).map_err(|error| explain(&self.path, "drop a tree of", error))?;
            }
        }
        Ok(())
    }

    fn damaged(&self, key: &[u8], found: impl fmt::Display) -> StoreError {
        StoreError::damaged(&self.path, format_args!("key {}", Hex(key)), found)
    }

    fn guarded<T>(
        &self,
        operation: &'static str,
        run: impl FnOnce(&mut Generation) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        guarded(&self.path, operation, || match self.current.lock() {
            Ok(mut current) => run(&mut current),
            Err(_) => Err(StoreError::stopped(&self.path, "a write to it panicked")),
        })
    }
}

impl fmt::Debug for AppliedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AppliedStore").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Summary {
    /// Its length in the meta record, before what the caller says there.
    const LEN: usize = 16;

    fn add(&mut self, framed: &[u8]) {
        self.records += 1;
        self.digest = self.digest.wrapping_add(Self::term(framed));
    }

    fn remove(&mut self, framed: &[u8]) {
        self.records = self.records.wrapping_sub(1);
        self.digest = self.digest.wrapping_sub(Self::term(framed));
    }

    /// A frame that is too short to have a checksum is found when it is read.
    fn term(framed: &[u8]) -> u64 {
        format::stored_checksum(framed).unwrap_or_default().into()
    }

    fn seal_with(self, meta: &[u8]) -> Vec<u8> {
        let mut payload = Vec::with_capacity(Self::LEN + meta.len());
        payload.extend_from_slice(&self.records.to_le_bytes());
        payload.extend_from_slice(&self.digest.to_le_bytes());
        payload.extend_from_slice(meta);
        format::seal(Kind::AppliedMeta, META_KEY, &payload)
    }

    fn split(payload: &[u8]) -> Option<(Self, &[u8])> {
        let (records, rest) = payload.split_first_chunk()?;
        let (digest, meta) = rest.split_first_chunk()?;
        Some((Self { records: u64::from_le_bytes(*records), digest: u64::from_le_bytes(*digest) }, meta))
    }
}

/// sled asserts on what it reads from disk. A node that meets that must stop with a message, not by
/// losing a thread.
fn guarded<T>(
    path: &Path,
    operation: &'static str,
    run: impl FnOnce() -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    panic::catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|payload| {
        let text = payload
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| payload.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        Err(StoreError::damaged(
            path,
            format_args!("an attempt to {operation} it"),
            format_args!("sled: {text}"),
        ))
    })
}

/// The generation that is current. Written before the first tree is made, so a tree without it is damage.
fn current_generation(db: &Db, dir: &Path) -> Result<u64, StoreError> {
    const PLACE: &str = "the number of the generation";
    if let Some(bytes) = get(db, dir, GENERATION_KEY, Kind::Generation)? {
        let number = bytes
            .as_slice()
            .try_into()
            .map_err(|_| StoreError::damaged(dir, PLACE, format_args!("{} bytes", bytes.len())))?;
        return Ok(u64::from_le_bytes(number));
    }
    if db.tree_names().iter().any(|name| name.starts_with(GENERATION_TREE_PREFIX.as_bytes())) {
        return Err(StoreError::damaged(dir, PLACE, "nothing, beside a tree that has one"));
    }
    let first = 0;
    set_current_generation(db, first).map_err(|error| explain(dir, "begin", error))?;
    Ok(first)
}

fn set_current_generation(db: &Db, number: u64) -> sled::Result<()> {
    let framed = format::seal(Kind::Generation, GENERATION_KEY, &number.to_le_bytes());
    db.insert(GENERATION_KEY, framed)?;
    db.flush()?;
    Ok(())
}

fn get(tree: &Tree, path: &Path, key: &[u8], kind: Kind) -> Result<Option<Vec<u8>>, StoreError> {
    let Some(framed) = tree.get(key).map_err(|error| explain(path, "read", error))? else { return Ok(None) };
    match format::open(kind, key, &framed) {
        Ok(payload) => Ok(Some(payload.to_vec())),
        Err(error) => Err(StoreError::damaged(path, format_args!("key {}", Hex(key)), error)),
    }
}

fn explain_open_error(path: &Path, error: sled::Error) -> StoreError {
    match &error {
        sled::Error::Io(source) if source.kind() == io::ErrorKind::WouldBlock => {
            StoreError::Locked { path: path.to_owned() }
        }
        // How sled 0.34 reports that it could not lock its file.
        sled::Error::Io(source) if source.to_string().contains("could not acquire lock") => {
            StoreError::Locked { path: path.to_owned() }
        }
        _ => explain(path, "open", error),
    }
}

fn explain(path: &Path, operation: &'static str, error: sled::Error) -> StoreError {
    match error {
        sled::Error::Io(source) if source.kind() == io::ErrorKind::InvalidData => {
            StoreError::damaged(path, "a file of the database", source)
        }
        sled::Error::Io(source) => StoreError::io(operation, path, source),
        sled::Error::Corruption { at, bt: () } => StoreError::damaged(
            path,
            at.map_or("an unknown place".to_owned(), |at| format!("{at:?}")),
            "bytes that sled cannot read",
        ),
        other => StoreError::damaged(path, "the database", other),
    }
}

/// Bytes of a key, for people.
struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests;
