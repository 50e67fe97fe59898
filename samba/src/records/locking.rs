//! Who has a file open and how, as `locking.tdb` has it.

use statedb::{AccessMask, ClientGuid, CreateGuid, DurableFileId, FileKey, LeaseKey, ShareAccess};

use super::codec;
use super::error::RecordError;
use super::identity::{NtTime, ServerId, UnixMicros};
use crate::version::Layout;

/// The length of a file id: the key of `locking.tdb` and `brlock.tdb`.
const FILE_KEY_LEN: usize = 24;

/// The key of a file's records in `locking.tdb` and `brlock.tdb`.
#[must_use]
pub fn file_key(file: FileKey) -> [u8; FILE_KEY_LEN] {
    let mut key = [0; FILE_KEY_LEN];
    for (part, number) in key.chunks_exact_mut(8).zip([file.device, file.inode, file.extid]) {
        part.copy_from_slice(&number.to_le_bytes());
    }
    key
}

/// A record of `locking.tdb`: a lock over one file's share modes, and the share modes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LockingRecord {
    /// The processes that wait for the record to change.
    pub watchers: Vec<Watcher>,
    /// The lock and what it protects. Absent from a record that is only watched.
    pub lock: Option<ShareModeLock>,
}

/// Somebody who waits for a record to change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watcher {
    /// The process.
    pub server_id: ServerId,
    /// Which of its waits.
    pub instance: u64,
}

/// The lock that smbd takes around every change of a file's share modes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShareModeLock {
    /// Who holds it exclusively; [`ServerId::NONE`] if nobody does.
    pub exclusive: ServerId,
    /// Changes with every change of hands.
    pub lock_epoch: u64,
    /// Changes with every change of the data.
    pub data_epoch: u64,
    /// Who holds it shared.
    pub shared: Vec<ServerId>,
    /// What it protects. Absent when nobody has the file open.
    pub share_modes: Option<ShareModes>,
}

/// The opens of one file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShareModes {
    /// What the opens have in common. Absent in the middle of a CREATE, between two stores.
    pub data: Option<ShareModeData>,
    /// One for each open, in the order that [`ShareModes::sort`] makes.
    pub entries: Vec<ShareModeEntry>,
}

/// What all opens of a file have in common. What a layout does not have is zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShareModeData {
    /// Changes with every change of this structure; smbd's processes cache it by this number.
    pub unique_content_epoch: u64,
    /// The opens' access, sharing and leases taken together: `ShareModeData::ACCESS_READ` and so on.
    pub flags: u16,
    /// The share's path on this host.
    pub service_path: Option<String>,
    /// The file's path below that.
    pub base_name: Option<String>,
    /// The stream's name, if it is one.
    pub stream_name: Option<String>,
    /// How many of the opens are persistent handles. Since 4.25.
    pub num_persistent: u32,
    /// The marks for deletion.
    pub delete_tokens: DeleteTokens,
    /// The last write time when the first open was made. Before 4.25.
    pub old_write_time: NtTime,
    /// The last write time that a client has set. Before 4.25.
    pub changed_write_time: NtTime,
    /// The file.
    pub file: FileKey,
}

impl ShareModeData {
    /// An open may cache reads.
    pub const LEASE_READ: u16 = 0x001;
    /// An open may cache writes.
    pub const LEASE_WRITE: u16 = 0x002;
    /// An open may cache the handle.
    pub const LEASE_HANDLE: u16 = 0x004;
    /// An open reads.
    pub const ACCESS_READ: u16 = 0x008;
    /// An open writes.
    pub const ACCESS_WRITE: u16 = 0x010;
    /// An open may delete.
    pub const ACCESS_DELETE: u16 = 0x020;
    /// Every open lets others read.
    pub const SHARE_READ: u16 = 0x040;
    /// Every open lets others write.
    pub const SHARE_WRITE: u16 = 0x080;
    /// Every open lets others delete.
    pub const SHARE_DELETE: u16 = 0x100;
}

/// The marks for deletion on a file. Whose rights they carry is kept but not looked into.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeleteTokens {
    /// One for each name under which the file is to be deleted.
    pub marks: Vec<DeleteMark>,
    /// The security tokens of those who set the marks, as smbd has marshalled them.
    pub security_tokens: Vec<u8>,
}

/// One mark for deletion. What a layout does not have is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeleteMark {
    /// The name it concerns; compare with [`ShareModeEntry::name_hash`].
    pub name_hash: u32,
    /// The lease of the directory that the one who has set the mark has. Since 4.22.
    pub parent_lease_key: LeaseKey,
    /// The open by which the mark was set. Since 4.25.
    pub open_persistent_id: DurableFileId,
    /// Whether a Windows security token follows.
    pub has_nt_token: bool,
    /// Whether a unix token follows.
    pub has_unix_token: bool,
}

