//! `Open` and `OpenDescription`.

use statedb::{
    AccessMask, AppInstance, Arbiter, ClientGuid, CreateGuid, CreateOptions, DurableFileId, Millis, Open,
    OpenDescription, OpenState, SessionId, ShareAccess, ShareName, Sid, Timestamp,
};

use super::enumerations::{optional, specified};
use super::{required, sixteen};
use crate::WireError;
use crate::pb::smb::v1 as pb;
use pb::open::State as PbState;

/// What was stored before there was a choice came from SMB servers that decide themselves.
pub(super) const STORED_ARBITER: Arbiter = Arbiter::SmbServer;

/// The largest LockSequenceIndex for which something is kept (MS-SMB2 3.3.1.10).
const LOCK_SEQUENCES_MAX: usize = 64;

impl From<&Open> for pb::Open {
    fn from(open: &Open) -> Self {
        let state = match open.state {
            OpenState::Connected { owner, session } => PbState::Connected(pb::Connected {
                owner: Some(owner.into()),
                session_id: session.map(|session| session.0),
            }),
            OpenState::Disconnected { keeper, durable_open_scavenger_timeout } => {
                PbState::Disconnected(pb::Disconnected {
                    keeper: keeper.map(Into::into),
                    until_ms: durable_open_scavenger_timeout.0,
                })
            }
        };
        Self {
            description: Some((&open.description).into()),
            state: Some(state),
            arbiter: pb::Arbiter::from(open.arbiter).into(),
        }
    }
}

impl TryFrom<pb::Open> for Open {
    type Error = WireError;

    fn try_from(open: pb::Open) -> Result<Self, WireError> {
        let state = match required("Open", "state", open.state)? {
            PbState::Connected(connected) => OpenState::Connected {
                owner: required("Connected", "owner", connected.owner)?.into(),
                session: connected.session_id.map(SessionId),
            },
            PbState::Disconnected(disconnected) => OpenState::Disconnected {
                keeper: disconnected.keeper.map(Into::into),
                durable_open_scavenger_timeout: Timestamp(disconnected.until_ms),
            },
        };
        Ok(Self {
            description: required("Open", "description", open.description)?.try_into()?,
            arbiter: optional("Open", "arbiter", open.arbiter)?.unwrap_or(STORED_ARBITER),
            state,
        })
    }
}

impl From<&OpenDescription> for pb::OpenDescription {
    fn from(open: &OpenDescription) -> Self {
        Self {
            durable_file_id: open.durable_file_id.0,
            create_guid: open.create_guid.0.to_vec(),
            client_guid: open.client_guid.0.to_vec(),
            app_instance_id: open.app_instance.map(|instance| instance.id.to_vec()),
            app_instance_version: open.app_instance.and_then(|instance| instance.version).map(Into::into),
            durable_owner: open.durable_owner.to_string(),
            share: open.share.as_str().to_owned(),
            path: open.path.as_ref().to_owned(),
            file: Some(open.file.into()),
            is_directory: open.is_directory,
            parent_directory: open.parent_directory.map(Into::into),
            granted_access: open.granted_access.0,
            share_access: open.share_access.0,
            create_options: open.create_options.0,
            create_action: pb::CreateAction::from(open.create_action).into(),
            oplock: Some(open.oplock.into()),
            oplock_state: pb::OplockState::from(open.oplock_state).into(),
            durability: pb::Durability::from(open.durability).into(),
            durable_open_timeout_ms: open.durable_open_timeout.0,
            byte_range_locks: open.byte_range_locks.iter().copied().map(Into::into).collect(),
            lock_sequence_array: open.lock_sequence_array.clone(),
            delete_on_close: open.delete_on_close,
            position: open.position,
            allocation_size: open.allocation_size,
            is_replay_eligible: open.is_replay_eligible,
            image: open.image.to_vec(),
        }
    }
}

impl TryFrom<pb::OpenDescription> for OpenDescription {
    type Error = WireError;

    fn try_from(open: pb::OpenDescription) -> Result<Self, WireError> {
        const MESSAGE: &str = "OpenDescription";
        let sequences = open.lock_sequence_array.len();
        if sequences > LOCK_SEQUENCES_MAX {
            let what = format!("{sequences} bytes, more than {LOCK_SEQUENCES_MAX}");
            return Err(WireError::invalid(MESSAGE, "lock_sequence_array", what));
        }
        let version = open.app_instance_version.map(Into::into);
        let app_instance = match open.app_instance_id {
            Some(id) => Some(AppInstance { id: sixteen(MESSAGE, "app_instance_id", &id)?, version }),
            None if version.is_some() => return Err(WireError::missing(MESSAGE, "app_instance_id")),
            None => None,
        };
        Ok(Self {
            durable_file_id: DurableFileId(open.durable_file_id),
            create_guid: CreateGuid(sixteen(MESSAGE, "create_guid", &open.create_guid)?),
            client_guid: ClientGuid(sixteen(MESSAGE, "client_guid", &open.client_guid)?),
            app_instance,
            durable_owner: Sid(open.durable_owner.into()),
            share: ShareName::new(&open.share),
            path: open.path.into(),
            file: required(MESSAGE, "file", open.file)?.into(),
            is_directory: open.is_directory,
            parent_directory: open.parent_directory.map(Into::into),
            granted_access: AccessMask(open.granted_access),
            share_access: ShareAccess(open.share_access),
            create_options: CreateOptions(open.create_options),
            create_action: optional(MESSAGE, "create_action", open.create_action)?.unwrap_or_default(),
            oplock: required(MESSAGE, "oplock", open.oplock)?.try_into()?,
            oplock_state: specified(MESSAGE, "oplock_state", open.oplock_state)?,
            durability: specified(MESSAGE, "durability", open.durability)?,
            durable_open_timeout: Millis(open.durable_open_timeout_ms),
            byte_range_locks: open.byte_range_locks.into_iter().map(Into::into).collect(),
            lock_sequence_array: open.lock_sequence_array,
            delete_on_close: open.delete_on_close,
            position: open.position,
            allocation_size: open.allocation_size,
            is_replay_eligible: open.is_replay_eligible,
            image: open.image.into(),
        })
    }
}
