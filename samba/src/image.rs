//! Everything that a survivor needs of one durable open.
//!
//! smbd spreads an open over four records, two of which it shares with other opens of the same file. An
//! [`OpenImage`] holds the open's own part of each, so that it can be replicated, kept and materialised by
//! itself, together with any other image of the same file or without.
//!
//! # What must stay true
//!
//! - The open is durable and has a cookie; the cookie, the share-mode data and the lease speak of one file.
//! - There is a lease if and only if the share-mode entry says so.
//! - Every byte-range lock is the open's own.
//! - `decode(encode(image)) = image`.
//!
//! # Layouts
//!
//! An image has the layout of the smbd that it was captured from, and its records are updated by values of that layout.
//! While the nodes of a cluster are upgraded one after the other their layouts differ: then an image is
//! [turned](OpenImage::in_layout) into the layout of the node that is to give it back. What only the older or only the
//! newer smbd notes down is left out, or worked out from the rest.
//!
//! # What cannot be known
//!
//! smbd keeps these in its memory only: before 4.25 the CreateOptions, so an open that was made with
//! FILE_DELETE_ON_CLOSE looks like any other until it is marked for deletion; a break of an oplock that is
//! under way (that of a lease is in its record); the position and the lock sequence array since the last store of
//! the open's own record.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use frame::{Database, RecordKey};
use statedb::{
    AppInstance, AppInstanceVersion, ClientGuid, CreateAction, CreateGuid, CreateOptions, Durability,
    DurableFileId, FileKey, Lease, LeaseEpoch, LeaseKey, LeaseState, LeaseVersion, OpenDescription, Oplock,
    OplockState, ShareName, Sid,
};
use thiserror::Error;

use crate::records::{
    BrlockEntry, DeleteTokens, DurableCookie, Holder, LeaseRecord, LockingRecord, NtTime, OpenGlobal,
    RecordError, ShareModeData, ShareModeEntry, ShareModes, file_key, lease_record_key,
};
use crate::version::Layout;

/// What a client says that names no version of its application instance.
const NO_VERSION: AppInstanceVersion = AppInstanceVersion { high: 0, low: 0 };

/// The CreateAction of an open of a file that was there (MS-SMB2 2.2.14), and of every reconnect.
const FILE_OPENED: u32 = 1;

/// FILE_DELETE_ON_CLOSE among the CreateOptions (MS-SMB2 2.2.13).
const FILE_DELETE_ON_CLOSE: u32 = 0x1000;

/// How much younger than the open a file may be that the open has made, whatever its times say: a client can set them.
const MADE_BY_THE_OPEN_WITHIN: Duration = Duration::from_secs(1);

/// The version of the form in which images are stored.
const FORMAT_VERSION: u16 = 1;

/// One durable open, self-contained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenImage {
    layout: Layout,
    open_global: OpenGlobal,
    entry: ShareModeEntry,
    data: ShareModeData,
    lease: Option<LeaseRecord>,
    byte_range_locks: Vec<BrlockEntry>,
}

/// An image, or what is still wanted for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Capture {
    /// All is known.
    Complete(Box<OpenImage>),
    /// These records decide the rest. Ask for them, add the answers and capture again; the second time
    /// the lease may be wanted, the third time nothing is.
    Need(Vec<RecordKey>),
}

/// What a stored record means for an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing that a survivor would have to know.
    Same,
    /// The image has been brought up to date and has to be replicated.
    Changed,
    /// The record does not have the open any more; the image is left as it was.
    Gone,
}

