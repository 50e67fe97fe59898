//! The databases of opens in a CTDB cluster.

use std::path::Path;
use std::time::{Duration, Instant};

use super::connection::{Connection, CtdbError};
use super::database::ClusterDatabase;
use crate::proc_stat;
use crate::record_store::{Decide, RecordStore, StoreError, Table};
use crate::records::ServerId;
use crate::tdb::{RawRecord, Tdb};

/// The databases of opens, as this node of the cluster has them.
pub(crate) struct ClusterStore {
    connection: Connection,
    databases: [ClusterDatabase; 4],
    lock_timeout: Duration,
}

impl ClusterStore {
    /// Opens the cluster's databases through the ctdbd with this socket. They must be there already.
    pub(crate) fn open(libtdb: &Tdb, socket: &Path, lock_timeout: Duration) -> Result<Self, StoreError> {
        let mut connection = Connection::open(socket, lock_timeout)?;
        // They are looked up, not attached: ctdbd lets nobody attach during a recovery and for a second after it.
        let found = connection.find_databases(&Table::ALL.map(Table::name))?;
        let databases = Table::try_map(|table| {
            let name = table.name();
            let no_such = || CtdbError::NoSuchDatabase { name: name.to_owned() };
            let id = *found.get(name).ok_or_else(no_such)?;
            ClusterDatabase::open(libtdb, &mut connection, name, id)
        })?;
        Ok(Self { connection, databases, lock_timeout })
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.lock_timeout
    }
}

impl RecordStore for ClusterStore {
    fn fetch(&mut self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let deadline = self.deadline();
        self.databases[table as usize].fetch(&mut self.connection, key, deadline)
    }

    fn gather(&mut self, records: &[(Table, Vec<u8>)]) -> Result<(), StoreError> {
        let here = self.connection.pnn();
        let mut elsewhere = Vec::new();
        for (table, key) in records {
            let database = &mut self.databases[*table as usize];
            if !database.is_here(key, here)? {
                elsewhere.push((database.id(), key.as_slice()));
            }
        }
        let deadline = self.deadline();
        Ok(self.connection.migrate(elsewhere, deadline)?)
    }

    fn edit(&mut self, table: Table, key: &[u8], decide: &mut Decide<'_>) -> Result<(), StoreError> {
        let deadline = self.deadline();
        self.databases[table as usize].edit(&mut self.connection, key, deadline, decide)
    }

    fn records(&mut self, table: Table) -> Result<Vec<RawRecord>, StoreError> {
        Ok(self.databases[table as usize].records_here(self.connection.pnn())?)
    }

    /// One of this node that has ended does not, although its ctdbd may have yet to see that.
    fn is_alive(&mut self, process: ServerId) -> Result<bool, StoreError> {
        if process.vnn == self.connection.pnn().0 && !proc_stat::lives(process.pid) {
            return Ok(false);
        }
        Ok(self.connection.process_exists(process)?)
    }

    /// By a recovery.
    fn may_go_back(&self) -> bool {
        true
    }
}
