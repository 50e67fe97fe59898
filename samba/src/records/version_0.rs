//! The structures that Samba numbered 0 until it changed them and began to number them in earnest with 4.25.
//!
//! Samba 4.17 and 4.22 have them. The two differ at the beginning of an open and in a mark for deletion.

use frame::Database;
use statedb::{
    AccessMask, AppInstanceVersion, ClientGuid, CreateGuid, DurableFileId, FileKey, LeaseEpoch, LeaseState,
    Millis, ShareAccess,
};

use super::brlock::BrlockEntry;
use super::error::{Problem, RecordError};
use super::identity::NtTime;
use super::lease::{LeaseFile, LeaseRecord};
use super::locking::{DeleteMark, ShareModeData, ShareModeEntry};
use super::ndr::{NdrReader, NdrWriter};
use super::open_global::{DurableCookie, OpenGlobal};
use super::parts::{
    COOKIE_MAGIC, TIMES, read_cookie_magic, read_counted, read_file_key, read_lease_key, read_lock,
    read_locks, read_security_tokens, read_server_id, read_sid, read_stat, read_unix_micros, read_unix_nanos,
    write_file_key, write_lease_key, write_lock, write_server_id, write_sid, write_stat, write_unix_micros,
    write_unix_nanos,
};

// The envelope of the `smbXsrv_*_global` records.

pub(super) fn read_envelope(reader: &mut NdrReader<'_>) -> Result<u32, RecordError> {
    reader.constant("version", 0, "SMBXSRV_VERSION_0")?;
    let seqnum = reader.u32("seqnum")?;
    reader.constant("info.level", 0, "the level of version 0")?;
    reader.pointer_to_some("info")?;
    reader.align("info", 8)?;
    Ok(seqnum)
}

pub(super) fn write_envelope(writer: &mut NdrWriter, seqnum: u32) {
    writer.u32(0);
    writer.u32(seqnum);
    writer.u32(0);
    writer.pointer(true);
    writer.align(8);
}

// smbXsrv_open_global.tdb

pub(super) fn read_open(reader: &mut NdrReader<'_>, seqnum: u32) -> Result<OpenGlobal, RecordError> {
    Ok(OpenGlobal {
        seqnum,
        server_id: read_server_id(reader, "server_id")?,
        session_global_id: 0,
        tcon_global_id: 0,
        open_global_id: reader.u32("open_global_id")?,
        open_persistent_id: DurableFileId(reader.hyper("open_persistent_id")?),
        open_volatile_id: reader.hyper("open_volatile_id")?,
        file: FileKey { device: 0, inode: 0, extid: 0 },
        name_hash: 0,
        open_owner: read_sid(reader, "open_owner")?,
        open_time: NtTime(reader.udlong("open_time")?),
        create_guid: CreateGuid(reader.guid("create_guid")?),
        client_guid: ClientGuid(reader.guid("client_guid")?),
        app_instance_id: reader.guid("app_instance_id")?,
        app_instance_version: AppInstanceVersion { high: 0, low: 0 },
        create_action: 0,
        disconnect_time: NtTime(reader.udlong("disconnect_time")?),
        durable_timeout: Millis(u64::from(reader.u32("durable_timeout_msec")?)),
        durable: reader.bool8("durable")?,
        persistent: false,
        backend_cookie: reader.blob("backend_cookie", read_cookie)?,
        channel_sequence: reader.u16("channel_sequence")?,
        channel_generation: reader.hyper("channel_generation")?,
        lock_sequence_array: reader.array("lock_sequence_array")?,
    })
}

pub(super) fn write_open(writer: &mut NdrWriter, open: &OpenGlobal) {
    write_server_id(writer, open.server_id);
    writer.u32(open.open_global_id);
    writer.hyper(open.open_persistent_id.0);
    writer.hyper(open.open_volatile_id);
    write_sid(writer, &open.open_owner);
    writer.udlong(open.open_time.0);
    writer.guid(&open.create_guid.0);
    writer.guid(&open.client_guid.0);
    writer.guid(&open.app_instance_id);
    writer.udlong(open.disconnect_time.0);
    writer.u32(u32::try_from(open.durable_timeout.0).unwrap_or(u32::MAX));
    writer.bool8(open.durable);
    writer.blob(open.backend_cookie.as_ref(), write_cookie);
    writer.u16(open.channel_sequence);
    writer.hyper(open.channel_generation);
    writer.raw(&open.lock_sequence_array);
}

