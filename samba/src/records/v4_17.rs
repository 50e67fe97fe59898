//! The layouts of Samba 4.17, found out on records of Debian's 4.17.12.
//!
//! `smbXsrv_open_global` and `smbXsrv_tcon_global` are a versioned union around one structure. `leases` and the
//! blobs inside `locking` and inside the durable cookie are plain structures. All of them are marshalled
//! as NDR. What is around the blob in `locking` is packed by hand, without alignment, and `brlock` is an array of
//! C structures.

use frame::Database;
use statedb::{
    AccessMask, ClientGuid, CreateGuid, DurableFileId, FileKey, LeaseEpoch, LeaseKey, LeaseState, Millis,
    ShareAccess,
};

use super::brlock::BrlockEntry;
use super::error::{Problem, RecordError};
use super::identity::{NtTime, SecurityId, ServerId, UnixMicros, UnixNanos};
use super::lease::{LeaseFile, LeaseRecord};
use super::locking::{
    DeleteMark, DeleteTokens, LockingRecord, ShareModeData, ShareModeEntry, ShareModeLock, ShareModes,
    Watcher,
};
use super::ndr::{NdrReader, NdrWriter};
use super::open_global::{CookieStat, DurableCookie, OpenGlobal};
use super::tcon_global::TconGlobal;

/// The length of a marshalled share-mode entry.
const SHARE_MODE_ENTRY_LEN: usize = 132;

/// The length of a `struct lock_struct` on a 64-bit machine.
const LOCK_STRUCT_LEN: usize = 72;

/// The length of a watcher.
const WATCHER_LEN: usize = ServerId::LEN + size_of::<u64>();

/// What the cookies of Samba's default VFS begin with.
const COOKIE_MAGIC: &[u8; 48] = b"VFS_DEFAULT_DURABLE_COOKIE_MAGIC                ";

// The envelope of the `smbXsrv_*_global` records.

fn read_envelope(reader: &mut NdrReader<'_>) -> Result<u32, RecordError> {
    reader.constant("version", 0, "SMBXSRV_VERSION_0")?;
    let seqnum = reader.u32("seqnum")?;
    reader.constant("info.level", 0, "the level of version 0")?;
    reader.pointer_to_some("info")?;
    reader.align("info.db_rec", 8)?;
    // A pointer that only has a meaning in smbd's memory; its place is kept empty.
    reader.constant("info.db_rec", 0, "null")?;
    Ok(seqnum)
}

fn write_envelope(writer: &mut NdrWriter, seqnum: u32) {
    writer.u32(0);
    writer.u32(seqnum);
    writer.u32(0);
    writer.pointer(true);
    writer.align(8);
    writer.u32(0);
}

// Structures that several records have.

fn read_server_id(reader: &mut NdrReader<'_>, field: &'static str) -> Result<ServerId, RecordError> {
    Ok(ServerId {
        pid: reader.hyper(field)?,
        task_id: reader.u32(field)?,
        vnn: reader.u32(field)?,
        unique_id: reader.hyper(field)?,
    })
}

fn write_server_id(writer: &mut NdrWriter, server_id: ServerId) {
    writer.hyper(server_id.pid);
    writer.u32(server_id.task_id);
    writer.u32(server_id.vnn);
    writer.hyper(server_id.unique_id);
}

/// A server id as smbd packs it by hand: the same fields, but not aligned.
fn read_packed_server_id(reader: &mut NdrReader<'_>, field: &'static str) -> Result<ServerId, RecordError> {
    Ok(ServerId {
        pid: u64::from_le_bytes(reader.array(field)?),
        task_id: u32::from_le_bytes(reader.array(field)?),
        vnn: u32::from_le_bytes(reader.array(field)?),
        unique_id: u64::from_le_bytes(reader.array(field)?),
    })
}

fn write_packed_server_id(writer: &mut NdrWriter, server_id: ServerId) {
    writer.raw(&server_id.pid.to_le_bytes());
    writer.raw(&server_id.task_id.to_le_bytes());
    writer.raw(&server_id.vnn.to_le_bytes());
    writer.raw(&server_id.unique_id.to_le_bytes());
}

fn read_file_key(reader: &mut NdrReader<'_>, field: &'static str) -> Result<FileKey, RecordError> {
    Ok(FileKey { device: reader.udlong(field)?, inode: reader.udlong(field)?, extid: reader.udlong(field)? })
}

fn write_file_key(writer: &mut NdrWriter, file: FileKey) {
    writer.udlong(file.device);
    writer.udlong(file.inode);
    writer.udlong(file.extid);
}

