//! The databases of the local smbd, and the placing of orphans in them.
//!
//! # What must stay true
//!
//! - An orphan's own record is stored last and deleted first: whoever finds it finds all the rest.
//! - A share-mode entry with a lease is stored after the lease and deleted before it: smbd panics when it meets one
//!   without.
//! - An orphan is placed only where nobody stands in its way, and what was judged is what is there when it is placed.
//! - It is placed under the name that its file has when it is placed, which no record may say yet.
//! - Never two chain locks at once, so no order between them can be wrong; and nothing is asked of anybody under one.
//! - See [`crate::tdb`] for when the databases may be open at all.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use statedb::{ClientGuid, DurableFileId, FileKey, LeaseKey, LeaseState};
use thiserror::Error;

use crate::ctdb::store::ClusterStore;
use crate::file_stat::{FileStat, StatError};
use crate::image::OpenImage;
use crate::materialise::{self, Edit, LocksInTheWay, MaterialiseError, Present, Removed, Traces};
use crate::moved_files::MovedFiles;
pub use crate::record_store::StoreError;
use crate::record_store::{PlainStore, RecordStore, Table};
use crate::records::{
    BrlockEntry, Holder, LeaseRecord, LockingRecord, NtTime, OpenGlobal, RecordError, ServerId, file_key,
    lease_record_key, open_global_key,
};
use crate::tdb::{RawRecord, Tdb};
use crate::version::Layout;

/// How often a share-mode record that a process is changing is looked at again.
const LOCKED_POLL: Duration = Duration::from_millis(2);

/// How many orphans are gathered at a time. More would be here for longer than a cluster whose nodes all use them
/// leaves them here; fewer would wait for the other nodes more often.
const GATHERED_AT_ONCE: usize = 64;

/// The length of an open's key: [`open_global_key`].
const OPEN_GLOBAL_KEY_LEN: usize = 4;

/// Where the databases of an smbd are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// In files that only this smbd uses.
    Plain {
        /// Samba's `lock directory`.
        lock_directory: PathBuf,
    },
    /// In a CTDB cluster (`clustering = yes`).
    Clustered {
        /// Samba's `ctdbd socket`.
        socket: PathBuf,
    },
}

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
    libtdb: Tdb,
    layout: Layout,
    store: Box<dyn RecordStore>,
    /// How long any single record may be waited for.
    lock_timeout: Duration,
    /// Which of the processes that records name still ran when they were asked for.
    alive: HashMap<ServerId, bool>,
    is_known: IsKnown,
    is_protected: IsProtected,
}

/// Whether the cluster knows an open.
type IsKnown = Arc<dyn Fn(DurableFileId) -> bool + Send + Sync>;

/// Whether the cluster looks after the durable opens of the share with this path.
type IsProtected = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// The records that a file's opens share, as they were when an orphan's case was judged.
struct Shared {
    locking: Option<Vec<u8>>,
    brlock: Option<Vec<u8>>,
}

impl LocalDatabases {
    /// Opens the databases. Fails if no smbd, or in a cluster no ctdbd, has them open.
    ///
    /// No wait for a record will be longer than `lock_timeout`; in a cluster it includes the wait for the end of a
    /// recovery. Blocks, so keep it away from whatever answers the shim: smbd may hold a record's lock while it waits
    /// for that answer.
    pub fn open(
        libtdb: &Tdb,
        location: &Location,
        layout: Layout,
        lock_timeout: Duration,
    ) -> Result<Self, StoreError> {
        let store: Box<dyn RecordStore> = match location {
            Location::Plain { lock_directory } => {
                Box::new(PlainStore::open(libtdb, lock_directory, lock_timeout)?)
            }
            Location::Clustered { socket } => Box::new(ClusterStore::open(libtdb, socket, lock_timeout)?),
        };
        let (is_known, is_protected): (IsKnown, IsProtected) = (Arc::new(|_| true), Arc::new(|_| true));
        let alive = HashMap::new();
        Ok(Self { libtdb: *libtdb, layout, store, lock_timeout, alive, is_known, is_protected })
    }

