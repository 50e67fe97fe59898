//! The databases that opens live in, as records that are read and edited one by one.
//!
//! There are two kinds of them: one smbd's own ([`PlainStore`]), and those of a CTDB cluster
//! ([`crate::ctdb::store::ClusterStore`]). Whoever places an orphan need not know which.
//!
//! # What must stay true
//!
//! - Never two chain locks at once.
//! - Nothing is asked of anybody while a chain is locked: who decides about a record decides by what he knows.

use std::path::Path;
use std::time::Duration;

use frame::Database;
use thiserror::Error;

use crate::ctdb::CtdbError;
use crate::materialise::Edit;
use crate::proc_stat;
use crate::records::ServerId;
use crate::tdb::{ChangeCount, LibtdbError, RawRecord, Tdb, TdbFile};

/// A database that opens live in. The discriminants are indices of [`Table::ALL`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Table {
    OpenGlobal = 0,
    Locking = 1,
    Leases = 2,
    Brlock = 3,
}

impl Table {
    pub(crate) const ALL: [Self; 4] = [Self::OpenGlobal, Self::Locking, Self::Leases, Self::Brlock];

    /// Its name, which is that of its file too.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::OpenGlobal => Database::OpenGlobal,
            Self::Locking => Database::Locking,
            Self::Leases => Database::Leases,
            Self::Brlock => Database::Brlock,
        }
        .file_name()
    }

    fn change_count(self) -> ChangeCount {
        match self {
            Self::OpenGlobal => ChangeCount::None,
            Self::Locking | Self::Leases | Self::Brlock => ChangeCount::SequenceNumber,
        }
    }

    /// Something for each of them, in the order of [`Table::ALL`].
    pub(crate) fn try_map<T, E>(mut each: impl FnMut(Self) -> Result<T, E>) -> Result<[T; 4], E> {
        Ok([each(Self::OpenGlobal)?, each(Self::Locking)?, each(Self::Leases)?, each(Self::Brlock)?])
    }
}

/// The records of a running smbd's opens, whichever kind of database they are in.
pub(crate) trait RecordStore: Send {
    /// A record's value as it is now.
    fn fetch(&mut self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;

    /// Makes ready that these records are going to be edited soon. Saves time, and promises nothing.
    fn gather(&mut self, records: &[(Table, Vec<u8>)]) -> Result<(), StoreError>;

    /// Has it decided what becomes of a record while nobody else can change it. Nothing is done twice: `decide` is
    /// called once at most, and once if there is no error.
    fn edit(&mut self, table: Table, key: &[u8], decide: &mut Decide<'_>) -> Result<(), StoreError>;

    /// All records that this node knows to be as it has them.
    fn records(&mut self, table: Table) -> Result<Vec<RawRecord>, StoreError>;

    /// Whether a process that a record names still runs.
    fn is_alive(&mut self, process: ServerId) -> Result<bool, StoreError>;

    /// Whether records can become again what they were before.
    fn may_go_back(&self) -> bool;
}

/// What becomes of a record, by its value.
pub type Decide<'a> = dyn FnMut(Option<&[u8]>) -> Edit<Vec<u8>> + 'a;

/// The databases of one smbd that shares them with nobody.
pub(crate) struct PlainStore {
    files: [TdbFile; 4],
    lock_timeout: Duration,
}

impl PlainStore {
    /// Opens the databases in Samba's `lock directory`.
    pub(crate) fn open(
        libtdb: &Tdb,
        lock_directory: &Path,
        lock_timeout: Duration,
    ) -> Result<Self, StoreError> {
        let files = Table::try_map(|table| {
            TdbFile::open(libtdb, &lock_directory.join(table.name()), table.change_count())
        })?;
        Ok(Self { files, lock_timeout })
    }

    fn file(&mut self, table: Table) -> &mut TdbFile {
        &mut self.files[table as usize]
    }
}

impl RecordStore for PlainStore {
    fn fetch(&mut self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.file(table).fetch(key)?)
    }

    fn gather(&mut self, _records: &[(Table, Vec<u8>)]) -> Result<(), StoreError> {
        Ok(())
    }

    fn edit(&mut self, table: Table, key: &[u8], decide: &mut Decide<'_>) -> Result<(), StoreError> {
        let lock_timeout = self.lock_timeout;
        let mut record = self.file(table).lock_chain(key, lock_timeout)?;
        let value = record.fetch()?;
        match decide(value.as_deref()) {
            Edit::Keep => {}
            Edit::Store(value) => record.store(&value)?,
            Edit::Delete => record.delete()?,
        }
        Ok(())
    }

    fn records(&mut self, table: Table) -> Result<Vec<RawRecord>, StoreError> {
        Ok(self.file(table).records()?)
    }

    fn is_alive(&mut self, process: ServerId) -> Result<bool, StoreError> {
        Ok(proc_stat::lives(process.pid))
    }

    fn may_go_back(&self) -> bool {
        false
    }
}

/// The databases cannot be used.
#[derive(Debug, Error)]
pub enum StoreError {
    /// A file cannot.
    #[error("the databases of the local smbd cannot be used")]
    Tdb(#[from] LibtdbError),
    /// The cluster cannot.
    #[error("the cluster's databases cannot be used")]
    Ctdb(#[from] CtdbError),
}

impl StoreError {
    /// Whether it is about one record. Otherwise no other one can be used now either, and finding that out takes as long
    /// as it has taken for this one.
    pub(crate) fn is_about_one_record(&self) -> bool {
        match self {
            Self::Tdb(_) => true,
            Self::Ctdb(error) => matches!(error, CtdbError::OnDisk { .. } | CtdbError::Elsewhere { .. }),
        }
    }
}