impl OpenImage {
    /// Captures a durable open from the value that smbd is about to store for it.
    ///
    /// `records` are the other records as they are stored on the same node at that moment, `None` for one
    /// that does not exist.
    pub fn capture(
        layout: Layout,
        open_global: &[u8],
        records: &BTreeMap<RecordKey, Option<Vec<u8>>>,
    ) -> Result<Capture, ImageError> {
        let open_global = OpenGlobal::decode(layout, open_global)?;
        let id = open_global.open_persistent_id;
        let cookie = durable_cookie(&open_global)?;
        let file = cookie.file;

        let locking_key = RecordKey { database: Database::Locking, key: file_key(file).to_vec() };
        let brlock_key = RecordKey { database: Database::Brlock, key: file_key(file).to_vec() };
        let (Some(locking), Some(brlock)) = (records.get(&locking_key), records.get(&brlock_key)) else {
            let unknown = |key: &RecordKey| !records.contains_key(key);
            return Ok(Capture::Need([locking_key, brlock_key].into_iter().filter(unknown).collect()));
        };

        let locking = LockingRecord::decode(layout, locking.as_deref().unwrap_or_default())?;
        let share_modes = locking.share_modes().ok_or(ImageError::NoShareModeEntry { id, file })?;
        let entry = own_entry(share_modes, &open_global)?.ok_or(ImageError::NoShareModeEntry { id, file })?;
        let data = share_modes.data.clone().ok_or(ImageError::NoShareModeData { id, file })?;

        let lease = match entry.lease() {
            None => None,
            Some((client_guid, lease_key)) => {
                let key = lease_record_key(client_guid, lease_key).to_vec();
                let key = RecordKey { database: Database::Leases, key };
                match records.get(&key) {
                    None => return Ok(Capture::Need(vec![key])),
                    Some(None) => return Err(ImageError::NoLease { id, client_guid, lease_key }),
                    Some(Some(value)) => Some(LeaseRecord::decode(layout, value)?),
                }
            }
        };

        let locks = BrlockEntry::decode_all(layout, brlock.as_deref().unwrap_or_default())?;
        let byte_range_locks = locks.into_iter().filter(|lock| lock.smblctx == id.0).collect();
        let entry = entry.clone();
        let image = Self { layout, open_global, entry, data, lease, byte_range_locks };
        Ok(Capture::Complete(Box::new(image.checked()?)))
    }

    /// Checks what must stay true.
    fn checked(self) -> Result<Self, ImageError> {
        let id = self.open_global.open_persistent_id;
        let cookie = durable_cookie(&self.open_global)?;
        if self.data.file != cookie.file {
            return Err(ImageError::TwoFiles { id, cookie: cookie.file, other: self.data.file });
        }
        oplock_level(&self.entry)?;
        if let (Some((client_guid, lease_key)), None) = (self.entry.lease(), &self.lease) {
            return Err(ImageError::NoLease { id, client_guid, lease_key });
        }
        if let (None, Some(_)) = (self.entry.lease(), &self.lease) {
            return Err(ImageError::LeaseWithoutEntry { id });
        }
        if let Some(foreign) = self.byte_range_locks.iter().find(|lock| lock.smblctx != id.0) {
            return Err(ImageError::ForeignLock { id, other: DurableFileId(foreign.smblctx) });
        }
        Ok(self)
    }

    /// Brings the image up to date with a new value of the open's own record.
    pub fn update_open_global(&mut self, value: &[u8]) -> Result<Change, ImageError> {
        let mut open_global = OpenGlobal::decode(self.layout, value)?;
        if !open_global.durable {
            return Ok(Change::Gone);
        }
        // smbd notes the position when it loses the client; until then the one that is known here is the newer one.
        if let (Holder::Process(_), Some(cookie)) = (open_global.holder(), &mut open_global.backend_cookie) {
            cookie.position = self.cookie().position;
        }
        // Every store counts the sequence number up; that alone is no change.
        let seqnum_aside = OpenGlobal { seqnum: self.open_global.seqnum, ..open_global.clone() };
        if seqnum_aside == self.open_global {
            return Ok(Change::Same);
        }
        self.replace(Self { open_global, ..self.clone() })
    }

    /// Brings the image up to date with a new value of the file's share modes; `None` when the record is deleted.
    ///
    /// Who watches the record, who holds its lock and other opens of the file make no difference.
    pub fn update_locking(&mut self, value: Option<&[u8]>) -> Result<Change, ImageError> {
        let locking = LockingRecord::decode(self.layout, value.unwrap_or_default())?;
        let Some(share_modes) = locking.share_modes() else {
            return Ok(Change::Gone);
        };
        let Some(entry) = own_entry(share_modes, &self.open_global)? else {
            return Ok(Change::Gone);
        };
        // In the middle of a CREATE by somebody else the data may be away for the length of two stores.
        let data = share_modes.data.as_ref().unwrap_or(&self.data);
        let noise_aside = ShareModeData {
            unique_content_epoch: self.data.unique_content_epoch,
            flags: self.data.flags,
            ..data.clone()
        };
        if *entry == self.entry && noise_aside == self.data {
            return Ok(Change::Same);
        }
        let entry = entry.clone();
        // A lease that was broken to nothing is not in the entry any more.
        let lease = if entry.lease().is_some() { self.lease.clone() } else { None };
        self.replace(Self { entry, data: data.clone(), lease, ..self.clone() })
    }