    /// Says which opens there are on all nodes, and of which shares (by their paths) these are all the durable ones, so that
    /// what a recovery of CTDB has brought back of others ([`materialise::Present`]) is told from them. Without that all that
    /// are found are taken for real.
    #[must_use]
    pub fn knowing(
        self,
        is_known: impl Fn(DurableFileId) -> bool + Send + Sync + 'static,
        is_protected: impl Fn(&str) -> bool + Send + Sync + 'static,
    ) -> Self {
        Self { is_known: Arc::new(is_known), is_protected: Arc::new(is_protected), ..self }
    }

    /// The layout of their records, which the images of orphans that are placed here have too.
    #[must_use]
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The record of an open as it is now, here or in the cluster.
    pub fn open_global(&mut self, id: DurableFileId) -> Result<Option<OpenGlobal>, PlaceError> {
        let value = self.store.fetch(Table::OpenGlobal, &open_global_key(id))?;
        Ok(value.map(|value| OpenGlobal::decode(self.layout, &value)).transpose()?)
    }

    /// The durable opens whose clients are away: those that were placed, and those that smbd has disconnected itself.
    /// In a cluster only those that this node used last.
    pub fn disconnected_opens(&mut self) -> Result<Vec<OpenGlobal>, PlaceError> {
        let mut opens = Vec::new();
        for RawRecord { key, value } in self.store.records(Table::OpenGlobal)? {
            // Under longer keys some versions keep what replays of a CREATE are recognised by.
            if key.len() != OPEN_GLOBAL_KEY_LEN {
                continue;
            }
            let open = OpenGlobal::decode(self.layout, &value)?;
            if open.durable && open.holder() == Holder::Disconnected {
                opens.push(open);
            }
        }
        Ok(opens)
    }

    /// Places orphans, so that smbd can give them back to their clients. One result for each, in order.
    ///
    /// Placing one that is placed already changes nothing. What a dead process has left of one is replaced. One that
    /// fails leaves nothing behind. Once the cluster's databases cannot be used the rest are not tried. To place many takes
    /// time, and those that the cluster does not know any more when it is their turn are not placed.
    pub fn materialise(&mut self, orphans: &[Orphan<'_>]) -> Vec<Result<(), PlaceError>> {
        let mut results = Vec::with_capacity(orphans.len());
        let mut moved = MovedFiles::among(orphans.iter().map(|orphan| orphan.image));
        'all: for orphans in orphans.chunks(GATHERED_AT_ONCE) {
            let records: Vec<_> = orphans.iter().flat_map(|orphan| records_of(orphan.image)).collect();
            if let Err(error) = self.store.gather(&records) {
                results.push(Err(error.into()));
                break;
            }
            for orphan in orphans {
                let result = self.place(orphan, &mut moved);
                let is_cut_off =
                    matches!(&result, Err(PlaceError::Store(error)) if !error.is_about_one_record());
                results.push(result);
                if is_cut_off {
                    break 'all;
                }
            }
        }
        results.resize_with(orphans.len(), || Err(PlaceError::NotTried));
        if self.store.may_go_back() {
            self.lay_ghosts_of(orphans, &mut results);
        }
        results
    }

    fn place(&mut self, orphan: &Orphan<'_>, moved: &mut MovedFiles) -> Result<(), PlaceError> {
        // Who has died stays dead. Who lived may have died since.
        self.alive.retain(|_, alive| !*alive);
        let (layout, id) = (self.layout, orphan.image.durable_file_id());
        if !(self.is_known)(id) {
            return Err(PlaceError::Ended { id });
        }
        let disconnected_at = NtTime::from(orphan.disconnected_at);
        let (image, stat) =
            self.find_file(orphan.image, moved).map_err(|source| PlaceError::File { id, source })?;
        let (image, known_as) = (image.as_ref(), orphan.image.path());
        let stat = stat.to_cookie(layout, &image.cookie().stat);
        let place_own = |local: Option<&OpenGlobal>, is_alive: IsAlive<'_>| {
            materialise::place_open_global(local, image, disconnected_at, &stat, is_alive)
        };
        let local = self.open_global(id)?;
        // A conflict is looked for before anything is stored, and again when the record's lock is held. What is
        // there is left alone altogether: if smbd has given the open up for somebody, its entry must stay away. Where
        // the entry may have been lost, whoever gives the open up has it closed in the cluster before.
        let is_there = self.decide(|is_alive| place_own(local.as_ref(), is_alive))?? == Edit::Keep;
        if is_there && !self.store.may_go_back() {
            return Ok(());
        }

