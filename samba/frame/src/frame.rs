//! Frames: what a `smbd` process asks, what the sidecar answers, and how both look as bytes.
//!
//! ```text
//! offset  size  field
//!      0     4  length      of the whole frame, header included; HEADER_LEN ..= MAX_FRAME
//!      4     1  kind        which request (0x01 …) or reply (0x81 …)
//!      5     1  flags       zero in this protocol
//!      6     2  reserved    zero
//!      8     4  request_id  chosen by the asker, repeated in every frame that belongs to the request
//!     12     …  payload     the variant's fields in the order of their declaration
//! ```
//!
//! Integers are little endian. A byte string is a u32 length and the bytes; a list is a u32 count and the
//! items; an optional byte string is a u8 (0 absent, 1 present) and, if present, the string.
//!
//! # The conversation
//!
//! A connection begins with [`Request::Hello`], answered by [`Reply::Welcome`] or a refusal. After that a
//! process has at most one request outstanding. [`Reply::Need`] is not a final answer: the process sends the
//! records ([`Request::Records`]) under the same request id and goes on waiting. Records that it expects to be asked for
//! it sends ahead of its request, under the same id; they are the answer to any need that they cover. After a lost connection the
//! process says Hello again and repeats its outstanding request, so the sidecar may see a request whose first
//! copy has been acted on already. A new request id supersedes the outstanding one: the process has given
//! that up.
//!
//! # What the sidecar owes
//!
//! - It makes its page before it listens: a process maps the page before it connects.
//! - It answers each process independently of all others. A process asks while it holds a record's chain
//!   lock, so an answer that waits for another process, or for that lock, may wait for ever; and the records
//!   of [`Reply::Need`] may take as long to come as another process takes to get its answer. Only
//!   [`Request::Look`] is asked without any lock, and may wait for what needs one.
//! - It says `Proceed` only after the page names the process's instance ([`crate::PageWriter::bind`]) and the
//!   bits of what was granted are set.
//! - It takes a connection that was reset for one that was closed: a process may end with a reply unread.

use crate::tdb::{Database, TdbError};

/// The version of this protocol, compared in [`Request::Hello`].
pub const PROTOCOL: u16 = 2;

/// Bytes before the payload.
pub const HEADER_LEN: usize = 12;

/// The largest frame. The largest records are those of a file that is open very often: a `locking.tdb` record
/// takes 132 bytes for each open of the file, so 1 MiB holds 7900 opens of one file, and a `brlock.tdb`
/// record takes 72 bytes for each lock, so it holds 14,500 locks. What does not fit is refused before it is
/// stored.
pub const MAX_FRAME: usize = 1 << 20;

/// A record that the sidecar asks for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RecordKey {
    /// Where the record is kept.
    pub database: Database,
    /// Its key there.
    pub key: Vec<u8>,
}

/// A record as it is stored on this node at the moment of asking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Where the record is kept.
    pub database: Database,
    /// Its key there.
    pub key: Vec<u8>,
    /// Its value, or `None` where there is no such record.
    pub value: Option<Vec<u8>>,
}