    /// Keeps the open to the name under which it has been `known_as` so far, if what the share modes say is of another name.
    /// `name_hash` is smbd's hash of a path below another.
    ///
    /// A file that has two names has one record, with the name by which it was opened first. And so, for a moment, has a
    /// new file with the one whose inode it has got: smbd unlinks a file before it takes its open from the share modes,
    /// and leaves its name, its marks and its times there.
    pub fn keep_to_name(&mut self, known_as: &str, name_hash: impl Fn(&str, &str) -> u32) {
        let (data, service_path) = (&self.data, &self.cookie().service_path);
        let is_own = |name: &str| name == known_as || name_hash(service_path, name) == self.entry.name_hash;
        if data.stream_name.is_some() || data.base_name.as_deref().is_none_or(is_own) {
            return;
        }
        let is_marked = data.delete_tokens.marks.iter().any(|mark| mark.name_hash == self.entry.name_hash);
        self.data = ShareModeData {
            base_name: Some(known_as.to_owned()),
            delete_tokens: if is_marked { data.delete_tokens.clone() } else { DeleteTokens::default() },
            old_write_time: NtTime::from(self.cookie().stat.mtime),
            changed_write_time: NtTime::default(),
            ..data.clone()
        };
    }

    /// Whether the open has given up its oplock or lease since `before`, nothing else has happened to it, and nobody else has
    /// the file open. `locking` is the value of the file's share modes that this image was brought up to date with.
    pub fn has_only_let_go_since(&self, before: &Self, locking: &[u8]) -> Result<bool, ImageError> {
        let as_before = Self {
            entry: ShareModeEntry { op_type: before.entry.op_type, ..self.entry.clone() },
            data: ShareModeData {
                unique_content_epoch: before.data.unique_content_epoch,
                flags: before.data.flags,
                ..self.data.clone()
            },
            lease: before.lease.clone(),
            ..self.clone()
        };
        if self.entry.op_type != ShareModeEntry::NO_OPLOCK || as_before != *before {
            return Ok(false);
        }
        let locking = LockingRecord::decode(self.layout, locking)?;
        Ok(locking.share_modes().is_some_and(|share_modes| share_modes.entries.len() == 1))
    }

