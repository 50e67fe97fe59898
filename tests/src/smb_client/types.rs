//! The vocabulary of MS-SMB2, as far as this client speaks it.

use std::{fmt, ops, time::Duration};

/// An SMB2 command (MS-SMB2 2.2.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Command {
    /// Agree on a dialect.
    Negotiate = 0x0000,
    /// Authenticate.
    SessionSetup = 0x0001,
    /// End a session; its durable opens stay.
    Logoff = 0x0002,
    /// Enter a share.
    TreeConnect = 0x0003,
    /// Leave a share; its opens are closed, durable or not.
    TreeDisconnect = 0x0004,
    /// Open, create or reconnect to a file.
    Create = 0x0005,
    /// Close an open.
    Close = 0x0006,
    /// Read from an open.
    Read = 0x0008,
    /// Write to an open.
    Write = 0x0009,
    /// Lock or unlock byte ranges.
    Lock = 0x000A,
    /// Ask whether the server is there.
    Echo = 0x000D,
    /// Change a property of an open file.
    SetInfo = 0x0011,
    /// An oplock or lease break: the server's notification, or its acknowledgment.
    OplockBreak = 0x0012,
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Negotiate => "NEGOTIATE",
            Self::SessionSetup => "SESSION_SETUP",
            Self::Logoff => "LOGOFF",
            Self::TreeConnect => "TREE_CONNECT",
            Self::TreeDisconnect => "TREE_DISCONNECT",
            Self::Create => "CREATE",
            Self::Close => "CLOSE",
            Self::Read => "READ",
            Self::Write => "WRITE",
            Self::Lock => "LOCK",
            Self::Echo => "ECHO",
            Self::SetInfo => "SET_INFO",
            Self::OplockBreak => "OPLOCK_BREAK",
        })
    }
}

/// Sixteen bytes that name something, drawn by the client.
macro_rules! identity {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 16]);

        impl $name {
            /// A fresh one.
            pub fn random() -> Self {
                Self(rand::random())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }
    )*};
}

identity! {
    /// Which machine the client is (MS-SMB2 2.2.3). A lease can only be had back under the ClientGuid that
    /// got it.
    ClientGuid;
    /// Which CREATE made a durable v2 open (MS-SMB2 2.2.13.2.11). Whoever knows it may have the open back.
    CreateGuid;
    /// Which lease an open belongs to, in the name space of its ClientGuid (MS-SMB2 2.2.13.2.8).
    LeaseKey;
}

/// SMB2_FILEID (MS-SMB2 2.2.14.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId {
    /// Names the open for as long as it lives, over reconnects.
    pub persistent: u64,
    /// Names it within the session; new after every reconnect.
    pub volatile: u64,
}

/// A set of bits with the names that MS-SMB2 gives them.
macro_rules! flags {
    ($($(#[$doc:meta])* $name:ident { $($(#[$flag_doc:meta])* $flag:ident = $value:literal;)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub struct $name(pub u32);

        impl $name {
            $($(#[$flag_doc])* pub const $flag: Self = Self($value);)*

            /// Whether every bit of `other` is set here.
            pub fn contains(self, other: Self) -> bool {
                self.0 & other.0 == other.0
            }
        }

        impl ops::BitOr for $name {
            type Output = Self;

            fn bitor(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }
        }
    )*};
}

flags! {
    /// What an open may do (MS-SMB2 2.2.13.1.1).
    AccessMask {
        /// FILE_READ_DATA.
        READ_DATA = 0x0000_0001;
        /// FILE_WRITE_DATA.
        WRITE_DATA = 0x0000_0002;
        /// FILE_READ_ATTRIBUTES. An open with this alone is a "stat open": it breaks no lease.
        READ_ATTRIBUTES = 0x0000_0080;
        /// FILE_WRITE_ATTRIBUTES.
        WRITE_ATTRIBUTES = 0x0000_0100;
        /// DELETE: needed to rename and to delete.
        DELETE = 0x0001_0000;
        /// GENERIC_READ | GENERIC_WRITE | DELETE.
        READ_WRITE_DELETE = 0xC001_0000;
    }

    /// What others may do meanwhile (MS-SMB2 2.2.13).
    ShareAccess {
        /// Nothing.
        NONE = 0x0;
        /// Read.
        READ = 0x1;
        /// Write.
        WRITE = 0x2;
        /// Delete and rename.
        DELETE = 0x4;
        /// Everything.
        ALL = 0x7;
    }

    /// How the file is to be treated (MS-SMB2 2.2.13).
    CreateOptions {
        /// No wish.
        NONE = 0x0000_0000;
        /// FILE_NON_DIRECTORY_FILE: refuse a directory.
        NON_DIRECTORY_FILE = 0x0000_0040;
        /// FILE_DELETE_ON_CLOSE.
        DELETE_ON_CLOSE = 0x0000_1000;
    }

    /// What a lease lets its holder cache (MS-SMB2 2.2.13.2.8).
    LeaseState {
        /// Nothing.
        NONE = 0x0;
        /// R: cache reads.
        READ = 0x1;
        /// H: keep the handle open after the application closed it. Needed for a durable open.
        HANDLE = 0x2;
        /// W: cache writes and byte-range locks.
        WRITE = 0x4;
        /// RH.
        READ_HANDLE = 0x3;
        /// RWH.
        READ_WRITE_HANDLE = 0x7;
    }
}

impl fmt::Display for LeaseState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::NONE {
            return f.write_str("none");
        }
        for (flag, letter) in [(Self::READ, "R"), (Self::WRITE, "W"), (Self::HANDLE, "H")] {
            if self.contains(flag) {
                f.write_str(letter)?;
            }
        }
        Ok(())
    }
}

/// OplockLevel (MS-SMB2 2.2.13 and 2.2.14).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum OplockLevel {
    /// No oplock.
    None = 0x00,
    /// Cache reads, with others.
    LevelII = 0x01,
    /// Cache reads and writes, alone.
    Exclusive = 0x08,
    /// As `Exclusive`, and the handle may stay open after the application closed it. Makes an open durable.
    Batch = 0x09,
    /// See the lease instead.
    Lease = 0xFF,
}

