//! How positions, votes and payloads lie in the write-ahead log.
//!
//! Every encoding begins with a letter of its own and carries a crc32, and none has a length that is
//! believed before it was checked. So a changed byte, even one that turns a record into another type of
//! record, fails a checksum or a letter before anything past the end of the file is asked for; and only
//! a record that was cut short ends too early. `log.rs` says why that matters.

use std::io;
use std::sync::Arc;

use raft_log::codeq::{Decode, Encode};

use super::super::format::{self, Kind};
use super::{PAYLOAD_LEN_MAX, Position, Sync, Vote};

/// The types that `raft-log` stores.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct WalTypes;

impl raft_log::Types for WalTypes {
    type LogId = Position;
    type LogPayload = Payload;
    type Vote = Vote;
    type Callback = Sync;
    type UserData = StoreHeader;

    fn log_index(position: &Position) -> u64 {
        position.index
    }

    fn payload_size(payload: &Payload) -> u64 {
        payload.0.len() as u64
    }
}

/// The payload of an entry.
#[derive(Clone, Debug)]
pub(super) struct Payload(pub(super) Arc<[u8]>);

/// What a log directory says of its format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StoreHeader {
    /// The format of the directory as a whole.
    pub(super) version: u32,
}

/// Writes a letter, the fields and a crc32 of both.
fn encode_checked<W: io::Write>(mut writer: W, letter: u8, fields: &[&[u8]]) -> io::Result<usize> {
    let mut hasher = crc32fast::Hasher::new();
    writer.write_all(&[letter])?;
    hasher.update(&[letter]);
    let mut len = 1;
    for field in fields {
        writer.write_all(field)?;
        hasher.update(field);
        len += field.len();
    }
    let checksum = hasher.finalize().to_le_bytes();
    writer.write_all(&checksum)?;
    Ok(len + checksum.len())
}

/// Reads `N` bytes of fields between their letter and their crc32. The letter is checked before anything
/// after it is read.
fn decode_checked<const N: usize, R: io::Read>(mut reader: R, letter: u8) -> io::Result<[u8; N]> {
    let mut found = [0];
    reader.read_exact(&mut found)?;
    if found[0] != letter {
        return Err(invalid(format!("byte {:02x} where {letter:02x} begins the value", found[0])));
    }
    let mut fields = [0; N];
    reader.read_exact(&mut fields)?;
    let mut checksum = [0; 4];
    reader.read_exact(&mut checksum)?;
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&[letter]);
    hasher.update(&fields);
    let (stored, computed) = (u32::from_le_bytes(checksum), hasher.finalize());
    if stored == computed {
        Ok(fields)
    } else {
        Err(invalid(format!("checksum {stored:08x} stored, {computed:08x} computed")))
    }
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// A fixed-width field of a decoded value.
fn u64_at(fields: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(fields[offset..offset + 8].try_into().expect("the slice has eight bytes"))
}

impl Encode for Position {
    fn encode<W: io::Write>(&self, writer: W) -> io::Result<usize> {
        encode_checked(writer, b'L', &[&self.term.to_le_bytes(), &self.index.to_le_bytes()])
    }
}

impl Decode for Position {
    fn decode<R: io::Read>(reader: R) -> io::Result<Self> {
        let fields: [u8; 16] = decode_checked(reader, b'L')?;
        Ok(Self { term: u64_at(&fields, 0), index: u64_at(&fields, 8) })
    }
}

impl Encode for Vote {
    fn encode<W: io::Write>(&self, writer: W) -> io::Result<usize> {
        let committed = [u8::from(self.committed)];
        encode_checked(writer, b'V', &[&self.term.to_le_bytes(), &self.voted_for.to_le_bytes(), &committed])
    }
}

impl Decode for Vote {
    fn decode<R: io::Read>(reader: R) -> io::Result<Self> {
        let fields: [u8; 17] = decode_checked(reader, b'V')?;
        let committed = match fields[16] {
            0 => false,
            1 => true,
            other => return Err(invalid(format!("{other} where a vote is committed, 1, or not, 0"))),
        };
        Ok(Self { term: u64_at(&fields, 0), voted_for: u64_at(&fields, 8), committed })
    }
}

impl Encode for StoreHeader {
    fn encode<W: io::Write>(&self, writer: W) -> io::Result<usize> {
        encode_checked(writer, b'H', &[&self.version.to_le_bytes()])
    }
}

impl Decode for StoreHeader {
    fn decode<R: io::Read>(reader: R) -> io::Result<Self> {
        let fields: [u8; 4] = decode_checked(reader, b'H')?;
        Ok(Self { version: u32::from_le_bytes(fields) })
    }
}

impl Encode for Payload {
    /// The length with a crc32 of its own, then the frame of [`format`](mod@format).
    ///
    /// The length and its crc32 are eight bytes, as many as the checksum that `raft-log` puts behind every
    /// record. A record without a payload that is taken for one with a payload therefore fails here, too.
    fn encode<W: io::Write>(&self, mut writer: W) -> io::Result<usize> {
        let framed = format::seal(Kind::LogEntry, &[], &self.0);
        let len = u32::try_from(framed.len()).map_err(|_| invalid(format!("{} bytes", framed.len())))?;
        let len = len.to_le_bytes();
        writer.write_all(&len)?;
        writer.write_all(&crc32fast::hash(&len).to_le_bytes())?;
        writer.write_all(&framed)?;
        Ok(len.len() + 4 + framed.len())
    }
}

impl Decode for Payload {
    fn decode<R: io::Read>(mut reader: R) -> io::Result<Self> {
        let mut header = [0; 8];
        reader.read_exact(&mut header)?;
        let [l0, l1, l2, l3, c0, c1, c2, c3] = header;
        let len = [l0, l1, l2, l3];
        if crc32fast::hash(&len) != u32::from_le_bytes([c0, c1, c2, c3]) {
            return Err(invalid(format!("length {len:02x?} with checksum {:02x?}", &header[4..])));
        }
        let len = u32::from_le_bytes(len) as usize;
        if len > PAYLOAD_LEN_MAX + format::HEADER_LEN {
            return Err(invalid(format!("a payload of {len} bytes, more than is ever written")));
        }
        let mut framed = vec![0; len];
        reader.read_exact(&mut framed)?;
        let payload =
            format::open(Kind::LogEntry, &[], &framed).map_err(|error| invalid(error.to_string()))?;
        Ok(Self(payload.into()))
    }
}