    /// Brings the image up to date with a new value of its lease; `None` when the record is deleted. A lease with
    /// another key is none of its business.
    pub fn update_lease(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<Change, ImageError> {
        if self.lease_record_key().is_none_or(|own| own != key) {
            return Ok(Change::Same);
        }
        let Some(value) = value else {
            return Ok(Change::Gone);
        };
        let lease = LeaseRecord::decode(self.layout, value)?;
        if self.lease.as_ref() == Some(&lease) {
            return Ok(Change::Same);
        }
        self.replace(Self { lease: Some(lease), ..self.clone() })
    }

    /// Brings the image up to date with a position that its client has set, in bytes.
    pub fn set_position(&mut self, position: u64) -> Result<Change, ImageError> {
        let mut image = self.clone();
        match &mut image.open_global.backend_cookie {
            Some(cookie) if cookie.position != position => cookie.position = position,
            _ => return Ok(Change::Same),
        }
        self.replace(image)
    }

    /// Brings the image up to date with what its lease will be when its holder is told to break it to that.
    pub fn break_lease(&mut self, break_to: LeaseState) -> Result<Change, ImageError> {
        let Some(lease) = &self.lease else { return Ok(Change::Same) };
        let broken = lease.broken_to(break_to);
        if broken == *lease {
            return Ok(Change::Same);
        }
        self.replace(Self { lease: Some(broken), ..self.clone() })
    }

    /// Brings the image up to date with a new value of the file's byte-range locks; `None` when the record is
    /// deleted. Never [`Change::Gone`]: an open without locks is an open.
    pub fn update_brlock(&mut self, value: Option<&[u8]>) -> Result<Change, ImageError> {
        let locks = BrlockEntry::decode_all(self.layout, value.unwrap_or_default())?;
        let id = self.open_global.open_persistent_id;
        let byte_range_locks: Vec<_> = locks.into_iter().filter(|lock| lock.smblctx == id.0).collect();
        if byte_range_locks == self.byte_range_locks {
            return Ok(Change::Same);
        }
        self.replace(Self { byte_range_locks, ..self.clone() })
    }

    fn replace(&mut self, image: Self) -> Result<Change, ImageError> {
        *self = image.checked()?;
        Ok(Change::Changed)
    }

    /// The same open with the records that an smbd of another layout would have of it.
    ///
    /// Refused for a file that is marked for deletion, because nobody here understands the security tokens of those who
    /// have marked it, and for a persistent handle where the layout has none.
    pub fn in_layout(&self, layout: Layout) -> Result<Self, ImageError> {
        if layout == self.layout {
            return Ok(self.clone());
        }
        let id = self.durable_file_id();
        let refused = |what| ImageError::NotInLayout { id, what, from: self.layout, to: layout };
        if !self.data.delete_tokens.marks.is_empty() {
            return Err(refused("a mark for deletion"));
        }
        if self.open_global.persistent && !layout.has_version_1() {
            return Err(refused("a persistent handle"));
        }
        let mut image = Self { layout, ..self.clone() };
        if !self.layout.has_version_1() {
            image.open_global.create_action = FILE_OPENED;
            image.open_global.file = self.file();
            image.open_global.name_hash = self.entry.name_hash;
        } else if !layout.has_version_1() {
            image.data.old_write_time = NtTime::from(self.cookie().stat.mtime);
        }
        // What the layout does not have is left out on the way.
        Self::decode(&image.encode())
    }

    /// The same open of the same file, which has another path below the share's root by now. `name_hash` is smbd's hash
    /// of it.
    #[must_use]
    pub fn renamed(&self, path: &str, name_hash: u32) -> Self {
        let mut image = self.clone();
        image.entry.name_hash = name_hash;
        image.data.base_name = Some(path.to_owned());
        if let Some(cookie) = &mut image.open_global.backend_cookie {
            path.clone_into(&mut cookie.base_name);
        }
        if image.open_global.name_hash != 0 {
            image.open_global.name_hash = name_hash;
        }
        let file = image.file();
        let files = image.lease.iter_mut().flat_map(|lease| &mut lease.files);
        for renamed in files.filter(|of_lease| of_lease.file == file) {
            renamed.base_name = Some(path.to_owned());
        }
        image
    }

    /// The image that [`OpenImage::encode`] has made these bytes of, [in the layout](Self::in_layout) of the smbd here.
    pub fn decode_for(layout: Layout, bytes: &[u8]) -> Result<Self, ImageError> {
        Self::decode(bytes)?.in_layout(layout)
    }

    /// The layout that its records have.
    #[must_use]
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The open's own record.
    #[must_use]
    pub fn open_global(&self) -> &OpenGlobal {
        &self.open_global
    }

    /// The open's entry among the share modes of its file.
    #[must_use]
    pub fn entry(&self) -> &ShareModeEntry {
        &self.entry
    }

    /// What it has in common with other opens of its file.
    #[must_use]
    pub fn data(&self) -> &ShareModeData {
        &self.data
    }

    /// Its lease.
    #[must_use]
    pub fn lease(&self) -> Option<&LeaseRecord> {
        self.lease.as_ref()
    }

    /// Its byte-range locks.
    #[must_use]
    pub fn byte_range_locks(&self) -> &[BrlockEntry] {
        &self.byte_range_locks
    }

    /// What the VFS wants back at the reclaim.
    #[must_use]
    pub fn cookie(&self) -> &DurableCookie {
        self.open_global.backend_cookie.as_ref().expect("checked when the image was made")
    }

    /// The persistent half of its FileId.
    #[must_use]
    pub fn durable_file_id(&self) -> DurableFileId {
        self.open_global.open_persistent_id
    }

    /// Its file.
    #[must_use]
    pub fn file(&self) -> FileKey {
        self.data.file
    }

    /// Who holds it.
    #[must_use]
    pub fn holder(&self) -> Holder {
        self.open_global.holder()
    }

    /// The key of its lease's record.
    #[must_use]
    pub fn lease_record_key(&self) -> Option<[u8; 32]> {
        self.entry.lease().map(|(client_guid, lease_key)| lease_record_key(client_guid, lease_key))
    }

    /// Its path below the share's root. A rename is known here before the open's own record is stored again.
    #[must_use]
    pub fn path(&self) -> &str {
        self.data.base_name.as_deref().unwrap_or(&self.cookie().base_name)
    }

    /// Whether the file that it has open can be one that was made at `made_at`. Another file may have got the inode of one
    /// that was deleted; it is younger than the open.
    ///
    /// A CREATE makes the file after it has made the open, and may be held up in between, under CTDB for as long as a recovery
    /// takes. The times of the file that it has read at its end are not older than the file.
    #[must_use]
    pub fn can_be_of_file_made_at(&self, made_at: SystemTime) -> bool {
        let stat = &self.cookie().stat;
        let was_there_at = [stat.atime, stat.mtime, stat.ctime].map(NtTime::from);
        let with_the_open = made_at.checked_sub(MADE_BY_THE_OPEN_WITHIN).map(NtTime::from);
        with_the_open.is_some_and(|made_at| made_at <= self.open_global.open_time)
            || was_there_at.iter().any(|was_there_at| NtTime::from(made_at) <= *was_there_at)
    }

    /// The facts that the cluster replicates. `share` is the share whose path is the cookie's service path,
    /// which only the configuration knows.
    #[must_use]
    pub fn describe(&self, share: ShareName) -> OpenDescription {
        let open = &self.open_global;
        let marked = |mark: &crate::records::DeleteMark| mark.name_hash == self.entry.name_hash;
        let breaking = self.lease.as_ref().is_some_and(|lease| lease.breaking);
        OpenDescription {
            durable_file_id: open.open_persistent_id,
            create_guid: open.create_guid,
            client_guid: open.client_guid,
            app_instance: (open.app_instance_id != [0; 16]).then_some(AppInstance {
                id: open.app_instance_id,
                version: (open.app_instance_version != NO_VERSION).then_some(open.app_instance_version),
            }),
            durable_owner: Sid(open.open_owner.to_string().into()),
            share,
            path: self.path().into(),
            file: self.file(),
            // smbd makes no open of a directory durable, and this Samba knows no leases on directories.
            is_directory: false,
            parent_directory: None,
            granted_access: self.entry.access_mask,
            share_access: self.entry.share_access,
            create_options: CreateOptions(if self.cookie().initial_delete_on_close {
                FILE_DELETE_ON_CLOSE
            } else {
                0
            }),
            create_action: self.create_action(),
            // smbd answers replays from its own memory.
            is_replay_eligible: false,
            oplock: self.oplock(),
            oplock_state: if breaking { OplockState::Breaking } else { OplockState::Held },
            durability: if open.persistent {
                Durability::Persistent
            } else if open.create_guid == CreateGuid::default() {
                Durability::DurableV1
            } else {
                Durability::DurableV2
            },
            durable_open_timeout: open.durable_timeout,
            byte_range_locks: self.byte_range_locks.iter().map(BrlockEntry::range).collect(),
            lock_sequence_array: open.lock_sequence_array.to_vec(),
            delete_on_close: self.data.delete_tokens.marks.iter().any(marked),
            position: self.cookie().position,
            allocation_size: self.cookie().initial_allocation_size,
            image: Arc::from(self.encode()),
        }
    }

    fn create_action(&self) -> CreateAction {
        match self.open_global.create_action {
            0 if self.layout.has_version_1() => CreateAction::Superseded,
            2 => CreateAction::Created,
            3 => CreateAction::Overwritten,
            _ => CreateAction::Opened,
        }
    }

    /// What it may cache.
    pub(crate) fn caching(&self) -> LeaseState {
        self.oplock().caching()
    }

    fn oplock(&self) -> Oplock {
        match &self.lease {
            Some(lease) => {
                // smbd counts the epoch of a v1 lease too, but no client ever hears of it.
                let (version, epoch) = match lease.lease_version {
                    0 | 1 => (LeaseVersion::V1, LeaseEpoch::default()),
                    _ => (LeaseVersion::V2, lease.epoch),
                };
                Oplock::Lease(Lease {
                    key: self.entry.lease_key,
                    state: lease.current_state,
                    epoch,
                    version,
                    parent: None,
                })
            }
            None => oplock_level(&self.entry).unwrap_or(Oplock::None),
        }
    }

    /// The image as bytes: format version, layout, then the value of each record behind its length.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let share_modes = ShareModes { data: Some(self.data.clone()), entries: vec![self.entry.clone()] };
        let sections = [
            self.open_global.encode(self.layout),
            share_modes.encode(self.layout),
            self.lease.as_ref().map(|lease| lease.encode(self.layout)).unwrap_or_default(),
            BrlockEntry::encode_all(self.layout, &self.byte_range_locks),
        ];
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes.extend_from_slice(&self.layout.number().to_le_bytes());
        for section in sections {
            let length = u32::try_from(section.len()).expect("a tdb record is smaller than 4 GiB");
            bytes.extend_from_slice(&length.to_le_bytes());
            bytes.extend_from_slice(&section);
        }
        bytes
    }

