//! The one thing about an open that Samba keeps in its memory alone and that outlives its process: whether it was made to
//! delete its file when it is closed.
//!
//! Samba passes every CREATE through one function of its own library, which it exports for VFS modules and calls through
//! the procedure linkage table. It has had the same signature since Samba 4.13. Where it is bound in another way, as
//! `-Bsymbolic` does, this is never called: then such a file is left by a node that dies, and nothing else is lost.

#![expect(unsafe_code, reason = "this is a C function")]

use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::libtdb;

/// FILE_DELETE_ON_CLOSE among the CreateOptions of a CREATE (MS-SMB2 2.2.13).
const DELETE_ON_CLOSE: u32 = 0x1000;

/// STATUS_SUCCESS.
const SUCCESS: u32 = 0;

// Samba works on CREATEs in one thread, so this needs no order with anything.
static DELETES_FILE: AtomicBool = AtomicBool::new(false);

/// Whether the last CREATE of this process that succeeded has made an open that deletes its file. What Samba stores of a new
/// open it stores before it looks at another CREATE.
pub(crate) fn deletes_file() -> bool {
    DELETES_FILE.load(Ordering::Relaxed)
}

/// Remembers what the CREATE asked for, when it has succeeded. One CREATE may call this within itself.
///
/// # Safety
///
/// As for Samba's function.
#[unsafe(no_mangle)]
unsafe extern "C" fn smb_vfs_call_create_file(
    handle: *mut c_void,
    req: *mut c_void,
    dirfsp: *mut c_void,
    smb_fname: *mut c_void,
    access_mask: u32,
    share_access: u32,
    create_disposition: u32,
    create_options: u32,
    file_attributes: u32,
    oplock_request: u32,
    lease: *const c_void,
    allocation_size: u64,
    private_flags: u32,
    sd: *mut c_void,
    ea_list: *mut c_void,
    result: *mut c_void,
    pinfo: *mut c_void,
    in_context_blobs: *const c_void,
    out_context_blobs: *mut c_void,
) -> u32 {
    // SAFETY: passed through.
    let status = unsafe {
        libtdb::smb_vfs_call_create_file(
            handle,
            req,
            dirfsp,
            smb_fname,
            access_mask,
            share_access,
            create_disposition,
            create_options,
            file_attributes,
            oplock_request,
            lease,
            allocation_size,
            private_flags,
            sd,
            ea_list,
            result,
            pinfo,
            in_context_blobs,
            out_context_blobs,
        )
    };
    DELETES_FILE.store(status == SUCCESS && create_options & DELETE_ON_CLOSE != 0, Ordering::Relaxed);
    status
}
