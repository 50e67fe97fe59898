//! The stored half: bytes in, bytes out, checked.
//!
//! - [`log`] holds the Raft log and the vote in a write-ahead log. What it has acknowledged survives
//!   the loss of the process and of power.
//! - [`applied`] holds the stored copy of the applied state, so that a restart loads it instead of
//!   replaying the log from its beginning. It may lag behind the log, never lead it.
//! - [`format`](mod@format) frames every stored value with a magic, a format version and a crc32.
//!
//! Nothing here knows what an open is, or what runs Raft.
//!
//! # What must stay true
//!
//! - A byte that has rotted is found when it is read, and reported as [`StoreError::Damaged`] with the
//!   file and the place. It is never served. The remedy is always the same: the node's data is moved
//!   away and it is rebuilt from its peers.
//! - After any failed write a store accepts nothing more. What it holds in memory is then ahead of what
//!   is on disk, and a second attempt could not tell how far.

use std::thread;
use std::time::Duration;

pub mod applied;
mod error;
pub mod format;
pub mod log;

pub use error::StoreError;

/// How often, and how long in between, a locked directory is tried again before that is an error: 2 s in all. Its lock
/// goes when the last copy of a file descriptor does, and that can outlive its owner for a moment: the kernel is still
/// burying the process, or a child that it has forked has not called exec yet.
const LOCKED_TRIES: u32 = 100;
const LOCKED_TRY_AGAIN_AFTER: Duration = Duration::from_millis(20);

/// Opens a store, and waits a moment for a lock that is about to go.
fn open_unlocked<T>(open: impl Fn() -> Result<T, StoreError>) -> Result<T, StoreError> {
    for _ in 1..LOCKED_TRIES {
        match open() {
            Err(StoreError::Locked { .. }) => thread::sleep(LOCKED_TRY_AGAIN_AFTER),
            opened_or_failed => return opened_or_failed,
        }
    }
    open()
}
