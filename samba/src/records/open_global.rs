//! An open, as `smbXsrv_open_global.tdb` has it.

use statedb::{AppInstanceVersion, ClientGuid, CreateGuid, DurableFileId, FileKey, Millis};

use super::codec;
use super::error::RecordError;
use super::identity::{Holder, NtTime, SecurityId, ServerId, UnixNanos};
use crate::version::Layout;

/// A record of `smbXsrv_open_global.tdb`: one open, durable or not.
///
/// What a layout does not have is zero or false.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenGlobal {
    /// Counts the stores of this record.
    pub seqnum: u32,
    /// The process that has the open.
    pub server_id: ServerId,
    /// The session that the open belongs to; zero while its client is away. Since 4.25.
    pub session_global_id: u64,
    /// The tree connect that the open belongs to; zero while its client is away. Since 4.25.
    pub tcon_global_id: u32,
    /// The record's own key.
    pub open_global_id: u32,
    /// The persistent half of the FileId. smbd puts [`OpenGlobal::open_global_id`] there.
    pub open_persistent_id: DurableFileId,
    /// The volatile half of the FileId.
    pub open_volatile_id: u64,
    /// The file; zero if the CREATE has made it. Since 4.25.
    pub file: FileKey,
    /// A hash of the file's name; zero if the CREATE has made the file. Since 4.25.
    pub name_hash: u32,
    /// The user that made the open.
    pub open_owner: SecurityId,
    /// When the open was made, to the microsecond; it stays the same through every reclaim.
    pub open_time: NtTime,
    /// Zero for a v1 handle and for one that is not durable.
    pub create_guid: CreateGuid,
    /// The client that made the open.
    pub client_guid: ClientGuid,
    /// Zero if the client said none.
    pub app_instance_id: [u8; 16],
    /// Zero if the client said none. Since 4.25.
    pub app_instance_version: AppInstanceVersion,
    /// What became of the file: the CreateAction of the response (MS-SMB2 2.2.14). Since 4.25.
    pub create_action: u32,
    /// When the client was lost; zero while it is there.
    pub disconnect_time: NtTime,
    /// How long the open outlives its connection. Zero if it is not durable.
    pub durable_timeout: Millis,
    /// Whether the client was granted a durable handle.
    pub durable: bool,
    /// Whether it is a persistent handle. Since 4.25.
    pub persistent: bool,
    /// What the VFS wants back at the reclaim; there if the open is durable.
    pub backend_cookie: Option<DurableCookie>,
    /// `Open.ChannelSequence`.
    pub channel_sequence: u16,
    /// Counts the channel sequence's turns.
    pub channel_generation: u64,
    /// `Open.LockSequenceArray`: 0xFF where no sequence number is valid.
    pub lock_sequence_array: [u8; 64],
}

impl OpenGlobal {
    /// Decodes a record's value.
    pub fn decode(layout: Layout, value: &[u8]) -> Result<Self, RecordError> {
        codec::decode_open_global(layout, value)
    }

    /// The record's value, byte for byte what smbd would store.
    #[must_use]
    pub fn encode(&self, layout: Layout) -> Vec<u8> {
        codec::encode_open_global(layout, self)
    }

    /// The key of the record of this open.
    #[must_use]
    pub fn key(&self) -> [u8; 4] {
        open_global_key(self.open_persistent_id)
    }

    /// Who holds the open.
    #[must_use]
    pub fn holder(&self) -> Holder {
        if self.server_id == ServerId::DISCONNECTED {
            Holder::Disconnected
        } else {
            Holder::Process(self.server_id)
        }
    }
}

/// The key of an open's record: smbd looks it up by the low half of the persistent id.
#[must_use]
pub fn open_global_key(id: DurableFileId) -> [u8; 4] {
    let [_, _, _, _, key @ ..] = id.0.to_be_bytes();
    key
}

/// What Samba's default VFS keeps of a durable open. What a layout does not have is zero or false.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DurableCookie {
    /// Set when the connection was lost cleanly; smbd refuses a reclaim without.
    pub allow_reconnect: bool,
    /// The file.
    pub file: FileKey,
    /// The share's path on this host.
    pub service_path: String,
    /// The file's path below that.
    pub base_name: String,
    /// The AllocationSize of the CREATE.
    pub initial_allocation_size: u64,
    /// FilePositionInformation at the time of the store.
    pub position: u64,
    /// A write has started the delayed update of the last write time. Before 4.25.
    pub update_write_time_triggered: bool,
    /// The last write time is to be set at the close. Before 4.25.
    pub update_write_time_on_close: bool,
    /// The client has set the last write time itself.
    pub write_time_forced: bool,
    /// The last write time to set at the close. Before 4.25.
    pub close_write_time: NtTime,
    /// The open was made with FILE_DELETE_ON_CLOSE. Since 4.25.
    pub initial_delete_on_close: bool,
    /// The file's metadata. A reclaim is refused if they have changed.
    pub stat: CookieStat,
}

/// The metadata in a [`DurableCookie`], as smbd sees them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CookieStat {
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
    /// `st_mode`.
    pub mode: u64,
    /// `st_nlink`.
    pub nlink: u64,
    /// `st_uid`.
    pub uid: u64,
    /// `st_gid`.
    pub gid: u64,
    /// `st_rdev`.
    pub rdev: u64,
    /// `st_size`.
    pub size: u64,
    /// `st_atim`.
    pub atime: UnixNanos,
    /// `st_mtim`.
    pub mtime: UnixNanos,
    /// `st_ctim`, as smbd understands it.
    pub ctime: UnixNanos,
    /// The creation time that smbd shows to clients.
    pub btime: UnixNanos,
    /// `st_blksize`.
    pub block_size: u64,
    /// `st_blocks`.
    pub blocks: u64,
    /// `st_flags`; 0 on Linux.
    pub flags: u32,
    /// Samba's own: [`CookieStat::CALCULATED_BTIME`].
    pub internal_flags: u32,
}

impl CookieStat {
    /// The creation time is not stored anywhere but worked out from the other times.
    pub const CALCULATED_BTIME: u32 = 1;

    /// Its time stamps, in the order in which they are stored.
    pub(super) fn times(&self) -> [UnixNanos; 4] {
        [self.atime, self.mtime, self.ctime, self.btime]
    }
}
