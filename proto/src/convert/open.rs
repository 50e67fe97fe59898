//! `Open` and `OpenDescription`.

use statedb::{
    AccessMask, ByteRangeLock, ClientGuid, CreateGuid, CreateOptions, DurableFileId, Millis, Open,
    OpenDescription, OpenState, ShareAccess, ShareName, Sid, Timestamp,
};

use super::{required, sixteen};
use crate::WireError;
use crate::pb::storage::v1 as pb;
use pb::open::State as PbState;

impl From<&Open> for pb::Open {
    fn from(open: &Open) -> Self {
        let state = match open.state {
            OpenState::Connected { owner } => PbState::Connected(pb::Connected { owner: Some(owner.into()) }),
            OpenState::Disconnected { keeper, durable_open_scavenger_timeout } => {
                PbState::Disconnected(pb::Disconnected {
                    keeper: keeper.map(Into::into),
                    until_ms: durable_open_scavenger_timeout.0,
                })
            }
        };
        Self { description: Some((&open.description).into()), state: Some(state) }
    }
}

impl TryFrom<pb::Open> for Open {
    type Error = WireError;

    fn try_from(open: pb::Open) -> Result<Self, WireError> {
        let state = match required("Open", "state", open.state)? {
            PbState::Connected(connected) => {
                OpenState::Connected { owner: required("Connected", "owner", connected.owner)?.into() }
            }
            PbState::Disconnected(disconnected) => OpenState::Disconnected {
                keeper: disconnected.keeper.map(Into::into),
                durable_open_scavenger_timeout: Timestamp(disconnected.until_ms),
            },
        };
        Ok(Self { description: required("Open", "description", open.description)?.try_into()?, state })
    }
}

impl From<&OpenDescription> for pb::OpenDescription {
    fn from(open: &OpenDescription) -> Self {
        Self {
            durable_file_id: open.durable_file_id.0,
            create_guid: open.create_guid.0.to_vec(),
            client_guid: open.client_guid.0.to_vec(),
            app_instance_id: open.app_instance_id.map(|id| id.to_vec()),
            durable_owner: open.durable_owner.0.clone(),
            share: open.share.as_str().to_owned(),
            path: open.path.clone(),
            file: Some(open.file.into()),
            granted_access: open.granted_access.0,
            share_access: open.share_access.0,
            create_options: open.create_options.0,
            oplock: Some(open.oplock.into()),
            oplock_state: pb::OplockState::from(open.oplock_state).into(),
            durability: pb::Durability::from(open.durability).into(),
            durable_open_timeout_ms: open.durable_open_timeout.0,
            byte_range_locks: open.byte_range_locks.iter().copied().map(Into::into).collect(),
            lock_sequence_array: open.lock_sequence_array.clone(),
            delete_on_close: open.delete_on_close,
            position: open.position,
            image: open.image.to_vec(),
        }
    }
}

impl TryFrom<pb::OpenDescription> for OpenDescription {
    type Error = WireError;

    fn try_from(open: pb::OpenDescription) -> Result<Self, WireError> {
        const MESSAGE: &str = "OpenDescription";
        let app_instance_id =
            open.app_instance_id.map(|id| sixteen(MESSAGE, "app_instance_id", &id)).transpose()?;
        Ok(Self {
            durable_file_id: DurableFileId(open.durable_file_id),
            create_guid: CreateGuid(sixteen(MESSAGE, "create_guid", &open.create_guid)?),
            client_guid: ClientGuid(sixteen(MESSAGE, "client_guid", &open.client_guid)?),
            app_instance_id,
            durable_owner: Sid(open.durable_owner),
            share: ShareName::new(&open.share),
            path: open.path,
            file: required(MESSAGE, "file", open.file)?.into(),
            granted_access: AccessMask(open.granted_access),
            share_access: ShareAccess(open.share_access),
            create_options: CreateOptions(open.create_options),
            oplock: required(MESSAGE, "oplock", open.oplock)?.try_into()?,
            oplock_state: pb::OplockState::try_from(open.oplock_state)
                .map_err(|error| WireError::invalid(MESSAGE, "oplock_state", error.to_string()))?
                .try_into()?,
            durability: pb::Durability::try_from(open.durability)
                .map_err(|error| WireError::invalid(MESSAGE, "durability", error.to_string()))?
                .try_into()?,
            durable_open_timeout: Millis(open.durable_open_timeout_ms),
            byte_range_locks: open.byte_range_locks.into_iter().map(Into::into).collect(),
            lock_sequence_array: open.lock_sequence_array,
            delete_on_close: open.delete_on_close,
            position: open.position,
            image: open.image.into(),
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