fn read_sid(reader: &mut NdrReader<'_>, field: &'static str) -> Result<SecurityId, RecordError> {
    reader.align(field, 4)?;
    let position = reader.position();
    let revision = reader.u8(field)?;
    if revision != 1 {
        return Err(reader.error_at(position, field, Problem::unexpected(revision, "revision 1")));
    }
    let count = usize::from(reader.u8(field)?);
    if count > SecurityId::SUB_AUTHORITIES_MAX {
        let problem = Problem::unexpected(count as u64, "a number of sub-authorities, at most 15");
        return Err(reader.error_at(position + 1, field, problem));
    }
    let authority = reader.array(field)?;
    let sub_authorities = (0..count).map(|_| reader.u32(field)).collect::<Result<_, _>>()?;
    Ok(SecurityId { revision, authority, sub_authorities })
}

fn write_sid(writer: &mut NdrWriter, sid: &SecurityId) {
    writer.align(4);
    writer.u8(sid.revision);
    writer.u8(u8::try_from(sid.sub_authorities.len()).expect("checked when it was decoded"));
    writer.raw(&sid.authority);
    for sub_authority in &sid.sub_authorities {
        writer.u32(*sub_authority);
    }
}

// smbXsrv_open_global.tdb

pub(super) fn decode_open_global(value: &[u8]) -> Result<OpenGlobal, RecordError> {
    let mut reader = NdrReader::new(Database::OpenGlobal, value);
    let seqnum = read_envelope(&mut reader)?;
    let server_id = read_server_id(&mut reader, "server_id")?;
    let open_global_id = reader.u32("open_global_id")?;
    let open_persistent_id = DurableFileId(reader.hyper("open_persistent_id")?);
    let open_volatile_id = reader.hyper("open_volatile_id")?;
    let open_owner = read_sid(&mut reader, "open_owner")?;
    let open_time = NtTime(reader.udlong("open_time")?);
    let create_guid = CreateGuid(reader.guid("create_guid")?);
    let client_guid = ClientGuid(reader.guid("client_guid")?);
    let app_instance_id = reader.guid("app_instance_id")?;
    let disconnect_time = NtTime(reader.udlong("disconnect_time")?);
    let durable_timeout = Millis(u64::from(reader.u32("durable_timeout_msec")?));
    let durable = reader.bool8("durable")?;
    let cookie_length = reader.u32("backend_cookie.length")?;
    let cookie_base = reader.position();
    let cookie = reader.take("backend_cookie", usize::try_from(cookie_length).unwrap_or(usize::MAX))?;
    let backend_cookie = if cookie.is_empty() { None } else { Some(decode_cookie(cookie, cookie_base)?) };
    let open_global = OpenGlobal {
        seqnum,
        server_id,
        open_global_id,
        open_persistent_id,
        open_volatile_id,
        open_owner,
        open_time,
        create_guid,
        client_guid,
        app_instance_id,
        disconnect_time,
        durable_timeout,
        durable,
        backend_cookie,
        channel_sequence: reader.u16("channel_sequence")?,
        channel_generation: reader.hyper("channel_generation")?,
        lock_sequence_array: reader.array("lock_sequence_array")?,
    };
    reader.end("lock_sequence_array")?;
    Ok(open_global)
}

pub(super) fn encode_open_global(open: &OpenGlobal) -> Vec<u8> {
    let mut writer = NdrWriter::default();
    write_envelope(&mut writer, open.seqnum);
    write_server_id(&mut writer, open.server_id);
    writer.u32(open.open_global_id);
    writer.hyper(open.open_persistent_id.0);
    writer.hyper(open.open_volatile_id);
    write_sid(&mut writer, &open.open_owner);
    writer.udlong(open.open_time.0);
    writer.guid(&open.create_guid.0);
    writer.guid(&open.client_guid.0);
    writer.guid(&open.app_instance_id);
    writer.udlong(open.disconnect_time.0);
    writer.u32(u32::try_from(open.durable_timeout.0).unwrap_or(u32::MAX));
    writer.bool8(open.durable);
    let cookie = open.backend_cookie.as_ref().map(encode_cookie).unwrap_or_default();
    writer.count(cookie.len());
    writer.raw(&cookie);
    writer.u16(open.channel_sequence);
    writer.hyper(open.channel_generation);
    writer.raw(&open.lock_sequence_array);
    writer.into_bytes()
}

