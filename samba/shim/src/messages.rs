//! The one message between processes of Samba that has to be known before it is sent: that an oplock or a lease is to be broken.
//!
//! Who is about to change a file asks those to let go that cache reads of it, and does not wait for them. If they die before
//! they have passed it on, their clients never hear of it, and no record says that they should have.
//!
//! Samba sends all messages through one function of another library of its own, with the same signature since 4.2.

#![expect(unsafe_code, reason = "this is a C function")]

use std::ffi::c_void;

use frame::Request;

use crate::interpose::{copy_of, keeping_errno};
use crate::{concern, fence, libtdb, sidecar};

/// `MSG_SMB_BREAK_REQUEST` (Samba's `messaging.idl`).
const BREAK_REQUEST: u32 = 0x0306;

/// A process, by its `server_id`. Passed by value.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Receiver {
    pid: u64,
    task_id: u32,
    vnn: u32,
    unique_id: u64,
}

impl Receiver {
    fn to_bytes(self) -> [u8; 24] {
        let mut bytes = [0; 24];
        let (pid, rest) = bytes.split_at_mut(8);
        let (task_id, rest) = rest.split_at_mut(4);
        let (vnn, unique_id) = rest.split_at_mut(4);
        pid.copy_from_slice(&self.pid.to_le_bytes());
        task_id.copy_from_slice(&self.task_id.to_le_bytes());
        vnn.copy_from_slice(&self.vnn.to_le_bytes());
        unique_id.copy_from_slice(&self.unique_id.to_le_bytes());
        bytes
    }
}

/// Tells the sidecar of a break before it is asked for.
///
/// # Safety
///
/// As for Samba's function.
#[unsafe(no_mangle)]
unsafe extern "C" fn messaging_send(
    msg_ctx: *mut c_void,
    server: Receiver,
    msg_type: u32,
    data: *const libtdb::Data,
) -> u32 {
    // SAFETY: a message is readable, or there is none. Talloc's blobs look like libtdb's.
    if let Some(data) = unsafe { data.as_ref() }.filter(|_| msg_type == BREAK_REQUEST) {
        // SAFETY: as above.
        tell(server, unsafe { data.as_slice() });
    }
    // SAFETY: passed through.
    unsafe { libtdb::messaging_send(msg_ctx, server, msg_type, data) }
}

fn tell(receiver: Receiver, message: &[u8]) {
    if !concern::must_tell_of_break(fence::page(), message) {
        return;
    }
    keeping_errno(|| {
        let Some(message) = copy_of(message) else { return };
        // It is sent in any case: smbd would change the file all the same.
        let _ = sidecar::ask(&Request::Break { receiver: receiver.to_bytes(), message }, Vec::new());
    });
}