/// What a `smbd` process says to the sidecar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// The first frame of every connection.
    Hello {
        /// [`PROTOCOL`] of the shim.
        protocol: u16,
        /// One start of the SMB service: random bytes drawn by the process that opened the databases first,
        /// and inherited by all it forks. They prove a reconnect, whatever user the process runs as by then.
        instance: [u8; 16],
        /// The process that drew `instance`.
        main_pid: u32,
        /// The process at the other end of this connection.
        pid: u32,
    },
    /// May this record be stored? It is stored only after [`Reply::Proceed`].
    Store {
        /// Where.
        database: Database,
        /// Under which key.
        key: Vec<u8>,
        /// The complete new value.
        value: Vec<u8>,
    },
    /// May the record of this open be stored, which the last CREATE of this process has made to delete its file when it is
    /// closed (FILE_DELETE_ON_CLOSE)? No record says so.
    StoreDeleting {
        /// Under which key.
        key: Vec<u8>,
        /// The complete new value.
        value: Vec<u8>,
    },
    /// May this record be deleted? It is deleted only after [`Reply::Proceed`].
    Delete {
        /// Where.
        database: Database,
        /// Which.
        key: Vec<u8>,
    },
    /// May this record be looked at? Asked before the lock of its chain is taken, of the records of opens that
    /// another node of a ctdb cluster may have had ([`crate::PageReader::must_look`]), and without ctdb of those that
    /// another process may have; and of a new tree connect of a ctdb cluster, whose client may have to wait for what a
    /// node that has just died should have done. The answer may take as long as ctdb needs to recover from the death of that node, or that
    /// process to let go of the open, and is about this moment only: it is asked again each time that the lock is taken.
    Look {
        /// Where.
        database: Database,
        /// Which.
        key: Vec<u8>,
    },
    /// May this message be sent, by which another process is asked to break an oplock or a lease of a file that is tracked? No
    /// record says that it is on its way, and who sends it does not always wait for what comes of it. It is sent whatever
    /// the answer is.
    Break {
        /// To whom: its server id as Samba stores it.
        receiver: [u8; 24],
        /// The message.
        message: Vec<u8>,
    },
    /// May this position be set in an open of this process? No record has it before the connection is lost. It is set whatever the
    /// answer is.
    Position {
        /// Which open: the number in its entry among the share modes.
        share_file_id: u64,
        /// The position, in bytes.
        position: u64,
    },
    /// The answer to [`Reply::Need`]: the same keys in the same order. Or, ahead of a request, a guess at what it will
    /// need.
    Records {
        /// The records as they are now.
        records: Vec<Record>,
    },
    /// The records of [`Reply::Need`] cannot be had. The process has refused the store to `smbd` with this
    /// error, and expects no answer.
    Abandon {
        /// What `smbd` was told.
        tdb_error: TdbError,
    },
}

/// What the sidecar says to a `smbd` process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Hello was accepted.
    Welcome,
    /// Go on: what had to be committed is committed.
    Proceed,
    /// Do not store, delete or look. The call fails and `tdb_error()` returns this.
    Refuse {
        /// What `smbd` is told.
        tdb_error: TdbError,
    },
    /// Do not store or delete, and let the call succeed all the same: `smbd` is about to find out by itself that it has
    /// nothing to change there, and says so to its client as it always does.
    Skip,
    /// Before an answer is possible these records are needed.
    Need {
        /// Which ones.
        keys: Vec<RecordKey>,
    },
    /// The process must end at once, without storing or answering anything more: its instance was superseded, or no
    /// answer that it could give its client would be true. The client connects again.
    Fence,
}

/// Why bytes are not a frame, or a message cannot become one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// The length in the header is impossible.
    Length {
        /// What the header says.
        length: u64,
    },
    /// The frame ends inside a field.
    Truncated {
        /// The field.
        field: &'static str,
        /// Where the field begins.
        offset: usize,
    },
    /// The frame goes on after its last field.
    Trailing {
        /// Where it should have ended.
        offset: usize,
        /// How many bytes are left over.
        excess: usize,
    },
    /// A field has a value that this protocol does not know.
    Value {
        /// The field.
        field: &'static str,
        /// Where the field is.
        offset: usize,
        /// What it says.
        value: u64,
    },
    /// The message would need a frame longer than [`MAX_FRAME`].
    TooLarge {
        /// The length it would need.
        length: usize,
    },
    /// There is no memory for the message.
    NoMemory {
        /// How much was asked for.
        length: usize,
    },
}

