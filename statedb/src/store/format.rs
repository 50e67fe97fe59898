//! The frame around every stored value: magic, kind, format version, length, crc32.
//!
//! ```text
//!  0   2  magic "HF"
//!  2   1  kind: what the payload is
//!  3   1  format version of that kind
//!  4   4  length of the payload, little endian
//!  8   4  crc32 over bytes 0 to 7, the context and the payload, little endian
//! 12   …  payload
//! ```
//!
//! The *context* is where the value is stored, its key. It is not in the frame, but in the checksum: a
//! sound value that turns up under another key is damage too.

use std::fmt;

/// What begins every frame.
const MAGIC: [u8; 2] = *b"HF";

/// Where the checksum stands; what is before it is covered by it.
const CHECKSUM_OFFSET: usize = 8;

/// How many bytes a frame adds to its payload.
pub const HEADER_LEN: usize = CHECKSUM_OFFSET + 4;

/// The format version that this release writes, for every kind of value.
pub const FORMAT_VERSION: u8 = 1;

/// What a framed payload is. The numbers are on disk and never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// The payload of a Raft log entry.
    LogEntry = 1,
    /// A record of the applied state.
    AppliedRecord = 2,
    /// What the applied state says of itself: the log position, the number and digest of its records.
    AppliedMeta = 3,
    /// The number of the generation of the applied state that is current.
    Generation = 4,
}

/// Why bytes are not a frame of the expected kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// Fewer bytes than a header has.
    TooShort(usize),
    /// It does not begin with the magic.
    Magic([u8; 2]),
    /// A sound frame of something else.
    Kind {
        /// The kind expected.
        expected: Kind,
        /// The number found.
        found: u8,
    },
    /// A format version that this release does not know.
    Version(u8),
    /// The header states another length.
    Length {
        /// As stated.
        stated: usize,
        /// As found.
        found: usize,
    },
    /// The checksum does not fit.
    Checksum {
        /// As stored.
        stored: u32,
        /// As computed.
        computed: u32,
    },
}

impl std::error::Error for FrameError {}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooShort(len) => write!(f, "{len} bytes, fewer than the {HEADER_LEN} of a header"),
            Self::Magic(found) => write!(f, "magic {found:02x?} instead of {MAGIC:02x?}"),
            Self::Kind { expected, found } => {
                write!(f, "a value of kind {found} instead of {} ({expected:?})", *expected as u8)
            }
            Self::Version(found) => {
                write!(f, "format version {found}, this release knows {FORMAT_VERSION}")
            }
            Self::Length { stated, found } => write!(f, "{found} bytes where {stated} are stated"),
            Self::Checksum { stored, computed } => {
                write!(f, "checksum {stored:08x} stored, {computed:08x} computed")
            }
        }
    }
}

/// Frames `payload`. `context` is the key that it will be stored under.
///
/// # Panics
///
/// If the payload is longer than 4 GiB, which its limits rule out.
#[must_use]
pub fn seal(kind: Kind, context: &[u8], payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).expect("stored values are limited to far less than 4 GiB");
    let mut framed = Vec::with_capacity(HEADER_LEN + payload.len());
    framed.extend_from_slice(&MAGIC);
    framed.push(kind as u8);
    framed.push(FORMAT_VERSION);
    framed.extend_from_slice(&len.to_le_bytes());
    let checksum = checksum(&framed, context, payload);
    framed.extend_from_slice(&checksum.to_le_bytes());
    framed.extend_from_slice(payload);
    framed
}

/// The payload of a frame, after everything about it was checked.
pub fn open<'a>(kind: Kind, context: &[u8], framed: &'a [u8]) -> Result<&'a [u8], FrameError> {
    let Some((header, payload)) = framed.split_first_chunk::<HEADER_LEN>() else {
        return Err(FrameError::TooShort(framed.len()));
    };
    let [m0, m1, found_kind, version, l0, l1, l2, l3, c0, c1, c2, c3] = *header;
    if [m0, m1] != MAGIC {
        return Err(FrameError::Magic([m0, m1]));
    }
    // The checksum comes before kind and version: a rotten byte there should be called rotten.
    let stored = u32::from_le_bytes([c0, c1, c2, c3]);
    let computed = checksum(&header[..CHECKSUM_OFFSET], context, payload);
    if stored != computed {
        return Err(FrameError::Checksum { stored, computed });
    }
    if version != FORMAT_VERSION {
        return Err(FrameError::Version(version));
    }
    if found_kind != kind as u8 {
        return Err(FrameError::Kind { expected: kind, found: found_kind });
    }
    let stated = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    if stated != payload.len() {
        return Err(FrameError::Length { stated, found: payload.len() });
    }
    Ok(payload)
}

/// The checksum that a frame of these bytes stores; `None` if they are too few to be a frame.
pub(super) fn stored_checksum(framed: &[u8]) -> Option<u32> {
    let bytes = framed.get(CHECKSUM_OFFSET..HEADER_LEN)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

fn checksum(header: &[u8], context: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(header);
    hasher.update(context);
    hasher.update(payload);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_one_byte_damage_is_noticed() {
        let framed = seal(Kind::AppliedRecord, b"key", b"some payload");
        assert_eq!(open(Kind::AppliedRecord, b"key", &framed), Ok(&b"some payload"[..]));
        for position in 0..framed.len() {
            for damage in 1..=u8::MAX {
                let mut damaged = framed.clone();
                damaged[position] ^= damage;
                assert!(
                    open(Kind::AppliedRecord, b"key", &damaged).is_err(),
                    "byte {position} ^ {damage:02x}"
                );
            }
        }
    }

    #[test]
    fn every_shortening_is_noticed() {
        let framed = seal(Kind::LogEntry, b"", b"some payload");
        for len in 0..framed.len() {
            assert!(open(Kind::LogEntry, b"", &framed[..len]).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn a_value_under_another_key_or_of_another_kind_is_noticed() {
        let framed = seal(Kind::AppliedRecord, b"key", b"payload");
        assert!(matches!(open(Kind::AppliedRecord, b"kex", &framed), Err(FrameError::Checksum { .. })));
        assert!(matches!(open(Kind::LogEntry, b"key", &framed), Err(FrameError::Kind { found: 2, .. })));
    }
}
