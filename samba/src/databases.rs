//! The databases of the local smbd, and the placing of orphans in them.
//!
//! # What must stay true
//!
//! - An orphan's own record is stored last and deleted first: whoever finds it finds all the rest.
//! - A share-mode entry with a lease is stored after the lease and deleted before it: smbd panics when it meets one
//!   without.
//! - Never two chain locks at once, so no order between them can be wrong.
//! - See [`crate::tdb`] for when the databases may be open at all.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use frame::Database;
use statedb::{DurableFileId, FileKey};
use thiserror::Error;

use crate::file_stat::{FileStat, StatError};
use crate::image::OpenImage;
use crate::materialise::{self, Edit, MaterialiseError, Removed, Traces};
use crate::records::{
    BrlockEntry, Holder, LeaseRecord, LockingRecord, NtTime, OpenGlobal, RecordError, ServerId, file_key,
    lease_record_key, open_global_key,
};
use crate::tdb::{ChangeCount, LibtdbError, RawRecord, Tdb, TdbFile};
use crate::version::Layout;

/// How often a share-mode record that a process is changing is looked at again.
const LOCKED_POLL: Duration = Duration::from_millis(2);

/// A disconnected open that nobody keeps.
#[derive(Clone, Copy, Debug)]
pub struct Orphan<'a> {
    /// The open.
    pub image: &'a OpenImage,
    /// When its client was lost, as smbd's own tools are to show it. Nothing expires by it.
    pub disconnected_at: SystemTime,
}

/// The databases of one running smbd that opens live in.
pub struct LocalDatabases {
    layout: Layout,
    open_global: TdbFile,
    locking: TdbFile,
    leases: TdbFile,
    brlock: TdbFile,
    /// How long any single record may be waited for.
    lock_timeout: Duration,
}

impl LocalDatabases {
    /// Opens the databases in Samba's `lock directory`. Fails if no smbd has them open.
    ///
    /// No wait for a record will be longer than `lock_timeout`. Blocks, so keep it away from whatever answers the
    /// shim: smbd may hold a record's lock while it waits for that answer.
    pub fn open(
        libtdb: &Tdb,
        lock_directory: &Path,
        layout: Layout,
        lock_timeout: Duration,
    ) -> Result<Self, LibtdbError> {
        let open = |database: Database, change_count| {
            TdbFile::open(libtdb, &lock_directory.join(database.file_name()), change_count)
        };
        Ok(Self {
            layout,
            open_global: open(Database::OpenGlobal, ChangeCount::None)?,
            locking: open(Database::Locking, ChangeCount::SequenceNumber)?,
            leases: open(Database::Leases, ChangeCount::SequenceNumber)?,
            brlock: open(Database::Brlock, ChangeCount::SequenceNumber)?,
            lock_timeout,
        })
    }

    /// The record of an open as it is here now.
    pub fn open_global(&mut self, id: DurableFileId) -> Result<Option<OpenGlobal>, PlaceError> {
        let value = self.open_global.fetch(&open_global_key(id))?;
        Ok(value.map(|value| OpenGlobal::decode(self.layout, &value)).transpose()?)
    }

    /// The durable opens here whose clients are away: those that were placed, and those that this smbd has
    /// disconnected itself.
    pub fn disconnected_opens(&mut self) -> Result<Vec<OpenGlobal>, PlaceError> {
        let mut opens = Vec::new();
        for RawRecord { value, .. } in self.open_global.records()? {
            let open = OpenGlobal::decode(self.layout, &value)?;
            if open.durable && open.holder() == Holder::Disconnected {
                opens.push(open);
            }
        }
        Ok(opens)
    }

