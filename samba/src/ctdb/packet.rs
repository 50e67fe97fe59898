//! Packets on ctdbd's unix socket: what is asked and what is answered, as bytes.
//!
//! ```text
//! offset  size  field
//!      0     4  length       of the whole packet
//!      4     4  magic        "CTDB"
//!      8     4  version      1
//!     12     4  generation   of the cluster; ctdbd fills it in
//!     16     4  operation    which request or reply
//!     20     4  destination  a node number, or CURRENT_NODE
//!     24     4  source       ctdbd fills it in
//!     28     4  request      chosen by the asker, repeated in the reply
//!     32     …  body         by operation
//! ```
//!
//! Numbers are in the byte order of the machine: both ends are always on the same one. Lengths come last in a body,
//! and the bytes they count follow it.

use frame::frame::MAX_FRAME;
use thiserror::Error;

/// Bytes before the body.
pub(super) const HEADER_LEN: usize = 32;

/// The longest packet that is taken from ctdbd. A record of ours has at most [`MAX_FRAME`] bytes, and nothing
/// else that is asked for comes near that.
pub(super) const PACKET_MAX: usize = MAX_FRAME + (64 << 10);

const MAGIC: u32 = 0x4354_4442;
const VERSION: u32 = 1;

/// The node whose ctdbd this is, whatever its number.
const CURRENT_NODE: u32 = 0xF000_0001;

/// Operations (the header's field).
const REQ_CALL: u32 = 0;
const REPLY_CALL: u32 = 1;
const REPLY_ERROR: u32 = 4;
const REQ_CONTROL: u32 = 7;
const REPLY_CONTROL: u32 = 8;

/// The control's flag that no reply is wanted.
const CONTROL_FLAG_NO_REPLY: u32 = 1;

/// A node of a CTDB cluster, by its place in the `nodes` file; in a server id it is called vnn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pnn(pub u32);

impl std::fmt::Display for Pnn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// A database of the cluster; the same on all nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DatabaseId(pub u32);

/// Which control is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Opcode {
    ProcessExists = 0,
    GetDatabasePath = 4,
    GetVnnMap = 5,
    GetDatabaseMap = 9,
    GetRecoveryMode = 15,
    AttachDatabase = 18,
    GetDatabaseName = 25,
    GetPnn = 35,
    GetTunable = 49,
    GetNodeMap = 91,
    GetClusterLock = 99,
    SetBanState = 109,
    ScheduleForDeletion = 128,
    GetOpenFlags = 149,
    CheckPidAndServiceId = 151,
}

/// What is done with the record of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    /// It moves to this node.
    Migrate,
    /// The same, and its value is answered.
    Fetch,
}

impl Call {
    /// The numbers of ctdbd's built-in functions.
    fn function(self) -> u32 {
        match self {
            Self::Migrate => 0xFF00_0001,
            Self::Fetch => 0xFF00_0002,
        }
    }

    fn flags(self) -> u32 {
        const IMMEDIATE_MIGRATION: u32 = 1;
        match self {
            Self::Migrate => IMMEDIATE_MIGRATION,
            Self::Fetch => 0,
        }
    }
}

