//! Makes the libtdb calls that it is told on standard input, one a line, and says the result of each.
//!
//! A stand-in for `smbd`: the shim's tests preload the shim into it, and so can anybody who wants to watch a
//! sidecar without a Samba. `NAME` is a database's file name, keys and values are hexadecimal, `-` is
//! nothing.
//!
//! ```text
//! open PATH              -> ok | failed
//! store NAME KEY VALUE   -> ok | error CODE
//! storev NAME KEY VALUE… -> ok | error CODE
//! delete NAME KEY        -> ok | error CODE
//! fetch NAME KEY         -> VALUE | -
//! parse NAME KEY         -> VALUE | -
//! lock NAME KEY          -> ok | error CODE
//! unlock NAME KEY        -> ok | error CODE
//! pid                    -> PID
//! fork                   -> PID of the child, which reads the following lines
//! printenv VARIABLE      -> what a program executed from here sees | -
//! ```
//!
//! Without libtdb it ends with status 77.

#![expect(unsafe_code, reason = "libtdb is a C library")]
#![expect(clippy::print_stdout, reason = "what a program says to its user")]

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io::Write;
use std::ptr;

const NO_LIBTDB: i32 = 77;
const TDB_REPLACE: c_int = 1;

#[repr(C)]
#[derive(Clone, Copy)]
struct Data {
    dptr: *mut u8,
    dsize: usize,
}

type Parser = unsafe extern "C" fn(Data, Data, *mut c_void) -> c_int;
type OpenEx = unsafe extern "C" fn(
    *const c_char,
    c_int,
    c_int,
    c_int,
    libc::mode_t,
    *const c_void,
    *const c_void,
) -> *mut c_void;
type Store = unsafe extern "C" fn(*mut c_void, Data, Data, c_int) -> c_int;
type Storev = unsafe extern "C" fn(*mut c_void, Data, *const Data, c_int, c_int) -> c_int;
/// `tdb_delete`, `tdb_chainlock`, `tdb_chainunlock`.
type OfKey = unsafe extern "C" fn(*mut c_void, Data) -> c_int;
type Error = unsafe extern "C" fn(*mut c_void) -> c_int;
type Fetch = unsafe extern "C" fn(*mut c_void, Data) -> Data;
type ParseRecord = unsafe extern "C" fn(*mut c_void, Data, Parser, *mut c_void) -> c_int;

