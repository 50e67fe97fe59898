//! The layout of Samba 4.22, found out on records of Debian's 4.22.11: as that of 4.17, but that an open has no place for
//! `db_rec`, and that a mark for deletion has a lease key.

use statedb::DurableFileId;

use super::codec::Codec;
use super::error::RecordError;
use super::locking::DeleteMark;
use super::ndr::{NdrReader, NdrWriter};
use super::parts::{read_lease_key, write_lease_key};

/// The layout of Samba 4.22.
pub(super) struct V4_22;

impl Codec for V4_22 {
    fn delete_mark_len(&self) -> usize {
        // Three numbers and a lease key.
        28
    }

    fn read_delete_mark(&self, reader: &mut NdrReader<'_>) -> Result<DeleteMark, RecordError> {
        reader.align("delete_tokens", 8)?;
        Ok(DeleteMark {
            name_hash: reader.u32("delete_tokens.name_hash")?,
            parent_lease_key: read_lease_key(reader, "delete_tokens.parent_lease_key")?,
            open_persistent_id: DurableFileId(0),
            has_nt_token: reader.pointer("delete_tokens.delete_nt_token")?,
            has_unix_token: reader.pointer("delete_tokens.delete_token")?,
        })
    }

    fn write_delete_mark(&self, writer: &mut NdrWriter, mark: &DeleteMark) {
        writer.align(8);
        writer.u32(mark.name_hash);
        write_lease_key(writer, mark.parent_lease_key);
        writer.pointer(mark.has_nt_token);
        writer.pointer(mark.has_unix_token);
    }
}