    /// Places orphans, so that this smbd can give them back to their clients. One result for each, in order.
    ///
    /// Placing one that is placed already changes nothing. What a dead process of this smbd has left of one is
    /// replaced. One that fails leaves nothing behind.
    pub fn materialise(&mut self, orphans: &[Orphan<'_>]) -> Vec<Result<(), PlaceError>> {
        orphans.iter().map(|orphan| self.place(orphan)).collect()
    }

    fn place(&mut self, orphan: &Orphan<'_>) -> Result<(), PlaceError> {
        let image = orphan.image;
        let id = image.durable_file_id();
        let disconnected_at = NtTime::from(orphan.disconnected_at);
        let stat = FileStat::read(image.cookie(), image.path())
            .map_err(|source| PlaceError::File { id, source })?
            .to_cookie(self.layout, &image.cookie().stat);
        let local = self.open_global(id)?;
        // A conflict is looked for before anything is stored, and again when the record's lock is held. What is
        // there is left alone altogether: if smbd has given the open up for somebody, its entry must stay away.
        if materialise::place_open_global(local.as_ref(), image, disconnected_at, &stat, is_alive)?
            == Edit::Keep
        {
            return Ok(());
        }

        let traces = Traces::of_orphan(image, local.as_ref(), is_alive);
        let placed = self.place_shared(image, traces).and_then(|()| {
            let (layout, key) = (self.layout, open_global_key(id));
            edit(&mut self.open_global, &key, self.lock_timeout, |local| {
                let local = local.map(|value| OpenGlobal::decode(layout, value)).transpose()?;
                let edit =
                    materialise::place_open_global(local.as_ref(), image, disconnected_at, &stat, is_alive)?;
                Ok((edit.map(|open| open.encode(layout)), ()))
            })
        });
        if placed.is_err() {
            // What cannot be taken back now will be with the next removal; the first error is the one to know.
            let _ = self.remove_shared(image.file(), traces);
        }
        placed
    }

    /// Places an orphan's part of the records that it shares with other opens.
    fn place_shared(&mut self, image: &OpenImage, traces: Traces) -> Result<(), PlaceError> {
        let (layout, timeout) = (self.layout, self.lock_timeout);
        let key = file_key(image.file());
        if let (Some(lease), Some(key)) = (image.lease(), image.lease_record_key()) {
            edit(&mut self.leases, &key, timeout, |local| {
                let local = local.map(|value| LeaseRecord::decode(layout, value)).transpose()?;
                Ok((materialise::place_lease(local, lease).map(|lease| lease.encode(layout)), ()))
            })?;
        }
        edit(&mut self.brlock, &key, timeout, |local| {
            let local = BrlockEntry::decode_all(layout, local.unwrap_or_default())?;
            let edit = materialise::place_byte_range_locks(&local, image, traces);
            Ok((edit.map(|locks| BrlockEntry::encode_all(layout, &locks)), ()))
        })?;
        self.edit_locking(&key, |local| Ok((materialise::place_entry(local, image, traces)?, ())))
    }

    /// Removes an orphan: its time is up, or another node has given it to its client.
    ///
    /// Touches nothing if a client has it here. Removing one that is not here is no error.
    pub fn remove(&mut self, id: DurableFileId, file: FileKey) -> Result<Removed, PlaceError> {
        let (layout, key) = (self.layout, open_global_key(id));
        let (removed, traces) = edit(&mut self.open_global, &key, self.lock_timeout, |local| {
            let local = local.map(|value| OpenGlobal::decode(layout, value)).transpose()?;
            let (edit, removed) = materialise::remove_open_global(local.as_ref(), is_alive);
            Ok((edit.map(|open| open.encode(layout)), (removed, Traces::of_record(id, local.as_ref()))))
        })?;
        if removed != Removed::Claimed {
            self.remove_shared(file, traces)?;
        }
        Ok(removed)
    }

    /// Removes an open's part of the records that it shares with other opens.
    fn remove_shared(&mut self, file: FileKey, traces: Traces) -> Result<(), PlaceError> {
        let (layout, timeout) = (self.layout, self.lock_timeout);
        let key = file_key(file);
        let unused_lease = self.edit_locking(&key, |local| {
            let removal = materialise::remove_entry(local, file, traces)?;
            Ok((removal.edit, removal.unused_lease))
        })?;
        if let Some((client_guid, lease_key)) = unused_lease {
            edit(&mut self.leases, &lease_record_key(client_guid, lease_key), timeout, |local| {
                let local = local.map(|value| LeaseRecord::decode(layout, value)).transpose()?;
                Ok((materialise::remove_lease_file(local, file).map(|lease| lease.encode(layout)), ()))
            })?;
        }
        edit(&mut self.brlock, &key, timeout, |local| {
            let local = BrlockEntry::decode_all(layout, local.unwrap_or_default())?;
            let edit = materialise::remove_byte_range_locks(&local, traces);
            Ok((edit.map(|locks| BrlockEntry::encode_all(layout, &locks)), ()))
        })
    }

    /// Edits the share modes of a file, once no living process is in the middle of changing them.
    fn edit_locking<R>(
        &mut self,
        key: &[u8],
        decide: impl Fn(Option<LockingRecord>) -> Result<(Edit<LockingRecord>, R), MaterialiseError>,
    ) -> Result<R, PlaceError> {
        let (layout, timeout) = (self.layout, self.lock_timeout);
        let deadline = Instant::now() + timeout;
        loop {
            let result = edit(&mut self.locking, key, timeout, |local| {
                let mut local = local.map(|value| LockingRecord::decode(layout, value)).transpose()?;
                if let Some(record) = &mut local {
                    record.release_dead_holders(is_alive);
                }
                let (edit, result) = decide(local)?;
                Ok((edit.map(|record| record.encode(layout)), result))
            });
            match result {
                Err(PlaceError::Materialise(MaterialiseError::Locked { .. }))
                    if Instant::now() < deadline =>
                {
                    thread::sleep(LOCKED_POLL);
                }
                result => return result,
            }
        }
    }
}

/// Reads a record, decides and writes, all under the lock of its chain.
fn edit<R>(
    file: &mut TdbFile,
    key: &[u8],
    timeout: Duration,
    decide: impl FnOnce(Option<&[u8]>) -> Result<(Edit<Vec<u8>>, R), PlaceError>,
) -> Result<R, PlaceError> {
    let mut record = file.lock_chain(key, timeout)?;
    let value = record.fetch()?;
    let (edit, result) = decide(value.as_deref())?;
    match edit {
        Edit::Keep => {}
        Edit::Store(value) => record.store(&value)?,
        Edit::Delete => record.delete()?,
    }
    Ok(result)
}

/// Whether a process of this host still runs. When in doubt, it does.
///
/// One that has ended and was not reaped yet does not run, although a signal can still be sent to it.
fn is_alive(holder: ServerId) -> bool {
    match fs::read_to_string(format!("/proc/{}/stat", holder.pid)) {
        // The state follows the name, which is in parentheses and may have some itself.
        Ok(stat) => !stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with(['Z', 'X'])),
        Err(error) => error.kind() != ErrorKind::NotFound,
    }
}

/// An open cannot be placed, removed or looked up.
#[derive(Debug, Error)]
pub enum PlaceError {
    /// It would be wrong.
    #[error(transparent)]
    Materialise(#[from] MaterialiseError),
    /// Its file cannot be vouched for.
    #[error("open {id} cannot be given back")]
    File {
        /// The open.
        id: DurableFileId,
        /// What is wrong with its file.
        source: StatError,
    },
    /// A record here does not have the layout of the smbd that was asked for its version.
    #[error("a record of the local smbd is damaged or of another version")]
    Record(#[from] RecordError),
    /// A database does not work.
    #[error("the databases of the local smbd cannot be used")]
    Database(#[from] LibtdbError),
}