fn main() {
    // SAFETY: takes a C string. Global, so that the lookups below find first what was preloaded.
    let libtdb = unsafe { libc::dlopen(c"libtdb.so.1".as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    if libtdb.is_null() {
        std::process::exit(NO_LIBTDB);
    }
    let mut databases = HashMap::new();
    let mut line = String::new();
    while std::io::stdin().read_line(&mut line).is_ok_and(|length| length > 0) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = call(&mut databases, &words).unwrap_or_else(|| format!("cannot: {line}"));
        println!("{answer}");
        let _ = std::io::stdout().flush();
        line.clear();
    }
}

fn call(databases: &mut HashMap<String, *mut c_void>, words: &[&str]) -> Option<String> {
    let database = |name: &str| databases.get(name).copied();
    match words {
        ["open", path] => {
            let context = open(path)?;
            let name = path.rsplit('/').next()?;
            databases.insert(name.to_owned(), context);
            Some(if context.is_null() { "failed" } else { "ok" }.to_owned())
        }
        ["store", name, key, value] => {
            let (key, value) = (from_hex(key)?, from_hex(value)?);
            // SAFETY: an open database, and bytes that live during the call.
            let result = unsafe {
                symbol::<Store>(c"tdb_store")?(database(name)?, data(&key), data(&value), TDB_REPLACE)
            };
            result_of(result, database(name)?)
        }
        ["storev", name, key, pieces @ ..] => {
            let key = from_hex(key)?;
            let pieces: Vec<Vec<u8>> = pieces.iter().map(|piece| from_hex(piece)).collect::<Option<_>>()?;
            let pieces: Vec<Data> = pieces.iter().map(|piece| data(piece)).collect();
            let count = c_int::try_from(pieces.len()).ok()?;
            let storev = symbol::<Storev>(c"tdb_storev")?;
            // SAFETY: an open database, and bytes that live during the call.
            let result = unsafe { storev(database(name)?, data(&key), pieces.as_ptr(), count, TDB_REPLACE) };
            result_of(result, database(name)?)
        }
        [verb @ ("delete" | "lock" | "unlock"), name, key] => {
            let key = from_hex(key)?;
            let function = symbol::<OfKey>(match *verb {
                "delete" => c"tdb_delete",
                "lock" => c"tdb_chainlock",
                _ => c"tdb_chainunlock",
            })?;
            // SAFETY: as above.
            let result = unsafe { function(database(name)?, data(&key)) };
            result_of(result, database(name)?)
        }
        ["fetch", name, key] => {
            let key = from_hex(key)?;
            // SAFETY: as above.
            let fetched = unsafe { symbol::<Fetch>(c"tdb_fetch")?(database(name)?, data(&key)) };
            if fetched.dptr.is_null() {
                return Some("-".to_owned());
            }
            // SAFETY: libtdb returned a buffer of this length from malloc, which is ours and freed once.
            unsafe {
                let value = to_hex(std::slice::from_raw_parts(fetched.dptr, fetched.dsize));
                libc::free(fetched.dptr.cast());
                Some(value)
            }
        }
        ["parse", name, key] => {
            let key = from_hex(key)?;
            let mut value = "-".to_owned();
            let parse_record = symbol::<ParseRecord>(c"tdb_parse_record")?;
            // SAFETY: as above; `keep` expects a string, which lives during the call.
            unsafe { parse_record(database(name)?, data(&key), keep, (&raw mut value).cast()) };
            Some(value)
        }
        ["pid"] => Some(std::process::id().to_string()),
        ["fork"] => fork(),
        ["printenv", variable] => {
            let output = std::process::Command::new("printenv").arg(variable).output().ok()?;
            let value = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            Some(if value.is_empty() { "-".to_owned() } else { value })
        }
        _ => None,
    }
}

fn open(path: &str) -> Option<*mut c_void> {
    let path = CString::new(path).ok()?;
    let flags = libc::O_RDWR | libc::O_CREAT;
    let open_ex = symbol::<OpenEx>(c"tdb_open_ex")?;
    // SAFETY: a C string; no logging context and no hash function means libtdb's own.
    Some(unsafe { open_ex(path.as_ptr(), 0, 0, flags, 0o600, ptr::null(), ptr::null()) })
}

/// The parent waits for the child and ends as it did; the child goes on reading.
fn fork() -> Option<String> {
    // SAFETY: this program has one thread.
    match unsafe { libc::fork() } {
        -1 => None,
        0 => Some(std::process::id().to_string()),
        child => {
            let mut status = 0;
            // SAFETY: `status` is writable. Interrupted by the shim's tick, hence again and again.
            while unsafe { libc::waitpid(child, &mut status, 0) } == -1 {}
            std::process::exit(libc::WEXITSTATUS(status));
        }
    }
}

unsafe extern "C" fn keep(_key: Data, value: Data, kept: *mut c_void) -> c_int {
    // SAFETY: libtdb passes a value that lives during the call, and the pointer of `parse` above.
    unsafe {
        let bytes = if value.dsize == 0 { &[] } else { std::slice::from_raw_parts(value.dptr, value.dsize) };
        *kept.cast::<String>() = to_hex(bytes);
    }
    0
}

fn result_of(result: c_int, database: *mut c_void) -> Option<String> {
    if result == 0 {
        return Some("ok".to_owned());
    }
    // SAFETY: an open database.
    let error = unsafe { symbol::<Error>(c"tdb_error")?(database) };
    Some(format!("error {error}"))
}

/// The function of this name that a program linked with libtdb would call.
fn symbol<F: Copy>(name: &CStr) -> Option<F> {
    assert_eq!(size_of::<F>(), size_of::<*mut c_void>(), "F is a function pointer");
    // SAFETY: takes a C string.
    let address = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    // SAFETY: the types above are libtdb's signatures of the functions of these names.
    (!address.is_null()).then(|| unsafe { std::mem::transmute_copy(&address) })
}

fn data(bytes: &[u8]) -> Data {
    Data { dptr: bytes.as_ptr().cast_mut(), dsize: bytes.len() }
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    if text == "-" {
        return Some(Vec::new());
    }
    text.as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect()
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
