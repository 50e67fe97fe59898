//! An open that outlives its connection: what is known of it, and the states it goes through.
//!
//! ```text
//!   grant            disconnect, node-down          expire, close
//! ────────► Connected ────────────────► Disconnected ────────────► (gone)
//!               ▲         reclaim            │
//!               └────────────────────────────┘
//! ```

use std::fmt;
use std::sync::Arc;

use super::ids::{ClientGuid, CreateGuid, DurableFileId, FileKey, LeaseKey, Owner, ShareName, Sid};
use super::time::{Millis, Timestamp};

/// An access mask (MS-SMB2 2.2.13.1): what the open was granted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AccessMask(pub u32);

/// The ShareAccess of a CREATE (MS-SMB2 2.2.13): READ 1, WRITE 2, DELETE 4.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShareAccess(pub u32);

/// The CreateOptions of a CREATE (MS-SMB2 2.2.13).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CreateOptions(pub u32);

/// What a lease allows its holder to cache (MS-SMB2 2.2.13.2.8).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseState(pub u32);

impl LeaseState {
    /// READ caching.
    pub const READ: u32 = 0x1;
    /// HANDLE caching: the holder may keep the handle open although the application closed it.
    pub const HANDLE: u32 = 0x2;
    /// WRITE caching.
    pub const WRITE: u32 = 0x4;

    /// Whether the lease has handle caching, without which an open with a lease is not durable.
    #[must_use]
    pub fn has_handle_caching(self) -> bool {
        self.0 & Self::HANDLE != 0
    }
}

/// Counts the changes of a lease's state (MS-SMB2 3.3.1.12). Zero for a v1 lease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseEpoch(pub u16);

/// The form of the lease context that the client used (MS-SMB2 3.3.1.12, `Lease.Version`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LeaseVersion {
    /// SMB2_CREATE_REQUEST_LEASE (MS-SMB2 2.2.13.2.8).
    V1,
    /// SMB2_CREATE_REQUEST_LEASE_V2 (MS-SMB2 2.2.13.2.10).
    V2,
}

/// The lease that an open belongs to, as of the open's last report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Its key; unique within the ClientGuid.
    pub key: LeaseKey,
    /// What it allows.
    pub state: LeaseState,
    /// How often it has changed.
    pub epoch: LeaseEpoch,
    /// The form in which its breaks are announced.
    pub version: LeaseVersion,
}

/// What the open may cache: `Open.OplockLevel` (MS-SMB2 3.3.1.10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Oplock {
    /// Nothing.
    None,
    /// Read caching, shared.
    LevelII,
    /// Read and write caching.
    Exclusive,
    /// Read, write and handle caching.
    Batch,
    /// As the lease says.
    Lease(Lease),
}

/// `Open.OplockState` (MS-SMB2 3.3.1.10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OplockState {
    /// No break is under way.
    Held,
    /// A break was sent and not acknowledged yet. An open in this state does not outlive its connection.
    Breaking,
}

/// What the client was promised about its open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Durable handle, version 1 (MS-SMB2 3.3.5.9.6).
    DurableV1,
    /// Durable handle, version 2 (MS-SMB2 3.3.5.9.10).
    DurableV2,
    /// Resilient handle (MS-SMB2 3.3.5.15.9).
    Resilient,
    /// Persistent handle (MS-SMB2 3.3.5.9.10, with the persistent flag).
    Persistent,
}

/// A granted byte-range lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteRangeLock {
    /// The first byte, counted from the start of the file.
    pub offset: u64,
    /// How many bytes; zero-length locks exist.
    pub length: u64,
    /// Whether it excludes readers too.
    pub exclusive: bool,
}