/// CreateDisposition (MS-SMB2 2.2.13).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum CreateDisposition {
    /// FILE_OPEN: only if it exists.
    Open = 0x1,
    /// FILE_CREATE: only if it does not exist.
    Create = 0x2,
    /// FILE_OPEN_IF: open or create.
    OpenIf = 0x3,
    /// FILE_OVERWRITE_IF: truncate or create.
    OverwriteIf = 0x5,
}

/// CreateAction (MS-SMB2 2.2.14): what the server did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum CreateAction {
    /// FILE_SUPERSEDED.
    Superseded = 0x0,
    /// FILE_OPENED. Also the answer to a reconnect.
    Opened = 0x1,
    /// FILE_CREATED.
    Created = 0x2,
    /// FILE_OVERWRITTEN.
    Overwritten = 0x3,
}

/// The durable handle context of a CREATE. The protocol forbids more than one, but for DHnQ beside DHnC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// No context.
    None,
    /// DHnQ (MS-SMB2 2.2.13.2.3).
    RequestV1,
    /// DH2Q (MS-SMB2 2.2.13.2.11).
    RequestV2 {
        /// Names the open for the reconnect.
        create_guid: CreateGuid,
        /// How long the server should keep the open without a connection; zero leaves it to the server.
        timeout: Duration,
        /// Ask for a persistent handle.
        persistent: bool,
    },
    /// DHnC (MS-SMB2 2.2.13.2.4).
    ReconnectV1 {
        /// The open to have back.
        file_id: FileId,
    },
    /// DH2C (MS-SMB2 2.2.13.2.12).
    ReconnectV2 {
        /// The open to have back.
        file_id: FileId,
        /// The CreateGuid it was made with.
        create_guid: CreateGuid,
        /// Whether it is a persistent handle.
        persistent: bool,
    },
}

/// Which form a lease context has. On the wire only its length tells (MS-SMB2 2.2.13.2.10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseVersion {
    /// 32 bytes (MS-SMB2 2.2.13.2.8).
    V1,
    /// 52 bytes, with an epoch and a parent (MS-SMB2 2.2.13.2.10).
    V2 {
        /// Counts the changes of the lease's state.
        epoch: u16,
    },
}

/// A lease, asked for or granted (context RqLs).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Its name.
    pub key: LeaseKey,
    /// What may be cached.
    pub state: LeaseState,
    /// The form of the context.
    pub version: LeaseVersion,
}

impl Lease {
    /// A v2 lease with a fresh key, to be asked for.
    pub fn request(state: LeaseState) -> Self {
        Self { key: LeaseKey::random(), state, version: LeaseVersion::V2 { epoch: 0 } }
    }
}

/// CREATE, request (MS-SMB2 2.2.13).
#[derive(Clone, Debug)]
pub struct CreateRequest {
    /// The file's path below the share, with backslashes and no leading one.
    pub path: String,
    /// DesiredAccess.
    pub desired_access: AccessMask,
    /// ShareAccess.
    pub share_access: ShareAccess,
    /// CreateDisposition.
    pub disposition: CreateDisposition,
    /// CreateOptions.
    pub options: CreateOptions,
    /// RequestedOplockLevel. [`OplockLevel::Lease`] goes with `lease` and only with it.
    pub oplock_level: OplockLevel,
    /// The lease asked for.
    pub lease: Option<Lease>,
    /// The durable handle asked for.
    pub durability: Durability,
}

/// What the constructors below ask for: the longest that Samba and Windows grant.
const DURABLE_TIMEOUT: Duration = Duration::from_secs(300);

