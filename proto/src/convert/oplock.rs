//! `Oplock`, `OplockState`, `Lease` and `Durability`.

use statedb::{Durability, Lease, LeaseEpoch, LeaseKey, LeaseState, LeaseVersion, Oplock, OplockState};

use super::sixteen;
use crate::WireError;
use crate::pb::storage::v1 as pb;
use pb::open_description::Oplock as PbOplock;

/// What an enumeration says when it was not set.
const UNSPECIFIED: &str = "is not specified";

impl From<Oplock> for PbOplock {
    fn from(oplock: Oplock) -> Self {
        let level = match oplock {
            Oplock::None => pb::OplockLevel::None,
            Oplock::LevelII => pb::OplockLevel::Ii,
            Oplock::Exclusive => pb::OplockLevel::Exclusive,
            Oplock::Batch => pb::OplockLevel::Batch,
            Oplock::Lease(lease) => return Self::Lease(lease.into()),
        };
        Self::OplockLevel(level.into())
    }
}

impl TryFrom<PbOplock> for Oplock {
    type Error = WireError;

    fn try_from(oplock: PbOplock) -> Result<Self, WireError> {
        const FIELD: &str = "oplock_level";
        let level = match oplock {
            PbOplock::OplockLevel(level) => level,
            PbOplock::Lease(lease) => return Ok(Self::Lease(lease.try_into()?)),
        };
        let level = pb::OplockLevel::try_from(level)
            .map_err(|error| WireError::invalid("OpenDescription", FIELD, error.to_string()))?;
        Ok(match level {
            pb::OplockLevel::Unspecified => {
                return Err(WireError::invalid("OpenDescription", FIELD, UNSPECIFIED));
            }
            pb::OplockLevel::None => Self::None,
            pb::OplockLevel::Ii => Self::LevelII,
            pb::OplockLevel::Exclusive => Self::Exclusive,
            pb::OplockLevel::Batch => Self::Batch,
        })
    }
}

impl From<Lease> for pb::Lease {
    fn from(lease: Lease) -> Self {
        let version = match lease.version {
            LeaseVersion::V1 => pb::LeaseVersion::V1,
            LeaseVersion::V2 => pb::LeaseVersion::V2,
        };
        Self {
            key: lease.key.0.to_vec(),
            state: lease.state.0,
            epoch: lease.epoch.0.into(),
            version: version.into(),
        }
    }
}

impl TryFrom<pb::Lease> for Lease {
    type Error = WireError;

    fn try_from(lease: pb::Lease) -> Result<Self, WireError> {
        const MESSAGE: &str = "Lease";
        let invalid_version = |what: String| WireError::invalid(MESSAGE, "version", what);
        let version = match pb::LeaseVersion::try_from(lease.version)
            .map_err(|error| invalid_version(error.to_string()))?
        {
            pb::LeaseVersion::Unspecified => return Err(invalid_version(UNSPECIFIED.to_owned())),
            pb::LeaseVersion::V1 => LeaseVersion::V1,
            pb::LeaseVersion::V2 => LeaseVersion::V2,
        };
        let epoch = u16::try_from(lease.epoch)
            .map_err(|_| WireError::invalid(MESSAGE, "epoch", format!("{} exceeds 65535", lease.epoch)))?;
        Ok(Self {
            key: LeaseKey(sixteen(MESSAGE, "key", &lease.key)?),
            state: LeaseState(lease.state),
            epoch: LeaseEpoch(epoch),
            version,
        })
    }
}

impl From<OplockState> for pb::OplockState {
    fn from(state: OplockState) -> Self {
        match state {
            OplockState::Held => Self::Held,
            OplockState::Breaking => Self::Breaking,
        }
    }
}

impl TryFrom<pb::OplockState> for OplockState {
    type Error = WireError;

    fn try_from(state: pb::OplockState) -> Result<Self, WireError> {
        match state {
            pb::OplockState::Unspecified => {
                Err(WireError::invalid("OpenDescription", "oplock_state", UNSPECIFIED))
            }
            pb::OplockState::Held => Ok(Self::Held),
            pb::OplockState::Breaking => Ok(Self::Breaking),
        }
    }
}

impl From<Durability> for pb::Durability {
    fn from(durability: Durability) -> Self {
        match durability {
            Durability::DurableV1 => Self::V1,
            Durability::DurableV2 => Self::V2,
            Durability::Resilient => Self::Resilient,
            Durability::Persistent => Self::Persistent,
        }
    }
}

impl TryFrom<pb::Durability> for Durability {
    type Error = WireError;

    fn try_from(durability: pb::Durability) -> Result<Self, WireError> {
        match durability {
            pb::Durability::Unspecified => {
                Err(WireError::invalid("OpenDescription", "durability", UNSPECIFIED))
            }
            pb::Durability::V1 => Ok(Self::DurableV1),
            pb::Durability::V2 => Ok(Self::DurableV2),
            pb::Durability::Resilient => Ok(Self::Resilient),
            pb::Durability::Persistent => Ok(Self::Persistent),
        }
    }
}
