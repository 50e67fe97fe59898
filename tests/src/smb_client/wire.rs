//! Bytes: every structure of MS-SMB2 that this client sends or understands, and no decision about when.
//!
//! Requests are built as bodies (what follows the 64-byte header); offsets inside them count from the
//! header's start, as the protocol has it. Responses are read in place, field by field at the offsets of the
//! specification, and every read is checked: what the server sends may be short or absurd.

use std::time::Duration;

use tokio_util::bytes::Bytes;

use super::{
    error::{NtStatus, WireError},
    types::{
        Break, ClientGuid, Command, CreateAction, CreateRequest, CreateResponse, Durability,
        DurableV2Response, FileId, Lease, LeaseKey, LeaseState, LeaseVersion, LockElement, LockSequence,
        OplockLevel,
    },
};

/// The only dialect offered: SMB 3.0.2.
pub(super) const DIALECT: u16 = 0x0302;

/// Length of the packet header (MS-SMB2 2.2.1).
const HEADER_LEN: usize = 64;

/// How many credits every request asks for. The server grants what it likes; enough of them let a load
/// generator keep hundreds of requests under way on one connection.
const CREDITS_WANTED: u16 = 256;

/// Bytes of payload that one credit pays for (MS-SMB2 3.1.5.2).
const BYTES_PER_CREDIT: usize = 65536;

/// The MessageId of everything that the server sends unasked (MS-SMB2 2.2.23).
pub(super) const UNSOLICITED_MESSAGE_ID: u64 = u64::MAX;

/// One request before it has a MessageId.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) command: Command,
    pub(super) session_id: u64,
    pub(super) tree_id: u32,
    /// CreditCharge: how many MessageIds the request uses up.
    pub(super) credit_charge: u16,
    body: Vec<u8>,
}

impl Request {
    fn new(command: Command, session_id: u64, tree_id: u32, body: Body) -> Self {
        Self { command, session_id, tree_id, credit_charge: 1, body: body.0 }
    }

    /// Pays for `len` bytes of data in the request or in its response (MS-SMB2 3.1.5.2).
    fn charged_for(self, len: usize) -> Self {
        let credit_charge = u16::try_from(len.max(1).div_ceil(BYTES_PER_CREDIT)).unwrap_or(u16::MAX);
        Self { credit_charge, ..self }
    }

    /// Appends the message as it goes over TCP: its length (MS-SMB2 2.1), header (2.2.1.2) and body.
    pub(super) fn encode(&self, message_id: u64, out: &mut impl Extend<u8>) {
        let len = u32::try_from(HEADER_LEN + self.body.len()).expect("no request has 4 GiB");
        let header = Body::default()
            .bytes(b"\xFESMB")
            .u16(64) // StructureSize
            .u16(self.credit_charge)
            .u32(0) // ChannelSequence: there is one channel
            .u16(self.command as u16)
            .u16(CREDITS_WANTED)
            .u32(0) // Flags
            .u32(0) // NextCommand: nothing is compounded
            .u64(message_id)
            .u32(0)
            .u32(self.tree_id)
            .u64(self.session_id)
            .bytes(&[0; 16]); // Signature: unsigned
        debug_assert_eq!(header.0.len(), HEADER_LEN);
        // The length's highest byte is the message type of the transport, which is zero.
        out.extend(len.to_be_bytes());
        out.extend(header.0);
        out.extend(self.body.iter().copied());
    }
}

/// NEGOTIATE (MS-SMB2 2.2.3).
pub(super) fn negotiate(client_guid: ClientGuid) -> Request {
    const SIGNING_ENABLED: u16 = 0x0001;
    const CAP_LEASING: u32 = 0x02;
    const CAP_LARGE_MTU: u32 = 0x04;
    const CAP_PERSISTENT_HANDLES: u32 = 0x10;
    let body = Body::default()
        .u16(36)
        .u16(1) // DialectCount
        .u16(SIGNING_ENABLED)
        .u16(0)
        .u32(CAP_LEASING | CAP_LARGE_MTU | CAP_PERSISTENT_HANDLES)
        .bytes(&client_guid.0)
        .u64(0) // ClientStartTime
        .u16(DIALECT);
    Request::new(Command::Negotiate, 0, 0, body)
}