fn decode_cookie(cookie: &[u8], base: usize) -> Result<DurableCookie, RecordError> {
    let mut reader = NdrReader::nested(Database::OpenGlobal, cookie, base);
    if reader.take("backend_cookie.magic", COOKIE_MAGIC.len())? != COOKIE_MAGIC {
        return Err(reader.error_at(base, "backend_cookie.magic", Problem::ForeignCookie));
    }
    reader.constant("backend_cookie.version", 0, "version 0 of the cookie")?;
    let allow_reconnect = reader.bool8("backend_cookie.allow_reconnect")?;
    let file = read_file_key(&mut reader, "backend_cookie.id")?;
    reader.pointer_to_some("backend_cookie.servicepath")?;
    reader.pointer_to_some("backend_cookie.base_name")?;
    let initial_allocation_size = reader.hyper("backend_cookie.initial_allocation_size")?;
    let position = reader.hyper("backend_cookie.position_information")?;
    let update_write_time_triggered = reader.bool8("backend_cookie.update_write_time_triggered")?;
    let update_write_time_on_close = reader.bool8("backend_cookie.update_write_time_on_close")?;
    let write_time_forced = reader.bool8("backend_cookie.write_time_forced")?;
    let close_write_time = NtTime(reader.udlong("backend_cookie.close_write_time")?);
    let stat = read_stat(&mut reader)?;
    let service_path = reader.string("backend_cookie.servicepath")?;
    let base_name = reader.string("backend_cookie.base_name")?;
    for (field, time) in TIMES.into_iter().zip([stat.atime, stat.mtime, stat.ctime, stat.btime]) {
        reader.align(field, 8)?;
        let position = reader.position();
        if read_unix_nanos(&mut reader, field)? != time {
            return Err(reader.error_at(position, field, Problem::SecondPass));
        }
    }
    reader.end("backend_cookie.stat_info")?;
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
        stat,
    })
}

/// The time stamps of the cookie's `stat_info`, in their order.
const TIMES: [&str; 4] = [
    "backend_cookie.stat_info.st_ex_atime",
    "backend_cookie.stat_info.st_ex_mtime",
    "backend_cookie.stat_info.st_ex_ctime",
    "backend_cookie.stat_info.st_ex_btime",
];

fn read_stat(reader: &mut NdrReader<'_>) -> Result<CookieStat, RecordError> {
    Ok(CookieStat {
        device: reader.hyper("backend_cookie.stat_info.st_ex_dev")?,
        inode: reader.hyper("backend_cookie.stat_info.st_ex_ino")?,
        mode: reader.hyper("backend_cookie.stat_info.st_ex_mode")?,
        nlink: reader.hyper("backend_cookie.stat_info.st_ex_nlink")?,
        uid: reader.hyper("backend_cookie.stat_info.st_ex_uid")?,
        gid: reader.hyper("backend_cookie.stat_info.st_ex_gid")?,
        rdev: reader.hyper("backend_cookie.stat_info.st_ex_rdev")?,
        size: reader.hyper("backend_cookie.stat_info.st_ex_size")?,
        atime: read_unix_nanos(reader, TIMES[0])?,
        mtime: read_unix_nanos(reader, TIMES[1])?,
        ctime: read_unix_nanos(reader, TIMES[2])?,
        btime: read_unix_nanos(reader, TIMES[3])?,
        block_size: reader.hyper("backend_cookie.stat_info.st_ex_blksize")?,
        blocks: reader.hyper("backend_cookie.stat_info.st_ex_blocks")?,
        flags: reader.u32("backend_cookie.stat_info.st_ex_flags")?,
        internal_flags: reader.u32("backend_cookie.stat_info.st_ex_iflags")?,
    })
}

fn read_unix_nanos(reader: &mut NdrReader<'_>, field: &'static str) -> Result<UnixNanos, RecordError> {
    Ok(UnixNanos { seconds: reader.hyper(field)?.cast_signed(), nanos: reader.u32(field)? })
}

fn write_unix_nanos(writer: &mut NdrWriter, time: UnixNanos) {
    writer.hyper(time.seconds.cast_unsigned());
    writer.u32(time.nanos);
}

