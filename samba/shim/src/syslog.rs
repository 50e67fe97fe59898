//! One line to syslog when the library cannot do its work: the only way in which it speaks to a human.

#![expect(unsafe_code, reason = "syslog(3)")]

use std::ffi::CStr;
use std::sync::atomic::{AtomicU32, Ordering};

/// What can be wrong, once per process each.
#[derive(Clone, Copy)]
pub(crate) enum Trouble {
    /// A function of libtdb is missing.
    NoLibtdb,
    /// The run directory cannot be used.
    RunDir,
    /// No random bytes for the instance.
    NoRandom,
    /// The fence cannot be armed, so this process may not serve protected shares.
    NoFence,
    /// Nobody answered.
    NoAnswer,
}

static SAID: AtomicU32 = AtomicU32::new(0);

impl Trouble {
    fn message(self) -> &'static CStr {
        match self {
            Self::NoLibtdb => c"holdfast: libtdb.so.1 is not loaded or lacks a function; its call fails",
            Self::RunDir => {
                c"holdfast: HOLDFAST_RUN_DIR is not an absolute path that fits a socket address; \
                  durable handles are NOT protected"
            }
            Self::NoRandom => {
                c"holdfast: no random bytes from getrandom(2); durable handles are NOT protected"
            }
            Self::NoFence => {
                c"holdfast: cannot create a timer (RLIMIT_SIGPENDING?); \
                  tree connects are refused, because this process could not be fenced"
            }
            Self::NoAnswer => {
                c"holdfast: the sidecar did not answer in time and a store was refused; \
                  is `holdfast run` up, and its run directory the one in HOLDFAST_RUN_DIR?"
            }
        }
    }

    /// Says it, unless this process has said it before. Not for signal handlers.
    pub(crate) fn say_once(self) {
        let bit = 1 << (self as u32);
        if SAID.fetch_or(bit, Ordering::Relaxed) & bit == 0 {
            // SAFETY: the format takes one C string and gets one.
            unsafe {
                libc::syslog(libc::LOG_DAEMON | libc::LOG_ERR, c"%s".as_ptr(), self.message().as_ptr())
            };
        }
    }
}
