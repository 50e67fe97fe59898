//! Reads along what a server sends, as far as it says how tree connects were answered. Nothing is held back and
//! nothing is changed; what is encrypted is not seen.

use crate::smb_client::NtStatus;

/// Length of what precedes each message on TCP (MS-SMB2 2.1): a zero, and the message's length in 24 bits.
const PREFIX_LEN: usize = 4;

/// Length of a message's header (MS-SMB2 2.2.1).
const HEADER_LEN: usize = 64;

/// How an unencrypted message begins.
const PROTOCOL_ID: [u8; 4] = *b"\xFESMB";

/// Where a header has the status, and where the command.
const STATUS_AT: usize = 8;
const COMMAND_AT: usize = 12;

/// TREE_CONNECT (MS-SMB2 2.2.1.2).
const TREE_CONNECT: u16 = 3;

/// The messages of one connection, server to client, as far as they have been read.
#[derive(Debug, Default)]
pub(super) struct Responses {
    /// The beginning of the present message: its prefix and, as far as it is that long, its header.
    head: Vec<u8>,
    /// How much of the present message comes after that.
    to_skip: usize,
}

impl Responses {
    /// Reads on. Returns how those tree connects were answered whose answers these bytes complete.
    pub(super) fn read(&mut self, mut bytes: &[u8]) -> Vec<NtStatus> {
        let mut answers = Vec::new();
        while !bytes.is_empty() {
            let skipped = self.to_skip.min(bytes.len());
            self.to_skip -= skipped;
            bytes = &bytes[skipped..];

            let taken = (self.head_len() - self.head.len()).min(bytes.len());
            self.head.extend(&bytes[..taken]);
            bytes = &bytes[taken..];
            if self.head.len() >= PREFIX_LEN && self.head.len() == self.head_len() {
                answers.extend(tree_connect_answer(&self.head[PREFIX_LEN..]));
                self.to_skip = self.message_len() + PREFIX_LEN - self.head.len();
                self.head.clear();
            }
        }
        answers
    }

    /// How much of the present message is looked at; until its length is known, the prefix.
    fn head_len(&self) -> usize {
        if self.head.len() < PREFIX_LEN {
            PREFIX_LEN
        } else {
            PREFIX_LEN + self.message_len().min(HEADER_LEN)
        }
    }

    fn message_len(&self) -> usize {
        self.head[1..PREFIX_LEN].iter().fold(0, |len, &byte| len << 8 | usize::from(byte))
    }
}

/// The status in a message's header, if it is an answer to a tree connect.
fn tree_connect_answer(header: &[u8]) -> Option<NtStatus> {
    let command = u16::from_le_bytes(*header.get(COMMAND_AT..)?.first_chunk()?);
    let status = u32::from_le_bytes(*header.get(STATUS_AT..)?.first_chunk()?);
    (header.starts_with(&PROTOCOL_ID) && command == TREE_CONNECT).then_some(NtStatus(status))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(command: u16, status: NtStatus, body_len: usize) -> Vec<u8> {
        let mut header = [0; HEADER_LEN];
        header[..PROTOCOL_ID.len()].copy_from_slice(&PROTOCOL_ID);
        header[STATUS_AT..][..4].copy_from_slice(&status.0.to_le_bytes());
        header[COMMAND_AT..][..2].copy_from_slice(&command.to_le_bytes());
        let len = u32::try_from(HEADER_LEN + body_len).unwrap();
        [&len.to_be_bytes()[..], &header, &vec![0xFE; body_len]].concat()
    }

    #[test]
    fn answers_to_tree_connects_are_found_however_the_bytes_arrive() {
        let stream = [
            message(1, NtStatus::MORE_PROCESSING_REQUIRED, 300),
            message(TREE_CONNECT, NtStatus::FILE_LOCK_CONFLICT, 9),
            // What a transport may send that keeps a connection alive.
            vec![0; PREFIX_LEN],
            vec![0, 0, 0, 2, 0xFE, b'S'],
            message(TREE_CONNECT, NtStatus::SUCCESS, 0),
            message(5, NtStatus::OBJECT_NAME_NOT_FOUND, 100_000),
            message(TREE_CONNECT, NtStatus::ACCESS_DENIED, 16),
        ]
        .concat();
        for chunk_len in [1, 3, 67, 68, 69, 1000, stream.len()] {
            let mut responses = Responses::default();
            let answers: Vec<_> = stream.chunks(chunk_len).flat_map(|chunk| responses.read(chunk)).collect();
            let expected = [NtStatus::FILE_LOCK_CONFLICT, NtStatus::SUCCESS, NtStatus::ACCESS_DENIED];
            assert_eq!(answers, expected, "in chunks of {chunk_len}");
        }
    }
}