fn read_cookie(reader: &mut NdrReader<'_>) -> Result<DurableCookie, RecordError> {
    read_cookie_magic(reader)?;
    reader.constant("backend_cookie.version", 0, "version 0 of the cookie")?;
    let allow_reconnect = reader.bool8("backend_cookie.allow_reconnect")?;
    let file = read_file_key(reader, "backend_cookie.id")?;
    reader.pointer_to_some("backend_cookie.servicepath")?;
    reader.pointer_to_some("backend_cookie.base_name")?;
    let initial_allocation_size = reader.hyper("backend_cookie.initial_allocation_size")?;
    let position = reader.hyper("backend_cookie.position_information")?;
    let update_write_time_triggered = reader.bool8("backend_cookie.update_write_time_triggered")?;
    let update_write_time_on_close = reader.bool8("backend_cookie.update_write_time_on_close")?;
    let write_time_forced = reader.bool8("backend_cookie.write_time_forced")?;
    let close_write_time = NtTime(reader.udlong("backend_cookie.close_write_time")?);
    let stat = read_stat(reader)?;
    let service_path = reader.string("backend_cookie.servicepath")?;
    let base_name = reader.string("backend_cookie.base_name")?;
    for (field, time) in TIMES.into_iter().zip(stat.times()) {
        reader.align(field, 8)?;
        let position = reader.position();
        if read_unix_nanos(reader, field)? != time {
            return Err(reader.error_at(position, field, Problem::SecondPass));
        }
    }
    Ok(DurableCookie {
        allow_reconnect,
        file,
        service_path,
        base_name,
        initial_allocation_size,
        position,
        update_write_time_triggered,
        update_write_time_on_close,
        write_time_forced,
        close_write_time,
        initial_delete_on_close: false,
        stat,
    })
}

fn write_cookie(writer: &mut NdrWriter, cookie: &DurableCookie) {
    writer.raw(COOKIE_MAGIC);
    writer.u32(0);
    writer.bool8(cookie.allow_reconnect);
    write_file_key(writer, cookie.file);
    writer.pointer(true);
    writer.pointer(true);
    writer.hyper(cookie.initial_allocation_size);
    writer.hyper(cookie.position);
    writer.bool8(cookie.update_write_time_triggered);
    writer.bool8(cookie.update_write_time_on_close);
    writer.bool8(cookie.write_time_forced);
    writer.udlong(cookie.close_write_time.0);
    write_stat(writer, &cookie.stat);
    writer.string(&cookie.service_path);
    writer.string(&cookie.base_name);
    for time in cookie.stat.times() {
        write_unix_nanos(writer, time);
    }
}

// locking.tdb

