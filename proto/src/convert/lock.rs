//! `Lock` and its parts.

use statedb::{ByteRangeLock, DurableFileId, Lock, LockElement, LockSequence};

use super::enumerations::specified;
use crate::WireError;
use crate::pb::smb::v1 as pb;

/// How many ranges a LOCK request may have. The specification has no limit; the Linux client sends what fits into a
/// page, which is 170.
const ELEMENTS_MAX: usize = 256;

/// The largest LockSequenceNumber, which has four bits (MS-SMB2 2.2.26).
const SEQUENCE_NUMBER_MAX: u8 = 15;

impl From<&Lock> for pb::Lock {
    fn from(lock: &Lock) -> Self {
        Self {
            durable_file_id: lock.open.0,
            elements: lock.elements.iter().copied().map(Into::into).collect(),
            sequence: Some(pb::LockSequence {
                index: lock.sequence.index,
                number: lock.sequence.number.into(),
            }),
            dialect: pb::Dialect::from(lock.dialect).into(),
            multichannel: lock.multichannel,
        }
    }
}

impl TryFrom<pb::Lock> for Lock {
    type Error = WireError;

    fn try_from(lock: pb::Lock) -> Result<Self, WireError> {
        const MESSAGE: &str = "Lock";
        if lock.elements.len() > ELEMENTS_MAX {
            let what = format!("{} elements, more than {ELEMENTS_MAX}", lock.elements.len());
            return Err(WireError::invalid(MESSAGE, "elements", what));
        }
        Ok(Self {
            open: DurableFileId(lock.durable_file_id),
            elements: lock.elements.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            sequence: lock.sequence.map(TryInto::try_into).transpose()?.unwrap_or_default(),
            dialect: specified(MESSAGE, "dialect", lock.dialect)?,
            multichannel: lock.multichannel,
        })
    }
}

impl TryFrom<pb::LockSequence> for LockSequence {
    type Error = WireError;

    fn try_from(sequence: pb::LockSequence) -> Result<Self, WireError> {
        let number = u8::try_from(sequence.number).ok().filter(|number| *number <= SEQUENCE_NUMBER_MAX);
        let number = number.ok_or_else(|| {
            let what = format!("{} exceeds {SEQUENCE_NUMBER_MAX}", sequence.number);
            WireError::invalid("LockSequence", "number", what)
        })?;
        Ok(Self { index: sequence.index, number })
    }
}

impl From<LockElement> for pb::LockElement {
    fn from(element: LockElement) -> Self {
        Self { offset: element.offset, length: element.length, kind: pb::LockKind::from(element.kind).into() }
    }
}

impl TryFrom<pb::LockElement> for LockElement {
    type Error = WireError;

    fn try_from(element: pb::LockElement) -> Result<Self, WireError> {
        Ok(Self {
            offset: element.offset,
            length: element.length,
            kind: specified("LockElement", "kind", element.kind)?,
        })
    }
}

impl From<ByteRangeLock> for pb::ByteRangeLock {
    fn from(lock: ByteRangeLock) -> Self {
        Self { offset: lock.offset, length: lock.length, exclusive: lock.exclusive }
    }
}

impl From<pb::ByteRangeLock> for ByteRangeLock {
    fn from(lock: pb::ByteRangeLock) -> Self {
        Self { offset: lock.offset, length: lock.length, exclusive: lock.exclusive }
    }
}