/// What matters of a NEGOTIATE response (MS-SMB2 2.2.4).
pub(super) struct Negotiated {
    pub(super) dialect: u16,
    pub(super) signing_required: bool,
}

impl Negotiated {
    pub(super) fn decode(response: &Response) -> Result<Self, WireError> {
        const SIGNING_REQUIRED: u16 = 0x0002;
        let body = response.body("NEGOTIATE response", 65)?;
        Ok(Self { signing_required: body.u16(2)? & SIGNING_REQUIRED != 0, dialect: body.u16(4)? })
    }
}

/// SESSION_SETUP (MS-SMB2 2.2.5).
pub(super) fn session_setup(session_id: u64, previous_session_id: u64, token: &[u8]) -> Request {
    const SIGNING_ENABLED: u8 = 0x01;
    const TOKEN_OFFSET: u16 = 64 + 24;
    let body = Body::default()
        .u16(25)
        .u8(0)
        .u8(SIGNING_ENABLED)
        .u32(0) // Capabilities
        .u32(0) // Channel
        .u16(TOKEN_OFFSET)
        .u16_len(token.len())
        .u64(previous_session_id)
        .bytes(token);
    Request::new(Command::SessionSetup, session_id, 0, body)
}

/// The security token of a SESSION_SETUP response (MS-SMB2 2.2.6).
pub(super) fn session_setup_token(response: &Response) -> Result<&[u8], WireError> {
    let body = response.body("SESSION_SETUP response", 9)?;
    response.buffer("SESSION_SETUP response", body.u16(4)?.into(), body.u16(6)?.into())
}

/// LOGOFF (MS-SMB2 2.2.7).
pub(super) fn logoff(session_id: u64) -> Request {
    Request::new(Command::Logoff, session_id, 0, Body::default().u16(4).u16(0))
}

/// ECHO (MS-SMB2 2.2.28).
pub(super) fn echo() -> Request {
    Request::new(Command::Echo, 0, 0, Body::default().u16(4).u16(0))
}

/// TREE_CONNECT (MS-SMB2 2.2.9).
pub(super) fn tree_connect(session_id: u64, share: &str) -> Request {
    const PATH_OFFSET: u16 = 64 + 8;
    let path = utf16(share);
    let body = Body::default().u16(9).u16(0).u16(PATH_OFFSET).u16_len(path.len()).bytes(&path);
    Request::new(Command::TreeConnect, session_id, 0, body)
}

/// TREE_DISCONNECT (MS-SMB2 2.2.11).
pub(super) fn tree_disconnect(session_id: u64, tree_id: u32) -> Request {
    Request::new(Command::TreeDisconnect, session_id, tree_id, Body::default().u16(4).u16(0))
}

/// CREATE (MS-SMB2 2.2.13).
pub(super) fn create(session_id: u64, tree_id: u32, request: &CreateRequest) -> Request {
    const IMPERSONATION: u32 = 2;
    const FILE_ATTRIBUTE_NORMAL: u32 = 0x80;
    const NAME_OFFSET: usize = 64 + 56;
    const CONTEXT_ALIGNMENT: usize = 8;

    let name = utf16(&request.path);
    let contexts = create_contexts(request);
    // Even an empty name takes up space, because the structure's size counts one byte of buffer.
    let contexts_offset = (NAME_OFFSET + name.len().max(1)).next_multiple_of(CONTEXT_ALIGNMENT);
    let padding = vec![0; contexts_offset - NAME_OFFSET - name.len()];
    let body = Body::default()
        .u16(57)
        .u8(0)
        .u8(request.oplock_level as u8)
        .u32(IMPERSONATION)
        .u64(0)
        .u64(0)
        .u32(request.desired_access.0)
        .u32(FILE_ATTRIBUTE_NORMAL)
        .u32(request.share_access.0)
        .u32(request.disposition as u32)
        .u32(request.options.0)
        .u16_len(NAME_OFFSET)
        .u16_len(name.len())
        .u32_len(if contexts.is_empty() { 0 } else { contexts_offset })
        .u32_len(contexts.len())
        .bytes(&name)
        .bytes(&padding)
        .bytes(&contexts);
    Request::new(Command::Create, session_id, tree_id, body)
}