pub(super) fn read_share_mode_data(
    reader: &mut NdrReader<'_>,
    read_delete_marks: impl FnOnce(&mut NdrReader<'_>) -> Result<Vec<DeleteMark>, RecordError>,
) -> Result<ShareModeData, RecordError> {
    let unique_content_epoch = reader.hyper("unique_content_epoch")?;
    let flags = reader.u16("flags")?;
    let has_service_path = reader.pointer("servicepath")?;
    let has_base_name = reader.pointer("base_name")?;
    let has_stream_name = reader.pointer("stream_name")?;
    let marks = read_delete_marks(reader)?;
    let old_write_time = NtTime(reader.udlong("old_write_time")?);
    let changed_write_time = NtTime(reader.udlong("changed_write_time")?);
    let file = read_file_key(reader, "id")?;
    Ok(ShareModeData {
        unique_content_epoch,
        flags,
        service_path: reader.string_if(has_service_path, "servicepath")?,
        base_name: reader.string_if(has_base_name, "base_name")?,
        stream_name: reader.string_if(has_stream_name, "stream_name")?,
        num_persistent: 0,
        delete_tokens: read_security_tokens(reader, marks),
        old_write_time,
        changed_write_time,
        file,
    })
}

pub(super) fn write_share_mode_data(
    writer: &mut NdrWriter,
    data: &ShareModeData,
    write_delete_marks: impl FnOnce(&mut NdrWriter, &[DeleteMark]),
) {
    let strings = [&data.service_path, &data.base_name, &data.stream_name];
    writer.hyper(data.unique_content_epoch);
    writer.u16(data.flags);
    for string in strings {
        writer.pointer(string.is_some());
    }
    write_delete_marks(writer, &data.delete_tokens.marks);
    writer.udlong(data.old_write_time.0);
    writer.udlong(data.changed_write_time.0);
    write_file_key(writer, data.file);
    for string in strings.into_iter().flatten() {
        writer.string(string);
    }
    writer.raw(&data.delete_tokens.security_tokens);
}

/// The length of a marshalled share-mode entry.
pub(super) const SHARE_MODE_ENTRY_LEN: usize = 132;

pub(super) fn read_share_mode_entry(reader: &mut NdrReader<'_>) -> Result<ShareModeEntry, RecordError> {
    let entry = ShareModeEntry {
        server_id: read_server_id(reader, "share_modes.pid")?,
        op_mid: reader.hyper("share_modes.op_mid")?,
        op_type: reader.u16("share_modes.op_type")?,
        client_guid: ClientGuid(reader.guid("share_modes.client_guid")?),
        create_guid: CreateGuid::default(),
        lease_key: read_lease_key(reader, "share_modes.lease_key")?,
        access_mask: AccessMask(reader.u32("share_modes.access_mask")?),
        share_access: ShareAccess(reader.u32("share_modes.share_access")?),
        private_options: reader.u32("share_modes.private_options")?,
        time: read_unix_micros(reader)?,
        share_file_id: reader.udlong("share_modes.share_file_id")?,
        uid: reader.u32("share_modes.uid")?,
        flags: reader.u16("share_modes.flags")?,
        name_hash: reader.u32("share_modes.name_hash")?,
    };
    let position = reader.position();
    if read_unix_micros(reader)? != entry.time {
        return Err(reader.error_at(position, "share_modes.time", Problem::SecondPass));
    }
    Ok(entry)
}

pub(super) fn write_share_mode_entry(writer: &mut NdrWriter, entry: &ShareModeEntry) {
    write_server_id(writer, entry.server_id);
    writer.hyper(entry.op_mid);
    writer.u16(entry.op_type);
    writer.guid(&entry.client_guid.0);
    write_lease_key(writer, entry.lease_key);
    writer.u32(entry.access_mask.0);
    writer.u32(entry.share_access.0);
    writer.u32(entry.private_options);
    write_unix_micros(writer, entry.time);
    writer.udlong(entry.share_file_id);
    writer.u32(entry.uid);
    writer.u16(entry.flags);
    writer.u32(entry.name_hash);
    write_unix_micros(writer, entry.time);
}

// leases.tdb

pub(super) fn decode_lease(value: &[u8]) -> Result<LeaseRecord, RecordError> {
    /// A file id and three pointers.
    const LEASE_FILE_LEN: usize = 36;

    let mut reader = NdrReader::new(Database::Leases, value);
    let current_state = LeaseState(reader.u32("current_state")?);
    let breaking = reader.bool8("breaking")?;
    let breaking_to_requested = LeaseState(reader.u32("breaking_to_requested")?);
    let breaking_to_required = LeaseState(reader.u32("breaking_to_required")?);
    let lease_version = reader.u16("lease_version")?;
    let epoch = LeaseEpoch(reader.u16("epoch")?);
    let heads = read_counted(&mut reader, "files", LEASE_FILE_LEN, |reader| {
        let file = read_file_key(reader, "files.id")?;
        let strings = [
            reader.pointer("files.servicepath")?,
            reader.pointer("files.base_name")?,
            reader.pointer("files.stream_name")?,
        ];
        Ok((file, strings))
    })?;
    let mut files = Vec::with_capacity(heads.len());
    for (file, [has_service_path, has_base_name, has_stream_name]) in heads {
        files.push(LeaseFile {
            file,
            service_path: reader.string_if(has_service_path, "files.servicepath")?,
            base_name: reader.string_if(has_base_name, "files.base_name")?,
            stream_name: reader.string_if(has_stream_name, "files.stream_name")?,
        });
    }
    reader.end("files")?;
    Ok(LeaseRecord {
        current_state,
        breaking,
        breaking_to_requested,
        breaking_to_required,
        lease_version,
        epoch,
        files,
    })
}

pub(super) fn encode_lease(lease: &LeaseRecord) -> Vec<u8> {
    let mut writer = NdrWriter::default();
    writer.u32(lease.current_state.0);
    writer.bool8(lease.breaking);
    writer.u32(lease.breaking_to_requested.0);
    writer.u32(lease.breaking_to_required.0);
    writer.u16(lease.lease_version);
    writer.u16(lease.epoch.0);
    writer.count(lease.files.len());
    for file in &lease.files {
        write_file_key(&mut writer, file.file);
        for string in [&file.service_path, &file.base_name, &file.stream_name] {
            writer.pointer(string.is_some());
        }
    }
    for file in &lease.files {
        for string in [&file.service_path, &file.base_name, &file.stream_name].into_iter().flatten() {
            writer.string(string);
        }
    }
    writer.into_bytes()
}

// brlock.tdb

/// The length of a `struct lock_struct` on a 64-bit machine.
const LOCK_STRUCT_LEN: usize = 72;

pub(super) fn decode_brlocks(value: &[u8]) -> Result<Vec<BrlockEntry>, RecordError> {
    let mut reader = NdrReader::new(Database::Brlock, value);
    read_locks(&mut reader, LOCK_STRUCT_LEN, read_lock)
}

pub(super) fn encode_brlocks(locks: &[BrlockEntry]) -> Vec<u8> {
    let mut writer = NdrWriter::default();
    for lock in locks {
        write_lock(&mut writer, lock);
    }
    writer.into_bytes()
}
