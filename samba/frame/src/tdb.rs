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

    /// The database whose file has this name in Samba's `lock directory`, if it is one of ours. For the files of a
    /// clustered Samba see [`DatabaseFile`].
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

/// A file of one of the databases, as its name tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatabaseFile {
    /// Which database.
    pub database: Database,
    /// Whether it is ctdb's: then it is called `NAME.tdb.N`, where N is the number of the ctdb node, and every value in it
    /// begins with [`CTDB_HEADER_LEN`] bytes of ctdb's own.
    pub is_clustered: bool,
}

/// What ctdb puts in front of every value: which node has the record, and how often it has moved. A value of nothing else
/// stands for a record that is not there.
pub const CTDB_HEADER_LEN: usize = 24;

impl DatabaseFile {
    /// The database whose file has this name, if it is one of ours.
    pub fn from_name(file_name: &[u8]) -> Option<Self> {
        if let Some(database) = Database::from_file_name(file_name) {
            return Some(Self { database, is_clustered: false });
        }
        let dot = file_name.iter().rposition(|byte| *byte == b'.')?;
        let (name, number) = (file_name.get(..dot)?, file_name.get(dot + 1..)?);
        if number.is_empty() || !number.iter().all(u8::is_ascii_digit) {
            return None;
        }
        Some(Self { database: Database::from_file_name(name)?, is_clustered: true })
    }

    /// How many bytes of every value are not Samba's.
    pub fn header_len(self) -> usize {
        if self.is_clustered { CTDB_HEADER_LEN } else { 0 }
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
    /// `STATUS_NOT_FOUND`; of an open's own record `STATUS_OBJECT_NAME_NOT_FOUND`, which the shim sees to.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_known_by_its_name_and_by_whether_ctdb_has_numbered_it() {
        for database in Database::ALL {
            let name = database.file_name();
            let file = |name: &str| DatabaseFile::from_name(name.as_bytes());
            assert_eq!(file(name), Some(DatabaseFile { database, is_clustered: false }));
            for number in ["0", "2", "31", "4294967295"] {
                let clustered = Some(DatabaseFile { database, is_clustered: true });
                assert_eq!(file(&format!("{name}.{number}")), clustered, "{number}");
            }
            for other in [".", ".x", ".1x", ".-1", "0", ".0.", ".0.1", ".bak"] {
                assert_eq!(file(&format!("{name}{other}")), None, "{other}");
            }
        }
        for other in ["", ".", ".0", "locking", "notify.tdb.0"] {
            assert_eq!(DatabaseFile::from_name(other.as_bytes()), None, "{other:?}");
        }
    }
}
