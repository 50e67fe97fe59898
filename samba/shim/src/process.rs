//! One start of `smbd`: the process that opens the databases first, and all it forks.
//!
//! The *instance* is drawn once and inherited by fork, so all these processes show the same one. A program
//! that one of them executes (a script, a helper) is not part of it and must not become an instance of its
//! own, because the sidecar would take that for a restart of `smbd` and end the first: hence the run
//! directory is taken out of the environment when the instance is drawn.

#![expect(unsafe_code, reason = "environment, fork handlers and process ids are C interfaces")]

use std::ffi::{CStr, CString};
use std::mem;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::syslog::Trouble;
use crate::{chain_locks, fence, own_opens, sidecar};

/// What every process of this start of `smbd` knows.
pub(crate) struct Process {
    /// Random bytes that name this start of `smbd`, and prove it to the sidecar.
    pub(crate) instance: [u8; 16],
    /// Who drew them.
    pub(crate) main_pid: u32,
    /// Where the shared page is.
    pub(crate) page_path: CString,
    /// Where the sidecar listens.
    pub(crate) socket: libc::sockaddr_un,
}

static PROCESS: OnceLock<Process> = OnceLock::new();

/// This process, once it has opened one of the databases with a run directory given.
pub(crate) fn current() -> Option<&'static Process> {
    PROCESS.get()
}

/// The id of this process, which is not inherited.
pub(crate) fn pid() -> u32 {
    std::process::id()
}

/// Makes this process and all it will fork an instance, if a run directory is given. The first call decides;
/// it is made when the first of the databases was opened, which `smbd` does after it became a daemon and
/// before it forks for clients. Returns whether this process is part of an instance.
pub(crate) fn join() -> bool {
    static DECIDED: AtomicBool = AtomicBool::new(false);
    if DECIDED.swap(true, Ordering::Relaxed) {
        return current().is_some();
    }
    let Some(run_dir) = take_run_dir() else { return false };
    match Process::new(&run_dir) {
        Ok(process) => {
            let _ = PROCESS.set(process);
            // SAFETY: the handler is a function that lives as long as the process.
            unsafe { libc::pthread_atfork(None, None, Some(begin)) };
            begin();
            true
        }
        Err(trouble) => {
            trouble.say_once();
            false
        }
    }
}

/// What every process of an instance does once: the first when it becomes one, the others right after fork,
/// when descriptors are the parent's and timers are gone.
extern "C" fn begin() {
    chain_locks::begin();
    own_opens::begin();
    sidecar::begin();
    fence::begin();
}

/// The run directory from the environment, removed from it.
fn take_run_dir() -> Option<CString> {
    let name = CString::new(frame::RUN_DIR_ENV).ok()?;
    // SAFETY: both get a C string. The value is copied before it is removed. Called while `smbd` starts and
    // has one thread, so nobody reads the environment meanwhile.
    unsafe {
        let value = libc::getenv(name.as_ptr());
        if value.is_null() {
            return None;
        }
        let run_dir = CStr::from_ptr(value).to_owned();
        libc::unsetenv(name.as_ptr());
        Some(run_dir)
    }
}

impl Process {
    fn new(run_dir: &CStr) -> Result<Self, Trouble> {
        let file = |name: &str| {
            let path = [run_dir.to_bytes(), b"/", name.as_bytes()].concat();
            CString::new(path).map_err(|_| Trouble::RunDir)
        };
        // Relative, it would mean another directory in a process that has changed its own.
        if !run_dir.to_bytes().starts_with(b"/") {
            return Err(Trouble::RunDir);
        }
        let socket = socket_address(&file(frame::SOCKET_FILE)?).ok_or(Trouble::RunDir)?;
        let instance = random_bytes().ok_or(Trouble::NoRandom)?;
        Ok(Self { instance, main_pid: pid(), page_path: file(frame::PAGE_FILE)?, socket })
    }
}

/// The address of a unix socket; `None` if the path is too long for one.
fn socket_address(path: &CStr) -> Option<libc::sockaddr_un> {
    // SAFETY: all-zero bytes are a valid address of no family.
    let mut address: libc::sockaddr_un = unsafe { mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let path = path.to_bytes_with_nul();
    for (to, from) in address.sun_path.get_mut(..path.len())?.iter_mut().zip(path) {
        *to = from.cast_signed();
    }
    Some(address)
}

fn random_bytes() -> Option<[u8; 16]> {
    let mut bytes = [0; 16];
    // SAFETY: the buffer is writable for its length. So few bytes are returned whole or not at all.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    (got == 16).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_directory_must_be_absolute_and_fit_an_address() {
        assert!(Process::new(c"/run/holdfast").is_ok());
        assert!(matches!(Process::new(c"run/holdfast"), Err(Trouble::RunDir)));
        let long = CString::new(format!("/{}", "x".repeat(100))).expect("no zero byte");
        assert!(matches!(Process::new(&long), Err(Trouble::RunDir)));
    }

    #[test]
    fn instances_differ() {
        assert_ne!(random_bytes().expect("random"), random_bytes().expect("random"));
    }
}
