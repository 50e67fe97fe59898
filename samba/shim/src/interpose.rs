//! The functions of libtdb that this library stands in for. Each has the C signature and the contract of
//! libtdb's function of its name, and adds only what is said here.

#![expect(unsafe_code, reason = "these are C functions")]

use std::ffi::{CStr, c_char, c_int, c_void};

use frame::page::IN_USE_RECORD_MAX;
use frame::{Database, DatabaseFile, PageReader, Record, RecordKey, Request, TdbError};

use crate::concern::{self, Change};
use crate::libtdb::{self, Context, Data, Parser};
use crate::sidecar::{self, Verdict};
use crate::{chain_locks, create_file, databases, fence, own_opens, process, recent};

/// Remembers which database was opened. The first of the five makes this process part of an instance.
///
/// # Safety
///
/// As for libtdb's function.
#[unsafe(no_mangle)]
unsafe extern "C" fn tdb_open_ex(
    name: *const c_char,
    hash_size: c_int,
    tdb_flags: c_int,
    open_flags: c_int,
    mode: libc::mode_t,
    log_ctx: *const c_void,
    hash_fn: *const c_void,
) -> *mut Context {
    // SAFETY: passed through.
    let context =
        unsafe { libtdb::tdb_open_ex(name, hash_size, tdb_flags, open_flags, mode, log_ctx, hash_fn) };
    keeping_errno(|| {
        databases::forget(context);
        if context.is_null() || name.is_null() {
            return;
        }
        // SAFETY: libtdb has just opened a file of this name, so it is a C string.
        let path = unsafe { CStr::from_ptr(name) }.to_bytes();
        let file_name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
        if let Some(file) = DatabaseFile::from_name(file_name)
            && process::join()
        {
            databases::remember(file, context);
        }
    });
    context
}

/// Forgets the database.
///
/// # Safety
///
/// As for libtdb's function.
#[unsafe(no_mangle)]
unsafe extern "C" fn tdb_close(tdb: *mut Context) -> c_int {
    databases::forget(tdb);
    // SAFETY: passed through.
    unsafe { libtdb::tdb_close(tdb) }
}

/// Asks first, where the store concerns the cluster.
///
/// # Safety
///
/// As for libtdb's function.
#[unsafe(no_mangle)]
unsafe extern "C" fn tdb_store(tdb: *mut Context, key: Data, dbuf: Data, flag: c_int) -> c_int {
    // SAFETY: key and value are readable during the call.
    if let Some(result) = unsafe { instead_of_store(tdb, key, &[dbuf]) } {
        return result;
    }
    // SAFETY: passed through.
    unsafe { libtdb::tdb_store(tdb, key, dbuf, flag) }
}

/// Asks first, where the store concerns the cluster. The value comes in several pieces.
///
/// # Safety
///
/// As for libtdb's function.
#[unsafe(no_mangle)]
unsafe extern "C" fn tdb_storev(
    tdb: *mut Context,
    key: Data,
    dbufs: *const Data,
    num_dbufs: c_int,
    flag: c_int,
) -> c_int {
    let pieces = match usize::try_from(num_dbufs) {
        // SAFETY: the caller passes an array of this length.
        Ok(count) if !dbufs.is_null() => unsafe { std::slice::from_raw_parts(dbufs, count) },
        _ => &[],
    };
    // SAFETY: key and pieces are readable during the call.
    if let Some(result) = unsafe { instead_of_store(tdb, key, pieces) } {
        return result;
    }
    // SAFETY: passed through.
    unsafe { libtdb::tdb_storev(tdb, key, dbufs, num_dbufs, flag) }
}

/// Asks first, where the delete concerns the cluster.
///
/// # Safety
///
/// As for libtdb's function.
#[unsafe(no_mangle)]
unsafe extern "C" fn tdb_delete(tdb: *mut Context, key: Data) -> c_int {
    // SAFETY: the key is readable during the call.
    if let Some(result) = unsafe { instead_of_delete(tdb, key) } {
        return result;
    }
    // SAFETY: passed through.
    unsafe { libtdb::tdb_delete(tdb, key) }
}

