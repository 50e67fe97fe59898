//! The header that CTDB puts in front of every value.

use frame::CTDB_HEADER_LEN;

use super::packet::Pnn;

/// CTDB's part of a record: which node is its master, and how often it has moved.
///
/// Only ctdbd changes it. Who stores a value puts the header in front of it that was there before: what he has stored
/// is newer than all other copies because the record's number grew when it came to this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader([u8; CTDB_HEADER_LEN]);

impl RecordHeader {
    /// The flags of a record that is being, or was, written to every node's disk (since Samba 4.25, for persistent
    /// handles). While that goes on there is something else in front of the value.
    const IS_ON_DISK: u32 = 0x3;

    /// The flag that other nodes have copies to read from, which have to be taken back before the record may change.
    const HAS_READ_ONLY_COPIES: u32 = 0x0100_0000;

    /// A stored value as its header and the value proper, which is `None` where the record stands for one that is not
    /// there. `None` where there is no header.
    #[must_use]
    pub fn split(stored: &[u8]) -> Option<(Self, Option<&[u8]>)> {
        let (header, value) = stored.split_first_chunk()?;
        Some((Self(*header), Some(value).filter(|value| !value.is_empty())))
    }

    /// The node that may change the record.
    #[must_use]
    pub fn master(&self) -> Pnn {
        Pnn(self.u32_at::<8>())
    }

    /// Whether this node may change the record.
    #[must_use]
    pub fn is_writable_by(&self, node: Pnn) -> bool {
        self.master() == node && self.flags() & Self::HAS_READ_ONLY_COPIES == 0
    }

    /// Whether Samba keeps the record on every node's disk too. Who changed it here alone would part it from those.
    #[must_use]
    pub fn is_on_disk(&self) -> bool {
        self.flags() & Self::IS_ON_DISK != 0
    }

    fn flags(&self) -> u32 {
        self.u32_at::<16>()
    }

    /// The header as it is stored.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    fn u32_at<const OFFSET: usize>(&self) -> u32 {
        u32::from_ne_bytes(std::array::from_fn(|byte| self.0[OFFSET + byte]))
    }
}
