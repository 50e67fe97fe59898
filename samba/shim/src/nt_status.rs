//! What a client is told whose claim of an open the sidecar has refused: that there is no such open.
//!
//! A process that claims an open stores that before it looks at anything else, and tells its client the status into which
//! Samba turns libtdb's error. Libtdb has no error that becomes STATUS_OBJECT_NAME_NOT_FOUND, which is what a client
//! expects (MS-SMB2 3.3.5.9.7 and 3.3.5.9.12).
//!
//! Samba turns all of these errors in one function of a library of its own, with the same signature since 4.0.

#![expect(unsafe_code, reason = "this is a C function")]

use std::ffi::c_int;

use frame::{Database, TdbError};

use crate::{databases, libtdb};

/// STATUS_OBJECT_NAME_NOT_FOUND.
const OBJECT_NAME_NOT_FOUND: u32 = 0xC000_0034;

/// Turns the error of a refused claim into the status that means it, and every other one as Samba does.
#[unsafe(no_mangle)]
extern "C" fn map_nt_error_from_tdb(error: c_int) -> u32 {
    let database = Database::OpenGlobal;
    if error == TdbError::NoExist as c_int && databases::refused(database) == Some(TdbError::NoExist) {
        // Said once: the next of these errors may be libtdb's.
        databases::set_refused(database, None);
        return OBJECT_NAME_NOT_FOUND;
    }
    // SAFETY: it takes any number.
    unsafe { libtdb::map_nt_error_from_tdb(error) }
}