    /// The image that [`OpenImage::encode`] has made these bytes of.
    pub fn decode(bytes: &[u8]) -> Result<Self, ImageError> {
        let mut rest = bytes;
        let version = take_u16(&mut rest, "format version")?;
        if version != FORMAT_VERSION {
            return Err(ImageError::FormatVersion { version });
        }
        let number = take_u16(&mut rest, "layout")?;
        let layout = Layout::from_number(number).ok_or(ImageError::UnknownLayout { number })?;
        let open_global = OpenGlobal::decode(layout, take_section(&mut rest, "open_global")?)?;
        let share_modes = ShareModes::decode(layout, take_section(&mut rest, "share modes")?)?;
        let lease = take_section(&mut rest, "lease")?;
        let lease = if lease.is_empty() { None } else { Some(LeaseRecord::decode(layout, lease)?) };
        let byte_range_locks = BrlockEntry::decode_all(layout, take_section(&mut rest, "byte-range locks")?)?;
        if !rest.is_empty() {
            return Err(ImageError::Trailing { left: rest.len() });
        }

        let id = open_global.open_persistent_id;
        let file = durable_cookie(&open_global)?.file;
        let mut entries = share_modes.entries.into_iter();
        let (Some(entry), None) = (entries.next(), entries.next()) else {
            return Err(ImageError::NoShareModeEntry { id, file });
        };
        let data = share_modes.data.ok_or(ImageError::NoShareModeData { id, file })?;
        Self { layout, open_global, entry, data, lease, byte_range_locks }.checked()
    }
}