/// The chain of create contexts (MS-SMB2 2.2.13.2).
fn create_contexts(request: &CreateRequest) -> Vec<u8> {
    const NAME_OFFSET: u16 = 16;
    const DATA_OFFSET: u16 = 24;
    const ALIGNMENT: usize = 8;

    let mut contexts: Vec<(&[u8; 4], Vec<u8>)> = Vec::new();
    contexts.extend(request.durability.context());
    contexts.extend(request.lease.map(|lease| (b"RqLs", lease.encode())));

    let last = contexts.len().saturating_sub(1);
    let mut chain = Vec::new();
    for (index, (name, data)) in contexts.into_iter().enumerate() {
        let len = usize::from(DATA_OFFSET) + data.len();
        let next = if index == last { 0 } else { len.next_multiple_of(ALIGNMENT) };
        let context = Body::default()
            .u32_len(next)
            .u16(NAME_OFFSET)
            .u16_len(name.len())
            .u16(0)
            .u16(DATA_OFFSET)
            .u32_len(data.len())
            .bytes(name)
            .u32(0) // up to DATA_OFFSET
            .bytes(&data);
        chain.extend(context.0);
        chain.resize(chain.len().next_multiple_of(ALIGNMENT), 0);
    }
    chain
}

/// SMB2_DHANDLE_FLAG_PERSISTENT.
const DHANDLE_FLAG_PERSISTENT: u32 = 0x2;

impl Durability {
    fn context(self) -> Option<(&'static [u8; 4], Vec<u8>)> {
        let flags = |persistent: bool| if persistent { DHANDLE_FLAG_PERSISTENT } else { 0 };
        match self {
            Self::None => None,
            Self::RequestV1 => Some((b"DHnQ", vec![0; 16])),
            Self::RequestV2 { create_guid, timeout, persistent } => {
                let data = Body::default()
                    .u32(u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX))
                    .u32(flags(persistent))
                    .u64(0)
                    .bytes(&create_guid.0);
                Some((b"DH2Q", data.0))
            }
            Self::ReconnectV1 { file_id } => Some((b"DHnC", Body::default().file_id(file_id).0)),
            Self::ReconnectV2 { file_id, create_guid, persistent } => {
                let data = Body::default().file_id(file_id).bytes(&create_guid.0).u32(flags(persistent));
                Some((b"DH2C", data.0))
            }
        }
    }
}

impl Lease {
    /// SMB2_CREATE_REQUEST_LEASE and its V2 (MS-SMB2 2.2.13.2.8, 2.2.13.2.10).
    fn encode(self) -> Vec<u8> {
        let v1 = Body::default().bytes(&self.key.0).u32(self.state.0).u32(0).u64(0);
        match self.version {
            LeaseVersion::V1 => v1.0,
            LeaseVersion::V2 { epoch } => v1.bytes(&[0; 16]).u16(epoch).u16(0).0,
        }
    }

    /// SMB2_CREATE_RESPONSE_LEASE and its V2 (MS-SMB2 2.2.14.2.10, 2.2.14.2.11): told apart by length.
    fn decode(data: &[u8]) -> Result<Self, WireError> {
        let data = Structure { name: "RqLs response", bytes: data };
        let version = match data.bytes.len() {
            32 => LeaseVersion::V1,
            52 => LeaseVersion::V2 { epoch: data.u16(48)? },
            len => return Err(data.wrong(format!("{len} bytes instead of 32 or 52"))),
        };
        Ok(Self { key: LeaseKey(data.array(0)?), state: LeaseState(data.u32(16)?), version })
    }
}

impl CreateResponse {
    /// CREATE response (MS-SMB2 2.2.14).
    pub(super) fn decode(response: &Response) -> Result<Self, WireError> {
        let name = "CREATE response";
        let body = response.body(name, 89)?;
        let action = match body.u32(4)? {
            0 => CreateAction::Superseded,
            1 => CreateAction::Opened,
            2 => CreateAction::Created,
            3 => CreateAction::Overwritten,
            other => return Err(body.wrong(format!("CreateAction {other}"))),
        };
        let mut decoded = Self {
            file_id: body.file_id(64)?,
            oplock_level: OplockLevel::decode(&body, 2)?,
            action,
            allocation_size: body.u64(40)?,
            end_of_file: body.u64(48)?,
            lease: None,
            durable_v1: false,
            durable_v2: None,
        };
        let contexts = response.buffer(name, body.u32(80)?, body.u32(84)?)?;
        for_each_context(contexts, |name, data| {
            match name {
                b"DHnQ" => decoded.durable_v1 = true,
                b"DH2Q" => {
                    let data = Structure { name: "DH2Q response", bytes: data };
                    decoded.durable_v2 = Some(DurableV2Response {
                        timeout: Duration::from_millis(data.u32(0)?.into()),
                        persistent: data.u32(4)? & DHANDLE_FLAG_PERSISTENT != 0,
                    });
                }
                b"RqLs" => decoded.lease = Some(Lease::decode(data)?),
                // Contexts nobody asked for say nothing that this client could use.
                _ => {}
            }
            Ok(())
        })?;
        Ok(decoded)
    }
}