/// What is asked of ctdbd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request<'a> {
    /// A question to a node: this one, or another.
    Control { opcode: Opcode, node: Option<Pnn>, data: &'a [u8] },
    /// The same to this node, and nothing is answered.
    Order { opcode: Opcode, data: &'a [u8] },
    /// Something with a record, wherever it is.
    Call { call: Call, database: DatabaseId, key: &'a [u8] },
}

impl Request<'_> {
    /// Appends the packet to bytes that are going to be sent.
    pub(super) fn encode(&self, request: u32, bytes: &mut Vec<u8>) -> Result<(), PacketError> {
        let start = bytes.len();
        let (operation, node) = match self {
            Self::Control { node, .. } => (REQ_CONTROL, *node),
            Self::Order { .. } => (REQ_CONTROL, None),
            Self::Call { .. } => (REQ_CALL, None),
        };
        let destination = node.map_or(CURRENT_NODE, |node| node.0);
        for field in [0, MAGIC, VERSION, 0, operation, destination, 0, request] {
            bytes.extend(field.to_ne_bytes());
        }
        match self {
            Self::Control { opcode, data, .. } => encode_control(*opcode, 0, data, bytes)?,
            Self::Order { opcode, data } => encode_control(*opcode, CONTROL_FLAG_NO_REPLY, data, bytes)?,
            Self::Call { call, database, key } => {
                let hop_count = 0;
                let (key_length, data_length) = (length_of(key)?, 0);
                for field in [call.flags(), database.0, call.function(), hop_count, key_length, data_length] {
                    bytes.extend(field.to_ne_bytes());
                }
                bytes.extend(*key);
            }
        }
        let length = length_of(&bytes[start..])?;
        bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
        Ok(())
    }

    /// Whether this packet can be the answer.
    fn expects(&self, operation: u32) -> bool {
        match self {
            Self::Control { .. } => operation == REPLY_CONTROL,
            Self::Call { .. } => operation == REPLY_CALL || operation == REPLY_ERROR,
            Self::Order { .. } => false,
        }
    }
}

fn encode_control(opcode: Opcode, flags: u32, data: &[u8], bytes: &mut Vec<u8>) -> Result<(), PacketError> {
    let (padding, service_id, client_id) = (0_u32, 0_u64, 0_u32);
    bytes.extend((opcode as u32).to_ne_bytes());
    bytes.extend(padding.to_ne_bytes());
    bytes.extend(service_id.to_ne_bytes());
    for field in [client_id, flags, length_of(data)?] {
        bytes.extend(field.to_ne_bytes());
    }
    bytes.extend(data);
    Ok(())
}

/// The length of something that is sent.
pub(super) fn length_of(bytes: &[u8]) -> Result<u32, PacketError> {
    let length = bytes.len();
    let fits = u32::try_from(length).ok().filter(|_| length <= PACKET_MAX);
    fits.ok_or(PacketError::Length { length: length as u64 })
}

/// A packet from ctdbd, taken apart as far as every packet can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Packet<'a> {
    operation: u32,
    /// The request that it answers.
    pub(super) request: u32,
    body: &'a [u8],
}

/// What ctdbd answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Reply {
    /// By request: an error number, a truth, or what was asked for.
    pub(super) status: i32,
    /// What was asked for.
    pub(super) data: Vec<u8>,
    /// What ctdbd says about a failure, if anything.
    pub(super) message: String,
    /// Whether it is the answer to a call that could not be done.
    pub(super) is_failed_call: bool,
}

impl<'a> Packet<'a> {
    /// The packet that bytes begin with, and its length; `None` while it is incomplete.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Option<(Self, usize)>, PacketError> {
        // The length is judged as soon as it is there: what is not CTDB's must not be waited for.
        let mut fields = Fields { rest: bytes, packet: "packet" };
        let Ok(length) = fields.u32("length") else { return Ok(None) };
        let length = length as usize;
        if !(HEADER_LEN..=PACKET_MAX).contains(&length) {
            return Err(PacketError::Length { length: length as u64 });
        }
        let Some(packet) = bytes.get(..length) else { return Ok(None) };

        let mut fields = Fields { rest: packet, packet: "packet" };
        fields.u32("length")?;
        for (field, expected) in [("magic", MAGIC), ("version", VERSION)] {
            let value = fields.u32(field)?;
            if value != expected {
                return Err(PacketError::Value { field, value });
            }
        }
        fields.u32("generation")?;
        let operation = fields.u32("operation")?;
        fields.u32("destination")?;
        fields.u32("source")?;
        let request = fields.u32("request")?;
        Ok(Some((Self { operation, request, body: fields.rest }, length)))
    }

    /// The packet as the answer to this request.
    pub(super) fn answer_to(&self, request: &Request<'_>) -> Result<Reply, PacketError> {
        if !request.expects(self.operation) {
            return Err(PacketError::Value { field: "operation", value: self.operation });
        }
        let is_control = self.operation == REPLY_CONTROL;
        let is_error = self.operation == REPLY_ERROR;
        let packet = if is_control { "REPLY_CONTROL" } else { "REPLY_CALL" };
        let mut fields = Fields { rest: self.body, packet };
        let status = i32::from_ne_bytes(fields.take("status")?);
        let data_length = fields.u32("data length")?;
        let message_length = if is_control { fields.u32("error length")? } else { 0 };
        // ctdbd rounds the length of a packet up, so something may be left over.
        let data = fields.bytes("data", data_length)?;
        let message = if is_error { data } else { fields.bytes("error", message_length)? };
        let message = String::from_utf8_lossy(message).trim_end_matches('\0').to_owned();
        let is_failed_call = is_error || !is_control && status != 0;
        Ok(Reply { status, data: data.to_vec(), message, is_failed_call })
    }
}