fn encode_cookie(cookie: &DurableCookie) -> Vec<u8> {
    let stat = &cookie.stat;
    let times = [stat.atime, stat.mtime, stat.ctime, stat.btime];
    let mut writer = NdrWriter::default();
    writer.raw(COOKIE_MAGIC);
    writer.u32(0);
    writer.bool8(cookie.allow_reconnect);
    write_file_key(&mut writer, cookie.file);
    writer.pointer(true);
    writer.pointer(true);
    writer.hyper(cookie.initial_allocation_size);
    writer.hyper(cookie.position);
    writer.bool8(cookie.update_write_time_triggered);
    writer.bool8(cookie.update_write_time_on_close);
    writer.bool8(cookie.write_time_forced);
    writer.udlong(cookie.close_write_time.0);
    for number in [stat.device, stat.inode, stat.mode, stat.nlink, stat.uid, stat.gid, stat.rdev, stat.size] {
        writer.hyper(number);
    }
    for time in times {
        write_unix_nanos(&mut writer, time);
    }
    writer.hyper(stat.block_size);
    writer.hyper(stat.blocks);
    writer.u32(stat.flags);
    writer.u32(stat.internal_flags);
    writer.string(&cookie.service_path);
    writer.string(&cookie.base_name);
    for time in times {
        write_unix_nanos(&mut writer, time);
    }
    writer.into_bytes()
}

// locking.tdb

pub(super) fn decode_locking(value: &[u8]) -> Result<LockingRecord, RecordError> {
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
    let share_modes = if reader.remaining() == 0 { None } else { Some(read_share_modes(&mut reader)?) };
    let lock = ShareModeLock { exclusive, lock_epoch, data_epoch, shared, share_modes };
    Ok(LockingRecord { watchers, lock: Some(lock) })
}

