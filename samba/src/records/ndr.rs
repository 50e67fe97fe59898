//! Samba's marshalling (NDR, little endian, every scalar aligned to its own size), as far as the databases use it.
//!
//! Reading is strict: padding must be zero, referent ids must be the ones that Samba's marshaller counts out,
//! lengths must agree with each other. A value that passes is therefore encoded again to the same bytes, and
//! most damage is found where it happened.

use frame::Database;

use super::error::{Problem, RecordError};

/// The first referent id of a unique pointer; each further one in the same blob is 4 higher.
const FIRST_REFERENT: u32 = 0x0002_0000;

/// The distance between two referent ids.
const REFERENT_STEP: u32 = 4;

/// What stands for a reference, a pointer that is never null and needs no referent id.
const REFERENCE: u32 = 0xAEF1_AEF1;

/// Reads one blob out of a record's value.
pub(crate) struct NdrReader<'a> {
    record: Database,
    bytes: &'a [u8],
    offset: usize,
    /// Where the blob begins in the value. Alignment counts from the blob, errors count from the value.
    base: usize,
    next_referent: u32,
}

impl<'a> NdrReader<'a> {
    /// A reader of a whole value.
    pub(crate) fn new(record: Database, bytes: &'a [u8]) -> Self {
        Self::nested(record, bytes, 0)
    }

    /// A reader of a blob that begins at `base` in the value of `record`.
    pub(crate) fn nested(record: Database, bytes: &'a [u8], base: usize) -> Self {
        Self { record, bytes, offset: 0, base, next_referent: FIRST_REFERENT }
    }

    /// Where the next byte stands in the record's value.
    pub(crate) fn position(&self) -> usize {
        self.base + self.offset
    }

    /// How many bytes of the blob are left.
    pub(crate) fn remaining(&self) -> usize {
        self.bytes.len() - self.offset
    }

    /// An error about the field that begins at `position`.
    pub(crate) fn error_at(&self, position: usize, field: &'static str, problem: Problem) -> RecordError {
        RecordError { record: self.record, field, offset: position, problem }
    }

    /// Skips to the next multiple of `alignment`; the bytes between must be zero.
    pub(crate) fn align(&mut self, field: &'static str, alignment: usize) -> Result<(), RecordError> {
        let position = self.position();
        let padding = self.take(field, self.offset.next_multiple_of(alignment) - self.offset)?;
        if padding.iter().any(|byte| *byte != 0) {
            return Err(self.error_at(position, field, Problem::Padding));
        }
        Ok(())
    }

