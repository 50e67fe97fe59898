//! The layout of Samba 4.25, found out on records of Debian's 4.25.1. Its structures are version 1: they say so
//! in an envelope, refer to what is inside by references that are never null, and marshal no time stamp twice.

use frame::Database;
use statedb::{AccessMask, AppInstanceVersion, ClientGuid, CreateGuid, DurableFileId, Millis, ShareAccess};

use super::brlock::BrlockEntry;
use super::codec::Codec;
use super::error::{Problem, RecordError};
use super::identity::NtTime;
use super::locking::{DeleteMark, ShareModeData, ShareModeEntry};
use super::ndr::{NdrReader, NdrWriter};
use super::open_global::{DurableCookie, OpenGlobal};
use super::parts::{
    COOKIE_MAGIC, read_cookie_magic, read_file_key, read_lease_key, read_lock, read_locks,
    read_security_tokens, read_server_id, read_sid, read_stat, read_unix_micros, write_file_key,
    write_lease_key, write_lock, write_server_id, write_sid, write_stat, write_unix_micros,
};

/// The layout of Samba 4.25.
pub(super) struct V4_25;

/// The version of everything.
const VERSION: u32 = 1;

/// The length of a marshalled share-mode entry.
const SHARE_MODE_ENTRY_LEN: usize = 128;

/// The length of a `struct lock_struct` on a 64-bit machine.
const LOCK_STRUCT_LEN: usize = 80;

/// What the compiler adds to a `struct lock_struct` behind its last field, to make the length a multiple of 8.
const LOCK_STRUCT_PADDING: usize = 7;

impl Codec for V4_25 {
    fn read_envelope(&self, reader: &mut NdrReader<'_>) -> Result<u32, RecordError> {
        reader.constant("version", VERSION, "SMBXSRV_VERSION_1")?;
        let seqnum = reader.u32("seqnum")?;
        reader.constant("info.level", VERSION, "the level of version 1")?;
        reader.reference("info")?;
        reader.align("info", 8)?;
        Ok(seqnum)
    }

    fn write_envelope(&self, writer: &mut NdrWriter, seqnum: u32) {
        writer.u32(VERSION);
        writer.u32(seqnum);
        writer.u32(VERSION);
        writer.reference();
        writer.align(8);
    }

    fn read_open(&self, reader: &mut NdrReader<'_>, seqnum: u32) -> Result<OpenGlobal, RecordError> {
        Ok(OpenGlobal {
            seqnum,
            server_id: read_server_id(reader, "server_id")?,
            session_global_id: reader.hyper("session_global_id")?,
            tcon_global_id: reader.u32("tcon_global_id")?,
            open_global_id: reader.u32("open_global_id")?,
            open_persistent_id: DurableFileId(reader.hyper("open_persistent_id")?),
            open_volatile_id: reader.hyper("open_volatile_id")?,
            file: read_file_key(reader, "file_id")?,
            name_hash: reader.u32("name_hash")?,
            open_owner: read_sid(reader, "open_owner")?,
            open_time: NtTime(reader.udlong("open_time")?),
            create_guid: CreateGuid(reader.guid("create_guid")?),
            client_guid: ClientGuid(reader.guid("client_guid")?),
            app_instance_id: reader.guid("app_instance_id")?,
            app_instance_version: AppInstanceVersion {
                high: reader.hyper("app_instance_vhigh")?,
                low: reader.hyper("app_instance_vlow")?,
            },
            create_action: reader.u32("create_action")?,
            disconnect_time: NtTime(reader.udlong("disconnect_time")?),
            durable_timeout: Millis(u64::from(reader.u32("durable_timeout_msec")?)),
            durable: reader.bool8("durable")?,
            persistent: reader.bool8("persistent")?,
            backend_cookie: reader.blob("backend_cookie", read_cookie)?,
            channel_sequence: reader.u16("channel_sequence")?,
            channel_generation: reader.hyper("channel_generation")?,
            lock_sequence_array: reader.array("lock_sequence_array")?,
        })
    }

    fn write_open(&self, writer: &mut NdrWriter, open: &OpenGlobal) {
        write_server_id(writer, open.server_id);
        writer.hyper(open.session_global_id);
        writer.u32(open.tcon_global_id);
        writer.u32(open.open_global_id);
        writer.hyper(open.open_persistent_id.0);
        writer.hyper(open.open_volatile_id);
        write_file_key(writer, open.file);
        writer.u32(open.name_hash);
        write_sid(writer, &open.open_owner);
        writer.udlong(open.open_time.0);
        writer.guid(&open.create_guid.0);
        writer.guid(&open.client_guid.0);
        writer.guid(&open.app_instance_id);
        writer.hyper(open.app_instance_version.high);
        writer.hyper(open.app_instance_version.low);
        writer.u32(open.create_action);
        writer.udlong(open.disconnect_time.0);
        writer.u32(u32::try_from(open.durable_timeout.0).unwrap_or(u32::MAX));
        writer.bool8(open.durable);
        writer.bool8(open.persistent);
        writer.blob(open.backend_cookie.as_ref(), write_cookie);
        writer.u16(open.channel_sequence);
        writer.hyper(open.channel_generation);
        writer.raw(&open.lock_sequence_array);
    }

