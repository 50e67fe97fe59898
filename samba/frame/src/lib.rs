//! What the shim in `smbd` and the sidecar beside it say to each other.
//!
//! Two channels lead from every `smbd` process to the sidecar, and this crate describes both, so that the two
//! ends cannot disagree:
//!
//! - **Frames** on a unix stream socket ([`frame`]): a process asks before it stores or deletes a record, and before it
//!   looks at the record of an open that another node may have had ([`Request`]), and the sidecar answers ([`Reply`]). One request is outstanding per process, because
//!   `smbd` is single-threaded where it touches its databases.
//! - **A shared page** ([`page`]): a small file that the sidecar writes and every process maps. It tells, at
//!   the price of a memory load, which keys are worth a frame at all, how long this node may go on serving,
//!   and which persistent ids this node may hand out.
//!
//! # What it does not know
//!
//! Neither record layouts (the `samba` crate knows those) nor the cluster (`node` does). A record is bytes
//! under a key of a [`Database`]. There is no I/O here except mapping the page, no thread, and no dependency
//! but `libc`: what the shim links ends up inside somebody else's server.
//!
//! # What must stay true
//!
//! - Nothing read from the socket or the page is trusted: lengths are checked before memory is asked for, and
//!   every decoding error names the field and its offset.
//! - Both files live in one directory, the *run directory* ([`RUN_DIR_ENV`]); the sidecar creates them.

pub mod frame;
pub mod page;
mod tdb;

pub use frame::{FrameBuffer, FrameError, Record, RecordKey, Reply, Request};
pub use page::{Limits, NodeSlot, PageError, PageReader, PageWriter, Prelude};
pub use tdb::{CTDB_HEADER_LEN, Database, DatabaseFile, TdbError};

/// The environment variable that names the run directory. Where it is unset, the shim passes everything
/// through to libtdb.
pub const RUN_DIR_ENV: &str = "HOLDFAST_RUN_DIR";

/// The sidecar's `SOCK_STREAM` socket in the run directory.
pub const SOCKET_FILE: &str = "shim.sock";

/// The shared page in the run directory.
pub const PAGE_FILE: &str = "page";
