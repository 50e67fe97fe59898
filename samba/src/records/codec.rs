//! What a layout decides, and how records are put together from that.

use frame::Database;

use super::brlock::BrlockEntry;
use super::error::{Problem, RecordError};
use super::identity::{NtTime, ServerId};
use super::lease::LeaseRecord;
use super::locking::{
    DeleteMark, LockingRecord, ShareModeData, ShareModeEntry, ShareModeLock, ShareModes, Watcher,
};
use super::ndr::{NdrReader, NdrWriter};
use super::open_global::OpenGlobal;
use super::parts::{
    read_counted, read_db_rec, read_packed_server_id, read_server_id, write_db_rec, write_packed_server_id,
    write_server_id,
};
use super::tcon_global::TconGlobal;
use super::{v4_17, v4_22, v4_25, version_0};
use crate::version::Layout;

impl Layout {
    /// Who knows the bytes of this layout.
    pub(super) fn codec(self) -> &'static dyn Codec {
        match self {
            Self::V4_17 => &v4_17::V4_17,
            Self::V4_22 => &v4_22::V4_22,
            Self::V4_25 => &v4_25::V4_25,
        }
    }
}

/// One layout: the structures that versions of Samba have changed are its own, the others are put together here. What a
/// layout does not say otherwise is as it was up to version 4.24, before Samba began to number its structures.
///
/// `smbXsrv_open_global` and `smbXsrv_tcon_global` are a structure in an envelope that says the version. `leases` and the
/// blobs inside `locking` and inside the durable cookie are plain structures. All of them are marshalled as NDR. What is
/// around the blob in `locking` is packed by hand, without alignment, and `brlock` is an array of C structures.
pub(super) trait Codec {
    /// The least length of a mark for deletion.
    fn delete_mark_len(&self) -> usize;

