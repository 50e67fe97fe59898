//! The names libtdb and Samba give to things: databases and error codes.

/// One of Samba's volatile databases that an open lives in.
///
/// The numbers are what goes over the wire; they are never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Database {
    /// `smbXsrv_open_global.tdb`: an open by its global id (four bytes, big endian).
    OpenGlobal = 0,
    /// `locking.tdb`: the share modes of a file, by file id (24 bytes).
    Locking = 1,
    /// `leases.tdb`: a lease, by client guid and lease key (32 bytes).
    Leases = 2,
    /// `brlock.tdb`: the byte-range locks of a file, by file id (24 bytes).
    Brlock = 3,
    /// `smbXsrv_tcon_global.tdb`: a tree connect by its global id (four bytes, big endian).
    TconGlobal = 4,
}

impl Database {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 5] =
        [Self::OpenGlobal, Self::Locking, Self::Leases, Self::Brlock, Self::TconGlobal];

    /// The name of the database's file in Samba's `lock directory`.
    pub const fn file_name(self) -> &'static str {
        match self {
            Self::OpenGlobal => "smbXsrv_open_global.tdb",
            Self::Locking => "locking.tdb",
            Self::Leases => "leases.tdb",
            Self::Brlock => "brlock.tdb",
            Self::TconGlobal => "smbXsrv_tcon_global.tdb",
        }
    }

    /// The database whose file has this name, if it is one of ours. A clustered Samba appends `.` and its
    /// node number; such a name is not recognised, because its values carry a header that nobody here strips.
    pub fn from_file_name(file_name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|database| database.file_name().as_bytes() == file_name)
    }

    /// The database with this number on the wire.
    pub fn from_wire(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|database| *database as u8 == number)
    }
}

impl std::fmt::Display for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.file_name())
    }
}

/// libtdb's `enum TDB_ERROR`: what `tdb_error()` says after a call that failed.
///
/// `smbd` maps it to the NTSTATUS its client sees, so a refusal picks the code by its effect; the variants
/// say what Samba 4.17 makes of each when the store of a tree connect or of a durable open fails.
/// `TDB_SUCCESS` is left out: a failed store that reports it would be taken for `STATUS_OK`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum TdbError {
    /// `STATUS_INTERNAL_DB_CORRUPTION`.
    Corrupt = 1,
    /// `STATUS_UNEXPECTED_IO_ERROR`.
    Io = 2,
    /// `STATUS_FILE_LOCK_CONFLICT`.
    Lock = 3,
    /// `STATUS_NO_MEMORY`.
    Oom = 4,
    /// `STATUS_OBJECT_NAME_COLLISION`.
    Exists = 5,
    /// A lock was expected to be held and was not.
    NoLock = 6,
    /// Waiting for a lock took too long.
    LockTimeout = 7,
    /// `STATUS_NOT_FOUND`.
    NoExist = 8,
    /// `STATUS_INVALID_PARAMETER`.
    Einval = 9,
    /// `STATUS_ACCESS_DENIED`.
    RdOnly = 10,
    /// `STATUS_INTERNAL_ERROR`.
    Nesting = 11,
}

impl TdbError {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 11] = [
        Self::Corrupt,
        Self::Io,
        Self::Lock,
        Self::Oom,
        Self::Exists,
        Self::NoLock,
        Self::LockTimeout,
        Self::NoExist,
        Self::Einval,
        Self::RdOnly,
        Self::Nesting,
    ];

    /// The error with this number, which is libtdb's own and the one on the wire.
    pub fn from_wire(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|error| *error as u8 == number)
    }
}
