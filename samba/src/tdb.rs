//! libtdb, loaded when it is needed.
//!
//! A node without Samba has no libtdb and must run all the same, so the library is not linked. Its locking and
//! its file format stay its own business: everything here goes through its public interface.
//!
//! # What must stay true
//!
//! - smbd, or ctdbd in a cluster, opens its volatile databases with `TDB_CLEAR_IF_FIRST`: who opens one first
//!   empties it. So they are opened here only while a running one has them open, which [`TdbFile::open`] checks,
//!   and they must be closed *before* it is started again; else the new one finds the old one's records. Keep a
//!   [`TdbFile`] for as long as one piece of work takes, not longer, and not twice in one process.
//! - libtdb keeps a list of the open databases of a process without locking it, so opening and closing is done
//!   by one thread at a time. And it is never unloaded.
//! - A chain lock may be held by an smbd that waits for this very process. So every wait for one is bounded,
//!   and nothing that answers the shim may wait for one.

#![expect(unsafe_code, reason = "libtdb is a C library")]

use std::ffi::{CString, c_char, c_int, c_uchar, c_uint, c_void};
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use frame::TdbError;
use libloading::Library;
use thiserror::Error;

/// The library's name in every distribution; its interface has been stable for longer than a decade.
const LIBRARY: &str = "libtdb.so.1";

/// How often a chain lock that somebody else has is tried again.
const CHAIN_LOCK_POLL: Duration = Duration::from_millis(1);

/// Flags of `tdb_open` (tdb.h).
const TDB_CLEAR_IF_FIRST: c_int = 1;
const TDB_NOSYNC: c_int = 64;
const TDB_SEQNUM: c_int = 128;
const TDB_VOLATILE: c_int = 256;
const TDB_DISALLOW_NESTING: c_int = 1024;
const TDB_INCOMPATIBLE_HASH: c_int = 2048;
const TDB_MUTEX_LOCKING: c_int = 4096;

/// The flag of `tdb_store` that overwrites what is there.
const TDB_REPLACE: c_int = 1;

/// The byte that whoever has opened a database with `TDB_CLEAR_IF_FIRST` keeps locked for reading.
const ACTIVE_LOCK_OFFSET: libc::off_t = 4;

/// `TDB_DATA`.
#[repr(C)]
#[derive(Clone, Copy)]
struct TdbData {
    dptr: *mut c_uchar,
    dsize: usize,
}

impl TdbData {
    /// Borrows bytes that libtdb only reads.
    fn of(bytes: &[u8]) -> Self {
        Self { dptr: bytes.as_ptr().cast_mut(), dsize: bytes.len() }
    }
}

/// `struct tdb_context`.
type Context = *mut c_void;

type TraverseFn = unsafe extern "C" fn(Context, TdbData, TdbData, *mut c_void) -> c_int;

/// The functions of libtdb that are used here.
struct Libtdb {
    open: unsafe extern "C" fn(*const c_char, c_int, c_int, c_int, libc::mode_t) -> Context,
    close: unsafe extern "C" fn(Context) -> c_int,
    error: unsafe extern "C" fn(Context) -> c_int,
    chainlock_nonblock: unsafe extern "C" fn(Context, TdbData) -> c_int,
    chainunlock: unsafe extern "C" fn(Context, TdbData) -> c_int,
    fetch: unsafe extern "C" fn(Context, TdbData) -> TdbData,
    store: unsafe extern "C" fn(Context, TdbData, TdbData, c_int) -> c_int,
    delete: unsafe extern "C" fn(Context, TdbData) -> c_int,
    traverse_read: unsafe extern "C" fn(Context, TraverseFn, *mut c_void) -> c_int,
    jenkins_hash: unsafe extern "C" fn(*mut TdbData) -> c_uint,
    /// Whether databases are locked with robust mutexes on this machine.
    has_robust_mutexes: bool,
    /// Held while a database is opened or closed.
    list: Mutex<()>,
    /// The functions are valid while it is loaded.
    _library: Library,
}