/// Walks a chain of create contexts. Terminates because every step moves forward by at least one.
fn for_each_context(
    chain: &[u8],
    mut visit: impl FnMut(&[u8], &[u8]) -> Result<(), WireError>,
) -> Result<(), WireError> {
    let mut rest = Structure { name: "create context", bytes: chain };
    while !rest.bytes.is_empty() {
        let next = rest.u32(0)?;
        let name = rest.slice(rest.u16(4)?.into(), rest.u16(6)?.into())?;
        let data = rest.slice(rest.u16(10)?.into(), rest.u32(12)?)?;
        visit(name, data)?;
        if next == 0 {
            break;
        }
        rest.bytes = rest.slice(next, 0).map(|_| &rest.bytes[next as usize..])?;
    }
    Ok(())
}

impl OplockLevel {
    fn decode(structure: &Structure<'_>, offset: usize) -> Result<Self, WireError> {
        Ok(match structure.u8(offset)? {
            0x00 => Self::None,
            0x01 => Self::LevelII,
            0x08 => Self::Exclusive,
            0x09 => Self::Batch,
            0xFF => Self::Lease,
            other => return Err(structure.wrong(format!("OplockLevel {other:#04x}"))),
        })
    }
}

/// CLOSE (MS-SMB2 2.2.15).
pub(super) fn close(session_id: u64, tree_id: u32, file_id: FileId) -> Request {
    Request::new(Command::Close, session_id, tree_id, Body::default().u16(24).u16(0).u32(0).file_id(file_id))
}

/// READ (MS-SMB2 2.2.19).
pub(super) fn read(session_id: u64, tree_id: u32, file_id: FileId, offset: u64, len: u32) -> Request {
    let body = Body::default()
        .u16(49)
        .u8(0)
        .u8(0)
        .u32(len)
        .u64(offset)
        .file_id(file_id)
        .u32(0) // MinimumCount
        .u32(0) // Channel
        .u32(0) // RemainingBytes
        .u32(0) // ReadChannelInfo
        .u8(0); // the one byte of Buffer that must be there
    Request::new(Command::Read, session_id, tree_id, body).charged_for(len as usize)
}

/// The data of a READ response (MS-SMB2 2.2.20).
pub(super) fn read_data(response: &Response) -> Result<&[u8], WireError> {
    let body = response.body("READ response", 17)?;
    response.buffer("READ response", body.u8(2)?.into(), body.u32(4)?)
}

/// WRITE (MS-SMB2 2.2.21).
pub(super) fn write(session_id: u64, tree_id: u32, file_id: FileId, offset: u64, data: &[u8]) -> Request {
    const DATA_OFFSET: u16 = 64 + 48;
    let body = Body::default()
        .u16(49)
        .u16(DATA_OFFSET)
        .u32_len(data.len())
        .u64(offset)
        .file_id(file_id)
        .u32(0) // Channel
        .u32(0) // RemainingBytes
        .u32(0) // WriteChannelInfo
        .u32(0) // Flags
        .bytes(data);
    Request::new(Command::Write, session_id, tree_id, body).charged_for(data.len())
}

/// How many bytes a WRITE wrote (MS-SMB2 2.2.22).
pub(super) fn write_count(response: &Response) -> Result<u32, WireError> {
    response.body("WRITE response", 17)?.u32(4)
}

/// LOCK (MS-SMB2 2.2.26).
pub(super) fn lock(
    session_id: u64,
    tree_id: u32,
    file_id: FileId,
    elements: &[LockElement],
    sequence: LockSequence,
) -> Request {
    let sequence = (u32::from(sequence.index) << 4) | u32::from(sequence.number & 0xF);
    let mut body = Body::default().u16(48).u16_len(elements.len()).u32(sequence).file_id(file_id);
    for element in elements {
        body = body.u64(element.offset).u64(element.length).u32(element.flags()).u32(0);
    }
    Request::new(Command::Lock, session_id, tree_id, body)
}