/// Reads the fields of a packet, or of the data of a reply, one after the other.
pub(super) struct Fields<'a> {
    /// What was not read yet.
    pub(super) rest: &'a [u8],
    /// What is being read.
    pub(super) packet: &'static str,
}

impl<'a> Fields<'a> {
    pub(super) fn u32(&mut self, field: &'static str) -> Result<u32, PacketError> {
        Ok(u32::from_ne_bytes(self.take(field)?))
    }

    pub(super) fn take<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], PacketError> {
        let (head, rest) = self.rest.split_first_chunk().ok_or(self.truncated(field))?;
        self.rest = rest;
        Ok(*head)
    }

    fn bytes(&mut self, field: &'static str, length: u32) -> Result<&'a [u8], PacketError> {
        let (head, rest) = self.rest.split_at_checked(length as usize).ok_or(self.truncated(field))?;
        self.rest = rest;
        Ok(head)
    }

    fn truncated(&self, field: &'static str) -> PacketError {
        PacketError::Truncated { packet: self.packet, field }
    }
}

/// Bytes that are no packet of CTDB's, or not the one that was asked for.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum PacketError {
    /// No packet has that length.
    #[error("a packet of {length} bytes, where {HEADER_LEN} to {PACKET_MAX} are possible")]
    Length {
        /// The length.
        length: u64,
    },
    /// It ends too early.
    #[error("{packet} ends inside its field `{field}`")]
    Truncated {
        /// What ends.
        packet: &'static str,
        /// The field it ends in.
        field: &'static str,
    },
    /// A field says what it cannot say.
    #[error("field `{field}` of a packet has the unknown value {value:#x}")]
    Value {
        /// The field.
        field: &'static str,
        /// What it says.
        value: u32,
    },
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CONTROL: Request<'_> = Request::Control { opcode: Opcode::GetPnn, node: None, data: b"data" };
    const CALL: Request<'_> = Request::Call { call: Call::Migrate, database: DatabaseId(7), key: b"a key" };

    fn encoded(requests: &[Request<'_>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (number, request) in (1..).zip(requests) {
            request.encode(number, &mut bytes).expect("they are short");
        }
        bytes
    }

    #[test]
    fn requests_are_packets() {
        let order = Request::Order { opcode: Opcode::ScheduleForDeletion, data: b"" };
        let bytes = encoded(&[CONTROL, CALL, order]);
        let mut rest = &bytes[..];
        let mut bodies = Vec::new();
        while let Some((packet, length)) = Packet::parse(rest).unwrap() {
            bodies.push((packet.request, packet.operation, packet.body.len()));
            rest = &rest[length..];
        }
        assert_eq!(rest, []);
        assert_eq!(bodies, [(1, REQ_CONTROL, 28 + 4), (2, REQ_CALL, 24 + 5), (3, REQ_CONTROL, 28)]);
    }

    #[test]
    fn request_that_is_too_long_is_refused() {
        let data = vec![0; PACKET_MAX];
        let request = Request::Control { opcode: Opcode::GetPnn, node: None, data: &data };
        assert!(matches!(request.encode(1, &mut Vec::new()), Err(PacketError::Length { .. })));
    }

    proptest! {
        #[test]
        fn packet_that_has_not_come_whole_is_waited_for(cut in 0..64_usize) {
            let bytes = encoded(&[CONTROL]);
            let cut = cut.min(bytes.len() - 1);
            prop_assert_eq!(Packet::parse(&bytes[..cut]), Ok(None));
        }

        #[test]
        fn whatever_comes_is_an_answer_or_an_error(
            body in proptest::collection::vec(any::<u8>(), 0..64),
            operation in prop_oneof![Just(REPLY_CALL), Just(REPLY_ERROR), Just(REPLY_CONTROL), any::<u32>()],
        ) {
            let packet = Packet { operation, request: 1, body: &body };
            for request in [CONTROL, CALL] {
                if let Ok(reply) = packet.answer_to(&request) {
                    prop_assert!(reply.data.len() + reply.message.len() <= 3 * body.len());
                }
            }
        }

        #[test]
        fn whatever_is_damaged_is_a_packet_or_an_error(place in 0..32_usize, byte in any::<u8>()) {
            let mut bytes = encoded(&[CALL]);
            bytes[place] = byte;
            if let Ok(Some((_, length))) = Packet::parse(&bytes) {
                prop_assert!(length <= bytes.len());
            }
        }
    }
}