fn durable_cookie(open_global: &OpenGlobal) -> Result<&DurableCookie, ImageError> {
    match &open_global.backend_cookie {
        Some(cookie) if open_global.durable => Ok(cookie),
        _ => Err(ImageError::NotDurable { id: open_global.open_persistent_id }),
    }
}

/// The entry of an open among the share modes of its file.
///
/// Nothing in the open's record names its entry while it is connected, so it is recognised by the process and
/// the moment of its making, which both records have to the microsecond.
fn own_entry<'a>(
    share_modes: &'a ShareModes,
    open_global: &OpenGlobal,
) -> Result<Option<&'a ShareModeEntry>, ImageError> {
    let id = open_global.open_persistent_id;
    let made_at = open_global.open_time.to_unix_micros();
    let mut own = share_modes.entries.iter().filter(|entry| {
        entry.is_disconnected(id) || (entry.server_id == open_global.server_id && entry.time == made_at)
    });
    let found = own.next();
    match own.next() {
        None => Ok(found),
        Some(_) => Err(ImageError::TwoShareModeEntries { id, file_opens: share_modes.entries.len() }),
    }
}

fn oplock_level(entry: &ShareModeEntry) -> Result<Oplock, ImageError> {
    match entry.op_type {
        // What the lease allows is in the lease's record.
        ShareModeEntry::NO_OPLOCK | ShareModeEntry::LEASE_OPLOCK => Ok(Oplock::None),
        ShareModeEntry::EXCLUSIVE_OPLOCK => Ok(Oplock::Exclusive),
        ShareModeEntry::BATCH_OPLOCK => Ok(Oplock::Batch),
        ShareModeEntry::LEVEL_II_OPLOCK => Ok(Oplock::LevelII),
        op_type => Err(ImageError::UnknownOplock { op_type }),
    }
}