/// Asks first, where the lock is that of a record which this node must not look at yet.
///
/// # Safety
///
/// As for libtdb's function.
#[unsafe(no_mangle)]
unsafe extern "C" fn tdb_chainlock(tdb: *mut Context, key: Data) -> c_int {
    // SAFETY: the key is readable during the call.
    if unsafe { refuses_look(tdb, key) } {
        return -1;
    }
    // SAFETY: passed through.
    let result = unsafe { libtdb::tdb_chainlock(tdb, key) };
    if result == 0 {
        chain_locks::taken();
    }
    result
}

/// Remembers that a lock is held no more.
///
/// # Safety
///
/// As for libtdb's function.
#[unsafe(no_mangle)]
unsafe extern "C" fn tdb_chainunlock(tdb: *mut Context, key: Data) -> c_int {
    // SAFETY: passed through.
    let result = unsafe { libtdb::tdb_chainunlock(tdb, key) };
    if result == 0 {
        chain_locks::released();
    }
    result
}

/// Says why the last call was refused, if it was refused here; libtdb knows nothing of it.
///
/// # Safety
///
/// As for libtdb's function.
#[unsafe(no_mangle)]
unsafe extern "C" fn tdb_error(tdb: *mut Context) -> c_int {
    match databases::database_of(tdb).and_then(databases::refused) {
        Some(error) => error as c_int,
        // SAFETY: passed through.
        None => unsafe { libtdb::tdb_error(tdb) },
    }
}

/// Shows an id that this node must not draw as one in use.
///
/// # Safety
///
/// As for libtdb's function.
#[unsafe(no_mangle)]
unsafe extern "C" fn tdb_parse_record(
    tdb: *mut Context,
    key: Data,
    parser: Parser,
    private_data: *mut c_void,
) -> c_int {
    let database = databases::database_of(tdb);
    if let Some(database) = database {
        databases::set_refused(database, None);
    }
    if database != Some(Database::OpenGlobal) {
        // SAFETY: passed through.
        return unsafe { libtdb::tdb_parse_record(tdb, key, parser, private_data) };
    }
    // The result alone does not tell a missing record from a parser that fails.
    let mut watched = WatchedParser { parser, private_data, called: false };
    // SAFETY: `watched` outlives the call, and `call_watched` expects it.
    let result = unsafe { libtdb::tdb_parse_record(tdb, key, call_watched, (&raw mut watched).cast()) };
    let mut copy = [0; IN_USE_RECORD_MAX];
    if !watched.called
        && result == -1
        // SAFETY: the key is readable during the call.
        && let Some(record) = concern::in_use_record(fence::page(), unsafe { key.as_slice() }, &mut copy)
    {
        // SAFETY: the parser gets what it would get from libtdb: a key and a value that live during the call.
        return unsafe { parser(key, Data::from_slice(record), private_data) };
    }
    result
}

/// Shows an id that this node must not draw as one in use.
///
/// # Safety
///
/// As for libtdb's function.
#[unsafe(no_mangle)]
unsafe extern "C" fn tdb_fetch(tdb: *mut Context, key: Data) -> Data {
    let database = databases::database_of(tdb);
    if let Some(database) = database {
        databases::set_refused(database, None);
    }
    // SAFETY: passed through.
    let fetched = unsafe { libtdb::tdb_fetch(tdb, key) };
    if database != Some(Database::OpenGlobal) || !fetched.dptr.is_null() {
        return fetched;
    }
    let mut copy = [0; IN_USE_RECORD_MAX];
    // SAFETY: the key is readable during the call.
    let Some(record) = concern::in_use_record(fence::page(), unsafe { key.as_slice() }, &mut copy) else {
        return fetched;
    };
    // SAFETY: the caller frees the value with free(), so it comes from malloc; it is written only if it is
    // there, and does not overlap the copy.
    unsafe {
        let value = libc::malloc(record.len()).cast::<u8>();
        if value.is_null() {
            return fetched;
        }
        value.copy_from_nonoverlapping(record.as_ptr(), record.len());
        Data { dptr: value, dsize: record.len() }
    }
}

