//! `Oplock` and `Lease`.

use statedb::{Lease, LeaseEpoch, LeaseKey, LeaseState, Oplock, OplockLevel};

use super::enumerations::specified;
use super::{required, sixteen};
use crate::WireError;
use crate::pb::smb::v1 as pb;
use pb::open_description::Oplock as OfOpen;
use pb::oplock::Oplock as PbOplock;

impl From<Oplock> for pb::Oplock {
    fn from(oplock: Oplock) -> Self {
        let oplock = match oplock.lease() {
            Some(lease) => PbOplock::Lease(lease.into()),
            None => PbOplock::Level(pb::OplockLevel::from(oplock.level()).into()),
        };
        Self { oplock: Some(oplock) }
    }
}

impl TryFrom<pb::Oplock> for Oplock {
    type Error = WireError;

    fn try_from(oplock: pb::Oplock) -> Result<Self, WireError> {
        const MESSAGE: &str = "Oplock";
        match required(MESSAGE, "oplock", oplock.oplock)? {
            PbOplock::Level(level) => without_lease(MESSAGE, "level", level),
            PbOplock::Lease(lease) => Ok(Self::Lease(lease.try_into()?)),
        }
    }
}

impl From<Oplock> for OfOpen {
    fn from(oplock: Oplock) -> Self {
        match oplock.lease() {
            Some(lease) => Self::Lease(lease.into()),
            None => Self::OplockLevel(pb::OplockLevel::from(oplock.level()).into()),
        }
    }
}

impl TryFrom<OfOpen> for Oplock {
    type Error = WireError;

    fn try_from(oplock: OfOpen) -> Result<Self, WireError> {
        match oplock {
            OfOpen::OplockLevel(level) => without_lease("OpenDescription", "oplock_level", level),
            OfOpen::Lease(lease) => Ok(Self::Lease(lease.try_into()?)),
        }
    }
}

fn without_lease(message: &'static str, field: &'static str, level: i32) -> Result<Oplock, WireError> {
    match specified(message, field, level)? {
        OplockLevel::None => Ok(Oplock::None),
        OplockLevel::LevelII => Ok(Oplock::LevelII),
        OplockLevel::Exclusive => Ok(Oplock::Exclusive),
        OplockLevel::Batch => Ok(Oplock::Batch),
        OplockLevel::Lease => Err(WireError::invalid(message, field, "says lease and does not say which")),
    }
}

impl From<Lease> for pb::Lease {
    fn from(lease: Lease) -> Self {
        Self {
            key: lease.key.0.to_vec(),
            state: lease.state.0,
            epoch: lease.epoch.0.into(),
            version: pb::LeaseVersion::from(lease.version).into(),
            parent_key: lease.parent.map(|key| key.0.to_vec()),
        }
    }
}

impl TryFrom<pb::Lease> for Lease {
    type Error = WireError;

    fn try_from(lease: pb::Lease) -> Result<Self, WireError> {
        const MESSAGE: &str = "Lease";
        let parent = lease.parent_key.map(|key| sixteen(MESSAGE, "parent_key", &key)).transpose()?;
        Ok(Self {
            key: LeaseKey(sixteen(MESSAGE, "key", &lease.key)?),
            state: LeaseState(lease.state),
            epoch: epoch(MESSAGE, lease.epoch)?,
            version: specified(MESSAGE, "version", lease.version)?,
            parent: parent.map(LeaseKey),
        })
    }
}

/// An epoch, which has sixteen bits in SMB2.
pub(super) fn epoch(message: &'static str, epoch: u32) -> Result<LeaseEpoch, WireError> {
    let checked = u16::try_from(epoch)
        .map_err(|_| WireError::invalid(message, "epoch", format!("{epoch} exceeds {}", u16::MAX)))?;
    Ok(LeaseEpoch(checked))
}