/// SET_INFO with FileRenameInformation (MS-SMB2 2.2.39; MS-FSCC 2.4.42.2).
pub(super) fn rename(
    session_id: u64,
    tree_id: u32,
    file_id: FileId,
    new_path: &str,
    replace: bool,
) -> Request {
    const FILE_RENAME_INFORMATION: u8 = 10;
    let name = utf16(new_path);
    let information =
        Body::default().u8(replace.into()).bytes(&[0; 7]).u64(0).u32_len(name.len()).bytes(&name);
    set_info(session_id, tree_id, file_id, FILE_RENAME_INFORMATION, &information.0)
}

/// SET_INFO with FileDispositionInformation (MS-SMB2 2.2.39; MS-FSCC 2.4.11).
pub(super) fn set_disposition(
    session_id: u64,
    tree_id: u32,
    file_id: FileId,
    delete_pending: bool,
) -> Request {
    const FILE_DISPOSITION_INFORMATION: u8 = 13;
    set_info(session_id, tree_id, file_id, FILE_DISPOSITION_INFORMATION, &[delete_pending.into()])
}

/// SET_INFO with FileEndOfFileInformation (MS-SMB2 2.2.39; MS-FSCC 2.4.13).
pub(super) fn set_end_of_file(session_id: u64, tree_id: u32, file_id: FileId, len: u64) -> Request {
    const FILE_END_OF_FILE_INFORMATION: u8 = 20;
    set_info(session_id, tree_id, file_id, FILE_END_OF_FILE_INFORMATION, &len.to_le_bytes())
}

/// SET_INFO with FileBasicInformation (MS-SMB2 2.2.39; MS-FSCC 2.4.7) that changes nothing but LastWriteTime.
pub(super) fn set_last_write_time(session_id: u64, tree_id: u32, file_id: FileId, seconds: u32) -> Request {
    const FILE_BASIC_INFORMATION: u8 = 4;
    // FILETIME (MS-DTYP 2.3.3) counts tenths of microseconds from 1601 on.
    const SECONDS_FROM_1601_TO_1970: u64 = 11_644_473_600;
    const TICKS_PER_SECOND: u64 = 10_000_000;
    let time = (u64::from(seconds) + SECONDS_FROM_1601_TO_1970) * TICKS_PER_SECOND;
    let information = Body::default()
        .u64(0) // CreationTime: unchanged, as the others
        .u64(0) // LastAccessTime
        .u64(time)
        .u64(0) // ChangeTime
        .u32(0) // FileAttributes
        .u32(0); // Reserved
    set_info(session_id, tree_id, file_id, FILE_BASIC_INFORMATION, &information.0)
}

fn set_info(session_id: u64, tree_id: u32, file_id: FileId, class: u8, information: &[u8]) -> Request {
    const INFO_FILE: u8 = 1;
    const BUFFER_OFFSET: u16 = 64 + 32;
    let body = Body::default()
        .u16(33)
        .u8(INFO_FILE)
        .u8(class)
        .u32_len(information.len())
        .u16(BUFFER_OFFSET)
        .u16(0)
        .u32(0) // AdditionalInformation
        .file_id(file_id)
        .bytes(information);
    Request::new(Command::SetInfo, session_id, tree_id, body).charged_for(information.len())
}

/// OPLOCK_BREAK acknowledgment (MS-SMB2 2.2.24.1).
pub(super) fn acknowledge_oplock_break(
    session_id: u64,
    tree_id: u32,
    file_id: FileId,
    level: OplockLevel,
) -> Request {
    let body = Body::default().u16(24).u8(level as u8).u8(0).u32(0).file_id(file_id);
    Request::new(Command::OplockBreak, session_id, tree_id, body)
}

/// LEASE_BREAK acknowledgment (MS-SMB2 2.2.24.2).
pub(super) fn acknowledge_lease_break(
    session_id: u64,
    tree_id: u32,
    key: LeaseKey,
    state: LeaseState,
) -> Request {
    let body = Body::default().u16(36).u16(0).u32(0).bytes(&key.0).u32(state.0).u64(0);
    Request::new(Command::OplockBreak, session_id, tree_id, body)
}

