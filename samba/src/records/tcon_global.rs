//! A tree connect, as `smbXsrv_tcon_global.tdb` has it.

use super::codec;
use super::error::RecordError;
use super::identity::{NtTime, ServerId};
use crate::version::Layout;

/// A record of `smbXsrv_tcon_global.tdb`. smbd stores it twice: when the tree connect is being made and,
/// with the flags filled in, when it is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TconGlobal {
    /// Counts the stores of this record.
    pub seqnum: u32,
    /// The record's own key.
    pub tcon_global_id: u32,
    /// The TreeId that the client knows.
    pub tcon_wire_id: u32,
    /// The process that serves it.
    pub server_id: ServerId,
    /// When it was made.
    pub creation_time: NtTime,
    /// The share, as the client wrote it.
    pub share_name: String,
    /// What was encrypted.
    pub encryption_flags: u8,
    /// The session.
    pub session_global_id: u32,
    /// What was signed.
    pub signing_flags: u8,
}

impl TconGlobal {
    /// Decodes a record's value.
    pub fn decode(layout: Layout, value: &[u8]) -> Result<Self, RecordError> {
        codec::decode_tcon_global(layout, value)
    }

    /// The record's value, byte for byte what smbd would store.
    #[must_use]
    pub fn encode(&self, layout: Layout) -> Vec<u8> {
        codec::encode_tcon_global(layout, self)
    }
}