impl std::fmt::Display for FrameError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Length { length } => {
                write!(f, "frame length {length} is outside {HEADER_LEN} ..= {MAX_FRAME}")
            }
            Self::Truncated { field, offset } => {
                write!(f, "frame ends inside field `{field}`, which begins at byte {offset}")
            }
            Self::Trailing { offset, excess } => {
                write!(f, "frame has {excess} bytes too many after byte {offset}")
            }
            Self::Value { field, offset, value } => {
                write!(f, "frame field `{field}` at byte {offset} has the unknown value {value}")
            }
            Self::TooLarge { length } => {
                write!(f, "message needs a frame of {length} bytes, more than {MAX_FRAME}")
            }
            Self::NoMemory { length } => write!(f, "no memory for a frame of {length} bytes"),
        }
    }
}

impl std::error::Error for FrameError {}

/// The kinds on the wire. Numbers are never reused; replies have the high bit set.
mod kind {
    pub(super) const HELLO: u8 = 0x01;
    pub(super) const STORE: u8 = 0x02;
    pub(super) const DELETE: u8 = 0x03;
    pub(super) const RECORDS: u8 = 0x04;
    pub(super) const ABANDON: u8 = 0x05;
    pub(super) const LOOK: u8 = 0x06;
    pub(super) const STORE_DELETING: u8 = 0x07;
    pub(super) const BREAK: u8 = 0x08;
    pub(super) const POSITION: u8 = 0x09;
    pub(super) const WELCOME: u8 = 0x81;
    pub(super) const PROCEED: u8 = 0x82;
    pub(super) const REFUSE: u8 = 0x83;
    pub(super) const NEED: u8 = 0x84;
    pub(super) const FENCE: u8 = 0x85;
    pub(super) const SKIP: u8 = 0x86;
}

impl Request {
    /// Appends the frame of this request to `out`; on error `out` is as it was.
    ///
    /// # Errors
    ///
    /// [`FrameError::TooLarge`] or [`FrameError::NoMemory`]; nothing else.
    pub fn encode(&self, request_id: u32, out: &mut Vec<u8>) -> Result<(), FrameError> {
        match self {
            Self::Hello { protocol, instance, main_pid, pid } => {
                let mut frame = Encoder::begin(out, kind::HELLO, request_id, 2 + 16 + 4 + 4)?;
                frame.fixed(&protocol.to_le_bytes());
                frame.fixed(instance);
                frame.fixed(&main_pid.to_le_bytes());
                frame.fixed(&pid.to_le_bytes());
            }
            Self::Store { database, key, value } => {
                let payload = 1 + bytes_len(key) + bytes_len(value);
                let mut frame = Encoder::begin(out, kind::STORE, request_id, payload)?;
                frame.u8(*database as u8);
                frame.bytes(key);
                frame.bytes(value);
            }
            Self::StoreDeleting { key, value } => {
                let payload = bytes_len(key) + bytes_len(value);
                let mut frame = Encoder::begin(out, kind::STORE_DELETING, request_id, payload)?;
                frame.bytes(key);
                frame.bytes(value);
            }
            Self::Delete { database, key } => Encoder::record(out, kind::DELETE, request_id, *database, key)?,
            Self::Look { database, key } => Encoder::record(out, kind::LOOK, request_id, *database, key)?,
            Self::Break { receiver, message } => {
                let payload = receiver.len() + bytes_len(message);
                let mut frame = Encoder::begin(out, kind::BREAK, request_id, payload)?;
                frame.fixed(receiver);
                frame.bytes(message);
            }
            Self::Position { share_file_id, position } => {
                let mut frame = Encoder::begin(out, kind::POSITION, request_id, 8 + 8)?;
                frame.fixed(&share_file_id.to_le_bytes());
                frame.fixed(&position.to_le_bytes());
            }
            Self::Records { records } => {
                let payload = records.iter().map(Record::encoded_len).sum::<usize>();
                let mut frame = Encoder::begin(out, kind::RECORDS, request_id, 4 + payload)?;
                frame.u32(records.len());
                for record in records {
                    frame.u8(record.database as u8);
                    frame.bytes(&record.key);
                    frame.u8(u8::from(record.value.is_some()));
                    if let Some(value) = &record.value {
                        frame.bytes(value);
                    }
                }
            }
            Self::Abandon { tdb_error } => {
                Encoder::begin(out, kind::ABANDON, request_id, 1)?.u8(*tdb_error as u8);
            }
        }
        Ok(())
    }