impl Break {
    /// OPLOCK_BREAK or LEASE_BREAK notification (MS-SMB2 2.2.23): told apart by their StructureSize.
    pub(super) fn decode(message: &Response) -> Result<Self, WireError> {
        const OPLOCK_BREAK_SIZE: u16 = 24;
        const LEASE_BREAK_SIZE: u16 = 44;
        const ACK_REQUIRED: u32 = 0x1;
        let body = Structure { name: "break notification", bytes: &message.0[HEADER_LEN..] };
        match body.u16(0)? {
            OPLOCK_BREAK_SIZE => {
                Ok(Self::Oplock { file_id: body.file_id(8)?, level: OplockLevel::decode(&body, 2)? })
            }
            LEASE_BREAK_SIZE => Ok(Self::Lease {
                key: LeaseKey(body.array(8)?),
                current: LeaseState(body.u32(24)?),
                new: LeaseState(body.u32(28)?),
                epoch: body.u16(2)?,
                ack_required: body.u32(4)? & ACK_REQUIRED != 0,
            }),
            size => Err(body.wrong(format!("StructureSize {size} instead of 24 or 44"))),
        }
    }
}

/// A whole message from the server, whose header has been checked.
#[derive(Debug)]
pub(super) struct Response(Bytes);

impl Response {
    /// Checks the parts of the header (MS-SMB2 2.2.1) without which nothing else can be read.
    pub(super) fn parse(message: Bytes) -> Result<Self, WireError> {
        let header = Structure { name: "packet header", bytes: &message };
        if header.array(0)? != *b"\xFESMB" {
            return Err(header.wrong(format!("ProtocolId {:02x?}", &message[..4])));
        }
        header.array::<HEADER_LEN>(0)?;
        if header.u32(20)? != 0 {
            return Err(header.wrong("a compounded answer to a request that was not compounded".into()));
        }
        Ok(Self(message))
    }

    pub(super) fn status(&self) -> NtStatus {
        NtStatus(self.header_u32(8))
    }

    /// CreditResponse.
    pub(super) fn credits(&self) -> u16 {
        u16::from_le_bytes([self.0[14], self.0[15]])
    }

    pub(super) fn message_id(&self) -> u64 {
        u64::from(self.header_u32(24)) | u64::from(self.header_u32(28)) << 32
    }

    pub(super) fn tree_id(&self) -> u32 {
        self.header_u32(36)
    }

    pub(super) fn session_id(&self) -> u64 {
        u64::from(self.header_u32(40)) | u64::from(self.header_u32(44)) << 32
    }

    /// Whether this only says that the answer will take a while (MS-SMB2 3.2.5.1.5).
    pub(super) fn is_interim(&self) -> bool {
        const ASYNC_COMMAND: u32 = 0x0000_0002;
        self.status() == NtStatus::PENDING && self.header_u32(16) & ASYNC_COMMAND != 0
    }

    fn header_u32(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.0[offset..offset + 4].try_into().expect("the header was checked to be there"))
    }

    /// The structure after the header, which must say that it is `size` bytes long.
    fn body(&self, name: &'static str, size: u16) -> Result<Structure<'_>, WireError> {
        let body = Structure { name, bytes: &self.0[HEADER_LEN..] };
        match body.u16(0)? {
            found if found == size => Ok(body),
            found => Err(body.wrong(format!("StructureSize {found} instead of {size}"))),
        }
    }

    /// A buffer that a body points to, counted from the header's start.
    fn buffer(&self, name: &'static str, offset: u32, len: u32) -> Result<&[u8], WireError> {
        if len == 0 {
            return Ok(&[]);
        }
        Structure { name, bytes: &self.0 }.slice(offset, len)
    }
}

/// Bytes with a name, read at fixed offsets.
struct Structure<'a> {
    name: &'static str,
    bytes: &'a [u8],
}

impl<'a> Structure<'a> {
    fn wrong(&self, problem: String) -> WireError {
        WireError { structure: self.name, problem }
    }

    fn array<const N: usize>(&self, offset: usize) -> Result<[u8; N], WireError> {
        self.bytes.get(offset..).and_then(|rest| rest.first_chunk()).copied().ok_or_else(|| {
            self.wrong(format!("{} bytes are too few: {N} wanted at offset {offset}", self.bytes.len()))
        })
    }