/// An array behind its length. The length is held against what is left before memory is asked for.
fn read_counted<T>(
    reader: &mut NdrReader<'_>,
    field: &'static str,
    element_len: usize,
    mut element: impl FnMut(&mut NdrReader<'_>) -> Result<T, RecordError>,
) -> Result<Vec<T>, RecordError> {
    let position = reader.position();
    let count = u32::from_le_bytes(reader.array(field)?) as usize;
    let left = reader.remaining();
    let wanted = count.saturating_mul(element_len);
    if wanted > left {
        return Err(reader.error_at(position, field, Problem::Truncated { wanted, left }));
    }
    (0..count).map(|_| element(reader)).collect()
}

pub(super) fn decode_share_modes(value: &[u8]) -> Result<ShareModes, RecordError> {
    read_share_modes(&mut NdrReader::new(Database::Locking, value))
}

fn read_share_modes(reader: &mut NdrReader<'_>) -> Result<ShareModes, RecordError> {
    let length = u32::from_le_bytes(reader.array("share_mode_data_len")?);
    let base = reader.position();
    let blob = reader.take("share_mode_data", usize::try_from(length).unwrap_or(usize::MAX))?;
    let data = if blob.is_empty() { None } else { Some(decode_share_mode_data(blob, base)?) };
    let base = reader.position();
    let entries = reader.rest();
    let (whole, rest) = entries.as_chunks::<SHARE_MODE_ENTRY_LEN>();
    if !rest.is_empty() {
        let problem = Problem::Truncated { wanted: SHARE_MODE_ENTRY_LEN, left: rest.len() };
        return Err(reader.error_at(base + entries.len() - rest.len(), "share_modes", problem));
    }
    let entries = whole
        .iter()
        .enumerate()
        .map(|(index, entry)| decode_share_mode_entry(entry, base + index * SHARE_MODE_ENTRY_LEN))
        .collect::<Result<_, _>>()?;
    Ok(ShareModes { data, entries })
}

fn decode_share_mode_data(blob: &[u8], base: usize) -> Result<ShareModeData, RecordError> {
    let mut reader = NdrReader::nested(Database::Locking, blob, base);
    let unique_content_epoch = reader.hyper("unique_content_epoch")?;
    let flags = reader.u16("flags")?;
    let has_service_path = reader.pointer("servicepath")?;
    let has_base_name = reader.pointer("base_name")?;
    let has_stream_name = reader.pointer("stream_name")?;
    let marks = read_delete_marks(&mut reader)?;
    let old_write_time = NtTime(reader.udlong("old_write_time")?);
    let changed_write_time = NtTime(reader.udlong("changed_write_time")?);
    let file = read_file_key(&mut reader, "id")?;
    let mut string = |is_some: bool, field| is_some.then(|| reader.string(field)).transpose();
    let service_path = string(has_service_path, "servicepath")?;
    let base_name = string(has_base_name, "base_name")?;
    let stream_name = string(has_stream_name, "stream_name")?;
    let security_tokens = reader.rest().to_vec();
    if marks.is_empty() && !security_tokens.is_empty() {
        let position = reader.position() - security_tokens.len();
        let problem = Problem::Trailing { left: security_tokens.len() };
        return Err(reader.error_at(position, "share_mode_data", problem));
    }
    Ok(ShareModeData {
        unique_content_epoch,
        flags,
        service_path,
        base_name,
        stream_name,
        delete_tokens: DeleteTokens { marks, security_tokens },
        old_write_time,
        changed_write_time,
        file,
    })
}

fn read_delete_marks(reader: &mut NdrReader<'_>) -> Result<Vec<DeleteMark>, RecordError> {
    /// Three numbers.
    const DELETE_MARK_LEN: usize = 12;

    let announced = reader.u32("num_delete_tokens")?;
    let position = reader.position();
    let count = read_counted(reader, "delete_tokens", DELETE_MARK_LEN, |reader| {
        Ok(DeleteMark {
            name_hash: reader.u32("delete_tokens.name_hash")?,
            has_nt_token: reader.pointer("delete_tokens.delete_nt_token")?,
            has_unix_token: reader.pointer("delete_tokens.delete_token")?,
        })
    })?;
    if count.len() != announced as usize {
        let problem = Problem::unexpected(count.len() as u64, "num_delete_tokens");
        return Err(reader.error_at(position, "delete_tokens", problem));
    }
    Ok(count)
}

fn encode_share_mode_data(data: &ShareModeData) -> Vec<u8> {
    let strings = [&data.service_path, &data.base_name, &data.stream_name];
    let mut writer = NdrWriter::default();
    writer.hyper(data.unique_content_epoch);
    writer.u16(data.flags);
    for string in strings {
        writer.pointer(string.is_some());
    }
    writer.count(data.delete_tokens.marks.len());
    writer.count(data.delete_tokens.marks.len());
    for mark in &data.delete_tokens.marks {
        writer.u32(mark.name_hash);
        writer.pointer(mark.has_nt_token);
        writer.pointer(mark.has_unix_token);
    }
    writer.udlong(data.old_write_time.0);
    writer.udlong(data.changed_write_time.0);
    write_file_key(&mut writer, data.file);
    for string in strings.into_iter().flatten() {
        writer.string(string);
    }
    writer.raw(&data.delete_tokens.security_tokens);
    writer.into_bytes()
}

fn decode_share_mode_entry(
    entry: &[u8; SHARE_MODE_ENTRY_LEN],
    base: usize,
) -> Result<ShareModeEntry, RecordError> {
    let mut reader = NdrReader::nested(Database::Locking, entry, base);
    let decoded = ShareModeEntry {
        server_id: read_server_id(&mut reader, "share_modes.pid")?,
        op_mid: reader.hyper("share_modes.op_mid")?,
        op_type: reader.u16("share_modes.op_type")?,
        client_guid: ClientGuid(reader.guid("share_modes.client_guid")?),
        lease_key: {
            reader.align("share_modes.lease_key", 8)?;
            LeaseKey(reader.array("share_modes.lease_key")?)
        },
        access_mask: AccessMask(reader.u32("share_modes.access_mask")?),
        share_access: ShareAccess(reader.u32("share_modes.share_access")?),
        private_options: reader.u32("share_modes.private_options")?,
        time: read_unix_micros(&mut reader)?,
        share_file_id: reader.udlong("share_modes.share_file_id")?,
        uid: reader.u32("share_modes.uid")?,
        flags: reader.u16("share_modes.flags")?,
        name_hash: reader.u32("share_modes.name_hash")?,
    };
    let position = reader.position();
    if read_unix_micros(&mut reader)? != decoded.time {
        return Err(reader.error_at(position, "share_modes.time", Problem::SecondPass));
    }
    Ok(decoded)
}

fn read_unix_micros(reader: &mut NdrReader<'_>) -> Result<UnixMicros, RecordError> {
    Ok(UnixMicros { seconds: reader.hyper("share_modes.time")?, micros: reader.u32("share_modes.time")? })
}

fn write_unix_micros(writer: &mut NdrWriter, time: UnixMicros) {
    writer.hyper(time.seconds);
    writer.u32(time.micros);
}

fn encode_share_mode_entry(entry: &ShareModeEntry) -> Vec<u8> {
    let mut writer = NdrWriter::default();
    write_server_id(&mut writer, entry.server_id);
    writer.hyper(entry.op_mid);
    writer.u16(entry.op_type);
    writer.guid(&entry.client_guid.0);
    writer.align(8);
    writer.raw(&entry.lease_key.0);
    writer.u32(entry.access_mask.0);
    writer.u32(entry.share_access.0);
    writer.u32(entry.private_options);
    write_unix_micros(&mut writer, entry.time);
    writer.udlong(entry.share_file_id);
    writer.u32(entry.uid);
    writer.u16(entry.flags);
    writer.u32(entry.name_hash);
    write_unix_micros(&mut writer, entry.time);
    writer.into_bytes()
}

pub(super) fn encode_locking(record: &LockingRecord) -> Vec<u8> {
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
        writer.raw(&encode_share_modes(share_modes));
    }
    writer.into_bytes()
}