    fn delete_mark_len(&self) -> usize {
        // Three numbers, a lease key and a persistent id.
        36
    }

    fn read_delete_mark(&self, reader: &mut NdrReader<'_>) -> Result<DeleteMark, RecordError> {
        reader.align("delete_tokens", 8)?;
        Ok(DeleteMark {
            name_hash: reader.u32("delete_tokens.name_hash")?,
            parent_lease_key: read_lease_key(reader, "delete_tokens.parent_lease_key")?,
            open_persistent_id: DurableFileId(reader.hyper("delete_tokens.open_persistent_id")?),
            has_nt_token: reader.pointer("delete_tokens.delete_nt_token")?,
            has_unix_token: reader.pointer("delete_tokens.delete_token")?,
        })
    }

    fn write_delete_mark(&self, writer: &mut NdrWriter, mark: &DeleteMark) {
        writer.align(8);
        writer.u32(mark.name_hash);
        write_lease_key(writer, mark.parent_lease_key);
        writer.hyper(mark.open_persistent_id.0);
        writer.pointer(mark.has_nt_token);
        writer.pointer(mark.has_unix_token);
    }

    fn read_share_mode_data(&self, reader: &mut NdrReader<'_>) -> Result<ShareModeData, RecordError> {
        reader.constant("version", VERSION, "SHARE_MODE_DATA_VERSION_1")?;
        let outer = read_summary(reader)?;
        reader.constant("data.level", VERSION, "the level of version 1")?;
        reader.reference("data")?;
        reader.align("data", 8)?;
        let position = reader.position();
        let (unique_content_epoch, flags) = read_summary(reader)?;
        if (unique_content_epoch, flags) != outer {
            return Err(reader.error_at(position, "data.unique_content_epoch", Problem::SecondPass));
        }
        let has_service_path = reader.pointer("servicepath")?;
        let has_base_name = reader.pointer("base_name")?;
        let has_stream_name = reader.pointer("stream_name")?;
        let num_persistent = reader.u32("num_persistent")?;
        let marks = self.read_delete_marks(reader)?;
        let file = read_file_key(reader, "id")?;
        Ok(ShareModeData {
            unique_content_epoch,
            flags,
            service_path: reader.string_if(has_service_path, "servicepath")?,
            base_name: reader.string_if(has_base_name, "base_name")?,
            stream_name: reader.string_if(has_stream_name, "stream_name")?,
            num_persistent,
            delete_tokens: read_security_tokens(reader, marks),
            old_write_time: NtTime::default(),
            changed_write_time: NtTime::default(),
            file,
        })
    }

    fn write_share_mode_data(&self, writer: &mut NdrWriter, data: &ShareModeData) {
        writer.u32(VERSION);
        write_summary(writer, data);
        writer.u32(VERSION);
        writer.reference();
        writer.align(8);
        write_summary(writer, data);
        let strings = [&data.service_path, &data.base_name, &data.stream_name];
        for string in strings {
            writer.pointer(string.is_some());
        }
        writer.u32(data.num_persistent);
        self.write_delete_marks(writer, &data.delete_tokens.marks);
        write_file_key(writer, data.file);
        for string in strings.into_iter().flatten() {
            writer.string(string);
        }
        writer.raw(&data.delete_tokens.security_tokens);
    }

    fn share_mode_entry_len(&self) -> usize {
        SHARE_MODE_ENTRY_LEN
    }

    fn read_share_mode_entry(&self, reader: &mut NdrReader<'_>) -> Result<ShareModeEntry, RecordError> {
        Ok(ShareModeEntry {
            server_id: read_server_id(reader, "share_modes.pid")?,
            op_mid: reader.hyper("share_modes.op_mid")?,
            op_type: reader.u16("share_modes.op_type")?,
            client_guid: ClientGuid(reader.guid("share_modes.client_guid")?),
            create_guid: CreateGuid(reader.guid("share_modes.create_guid")?),
            lease_key: read_lease_key(reader, "share_modes.lease_key")?,
            access_mask: AccessMask(reader.u32("share_modes.access_mask")?),
            share_access: ShareAccess(reader.u32("share_modes.share_access")?),
            private_options: 0,
            time: read_unix_micros(reader)?,
            share_file_id: reader.udlong("share_modes.share_file_id")?,
            uid: reader.u32("share_modes.uid")?,
            flags: reader.u16("share_modes.flags")?,
            name_hash: reader.u32("share_modes.name_hash")?,
        })
    }