impl Libtdb {
    fn load() -> Result<Self, LibtdbError> {
        let failed = |source| LibtdbError::Library { source };
        // SAFETY: libtdb has no initialisation code, and the types of the functions are those of tdb.h, which
        // has not changed them since libtdb 1.0 (`tdb_chainlock_nonblock`: 1.0.7, `tdb_jenkins_hash`: 1.2.5).
        unsafe {
            let library = Library::new(LIBRARY).map_err(failed)?;
            let has_robust_mutexes: unsafe extern "C" fn() -> bool =
                *library.get(b"tdb_runtime_check_for_robust_mutexes\0").map_err(failed)?;
            Ok(Self {
                open: *library.get(b"tdb_open\0").map_err(failed)?,
                close: *library.get(b"tdb_close\0").map_err(failed)?,
                error: *library.get(b"tdb_error\0").map_err(failed)?,
                chainlock_nonblock: *library.get(b"tdb_chainlock_nonblock\0").map_err(failed)?,
                chainunlock: *library.get(b"tdb_chainunlock\0").map_err(failed)?,
                fetch: *library.get(b"tdb_fetch\0").map_err(failed)?,
                store: *library.get(b"tdb_store\0").map_err(failed)?,
                delete: *library.get(b"tdb_delete\0").map_err(failed)?,
                traverse_read: *library.get(b"tdb_traverse_read\0").map_err(failed)?,
                jenkins_hash: *library.get(b"tdb_jenkins_hash\0").map_err(failed)?,
                has_robust_mutexes: has_robust_mutexes(),
                list: Mutex::new(()),
                _library: library,
            })
        }
    }
}

/// libtdb, loaded.
#[derive(Clone, Copy)]
pub struct Tdb(&'static Libtdb);

impl fmt::Debug for Tdb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tdb")
    }
}

impl Tdb {
    /// Loads libtdb, once per process.
    ///
    /// Call it before the process has a handler for SIGCHLD of its own: libtdb tries out the machine's mutexes in
    /// a child process, and leaves a handler behind that calls the one from before.
    pub fn load() -> Result<Self, LibtdbError> {
        static LOADED: OnceLock<Libtdb> = OnceLock::new();
        static LOADING: Mutex<()> = Mutex::new(());

        let _loading = lock(&LOADING);
        if let Some(libtdb) = LOADED.get() {
            return Ok(Self(libtdb));
        }
        let libtdb = Libtdb::load()?;
        Ok(Self(LOADED.get_or_init(|| libtdb)))
    }

    /// Samba's hash of a file's name, by which it tells hard links apart. Both are paths, the second below the first.
    #[must_use]
    pub fn name_hash(&self, service_path: &str, path: &str) -> u32 {
        // With the zero byte at its end.
        let name = format!("{}/{path}\0", service_path.trim_end_matches('/'));
        let mut key = TdbData::of(name.as_bytes());
        // SAFETY: it reads what `key` says, and writes nothing.
        unsafe { (self.0.jenkins_hash)(&raw mut key) }
    }
}

/// Locks a mutex that protects nothing of ours, so that it cannot be left half changed.
fn lock(mutex: &Mutex<()>) -> MutexGuard<'_, ()> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How smbd counts the changes of a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeCount {
    /// smbd's processes keep what they have read until the database's sequence number changes, so every
    /// store has to count it up.
    SequenceNumber,
    /// They do not.
    None,
}

/// The flags with which a volatile database was opened by whoever opened it first. Everybody else has to use the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OpenFlags(c_int);

impl OpenFlags {
    /// What ctdbd says of a database of its own; `None` if those are not the flags of a volatile one.
    pub(crate) fn of_ctdbd(flags: c_int) -> Option<Self> {
        const REQUIRED: c_int = TDB_CLEAR_IF_FIRST | TDB_INCOMPATIBLE_HASH;
        // The others are about the process that uses them, and about the byte order of the file.
        const ALIKE: c_int = REQUIRED | TDB_NOSYNC | TDB_SEQNUM | TDB_DISALLOW_NESTING | TDB_MUTEX_LOCKING;
        (flags & REQUIRED == REQUIRED).then_some(Self(flags & ALIKE))
    }

    /// What smbd uses when it has its databases for itself, but for the mutexes.
    fn of_smbd(change_count: ChangeCount) -> Self {
        let of_change_count = match change_count {
            ChangeCount::SequenceNumber => TDB_SEQNUM | TDB_VOLATILE,
            ChangeCount::None => 0,
        };
        Self(TDB_CLEAR_IF_FIRST | TDB_INCOMPATIBLE_HASH | of_change_count)
    }
}

/// A record, as libtdb has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawRecord {
    /// Its key.
    pub key: Vec<u8>,
    /// Its value.
    pub value: Vec<u8>,
}

/// A volatile database of a running smbd or ctdbd, open.
pub struct TdbFile {
    libtdb: Tdb,
    context: NonNull<c_void>,
    path: PathBuf,
}

// SAFETY: libtdb has no thread-local state and does not care which thread calls it, only that calls on one context do
// not overlap; every method that calls it takes `&mut self`. What contexts share is the list, which has a lock.
unsafe impl Send for TdbFile {}