/// A caller's parser, and whether libtdb called it.
struct WatchedParser {
    parser: Parser,
    private_data: *mut c_void,
    called: bool,
}

unsafe extern "C" fn call_watched(key: Data, data: Data, watched: *mut c_void) -> c_int {
    // SAFETY: `tdb_parse_record` above passes a `WatchedParser` that outlives the call.
    let watched = unsafe { &mut *watched.cast::<WatchedParser>() };
    watched.called = true;
    // SAFETY: what libtdb passes on, with the caller's own pointer.
    unsafe { (watched.parser)(key, data, watched.private_data) }
}

/// What a store returns that must not be made, after asking if it concerns the cluster. What ctdb puts before the value is
/// left out, and a value of that alone deletes the record.
///
/// # Safety
///
/// Key and pieces are readable.
unsafe fn instead_of_store(tdb: *mut Context, key: Data, pieces: &[Data]) -> Option<c_int> {
    let file = databases::file_of(tdb)?;
    let (database, header_len) = (file.database, file.header_len());
    let stored_len = pieces.iter().fold(0, |length: usize, piece| length.saturating_add(piece.dsize));
    let value_len = stored_len.saturating_sub(header_len);
    if file.is_clustered && value_len == 0 {
        // SAFETY: promised by the caller.
        return unsafe { instead_of_delete(tdb, key) };
    }
    // SAFETY: promised by the caller.
    let key = unsafe { key.as_slice() };
    recent::note(database, key);
    if database == Database::OpenGlobal {
        concern::global_id(key).into_iter().for_each(own_opens::add);
    }
    instead_of(database, key, Change::Store { value_len }, |key| {
        let mut value = copied(value_len)?;
        let mut left_out = header_len;
        for piece in pieces {
            // SAFETY: promised by the caller.
            let bytes = unsafe { piece.as_slice() };
            let skipped = left_out.min(bytes.len());
            left_out -= skipped;
            value.extend_from_slice(bytes.get(skipped..).unwrap_or_default());
        }
        Some(match database {
            Database::OpenGlobal if create_file::deletes_file() => Request::StoreDeleting { key, value },
            database => Request::Store { database, key, value },
        })
    })
}

/// What a delete returns that must not be made, after asking if it concerns the cluster.
///
/// # Safety
///
/// The key is readable.
unsafe fn instead_of_delete(tdb: *mut Context, key: Data) -> Option<c_int> {
    let database = databases::database_of(tdb)?;
    // SAFETY: promised by the caller.
    let key = unsafe { key.as_slice() };
    instead_of(database, key, Change::Delete, |key| Some(Request::Delete { database, key }))
}

/// Whether a record must not be looked at, after asking if it concerns the cluster. Not asked under a lock: the answer may
/// take what another process does that waits for the lock.
///
/// # Safety
///
/// The key is readable.
unsafe fn refuses_look(tdb: *mut Context, key: Data) -> bool {
    let Some(file) = databases::file_of(tdb) else { return false };
    databases::set_refused(file.database, None);
    // SAFETY: promised by the caller.
    let key = unsafe { key.as_slice() };
    if !concern::must_look(fence::page(), file, key, own_opens::contain) || chain_locks::any() {
        return false;
    }
    keeping_errno(|| {
        let database = file.database;
        let concerns_nobody = match database {
            // One that ends, or that was let in already.
            Database::TconGlobal => is_there(database, key),
            // Without ctdb a record that is not there is nobody's, as that of an id which has just been drawn.
            _ => !file.is_clustered && !is_there(database, key),
        };
        if concerns_nobody {
            return false;
        }
        let error = match copy_of(key).map(|key| sidecar::ask(&Request::Look { database, key }, Vec::new())) {
            Some(Verdict::Proceed | Verdict::Skip) => return false,
            Some(Verdict::NoAnswer) => TdbError::Io,
            Some(Verdict::Refuse(error)) => error,
            None => TdbError::Oom,
        };
        databases::set_refused(database, Some(error));
        true
    })
}