        let traces = self.decide(|is_alive| Traces::of_orphan(image, local.as_ref(), is_alive))?;
        let placed = self.place_shared(image, known_as, traces).and_then(|()| {
            self.edit(Table::OpenGlobal, &open_global_key(id), |local, is_alive| {
                let local = local.map(|value| OpenGlobal::decode(layout, value)).transpose()?;
                let edit = place_own(local.as_ref(), is_alive)?;
                Ok((edit.map(|open| open.encode(layout)), ()))
            })
        });
        // What cannot be taken back now will be with the next removal; the first error is the one to know.
        match &placed {
            Err(PlaceError::Contradicted { .. }) if is_there => drop(self.remove(id, image.file())),
            Err(_) if !is_there => drop(self.remove_shared(image.file(), traces)),
            _ => {}
        }
        placed
    }

    /// The metadata of an orphan's file, and the orphan under the name that the file has now.
    fn find_file<'a>(
        &self,
        image: &'a OpenImage,
        moved: &mut MovedFiles,
    ) -> Result<(Cow<'a, OpenImage>, FileStat), StatError> {
        let (path, stat) = FileStat::find(image, moved)?;
        if path == image.path() {
            return Ok((Cow::Borrowed(image), stat));
        }
        let name_hash = self.libtdb.name_hash(&image.cookie().service_path, &path);
        Ok((Cow::Owned(image.renamed(&path, name_hash)), stat))
    }

    /// Places an orphan's part of the records that it shares with other opens, if nobody stands in its way. There its
    /// file may still be `known_as` something else.
    fn place_shared(&mut self, image: &OpenImage, known_as: &str, traces: Traces) -> Result<(), PlaceError> {
        self.while_busy(|databases| {
            let judged = databases.judge(image, traces)?;
            databases.place_judged(image, known_as, traces, &judged)
        })
    }

    /// Does something with the records of a file, again while somebody has come or gone meanwhile, or is just doing so.
    fn while_busy<R>(
        &mut self,
        attempt: impl Fn(&mut Self) -> Result<R, PlaceError>,
    ) -> Result<R, PlaceError> {
        let deadline = Instant::now() + self.lock_timeout;
        loop {
            match attempt(self) {
                Err(
                    PlaceError::Changed { .. } | PlaceError::Materialise(MaterialiseError::Locked { .. }),
                ) if Instant::now() < deadline => {
                    thread::sleep(LOCKED_POLL);
                }
                result => return result,
            }
        }
    }

    /// Removes from the records of files what a recovery has brought back although it has ended. After all orphans of a file
    /// are placed: of what dead processes have left there nothing is theirs then.
    fn lay_ghosts_of(&mut self, orphans: &[Orphan<'_>], results: &mut [Result<(), PlaceError>]) {
        let placed = orphans.iter().map(|orphan| orphan.image.file()).zip(results);
        let mut files: BTreeMap<FileKey, Vec<&mut Result<(), PlaceError>>> = BTreeMap::new();
        placed.for_each(|(file, result)| files.entry(file).or_default().push(result));
        for (file, mut results) in files {
            let is_settled =
                |result: &&mut Result<(), _>| matches!(result, Ok(()) | Err(PlaceError::Ended { .. }));
            if results.iter().all(is_settled)
                && let Err(error) = self.lay_ghosts(file)
                && let Some(result) = results.first_mut()
            {
                // smbd gives it back to nobody beside a ghost. To be tried again.
                **result = Err(error);
            }
        }
    }

    /// Removes from the records of a file what is nobody's any more: entries and byte-range locks of dead processes, and of
    /// clients that are away whose opens the cluster does not know.
    pub fn lay_ghosts(&mut self, file: FileKey) -> Result<(), PlaceError> {
        let (layout, key) = (self.layout, file_key(file));
        let mut away = match self.store.fetch(Table::Locking, &key)? {
            Some(value) => clients_away(&LockingRecord::decode(layout, &value)?),
            None => Vec::new(),
        };
        let locks = self.store.fetch(Table::Brlock, &key)?.unwrap_or_default();
        away.extend(lockers_away(&BrlockEntry::decode_all(layout, &locks)?));
        let is_known = self.is_real_among(away)?;
        let unused_leases = self.while_busy(|databases| {
            databases.edit(Table::Locking, &key, |local, is_alive| {
                let local = locking_record(layout, local, is_alive)?;
                let removal = Present { is_alive, is_known: &is_known }.lay_entries(local, file)?;
                Ok((removal.edit.map(|record| record.encode(layout)), removal.unused_leases))
            })
        })?;
        self.remove_leases(file, unused_leases)?;
        self.edit_locks(&key, |local, is_alive| Present { is_alive, is_known: &is_known }.lay_locks(local))
    }

    /// Whether somebody has a file open: a living process, or a client that is away.
    pub fn is_open(&mut self, file: FileKey) -> Result<bool, PlaceError> {
        let Some(value) = self.store.fetch(Table::Locking, &file_key(file))? else { return Ok(false) };
        let record = LockingRecord::decode(self.layout, &value)?;
        let is_known = self.is_real_among(clients_away(&record))?;
        let entries = record.share_modes().map_or(&[][..], |share_modes| &share_modes.entries);
        self.decide(|is_alive| {
            entries.iter().any(|entry| match entry.server_id {
                ServerId::DISCONNECTED => is_known(DurableFileId(entry.share_file_id)),
                process => is_alive(process),
            })
        })
    }

    /// Tells the opens of clients that are away from those that have ended, which a recovery of CTDB may have brought back. Of
    /// opens that are not among `away` only those are real that the cluster knows.
    fn is_real_among(
        &mut self,
        away: Vec<DurableFileId>,
    ) -> Result<impl Fn(DurableFileId) -> bool + use<>, PlaceError> {
        let is_known = Arc::clone(&self.is_known);
        let mut others = BTreeSet::new();
        for id in away {
            if is_known(id) {
                continue;
            }
            // The cluster has not heard of the durable opens of other shares.
            let is_real = !self.store.may_go_back() || {
                let cookie = self.open_global(id)?.and_then(|open| open.backend_cookie);
                cookie.is_some_and(|cookie| !(self.is_protected)(&cookie.service_path))
            };
            if is_real {
                others.insert(id);
            }
        }
        Ok(move |id| is_known(id) || others.contains(&id))
    }

    /// Removes the byte-range locks of dead processes, and of clients that are away and whose opens have ended, in all files
    /// whose locks this node knows. smbd itself never does, and refuses oplocks, locks and reconnects beside them, also in the
    /// next file that gets the inode.
    ///
    /// A record that cannot be read or locked stays, and keeps nothing from being done with the others; it is the error then.
    /// One that trying again can help comes before one that is damaged.
    pub fn remove_locks_of_the_dead(&mut self) -> Result<(), PlaceError> {
        self.alive.retain(|_, alive| !*alive);
        let mut all = Ok(());
        for record in self.store.records(Table::Brlock)? {
            match self.remove_locks_of_the_dead_from(&record) {
                Err(error @ PlaceError::Record(_)) => all = all.and(Err(error)),
                Err(PlaceError::Store(error)) if error.is_about_one_record() => all = Err(error.into()),
                done => done?,
            }
        }
        all
    }

    fn remove_locks_of_the_dead_from(&mut self, record: &RawRecord) -> Result<(), PlaceError> {
        let locks = BrlockEntry::decode_all(self.layout, &record.value)?;
        let is_known = self.is_real_among(lockers_away(&locks))?;
        if self.decide(|is_alive| Present { is_alive, is_known: &is_known }.lay_locks(&locks))? == Edit::Keep
        {
            return Ok(());
        }
        self.edit_locks(&record.key, |local, is_alive| {
            Present { is_alive, is_known: &is_known }.lay_locks(local)
        })
    }

    /// Looks whether somebody stands in an orphan's way, or has changed its file already, and returns what was looked at.
    fn judge(&mut self, image: &OpenImage, traces: Traces) -> Result<Shared, PlaceError> {
        if image.lease().is_some_and(LeaseRecord::may_be_outdated) {
            return Err(PlaceError::Contradicted { id: image.durable_file_id() });
        }
        let (layout, key) = (self.layout, file_key(image.file()));
        let shared = Shared {
            locking: self.store.fetch(Table::Locking, &key)?,
            brlock: self.store.fetch(Table::Brlock, &key)?,
        };
        let locks = BrlockEntry::decode_all(layout, shared.brlock.as_deref().unwrap_or_default())?;
        let Some(value) = &shared.locking else { return Ok(shared) };
        let record = LockingRecord::decode(layout, value)?;
        let is_known = Arc::clone(&self.is_known);
        let (record, locks) = self.decide(|is_alive| {
            let present = Present { is_alive, is_known: &*is_known };
            (present.entries_of(&record, traces), present.locks_of(&locks))
        })?;
        let entries = record.share_modes().map_or(&[][..], |share_modes| &share_modes.entries);
        let mut leases: HashMap<(ClientGuid, LeaseKey), Option<LeaseState>> = HashMap::new();
        for (client_guid, lease_key) in entries.iter().filter_map(|entry| entry.lease()) {
            let value = self.store.fetch(Table::Leases, &lease_record_key(client_guid, lease_key))?;
            let lease = value.map(|value| LeaseRecord::decode(layout, &value)).transpose()?;
            leases.insert((client_guid, lease_key), lease.map(|lease| lease.current_state));
        }
        let is_contradicted = self.decide(|is_alive| {
            let state_of = |client, key| leases.get(&(client, key)).copied().flatten();
            materialise::stands_in_the_way(&record, image, traces, is_alive, state_of)
                || materialise::locks_in_the_way(&locks, &record, image, is_alive) != LocksInTheWay::None
        })?;
        if is_contradicted {
            return Err(PlaceError::Contradicted { id: image.durable_file_id() });
        }
        Ok(shared)
    }

    fn place_judged(
        &mut self,
        image: &OpenImage,
        known_as: &str,
        traces: Traces,
        judged: &Shared,
    ) -> Result<(), PlaceError> {
        let (layout, file) = (self.layout, image.file());
        let key = file_key(file);
        let unchanged = |local: Option<&[u8]>, judged: &Option<Vec<u8>>| {
            if local == judged.as_deref() { Ok(()) } else { Err(PlaceError::Changed { file }) }
        };
        if let (Some(lease), Some(key)) = (image.lease(), image.lease_record_key()) {
            self.edit(Table::Leases, &key, |local, _| {
                let local = local.map(|value| LeaseRecord::decode(layout, value)).transpose()?;
                Ok((materialise::place_lease(local, lease).map(|lease| lease.encode(layout)), ()))
            })?;
        }
        self.edit(Table::Brlock, &key, |local, _| {
            unchanged(local, &judged.brlock)?;
            let local = BrlockEntry::decode_all(layout, local.unwrap_or_default())?;
            let edit = materialise::place_byte_range_locks(&local, image, traces);
            Ok((edit.map(|locks| BrlockEntry::encode_all(layout, &locks)), ()))
        })?;
        self.edit(Table::Locking, &key, |local, is_alive| {
            unchanged(local, &judged.locking)?;
            let mut local = locking_record(layout, local, is_alive)?;
            local.iter_mut().for_each(|record| record.rename(known_as, image.path()));
            let edit = materialise::place_entry(local, image, traces)?;
            Ok((edit.map(|record| record.encode(layout)), ()))
        })
    }

    /// Removes an orphan: its time is up, or another node has given it to its client.
    ///
    /// Touches nothing if a client has it here. Removing one that is not here is no error.
    pub fn remove(&mut self, id: DurableFileId, file: FileKey) -> Result<Removed, PlaceError> {
        self.alive.retain(|_, alive| !*alive);
        let layout = self.layout;
        let (removed, traces) = self.edit(Table::OpenGlobal, &open_global_key(id), |local, is_alive| {
            let local = local.map(|value| OpenGlobal::decode(layout, value)).transpose()?;
            let (edit, removed) = materialise::remove_open_global(local.as_ref(), is_alive);
            let traces = Traces::of_record(id, local.as_ref());
            Ok((edit.map(|open| open.encode(layout)), (removed, traces)))
        })?;
        if removed != Removed::Claimed {
            self.remove_shared(file, traces)?;
        }
        Ok(removed)
    }

    /// Removes an open's part of the records that it shares with other opens.
    fn remove_shared(&mut self, file: FileKey, traces: Traces) -> Result<(), PlaceError> {
        let (layout, key) = (self.layout, file_key(file));
        let unused_leases = self.while_busy(|databases| {
            databases.edit(Table::Locking, &key, |local, is_alive| {
                let local = locking_record(layout, local, is_alive)?;
                let removal = materialise::remove_entry(local, file, traces)?;
                Ok((removal.edit.map(|record| record.encode(layout)), removal.unused_leases))
            })
        })?;
        self.remove_leases(file, unused_leases)?;
        self.edit_locks(&key, |local, _| materialise::remove_byte_range_locks(local, traces))
    }

    /// Changes the byte-range locks of a file.
    fn edit_locks(
        &mut self,
        key: &[u8],
        decide: impl Fn(&[BrlockEntry], IsAlive<'_>) -> Edit<Vec<BrlockEntry>>,
    ) -> Result<(), PlaceError> {
        let layout = self.layout;
        self.edit(Table::Brlock, key, |local, is_alive| {
            let local = BrlockEntry::decode_all(layout, local.unwrap_or_default())?;
            Ok((decide(&local, is_alive).map(|locks| BrlockEntry::encode_all(layout, &locks)), ()))
        })
    }

    /// Takes a file from leases that no open of it has any more.
    fn remove_leases(
        &mut self,
        file: FileKey,
        unused: BTreeSet<(ClientGuid, LeaseKey)>,
    ) -> Result<(), PlaceError> {
        let layout = self.layout;
        for (client_guid, lease_key) in unused {
            self.edit(Table::Leases, &lease_record_key(client_guid, lease_key), |local, _| {
                let local = local.map(|value| LeaseRecord::decode(layout, value)).transpose()?;
                Ok((materialise::remove_lease_file(local, file).map(|lease| lease.encode(layout)), ()))
            })?;
        }
        Ok(())
    }

    /// Reads a record, decides and writes, all under the lock of its chain.
    ///
    /// `decide` is called again, with the record as it is then, for as long as it names processes that were not asked
    /// for yet.
    fn edit<R>(
        &mut self,
        table: Table,
        key: &[u8],
        decide: impl Fn(Option<&[u8]>, IsAlive<'_>) -> Result<(Edit<Vec<u8>>, R), PlaceError>,
    ) -> Result<R, PlaceError> {
        loop {
            let mut decided = None;
            let (alive, unknown) = (&self.alive, Cell::new(None));
            self.store.edit(table, key, &mut |value| {
                let result = decide(value, &|process| look_up(alive, &unknown, process));
                if unknown.get().is_some() {
                    return Edit::Keep;
                }
                let (edit, result) = match result {
                    Ok((edit, result)) => (edit, Ok(result)),
                    Err(error) => (Edit::Keep, Err(error)),
                };
                decided = Some(result);
                edit
            })?;
            let unknown = unknown.get();
            match (decided, unknown) {
                (Some(result), _) => return result,
                (None, Some(process)) => self.ask_for(process)?,
                (None, None) => {}
            }
        }
    }

    /// Decides something by which processes live.
    fn decide<R>(&mut self, decide: impl Fn(IsAlive<'_>) -> R) -> Result<R, PlaceError> {
        loop {
            let unknown = Cell::new(None);
            let result = decide(&|process| look_up(&self.alive, &unknown, process));
            match unknown.get() {
                None => return Ok(result),
                Some(process) => self.ask_for(process)?,
            }
        }
    }

    fn ask_for(&mut self, process: ServerId) -> Result<(), PlaceError> {
        let is_alive = self.store.is_alive(process)?;
        self.alive.insert(process, is_alive);
        Ok(())
    }
}

/// The opens of a file whose clients are away.
fn clients_away(record: &LockingRecord) -> Vec<DurableFileId> {
    let entries = record.share_modes().map_or(&[][..], |share_modes| &share_modes.entries);
    let away = entries.iter().filter(|entry| entry.server_id == ServerId::DISCONNECTED);
    away.map(|entry| DurableFileId(entry.share_file_id)).collect()
}

/// The opens with byte-range locks whose clients are away.
fn lockers_away(locks: &[BrlockEntry]) -> Vec<DurableFileId> {
    let away = locks.iter().filter(|lock| lock.server_id == ServerId::DISCONNECTED);
    away.map(|lock| DurableFileId(lock.smblctx)).collect()
}

/// Answers whether a process runs.
type IsAlive<'a> = &'a dyn Fn(ServerId) -> bool;

/// What is known of a process. One that nobody has asked for lives until that is done.
fn look_up(alive: &HashMap<ServerId, bool>, unknown: &Cell<Option<ServerId>>, process: ServerId) -> bool {
    alive.get(&process).copied().unwrap_or_else(|| {
        unknown.set(Some(process));
        true
    })
}

/// The share modes of a file, without locks of processes that have died.
fn locking_record(
    layout: Layout,
    value: Option<&[u8]>,
    is_alive: IsAlive<'_>,
) -> Result<Option<LockingRecord>, RecordError> {
    let mut record = value.map(|value| LockingRecord::decode(layout, value)).transpose()?;
    if let Some(record) = &mut record {
        record.release_dead_holders(is_alive);
    }
    Ok(record)
}

/// The records that an orphan's are placed in.
fn records_of(image: &OpenImage) -> impl Iterator<Item = (Table, Vec<u8>)> {
    let (own, file) = (open_global_key(image.durable_file_id()), file_key(image.file()));
    let lease = image.lease_record_key().map(|key| (Table::Leases, key.to_vec()));
    let others = [(Table::OpenGlobal, own.to_vec()), (Table::Locking, file.to_vec())];
    others.into_iter().chain([(Table::Brlock, file.to_vec())]).chain(lease)
}

/// An open cannot be placed, removed or looked up.
#[derive(Debug, Error)]
pub enum PlaceError {
    /// It would be wrong.
    #[error(transparent)]
    Materialise(#[from] MaterialiseError),
    /// Somebody has come to its file while it was not there, and has been given what contradicts it. He stays; the open
    /// cannot be given back any more and has to be closed.
    #[error(
        "open {id} cannot be given back: its file was opened, locked or changed by somebody in a way that contradicts it"
    )]
    Contradicted {
        /// The open.
        id: DurableFileId,
    },
    /// It has ended meanwhile: closed for somebody, or its time is up.
    #[error("open {id} has ended before its records were placed")]
    Ended {
        /// The open.
        id: DurableFileId,
    },
    /// Its file is being opened and closed by others all the time.
    #[error("the opens of file {file} do not stay the same for long enough to place one among them")]
    Changed {
        /// The file.
        file: FileKey,
    },
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
    /// The databases do not work.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The cluster could not be reached for another open before.
    #[error("it was not tried, since the cluster's databases could not be used for another open")]
    NotTried,
}