impl TdbFile {
    /// Opens a database that a running smbd has open, and fails if none has.
    pub fn open(libtdb: &Tdb, path: &Path, change_count: ChangeCount) -> Result<Self, LibtdbError> {
        let flags = OpenFlags::of_smbd(change_count);
        // smbd uses mutexes where the machine has robust ones, unless its configuration forbids it. Both
        // sides must agree; libtdb says EINVAL when they do not.
        let mutexes = if libtdb.0.has_robust_mutexes { TDB_MUTEX_LOCKING } else { 0 };
        match Self::open_with(libtdb, path, OpenFlags(flags.0 | mutexes)) {
            Err(LibtdbError::Open { source, .. }) if source.raw_os_error() == Some(libc::EINVAL) => {
                Self::open_with(libtdb, path, flags)
            }
            result => result,
        }
    }

    /// The same for a database that was opened with these flags.
    pub(crate) fn open_with(libtdb: &Tdb, path: &Path, flags: OpenFlags) -> Result<Self, LibtdbError> {
        let failed = |source| LibtdbError::Open { path: path.to_owned(), source };
        if !is_open_elsewhere(path).map_err(failed)? {
            return Err(LibtdbError::NotOpenElsewhere { path: path.to_owned() });
        }
        let name = CString::new(path.as_os_str().as_bytes())
            .map_err(|_| failed(io::Error::from_raw_os_error(libc::EINVAL)))?;
        let _list = lock(&libtdb.0.list);
        // SAFETY: `name` is a terminated string that outlives the call.
        let context = unsafe { (libtdb.0.open)(name.as_ptr(), 0, flags.0, libc::O_RDWR, 0) };
        let context = NonNull::new(context).ok_or_else(|| failed(io::Error::last_os_error()))?;
        Ok(Self { libtdb: *libtdb, context, path: path.to_owned() })
    }

    /// A record's value as it is now.
    pub fn fetch(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, LibtdbError> {
        // SAFETY: the context is open and the key outlives the call.
        let data = unsafe { (self.libtdb.0.fetch)(self.context.as_ptr(), TdbData::of(key)) };
        let Some(dptr) = NonNull::new(data.dptr) else {
            return match self.last_error() {
                Some(TdbError::NoExist) => Ok(None),
                error => Err(self.failed("fetch", error)),
            };
        };
        // SAFETY: libtdb has returned `dsize` bytes at `dptr`.
        let value = unsafe { std::slice::from_raw_parts(dptr.as_ptr(), data.dsize) }.to_vec();
        // SAFETY: libtdb has allocated them with malloc and leaves it to the caller to free them.
        unsafe { libc::free(dptr.as_ptr().cast()) };
        Ok(Some(value))
    }

    /// All records, as they were at some moment of the call each.
    pub fn records(&mut self) -> Result<Vec<RawRecord>, LibtdbError> {
        unsafe extern "C" fn collect(
            _: Context,
            key: TdbData,
            value: TdbData,
            records: *mut c_void,
        ) -> c_int {
            // SAFETY: libtdb passes on the pointer it was given, and keys and values that are valid
            // during the call.
            unsafe {
                let records = &mut *records.cast::<Vec<RawRecord>>();
                let bytes = |data: TdbData| match NonNull::new(data.dptr) {
                    Some(dptr) => std::slice::from_raw_parts(dptr.as_ptr(), data.dsize).to_vec(),
                    None => Vec::new(),
                };
                records.push(RawRecord { key: bytes(key), value: bytes(value) });
            }
            0
        }

        let mut records: Vec<RawRecord> = Vec::new();
        // SAFETY: the context is open, and `collect` gets back the pointer to `records` as what it is.
        let count = unsafe {
            (self.libtdb.0.traverse_read)(self.context.as_ptr(), collect, (&raw mut records).cast())
        };
        if count < 0 { Err(self.failed("traverse", self.last_error())) } else { Ok(records) }
    }

    /// Locks the hash chain of a key, so that nobody else can change its record. Waits for at most `timeout`.
    pub fn lock_chain<'a>(
        &'a mut self,
        key: &'a [u8],
        timeout: Duration,
    ) -> Result<ChainLock<'a>, LibtdbError> {
        let deadline = Instant::now() + timeout;
        loop {
            // SAFETY: the context is open and the key outlives the call.
            let result =
                unsafe { (self.libtdb.0.chainlock_nonblock)(self.context.as_ptr(), TdbData::of(key)) };
            if result == 0 {
                return Ok(ChainLock { file: self, key });
            }
            match self.last_error() {
                Some(TdbError::Lock) if Instant::now() < deadline => thread::sleep(CHAIN_LOCK_POLL),
                Some(TdbError::Lock) => {
                    return Err(LibtdbError::ChainLockTimeout { path: self.path.clone(), timeout });
                }
                error => return Err(self.failed("lock a chain", error)),
            }
        }
    }

    fn last_error(&self) -> Option<TdbError> {
        // SAFETY: the context is open.
        let number = unsafe { (self.libtdb.0.error)(self.context.as_ptr()) };
        u8::try_from(number).ok().and_then(TdbError::from_wire)
    }

    fn failed(&self, operation: &'static str, error: Option<TdbError>) -> LibtdbError {
        LibtdbError::Call { path: self.path.clone(), operation, error }
    }
}