pub(super) fn encode_share_modes(share_modes: &ShareModes) -> Vec<u8> {
    let data = share_modes.data.as_ref().map(encode_share_mode_data).unwrap_or_default();
    let mut writer = NdrWriter::default();
    writer.count(data.len());
    writer.raw(&data);
    for entry in &share_modes.entries {
        writer.raw(&encode_share_mode_entry(entry));
    }
    writer.into_bytes()
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
        let mut string = |is_some: bool, field| is_some.then(|| reader.string(field)).transpose();
        files.push(LeaseFile {
            file,
            service_path: string(has_service_path, "files.servicepath")?,
            base_name: string(has_base_name, "files.base_name")?,
            stream_name: string(has_stream_name, "files.stream_name")?,
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

pub(super) fn decode_brlocks(value: &[u8]) -> Result<Vec<BrlockEntry>, RecordError> {
    let (whole, rest) = value.as_chunks::<LOCK_STRUCT_LEN>();
    if !rest.is_empty() {
        return Err(RecordError {
            record: Database::Brlock,
            field: "lock_struct",
            offset: value.len() - rest.len(),
            problem: Problem::Truncated { wanted: LOCK_STRUCT_LEN, left: rest.len() },
        });
    }
    whole
        .iter()
        .enumerate()
        .map(|(index, lock)| {
            let mut reader = NdrReader::nested(Database::Brlock, lock, index * LOCK_STRUCT_LEN);
            Ok(BrlockEntry {
                smblctx: reader.hyper("context.smblctx")?,
                tid: reader.u32("context.tid")?,
                server_id: {
                    // The compiler's padding, not Samba's: nobody promises that it is zero.
                    reader.take("context.pid", size_of::<u32>())?;
                    read_server_id(&mut reader, "context.pid")?
                },
                start: reader.hyper("start")?,
                size: reader.hyper("size")?,
                fnum: reader.hyper("fnum")?,
                exclusive: read_lock_type(&mut reader)?,
                posix: read_lock_flavour(&mut reader)?,
            })
        })
        .collect()
}

fn read_lock_type(reader: &mut NdrReader<'_>) -> Result<bool, RecordError> {
    let position = reader.position();
    match reader.u32("lock_type")? {
        0 => Ok(false),
        1 => Ok(true),
        found => {
            let problem = Problem::unexpected(found, "READ_LOCK or WRITE_LOCK");
            Err(reader.error_at(position, "lock_type", problem))
        }
    }
}

fn read_lock_flavour(reader: &mut NdrReader<'_>) -> Result<bool, RecordError> {
    let position = reader.position();
    match reader.u32("lock_flav")? {
        0 => Ok(false),
        1 => Ok(true),
        found => {
            let problem = Problem::unexpected(found, "WINDOWS_LOCK or POSIX_LOCK");
            Err(reader.error_at(position, "lock_flav", problem))
        }
    }
}

pub(super) fn encode_brlocks(locks: &[BrlockEntry]) -> Vec<u8> {
    let mut writer = NdrWriter::default();
    for lock in locks {
        writer.hyper(lock.smblctx);
        writer.u32(lock.tid);
        write_server_id(&mut writer, lock.server_id);
        writer.hyper(lock.start);
        writer.hyper(lock.size);
        writer.hyper(lock.fnum);
        writer.u32(u32::from(lock.exclusive));
        writer.u32(u32::from(lock.posix));
    }
    writer.into_bytes()
}

// smbXsrv_tcon_global.tdb

pub(super) fn decode_tcon_global(value: &[u8]) -> Result<TconGlobal, RecordError> {
    let mut reader = NdrReader::new(Database::TconGlobal, value);
    let seqnum = read_envelope(&mut reader)?;
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

pub(super) fn encode_tcon_global(tcon: &TconGlobal) -> Vec<u8> {
    let mut writer = NdrWriter::default();
    write_envelope(&mut writer, tcon.seqnum);
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
