//! What a survivor has to store so that its smbd takes an orphaned open for one of its own whose client is away, and
//! how that is taken away again.
//!
//! Everything here is pure: from what a record is now and the images of opens to what the record must become.
//! `databases` does it under the records' locks.
//!
//! # The records of a disconnected open
//!
//! | record | what changes |
//! |---|---|
//! | open_global | nobody holds it; when it was disconnected; the cookie allows a reconnect and has fresh metadata |
//! | locking | the entry is nobody's and is numbered by the persistent id; both epochs grow |
//! | leases | nothing |
//! | brlock | the locks are nobody's and belong to no tree connect |
//!
//! That is what smbd itself writes after a clean loss of the connection, which a test holds against records of
//! a real smbd.
//!
//! # What must stay true
//!
//! - What belongs to other opens is never changed, except what all opens of a file have in common.
//! - An open that is stored already is left alone, so doing it twice is doing it once.
//! - A record of another open under the same persistent id is a conflict, never overwritten; neither is one of
//!   the same open that a living process holds. What a dead process has left of the open is replaced.
//! - While a process holds the lock of a share-mode record nobody else changes it.

mod ghosts;
mod in_the_way;

use std::collections::BTreeSet;

use statedb::{ClientGuid, DurableFileId, FileKey, LeaseKey, LeaseState};
use thiserror::Error;

use crate::image::OpenImage;
use crate::records::{
    BrlockEntry, CookieStat, DurableCookie, Holder, LeaseRecord, LockingRecord, NtTime, OpenGlobal, ServerId,
    ShareModeData, ShareModeEntry, ShareModeLock, ShareModes, UnixMicros,
};
use crate::version::Layout;

pub use ghosts::Present;
pub use in_the_way::{LocksInTheWay, locks_in_the_way, stands_in_the_way};

/// What becomes of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit<T> {
    /// It stays as it is.
    Keep,
    /// It is stored.
    Store(T),
    /// It is deleted.
    Delete,
}

impl<T> Edit<T> {
    /// The same with another form of what is stored.
    pub fn map<U>(self, form: impl FnOnce(T) -> U) -> Edit<U> {
        match self {
            Self::Keep => Edit::Keep,
            Self::Store(value) => Edit::Store(form(value)),
            Self::Delete => Edit::Delete,
        }
    }
}

impl<T> Edit<Vec<T>> {
    /// What becomes of a list of which this is left.
    fn of_removal(before: &[T], left: Vec<T>) -> Self {
        if left.len() == before.len() {
            Self::Keep
        } else if left.is_empty() {
            Self::Delete
        } else {
            Self::Store(left)
        }
    }
}

/// How an open that nobody holds is recognised in the records that it shares with others.
///
/// By its id once it is disconnected; before by the moment in which it was made, whichever dead process had it then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traces {
    id: DurableFileId,
    made_at: Option<UnixMicros>,
}

impl Traces {
    /// The traces of an open whose record here is `local`, if there is one. No living process may hold it.
    #[must_use]
    pub fn of_record(id: DurableFileId, local: Option<&OpenGlobal>) -> Self {
        Self { id, made_at: local.map(|open| open.open_time.to_unix_micros()) }
    }

    /// The traces of an orphan whose record here is `local`, if there is one. smbd deletes that record when a
    /// client asks for the open of a dead process, and leaves the rest.
    #[must_use]
    pub fn of_orphan(
        image: &OpenImage,
        local: Option<&OpenGlobal>,
        is_alive: impl Fn(ServerId) -> bool,
    ) -> Self {
        // A record that is nobody's does not say who left the rest.
        let local = local.filter(|open| open.holder() != Holder::Disconnected);
        let known = local.or(Some(image.open_global())).filter(|open| !is_alive(open.server_id));
        Self::of_record(image.durable_file_id(), known)
    }

    fn has_entry(&self, entry: &ShareModeEntry) -> bool {
        entry.is_disconnected(self.id) || self.made_at == Some(entry.time)
    }

    fn has_lock(&self, lock: &BrlockEntry) -> bool {
        lock.smblctx == self.id.0 && (lock.server_id == ServerId::DISCONNECTED || self.made_at.is_some())
    }
}

