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

pub mod applied;
mod error;
pub mod format;
pub mod log;

pub use error::StoreError;
