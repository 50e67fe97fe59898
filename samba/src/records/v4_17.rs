//! The layout of Samba 4.17, found out on records of Debian's 4.17.12.

use statedb::{DurableFileId, LeaseKey};

use super::codec::Codec;
use super::error::RecordError;
use super::locking::DeleteMark;
use super::ndr::{NdrReader, NdrWriter};
use super::open_global::OpenGlobal;
use super::parts::{read_db_rec, write_db_rec};
use super::version_0;

/// The layout of Samba 4.17.
pub(super) struct V4_17;

impl Codec for V4_17 {
    fn read_open(&self, reader: &mut NdrReader<'_>, seqnum: u32) -> Result<OpenGlobal, RecordError> {
        read_db_rec(reader)?;
        version_0::read_open(reader, seqnum)
    }

    fn write_open(&self, writer: &mut NdrWriter, open: &OpenGlobal) {
        write_db_rec(writer);
        version_0::write_open(writer, open);
    }

    fn delete_mark_len(&self) -> usize {
        // Three numbers.
        12
    }

    fn read_delete_mark(&self, reader: &mut NdrReader<'_>) -> Result<DeleteMark, RecordError> {
        Ok(DeleteMark {
            name_hash: reader.u32("delete_tokens.name_hash")?,
            parent_lease_key: LeaseKey([0; 16]),
            open_persistent_id: DurableFileId(0),
            has_nt_token: reader.pointer("delete_tokens.delete_nt_token")?,
            has_unix_token: reader.pointer("delete_tokens.delete_token")?,
        })
    }

    fn write_delete_mark(&self, writer: &mut NdrWriter, mark: &DeleteMark) {
        writer.u32(mark.name_hash);
        writer.pointer(mark.has_nt_token);
        writer.pointer(mark.has_unix_token);
    }
}