    /// Reads one whole frame: its request id and the request.
    ///
    /// # Errors
    ///
    /// Whatever is wrong with the bytes; then the connection is not worth keeping.
    pub fn decode(frame: &[u8]) -> Result<(u32, Self), FrameError> {
        let (mut decoder, kind, request_id) = Decoder::begin(frame)?;
        let request = match kind {
            kind::HELLO => Self::Hello {
                protocol: u16::from_le_bytes(decoder.fixed("protocol")?),
                instance: decoder.fixed("instance")?,
                main_pid: decoder.u32("main_pid")?,
                pid: decoder.u32("pid")?,
            },
            kind::STORE => Self::Store {
                database: decoder.database()?,
                key: decoder.bytes("key")?,
                value: decoder.bytes("value")?,
            },
            kind::STORE_DELETING => {
                Self::StoreDeleting { key: decoder.bytes("key")?, value: decoder.bytes("value")? }
            }
            kind::DELETE => Self::Delete { database: decoder.database()?, key: decoder.bytes("key")? },
            kind::LOOK => Self::Look { database: decoder.database()?, key: decoder.bytes("key")? },
            kind::BREAK => {
                Self::Break { receiver: decoder.fixed("receiver")?, message: decoder.bytes("message")? }
            }
            kind::POSITION => Self::Position {
                share_file_id: u64::from_le_bytes(decoder.fixed("share_file_id")?),
                position: u64::from_le_bytes(decoder.fixed("position")?),
            },
            kind::RECORDS => Self::Records {
                records: decoder.list("records", |decoder| {
                    Ok(Record {
                        database: decoder.database()?,
                        key: decoder.bytes("key")?,
                        value: decoder.optional_bytes("value")?,
                    })
                })?,
            },
            kind::ABANDON => Self::Abandon { tdb_error: decoder.tdb_error()? },
            _ => return Err(unknown_kind(kind)),
        };
        decoder.end()?;
        Ok((request_id, request))
    }
}

impl Record {
    fn encoded_len(&self) -> usize {
        1 + bytes_len(&self.key) + 1 + self.value.as_deref().map_or(0, bytes_len)
    }
}

impl Reply {
    /// Appends the frame of this reply to `out`; on error `out` is as it was.
    ///
    /// # Errors
    ///
    /// [`FrameError::TooLarge`] or [`FrameError::NoMemory`]; nothing else.
    pub fn encode(&self, request_id: u32, out: &mut Vec<u8>) -> Result<(), FrameError> {
        match self {
            Self::Welcome => {
                Encoder::begin(out, kind::WELCOME, request_id, 0)?;
            }
            Self::Proceed => {
                Encoder::begin(out, kind::PROCEED, request_id, 0)?;
            }
            Self::Refuse { tdb_error } => {
                Encoder::begin(out, kind::REFUSE, request_id, 1)?.u8(*tdb_error as u8);
            }
            Self::Skip => {
                Encoder::begin(out, kind::SKIP, request_id, 0)?;
            }
            Self::Need { keys } => {
                let payload = keys.iter().map(|wanted| 1 + bytes_len(&wanted.key)).sum::<usize>();
                let mut frame = Encoder::begin(out, kind::NEED, request_id, 4 + payload)?;
                frame.u32(keys.len());
                for wanted in keys {
                    frame.u8(wanted.database as u8);
                    frame.bytes(&wanted.key);
                }
            }
            Self::Fence => {
                Encoder::begin(out, kind::FENCE, request_id, 0)?;
            }
        }
        Ok(())
    }