fn instead_of(
    database: Database,
    key: &[u8],
    change: Change,
    request: impl FnOnce(Vec<u8>) -> Option<Request>,
) -> Option<c_int> {
    const FAILED: c_int = -1;
    const DONE: c_int = 0;

    databases::set_refused(database, None);
    if !concern::must_ask(fence::page(), database, key, change) {
        return None;
    }
    keeping_errno(|| {
        let Some(request) = copy_of(key).and_then(request) else {
            databases::set_refused(database, Some(TdbError::Oom));
            return Some(FAILED);
        };
        if changes_nothing(&request) {
            return None;
        }
        let expected = match database {
            Database::OpenGlobal => sidecar::records_of(recent::keys()).unwrap_or_default(),
            _ => Vec::new(),
        };
        let error = match (sidecar::ask(&request, expected), database, change) {
            (Verdict::Proceed, _, _) => return None,
            (Verdict::Skip, _, _) => return Some(DONE),
            // A tree connect that nobody admitted may go without anybody's consent; where that fails, `smbd`
            // ends the connection instead of telling its client why.
            (Verdict::NoAnswer, Database::TconGlobal, Change::Delete) => return None,
            (Verdict::NoAnswer, _, _) => TdbError::Io,
            (Verdict::Refuse(error), _, _) => error,
        };
        databases::set_refused(database, Some(error));
        Some(FAILED)
    })
}

/// Whether share modes stay what they are, as far as it concerns opens: the new value and the one that is stored differ
/// only in who waits for the record and who holds its lock. The stored one is what the cluster knows, because no store
/// was made without its consent.
fn changes_nothing(request: &Request) -> bool {
    let (database, key, value) = match request {
        Request::Store { database, key, value } => (*database, key, value.as_slice()),
        Request::Delete { database, key } => (*database, key, [].as_slice()),
        _ => return false,
    };
    let (Database::Locking, Some(prelude)) = (database, fence::page().and_then(PageReader::locking_prelude))
    else {
        return false;
    };
    let stored = sidecar::records_of(vec![RecordKey { database, key: key.clone() }]);
    let Some(Record { value: stored, .. }) = stored.ok().and_then(|mut stored| stored.pop()) else {
        return false;
    };
    concern::says_the_same(prelude, stored.as_deref().unwrap_or_default(), value)
}

/// Whether there is a record. In doubt there is.
fn is_there(database: Database, key: &[u8]) -> bool {
    let stored = copy_of(key).map(|key| sidecar::records_of(vec![RecordKey { database, key }]));
    !matches!(stored, Some(Ok(stored)) if stored.iter().all(|record| record.value.is_none()))
}

/// A copy, unless it can never be sent or there is no memory.
pub(crate) fn copy_of(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut copy = copied(bytes.len())?;
    copy.extend_from_slice(bytes);
    Some(copy)
}

/// Room for a copy, unless it can never be sent or there is no memory.
fn copied(length: usize) -> Option<Vec<u8>> {
    let mut copy = Vec::new();
    if length > frame::frame::MAX_FRAME || copy.try_reserve_exact(length).is_err() {
        return None;
    }
    Some(copy)
}

/// Runs `action` and leaves errno as it was.
pub(crate) fn keeping_errno<R>(action: impl FnOnce() -> R) -> R {
    // SAFETY: the address of the thread's own errno.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above.
    let before = unsafe { *errno };
    let result = action();
    // SAFETY: as above.
    unsafe { *errno = before };
    result
}