/// The open's own record on a survivor, where `local` is the record under its key now and `stat` what smbd is
/// going to find when it looks at the file.
pub fn place_open_global(
    local: Option<&OpenGlobal>,
    image: &OpenImage,
    disconnected_at: NtTime,
    stat: &CookieStat,
    is_alive: impl Fn(ServerId) -> bool,
) -> Result<Edit<OpenGlobal>, MaterialiseError> {
    let orphan = image.open_global();
    let is_same_open = |local: &OpenGlobal| {
        local.open_persistent_id == orphan.open_persistent_id
            && local.create_guid == orphan.create_guid
            && local.open_time == orphan.open_time
            && local.open_owner == orphan.open_owner
    };
    // A node of a CTDB cluster takes the newest record with it when it dies, and the recovery finds an older copy on
    // another node. Every store counts the record up.
    let is_older =
        |local: &OpenGlobal| (1..=u32::MAX / 2).contains(&orphan.seqnum.wrapping_sub(local.seqnum));
    // A process that was refused a claim writes that nobody has the open, and not what is needed to come back to it.
    let can_come_back =
        |local: &OpenGlobal| local.backend_cookie.as_ref().is_some_and(|cookie| cookie.allow_reconnect);
    match local.map(|local| (local.holder(), is_same_open(local))) {
        Some((Holder::Disconnected, true))
            if local.is_some_and(|local| is_older(local) || !can_come_back(local)) =>
        {
            Ok(Edit::Store(disconnected(image, disconnected_at, stat)))
        }
        Some((Holder::Disconnected, true)) => Ok(Edit::Keep),
        Some((Holder::Process(server_id), true)) if !is_alive(server_id) => {
            Ok(Edit::Store(disconnected(image, disconnected_at, stat)))
        }
        Some((holder, _)) => Err(MaterialiseError::Conflict { id: orphan.open_persistent_id, holder }),
        None => Ok(Edit::Store(disconnected(image, disconnected_at, stat))),
    }
}

fn disconnected(image: &OpenImage, disconnected_at: NtTime, stat: &CookieStat) -> OpenGlobal {
    OpenGlobal {
        server_id: ServerId::DISCONNECTED,
        session_global_id: 0,
        tcon_global_id: 0,
        disconnect_time: disconnected_at,
        backend_cookie: Some(DurableCookie {
            allow_reconnect: true,
            base_name: image.path().to_owned(),
            stat: stat.clone(),
            ..image.cookie().clone()
        }),
        ..image.open_global().clone()
    }
}

/// The share modes of a file on a survivor with this orphan among them.
pub fn place_entry(
    local: Option<LockingRecord>,
    image: &OpenImage,
    traces: Traces,
) -> Result<Edit<LockingRecord>, MaterialiseError> {
    let id = image.durable_file_id();
    let mut record = local.unwrap_or_default();
    let placed =
        ShareModeEntry { server_id: ServerId::DISCONNECTED, share_file_id: id.0, ..image.entry().clone() };
    if record.share_modes().is_some_and(|share_modes| share_modes.entries.contains(&placed)) {
        return Ok(Edit::Keep);
    }
    refuse_locked(&record, image.file())?;

    let lock = record.lock.get_or_insert_with(|| fresh_lock(image.data()));
    let share_modes = lock.share_modes.get_or_insert_default();
    share_modes.entries.retain(|entry| !traces.has_entry(entry));
    let before = share_modes.data.take();
    // Other processes may have this structure in their caches, under its epoch.
    let epoch = |data: &ShareModeData| data.unique_content_epoch.wrapping_add(1);
    share_modes.data = Some(match before {
        Some(data) if !share_modes.entries.is_empty() => ShareModeData {
            unique_content_epoch: epoch(&data),
            flags: both(data.flags, flags_of(image)),
            ..data
        },
        // What is left of the orphan itself may be older than its image: it may have another name by now.
        Some(data) => ShareModeData {
            unique_content_epoch: epoch(&data),
            flags: flags_of(image),
            ..image.data().clone()
        },
        None => ShareModeData { flags: flags_of(image), ..image.data().clone() },
    });
    share_modes.entries.push(placed);
    share_modes.sort();
    touch(lock);
    Ok(Edit::Store(record))
}

/// Both epochs grow with every change, so that who compares them sees it.
fn touch(lock: &mut ShareModeLock) {
    lock.lock_epoch = lock.lock_epoch.wrapping_add(1);
    lock.data_epoch = lock.data_epoch.wrapping_add(1);
}

/// The lock of a record that did not exist. Its epochs continue a number that was drawn at random on the node
/// that has died, which is as good as a new one.
fn fresh_lock(data: &ShareModeData) -> ShareModeLock {
    ShareModeLock {
        exclusive: ServerId::NONE,
        lock_epoch: data.unique_content_epoch,
        data_epoch: data.unique_content_epoch,
        shared: Vec::new(),
        share_modes: None,
    }
}

