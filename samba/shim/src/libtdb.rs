//! libtdb as its callers see it: the types of its ABI, and the real functions behind the interposed ones; and some of
//! Samba's own.
//!
//! The real functions are looked up when they are first needed, not when this library is loaded: at that time
//! libtdb may not be there yet.

#![expect(unsafe_code, reason = "libtdb is a C library")]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use frame::TdbError;

use crate::messages::Receiver;
use crate::syslog::Trouble;

/// An open database (`TDB_CONTEXT`); opaque.
#[repr(C)]
pub(crate) struct Context {
    opaque: [u8; 0],
}

/// `TDB_DATA`: a key or value, passed by value. Who owns the bytes depends on the function.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Data {
    pub(crate) dptr: *mut u8,
    pub(crate) dsize: usize,
}

impl Data {
    pub(crate) const NULL: Self = Self { dptr: ptr::null_mut(), dsize: 0 };

    /// Libtdb does not change keys or values through this type, it only lacks `const`.
    pub(crate) fn from_slice(bytes: &[u8]) -> Self {
        Self { dptr: bytes.as_ptr().cast_mut(), dsize: bytes.len() }
    }

    /// # Safety
    ///
    /// `dptr` is null, or `dsize` bytes there can be read and stay as they are for `'a`.
    pub(crate) unsafe fn as_slice<'a>(self) -> &'a [u8] {
        if self.dptr.is_null() {
            return &[];
        }
        // SAFETY: promised by the caller.
        unsafe { std::slice::from_raw_parts(self.dptr, self.dsize) }
    }
}

/// The callback of `tdb_parse_record`.
pub(crate) type Parser = unsafe extern "C" fn(key: Data, data: Data, private_data: *mut c_void) -> c_int;

/// A function of libtdb that is looked up when it is first called.
struct Symbol {
    name: &'static CStr,
    address: AtomicPtr<c_void>,
}

impl Symbol {
    const fn new(name: &'static CStr) -> Self {
        Self { name, address: AtomicPtr::new(ptr::null_mut()) }
    }

    fn address(&self) -> *mut c_void {
        let known = self.address.load(Ordering::Relaxed);
        if !known.is_null() {
            return known;
        }
        // SAFETY: both take C strings. A handle from RTLD_NOLOAD is kept for ever: libtdb stays loaded.
        let found = unsafe {
            let next = libc::dlsym(libc::RTLD_NEXT, self.name.as_ptr());
            if next.is_null() {
                // Loaded after this library into a scope of its own.
                let libtdb = libc::dlopen(c"libtdb.so.1".as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD);
                if libtdb.is_null() { ptr::null_mut() } else { libc::dlsym(libtdb, self.name.as_ptr()) }
            } else {
                next
            }
        };
        if found.is_null() {
            Trouble::NoLibtdb.say_once();
        }
        self.address.store(found, Ordering::Relaxed);
        found
    }
}

/// Defines a real function with its C signature, and what it returns where libtdb lacks it.
macro_rules! real {
    ($(fn $name:ident($($argument:ident: $type:ty),*) -> $result:ty, else $missing:expr;)*) => {$(
        /// # Safety
        ///
        /// As for libtdb's function of this name.
        #[allow(clippy::too_many_arguments, reason = "one of Samba's functions has so many")]
        #[allow(clippy::unused_unit, reason = "one of Samba's functions returns nothing")]
        pub(crate) unsafe fn $name($($argument: $type),*) -> $result {
            static SYMBOL: Symbol = Symbol::new(
                // The name with its closing zero byte is a C string by construction.
                match CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                    Ok(name) => name,
                    Err(_) => panic!("a function name contains no zero byte"),
                },
            );
            let address = SYMBOL.address();
            if address.is_null() {
                return $missing;
            }
            // SAFETY: the symbol is libtdb's, whose ABI gives it this signature; the rest is promised by the
            // caller.
            unsafe {
                let function: unsafe extern "C" fn($($type),*) -> $result = std::mem::transmute(address);
                function($($argument),*)
            }
        }
    )*};
}

real! {
    fn tdb_open_ex(
        name: *const c_char, hash_size: c_int, tdb_flags: c_int, open_flags: c_int, mode: libc::mode_t,
        log_ctx: *const c_void, hash_fn: *const c_void
    ) -> *mut Context, else ptr::null_mut();
    fn tdb_close(tdb: *mut Context) -> c_int, else -1;
    fn tdb_store(tdb: *mut Context, key: Data, dbuf: Data, flag: c_int) -> c_int, else -1;
    fn tdb_storev(
        tdb: *mut Context, key: Data, dbufs: *const Data, num_dbufs: c_int, flag: c_int
    ) -> c_int, else -1;
    fn tdb_delete(tdb: *mut Context, key: Data) -> c_int, else -1;
    fn tdb_error(tdb: *mut Context) -> c_int, else TdbError::Io as c_int;
    fn tdb_parse_record(
        tdb: *mut Context, key: Data, parser: Parser, private_data: *mut c_void
    ) -> c_int, else -1;
    fn tdb_fetch(tdb: *mut Context, key: Data) -> Data, else Data::NULL;
    fn tdb_chainlock(tdb: *mut Context, key: Data) -> c_int, else -1;
    fn tdb_chainunlock(tdb: *mut Context, key: Data) -> c_int, else -1;
    fn smb_vfs_call_create_file(
        handle: *mut c_void, req: *mut c_void, dirfsp: *mut c_void, smb_fname: *mut c_void, access_mask: u32,
        share_access: u32, create_disposition: u32, create_options: u32, file_attributes: u32,
        oplock_request: u32, lease: *const c_void, allocation_size: u64, private_flags: u32, sd: *mut c_void,
        ea_list: *mut c_void, result: *mut c_void, pinfo: *mut c_void, in_context_blobs: *const c_void,
        out_context_blobs: *mut c_void
    ) -> u32, else INTERNAL_ERROR;
    fn messaging_send(
        msg_ctx: *mut c_void, server: Receiver, msg_type: u32, data: *const Data
    ) -> u32, else INTERNAL_ERROR;
    fn smbd_smb2_request_process_setinfo(req: *mut c_void) -> u32, else INTERNAL_ERROR;
    fn fh_get_gen_id(fh: *mut c_void) -> u64, else 0;
    fn map_nt_error_from_tdb(error: c_int) -> u32, else INTERNAL_ERROR;
    fn fh_set_position_information(fh: *mut c_void, position: u64) -> (), else ();
}

/// STATUS_INTERNAL_ERROR: Samba lacks a function that it has called.
const INTERNAL_ERROR: u32 = 0xC000_00E5;

/// Fetches a record, past the interposed functions: what is really stored.
///
/// # Safety
///
/// `tdb` is an open database.
pub(crate) unsafe fn fetch(tdb: *mut Context, key: &[u8]) -> Result<Option<Vec<u8>>, TdbError> {
    // SAFETY: promised by the caller.
    let fetched = unsafe { tdb_fetch(tdb, Data::from_slice(key)) };
    if fetched.dptr.is_null() {
        // SAFETY: promised by the caller.
        let error = unsafe { tdb_error(tdb) };
        return match u8::try_from(error).ok().and_then(TdbError::from_wire) {
            None | Some(TdbError::NoExist) => Ok(None),
            Some(error) => Err(error),
        };
    }
    // SAFETY: `tdb_fetch` returned a buffer of this length from malloc, which is now ours.
    let value = unsafe { fetched.as_slice() }.to_vec();
    // SAFETY: as above; it is not used again.
    unsafe { libc::free(fetched.dptr.cast()) };
    Ok(Some(value))
}
