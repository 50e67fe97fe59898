//! A byte-range lock, as `brlock.tdb` has it.

use statedb::ByteRangeLock;

use super::error::RecordError;
use super::identity::ServerId;
use crate::version::Layout;

/// One byte-range lock. A record of `brlock.tdb` is an unordered array of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BrlockEntry {
    /// The persistent id of the open that has the lock.
    pub smblctx: u64,
    /// The tree connect; 0 when disconnected.
    pub tid: u32,
    /// The process that has the open.
    pub server_id: ServerId,
    /// The first byte.
    pub start: u64,
    /// How many bytes.
    pub size: u64,
    /// The volatile id of the open; 0 when disconnected.
    pub fnum: u64,
    /// Whether it excludes readers too.
    pub exclusive: bool,
    /// A lock by POSIX rules instead of Windows'.
    pub posix: bool,
    /// A lock of a persistent handle. Since 4.25.
    pub persistent: bool,
}

impl BrlockEntry {
    /// What is locked, and how.
    #[must_use]
    pub fn range(&self) -> ByteRangeLock {
        ByteRangeLock { offset: self.start, length: self.size, exclusive: self.exclusive }
    }

    /// Decodes the value of a record of `brlock.tdb`.
    pub fn decode_all(layout: Layout, value: &[u8]) -> Result<Vec<Self>, RecordError> {
        layout.codec().decode_brlocks(value)
    }

    /// The value of a record of `brlock.tdb`, byte for byte what smbd would store.
    #[must_use]
    pub fn encode_all(layout: Layout, locks: &[Self]) -> Vec<u8> {
        layout.codec().encode_brlocks(locks)
    }
}