fn refuse_locked(record: &LockingRecord, file: FileKey) -> Result<(), MaterialiseError> {
    match record.lock_holder() {
        Some(holder) => Err(MaterialiseError::Locked { file, holder }),
        None => Ok(()),
    }
}

/// The bits that say "every open lets others…": they are combined by AND, all others by OR.
const SHARE_BITS: u16 = ShareModeData::SHARE_READ | ShareModeData::SHARE_WRITE | ShareModeData::SHARE_DELETE;

/// The flags of two sets of opens taken together.
fn both(one: u16, other: u16) -> u16 {
    (one & other & SHARE_BITS) | ((one | other) & !SHARE_BITS)
}

/// The flags of a file with this open alone.
fn flags_of(image: &OpenImage) -> u16 {
    // MS-SMB2 2.2.13.1.1 and 2.2.13, paired with Samba's summary of them.
    const FILE_READ_DATA: u32 = 0x1;
    const FILE_WRITE_DATA: u32 = 0x2;
    const FILE_APPEND_DATA: u32 = 0x4;
    const FILE_EXECUTE: u32 = 0x20;
    const DELETE: u32 = 0x1_0000;
    const FILE_SHARE_READ: u32 = 0x1;
    const FILE_SHARE_WRITE: u32 = 0x2;
    const FILE_SHARE_DELETE: u32 = 0x4;

    let entry = image.entry();
    let summed_up = match image.layout() {
        // It looks at reads only, so it adds no other bit when it grants something.
        Layout::V4_17 => LeaseState::READ,
        Layout::V4_22 | Layout::V4_25 => LeaseState::READ | LeaseState::WRITE | LeaseState::HANDLE,
    };
    let caching = image.caching().0 & summed_up;
    let summary = [
        (entry.access_mask.0, FILE_READ_DATA | FILE_EXECUTE, ShareModeData::ACCESS_READ),
        (entry.access_mask.0, FILE_WRITE_DATA | FILE_APPEND_DATA, ShareModeData::ACCESS_WRITE),
        (entry.access_mask.0, DELETE, ShareModeData::ACCESS_DELETE),
        (entry.share_access.0, FILE_SHARE_READ, ShareModeData::SHARE_READ),
        (entry.share_access.0, FILE_SHARE_WRITE, ShareModeData::SHARE_WRITE),
        (entry.share_access.0, FILE_SHARE_DELETE, ShareModeData::SHARE_DELETE),
        (caching, LeaseState::READ, ShareModeData::LEASE_READ),
        (caching, LeaseState::WRITE, ShareModeData::LEASE_WRITE),
        (caching, LeaseState::HANDLE, ShareModeData::LEASE_HANDLE),
    ];
    let set = summary.into_iter().filter(|(bits, mask, _)| bits & mask != 0);
    set.fold(0, |flags, (_, _, flag)| flags | flag)
}

/// A lease on a survivor. What is there already is right, unless it is older: the lease was placed with another open, and
/// may have been broken or upgraded since. Then only the file is added, if it is missing.
#[must_use]
pub fn place_lease(local: Option<LeaseRecord>, orphan: &LeaseRecord) -> Edit<LeaseRecord> {
    let Some(mut lease) = local else {
        return Edit::Store(orphan.clone());
    };
    let known = lease.files.len();
    let is_older = lease.is_older_than(orphan);
    if is_older {
        lease = LeaseRecord { files: lease.files, ..orphan.clone() };
    }
    for file in &orphan.files {
        if lease.files.iter().all(|local| local.file != file.file) {
            lease.files.push(file.clone());
        }
    }
    if lease.files.len() == known && !is_older { Edit::Keep } else { Edit::Store(lease) }
}

/// The byte-range locks of a file on a survivor with those of this orphan among them.
#[must_use]
pub fn place_byte_range_locks(
    local: &[BrlockEntry],
    image: &OpenImage,
    traces: Traces,
) -> Edit<Vec<BrlockEntry>> {
    let orphaned = image.byte_range_locks().iter().map(|lock| BrlockEntry {
        tid: 0,
        server_id: ServerId::DISCONNECTED,
        fnum: 0,
        ..*lock
    });
    let others = local.iter().copied().filter(|lock| !traces.has_lock(lock));
    let locks: Vec<_> = others.chain(orphaned).collect();
    if locks.len() == local.len() && locks.iter().all(|lock| local.contains(lock)) {
        Edit::Keep
    } else {
        Edit::Store(locks)
    }
}