    /// Reads one whole frame: its request id and the reply.
    ///
    /// # Errors
    ///
    /// Whatever is wrong with the bytes; then the connection is not worth keeping.
    pub fn decode(frame: &[u8]) -> Result<(u32, Self), FrameError> {
        let (mut decoder, kind, request_id) = Decoder::begin(frame)?;
        let reply = match kind {
            kind::WELCOME => Self::Welcome,
            kind::PROCEED => Self::Proceed,
            kind::REFUSE => Self::Refuse { tdb_error: decoder.tdb_error()? },
            kind::SKIP => Self::Skip,
            kind::NEED => Self::Need {
                keys: decoder.list("keys", |decoder| {
                    Ok(RecordKey { database: decoder.database()?, key: decoder.bytes("key")? })
                })?,
            },
            kind::FENCE => Self::Fence,
            _ => return Err(unknown_kind(kind)),
        };
        decoder.end()?;
        Ok((request_id, reply))
    }
}

/// Cuts the byte stream of a connection into frames.
///
/// Bounded: a header that announces an impossible length is refused as soon as it is there, so the buffer
/// never holds more than [`MAX_FRAME`] bytes and what one `push` brought.
#[derive(Debug, Default)]
pub struct FrameBuffer {
    bytes: Vec<u8>,
}

impl FrameBuffer {
    /// An empty buffer, for a new connection.
    pub const fn new() -> Self {
        Self { bytes: Vec::new() }
    }

    /// Adds what was read from the connection.
    ///
    /// # Errors
    ///
    /// [`FrameError::NoMemory`]; then nothing was added.
    pub fn push(&mut self, received: &[u8]) -> Result<(), FrameError> {
        let no_memory = |_| FrameError::NoMemory { length: received.len() };
        self.bytes.try_reserve(received.len()).map_err(no_memory)?;
        self.bytes.extend_from_slice(received);
        Ok(())
    }

    /// Takes out the first frame, if all of it is there. Call it until it returns `None`.
    ///
    /// # Errors
    ///
    /// [`FrameError::Length`]: the stream is damaged, nothing more can be read from it.
    pub fn take_frame(&mut self) -> Result<Option<Vec<u8>>, FrameError> {
        let Some(header) = self.bytes.first_chunk::<4>() else { return Ok(None) };
        let length = checked_length(u32::from_le_bytes(*header))?;
        if self.bytes.len() < length {
            return Ok(None);
        }
        let rest = self.bytes.split_off(length);
        Ok(Some(std::mem::replace(&mut self.bytes, rest)))
    }

    /// Forgets everything, for a new connection.
    pub fn clear(&mut self) {
        self.bytes.clear();
    }
}

fn checked_length(length: u32) -> Result<usize, FrameError> {
    match usize::try_from(length) {
        Ok(length) if (HEADER_LEN..=MAX_FRAME).contains(&length) => Ok(length),
        _ => Err(FrameError::Length { length: u64::from(length) }),
    }
}

fn unknown_kind(kind: u8) -> FrameError {
    FrameError::Value { field: "kind", offset: 4, value: u64::from(kind) }
}

/// Length of a byte string on the wire.
fn bytes_len(bytes: &[u8]) -> usize {
    4 + bytes.len()
}

/// Writes one frame into memory that was reserved for it, so that writing cannot fail halfway.
struct Encoder<'a> {
    out: &'a mut Vec<u8>,
}

impl<'a> Encoder<'a> {
    fn begin(out: &'a mut Vec<u8>, kind: u8, request_id: u32, payload: usize) -> Result<Self, FrameError> {
        let length = HEADER_LEN + payload;
        let length_on_wire = match u32::try_from(length) {
            Ok(on_wire) if length <= MAX_FRAME => on_wire,
            _ => return Err(FrameError::TooLarge { length }),
        };
        out.try_reserve(length).map_err(|_| FrameError::NoMemory { length })?;
        let mut encoder = Self { out };
        encoder.fixed(&length_on_wire.to_le_bytes());
        encoder.fixed(&[kind, 0, 0, 0]);
        encoder.fixed(&request_id.to_le_bytes());
        Ok(encoder)
    }

