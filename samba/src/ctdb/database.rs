//! A volatile database of the cluster, as this node has it.

use std::time::Instant;

use super::connection::{Connection, CtdbError};
use super::packet::{DatabaseId, Pnn};
use super::record::RecordHeader;
use crate::materialise::Edit;
use crate::record_store::{Decide, StoreError};
use crate::tdb::{LibtdbError, OpenFlags, RawRecord, Tdb, TdbFile};

/// A volatile database of the cluster.
///
/// # What must stay true
///
/// - A record is changed only under the lock of its chain, and only if its header says under that lock that this node
///   is its master. That it was migrated here a moment ago is a hint: it may have moved on, and a recovery gives every
///   record another master.
/// - The header that was there is stored again.
/// - A record that Samba keeps on disk is left alone.
/// - A record is deleted by storing nothing but the header; ctdbd clears it away when no node needs it any more.
pub struct ClusterDatabase {
    name: String,
    id: DatabaseId,
    /// This node's copy.
    file: TdbFile,
}

impl ClusterDatabase {
    /// Opens this node's copy of a database that the cluster has. The name is for errors.
    pub fn open(
        libtdb: &Tdb,
        connection: &mut Connection,
        name: &str,
        id: DatabaseId,
    ) -> Result<Self, StoreError> {
        let flags = connection.open_flags(id)?;
        let flags = OpenFlags::of_ctdbd(flags)
            .ok_or_else(|| CtdbError::NotVolatile { name: name.to_owned(), flags })?;
        let path = connection.database_path(id)?;
        Ok(Self { name: name.to_owned(), id, file: TdbFile::open_with(libtdb, &path, flags)? })
    }

    /// Which database of the cluster it is.
    #[must_use]
    pub fn id(&self) -> DatabaseId {
        self.id
    }

    /// Whether this node is the master of a record just now.
    pub fn is_here(&mut self, key: &[u8], here: Pnn) -> Result<bool, LibtdbError> {
        Ok(self.fetch_here(key, here)?.is_some())
    }

    /// A record's value, wherever it is. It comes here if it is elsewhere, after the end of a recovery.
    pub fn fetch(
        &mut self,
        connection: &mut Connection,
        key: &[u8],
        deadline: Instant,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        match self.fetch_here(key, connection.pnn())? {
            Some(value) => Ok(value),
            None => Ok(connection.fetch(self.id, key, deadline)?),
        }
    }

    /// Brings a record here, and has it decided what becomes of it while nobody else can change it. `decide` is called
    /// once if there is no error, and never twice; it must not wait for anything. Waits for the end of a recovery.
    pub fn edit(
        &mut self,
        connection: &mut Connection,
        key: &[u8],
        deadline: Instant,
        decide: &mut Decide<'_>,
    ) -> Result<(), StoreError> {
        loop {
            let edited = match self.edit_here(key, connection.pnn(), deadline, decide) {
                // A recovery locks all records at once.
                Err(LibtdbError::ChainLockTimeout { .. }) if connection.is_recovering()? => {
                    return Err(CtdbError::Recovering.into());
                }
                edited => edited?,
            };
            match edited {
                Edited::OnDisk => return Err(CtdbError::OnDisk { name: self.name.clone() }.into()),
                Edited::Here => return Ok(()),
                Edited::Emptied(header) => {
                    return Ok(connection.schedule_for_deletion(self.id, key, &header)?);
                }
                Edited::Elsewhere if Instant::now() >= deadline => {
                    return Err(CtdbError::Elsewhere { name: self.name.clone() }.into());
                }
                Edited::Elsewhere => connection.migrate([(self.id, key)], deadline)?,
            }
        }
    }

    /// The records whose master is this node.
    pub fn records_here(&mut self, here: Pnn) -> Result<Vec<RawRecord>, LibtdbError> {
        let records = self.file.records()?.into_iter();
        let of_this_node = records.filter_map(|RawRecord { key, value }| {
            let (header, value) = RecordHeader::split(&value)?;
            let value = value.filter(|_| header.master() == here)?.to_vec();
            Some(RawRecord { key, value })
        });
        Ok(of_this_node.collect())
    }

    /// The record's value if this node is its master: `Some(None)` if there is no such record.
    fn fetch_here(&mut self, key: &[u8], here: Pnn) -> Result<Option<Option<Vec<u8>>>, LibtdbError> {
        let stored = self.file.fetch(key)?;
        let split = stored.as_deref().and_then(RecordHeader::split);
        Ok(split.filter(|(header, _)| header.master() == here).map(|(_, value)| value.map(<[u8]>::to_vec)))
    }

    fn edit_here(
        &mut self,
        key: &[u8],
        here: Pnn,
        deadline: Instant,
        decide: &mut Decide<'_>,
    ) -> Result<Edited, LibtdbError> {
        let mut record = self.file.lock_chain(key, deadline.saturating_duration_since(Instant::now()))?;
        let stored = record.fetch()?;
        let split = stored.as_deref().and_then(RecordHeader::split);
        let Some((header, value)) = split.filter(|(header, _)| header.is_writable_by(here)) else {
            return Ok(Edited::Elsewhere);
        };
        if header.is_on_disk() {
            return Ok(Edited::OnDisk);
        }
        match decide(value) {
            Edit::Keep => {}
            Edit::Delete if value.is_none() => {}
            Edit::Delete => {
                record.store(header.as_bytes())?;
                return Ok(Edited::Emptied(header));
            }
            Edit::Store(value) => record.store(&[header.as_bytes(), &value].concat())?,
        }
        Ok(Edited::Here)
    }
}

/// What has become of a record that was to be edited.
enum Edited {
    /// Another node is its master; it was left alone.
    Elsewhere,
    /// Samba keeps it on disk; it was left alone.
    OnDisk,
    /// It is as it should be.
    Here,
    /// Only this header is left of it.
    Emptied(RecordHeader),
}