    fn write_share_mode_entry(&self, writer: &mut NdrWriter, entry: &ShareModeEntry) {
        write_server_id(writer, entry.server_id);
        writer.hyper(entry.op_mid);
        writer.u16(entry.op_type);
        writer.guid(&entry.client_guid.0);
        writer.guid(&entry.create_guid.0);
        write_lease_key(writer, entry.lease_key);
        writer.u32(entry.access_mask.0);
        writer.u32(entry.share_access.0);
        write_unix_micros(writer, entry.time);
        writer.udlong(entry.share_file_id);
        writer.u32(entry.uid);
        writer.u16(entry.flags);
        writer.u32(entry.name_hash);
    }

    fn decode_brlocks(&self, value: &[u8]) -> Result<Vec<BrlockEntry>, RecordError> {
        if value.is_empty() {
            return Ok(Vec::new());
        }
        let mut reader = NdrReader::new(Database::Brlock, value);
        // The only number in any of these records that is big endian.
        let position = reader.position();
        let version = u32::from_be_bytes(reader.array("version")?);
        if version != VERSION {
            let problem = Problem::unexpected(version, "SHARE_MODE_DATA_VERSION_1");
            return Err(reader.error_at(position, "version", problem));
        }
        let locks = read_locks(&mut reader, LOCK_STRUCT_LEN, |reader| {
            let lock = read_lock(reader)?;
            let persistent = reader.bool8("persistent")?;
            // The compiler's padding, not Samba's: nobody promises that it is zero.
            reader.take("persistent", LOCK_STRUCT_PADDING)?;
            Ok(BrlockEntry { persistent, ..lock })
        })?;
        if locks.is_empty() {
            let problem = Problem::Truncated { wanted: LOCK_STRUCT_LEN, left: 0 };
            return Err(reader.error_at(reader.position(), "lock_struct", problem));
        }
        Ok(locks)
    }

    fn encode_brlocks(&self, locks: &[BrlockEntry]) -> Vec<u8> {
        let mut value = Vec::new();
        if !locks.is_empty() {
            value.extend_from_slice(&VERSION.to_be_bytes());
        }
        for lock in locks {
            // Each for itself: alignment counts from the first lock, not from the version.
            let mut writer = NdrWriter::default();
            write_lock(&mut writer, lock);
            writer.bool8(lock.persistent);
            writer.align(8);
            value.extend_from_slice(&writer.into_bytes());
        }
        value
    }
}

/// The epoch and the flags, which are inside and outside.
fn read_summary(reader: &mut NdrReader<'_>) -> Result<(u64, u16), RecordError> {
    Ok((reader.hyper("unique_content_epoch")?, reader.u16("flags")?))
}

fn write_summary(writer: &mut NdrWriter, data: &ShareModeData) {
    writer.hyper(data.unique_content_epoch);
    writer.u16(data.flags);
}

fn read_cookie(reader: &mut NdrReader<'_>) -> Result<DurableCookie, RecordError> {
    read_cookie_magic(reader)?;
    reader.constant("backend_cookie.version", VERSION, "version 1 of the cookie")?;
    let allow_reconnect = reader.bool8("backend_cookie.allow_reconnect")?;
    let file = read_file_key(reader, "backend_cookie.id")?;
    reader.pointer_to_some("backend_cookie.servicepath")?;
    reader.pointer_to_some("backend_cookie.base_name")?;
    let initial_allocation_size = reader.hyper("backend_cookie.initial_allocation_size")?;
    let position = reader.hyper("backend_cookie.position_information")?;
    let write_time_forced = reader.bool8("backend_cookie.write_time_forced")?;
    let initial_delete_on_close = reader.bool8("backend_cookie.initial_delete_on_close")?;
    let stat = read_stat(reader)?;
    Ok(DurableCookie {
        allow_reconnect,
        file,
        service_path: reader.string("backend_cookie.servicepath")?,
        base_name: reader.string("backend_cookie.base_name")?,
        initial_allocation_size,
        position,
        update_write_time_triggered: false,
        update_write_time_on_close: false,
        write_time_forced,
        close_write_time: NtTime::default(),
        initial_delete_on_close,
        stat,
    })
}

fn write_cookie(writer: &mut NdrWriter, cookie: &DurableCookie) {
    writer.raw(COOKIE_MAGIC);
    writer.u32(VERSION);
    writer.bool8(cookie.allow_reconnect);
    write_file_key(writer, cookie.file);
    writer.pointer(true);
    writer.pointer(true);
    writer.hyper(cookie.initial_allocation_size);
    writer.hyper(cookie.position);
    writer.bool8(cookie.write_time_forced);
    writer.bool8(cookie.initial_delete_on_close);
    write_stat(writer, &cookie.stat);
    writer.string(&cookie.service_path);
    writer.string(&cookie.base_name);
}
