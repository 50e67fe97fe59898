//! The position of a file handle (FilePositionInformation, MS-FSCC 2.4.40), which Samba keeps in its memory until the connection is
//! lost.
//!
//! A client sets it by SET_INFO, and every READ moves it. What a client has set it wants back; it is told to the sidecar before the
//! client is answered. Where reads have moved it to is not: nobody would wait for a commit in each of them.
//!
//! Samba sets both through one function, and passes every SET_INFO through another one. It calls these through the procedure
//! linkage table, with the same signatures since 4.15.

#![expect(unsafe_code, reason = "these are C functions")]

use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, Ordering};

use frame::Request;

use crate::interpose::keeping_errno;
use crate::{fence, libtdb, sidecar};

// Samba works on requests in one thread, so this needs no order with anything.
static IS_SET_INFO: AtomicBool = AtomicBool::new(false);

/// Notes that what happens within is done for a SET_INFO.
///
/// # Safety
///
/// As for Samba's function.
#[unsafe(no_mangle)]
unsafe extern "C" fn smbd_smb2_request_process_setinfo(req: *mut c_void) -> u32 {
    IS_SET_INFO.store(true, Ordering::Relaxed);
    // SAFETY: passed through.
    let status = unsafe { libtdb::smbd_smb2_request_process_setinfo(req) };
    IS_SET_INFO.store(false, Ordering::Relaxed);
    status
}

/// Tells the sidecar of a position that a client sets.
///
/// # Safety
///
/// As for Samba's function.
#[unsafe(no_mangle)]
unsafe extern "C" fn fh_set_position_information(fh: *mut c_void, position: u64) {
    // Without a page nobody has been admitted yet who could have a durable open.
    if IS_SET_INFO.load(Ordering::Relaxed) && fence::page().is_some() {
        // SAFETY: Samba passes a file handle of its own.
        let share_file_id = unsafe { libtdb::fh_get_gen_id(fh) };
        keeping_errno(|| {
            // It is set in any case: smbd would tell its client so all the same.
            let _ = sidecar::ask(&Request::Position { share_file_id, position }, Vec::new());
        });
    }
    // SAFETY: passed through.
    unsafe { libtdb::fh_set_position_information(fh, position) }
}