/// What an SMB server reports of an open, at its grant and whenever it changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenDescription {
    /// The persistent half of its FileId.
    pub durable_file_id: DurableFileId,
    /// Zero for a v1 handle. Never changes.
    pub create_guid: CreateGuid,
    /// Who may have it back, if it has a lease.
    pub client_guid: ClientGuid,
    /// The application instance that made it, if it said so (MS-SMB2 2.2.13.2.13).
    pub app_instance_id: Option<[u8; 16]>,
    /// The user that made it, who alone may have it back (`Open.DurableOwner`).
    pub durable_owner: Sid,
    /// The share it was made through.
    pub share: ShareName,
    /// Its path below the share's root, with `/` between components.
    pub path: String,
    /// The file.
    pub file: FileKey,
    /// What it may do.
    pub granted_access: AccessMask,
    /// What others may do meanwhile.
    pub share_access: ShareAccess,
    /// How it was made.
    pub create_options: CreateOptions,
    /// What it may cache.
    pub oplock: Oplock,
    /// Whether a break of that is under way.
    pub oplock_state: OplockState,
    /// What its client was promised.
    pub durability: Durability,
    /// How long the open outlives its connection. It was told to the client (v2) or is the server's
    /// constant (v1), so scavenging sooner breaks a promise.
    pub durable_open_timeout: Millis,
    /// Its byte-range locks.
    pub byte_range_locks: Vec<ByteRangeLock>,
    /// `Open.LockSequenceArray` (MS-SMB2 3.3.1.10): for index 1 to 64 the last sequence number, 0 to 15,
    /// or 0xFF where none is valid. Empty when no lock was ever sequenced.
    pub lock_sequence_array: Vec<u8>,
    /// Whether the file is deleted when the open is closed.
    pub delete_on_close: bool,
    /// FilePositionInformation.
    pub position: u64,
    /// What the SMB server needs to rebuild its own records; opaque here.
    pub image: Arc<[u8]>,
}

impl OpenDescription {
    /// Whether the open outlives the loss of its connection (MS-SMB2 3.3.7.1).
    #[must_use]
    pub fn outlives_its_connection(&self) -> bool {
        match self.durability {
            Durability::Resilient | Durability::Persistent => true,
            Durability::DurableV1 | Durability::DurableV2 => {
                let keeps_handle = match self.oplock {
                    Oplock::Batch => true,
                    Oplock::Lease(lease) => lease.state.has_handle_caching(),
                    Oplock::None | Oplock::LevelII | Oplock::Exclusive => false,
                };
                keeps_handle && self.oplock_state == OplockState::Held
            }
        }
    }
}

/// Who holds the open now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenState {
    /// A client has it, through this owner.
    Connected {
        /// The incarnation that serves it.
        owner: Owner,
    },
    /// Its client is away and may come back.
    Disconnected {
        /// The incarnation whose SMB server still has the open in its own records, after a clean loss of
        /// the connection. `None` for an orphan: that server is dead, or the share has moved away from it.
        keeper: Option<Owner>,
        /// Until when it may be reclaimed (`Open.DurableOpenScavengerTimeout`).
        durable_open_scavenger_timeout: Timestamp,
    },
}

/// A durable, resilient or persistent open: `Open` of MS-SMB2 3.3.1.10, the half that has to survive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    /// What the SMB server reported last.
    pub description: OpenDescription,
    /// Who holds it.
    pub state: OpenState,
}

impl Open {
    /// The owner or keeper: the incarnation in whose SMB server the open lives, if any does.
    #[must_use]
    pub fn holder(&self) -> Option<Owner> {
        match self.state {
            OpenState::Connected { owner } => Some(owner),
            OpenState::Disconnected { keeper, .. } => keeper,
        }
    }

    /// The deadline of a disconnected open.
    #[must_use]
    pub fn deadline(&self) -> Option<Timestamp> {
        match self.state {
            OpenState::Connected { .. } => None,
            OpenState::Disconnected { durable_open_scavenger_timeout, .. } => {
                Some(durable_open_scavenger_timeout)
            }
        }
    }
}

impl fmt::Display for LeaseState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("-");
        }
        for (bit, letter) in [(Self::READ, "R"), (Self::WRITE, "W"), (Self::HANDLE, "H")] {
            if self.0 & bit != 0 {
                f.write_str(letter)?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Oplock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::LevelII => f.write_str("level2"),
            Self::Exclusive => f.write_str("exclusive"),
            Self::Batch => f.write_str("batch"),
            Self::Lease(lease) => lease.state.fmt(f),
        }
    }
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DurableV1 => "durable-v1",
            Self::DurableV2 => "durable-v2",
            Self::Resilient => "resilient",
            Self::Persistent => "persistent",
        })
    }
}

impl fmt::Display for OpenState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connected { owner } => write!(f, "connected {owner}"),
            Self::Disconnected { keeper: Some(keeper), durable_open_scavenger_timeout: until } => {
                write!(f, "disconnected until={until} keeper={keeper}")
            }
            Self::Disconnected { keeper: None, durable_open_scavenger_timeout: until } => {
                write!(f, "disconnected until={until}")
            }
        }
    }
}
