//! Structures that several records have, and that no layout has changed.

use frame::Database;
use statedb::{FileKey, LeaseKey};

use super::brlock::BrlockEntry;
use super::error::{Problem, RecordError};
use super::identity::{SecurityId, ServerId, UnixMicros, UnixNanos};
use super::locking::{DeleteMark, DeleteTokens};
use super::ndr::{NdrReader, NdrWriter};
use super::open_global::CookieStat;

/// A pointer that only has a meaning in smbd's memory; its place is kept empty.
pub(super) fn read_db_rec(reader: &mut NdrReader<'_>) -> Result<(), RecordError> {
    reader.constant("info.db_rec", 0, "null")
}

pub(super) fn write_db_rec(writer: &mut NdrWriter) {
    writer.u32(0);
}

pub(super) fn read_server_id(
    reader: &mut NdrReader<'_>,
    field: &'static str,
) -> Result<ServerId, RecordError> {
    Ok(ServerId {
        pid: reader.hyper(field)?,
        task_id: reader.u32(field)?,
        vnn: reader.u32(field)?,
        unique_id: reader.hyper(field)?,
    })
}

pub(super) fn write_server_id(writer: &mut NdrWriter, server_id: ServerId) {
    writer.hyper(server_id.pid);
    writer.u32(server_id.task_id);
    writer.u32(server_id.vnn);
    writer.hyper(server_id.unique_id);
}

/// A server id as smbd packs it by hand: the same fields, but not aligned.
pub(super) fn read_packed_server_id(
    reader: &mut NdrReader<'_>,
    field: &'static str,
) -> Result<ServerId, RecordError> {
    Ok(ServerId {
        pid: u64::from_le_bytes(reader.array(field)?),
        task_id: u32::from_le_bytes(reader.array(field)?),
        vnn: u32::from_le_bytes(reader.array(field)?),
        unique_id: u64::from_le_bytes(reader.array(field)?),
    })
}

pub(super) fn write_packed_server_id(writer: &mut NdrWriter, server_id: ServerId) {
    writer.raw(&server_id.pid.to_le_bytes());
    writer.raw(&server_id.task_id.to_le_bytes());
    writer.raw(&server_id.vnn.to_le_bytes());
    writer.raw(&server_id.unique_id.to_le_bytes());
}

pub(super) fn read_file_key(reader: &mut NdrReader<'_>, field: &'static str) -> Result<FileKey, RecordError> {
    Ok(FileKey { device: reader.udlong(field)?, inode: reader.udlong(field)?, extid: reader.udlong(field)? })
}

pub(super) fn write_file_key(writer: &mut NdrWriter, file: FileKey) {
    writer.udlong(file.device);
    writer.udlong(file.inode);
    writer.udlong(file.extid);
}