    /// A whole message about a record that is named by its key alone.
    fn record(
        out: &'a mut Vec<u8>,
        kind: u8,
        request_id: u32,
        database: Database,
        key: &[u8],
    ) -> Result<(), FrameError> {
        let mut frame = Self::begin(out, kind, request_id, 1 + bytes_len(key))?;
        frame.u8(database as u8);
        frame.bytes(key);
        Ok(())
    }

    fn fixed(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    fn u8(&mut self, value: u8) {
        self.out.push(value);
    }

    /// A length or count. Its bytes are part of the frame, and the frame's length was checked to fit.
    fn u32(&mut self, value: usize) {
        self.fixed(&u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.u32(bytes.len());
        self.fixed(bytes);
    }
}

/// Reads the fields of one frame in order.
struct Decoder<'a> {
    frame: &'a [u8],
    offset: usize,
}

impl<'a> Decoder<'a> {
    fn begin(frame: &'a [u8]) -> Result<(Self, u8, u32), FrameError> {
        let mut decoder = Self { frame, offset: 0 };
        let length = checked_length(decoder.u32("length")?)?;
        if frame.len() < length {
            return Err(FrameError::Truncated { field: "payload", offset: HEADER_LEN });
        }
        if frame.len() > length {
            return Err(FrameError::Trailing { offset: length, excess: frame.len() - length });
        }
        let kind = decoder.u8("kind")?;
        let flags = decoder.u8("flags")?;
        if flags != 0 {
            return Err(FrameError::Value { field: "flags", offset: 5, value: u64::from(flags) });
        }
        let reserved = u16::from_le_bytes(decoder.fixed("reserved")?);
        if reserved != 0 {
            return Err(FrameError::Value { field: "reserved", offset: 6, value: u64::from(reserved) });
        }
        let request_id = decoder.u32("request_id")?;
        Ok((decoder, kind, request_id))
    }

    fn fixed<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], FrameError> {
        let rest = self.frame.get(self.offset..).unwrap_or_default();
        let bytes = rest.first_chunk::<N>().ok_or(FrameError::Truncated { field, offset: self.offset })?;
        self.offset += N;
        Ok(*bytes)
    }

    fn u8(&mut self, field: &'static str) -> Result<u8, FrameError> {
        self.fixed::<1>(field).map(|[byte]| byte)
    }

    fn u32(&mut self, field: &'static str) -> Result<u32, FrameError> {
        self.fixed(field).map(u32::from_le_bytes)
    }

    fn bytes(&mut self, field: &'static str) -> Result<Vec<u8>, FrameError> {
        let offset = self.offset;
        let length = self.u32(field)?;
        let rest = self.frame.get(self.offset..).unwrap_or_default();
        let truncated = FrameError::Truncated { field, offset };
        let length = usize::try_from(length).map_err(|_| truncated.clone())?;
        // Taken from the frame first: a hostile length is refused here and never becomes an allocation.
        let bytes = rest.get(..length).ok_or(truncated)?;
        self.offset += length;
        Ok(bytes.to_vec())
    }

    fn optional_bytes(&mut self, field: &'static str) -> Result<Option<Vec<u8>>, FrameError> {
        let offset = self.offset;
        match self.u8(field)? {
            0 => Ok(None),
            1 => self.bytes(field).map(Some),
            other => Err(FrameError::Value { field, offset, value: u64::from(other) }),
        }
    }

    /// The list grows as its items are read, so that a hostile count costs nothing.
    fn list<T>(
        &mut self,
        field: &'static str,
        mut item: impl FnMut(&mut Self) -> Result<T, FrameError>,
    ) -> Result<Vec<T>, FrameError> {
        let count = self.u32(field)?;
        let mut items = Vec::new();
        for _ in 0..count {
            items.push(item(self)?);
        }
        Ok(items)
    }

    fn database(&mut self) -> Result<Database, FrameError> {
        let offset = self.offset;
        let number = self.u8("database")?;
        let unknown = FrameError::Value { field: "database", offset, value: u64::from(number) };
        Database::from_wire(number).ok_or(unknown)
    }