    /// Reads a mark for deletion, but for its tokens.
    fn read_delete_mark(&self, reader: &mut NdrReader<'_>) -> Result<DeleteMark, RecordError>;

    /// Writes a mark for deletion, but for its tokens.
    fn write_delete_mark(&self, writer: &mut NdrWriter, mark: &DeleteMark);

    /// Reads what is before an `smbXsrv_*_global` structure, and returns its sequence number.
    fn read_envelope(&self, reader: &mut NdrReader<'_>) -> Result<u32, RecordError> {
        version_0::read_envelope(reader)
    }

    /// Writes what is before an `smbXsrv_*_global` structure.
    fn write_envelope(&self, writer: &mut NdrWriter, seqnum: u32) {
        version_0::write_envelope(writer, seqnum);
    }

    /// Reads the structure of an open.
    fn read_open(&self, reader: &mut NdrReader<'_>, seqnum: u32) -> Result<OpenGlobal, RecordError> {
        version_0::read_open(reader, seqnum)
    }

    /// Writes the structure of an open.
    fn write_open(&self, writer: &mut NdrWriter, open: &OpenGlobal) {
        version_0::write_open(writer, open);
    }

    /// Reads what the opens of a file have in common.
    fn read_share_mode_data(&self, reader: &mut NdrReader<'_>) -> Result<ShareModeData, RecordError> {
        version_0::read_share_mode_data(reader, |reader| self.read_delete_marks(reader))
    }

    /// Writes what the opens of a file have in common.
    fn write_share_mode_data(&self, writer: &mut NdrWriter, data: &ShareModeData) {
        version_0::write_share_mode_data(writer, data, |writer, marks| {
            self.write_delete_marks(writer, marks)
        });
    }

    /// The length of an open's entry among the share modes.
    fn share_mode_entry_len(&self) -> usize {
        version_0::SHARE_MODE_ENTRY_LEN
    }

    /// Reads an open's entry among the share modes.
    fn read_share_mode_entry(&self, reader: &mut NdrReader<'_>) -> Result<ShareModeEntry, RecordError> {
        version_0::read_share_mode_entry(reader)
    }

    /// Writes an open's entry among the share modes.
    fn write_share_mode_entry(&self, writer: &mut NdrWriter, entry: &ShareModeEntry) {
        version_0::write_share_mode_entry(writer, entry);
    }

    /// Decodes a record of `brlock.tdb`, or nothing.
    fn decode_brlocks(&self, value: &[u8]) -> Result<Vec<BrlockEntry>, RecordError> {
        version_0::decode_brlocks(value)
    }

    /// Encodes a record of `brlock.tdb`, or nothing if there is no lock.
    fn encode_brlocks(&self, locks: &[BrlockEntry]) -> Vec<u8> {
        version_0::encode_brlocks(locks)
    }

    /// Decodes a record of `leases.tdb`.
    fn decode_lease(&self, value: &[u8]) -> Result<LeaseRecord, RecordError> {
        version_0::decode_lease(value)
    }

    /// Encodes a record of `leases.tdb`.
    fn encode_lease(&self, lease: &LeaseRecord) -> Vec<u8> {
        version_0::encode_lease(lease)
    }

    /// Reads the marks for deletion behind their number, which is there twice.
    fn read_delete_marks(&self, reader: &mut NdrReader<'_>) -> Result<Vec<DeleteMark>, RecordError> {
        let announced = reader.u32("num_delete_tokens")?;
        let position = reader.position();
        let marks = read_counted(reader, "delete_tokens", self.delete_mark_len(), |reader| {
            self.read_delete_mark(reader)
        })?;
        if marks.len() != announced as usize {
            let problem = Problem::unexpected(marks.len() as u64, "num_delete_tokens");
            return Err(reader.error_at(position, "delete_tokens", problem));
        }
        Ok(marks)
    }

    /// Writes the marks for deletion.
    fn write_delete_marks(&self, writer: &mut NdrWriter, marks: &[DeleteMark]) {
        writer.count(marks.len());
        writer.count(marks.len());
        for mark in marks {
            self.write_delete_mark(writer, mark);
        }
    }
}

// smbXsrv_open_global.tdb

pub(super) fn decode_open_global(layout: Layout, value: &[u8]) -> Result<OpenGlobal, RecordError> {
    let mut reader = NdrReader::new(Database::OpenGlobal, value);
    let seqnum = layout.codec().read_envelope(&mut reader)?;
    let open = layout.codec().read_open(&mut reader, seqnum)?;
    reader.end("lock_sequence_array")?;
    Ok(open)
}

pub(super) fn encode_open_global(layout: Layout, open: &OpenGlobal) -> Vec<u8> {
    let mut writer = NdrWriter::default();
    layout.codec().write_envelope(&mut writer, open.seqnum);
    layout.codec().write_open(&mut writer, open);
    writer.into_bytes()
}

// smbXsrv_tcon_global.tdb

pub(super) fn decode_tcon_global(layout: Layout, value: &[u8]) -> Result<TconGlobal, RecordError> {
    let mut reader = NdrReader::new(Database::TconGlobal, value);
    let seqnum = layout.codec().read_envelope(&mut reader)?;
    read_db_rec(&mut reader)?;
    let tcon = TconGlobal {
        seqnum,
        tcon_global_id: reader.u32("tcon_global_id")?,
        tcon_wire_id: reader.u32("tcon_wire_id")?,
        server_id: read_server_id(&mut reader, "server_id")?,
        creation_time: NtTime(reader.udlong("creation_time")?),
        share_name: reader.string("share_name")?,
        encryption_flags: reader.u8("encryption_flags")?,
        session_global_id: reader.u32("session_global_id")?,
        signing_flags: reader.u8("signing_flags")?,
    };
    reader.end("signing_flags")?;
    Ok(tcon)
}

pub(super) fn encode_tcon_global(layout: Layout, tcon: &TconGlobal) -> Vec<u8> {
    let mut writer = NdrWriter::default();
    layout.codec().write_envelope(&mut writer, tcon.seqnum);
    write_db_rec(&mut writer);
    writer.u32(tcon.tcon_global_id);
    writer.u32(tcon.tcon_wire_id);
    write_server_id(&mut writer, tcon.server_id);
    writer.udlong(tcon.creation_time.0);
    writer.string(&tcon.share_name);
    writer.u8(tcon.encryption_flags);
    writer.u32(tcon.session_global_id);
    writer.u8(tcon.signing_flags);
    writer.into_bytes()
}

// locking.tdb

/// The length of a watcher.
const WATCHER_LEN: usize = ServerId::LEN + size_of::<u64>();

/// How a record of `locking.tdb` begins, in all layouts: the count of watchers and these, who holds the lock exclusively,
/// and the epochs of the lock and of the data. The processes that share it follow.
pub const LOCKING_PRELUDE: frame::Prelude = frame::Prelude {
    fixed_len: (size_of::<u32>() + ServerId::LEN + 2 * size_of::<u64>()) as u16,
    item_len: WATCHER_LEN as u16,
};

pub(super) fn decode_locking(layout: Layout, value: &[u8]) -> Result<LockingRecord, RecordError> {
    let mut reader = NdrReader::new(Database::Locking, value);
    if value.is_empty() {
        return Ok(LockingRecord::default());
    }
    let watchers = read_counted(&mut reader, "num_watchers", WATCHER_LEN, |reader| {
        Ok(Watcher {
            server_id: read_packed_server_id(reader, "watchers")?,
            instance: u64::from_le_bytes(reader.array("watchers")?),
        })
    })?;
    // A record that is neither watched nor locked would have been deleted.
    if reader.remaining() == 0 && !watchers.is_empty() {
        return Ok(LockingRecord { watchers, lock: None });
    }
    let exclusive = read_packed_server_id(&mut reader, "exclusive")?;
    let lock_epoch = u64::from_le_bytes(reader.array("unique_lock_epoch")?);
    let data_epoch = u64::from_le_bytes(reader.array("unique_data_epoch")?);
    let shared = read_counted(&mut reader, "num_shared", ServerId::LEN, |reader| {
        read_packed_server_id(reader, "shared")
    })?;
    let share_modes =
        if reader.remaining() == 0 { None } else { Some(read_share_modes(layout, &mut reader)?) };
    let lock = ShareModeLock { exclusive, lock_epoch, data_epoch, shared, share_modes };
    Ok(LockingRecord { watchers, lock: Some(lock) })
}

pub(super) fn encode_locking(layout: Layout, record: &LockingRecord) -> Vec<u8> {
    if record.watchers.is_empty() && record.lock.is_none() {
        return Vec::new();
    }
    let mut writer = NdrWriter::default();
    writer.count(record.watchers.len());
    for watcher in &record.watchers {
        write_packed_server_id(&mut writer, watcher.server_id);
        writer.raw(&watcher.instance.to_le_bytes());
    }
    let Some(lock) = &record.lock else {
        return writer.into_bytes();
    };
    write_packed_server_id(&mut writer, lock.exclusive);
    writer.raw(&lock.lock_epoch.to_le_bytes());
    writer.raw(&lock.data_epoch.to_le_bytes());
    writer.count(lock.shared.len());
    for server_id in &lock.shared {
        write_packed_server_id(&mut writer, *server_id);
    }
    if let Some(share_modes) = &lock.share_modes {
        writer.raw(&encode_share_modes(layout, share_modes));
    }
    writer.into_bytes()
}

pub(super) fn decode_share_modes(layout: Layout, value: &[u8]) -> Result<ShareModes, RecordError> {
    read_share_modes(layout, &mut NdrReader::new(Database::Locking, value))
}

fn read_share_modes(layout: Layout, reader: &mut NdrReader<'_>) -> Result<ShareModes, RecordError> {
    let codec = layout.codec();
    let length = u32::from_le_bytes(reader.array("share_mode_data_len")?);
    let base = reader.position();
    let blob = reader.take("share_mode_data", usize::try_from(length).unwrap_or(usize::MAX))?;
    let data = if blob.is_empty() {
        None
    } else {
        let mut reader = NdrReader::nested(Database::Locking, blob, base);
        let data = codec.read_share_mode_data(&mut reader)?;
        reader.end("share_mode_data")?;
        Some(data)
    };
    let base = reader.position();
    let entry_len = codec.share_mode_entry_len();
    let mut entries = Vec::new();
    for (index, entry) in reader.rest().chunks(entry_len).enumerate() {
        let mut reader = NdrReader::nested(Database::Locking, entry, base + index * entry_len);
        if entry.len() < entry_len {
            let problem = Problem::Truncated { wanted: entry_len, left: entry.len() };
            return Err(reader.error_at(reader.position(), "share_modes", problem));
        }
        entries.push(codec.read_share_mode_entry(&mut reader)?);
    }
    Ok(ShareModes { data, entries })
}

pub(super) fn encode_share_modes(layout: Layout, share_modes: &ShareModes) -> Vec<u8> {
    let codec = layout.codec();
    let mut data = NdrWriter::default();
    if let Some(share_mode_data) = &share_modes.data {
        codec.write_share_mode_data(&mut data, share_mode_data);
    }
    let data = data.into_bytes();
    let mut writer = NdrWriter::default();
    writer.count(data.len());
    writer.raw(&data);
    for share_mode_entry in &share_modes.entries {
        // Each is marshalled for itself: alignment counts from its beginning.
        let mut entry = NdrWriter::default();
        codec.write_share_mode_entry(&mut entry, share_mode_entry);
        writer.raw(&entry.into_bytes());
    }
    writer.into_bytes()
}