    fn u8(&self, offset: usize) -> Result<u8, WireError> {
        self.array::<1>(offset).map(|[byte]| byte)
    }

    fn u16(&self, offset: usize) -> Result<u16, WireError> {
        self.array(offset).map(u16::from_le_bytes)
    }

    fn u32(&self, offset: usize) -> Result<u32, WireError> {
        self.array(offset).map(u32::from_le_bytes)
    }

    fn u64(&self, offset: usize) -> Result<u64, WireError> {
        self.array(offset).map(u64::from_le_bytes)
    }

    fn file_id(&self, offset: usize) -> Result<FileId, WireError> {
        Ok(FileId { persistent: self.u64(offset)?, volatile: self.u64(offset + 8)? })
    }

    fn slice(&self, offset: u32, len: u32) -> Result<&'a [u8], WireError> {
        let (start, len) = (offset as usize, len as usize);
        start.checked_add(len).and_then(|end| self.bytes.get(start..end)).ok_or_else(|| {
            self.wrong(format!("a buffer of {len} bytes at {start} in {} bytes", self.bytes.len()))
        })
    }
}

/// A structure being written, little endian.
#[derive(Default)]
struct Body(Vec<u8>);

impl Body {
    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn u8(self, value: u8) -> Self {
        self.bytes(&[value])
    }

    fn u16(self, value: u16) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    fn u32(self, value: u32) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    fn u64(self, value: u64) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    /// A length or offset in a 16-bit field.
    fn u16_len(self, len: usize) -> Self {
        self.u16(u16::try_from(len).expect("names, tokens and lock lists of tests are far below 64 KiB"))
    }

    /// A length or offset in a 32-bit field.
    fn u32_len(self, len: usize) -> Self {
        self.u32(u32::try_from(len).expect("no request has 4 GiB"))
    }

    fn file_id(self, file_id: FileId) -> Self {
        self.u64(file_id.persistent).u64(file_id.volatile)
    }
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn message(flags: u32, credits: u16, body: &[u8]) -> Bytes {
        let header = Body::default()
            .bytes(b"\xFESMB")
            .bytes(&[0; 10])
            .u16(credits)
            .u32(flags)
            .bytes(&[0; HEADER_LEN - 20]);
        [header.0, body.to_vec()].concat().into()
    }

    proptest! {
        #[test]
        fn absurd_messages_are_refused_and_never_panic(bytes in vec(any::<u8>(), 0..200)) {
            let _ = Response::parse(bytes.into());
        }

        /// The StructureSize is right more often than by chance, so that what comes after it is reached.
        #[test]
        fn absurd_bodies_are_refused_and_never_panic(
            size in prop::sample::select(vec![9_u16, 17, 24, 44, 65, 89]),
            rest in vec(prop_oneof![Just(0_u8), Just(64), Just(152), Just(255), any::<u8>()], 0..250),
        ) {
            let body = [&size.to_le_bytes()[..], &rest].concat();
            let response = Response::parse(message(0, 1, &body)).unwrap();
            let _ = Negotiated::decode(&response).map(|negotiated| negotiated.dialect);
            let _ = session_setup_token(&response);
            let _ = CreateResponse::decode(&response);
            let _ = read_data(&response);
            let _ = write_count(&response);
            let _ = Break::decode(&response);
        }

        #[test]
        fn chains_of_contexts_are_walked_to_the_end(request_v2 in any::<bool>(), lease_v2 in any::<bool>()) {
            let version = if lease_v2 { LeaseVersion::V2 { epoch: 7 } } else { LeaseVersion::V1 };
            let lease = Lease { version, ..Lease::request(LeaseState::READ_HANDLE) };
            let request = CreateRequest::new("file").with_lease(lease);
            let request = if request_v2 { request.durable_v2() } else { request.durable_v1() };
            let mut seen = Vec::new();
            for_each_context(&create_contexts(&request), |name, data| {
                if name == b"RqLs" {
                    assert_eq!(Lease::decode(data).unwrap(), lease);
                }
                seen.push(name.to_vec());
                Ok(())
            }).unwrap();
            let durable = if request_v2 { b"DH2Q" } else { b"DHnQ" };
            prop_assert_eq!(seen, vec![durable.to_vec(), b"RqLs".to_vec()]);
        }
    }
}