/// One open of a file. What a layout does not have is zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShareModeEntry {
    /// The process that has the open.
    pub server_id: ServerId,
    /// The message id of the CREATE.
    pub op_mid: u64,
    /// The oplock, in Samba's numbers: [`ShareModeEntry::LEASE_OPLOCK`] and its like.
    pub op_type: u16,
    /// The client, if the open has a lease; else zero.
    pub client_guid: ClientGuid,
    /// The CreateGuid of a persistent handle; else zero. Since 4.25.
    pub create_guid: CreateGuid,
    /// The lease key, if the open has a lease; else zero.
    pub lease_key: LeaseKey,
    /// What the open may do.
    pub access_mask: AccessMask,
    /// What others may do meanwhile.
    pub share_access: ShareAccess,
    /// How the open was made; only what smbd's own emulations need of it. Before 4.25.
    pub private_options: u32,
    /// When the open was made. The link to its record in `smbXsrv_open_global.tdb`.
    pub time: UnixMicros,
    /// The process's own number for the open; the persistent id once it is disconnected, and always since 4.25.
    pub share_file_id: u64,
    /// The unix user.
    pub uid: u32,
    /// `SHARE_ENTRY_FLAG_POSIX_OPEN` and, since 4.25, others.
    pub flags: u16,
    /// A hash of the file's name.
    pub name_hash: u32,
}

impl ShareModeEntry {
    /// [`ShareModeEntry::op_type`] of an open without an oplock.
    pub const NO_OPLOCK: u16 = 0;
    /// [`ShareModeEntry::op_type`] of an exclusive oplock.
    pub const EXCLUSIVE_OPLOCK: u16 = 1;
    /// [`ShareModeEntry::op_type`] of a batch oplock: Samba's bits for exclusive and for batch.
    pub const BATCH_OPLOCK: u16 = 3;
    /// [`ShareModeEntry::op_type`] of a level II oplock.
    pub const LEVEL_II_OPLOCK: u16 = 4;
    /// [`ShareModeEntry::op_type`] of an open with a lease.
    pub const LEASE_OPLOCK: u16 = 0x100;

    /// Whether this is a disconnected open with that persistent id.
    #[must_use]
    pub fn is_disconnected(&self, id: DurableFileId) -> bool {
        self.server_id == ServerId::DISCONNECTED && self.share_file_id == id.0
    }

    /// The lease the open belongs to, if it has one.
    #[must_use]
    pub fn lease(&self) -> Option<(ClientGuid, LeaseKey)> {
        (self.op_type == Self::LEASE_OPLOCK).then_some((self.client_guid, self.lease_key))
    }
}

impl ShareModes {
    /// Decodes what the lock of a record protects.
    pub(crate) fn decode(layout: Layout, value: &[u8]) -> Result<Self, RecordError> {
        codec::decode_share_modes(layout, value)
    }

    /// What the lock of a record protects, byte for byte what smbd would store.
    pub(crate) fn encode(&self, layout: Layout) -> Vec<u8> {
        codec::encode_share_modes(layout, self)
    }

    /// Puts the entries in the order in which smbd searches them: descending by process and number.
    pub fn sort(&mut self) {
        self.entries
            .sort_by_key(|entry| std::cmp::Reverse((entry.server_id.sort_key(), entry.share_file_id)));
    }
}

impl LockingRecord {
    /// Decodes a record's value.
    pub fn decode(layout: Layout, value: &[u8]) -> Result<Self, RecordError> {
        codec::decode_locking(layout, value)
    }

    /// The record's value, byte for byte what smbd would store.
    #[must_use]
    pub fn encode(&self, layout: Layout) -> Vec<u8> {
        codec::encode_locking(layout, self)
    }

    /// The opens of the file.
    #[must_use]
    pub fn share_modes(&self) -> Option<&ShareModes> {
        self.lock.as_ref()?.share_modes.as_ref()
    }

    /// Whether a disconnected open with that persistent id is among the share modes.
    #[must_use]
    pub fn has_disconnected(&self, id: DurableFileId) -> bool {
        self.share_modes().is_some_and(|modes| modes.entries.iter().any(|entry| entry.is_disconnected(id)))
    }

    /// Takes the lock away from processes that are not alive. smbd does the same when it meets one.
    pub fn release_dead_holders(&mut self, is_alive: impl Fn(ServerId) -> bool) {
        if let Some(lock) = &mut self.lock {
            if lock.exclusive != ServerId::NONE && !is_alive(lock.exclusive) {
                lock.exclusive = ServerId::NONE;
            }
            lock.shared.retain(|holder| is_alive(*holder));
        }
    }

    /// Says that the file has another path below the share's root, if it has the first one so far.
    pub fn rename(&mut self, from: &str, to: &str) {
        let share_modes = self.lock.as_mut().and_then(|lock| lock.share_modes.as_mut());
        let name = share_modes.and_then(|modes| modes.data.as_mut()).and_then(|data| data.base_name.as_mut());
        if let Some(name) = name.filter(|name| *name == from) {
            to.clone_into(name);
        }
    }

    /// Who is in the middle of changing the record. While somebody is, nobody else may.
    #[must_use]
    pub fn lock_holder(&self) -> Option<ServerId> {
        let lock = self.lock.as_ref()?;
        if lock.exclusive != ServerId::NONE { Some(lock.exclusive) } else { lock.shared.first().copied() }
    }
}