impl CreateRequest {
    /// Opens or creates `path` for reading, writing and deleting, shared with everybody, without caching or
    /// durability.
    pub fn new(path: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            desired_access: AccessMask::READ_WRITE_DELETE,
            share_access: ShareAccess::ALL,
            disposition: CreateDisposition::OpenIf,
            options: CreateOptions::NON_DIRECTORY_FILE,
            oplock_level: OplockLevel::None,
            lease: None,
            durability: Durability::None,
        }
    }

    /// The same with a lease.
    #[must_use]
    pub fn with_lease(self, lease: Lease) -> Self {
        Self { oplock_level: OplockLevel::Lease, lease: Some(lease), ..self }
    }

    /// The same with an oplock.
    #[must_use]
    pub fn with_oplock(self, oplock_level: OplockLevel) -> Self {
        Self { oplock_level, lease: None, ..self }
    }

    /// The same as a durable v1 open.
    #[must_use]
    pub fn durable_v1(self) -> Self {
        Self { durability: Durability::RequestV1, ..self }
    }

    /// The same as a durable v2 open with a fresh CreateGuid and the longest timeout.
    #[must_use]
    pub fn durable_v2(self) -> Self {
        self.request_v2(false)
    }

    /// The same as a persistent open, which a share gives that is continuously available.
    #[must_use]
    pub fn persistent(self) -> Self {
        self.request_v2(true)
    }

    fn request_v2(self, persistent: bool) -> Self {
        let create_guid = CreateGuid::random();
        let durability = Durability::RequestV2 { create_guid, timeout: DURABLE_TIMEOUT, persistent };
        Self { durability, ..self }
    }

    /// The open that a Windows client makes: durable v2 with an RWH lease of its own.
    pub fn durable_v2_with_lease(path: impl Into<String>) -> Self {
        Self::new(path).with_lease(Lease::request(LeaseState::READ_WRITE_HANDLE)).durable_v2()
    }

    /// Durable v2 with a batch oplock.
    pub fn durable_v2_with_batch(path: impl Into<String>) -> Self {
        Self::new(path).with_oplock(OplockLevel::Batch).durable_v2()
    }
}

/// DH2Q in a response (MS-SMB2 2.2.14.2.12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DurableV2Response {
    /// How long the server promises to keep the open without a connection.
    pub timeout: Duration,
    /// Whether the handle is persistent.
    pub persistent: bool,
}

/// CREATE, response (MS-SMB2 2.2.14).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateResponse {
    /// FileId.
    pub file_id: FileId,
    /// OplockLevel.
    pub oplock_level: OplockLevel,
    /// CreateAction.
    pub action: CreateAction,
    /// AllocationSize in bytes.
    pub allocation_size: u64,
    /// EndofFile in bytes.
    pub end_of_file: u64,
    /// The lease, if `oplock_level` says so.
    pub lease: Option<Lease>,
    /// Whether a DHnQ response was there: the open is durable v1.
    pub durable_v1: bool,
    /// The DH2Q response: the open is durable v2.
    pub durable_v2: Option<DurableV2Response>,
}

/// SMB2_LOCK_ELEMENT (MS-SMB2 2.2.26.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockElement {
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
    /// Flags.
    flags: u32,
}

impl LockElement {
    const SHARED_LOCK: u32 = 0x01;
    const EXCLUSIVE_LOCK: u32 = 0x02;
    const UNLOCK: u32 = 0x04;
    const FAIL_IMMEDIATELY: u32 = 0x10;

    /// Lock for writing; refused at once if somebody else holds any of it.
    pub fn exclusive(offset: u64, length: u64) -> Self {
        Self { offset, length, flags: Self::EXCLUSIVE_LOCK | Self::FAIL_IMMEDIATELY }
    }

    /// Lock for reading; refused at once if somebody else holds any of it exclusively.
    pub fn shared(offset: u64, length: u64) -> Self {
        Self { offset, length, flags: Self::SHARED_LOCK | Self::FAIL_IMMEDIATELY }
    }

    /// Give a lock back. The range must be the one that was locked.
    pub fn unlock(offset: u64, length: u64) -> Self {
        Self { offset, length, flags: Self::UNLOCK }
    }

    /// The same lock, but waiting for the holder to go, as long as the request may take.
    #[must_use]
    pub fn waiting(self) -> Self {
        Self { flags: self.flags & !Self::FAIL_IMMEDIATELY, ..self }
    }

    /// Flags as they go on the wire.
    pub(super) fn flags(self) -> u32 {
        self.flags
    }
}

/// LockSequenceNumber and LockSequenceIndex (MS-SMB2 2.2.26): lets the server recognise a LOCK that is sent
/// again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockSequence {
    /// The bucket: 1 to 64; 0 turns the recognition off.
    pub index: u8,
    /// The number in it: 0 to 15.
    pub number: u8,
}

impl LockSequence {
    /// No recognition.
    pub const NONE: Self = Self { index: 0, number: 0 };
}

/// What the server announces without being asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Break {
    /// OPLOCK_BREAK notification (MS-SMB2 2.2.23.1).
    Oplock {
        /// The open whose oplock breaks.
        file_id: FileId,
        /// What it breaks to.
        level: OplockLevel,
    },
    /// LEASE_BREAK notification (MS-SMB2 2.2.23.2).
    Lease {
        /// The lease.
        key: LeaseKey,
        /// Its state until now.
        current: LeaseState,
        /// The state it breaks to.
        new: LeaseState,
        /// The epoch after the break; 0 for a v1 lease.
        epoch: u16,
        /// Whether the server waits for an acknowledgment.
        ack_required: bool,
    },
}