pub(super) fn read_sid(reader: &mut NdrReader<'_>, field: &'static str) -> Result<SecurityId, RecordError> {
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

pub(super) fn write_sid(writer: &mut NdrWriter, sid: &SecurityId) {
    writer.align(4);
    writer.u8(sid.revision);
    writer.u8(u8::try_from(sid.sub_authorities.len()).expect("checked when it was decoded"));
    writer.raw(&sid.authority);
    for sub_authority in &sid.sub_authorities {
        writer.u32(*sub_authority);
    }
}

/// An array behind its length. The length is held against what is left before memory is asked for.
pub(super) fn read_counted<T>(
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

/// What the cookies of Samba's default VFS begin with.
pub(super) const COOKIE_MAGIC: &[u8; 48] = b"VFS_DEFAULT_DURABLE_COOKIE_MAGIC                ";

/// The beginning of a cookie.
pub(super) fn read_cookie_magic(reader: &mut NdrReader<'_>) -> Result<(), RecordError> {
    let position = reader.position();
    if reader.take("backend_cookie.magic", COOKIE_MAGIC.len())? != COOKIE_MAGIC {
        return Err(reader.error_at(position, "backend_cookie.magic", Problem::ForeignCookie));
    }
    Ok(())
}

/// The time stamps of a cookie's `stat_info`, in their order.
pub(super) const TIMES: [&str; 4] = [
    "backend_cookie.stat_info.st_ex_atime",
    "backend_cookie.stat_info.st_ex_mtime",
    "backend_cookie.stat_info.st_ex_ctime",
    "backend_cookie.stat_info.st_ex_btime",
];

pub(super) fn read_stat(reader: &mut NdrReader<'_>) -> Result<CookieStat, RecordError> {
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

pub(super) fn write_stat(writer: &mut NdrWriter, stat: &CookieStat) {
    for number in [stat.device, stat.inode, stat.mode, stat.nlink, stat.uid, stat.gid, stat.rdev, stat.size] {
        writer.hyper(number);
    }
    for time in stat.times() {
        write_unix_nanos(writer, time);
    }
    writer.hyper(stat.block_size);
    writer.hyper(stat.blocks);
    writer.u32(stat.flags);
    writer.u32(stat.internal_flags);
}

pub(super) fn read_unix_nanos(
    reader: &mut NdrReader<'_>,
    field: &'static str,
) -> Result<UnixNanos, RecordError> {
    Ok(UnixNanos { seconds: reader.hyper(field)?.cast_signed(), nanos: reader.u32(field)? })
}

pub(super) fn write_unix_nanos(writer: &mut NdrWriter, time: UnixNanos) {
    writer.hyper(time.seconds.cast_unsigned());
    writer.u32(time.nanos);
}

pub(super) fn read_lease_key(
    reader: &mut NdrReader<'_>,
    field: &'static str,
) -> Result<LeaseKey, RecordError> {
    reader.align(field, 8)?;
    reader.array(field).map(LeaseKey)
}

pub(super) fn write_lease_key(writer: &mut NdrWriter, lease_key: LeaseKey) {
    writer.align(8);
    writer.raw(&lease_key.0);
}

pub(super) fn read_unix_micros(reader: &mut NdrReader<'_>) -> Result<UnixMicros, RecordError> {
    Ok(UnixMicros { seconds: reader.hyper("share_modes.time")?, micros: reader.u32("share_modes.time")? })
}

pub(super) fn write_unix_micros(writer: &mut NdrWriter, time: UnixMicros) {
    writer.hyper(time.seconds);
    writer.u32(time.micros);
}

/// The tokens of those who have set the marks, which are the rest. Without a mark there is none.
pub(super) fn read_security_tokens(reader: &mut NdrReader<'_>, marks: Vec<DeleteMark>) -> DeleteTokens {
    let security_tokens = if marks.is_empty() { Vec::new() } else { reader.rest().to_vec() };
    DeleteTokens { marks, security_tokens }
}

/// An array of C structures of that length up to the end.
pub(super) fn read_locks(
    reader: &mut NdrReader<'_>,
    lock_len: usize,
    read_lock: impl Fn(&mut NdrReader<'_>) -> Result<BrlockEntry, RecordError>,
) -> Result<Vec<BrlockEntry>, RecordError> {
    let base = reader.position();
    let read = |(index, lock): (usize, &[u8])| {
        let mut reader = NdrReader::nested(Database::Brlock, lock, base + index * lock_len);
        if lock.len() < lock_len {
            let problem = Problem::Truncated { wanted: lock_len, left: lock.len() };
            return Err(reader.error_at(reader.position(), "lock_struct", problem));
        }
        read_lock(&mut reader)
    };
    reader.rest().chunks(lock_len).enumerate().map(read).collect()
}

pub(super) fn read_lock(reader: &mut NdrReader<'_>) -> Result<BrlockEntry, RecordError> {
    Ok(BrlockEntry {
        smblctx: reader.hyper("context.smblctx")?,
        tid: reader.u32("context.tid")?,
        server_id: {
            // The compiler's padding, not Samba's: nobody promises that it is zero.
            reader.take("context.pid", size_of::<u32>())?;
            read_server_id(reader, "context.pid")?
        },
        start: reader.hyper("start")?,
        size: reader.hyper("size")?,
        fnum: reader.hyper("fnum")?,
        exclusive: reader.either("lock_type", "READ_LOCK or WRITE_LOCK")?,
        posix: reader.either("lock_flav", "WINDOWS_LOCK or POSIX_LOCK")?,
        persistent: false,
    })
}

pub(super) fn write_lock(writer: &mut NdrWriter, lock: &BrlockEntry) {
    writer.hyper(lock.smblctx);
    writer.u32(lock.tid);
    write_server_id(writer, lock.server_id);
    writer.hyper(lock.start);
    writer.hyper(lock.size);
    writer.hyper(lock.fnum);
    writer.u32(u32::from(lock.exclusive));
    writer.u32(u32::from(lock.posix));
}