fn take<'a>(rest: &mut &'a [u8], what: &'static str, length: usize) -> Result<&'a [u8], ImageError> {
    let (taken, left) = rest.split_at_checked(length).ok_or(ImageError::Truncated {
        what,
        wanted: length,
        left: rest.len(),
    })?;
    *rest = left;
    Ok(taken)
}

fn take_u16(rest: &mut &[u8], what: &'static str) -> Result<u16, ImageError> {
    take(rest, what, size_of::<u16>()).map(|bytes| u16::from_le_bytes([bytes[0], bytes[1]]))
}

fn take_section<'a>(rest: &mut &'a [u8], what: &'static str) -> Result<&'a [u8], ImageError> {
    let length = take(rest, what, size_of::<u32>())?;
    let length = u32::from_le_bytes([length[0], length[1], length[2], length[3]]);
    take(rest, what, usize::try_from(length).unwrap_or(usize::MAX))
}

/// An open cannot be captured, or an image cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ImageError {
    /// A record does not have its layout.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The open is not durable, or the VFS gave no cookie for it.
    #[error("open {id} is not durable")]
    NotDurable {
        /// The open.
        id: DurableFileId,
    },
    /// The share modes of its file do not have the open.
    #[error("open {id} has no entry among the share modes of file {file}")]
    NoShareModeEntry {
        /// The open.
        id: DurableFileId,
        /// The file.
        file: FileKey,
    },
    /// Two opens of the file cannot be told apart.
    #[error("open {id} cannot be told from another among the {file_opens} opens of its file")]
    TwoShareModeEntries {
        /// The open.
        id: DurableFileId,
        /// How many opens the file has.
        file_opens: usize,
    },
    /// The share modes of its file lack what all opens have in common.
    #[error("open {id}: the share modes of file {file} have no common data")]
    NoShareModeData {
        /// The open.
        id: DurableFileId,
        /// The file.
        file: FileKey,
    },
    /// The open has a lease that has no record.
    #[error("open {id} has lease {lease_key} of client {client_guid}, which has no record")]
    NoLease {
        /// The open.
        id: DurableFileId,
        /// The client.
        client_guid: ClientGuid,
        /// The lease.
        lease_key: LeaseKey,
    },
    /// There is a lease, and the open has none.
    #[error("the image of open {id} has a lease that its share-mode entry does not have")]
    LeaseWithoutEntry {
        /// The open.
        id: DurableFileId,
    },
    /// There is a lock of another open.
    #[error("the image of open {id} has a byte-range lock of open {other}")]
    ForeignLock {
        /// The open.
        id: DurableFileId,
        /// The other open.
        other: DurableFileId,
    },
    /// The records speak of two files.
    #[error("open {id} is of file {cookie} by its cookie, of file {other} by its share modes")]
    TwoFiles {
        /// The open.
        id: DurableFileId,
        /// The one file.
        cookie: FileKey,
        /// The other.
        other: FileKey,
    },
    /// An oplock that no client can have.
    #[error("{op_type:#x} is no oplock that a client can have")]
    UnknownOplock {
        /// Samba's number.
        op_type: u16,
    },
    /// The image was stored by another version of Holdfast.
    #[error("image format {version} is not known, {FORMAT_VERSION} is; was it stored by a newer Holdfast?")]
    FormatVersion {
        /// The version it has.
        version: u16,
    },
    /// The image has the layout of a Samba that this Holdfast does not know.
    #[error("the image has record layout {number}, which is not known; was it stored by a newer Holdfast?")]
    UnknownLayout {
        /// The layout's number.
        number: u16,
    },
    /// The open has something that an smbd of the layout wanted cannot be told.
    #[error("open {id} of Samba {from} has {what}, which cannot be turned into the records of Samba {to}")]
    NotInLayout {
        /// The open.
        id: DurableFileId,
        /// What it has.
        what: &'static str,
        /// The layout it has.
        from: Layout,
        /// The layout it should have.
        to: Layout,
    },
    /// The image ends too soon.
    #[error("the image ends within its {what}: {wanted} bytes are wanted, {left} are left")]
    Truncated {
        /// Where it ends.
        what: &'static str,
        /// How many bytes should follow.
        wanted: usize,
        /// How many do.
        left: usize,
    },
    /// The image goes on where it should end.
    #[error("{left} bytes follow the end of the image")]
    Trailing {
        /// How many.
        left: usize,
    },
}
