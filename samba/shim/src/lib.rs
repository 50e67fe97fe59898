//! `libholdfast_tdb.so`: the library that `smbd` preloads so that no durable open is acknowledged before the
//! cluster has it.
//!
//! It interposes the libtdb calls by which Samba keeps its opens. For the five databases of
//! [`frame::Database`] it looks into the shared page whether a store or delete concerns the cluster; if so it
//! asks the sidecar and makes the real call only after `Proceed`. Everything else goes straight to libtdb, at
//! the price of a few memory loads. What no record tells it learns from four functions of Samba's own; in a fifth
//! it says what libtdb has no error for.
//!
//! ```text
//!   smbd ── tdb_store ──► interpose ── concerns the cluster? ── no ───────────────► libtdb
//!                             │ yes                                                   ▲
//!                             └► sidecar::ask ══ unix socket ══► holdfast ── Proceed ─┘
//!   a timer ── tick ──► fence: may this process go on serving?  no ─► SIGKILL
//! ```
//!
//! | module | what |
//! |---|---|
//! | `interpose` | the exported functions; the only place that libtdb's callers see |
//! | `libtdb` | the real functions, and libtdb's types |
//! | `databases` | which `TDB_CONTEXT` is which database, and what was refused last |
//! | `create_file` | whether the last CREATE has made an open that deletes its file |
//! | `file_position` | the position that a client has set |
//! | `messages` | that an oplock or a lease is about to be broken |
//! | `nt_status` | what a client is told whose claim was refused |
//! | `chain_locks` | how many locks this process holds |
//! | `own_opens` | which opens this process has stored |
//! | `concern` | which calls concern the cluster: a pure function of the page |
//! | `process` | one start of `smbd` and the processes forked from it |
//! | `sidecar` | the connection: hello, ask, wait, reconnect, ask again |
//! | `fence` | the page, the tick, and the end |
//!
//! # What it does not do
//!
//! It knows no record layout but the length of what ctdb puts before a value, keeps no record, starts no thread, prints nothing and links nothing but libc.
//! It does not watch `tdb_append`, `tdb_wipe_all` and transactions: Samba uses none of them on these
//! databases.
//!
//! # What must stay true
//!
//! - Without [`frame::RUN_DIR_ENV`], or in a process where something it needs is missing, `smbd` works as if
//!   the library were not there; in the second case syslog says so, once.
//! - `errno` after a call is libtdb's, whatever was done in between.
//! - A process that ever was bound to a lease never outlives it: the kernel holds the timer.
//! - A forked child never uses its parent's connection or timers.
//! - The wait happens under a record's chain lock. So the sidecar must answer each process independently of
//!   all others, and never need a chain lock to answer. Only a look ([`frame::Request::Look`]) may take longer; it is
//!   asked by a process that holds no lock, and not at all by one that does.

mod chain_locks;
mod concern;
mod create_file;
mod databases;
mod fence;
mod file_position;
mod interpose;
mod libtdb;
mod messages;
mod nt_status;
mod own_opens;
mod process;
mod recent;
mod sidecar;
mod syslog;

/// Where cargo left the shared object that was built together with the running test or binary.
///
/// Cargo builds every crate type of a library that something depends on, and leaves the shared object in
/// `target/<profile>/deps`. A test runs from that directory, a binary from the one above it.
pub fn built_library_path() -> std::io::Result<std::path::PathBuf> {
    const FILE: &str = "libholdfast_tdb.so";
    let program = std::env::current_exe()?;
    let directory = program.parent().unwrap_or(std::path::Path::new("."));
    let candidates =
        [directory.join(FILE), directory.join("deps").join(FILE), directory.join("../deps").join(FILE)];
    // The newest, because the directory of the binaries may hold one from an earlier build.
    candidates
        .into_iter()
        .filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path)))
        .max()
        .map(|(_, path)| path)
        .ok_or_else(|| {
            let message = format!("no {FILE} beside {}: build holdfast-tdb first", program.display());
            std::io::Error::new(std::io::ErrorKind::NotFound, message)
        })
}