impl Drop for TdbFile {
    fn drop(&mut self) {
        let _list = lock(&self.libtdb.0.list);
        // SAFETY: the context is open and is not used again. Nothing was written that closing could fail to write.
        unsafe { (self.libtdb.0.close)(self.context.as_ptr()) };
    }
}

/// A locked hash chain, and the record whose key was asked for. Unlocked when dropped.
pub struct ChainLock<'a> {
    file: &'a mut TdbFile,
    key: &'a [u8],
}

impl ChainLock<'_> {
    /// The record's value.
    pub fn fetch(&mut self) -> Result<Option<Vec<u8>>, LibtdbError> {
        self.file.fetch(self.key)
    }

    /// Stores the record.
    pub fn store(&mut self, value: &[u8]) -> Result<(), LibtdbError> {
        let (context, key) = (self.file.context.as_ptr(), TdbData::of(self.key));
        // SAFETY: the context is open, key and value outlive the call.
        match unsafe { (self.file.libtdb.0.store)(context, key, TdbData::of(value), TDB_REPLACE) } {
            0 => Ok(()),
            _ => Err(self.file.failed("store", self.file.last_error())),
        }
    }

    /// Deletes the record. It need not exist.
    pub fn delete(&mut self) -> Result<(), LibtdbError> {
        // SAFETY: the context is open and the key outlives the call.
        match unsafe { (self.file.libtdb.0.delete)(self.file.context.as_ptr(), TdbData::of(self.key)) } {
            0 => Ok(()),
            _ => match self.file.last_error() {
                Some(TdbError::NoExist) => Ok(()),
                error => Err(self.file.failed("delete", error)),
            },
        }
    }
}

impl Drop for ChainLock<'_> {
    fn drop(&mut self) {
        // SAFETY: the context is open and the chain is locked by this context. It fails only if it is not.
        unsafe { (self.file.libtdb.0.chainunlock)(self.file.context.as_ptr(), TdbData::of(self.key)) };
    }
}

/// Whether another process has the database open with `TDB_CLEAR_IF_FIRST`.
fn is_open_elsewhere(path: &Path) -> io::Result<bool> {
    let file = File::options().read(true).write(true).open(path)?;
    let mut lock = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: ACTIVE_LOCK_OFFSET,
        l_len: 1,
        l_pid: 0,
    };
    // SAFETY: F_GETLK takes a pointer to a flock, and writes there what stands in the way.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETLK, &raw mut lock) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(lock.l_type != libc::F_UNLCK as libc::c_short)
}

/// libtdb cannot be used, or a database not through it.
#[derive(Debug, Error)]
pub enum LibtdbError {
    /// The library is not there.
    #[error("cannot load {LIBRARY}; install it (on Debian the package libtdb1)")]
    Library {
        /// Why not.
        source: libloading::Error,
    },
    /// Nobody works with this database, and opening it would empty it.
    #[error("no running smbd or ctdbd has {} open; is this a directory of the one that runs?", path.display())]
    NotOpenElsewhere {
        /// The database.
        path: PathBuf,
    },
    /// The database cannot be opened.
    #[error("cannot open {}; this process must be root or smbd's own user", path.display())]
    Open {
        /// The database.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Somebody has kept a hash chain locked for too long.
    #[error("a record of {} was locked by another process for {timeout:?}", path.display())]
    ChainLockTimeout {
        /// The database.
        path: PathBuf,
        /// How long it was waited for.
        timeout: Duration,
    },
    /// A call has failed.
    #[error("libtdb cannot {operation} in {}: {error:?}", path.display())]
    Call {
        /// The database.
        path: PathBuf,
        /// What was tried.
        operation: &'static str,
        /// libtdb's error, if it has named one.
        error: Option<TdbError>,
    },
}
