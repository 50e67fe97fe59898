//! What one smbd tells another one that has to break an oplock or a lease.

use statedb::{FileKey, LeaseState};

use super::identity::ServerId;
use super::locking::{LockingRecord, ShareModeEntry};

/// The message by which an smbd asks the one that has granted an oplock or a lease to break it (`MSG_SMB_BREAK_REQUEST`
/// with an `oplock_break_message`; the same in all versions from 4.17 to 4.25).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OplockBreak {
    /// The file.
    pub file: FileKey,
    /// Which of the receiver's opens of the file: the number in its entry.
    pub share_file_id: u64,
    /// What may stay, as of a lease.
    pub break_to: LeaseState,
}

impl OplockBreak {
    /// Decodes a message; `None` if it is none.
    #[must_use]
    pub fn decode(message: &[u8]) -> Option<Self> {
        let (numbers, rest) = message.as_chunks::<8>();
        let [device, inode, extid, share_file_id] = numbers else { return None };
        let [break_to] = rest else { return None };
        let [device, inode, extid, share_file_id] =
            [device, inode, extid, share_file_id].map(|number| u64::from_le_bytes(*number));
        let file = FileKey { device, inode, extid };
        Some(Self { file, share_file_id, break_to: LeaseState((*break_to).into()) })
    }

    /// The entry that it is about, among the share modes of the file.
    #[must_use]
    pub fn entry_in(self, record: &LockingRecord, receiver: ServerId) -> Option<&ShareModeEntry> {
        let mut entries = record.share_modes()?.entries.iter();
        entries.find(|entry| entry.server_id == receiver && entry.share_file_id == self.share_file_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_four_numbers_and_a_byte() {
        let numbers: Vec<u8> = [10_u64, 11, 12, 13].into_iter().flat_map(u64::to_le_bytes).collect();
        let message = [numbers.as_slice(), &[LeaseState::READ as u8]].concat();
        let file = FileKey { device: 10, inode: 11, extid: 12 };
        let break_to = LeaseState(LeaseState::READ);
        assert_eq!(OplockBreak::decode(&message), Some(OplockBreak { file, share_file_id: 13, break_to }));
        for other in [&message[..32], &message[..0], &[message.as_slice(), &[0]].concat()] {
            assert_eq!(OplockBreak::decode(other), None, "{other:?}");
        }
    }
}