    /// The next `length` bytes, unaligned.
    pub(crate) fn take(&mut self, field: &'static str, length: usize) -> Result<&'a [u8], RecordError> {
        let left = &self.bytes[self.offset..];
        let Some(taken) = left.get(..length) else {
            let problem = Problem::Truncated { wanted: length, left: left.len() };
            return Err(self.error_at(self.position(), field, problem));
        };
        self.offset += length;
        Ok(taken)
    }

    /// An array of bytes, unaligned.
    pub(crate) fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], RecordError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(field, N)?);
        Ok(array)
    }

    pub(crate) fn u8(&mut self, field: &'static str) -> Result<u8, RecordError> {
        self.array(field).map(|[byte]: [u8; 1]| byte)
    }

    pub(crate) fn u16(&mut self, field: &'static str) -> Result<u16, RecordError> {
        self.align(field, 2)?;
        self.array(field).map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self, field: &'static str) -> Result<u32, RecordError> {
        self.align(field, 4)?;
        self.array(field).map(u32::from_le_bytes)
    }

    /// NDR's `hyper`: 64 bits, aligned to 8.
    pub(crate) fn hyper(&mut self, field: &'static str) -> Result<u64, RecordError> {
        self.align(field, 8)?;
        self.array(field).map(u64::from_le_bytes)
    }

    /// Samba's `udlong`: 64 bits, aligned to 4.
    pub(crate) fn udlong(&mut self, field: &'static str) -> Result<u64, RecordError> {
        self.align(field, 4)?;
        self.array(field).map(u64::from_le_bytes)
    }

    /// Samba's `boolean8`.
    pub(crate) fn bool8(&mut self, field: &'static str) -> Result<bool, RecordError> {
        let position = self.position();
        match self.u8(field)? {
            0 => Ok(false),
            1 => Ok(true),
            found => Err(self.error_at(position, field, Problem::unexpected(found, "0 or 1"))),
        }
    }

    /// A GUID, aligned to 4.
    pub(crate) fn guid(&mut self, field: &'static str) -> Result<[u8; 16], RecordError> {
        self.align(field, 4)?;
        self.array(field)
    }

    /// An enumeration with the values 0 and 1.
    pub(crate) fn either(&mut self, field: &'static str, meaning: &'static str) -> Result<bool, RecordError> {
        match self.u32(field)? {
            0 => Ok(false),
            1 => Ok(true),
            found => {
                let position = self.position() - size_of::<u32>();
                Err(self.error_at(position, field, Problem::unexpected(found, meaning)))
            }
        }
    }

    /// A number that is always the same in this layout.
    pub(crate) fn constant(
        &mut self,
        field: &'static str,
        constant: u32,
        meaning: &'static str,
    ) -> Result<(), RecordError> {
        let found = self.u32(field)?;
        if found != constant {
            let position = self.position() - size_of::<u32>();
            return Err(self.error_at(position, field, Problem::unexpected(found, meaning)));
        }
        Ok(())
    }

    /// A unique pointer: whether what it points to follows.
    pub(crate) fn pointer(&mut self, field: &'static str) -> Result<bool, RecordError> {
        let found = self.u32(field)?;
        if found == 0 {
            return Ok(false);
        }
        if found != self.next_referent {
            let position = self.position() - size_of::<u32>();
            let problem = Problem::unexpected(found, "null or the next referent id");
            return Err(self.error_at(position, field, problem));
        }
        self.next_referent += REFERENT_STEP;
        Ok(true)
    }

    /// A unique pointer that is never null in this layout.
    pub(crate) fn pointer_to_some(&mut self, field: &'static str) -> Result<(), RecordError> {
        let position = self.position();
        if !self.pointer(field)? {
            return Err(self.error_at(position, field, Problem::unexpected(0_u32, "a pointer")));
        }
        Ok(())
    }

    /// A reference pointer.
    pub(crate) fn reference(&mut self, field: &'static str) -> Result<(), RecordError> {
        self.constant(field, REFERENCE, "a reference")
    }

    /// A blob behind its length, with a structure of its own in it. Nothing if the length is zero.
    pub(crate) fn blob<T>(
        &mut self,
        field: &'static str,
        read: impl FnOnce(&mut NdrReader<'_>) -> Result<T, RecordError>,
    ) -> Result<Option<T>, RecordError> {
        let length = self.u32(field)?;
        let base = self.position();
        let bytes = self.take(field, usize::try_from(length).unwrap_or(usize::MAX))?;
        if bytes.is_empty() {
            return Ok(None);
        }
        let mut reader = NdrReader::nested(self.record, bytes, base);
        let content = read(&mut reader)?;
        reader.end(field)?;
        Ok(Some(content))
    }

    /// The string that a pointer points to, if it points to one.
    pub(crate) fn string_if(
        &mut self,
        is_some: bool,
        field: &'static str,
    ) -> Result<Option<String>, RecordError> {
        is_some.then(|| self.string(field)).transpose()
    }

    /// A conformant and varying string of UTF-8 with its terminator.
    pub(crate) fn string(&mut self, field: &'static str) -> Result<String, RecordError> {
        let max_count = self.u32(field)?;
        self.constant(field, 0, "a string's offset, 0")?;
        let count_position = self.position();
        let actual_count = self.u32(field)?;
        if actual_count != max_count {
            let problem = Problem::unexpected(actual_count, "the string's length as said before");
            return Err(self.error_at(count_position, field, problem));
        }
        let position = self.position();
        let bytes = self.take(field, usize::try_from(actual_count).unwrap_or(usize::MAX))?;
        match bytes.split_last() {
            Some((0, text)) if !text.contains(&0) => {
                String::from_utf8(text.to_vec()).map_err(|_| self.error_at(position, field, Problem::NotUtf8))
            }
            _ => Err(self.error_at(position, field, Problem::Unterminated)),
        }
    }

    /// Everything that is left.
    pub(crate) fn rest(&mut self) -> &'a [u8] {
        let rest = &self.bytes[self.offset..];
        self.offset = self.bytes.len();
        rest
    }

    /// The end of the blob.
    pub(crate) fn end(&self, field: &'static str) -> Result<(), RecordError> {
        match self.remaining() {
            0 => Ok(()),
            left => Err(self.error_at(self.position(), field, Problem::Trailing { left })),
        }
    }
}

/// Writes one blob the way Samba's marshaller does.
#[derive(Default)]
pub(crate) struct NdrWriter {
    bytes: Vec<u8>,
    referents: u32,
}

impl NdrWriter {
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    pub(crate) fn align(&mut self, alignment: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(alignment), 0);
    }

    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub(crate) fn u8(&mut self, value: u8) {
        self.bytes.push(value);
    }

    pub(crate) fn u16(&mut self, value: u16) {
        self.align(2);
        self.raw(&value.to_le_bytes());
    }

    pub(crate) fn u32(&mut self, value: u32) {
        self.align(4);
        self.raw(&value.to_le_bytes());
    }

    pub(crate) fn hyper(&mut self, value: u64) {
        self.align(8);
        self.raw(&value.to_le_bytes());
    }

    pub(crate) fn udlong(&mut self, value: u64) {
        self.align(4);
        self.raw(&value.to_le_bytes());
    }

    pub(crate) fn bool8(&mut self, value: bool) {
        self.u8(u8::from(value));
    }

    pub(crate) fn guid(&mut self, guid: &[u8; 16]) {
        self.align(4);
        self.raw(guid);
    }

    /// The length of something that follows. Records are bounded by libtdb far below 4 GiB.
    pub(crate) fn count(&mut self, count: usize) {
        self.u32(u32::try_from(count).expect("a tdb record is smaller than 4 GiB"));
    }

    pub(crate) fn pointer(&mut self, is_some: bool) {
        if is_some {
            self.u32(FIRST_REFERENT + REFERENT_STEP * self.referents);
            self.referents += 1;
        } else {
            self.u32(0);
        }
    }

    pub(crate) fn reference(&mut self) {
        self.u32(REFERENCE);
    }

    /// A blob behind its length; the length is zero if there is no content.
    pub(crate) fn blob<T>(&mut self, content: Option<&T>, write: impl FnOnce(&mut Self, &T)) {
        let mut writer = Self::default();
        if let Some(content) = content {
            write(&mut writer, content);
        }
        let bytes = writer.into_bytes();
        self.count(bytes.len());
        self.raw(&bytes);
    }

    pub(crate) fn string(&mut self, text: &str) {
        let length = text.len() + 1;
        self.count(length);
        self.u32(0);
        self.count(length);
        self.raw(text.as_bytes());
        self.u8(0);
    }
}