    fn tdb_error(&mut self) -> Result<TdbError, FrameError> {
        let offset = self.offset;
        let number = self.u8("tdb_error")?;
        let unknown = FrameError::Value { field: "tdb_error", offset, value: u64::from(number) };
        TdbError::from_wire(number).ok_or(unknown)
    }

    fn end(self) -> Result<(), FrameError> {
        match self.frame.len() - self.offset {
            0 => Ok(()),
            excess => Err(FrameError::Trailing { offset: self.offset, excess }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requests() -> Vec<Request> {
        let record = |value| Record { database: Database::Leases, key: vec![7; 32], value };
        vec![
            Request::Hello { protocol: PROTOCOL, instance: *b"sixteen bytes!!!", main_pid: 17, pid: 4711 },
            Request::Store { database: Database::OpenGlobal, key: vec![0, 0, 0, 9], value: vec![3; 648] },
            Request::Store { database: Database::Locking, key: Vec::new(), value: Vec::new() },
            Request::StoreDeleting { key: vec![0, 0, 0, 9], value: vec![3; 648] },
            Request::Delete { database: Database::TconGlobal, key: vec![1, 2, 3, 4] },
            Request::Look { database: Database::OpenGlobal, key: vec![9, 8, 7, 6] },
            Request::Break { receiver: [6; 24], message: vec![5; 33] },
            Request::Position { share_file_id: u64::MAX - 1, position: 0x1000 },
            Request::Records { records: Vec::new() },
            Request::Records { records: vec![record(None), record(Some(Vec::new())), record(Some(vec![1]))] },
            Request::Abandon { tdb_error: TdbError::Oom },
        ]
    }

    fn replies() -> Vec<Reply> {
        let wanted = |database| RecordKey { database, key: vec![5; 24] };
        vec![
            Reply::Welcome,
            Reply::Proceed,
            Reply::Refuse { tdb_error: TdbError::Lock },
            Reply::Skip,
            Reply::Need { keys: vec![wanted(Database::Locking), wanted(Database::Brlock)] },
            Reply::Fence,
        ]
    }

    fn encoded_request(request: &Request, request_id: u32) -> Vec<u8> {
        let mut frame = Vec::new();
        request.encode(request_id, &mut frame).expect("small enough");
        frame
    }

    fn encoded_reply(reply: &Reply, request_id: u32) -> Vec<u8> {
        let mut frame = Vec::new();
        reply.encode(request_id, &mut frame).expect("small enough");
        frame
    }

    #[test]
    fn every_message_survives_the_round_trip() {
        for (request_id, request) in (1..).zip(requests()) {
            assert_eq!(Request::decode(&encoded_request(&request, request_id)), Ok((request_id, request)));
        }
        for (request_id, reply) in (u32::MAX - 9..).zip(replies()) {
            assert_eq!(Reply::decode(&encoded_reply(&reply, request_id)), Ok((request_id, reply)));
        }
    }

    #[test]
    fn a_frame_has_the_documented_bytes() {
        let request = Request::Delete { database: Database::Brlock, key: vec![0xAA, 0xBB] };
        let expected = [19, 0, 0, 0, 3, 0, 0, 0, 0x2A, 0, 0, 0, 3, 2, 0, 0, 0, 0xAA, 0xBB];
        assert_eq!(encoded_request(&request, 0x2A), expected);
    }

    #[test]
    fn a_frame_cut_anywhere_is_refused() {
        for request in requests() {
            let frame = encoded_request(&request, 1);
            for end in 0..frame.len() {
                assert!(Request::decode(&frame[..end]).is_err(), "{request:?} cut at {end}");
            }
        }
    }

    #[test]
    fn a_payload_cut_anywhere_names_the_field() {
        for request in requests() {
            let frame = encoded_request(&request, 1);
            for end in HEADER_LEN..frame.len() {
                let mut shorter = frame[..end].to_vec();
                shorter[..4].copy_from_slice(&(end as u32).to_le_bytes());
                let error = Request::decode(&shorter).expect_err("a field is missing");
                assert!(matches!(error, FrameError::Truncated { .. }), "{request:?} cut at {end}: {error}");
            }
        }
    }

    #[test]
    fn any_damaged_byte_is_decoded_or_refused_without_panic() {
        let frames = requests().into_iter().map(|request| encoded_request(&request, 1));
        for frame in frames.chain(replies().into_iter().map(|reply| encoded_reply(&reply, 1))) {
            for offset in 0..frame.len() {
                for bit in 0..8 {
                    let mut damaged = frame.clone();
                    damaged[offset] ^= 1 << bit;
                    let _ = Request::decode(&damaged);
                    let _ = Reply::decode(&damaged);
                }
            }
        }
    }

    #[test]
    fn bytes_after_the_last_field_are_refused() {
        let mut frame = encoded_reply(&Reply::Proceed, 1);
        frame.push(0);
        frame[0] += 1;
        assert_eq!(Reply::decode(&frame), Err(FrameError::Trailing { offset: HEADER_LEN, excess: 1 }));
    }

    #[test]
    fn unknown_values_are_named_with_their_place() {
        let cases: [(usize, u8, &str); 4] =
            [(4, 0x7F, "kind"), (5, 1, "flags"), (7, 1, "reserved"), (12, 5, "database")];
        for (offset, value, name) in cases {
            let mut frame =
                encoded_request(&Request::Delete { database: Database::Locking, key: vec![1] }, 1);
            frame[offset] = value;
            match Request::decode(&frame) {
                Err(FrameError::Value { field, .. }) => assert_eq!(field, name),
                other => panic!("{name} went unnoticed: {other:?}"),
            }
        }
    }

    #[test]
    fn success_is_not_a_refusal() {
        let mut frame = encoded_reply(&Reply::Refuse { tdb_error: TdbError::Io }, 1);
        frame[HEADER_LEN] = 0;
        assert_eq!(
            Reply::decode(&frame),
            Err(FrameError::Value { field: "tdb_error", offset: 12, value: 0 })
        );
    }

    #[test]
    fn a_hostile_count_is_refused_before_memory_is_asked_for() {
        let mut frame = encoded_request(&Request::Records { records: Vec::new() }, 1);
        frame[HEADER_LEN..].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(Request::decode(&frame), Err(FrameError::Truncated { field: "database", .. })));
    }

    #[test]
    fn a_message_that_fits_no_frame_is_refused_and_leaves_no_trace() {
        let request =
            Request::Store { database: Database::Brlock, key: vec![0; 24], value: vec![0; MAX_FRAME] };
        let mut out = vec![1, 2, 3];
        assert!(matches!(request.encode(1, &mut out), Err(FrameError::TooLarge { .. })));
        assert_eq!(out, [1, 2, 3]);
    }

    #[test]
    fn the_buffer_cuts_a_stream_that_arrives_in_any_pieces() {
        let stream: Vec<u8> = requests().iter().flat_map(|request| encoded_request(request, 3)).collect();
        for piece_len in [1, 2, 3, 11, 12, 13, 100, stream.len()] {
            let mut buffer = FrameBuffer::new();
            let mut seen = Vec::new();
            for piece in stream.chunks(piece_len) {
                buffer.push(piece).expect("memory");
                while let Some(frame) = buffer.take_frame().expect("sound") {
                    seen.push(Request::decode(&frame).expect("sound").1);
                }
            }
            assert_eq!(seen, requests());
        }
    }

    #[test]
    fn the_buffer_refuses_an_impossible_length_at_once() {
        for length in [0, 11, MAX_FRAME as u32 + 1, u32::MAX] {
            let mut buffer = FrameBuffer::new();
            buffer.push(&length.to_le_bytes()).expect("memory");
            assert_eq!(buffer.take_frame(), Err(FrameError::Length { length: u64::from(length) }));
        }
    }
}