/// What was found of an open that is to be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removed {
    /// Nobody held it, and it is gone.
    Removed,
    /// There was no record of it.
    Absent,
    /// A client has it here. Nothing was touched.
    Claimed,
}

/// What becomes of the open's own record when the open is removed.
#[must_use]
pub fn remove_open_global(
    local: Option<&OpenGlobal>,
    is_alive: impl Fn(ServerId) -> bool,
) -> (Edit<OpenGlobal>, Removed) {
    match local.map(OpenGlobal::holder) {
        None => (Edit::Keep, Removed::Absent),
        Some(Holder::Process(server_id)) if is_alive(server_id) => (Edit::Keep, Removed::Claimed),
        Some(Holder::Process(_) | Holder::Disconnected) => (Edit::Delete, Removed::Removed),
    }
}

/// What becomes of the share modes of a file when an open is removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryRemoval {
    /// What becomes of the record.
    pub edit: Edit<LockingRecord>,
    /// Leases that no open of the file has any more.
    pub unused_leases: BTreeSet<(ClientGuid, LeaseKey)>,
}

/// The share modes of a file without an open that nobody holds.
pub fn remove_entry(
    local: Option<LockingRecord>,
    file: FileKey,
    traces: Traces,
) -> Result<EntryRemoval, MaterialiseError> {
    remove_entries(local, file, |entry| traces.has_entry(entry))
}

fn remove_entries(
    local: Option<LockingRecord>,
    file: FileKey,
    is_removed: impl Fn(&ShareModeEntry) -> bool,
) -> Result<EntryRemoval, MaterialiseError> {
    let mut record = local.unwrap_or_default();
    let has_one = |modes: &ShareModes| modes.entries.iter().any(&is_removed);
    if !record.share_modes().is_some_and(has_one) {
        return Ok(EntryRemoval { edit: Edit::Keep, unused_leases: BTreeSet::new() });
    }
    refuse_locked(&record, file)?;

    let mut unused_leases = BTreeSet::new();
    if let Some(lock) = &mut record.lock {
        if let Some(share_modes) = &mut lock.share_modes {
            let removed = share_modes.entries.extract_if(.., |entry| is_removed(entry));
            unused_leases = removed.filter_map(|entry| entry.lease()).collect();
            for used in share_modes.entries.iter().filter_map(ShareModeEntry::lease) {
                unused_leases.remove(&used);
            }
            if share_modes.entries.is_empty() {
                lock.share_modes = None;
            }
        }
        touch(lock);
    }
    let is_needed = record.share_modes().is_some() || !record.watchers.is_empty();
    let edit = if is_needed { Edit::Store(record) } else { Edit::Delete };
    Ok(EntryRemoval { edit, unused_leases })
}

/// A lease without a file on which no open has it any more.
#[must_use]
pub fn remove_lease_file(local: Option<LeaseRecord>, file: FileKey) -> Edit<LeaseRecord> {
    let Some(mut lease) = local else {
        return Edit::Keep;
    };
    let known = lease.files.len();
    lease.files.retain(|local| local.file != file);
    if lease.files.is_empty() {
        Edit::Delete
    } else if lease.files.len() == known {
        Edit::Keep
    } else {
        Edit::Store(lease)
    }
}

/// The byte-range locks of a file without those of an open that nobody holds.
#[must_use]
pub fn remove_byte_range_locks(local: &[BrlockEntry], traces: Traces) -> Edit<Vec<BrlockEntry>> {
    Edit::of_removal(local, local.iter().copied().filter(|lock| !traces.has_lock(lock)).collect())
}

/// An orphan cannot be placed or removed, or not now.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MaterialiseError {
    /// Another open has the same persistent id here, or a living process still has this one.
    #[error(
        "open {id} cannot be stored: there is an open under the same persistent id here (holder: {holder}); \
         is the shim loaded into smbd on every node?"
    )]
    Conflict {
        /// The persistent id.
        id: DurableFileId,
        /// Who has it.
        holder: Holder,
    },
    /// A process is in the middle of changing the share modes. Try again.
    #[error("process {holder} is changing the share modes of file {file}")]
    Locked {
        /// The file.
        file: FileKey,
        /// The process.
        holder: ServerId,
    },
}
